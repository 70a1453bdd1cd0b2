// The vector type: sixteen floats: one register of AVX-512, two of AVX2. Every family is written once over this.
#ifndef DIFFUSEVAE_NATIVE_VECTORS_H
#define DIFFUSEVAE_NATIVE_VECTORS_H

#include <immintrin.h>
#include <stdint.h>

#define DV_INLINE inline __attribute__((always_inline))

namespace {

#if defined(__AVX512F__)

struct F16 { __m512 v; };

DV_INLINE F16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
DV_INLINE void store(float* p, F16 a) { _mm512_storeu_ps(p, a.v); }
DV_INLINE F16 broadcast(float x) { return {_mm512_set1_ps(x)}; }
DV_INLINE F16 zero() { return {_mm512_setzero_ps()}; }
DV_INLINE F16 add(F16 a, F16 b) { return {_mm512_add_ps(a.v, b.v)}; }
DV_INLINE F16 sub(F16 a, F16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
DV_INLINE F16 mul(F16 a, F16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
DV_INLINE F16 fma(F16 a, F16 b, F16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
DV_INLINE F16 greater(F16 a, F16 b) { return {_mm512_max_ps(a.v, b.v)}; }  // b where either is NaN
DV_INLINE F16 lesser(F16 a, F16 b) { return {_mm512_min_ps(a.v, b.v)}; }
DV_INLINE F16 where_greater(F16 a, F16 b, F16 yes, F16 no) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ), no.v, yes.v)};
}
DV_INLINE F16 nearest(F16 a) { return {_mm512_roundscale_ps(a.v, 0)}; }
DV_INLINE F16 magnitude(F16 a) { return {_mm512_abs_ps(a.v)}; }
DV_INLINE F16 with_sign(F16 a, F16 s) {
    const __m512i sign = _mm512_and_si512(_mm512_castps_si512(s.v), _mm512_set1_epi32(INT32_MIN));
    return {_mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(a.v), sign))};
}
DV_INLINE F16 scale2(F16 a, F16 n) { return {_mm512_scalef_ps(a.v, n.v)}; }  // a * 2^n
DV_INLINE F16 reciprocal_estimate(F16 a) { return {_mm512_rcp14_ps(a.v)}; }
DV_INLINE F16 load_bf16(const uint16_t* p) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16))};
}
DV_INLINE F16 from_int(const int32_t* p) { return {_mm512_cvtepi32_ps(_mm512_loadu_si512(p))}; }
// Of 16 pairs of bf16: the first of each, and the second.
DV_INLINE F16 even_bf16(const uint8_t* p) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16))}; }
DV_INLINE F16 odd_bf16(const uint8_t* p) {
    return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32(int32_t(0xFFFF0000u))))};
}

DV_INLINE __m512i rounded_bits(F16 a) {  // bf16 in the upper halves, nearest even
    const __m512i u = _mm512_castps_si512(a.v), odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
}
DV_INLINE F16 round_bf16(F16 a) {
    return {_mm512_castsi512_ps(_mm512_and_si512(rounded_bits(a), _mm512_set1_epi32(int32_t(0xFFFF0000u))))};
}
DV_INLINE void store_bf16(uint16_t* p, F16 a) {
#if defined(__AVX512BF16__)
    _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(a.v));
