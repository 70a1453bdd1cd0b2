// The kernels of target `amx`: products in tiles, everything else over AVX-512; chosen at run time (isa.cpp).
#include "attention.h"
#include "classify.h"
#include "codes.h"
#include "gradients.h"
#include "norms.h"
#include "pixels.h"
#include "prepare.h"
#include "products_tiles.h"
#include "rows.h"

namespace {

using namespace diffusevae::native;

// 2 x 2 blocks over operands that lie in L2, as a convolution takes them; there is no float32 unit.
template <bool kInt8>
double ceiling_of(const uint8_t* operands, int64_t bytes, int64_t rounds) {
    const int64_t steps = bytes / 4 / kStepBytes;
    alignas(64) uint8_t sums[4096];
    for (int64_t round = 0; round < rounds; ++round) {
        clear_sums<4>();
        const uint8_t *w[2] = {operands, operands + steps * kStepBytes};
        const uint8_t *a[2] = {w[1] + steps * kStepBytes, w[1] + 2 * steps * kStepBytes};
        for (int64_t step = 0; step < steps; ++step) {
            step_tiles<2, 2, kInt8>(a, step * kStepBytes, 64, w);
            w[0] += kStepBytes, w[1] += kStepBytes;
        }
        store_sums<4>(sums);
    }
    return 2.0 * 32 * 32 * (kInt8 ? 64 : 32) * double(steps) * double(rounds);
}

double ceiling(int32_t what, const uint8_t* operands, int64_t bytes, int64_t rounds) {
    if (what == kCeilingF32) return 0.0;
    return what == kCeilingInt8 ? ceiling_of<true>(operands, bytes, rounds) : ceiling_of<false>(operands, bytes, rounds);
}

}  // namespace

namespace diffusevae {
namespace native {

extern const Kernels kAmx;
constexpr Kernels kAmx = {"amx",   64,      64,   kTogether, kKeys, true,    enter_tiles,   leave_tiles, input,
                      prepare, product, pack, attention, pool,  upsample, norm, embed, nearest_codes, norm_gradient,
                      attention_gradient, classify, activate_rows, linear, ceiling, nullptr};

}  // namespace native
}  // namespace diffusevae
