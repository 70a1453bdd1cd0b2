// Programs with a field overwritten: refused with a sentence, or run.
#ifndef DIFFUSEVAE_TESTS_NATIVE_HOSTILE_H
#define DIFFUSEVAE_TESTS_NATIVE_HOSTILE_H

#include "native_gradients.h"
#include "native_maps.h"

namespace {

// A program of one kind or another.
Builder any_program(int round) {
    if (round % 5 == 4) return std::move(Encoder().b);
    if (round % 5 == 3) return std::move(Guide(round % 2 == 1).b);
    if (round % 10 == 2) return std::move(Mapped().b);
    if (round % 10 == 7) return std::move(Filtered().b);
    return std::move(Denoiser(round % 2 == 1, round % 32 == 0 ? 16 : 8, false, round % 3 == 0).b);
}

// One field of one struct is overwritten; whatever opens must also run.
void check_hostile_programs(const char* isa) {
    const std::string name = std::string(isa) + " hostile programs are refused or run";
    if (name.find(wanted) == std::string::npos) return;
    Random random(1234);
    const int32_t values[] = {-1, 0, 1, 2, 3, 5, 16, 31, 33, 64, 255, 4096, 1 << 20, INT32_MAX, INT32_MIN, -2, 0x7FC00000};
    int refused = 0, ran = 0;
    for (int round = 0; round < 3000; ++round) {
        Builder b = any_program(round);
        const int which = random.below(9);
        char* base = which == 0   ? reinterpret_cast<char*>(&b.ports[size_t(random.below(int32_t(b.ports.size())))])
                     : which == 8 ? reinterpret_cast<char*>(&b.blobs[size_t(random.below(int32_t(b.blobs.size())))])
                     : which == 1 ? reinterpret_cast<char*>(&b.tensors[size_t(random.below(int32_t(b.tensors.size())))])
                                  : reinterpret_cast<char*>(&b.ops[size_t(random.below(int32_t(b.ops.size())))]);
        const size_t size = which == 0   ? sizeof(dv_native_port)
                            : which == 1 ? sizeof(dv_native_tensor)
                            : which == 8 ? sizeof(dv_native_blob)
                                         : sizeof(dv_native_op);
        const int32_t value = values[random.below(int32_t(sizeof values / sizeof *values))];
        std::memcpy(base + 4 * size_t(random.below(int32_t(size / 4))), &value, 4);
        const Handle open(b, isa, 2);
        if (open.status != DV_NATIVE_OK) {
            refused += open.status == DV_NATIVE_BAD_PROGRAM && !open.text.empty();
            continue;
        }
        dv_native_info info;
        dv_native_describe(open.handle, &info);
        if (info.arena_bytes > int64_t(1) << 28) continue;
        ran += run(open.handle, b, draw_inputs(b, 2, 1, 0), 2, b.row_port == DV_NATIVE_NONE ? 0 : 1).status == DV_NATIVE_OK;
    }
    report(refused > 1000 && ran > 100, name, std::to_string(refused) + " refused, " + std::to_string(ran) + " ran");
}

}  // namespace

#endif  // DIFFUSEVAE_TESTS_NATIVE_HOSTILE_H
