// How are products done with vectors? Blocks of pixels x 16 outputs in registers, weights widened on the way from memory.
//
// bf16 layers: the prepared operand is float32 (values rounded to bf16), a packed row of 16 outputs x 2 channels becomes two
// float32 vectors by a shift and a mask, and float32 FMAs accumulate. Two of every 14 operations widen, in ports that
// the FMAs leave free. int8 layers: AVX-512 VNNI reads the packed rows as they are; AVX2 sign-extends both operands to
// 16 bits for vpmaddwd, which is exact (vpmaddubsw would saturate).
#ifndef DIFFUSEVAE_NATIVE_PRODUCTS_VECTOR_H
#define DIFFUSEVAE_NATIVE_PRODUCTS_VECTOR_H

#include "epilogue.h"
#if !defined(__AVX512F__)
#include "steps_avx2.h"
#endif

namespace {

#if defined(__AVX512F__)

// 12 pixels x 32 outputs: 24 accumulators, 2 weights, activations from memory as broadcasts.
constexpr int kPixelsF32 = 12, kPixelsInt8 = 12, kWide = 2;

DV_INLINE F16 even_channel(const uint8_t* row) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(row), 16))}; }
DV_INLINE F16 odd_channel(const uint8_t* row) {
    return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(row), _mm512_set1_epi32(int32_t(0xFFFF0000u))))};
}

struct Sum8 { __m512i v; };  // 16 outputs of one pixel
DV_INLINE Sum8 no_sum() { return {_mm512_setzero_si512()}; }
DV_INLINE void put_sum(int32_t* to, const Sum8& s) { _mm512_storeu_si512(to, s.v); }
constexpr int kQuadBytes = 4;        // of one pixel's four channels, as prepared
constexpr int kPixelBytesInt8 = 64;

template <int kPixels, int kGroups>
DV_INLINE void quad_products(Sum8 (&sum)[kPixels][kGroups], const uint8_t* const (&a)[kPixels],
                             const uint8_t* const (&w)[kGroups]) {
    __m512i weights[kGroups];
    for (int g = 0; g < kGroups; ++g) weights[g] = _mm512_loadu_si512(w[g]);
    for (int p = 0; p < kPixels; ++p) {
        int32_t quad;
        __builtin_memcpy(&quad, a[p], 4);
        const __m512i x = _mm512_set1_epi32(quad);
        for (int g = 0; g < kGroups; ++g) sum[p][g].v = _mm512_dpbusd_epi32(sum[p][g].v, x, weights[g]);
    }
}

#else

// 6 pixels x 16 outputs: 12 accumulators, 2 weights, a broadcast and the mask are the 16 registers. int8: 2 pixels x 16
// outputs x 2 halves are 8 accumulators, 4 weights, a broadcast and a product; a third pixel spills (0.7 times the speed).
constexpr int kPixelsF32 = 6, kPixelsInt8 = 2, kWide = 1;

DV_INLINE F16 even_channel(const uint8_t* row) {
    const __m256i lo = _mm256_loadu_si256((const __m256i*)row), hi = _mm256_loadu_si256((const __m256i*)(row + 32));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(lo, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(hi, 16))};
}
DV_INLINE F16 odd_channel(const uint8_t* row) {
    const __m256i mask = _mm256_set1_epi32(int32_t(0xFFFF0000u));
    const __m256i lo = _mm256_loadu_si256((const __m256i*)row), hi = _mm256_loadu_si256((const __m256i*)(row + 32));
    return {_mm256_castsi256_ps(_mm256_and_si256(lo, mask)), _mm256_castsi256_ps(_mm256_and_si256(hi, mask))};
}

struct Sum8 { __m256i v[4]; };  // 4 outputs each, two partial sums an output
DV_INLINE Sum8 no_sum() {
    const __m256i z = _mm256_setzero_si256();
    return {{z, z, z, z}};
}
DV_INLINE void put_sum(int32_t* to, const Sum8& s) {
    for (int half = 0; half < 2; ++half) {
        const __m256i pairs = _mm256_hadd_epi32(s.v[2 * half], s.v[2 * half + 1]);  // outputs 0 1 4 5 | 2 3 6 7
        _mm256_storeu_si256((__m256i*)(to + 8 * half), _mm256_permute4x64_epi64(pairs, 0xD8));
    }
}
constexpr int kQuadBytes = 8;
constexpr int kPixelBytesInt8 = 128;