#else
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded_bits(a), 16)));
#endif
}
DV_INLINE F16 load_half(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
DV_INLINE void store_half(uint16_t* p, F16 a) {  // beyond 65,504: infinity
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
DV_INLINE void store_bf16_pairs(uint8_t* p, F16 even, F16 odd) {  // the inverse of even_bf16 and odd_bf16
    const __m512i high = _mm512_and_si512(rounded_bits(odd), _mm512_set1_epi32(int32_t(0xFFFF0000u)));
    _mm512_storeu_si512(p, _mm512_or_si512(_mm512_srli_epi32(rounded_bits(even), 16), high));
}
// Rounds half to even and limits to 0..255.
DV_INLINE void store_u8(uint8_t* p, F16 a) {
    const __m512i q = _mm512_max_epi32(_mm512_cvtps_epi32(a.v), _mm512_setzero_si512());
    _mm_storeu_si128((__m128i*)p, _mm512_cvtusepi32_epi8(q));
}
DV_INLINE float sum_of(F16 a) { return _mm512_reduce_add_ps(a.v); }
DV_INLINE float first_of(F16 a) { return _mm512_cvtss_f32(a.v); }
DV_INLINE float largest(F16 a) { return _mm512_reduce_max_ps(a.v); }

#else

struct F16 { __m256 lo, hi; };

DV_INLINE F16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
DV_INLINE void store(float* p, F16 a) {
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}
DV_INLINE F16 broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
DV_INLINE F16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
DV_INLINE F16 add(F16 a, F16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
DV_INLINE F16 sub(F16 a, F16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
DV_INLINE F16 mul(F16 a, F16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
DV_INLINE F16 fma(F16 a, F16 b, F16 c) { return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)}; }
DV_INLINE F16 greater(F16 a, F16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
DV_INLINE F16 lesser(F16 a, F16 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
DV_INLINE F16 where_greater(F16 a, F16 b, F16 yes, F16 no) {
    return {_mm256_blendv_ps(no.lo, yes.lo, _mm256_cmp_ps(a.lo, b.lo, _CMP_GT_OQ)),
            _mm256_blendv_ps(no.hi, yes.hi, _mm256_cmp_ps(a.hi, b.hi, _CMP_GT_OQ))};
}
DV_INLINE F16 nearest(F16 a) { return {_mm256_round_ps(a.lo, 8), _mm256_round_ps(a.hi, 8)}; }
DV_INLINE F16 magnitude(F16 a) {
    const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(INT32_MAX));
    return {_mm256_and_ps(a.lo, mask), _mm256_and_ps(a.hi, mask)};
}
DV_INLINE F16 with_sign(F16 a, F16 s) {
    const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(INT32_MIN));
    return {_mm256_or_ps(a.lo, _mm256_and_ps(s.lo, mask)), _mm256_or_ps(a.hi, _mm256_and_ps(s.hi, mask))};
}
// a * 2^n for a in [1/2, 2] and integral n in -126..126: the exponent is added as an integer.
DV_INLINE __m256 scale2_half(__m256 a, __m256 n) {
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23)));
}
DV_INLINE F16 scale2(F16 a, F16 n) { return {scale2_half(a.lo, n.lo), scale2_half(a.hi, n.hi)}; }
DV_INLINE F16 reciprocal_estimate(F16 a) { return {_mm256_rcp_ps(a.lo), _mm256_rcp_ps(a.hi)}; }
DV_INLINE __m256 widen_bf16(const uint16_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
DV_INLINE F16 load_bf16(const uint16_t* p) { return {widen_bf16(p), widen_bf16(p + 8)}; }
DV_INLINE F16 from_int(const int32_t* p) {
    return {_mm256_cvtepi32_ps(_mm256_loadu_si256((const __m256i*)p)),
            _mm256_cvtepi32_ps(_mm256_loadu_si256((const __m256i*)(p + 8)))};
}
// Of 16 pairs of bf16: the first of each, and the second.
DV_INLINE F16 even_bf16(const uint8_t* p) {
    const __m256i lo = _mm256_loadu_si256((const __m256i*)p), hi = _mm256_loadu_si256((const __m256i*)(p + 32));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(lo, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(hi, 16))};
}
DV_INLINE F16 odd_bf16(const uint8_t* p) {
    const __m256i mask = _mm256_set1_epi32(int32_t(0xFFFF0000u));
    const __m256i lo = _mm256_loadu_si256((const __m256i*)p), hi = _mm256_loadu_si256((const __m256i*)(p + 32));
    return {_mm256_castsi256_ps(_mm256_and_si256(lo, mask)), _mm256_castsi256_ps(_mm256_and_si256(hi, mask))};
}
DV_INLINE __m256i rounded_bits(__m256 a) {  // bf16 in the upper halves, nearest even
    const __m256i u = _mm256_castps_si256(a), odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    return _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
}
DV_INLINE F16 round_bf16(F16 a) {
    const __m256i mask = _mm256_set1_epi32(int32_t(0xFFFF0000u));
    return {_mm256_castsi256_ps(_mm256_and_si256(rounded_bits(a.lo), mask)),
            _mm256_castsi256_ps(_mm256_and_si256(rounded_bits(a.hi), mask))};
}
DV_INLINE void store_bf16(uint16_t* p, F16 a) {
    const __m256i lo = _mm256_srli_epi32(rounded_bits(a.lo), 16), hi = _mm256_srli_epi32(rounded_bits(a.hi), 16);
    _mm256_storeu_si256((__m256i*)p, _mm256_permute4x64_epi64(_mm256_packus_epi32(lo, hi), 0xD8));
}
DV_INLINE __m256i bf16_pairs(__m256 even, __m256 odd) {
    const __m256i high = _mm256_and_si256(rounded_bits(odd), _mm256_set1_epi32(int32_t(0xFFFF0000u)));
    return _mm256_or_si256(_mm256_srli_epi32(rounded_bits(even), 16), high);
}
DV_INLINE void store_bf16_pairs(uint8_t* p, F16 even, F16 odd) {  // the inverse of even_bf16 and odd_bf16
    _mm256_storeu_si256((__m256i*)p, bf16_pairs(even.lo, odd.lo));
    _mm256_storeu_si256((__m256i*)(p + 32), bf16_pairs(even.hi, odd.hi));
}
// Rounds half to even and limits to 0..255; 16 bits each, as the products read them (see products_vector.h).
DV_INLINE void store_u8_as_s16(int16_t* p, F16 a) {
    const __m256i top = _mm256_set1_epi32(255), none = _mm256_setzero_si256();
    const __m256i lo = _mm256_min_epi32(_mm256_max_epi32(_mm256_cvtps_epi32(a.lo), none), top);
    const __m256i hi = _mm256_min_epi32(_mm256_max_epi32(_mm256_cvtps_epi32(a.hi), none), top);
    _mm256_storeu_si256((__m256i*)p, _mm256_permute4x64_epi64(_mm256_packus_epi32(lo, hi), 0xD8));
}
DV_INLINE float largest(F16 a) {
    const __m256 m = _mm256_max_ps(a.lo, a.hi);
    __m128 r = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
    r = _mm_max_ps(r, _mm_movehl_ps(r, r));
    return _mm_cvtss_f32(_mm_max_ss(r, _mm_shuffle_ps(r, r, 1)));
}
DV_INLINE float first_of(F16 a) { return _mm256_cvtss_f32(a.lo); }
DV_INLINE float sum_of(F16 a) {
    const __m256 m = _mm256_add_ps(a.lo, a.hi);
    __m128 r = _mm_add_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
    r = _mm_add_ps(r, _mm_movehl_ps(r, r));
    return _mm_cvtss_f32(_mm_add_ss(r, _mm_shuffle_ps(r, r, 1)));
}

