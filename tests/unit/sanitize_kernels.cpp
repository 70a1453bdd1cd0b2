// The kernels inside their arrays: run under ASan and UBSan by test_kernels_build.py. Every array lies in an
// allocation of its own size, at every small length, at odd alignments, in place, with operands absent and with threads.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "diffusevae/kernels.h"
#include "diffusevae/row.h"

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

const uint64_t kSeeds[3] = {0, 0xFFFFFFFFull, 1ull << 63};
const float kWeights[2] = {1.5f, -0.5f};

diffusevae::Row row_of(bool full, float push) {
    diffusevae::Row row{};
    row.p_x = 1.3f, row.p_e = -0.8f, row.p_c = -0.4f, row.clip = 1.0f, row.c_in = 1.0f, row.push = push;
    row.k_x0 = 0.6f, row.k_x = 0.3f, row.k_e = 0.5f, row.k_c = 0.7f, row.k_n = 0.9f;
    if (!full) return row;
    row.p_y = row.p_h1 = row.p_h2 = row.p_h3 = row.s_n = 0.1f;
    row.k_y = row.k_h1 = row.k_h2 = row.k_h3 = row.k_g = -0.2f;
    row.q_x0 = row.q_x = row.q_e = row.q_c = row.q_n = row.q_y = row.q_h1 = row.q_h2 = row.q_h3 = row.q_g = 0.3f;
    return row;
}

// `present`: a bit an optional operand or result; where none of noise and seeds is there, noise counts as zeros.
void update(int64_t samples, int64_t count, int64_t offset, unsigned present, int32_t threads, bool full) {
    const int64_t size = samples * count;
    const int32_t lanes = present & 1 ? 2 : 1;
    const diffusevae::Row row = row_of(full, float(present % 3));
    Array x(size, offset, 0.5f), e(lanes * size, offset + 1, -0.25f), other(size, offset + 2, 0.125f), noise(count, offset, 1.5f);
    Array out(size, offset + 3, 0.0f), x0(size, offset, 0.0f), y(size, offset + 1, 0.5f), h3(size, offset, -0.5f);
    dv_update_args a = {};
    a.row = &row.p_x;
    a.x = x.at();
    a.e = e.at();
    a.lanes = lanes;
    a.weights = lanes == 2 ? kWeights : nullptr;
    a.c = present & 2 ? other.at() : nullptr;
    a.h1 = a.h2 = a.g = a.v = present & 4 ? other.at() : nullptr;
    a.noise = present & 8 ? noise.at() : nullptr;
    a.seeds = present & 16 ? kSeeds : nullptr;
    a.x0_out = present & 32 ? x0.at() : nullptr;
    a.out = present & 64 ? out.at() : x.at();
    a.y = a.y_out = present & 4 ? y.at() : nullptr;
    a.h3 = a.push_out = present & 128 ? h3.at() : nullptr;
    a.samples = samples;
    a.count = count;
    a.step = 7;
    a.threads = threads;
    check(dv_update(&a) == 1, "finite operands reported as not finite");
    for (int64_t i = 0; i < size; ++i) check(std::isfinite(a.out[i]), "result not finite");
    for (int64_t i = 0; i < size; ++i) check(std::isfinite(y.at()[i]) && std::isfinite(h3.at()[i]), "y or history not finite");
    if (size == 0) return;
    e.at()[lanes * size - 1] = NAN;
    check(dv_update(&a) == 0, "NaN in the last element not reported");
}

void normals(int64_t count, int64_t offset) {
    Array out(3 * count, offset, 0.0f);
    dv_normal(kSeeds, 3, 2, 0xFFFFFFFFu, count, out.at());
    for (int64_t i = 0; i < 3 * count; ++i) check(std::fabs(out.at()[i]) < 6.0f, "a normal beyond 6 deviations");
}

void mixture(int64_t width, int64_t components) {
    Array units(3 * width, 1, 0.5f), means(components * width, 3, 1.0f), out(3 * width, 1, 0.0f);
    Array factors(components * width * width, 1, 0.25f);
    std::vector<uint64_t> thresholds;
    for (int64_t k = 1; k <= components; ++k) thresholds.push_back((uint64_t(k) << 32) / uint64_t(components));
    dv_mixture(kSeeds, 3, thresholds.data(), components, means.at(), factors.at(), width, units.at(), out.at());
    for (int64_t i = 0; i < 3 * width; ++i) check(out.at()[i] == 1.0f + 0.125f * float(width), "not the mean and the product");
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
            for (unsigned present = 0; present < 256; ++present)
                for (bool full : {false, true}) update(3, count, offset, present, 1, full);
            normals(count, offset);
        }
    update(0, 5, 0, 255, 4, true);
    for (bool full : {false, true}) update(3, 1100001, 1, 16 + 1, 3, full);
    for (int64_t channels : {1, 2, 3, 4})
        for (int64_t pixels : {0, 1, 7, 16, 33, 1025}) bytes(channels, pixels);
    for (int64_t width : {1, 7, 64})
        for (int64_t components : {1, 5}) mixture(width, components);
    const uint32_t counter[4] = {}, key[2] = {};
    uint32_t words[4];
    dv_philox4x32(counter, key, words);
    check(words[0] == 0x6627E8D5u, "Philox4x32-10 of zeros");
    check(dv_abi_version() == DV_ABI_VERSION && dv_isa() != nullptr, "version");
    std::puts("clean");
}