template <int kPixels, int kGroups>
DV_INLINE void quad_products(Sum8 (&sum)[kPixels][kGroups], const uint8_t* const (&a)[kPixels],
                             const uint8_t* const (&w)[kGroups]) {
    for (int g = 0; g < kGroups; ++g) {
        __m256i weights[4];
        for (int j = 0; j < 4; ++j) weights[j] = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)(w[g] + 16 * j)));
        for (int p = 0; p < kPixels; ++p) {
            int64_t quad;
            __builtin_memcpy(&quad, a[p], 8);
            const __m256i x = _mm256_set1_epi64x(quad);
            for (int j = 0; j < 4; ++j) sum[p][g].v[j] = _mm256_add_epi32(sum[p][g].v[j], _mm256_madd_epi16(x, weights[j]));
        }
    }
}

#endif

constexpr int kPixelBytesF32 = 4 * kBlock;

template <int kPixels, int kGroups>
DV_INLINE void multiply(F16 (&sum)[kPixels][kGroups], const uint8_t* const (&a)[kPixels], int64_t at, const F16 (&w)[kGroups]) {
    for (int p = 0; p < kPixels; ++p) {
        const F16 x = broadcast(*reinterpret_cast<const float*>(a[p] + at));
        for (int g = 0; g < kGroups; ++g) sum[p][g] = fma(x, w[g], sum[p][g]);
    }
}

template <int kPixels, int kGroups>
DV_INLINE void step_f32(F16 (&sum)[kPixels][kGroups], const uint8_t* const (&a)[kPixels], int64_t at,
                        const uint8_t* const (&w)[kGroups]) {
#if !defined(__AVX512F__)
    if constexpr (kPixels == 6 && kGroups == 1) return step_6x16(sum, a, at, w[0]);
#endif
#pragma GCC unroll 4
    for (int pair = 0; pair < kBlock / 2; ++pair) {
        const uint8_t* row[kGroups];
        F16 channel[kGroups];
        for (int g = 0; g < kGroups; ++g) channel[g] = even_channel(row[g] = w[g] + pair * 64);
        multiply(sum, a, at + pair * 8, channel);
        // The row is loaded a second time: kept from the first, it would take the registers of a pixel's sums.
        for (int g = 0; g < kGroups; ++g) {
            asm volatile("" : "+r"(row[g]));
            channel[g] = odd_channel(row[g]);
        }
        multiply(sum, a, at + pair * 8 + 4, channel);
    }
}

// The K steps of all segments, for kPixels pixels and kGroups n-blocks; `first` is the first pixel.
template <int kPixels, int kGroups>
DV_INLINE void sum_f32(F16 (&sum)[kPixels][kGroups], const Segment* segments, int32_t count, int32_t phase,
                       const uint8_t* const* bases, int32_t first, const uint8_t* (&w)[kGroups]) {
    for (int32_t s = 0; s < count; ++s) {
        const Segment& seg = segments[s];
        const uint8_t* a[kPixels];
        for (int p = 0; p < kPixels; ++p) a[p] = bases[s] + seg.origin[first + p];
        for (int32_t b = 0; b < seg.blocks; ++b)
            for (int32_t t = 0; t < seg.taps; ++t) {
                step_f32<kPixels, kGroups>(sum, a, b * seg.block_bytes + seg.tap[phase][t], w);
                for (int g = 0; g < kGroups; ++g) w[g] += kStepBytes;
            }
    }
}

