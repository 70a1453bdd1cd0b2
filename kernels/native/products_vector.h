// Products with vectors: blocks of pixels x 16 outputs in registers, K step by K step; then the epilogue.
#ifndef DIFFUSEVAE_NATIVE_PRODUCTS_VECTOR_H
#define DIFFUSEVAE_NATIVE_PRODUCTS_VECTOR_H

#include "epilogue.h"
#include "stream.h"
#if defined(__AVX512F__)
#include "steps_avx512.h"
#else
#include "steps_avx2.h"
#endif

namespace {

// The K steps of all segments, for kPixels pixels and kGroups n-blocks; `first` is the first pixel. Sum: F16 (bf16) or Sum8.
template <class Sum, int kPixels, int kGroups>
DV_INLINE void sum_steps(Sum (&sum)[kPixels][kGroups], const Segment* segments, int32_t count, int32_t phase,
                         const uint8_t* const* bases, int32_t first, const uint8_t* (&w)[kGroups], Stream& stream) {
    for (int32_t s = 0; s < count; ++s) {
        const Segment& seg = segments[s];
        const uint8_t* a[kPixels];
        for (int p = 0; p < kPixels; ++p) a[p] = bases[s] + seg.origin[first + p];
        for (int32_t b = 0; b < seg.blocks; ++b)
            for (int32_t t = 0; t < seg.taps; ++t) {
                stream.fetch();
                step(sum, a, b * seg.block_bytes + seg.tap[phase][t], w);
                for (int g = 0; g < kGroups; ++g) w[g] += kStepBytes;
            }
    }
}

// One sample, one phase, one n-group: what the block kernels need.
struct Panel {
    const Conv* conv;
    int32_t phase, n;
    const uint8_t *main[kSources], *skip[kSources];
    const Epilogue* epilogue;
    Stream* stream;
};

DV_INLINE const uint8_t* weights_of(const Conv& c, int32_t phase, int32_t n) {
    return c.weights + (int64_t(phase) * c.n_blocks + n) * c.steps * kStepBytes;
}

DV_INLINE const uint8_t* skip_weights_of(const Conv& c, int32_t n) {
    return c.skip_weights + int64_t(n) * c.skip_steps * kStepBytes;
}

template <class Sum, int kPixels, int kGroups>
DV_INLINE void clear(Sum (&sum)[kPixels][kGroups]) {
#pragma GCC unroll 16
    for (int p = 0; p < kPixels; ++p)
#pragma GCC unroll 2
        for (int g = 0; g < kGroups; ++g) sum[p][g] = Sum{};
}

DV_INLINE void put_sum(float* to, const F16& s) { store(to, s); }

template <class Sum, class Number, int kPixels, int kGroups>
DV_INLINE void keep(const Sum (&sum)[kPixels][kGroups], Number (&to)[kGroups][kPixels * kLanes]) {
#pragma GCC unroll 2
    for (int g = 0; g < kGroups; ++g)
#pragma GCC unroll 16
        for (int p = 0; p < kPixels; ++p) put_sum(to[g] + p * kLanes, sum[p][g]);
}

template <int kPixels, int kGroups>
void block_bf16(const Panel& panel, int32_t first) {
    const Conv& c = *panel.conv;
    const uint8_t *w[kGroups], *skip_w[kGroups];
    for (int g = 0; g < kGroups; ++g) w[g] = weights_of(c, panel.phase, panel.n + g);
    F16 sum[kPixels][kGroups];
    clear(sum);
    sum_steps(sum, c.main_segment, c.main_segments, panel.phase, panel.main, first, w, *panel.stream);
    if (c.skip_segments > 0) {
        for (int g = 0; g < kGroups; ++g) skip_w[g] = skip_weights_of(c, panel.n + g);
        sum_steps(sum, c.skip_segment, c.skip_segments, 0, panel.skip, first, skip_w, *panel.stream);
    }
    alignas(64) float kept[kGroups][kPixels * kLanes];
    keep(sum, kept);
    for (int g = 0; g < kGroups; ++g) panel.epilogue[g].take<false>(first, kPixels, kept[g], nullptr);
}

// A skip whose sums do not run on from the main ones: int8 scales those, Winograd transforms them.
template <int kPixels, int kGroups>
DV_INLINE void sum_skip(const Panel& panel, int32_t first, float (&to)[kGroups][kPixels * kLanes]) {
    const Conv& c = *panel.conv;
    const uint8_t* w[kGroups];
    for (int g = 0; g < kGroups; ++g) w[g] = skip_weights_of(c, panel.n + g);
    F16 sum[kPixels][kGroups];
    clear(sum);
    sum_steps(sum, c.skip_segment, c.skip_segments, 0, panel.skip, first, w, *panel.stream);
    keep(sum, to);
}

template <int kPixels, int kGroups>
void block_int8(const Panel& panel, int32_t first) {
    const Conv& c = *panel.conv;
    const uint8_t* w[kGroups];
    alignas(64) float kept[kGroups][kPixels * kLanes];
    const bool skip = c.skip_segments > 0;
    if (skip) sum_skip<kPixels, kGroups>(panel, first, kept);
    for (int g = 0; g < kGroups; ++g) w[g] = weights_of(c, panel.phase, panel.n + g);
    Sum8 sum[kPixels][kGroups];
    clear(sum);
    sum_steps(sum, c.main_segment, c.main_segments, panel.phase, panel.main, first, w, *panel.stream);
    alignas(64) int32_t whole[kGroups][kPixels * kLanes];
    keep(sum, whole);
    for (int g = 0; g < kGroups; ++g) panel.epilogue[g].take<true>(first, kPixels, whole[g], skip ? kept[g] : nullptr);
}

// Blocks of kPixels as long as they fit; returns the first pixel left.
template <int kPixels, int kGroups, bool kInt8>
int32_t run_blocks(const Panel& panel, int32_t first, int32_t last) {
    for (; last - first >= kPixels; first += kPixels)
        kInt8 ? block_int8<kPixels, kGroups>(panel, first) : block_bf16<kPixels, kGroups>(panel, first);
    return first;
}

// How many of `count` pixels or tiles go into the largest blocks: of sixes none that would leave two, as 8 are two fours.
DV_INLINE int32_t in_largest(int32_t count, int32_t largest) {
    return largest == 6 && count >= 8 && count % 6 == 2 ? count - 8 : count;
}

// The pixels first .. last in blocks as large as they come. Every pixel's sum runs over K in one order whatever the block.
template <int kGroups, bool kInt8>
void run_panel(const Panel& panel, int32_t first, int32_t last) {
    constexpr int kMost = kInt8 ? kPixelsInt8 : kPixelsBf16;
    // 16 pixels (4 x 4 maps) are 8 and 8: fewer than 16 sums wait for each other. So 64, a stripe, are 4 x 14 and 8.
    if (kMost < 8 || last - first != 16)
        first = run_blocks<kMost, kGroups, kInt8>(panel, first, first + in_largest(last - first, kMost));
    if constexpr (kMost > 8) first = run_blocks<8, kGroups, kInt8>(panel, first, last);
    if constexpr (kMost > 4) first = run_blocks<4, kGroups, kInt8>(panel, first, last);
    if constexpr (kMost > 2) first = run_blocks<2, kGroups, kInt8>(panel, first, last);
    run_blocks<1, kGroups, kInt8>(panel, first, last);
}

DV_INLINE const uint8_t* base_of(const Segment& s, const Work& w, int32_t image) {
    return s.in_arena ? w.arena + image * w.arena_stride + s.offset
                      : w.scratch + (image - w.first) * w.scratch_stride + s.offset;
}

template <int kGroups>
void run_group(const Conv& c, const Work& w, int32_t phase, int32_t n, int64_t unit_first, int64_t unit_last,
               Stream& stream) {
    for (int64_t unit = unit_first; unit < unit_last;) {
        const int32_t image = w.first + int32_t(unit / c.stripes), stripe = int32_t(unit % c.stripes);
        const int64_t left = unit_last - unit;
        const int32_t stop = stripe + int32_t(left < c.stripes - stripe ? left : c.stripes - stripe);
        Panel panel{&c, phase, n, {}, {}, nullptr, &stream};
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

void product_direct(const Conv& c, const Work& w) {
    const int32_t wide = c.n_blocks % kWide == 0 ? kWide : 1, groups = c.n_blocks / wide;
    const Share share = share_of(int64_t(w.last - w.first) * c.stripes, groups * c.phases, w.part, w.parts);
    const int64_t blocks = (share.unit_last - share.unit_first) * ((c.stripe + kPixelsBf16 - 1) / kPixelsBf16);
    Runs runs(share, 1, w);
    Range units{};
    for (int32_t group = 0; runs.next(group, units);) {
        const int32_t phase = group / groups, n = group % groups * wide;
        Stream stream(c, w, share, group, units, wide, blocks);
        if (wide == kWide)
            run_group<kWide>(c, w, phase, n, units.first, units.last, stream);
        else
            run_group<1>(c, w, phase, n, units.first, units.last, stream);
    }
}

// Attention: rows of a block, rows and keys that are worked on together.
#if defined(__AVX512F__)
constexpr int kQueries = 8;
#else
constexpr int kQueries = kPixelsBf16;
#endif
constexpr int kRowTile = kQueries, kTogether = 8 * kQueries, kKeys = 128;

// A last K step: AVX2 does what there is of it, as a head of 40 channels or 77 tokens leave much of one empty.
template <int kGroups>
DV_INLINE void step_some(F16 (&sum)[kQueries][kGroups], const uint8_t* const (&a)[kQueries], int64_t at,
                         const uint8_t* const (&w)[kGroups], [[maybe_unused]] int32_t channels) {
#if defined(__AVX512F__)
    step(sum, a, at, w);
#else
    step_6x16(sum, a, at, w[0], (channels + 3) / 4 * 4);
#endif
}

template <int kGroups>
DV_INLINE void rows_block(const uint8_t* operand, const uint8_t* weights, int64_t group_bytes, int32_t channels, float* out) {
    const uint8_t *a[kQueries], *w[kGroups];
    for (int r = 0; r < kQueries; ++r) a[r] = operand + r * kPixelBytesBf16;
    for (int g = 0; g < kGroups; ++g) w[g] = weights + g * group_bytes;
    F16 sum[kQueries][kGroups];
    clear(sum);
    int64_t at = 0;
    for (; channels > kBlock; channels -= kBlock, at += kTogether * kPixelBytesBf16) {
        step(sum, a, at, w);
        for (int g = 0; g < kGroups; ++g) w[g] += kStepBytes;
    }
    step_some(sum, a, at, w, channels);
#pragma GCC unroll 16
    for (int r = 0; r < kQueries; ++r)
#pragma GCC unroll 2
        for (int g = 0; g < kGroups; ++g) store(out + (g * kTogether + r) * kLanes, sum[r][g]);
}

// out [groups][kTogether][16] = operand [K steps][kTogether][32 channels] times packed weights, whose n-blocks are `group_bytes`
// apart; `rows` rows, in steps of kRowTile.
inline void rows_times(const uint8_t* operand, int32_t rows, const uint8_t* weights, int64_t group_bytes, int32_t groups,
                       int32_t channels, float* out) {
    for (int32_t g = 0; g < groups; g += kWide, weights += kWide * group_bytes, out += kWide * kTogether * kLanes)
        for (int32_t r = 0; r < rows; r += kQueries) {
            const uint8_t* from = operand + int64_t(r) * kPixelBytesBf16;
            if (groups - g >= kWide)
                rows_block<kWide>(from, weights, group_bytes, channels, out + r * kLanes);
            else
                rows_block<1>(from, weights, group_bytes, channels, out + r * kLanes);
        }
}

}  // namespace

#endif  // DIFFUSEVAE_NATIVE_PRODUCTS_VECTOR_H
