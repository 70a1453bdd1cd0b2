// The CUDA kernels' accesses, run under ASan and UBSan by test_cuda_kernels.py: every array lies in an allocation of its
// own size, at every small length, at every alignment, in place, with operands absent.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "diffusevae/row.h"

extern "C" int32_t host_launch(const char* name, const uint32_t* grid, const uint32_t* block, const uint64_t* words,
                               int64_t count, uint32_t order);

namespace {

using diffusevae::Row;

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

constexpr uint32_t kRows = 5;

// The control block of README.md.
struct alignas(16) Control {
    uint32_t step = 0, ticket = 0, bad = 0, steps = kRows, pushes = 0;
    float k_noise = 0.8f, k_start = 0.3f, k_centre = 0.7f;
};

// Rows that push e or x0; the full ones read y and all three of the history, whatever was written.
std::vector<Row> rows_of(bool full) {
    std::vector<Row> rows(kRows);
    for (uint32_t i = 0; i < kRows; ++i) {
        Row& r = rows[i] = Row{};
        r.p_x = 1.3f, r.p_e = -0.8f, r.p_c = -0.4f, r.k_x0 = 0.6f, r.k_x = 0.3f, r.k_e = 0.5f, r.k_c = 0.7f;
        r.k_n = i % 2 ? 0.9f : 0.0f;
        r.clip = i == 3 ? INFINITY : 1.0f;
        r.c_in = i % 2 ? 0.5f : 1.0f;
        r.push = float(i % 3);
        if (!full || i == 1) continue;
        r.p_y = 0.1f, r.p_h1 = 0.2f, r.k_y = 0.1f, r.k_h1 = -0.2f, r.k_h2 = 0.3f, r.k_h3 = -0.1f, r.k_g = 0.4f, r.s_n = 0.3f;
        r.q_x = i == 2 ? 0.0f : 1.0f;
    }
    return rows;
}

const uint64_t kSeeds[3] = {0, 0xFFFFFFFFull, 1ull << 63};

void launch(const char* name, int64_t samples, int64_t count, const std::vector<uint64_t>& words) {
    const uint32_t grid[3] = {uint32_t(count / 64 + 1), uint32_t(samples > 0 ? samples : 1), 1}, block[3] = {16, 1, 1};
    check(host_launch(name, grid, block, words.data(), int64_t(words.size()), uint32_t(count)) == 0, name);
}

// All rows, and one launch too many; bits of `present`: two lanes, c, x0, given noise, network inputs, y, g and v.
void update(bool full, int64_t samples, int64_t count, int64_t offset, unsigned present) {
    const int64_t size = samples * count, lanes = present & 1 ? 2 : 1;
    const std::vector<Row> rows = rows_of(full);
    Control control;
    Array<float> weights(lanes * kRows, 0, 0.75f), e(lanes * size, offset, 1.0f), x(size, offset, 0.5f);
    Array<float> x_in(lanes * size, offset + 3, 0.0f), x0(size, offset + 2, 0.25f), c(size, offset, 0.125f);
    Array<float> noise(kRows * count, offset + 1, 1.5f), table(kRows * count, offset, 1.0f), table_row(count, offset, 0.0f);
    Array<float> y(size, offset + 1, 0.5f), g(size, offset, 0.25f), v(size, offset + 3, 0.5f), h(3 * size, offset + 2, 0.5f);
    const auto where = [&](unsigned bit, uint64_t address) { return present & bit ? address : 0; };
    std::vector<uint64_t> words = {
        uint64_t(&control), uint64_t(rows.data()), weights.at(), uint64_t(lanes), uint64_t(kSeeds), where(8, noise.at()),
        uint64_t(count), 0, e.at(), where(2, c.at()), x.at(), where(16, x_in.at()), where(16, uint64_t(lanes)),
        where(4, x0.at()), h.at(), table.at(), table_row.at(), uint64_t(count), uint64_t(samples), uint64_t(count)};
    if (full) words.insert(words.end(), {where(32, y.at()), where(32, g.at()), where(32, v.at())});
    for (uint32_t row = 0; row <= kRows; ++row) launch(full ? "dv_update_full" : "dv_update_plain", samples, count, words);
    check(control.step == kRows && control.ticket == 0 && control.bad == 0xFFFFFFFFu && control.pushes == 3, "the counters");
}

void others(int64_t samples, int64_t count, int64_t offset) {
    const int64_t size = samples * count;
    const std::vector<Row> rows = rows_of(false);
    Control control;
    Array<float> x(size, offset, 0.5f), start(size, offset + 1, 0.25f), x_T(size, offset, 1.5f), centre(size, offset, 0.5f);
    Array<float> x_in(2 * size, offset + 2, 0.0f), pixels(3 * size, offset, 0.5f), table(count, offset, 1.0f);
    Array<float> to(count, 0, 0.0f);
    Array<uint8_t> bytes(3 * size, offset, 0);
    for (const uint64_t given : {uint64_t(0), x_T.at()})
        for (const uint64_t copies : {0, 1, 2})
            launch("dv_start", samples, count,
                   {uint64_t(&control), uint64_t(rows.data()), uint64_t(kSeeds), given, uint64_t(count), start.at(),
                    centre.at(), x.at(), copies ? x_in.at() : 0, copies, table.at(), to.at(), uint64_t(count),
                    uint64_t(samples), uint64_t(count)});
    launch("dv_finite", 1, size, {uint64_t(&control), start.at(), uint64_t(size), 0xFFFF0000u});
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
                for (unsigned present = 0; present < 64; present += count > 8 ? 63 : 7) {
                    update(false, samples, count, offset, present);
                    update(true, samples, count, offset, present);
                }
                others(samples, count, offset);
            }
    std::puts("clean");
}