template <int kPixels, int kGroups>
DV_INLINE void sum_int8(Sum8 (&sum)[kPixels][kGroups], const Segment& seg, int32_t phase, const uint8_t* base, int32_t first,
                        const uint8_t* (&w)[kGroups]) {
    for (int32_t b = 0; b < seg.blocks; ++b)
        for (int32_t t = 0; t < seg.taps; ++t) {
            const uint8_t* a[kPixels];
            for (int p = 0; p < kPixels; ++p)
                a[p] = base + seg.origin[first + p] + b * seg.block_bytes + seg.tap[phase][t];
#if !defined(__AVX512F__)
            if constexpr (kPixels == 2 && kGroups == 1) {
                step_2x16_int8(sum[0][0].v, sum[1][0].v, a[0], a[1], w[0]);
                w[0] += kStepBytes;
                continue;
            }
#endif
            for (int quad = 0; quad < 16; ++quad) {
                quad_products<kPixels, kGroups>(sum, a, w);
                for (int p = 0; p < kPixels; ++p) a[p] += kQuadBytes;
                for (int g = 0; g < kGroups; ++g) w[g] += 64;
            }
        }
}

// One sample, one phase, one n-group: what the block kernels need.
struct Panel {
    const Conv* conv;
    int32_t phase, n;
    const uint8_t *main[kSources], *skip[kSources];
    const Epilogue* epilogue;
};

DV_INLINE const uint8_t* weights_of(const Conv& c, int32_t phase, int32_t n) {
    return c.weights + (int64_t(phase) * c.n_blocks + n) * c.steps * kStepBytes;
}

DV_INLINE const uint8_t* skip_weights_of(const Conv& c, int32_t n) {
    return c.skip_weights + int64_t(n) * c.skip_steps * kStepBytes;
}

template <int kPixels, int kGroups>
DV_INLINE void clear(F16 (&sum)[kPixels][kGroups]) {
    for (int p = 0; p < kPixels; ++p)
        for (int g = 0; g < kGroups; ++g) sum[p][g] = zero();
}

template <int kPixels, int kGroups>
DV_INLINE void keep(const F16 (&sum)[kPixels][kGroups], float (&to)[kGroups][kPixels * kLanes]) {
    for (int g = 0; g < kGroups; ++g)
        for (int p = 0; p < kPixels; ++p) store(to[g] + p * kLanes, sum[p][g]);
}

template <int kPixels, int kGroups>
void block_bf16(const Panel& panel, int32_t first) {
    const Conv& c = *panel.conv;
    const uint8_t *w[kGroups], *skip_w[kGroups];
    for (int g = 0; g < kGroups; ++g) w[g] = weights_of(c, panel.phase, panel.n + g);
    F16 sum[kPixels][kGroups];
    clear(sum);
    sum_f32<kPixels, kGroups>(sum, c.main_segment, c.main_segments, panel.phase, panel.main, first, w);
    if (c.skip_segments > 0) {
        for (int g = 0; g < kGroups; ++g) skip_w[g] = skip_weights_of(c, panel.n + g);
        sum_f32<kPixels, kGroups>(sum, c.skip_segment, c.skip_segments, 0, panel.skip, first, skip_w);
    }
    alignas(64) float kept[kGroups][kPixels * kLanes];
    keep(sum, kept);
    for (int g = 0; g < kGroups; ++g) panel.epilogue[g].take<false>(first, kPixels, kept[g], nullptr);
}

template <int kPixels, int kGroups>
void block_int8(const Panel& panel, int32_t first) {
    const Conv& c = *panel.conv;
    const uint8_t *w[kGroups], *skip_w[kGroups];
    alignas(64) float kept[kGroups][kPixels * kLanes];
    const bool skip = c.skip_segments > 0;
    if (skip) {
        for (int g = 0; g < kGroups; ++g) skip_w[g] = skip_weights_of(c, panel.n + g);
        F16 sum[kPixels][kGroups];
        clear(sum);
        sum_f32<kPixels, kGroups>(sum, c.skip_segment, c.skip_segments, 0, panel.skip, first, skip_w);
        keep(sum, kept);
    }
    for (int g = 0; g < kGroups; ++g) w[g] = weights_of(c, panel.phase, panel.n + g);
    Sum8 sum[kPixels][kGroups];
    for (int p = 0; p < kPixels; ++p)
        for (int g = 0; g < kGroups; ++g) sum[p][g] = no_sum();
    sum_int8<kPixels, kGroups>(sum, c.main_segment[0], panel.phase, panel.main[0], first, w);
    alignas(64) int32_t whole[kGroups][kPixels * kLanes];
    for (int g = 0; g < kGroups; ++g)
        for (int p = 0; p < kPixels; ++p) put_sum(whole[g] + p * kLanes, sum[p][g]);
    for (int g = 0; g < kGroups; ++g) panel.epilogue[g].take<true>(first, kPixels, whole[g], skip ? kept[g] : nullptr);
}

