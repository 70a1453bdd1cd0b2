// One K step with AVX2: the pixels and outputs that fill the registers, and what multiplies them.
//
// bf16 is widened to float32; int8 operands and weights to 16 bits for vpmaddwd, which is exact (vpmaddubsw would saturate).
// The inner loops are assembly: 16 registers are all that they need and all there are, and gcc 12 spills one of them in
// half of the places where it inlines the same lines of C++ (0.45 to 0.7 times the speed).
#ifndef DIFFUSEVAE_NATIVE_STEPS_AVX2_H
#define DIFFUSEVAE_NATIVE_STEPS_AVX2_H

#include "steps_widened.h"

namespace {

// 6 pixels x 16 outputs: 12 accumulators, 2 weights, a broadcast and the mask are the 16 registers. int8: 2 pixels x 16
// outputs x 2 halves are 8 accumulators, 4 weights, a broadcast and a product; a third pixel spills (0.7 times the speed).
constexpr int kPixelsBf16 = 6, kPixelsInt8 = 2, kWide = 1;
constexpr int kPixelBytesBf16 = kWidenedPixelBytes, kPixelBytesInt8 = 128;

struct Sum8 { __m256i v[4]; };  // 4 outputs each, two partial sums an output
DV_INLINE void put_sum(int32_t* to, const Sum8& s) {
    for (int half = 0; half < 2; ++half) {
        const __m256i pairs = _mm256_hadd_epi32(s.v[2 * half], s.v[2 * half + 1]);  // outputs 0 1 4 5 | 2 3 6 7
        _mm256_storeu_si256((__m256i*)(to + 8 * half), _mm256_permute4x64_epi64(pairs, 0xD8));
    }
}

// One pixel's value times 16 outputs: `a` holds the pixel's address, rax counts, `at` is in bytes from the pair's place.
#define DV_PIXEL(a, p, at) \
    "vbroadcastss 128+" at "(%%" a ",%%rax,1), %%ymm14\n\t" \
    "vfmadd231ps %%ymm12, %%ymm14, %[s" p "0]\n\t" \
    "vfmadd231ps %%ymm13, %%ymm14, %[s" p "1]\n\t"

#define DV_FOUR(at) \
    DV_PIXEL("r8", "0", at) DV_PIXEL("r9", "1", at) DV_PIXEL("r10", "2", at) DV_PIXEL("r11", "3", at)
#define DV_SIX(at) DV_FOUR(at) DV_PIXEL("r12", "4", at) DV_PIXEL("r13", "5", at)

// A pair of channels: its packed row (64 bytes) shifted gives the even one, masked the odd one.
#define DV_PAIR(pixels, row, row_hi, even, odd) \
    "vmovdqu 1024+" row "(%[w],%%rax,8), %%ymm12\n\t" \
    "vmovdqu 1024+" row_hi "(%[w],%%rax,8), %%ymm13\n\t" \
    "vpslld $16, %%ymm12, %%ymm12\n\t" \
    "vpslld $16, %%ymm13, %%ymm13\n\t" \
    pixels(even) \
    "vpand 1024+" row "(%[w],%%rax,8), %%ymm15, %%ymm12\n\t" \
    "vpand 1024+" row_hi "(%[w],%%rax,8), %%ymm15, %%ymm13\n\t" \
    pixels(odd)

// Four channels after the other: rax counts the bytes of a pixel's floats still to come.
#define DV_CHANNELS(pixels) \
    "vpcmpeqd %%ymm15, %%ymm15, %%ymm15\n\t" \
    "vpslld $16, %%ymm15, %%ymm15\n\t" \
    ".p2align 5\n" \
    "1:\n\t" \
    DV_PAIR(pixels, "0", "32", "0", "4") \
    DV_PAIR(pixels, "64", "96", "8", "12") \
    "addq $16, %%rax\n\t" \
    "jne 1b\n\t"

#define DV_ADDRESS(to, place) "movq " place "(%[a]), %%" to "\n\taddq %[at], %%" to "\n\t"

// One K step, or its first `channels` (a multiple of 4), of 6 pixels x 16 outputs in float32; pixels at a[p] + at.
DV_INLINE void step_6x16(F16 (&sum)[6][1], const uint8_t* const (&a)[6], int64_t at, const uint8_t* w, int64_t channels) {
    int64_t i = -4 * channels;  // bytes of a pixel's floats still to come
    at -= kWidenedPixelBytes + i;
    w -= kStepBytes + 8 * i;
    asm volatile(
        DV_ADDRESS("r8", "0") DV_ADDRESS("r9", "8") DV_ADDRESS("r10", "16")
        DV_ADDRESS("r11", "24") DV_ADDRESS("r12", "32") DV_ADDRESS("r13", "40")
        DV_CHANNELS(DV_SIX)
        : [i] "+a"(i), [s00] "+x"(sum[0][0].lo), [s01] "+x"(sum[0][0].hi), [s10] "+x"(sum[1][0].lo), [s11] "+x"(sum[1][0].hi),
          [s20] "+x"(sum[2][0].lo), [s21] "+x"(sum[2][0].hi), [s30] "+x"(sum[3][0].lo), [s31] "+x"(sum[3][0].hi),
          [s40] "+x"(sum[4][0].lo), [s41] "+x"(sum[4][0].hi), [s50] "+x"(sum[5][0].lo), [s51] "+x"(sum[5][0].hi)
        : [a] "r"(a), [at] "r"(at), [w] "r"(w)
        : "r8", "r9", "r10", "r11", "r12", "r13", "ymm12", "ymm13", "ymm14", "ymm15", "memory", "cc");
}

// A whole K step of 4 pixels: what sixes leave of 16 or 64.
DV_INLINE void step_4x16(F16 (&sum)[4][1], const uint8_t* const (&a)[4], int64_t at, const uint8_t* w) {
    int64_t i = -kWidenedPixelBytes;
    asm volatile(
        DV_ADDRESS("r8", "0") DV_ADDRESS("r9", "8") DV_ADDRESS("r10", "16") DV_ADDRESS("r11", "24")
        DV_CHANNELS(DV_FOUR)
        : [i] "+a"(i), [s00] "+x"(sum[0][0].lo), [s01] "+x"(sum[0][0].hi), [s10] "+x"(sum[1][0].lo), [s11] "+x"(sum[1][0].hi),
          [s20] "+x"(sum[2][0].lo), [s21] "+x"(sum[2][0].hi), [s30] "+x"(sum[3][0].lo), [s31] "+x"(sum[3][0].hi)
        : [a] "r"(a), [at] "r"(at), [w] "r"(w)
        : "r8", "r9", "r10", "r11", "ymm12", "ymm13", "ymm14", "ymm15", "memory", "cc");
}

#undef DV_ADDRESS
#undef DV_CHANNELS
#undef DV_PAIR
#undef DV_SIX
#undef DV_FOUR
#undef DV_PIXEL

// Four outputs' widened weights times one pixel's quad of channels, two partial sums an output.
#define DV_QUARTER(p, j) \
    "vpmaddwd %[w" j "], %[x], %[t]\n\t" \
    "vpaddd %[t], %[s" p j "], %[s" p j "]\n\t"

#define DV_QUAD_OF(p) \
    "vpbroadcastq 128(%[a" p "],%[i],1), %[x]\n\t" \
    DV_QUARTER(p, "0") DV_QUARTER(p, "1") DV_QUARTER(p, "2") DV_QUARTER(p, "3")

// One K step (64 channels) of 2 pixels x 16 outputs in int32: `sum` holds 4 outputs a vector.
DV_INLINE void step_2x16_int8(__m256i (&s)[4], __m256i (&u)[4], const uint8_t* a0, const uint8_t* a1, const uint8_t* w) {
    int64_t i = -128;               // bytes of a pixel's 64 values of 16 bits still to come
    __m256i w0, w1, w2, w3, x, t;
    asm volatile(
        ".p2align 5\n"
        "1:\n\t"
        "vpmovsxbw 1024(%[w],%[i],8), %[w0]\n\t"
        "vpmovsxbw 1040(%[w],%[i],8), %[w1]\n\t"
        "vpmovsxbw 1056(%[w],%[i],8), %[w2]\n\t"
        "vpmovsxbw 1072(%[w],%[i],8), %[w3]\n\t"
        DV_QUAD_OF("0")
        DV_QUAD_OF("1")
        "addq $8, %[i]\n\t"
        "jne 1b\n\t"
        : [s00] "+x"(s[0]), [s01] "+x"(s[1]), [s02] "+x"(s[2]), [s03] "+x"(s[3]),
          [s10] "+x"(u[0]), [s11] "+x"(u[1]), [s12] "+x"(u[2]), [s13] "+x"(u[3]),
          [w0] "=&x"(w0), [w1] "=&x"(w1), [w2] "=&x"(w2), [w3] "=&x"(w3), [x] "=&x"(x), [t] "=&x"(t), [i] "+r"(i)
        : [a0] "r"(a0), [a1] "r"(a1), [w] "r"(w)
        : "memory", "cc");
}

#undef DV_QUAD_OF
#undef DV_QUARTER

template <int kPixels, int kGroups>
DV_INLINE void step(F16 (&sum)[kPixels][kGroups], const uint8_t* const (&a)[kPixels], int64_t at,
                    const uint8_t* const (&w)[kGroups]) {
    if constexpr (kPixels == 6 && kGroups == 1)
        step_6x16(sum, a, at, w[0], kBlock);
    else if constexpr (kPixels == 4 && kGroups == 1)
        step_4x16(sum, a, at, w[0]);
    else
        step_widened(sum, a, at, w);
}

template <int kPixels>
DV_INLINE void step(Sum8 (&sum)[kPixels][1], const uint8_t* const (&a)[kPixels], int64_t at, const uint8_t* const (&w)[1]) {
    if constexpr (kPixels == 2) return step_2x16_int8(sum[0][0].v, sum[1][0].v, a[0] + at, a[1] + at, w[0]);
    for (int quad = 0; quad < 16; ++quad)
        for (int j = 0; j < 4; ++j) {
            const __m256i weights = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)(w[0] + quad * 64 + 16 * j)));
            for (int p = 0; p < kPixels; ++p) {
                int64_t channels;
                __builtin_memcpy(&channels, a[p] + at + quad * 8, 8);
                __m256i& s = sum[p][0].v[j];
                s = _mm256_add_epi32(s, _mm256_madd_epi16(_mm256_set1_epi64x(channels), weights));
            }
        }
}

}  // namespace

#endif  // DIFFUSEVAE_NATIVE_STEPS_AVX2_H
