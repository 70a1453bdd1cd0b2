// One K step with AVX-512: the pixels and outputs that fill the registers, and what multiplies them.
//
// int8: VNNI reads packed rows (16 outputs x 4 channels) as they are. bf16: AVX512_BF16 does so too (16 outputs x 2 channels), at
// twice the float32 rate; without it bf16 is widened.
#ifndef DIFFUSEVAE_NATIVE_STEPS_AVX512_H
#define DIFFUSEVAE_NATIVE_STEPS_AVX512_H

#include "steps_widened.h"

namespace {

using namespace diffusevae::native;

// 14 pixels x 32 outputs: 28 accumulators, 2 weights and a broadcast are 31 of the 32 registers.
constexpr int kPixelsBf16 = 14, kPixelsInt8 = 14, kWide = 2;

struct Sum8 { __m512i v; };  // 16 outputs of one pixel
DV_INLINE void put_sum(int32_t* to, const Sum8& s) { _mm512_storeu_si512(to, s.v); }
constexpr int kPixelBytesInt8 = 64;

DV_INLINE void add_product(Sum8& sum, __m512i channels, __m512i weights) {
    sum.v = _mm512_dpbusd_epi32(sum.v, channels, weights);
}

// Sixteen packed rows times four bytes of each pixel, at a[p] + at.
template <class Sum, int kPixels, int kGroups>
DV_INLINE void step_rows(Sum (&sum)[kPixels][kGroups], const uint8_t* const (&a)[kPixels], int64_t at,
                         const uint8_t* const (&w)[kGroups]) {
#pragma GCC unroll 4
    for (int row = 0; row < 16; ++row) {
        __m512i weights[kGroups];
        for (int g = 0; g < kGroups; ++g) weights[g] = _mm512_loadu_si512(w[g] + row * 64);
#pragma GCC unroll 16
        for (int p = 0; p < kPixels; ++p) {
            int32_t four;
            __builtin_memcpy(&four, a[p] + at + row * 4, 4);
            const __m512i channels = _mm512_set1_epi32(four);
            for (int g = 0; g < kGroups; ++g) add_product(sum[p][g], channels, weights[g]);
        }
    }
}

template <int kPixels, int kGroups>
DV_INLINE void step(Sum8 (&sum)[kPixels][kGroups], const uint8_t* const (&a)[kPixels], int64_t at,
                    const uint8_t* const (&w)[kGroups]) {
    step_rows(sum, a, at, w);
}

#if defined(__AVX512BF16__)

constexpr int kPixelBytesBf16 = 2 * kBlock;

DV_INLINE void add_product(F16& sum, __m512i channels, __m512i weights) {
    sum.v = _mm512_dpbf16_ps(sum.v, (__m512bh)channels, (__m512bh)weights);
}

template <int kPixels, int kGroups>
DV_INLINE void step(F16 (&sum)[kPixels][kGroups], const uint8_t* const (&a)[kPixels], int64_t at,
                    const uint8_t* const (&w)[kGroups]) {
    step_rows(sum, a, at, w);
}

#else

constexpr int kPixelBytesBf16 = kWidenedPixelBytes;

template <int kPixels, int kGroups>
DV_INLINE void step(F16 (&sum)[kPixels][kGroups], const uint8_t* const (&a)[kPixels], int64_t at,
                    const uint8_t* const (&w)[kGroups]) {
    step_widened(sum, a, at, w);
}

#endif

}  // namespace

#endif  // DIFFUSEVAE_NATIVE_STEPS_AVX512_H
