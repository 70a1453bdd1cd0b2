// Do the kernels stay inside their arrays? Run under ASan and UBSan by test_kernels_build.py: every array lies in an
// allocation of its own size, at every small length, at odd alignments, in place, with operands absent and with threads.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "diffusevae/kernels.h"

namespace {

void check(bool good, const char* what) {
    if (good) return;
    std::fprintf(stderr, "failed: %s\n", what);
    std::exit(1);
}

// `size` floats in an allocation that ends with them and begins `offset` floats before.
struct Array {
    Array(int64_t size, int64_t offset, float value) : memory(size_t(size + offset), value), begin(offset) {}
    float* at() { return memory.data() + begin; }
    std::vector<float> memory;
    int64_t begin;
};

const float kRow[10] = {1.3f, -0.8f, -0.4f, 0.6f, -0.2f, 0.3f, 0.5f, 0.7f, 0.9f, 1.0f};
const uint64_t kSeeds[3] = {0, 0xFFFFFFFFull, 1ull << 63};

void update(int64_t samples, int64_t count, int64_t offset, unsigned present, int32_t threads) {
    const int64_t size = samples * count;
    Array x(size, offset, 0.5f), eps(size, offset + 1, -0.25f), other(size, offset + 2, 0.125f), noise(count, offset, 1.5f);
    Array out(size, offset + 3, 0.0f), x0(size, offset, 0.0f);
    dv_update_args a = {};
    a.row = kRow;
    a.x = x.at();
    a.eps = eps.at();
    a.eps_uncond = present & 1 ? other.at() : nullptr;
    a.cond = present & 2 ? other.at() : nullptr;
    a.x0_prev = present & 4 ? other.at() : nullptr;
    a.noise = present & 8 ? noise.at() : nullptr;
    a.seeds = present & 16 ? kSeeds : nullptr;
    a.x0_out = present & 32 ? x0.at() : nullptr;
    a.out = present & 64 ? out.at() : x.at();
    a.samples = samples;
    a.count = count;
    a.step = 7;
    a.guidance = 0.5f;
    a.threads = threads;
    check(dv_update(&a) == 1, "finite operands reported as not finite");
    for (int64_t i = 0; i < size; ++i) check(std::isfinite(a.out[i]), "result not finite");
    if (size == 0) return;
    eps.at()[size - 1] = NAN;
    check(dv_update(&a) == 0, "NaN in the last element not reported");
}

void normals(int64_t count, int64_t offset) {
    Array out(3 * count, offset, 0.0f);
    dv_normal(kSeeds, 3, 2, 0xFFFFFFFFu, count, out.at());
    for (int64_t i = 0; i < 3 * count; ++i) check(std::fabs(out.at()[i]) < 6.0f, "a normal beyond 6 deviations");
}

void bytes(int64_t channels, int64_t pixels) {
    const float values[6] = {-INFINITY, -1.0f, 0.1f, 1.0f, INFINITY, NAN};
    Array x(2 * channels * pixels, 1, 0.0f);
    for (int64_t i = 0; i < 2 * channels * pixels; ++i) x.at()[i] = values[i % 6];
    std::vector<uint8_t> out(size_t(2 * channels * pixels));
    dv_to_uint8(x.at(), 2, channels, pixels, out.data());
}

}  // namespace

int main() {
    for (int64_t count : {0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 255, 511, 512, 513, 1025})
        for (int64_t offset : {0, 1, 3}) {
            for (unsigned present = 0; present < 128; ++present) update(3, count, offset, present, 1);
            normals(count, offset);
        }
    update(0, 5, 0, 127, 4);
    update(3, 1100001, 1, 16, 3);
    for (int64_t channels : {1, 2, 3, 4})
        for (int64_t pixels : {0, 1, 7, 16, 33, 1025}) bytes(channels, pixels);
    const uint32_t counter[4] = {}, key[2] = {};
    uint32_t words[4];
    dv_philox4x32(counter, key, words);
    check(words[0] == 0x6627E8D5u, "Philox4x32-10 of zeros");
    check(dv_abi_version() == DV_ABI_VERSION && dv_isa() != nullptr, "version");
    std::puts("clean");
}
