// One K step of a bf16 layer where nothing multiplies bf16: in float32. The prepared operand is float32 (values rounded to bf16);
// a packed row of 16 outputs x 2 channels becomes two vectors by a shift and a mask, in ports that the FMAs leave free.
#ifndef DIFFUSEVAE_NATIVE_STEPS_WIDENED_H
#define DIFFUSEVAE_NATIVE_STEPS_WIDENED_H

#include "target.h"
#include "vectors.h"

namespace {

using namespace diffusevae::native;

constexpr int kWidenedPixelBytes = 4 * kBlock;

template <int kPixels, int kGroups>
DV_INLINE void multiply(F16 (&sum)[kPixels][kGroups], const uint8_t* const (&a)[kPixels], int64_t at, const F16 (&w)[kGroups]) {
    for (int p = 0; p < kPixels; ++p) {
        const F16 x = broadcast(*reinterpret_cast<const float*>(a[p] + at));
        for (int g = 0; g < kGroups; ++g) sum[p][g] = fma(x, w[g], sum[p][g]);
    }
}

// kPixels pixels, at a[p] + at, and kGroups n-blocks.
template <int kPixels, int kGroups>
DV_INLINE void step_widened(F16 (&sum)[kPixels][kGroups], const uint8_t* const (&a)[kPixels], int64_t at,
                            const uint8_t* const (&w)[kGroups]) {
#pragma GCC unroll 4
    for (int pair = 0; pair < kBlock / 2; ++pair) {
        const uint8_t* row[kGroups];
        F16 channel[kGroups];
        for (int g = 0; g < kGroups; ++g) channel[g] = even_bf16(row[g] = w[g] + pair * 64);
        multiply(sum, a, at + pair * 8, channel);
        // The row is loaded a second time: kept from the first, it would take the registers of a pixel's sums.
        for (int g = 0; g < kGroups; ++g) {
            asm volatile("" : "+r"(row[g]));
            channel[g] = odd_bf16(row[g]);
        }
        multiply(sum, a, at + pair * 8 + 4, channel);
    }
}

}  // namespace

#endif  // DIFFUSEVAE_NATIVE_STEPS_WIDENED_H
