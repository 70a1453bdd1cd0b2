// Do the CUDA kernels stay inside their arrays? Run under ASan and UBSan by test_cuda_kernels.py: every array lies in an
// allocation of its own size, at every small length, at every alignment, in place, with operands absent.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

extern "C" int32_t host_launch(const char* name, const uint32_t* grid, const uint32_t* block, const uint64_t* words,
                               int64_t count, uint32_t order);

namespace {

void check(bool good, const char* what) {
    if (good) return;
    std::fprintf(stderr, "failed: %s\n", what);
    std::exit(1);
}

// `size` elements in an allocation that ends with them and begins `offset` elements before.
template <class T>
struct Array {
    Array(int64_t size, int64_t offset, T value) : memory(size_t(size + offset), value), begin(offset) {}
    uint64_t at() { return reinterpret_cast<uint64_t>(memory.data() + begin); }
    std::vector<T> memory;
    int64_t begin;
};

// The control block of README.md.
struct alignas(16) Control {
    uint32_t step = 0, ticket = 0, bad = 0, steps = 2;
    float guidance = 0.5f, k_noise = 0.8f, k_image = 0.3f, k_cond = 0.7f;
};

const float kRows[20] = {1.3f, -0.8f, -0.4f, 0.6f, -0.2f, 0.3f, 0.5f, 0.7f, 0.9f, 1.0f,
                         1.1f, -0.3f, 0.2f,  0.9f, 0.1f,  0.2f, 0.4f, 0.1f, 0.0f, 1.0f};
const uint64_t kSeeds[3] = {0, 0xFFFFFFFFull, 1ull << 63};

void launch(const char* name, int64_t samples, int64_t count, const std::vector<uint64_t>& words) {
    const uint32_t grid[3] = {uint32_t(count / 64 + 1), uint32_t(samples > 0 ? samples : 1), 1}, block[3] = {16, 1, 1};
    check(host_launch(name, grid, block, words.data(), int64_t(words.size()), uint32_t(count)) == 0, name);
}

// Two steps; bits of `present`: eps_uncond, cond, x0, given noise, x_copy.
template <class Eps>
void update(const char* name, int64_t samples, int64_t count, int64_t offset, unsigned present) {
    const int64_t size = samples * count;
    Control control;
    Array<Eps> eps(size, offset, Eps(1)), eps_uncond(size, offset + 1, Eps(2));  // as halves: the smallest two
    Array<float> x(size, offset, 0.5f), x_copy(size, offset + 3, 0.0f), x0(size, offset + 2, 0.25f), cond(size, offset, 0.125f);
    Array<float> noise(2 * count, offset + 1, 1.5f), table(2 * count, offset, 1.0f), table_row(count, offset, 0.0f);
    const auto where = [&](unsigned bit, uint64_t address) { return present & bit ? address : 0; };
    const std::vector<uint64_t> words = {
        uint64_t(&control), uint64_t(kRows), uint64_t(kSeeds), where(8, noise.at()), uint64_t(count), 0, eps.at(),
        where(1, eps_uncond.at()), where(2, cond.at()), x.at(), where(16, x_copy.at()), where(4, x0.at()), table.at(),
        table_row.at(), uint64_t(count), uint64_t(samples), uint64_t(count)};
    for (int step = 0; step < 3; ++step) launch(name, samples, count, words);
    check(control.step == 2 && control.ticket == 0 && control.bad == 0xFFFFFFFFu, "the counter");
}

void others(int64_t samples, int64_t count, int64_t offset) {
    const int64_t size = samples * count;
    Control control;
    Array<float> x(size, offset, 0.5f), image(size, offset + 1, 0.25f), x_T(size, offset, 1.5f), copy(size, offset + 2, 0.0f);
    Array<float> drawn(2 * size, offset, 0.0f), pixels(3 * size, offset, 0.5f), table(count, offset, 1.0f), to(count, 0, 0.0f);
    Array<uint8_t> bytes(3 * size, offset, 0);
    for (const uint64_t given : {uint64_t(0), x_T.at()})
        launch("dv_start", samples, count,
               {uint64_t(&control), uint64_t(kSeeds), given, uint64_t(count), image.at(), copy.at(), x.at(), copy.at(),
                table.at(), to.at(), uint64_t(count), uint64_t(samples), uint64_t(count)});
    launch("dv_normal", samples, count,
           {uint64_t(kSeeds), 2, 0xFFFFFFFFull, 2, uint64_t(samples), uint64_t(count), drawn.at()});
    launch("dv_cond", 1, size, {uint64_t(&control), image.at(), image.at(), uint64_t(size)});
    for (const int64_t channels : {1, 3})
        launch("dv_to_uint8", samples, count,
               {pixels.at(), bytes.at(), uint64_t(samples), uint64_t(channels), uint64_t(count)});
    check(control.bad == 0, "the guard");
}

}  // namespace

int main() {
    for (int64_t samples : {0, 1, 3})
        for (int64_t count : {0, 1, 2, 3, 4, 5, 7, 8, 12, 63, 64, 65, 130})
            for (int64_t offset : {0, 1, 2, 3}) {
                for (unsigned present = 0; present < 32; present += count > 8 ? 31 : 5) {
                    update<float>("dv_update_f32", samples, count, offset, present);
                    update<uint16_t>("dv_update_f16", samples, count, offset, present);
                }
                others(samples, count, offset);
            }
    std::puts("clean");
}