#endif

// 1 / a to a unit in the last place or two: the estimate and a Newton step, several times cheaper than a division.
DV_INLINE F16 reciprocal(F16 a) {
    const F16 r = reciprocal_estimate(a);
    return mul(r, sub(broadcast(2.0f), mul(a, r)));
}

// e^x for x limited to [-87, 87]; relative error 2e-7 (2^f by a polynomial of degree 6 on [-1/2, 1/2]). NaN stays NaN.
DV_INLINE F16 exponential(F16 x) {
    x = greater(broadcast(-87.0f), lesser(broadcast(87.0f), x));
    const F16 t = mul(x, broadcast(1.44269504f)), n = nearest(t);
    // f = (x - n ln 2) / ln 2 keeps the bits that t - n would lose to the rounding of t.
    F16 r = fma(n, broadcast(-0.693145752f), x);
    r = fma(n, broadcast(-1.42860677e-6f), r);
    F16 p = broadcast(1.3888889e-3f);
    p = fma(p, r, broadcast(8.3333333e-3f));
    p = fma(p, r, broadcast(4.1666668e-2f));
    p = fma(p, r, broadcast(1.6666667e-1f));
    p = fma(p, r, broadcast(0.5f));
    p = fma(p, r, broadcast(1.0f));
    p = fma(p, r, broadcast(1.0f));
    return scale2(p, n);
}

// 2^t for t up to 1: a weight of a softmax, whose largest is 2^0; what is far below becomes 0 or 2^-126. The polynomial is as
// exact as what becomes of the weight: to 3e-6 where that is bf16, else to 1e-7. NaN stays NaN.
DV_INLINE F16 softmax_weight(F16 t) {
#if !defined(__AVX512F__)
    t = greater(broadcast(-126.0f), t);
#endif
    const F16 n = nearest(t), f = sub(t, n);
#if defined(__AVX512BF16__)
    F16 p = broadcast(9.58285271e-3f);
    p = fma(p, f, broadcast(5.59064247e-2f));
    p = fma(p, f, broadcast(2.40240986e-1f));
    p = fma(p, f, broadcast(6.93124193e-1f));
#else
    F16 p = broadcast(1.32647272e-3f);
    p = fma(p, f, broadcast(9.67151265e-3f));
    p = fma(p, f, broadcast(5.55073374e-2f));
    p = fma(p, f, broadcast(2.40222421e-1f));
    p = fma(p, f, broadcast(6.93146978e-1f));
#endif
    p = fma(p, f, broadcast(1.0f));
    return scale2(p, n);
}

DV_INLINE F16 sigmoid(F16 x) {
    return reciprocal(add(broadcast(1.0f), exponential(sub(zero(), x))));
}

DV_INLINE F16 silu(F16 x) { return mul(x, sigmoid(x)); }

// x Phi(x), Phi by erf of Abramowitz and Stegun 7.1.26 (absolute error 1.5e-7).
DV_INLINE F16 gelu(F16 x) {
    const F16 z = mul(magnitude(x), broadcast(0.707106781f));
    const F16 t = reciprocal(fma(z, broadcast(0.3275911f), broadcast(1.0f)));
    F16 p = broadcast(1.061405429f);
    p = fma(p, t, broadcast(-1.453152027f));
    p = fma(p, t, broadcast(1.421413741f));
    p = fma(p, t, broadcast(-0.284496736f));
    p = fma(p, t, broadcast(0.254829592f));
    const F16 tail = mul(mul(p, t), exponential(sub(zero(), mul(z, z))));
    const F16 erf = with_sign(sub(broadcast(1.0f), tail), x);
    const F16 half = mul(x, broadcast(0.5f));
    return fma(half, erf, half);
}

}  // namespace

#endif  // DIFFUSEVAE_NATIVE_VECTORS_H