// Blocks of kPixels as long as they fit; returns the first pixel left.
template <int kPixels, int kGroups, bool kInt8>
int32_t run_blocks(const Panel& panel, int32_t first, int32_t last) {
    for (; last - first >= kPixels; first += kPixels)
        kInt8 ? block_int8<kPixels, kGroups>(panel, first) : block_bf16<kPixels, kGroups>(panel, first);
    return first;
}

// The pixels first .. last in blocks as large as they come. Every pixel's sum runs over K in one order whatever the block.
template <int kGroups, bool kInt8>
void run_panel(const Panel& panel, int32_t first, int32_t last) {
    constexpr int kMost = kInt8 ? kPixelsInt8 : kPixelsF32;
    first = run_blocks<kMost, kGroups, kInt8>(panel, first, last);
    if constexpr (kMost > 4) first = run_blocks<4, kGroups, kInt8>(panel, first, last);
    if constexpr (kMost > 2) first = run_blocks<2, kGroups, kInt8>(panel, first, last);
    run_blocks<1, kGroups, kInt8>(panel, first, last);
}

DV_INLINE const uint8_t* base_of(const Segment& s, const Work& w, int32_t image) {
    return s.in_arena ? w.arena + image * w.arena_stride + s.offset
                      : w.scratch + (image - w.first) * w.scratch_stride + s.offset;
}

template <int kGroups>
void run_group(const Conv& c, const Work& w, int32_t phase, int32_t n, int64_t unit_first, int64_t unit_last) {
    for (int64_t unit = unit_first; unit < unit_last;) {
        const int32_t image = w.first + int32_t(unit / c.stripes), stripe = int32_t(unit % c.stripes);
        const int64_t left = unit_last - unit;
        const int32_t stop = stripe + int32_t(left < c.stripes - stripe ? left : c.stripes - stripe);
        Panel panel{&c, phase, n, {}, {}, nullptr};
        for (int32_t s = 0; s < c.main_segments; ++s) panel.main[s] = base_of(c.main_segment[s], w, image);
        for (int32_t s = 0; s < c.skip_segments; ++s) panel.skip[s] = base_of(c.skip_segment[s], w, image);
        const Epilogue epilogue[2] = {Epilogue(c, w, image, phase, n), Epilogue(c, w, image, phase, n + kGroups - 1)};
        panel.epilogue = epilogue;
        for (int32_t s = stripe; s < stop; ++s) {
            const int32_t end = (s + 1) * c.stripe;
            const int32_t stop_at = end < c.pixels ? end : c.pixels;
            c.int8 ? run_panel<kGroups, true>(panel, s * c.stripe, stop_at)
                   : run_panel<kGroups, false>(panel, s * c.stripe, stop_at);
        }
        unit += stop - stripe;
    }
}

void product(const Conv& c, const Work& w) {
    const int32_t wide = c.n_blocks % kWide == 0 ? kWide : 1, groups = c.n_blocks / wide;
    const Share share = share_of(int64_t(w.last - w.first) * c.stripes, groups * c.phases, w.part, w.parts);
    for (int32_t group = share.group_first; group < share.group_last; ++group) {
        const int32_t phase = group / groups, n = group % groups * wide;
        if (wide == kWide)
            run_group<kWide>(c, w, phase, n, share.unit_first, share.unit_last);
        else
            run_group<1>(c, w, phase, n, share.unit_first, share.unit_last);
    }
}

}  // namespace

#endif  // DIFFUSEVAE_NATIVE_PRODUCTS_VECTOR_H
