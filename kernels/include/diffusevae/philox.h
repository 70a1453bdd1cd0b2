// The random numbers of (seed, stream, step, element). Philox4x32-10 and standard normals, for CPU and CUDA.
//
// The only C++ definition in the project: the CPU source and the CUDA source include it, engine/kernels/fallback.py
// restates it for numpy, and tests hold all of them to the same bits. That works because every operation below is an
// IEEE-754 float32 add, multiply, square root or conversion, in a fixed order: compile without contraction
// (gcc, clang: -ffp-contract=off; nvcc: --fmad=false) and without fast-math.
#ifndef DIFFUSEVAE_PHILOX_H
#define DIFFUSEVAE_PHILOX_H

#if defined(__CUDACC_RTC__)
#include "diffusevae/rtc.h"
#else
#include <math.h>
#include <stdint.h>
#include <string.h>
#endif

#if defined(__CUDACC__)
#define DV_HOST_DEVICE __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define DV_HOST_DEVICE inline __attribute__((always_inline))
#else
#define DV_HOST_DEVICE inline
#endif

namespace diffusevae {

// One 128-bit Philox counter or block of output.
struct Words {
    uint32_t v0, v1, v2, v3;
};

// Four standard normals: the elements 4*block .. 4*block + 3 of one sample.
struct Normals {
    float v0, v1, v2, v3;
};

// Streams keep a seed's uses apart; the step counts within a stream.
enum Stream : uint32_t {
    kStreamZ = 0, kStreamXT = 1, kStreamStep = 2, kStreamPrior = 3, kStreamKnown = 4, kStreamAugment = 5, kStreamStage = 6,
    kStreamFresh = 7
};

// One round of Philox4x32 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3).
DV_HOST_DEVICE Words philox_round(Words c, uint32_t key0, uint32_t key1) {
    const uint64_t p0 = uint64_t(0xD2511F53u) * c.v0;
    const uint64_t p1 = uint64_t(0xCD9E8D57u) * c.v2;
    return Words{uint32_t(p1 >> 32) ^ c.v1 ^ key0, uint32_t(p1), uint32_t(p0 >> 32) ^ c.v3 ^ key1, uint32_t(p0)};
}

// Ten rounds; between rounds the key steps by Weyl increments (golden ratio, sqrt(3) - 1).
constexpr int kPhiloxRounds = 10;
constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;

DV_HOST_DEVICE Words philox4x32(Words c, uint32_t key0, uint32_t key1) {
    for (int r = 0; r < kPhiloxRounds; ++r, key0 += kWeyl0, key1 += kWeyl1) c = philox_round(c, key0, key1);
    return c;
}

DV_HOST_DEVICE uint32_t float_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

DV_HOST_DEVICE float bits_float(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

// sqrt(-2 ln u) for u = (word's upper 24 bits + 1) / 2^24, in (0, 1]: the radius of Box and Muller (1958).
// ln u = e ln 2 + ln f with f in [sqrt(1/2), sqrt(2)), so nothing cancels near u = 1;
// ln(1 + x) = x - x^2/2 + x^3 P(x), P a minimax fit with relative error 6e-9.
DV_HOST_DEVICE float box_muller_radius(uint32_t word) {
    const float u = float(int32_t((word >> 8) + 1u)) * 5.96046448e-08f;  // exact: 24 bits, times 2^-24
    const int32_t shifted = int32_t(float_bits(u)) + (0x3F800000 - 0x3F3504F3);
    const float e = float((shifted >> 23) - 127);
    const float x = bits_float(uint32_t((shifted & 0x007FFFFF) + 0x3F3504F3)) - 1.0f;
    float p = -0.0763449296f;
    p = p * x + 0.12761575f;
    p = p * x + -0.131601825f;
    p = p * x + 0.142017588f;
    p = p * x + -0.166233569f;
    p = p * x + 0.200012267f;
    p = p * x + -0.250008196f;
    p = p * x + 0.333333313f;
    const float xx = x * x;
    float ln = (x * xx) * p;
    ln = ln + e * -2.12194442e-4f;  // ln 2 in two parts: the upper one has few bits, so e * upper is exact
    ln = ln - 0.5f * xx;
    ln = ln + x;
    ln = ln + e * 0.693359375f;
    return sqrtf(-2.0f * ln);
}

// (cos, sin) of 2 pi u for u = word's upper 24 bits / 2^24. The quadrant is split off in integers, hence exactly;
// what remains is y in [-1/2, 1/2] right angles: sin(pi y / 2) = y S(y^2), cos(pi y / 2) = 1 + y^2 C(y^2).
DV_HOST_DEVICE void box_muller_angle(uint32_t word, float* cosine, float* sine) {
    const int32_t k = int32_t(word >> 8);
    const int32_t quadrant = (k + (1 << 21)) >> 22;
    const float y = float(k - quadrant * (1 << 22)) * 2.38418579e-07f;  // exact: times 2^-22
    const float yy = y * y;
    float s = -0.00460567372f;
    s = s * yy + 0.0796817318f;
    s = s * yy + -0.645963669f;
    s = s * yy + 1.57079637f;
    s = s * y;
    float c = 0.000904021668f;
    c = c * yy + -0.0208602883f;
    c = c * yy + 0.253669232f;
    c = c * yy + -1.23370051f;
    c = c * yy + 1.0f;
    const bool odd = (quadrant & 1) != 0;
    const uint32_t cosine_sign = uint32_t((quadrant + 1) & 2) << 30;  // quadrants 1 and 2
    const uint32_t sine_sign = uint32_t(quadrant & 2) << 30;          // quadrants 2 and 3
    *cosine = bits_float(float_bits(odd ? s : c) ^ cosine_sign);
    *sine = bits_float(float_bits(odd ? c : s) ^ sine_sign);
}

// Two words to two standard normals. With 24 bits the radius ends at 5.77 standard deviations.
DV_HOST_DEVICE void box_muller(uint32_t word0, uint32_t word1, float* z0, float* z1) {
    const float radius = box_muller_radius(word0);
    float cosine, sine;
    box_muller_angle(word1, &cosine, &sine);
    *z0 = radius * cosine;
    *z1 = radius * sine;
}

// The normals of one block of a sample.
DV_HOST_DEVICE Normals normal4(uint64_t seed, uint32_t stream, uint32_t step, uint64_t block) {
    const Words counter{uint32_t(block), uint32_t(block >> 32), step, stream};
    const Words w = philox4x32(counter, uint32_t(seed), uint32_t(seed >> 32));
    Normals z;
    box_muller(w.v0, w.v1, &z.v0, &z.v1);
    box_muller(w.v2, w.v3, &z.v2, &z.v3);
    return z;
}

}  // namespace diffusevae

#endif  // DIFFUSEVAE_PHILOX_H
