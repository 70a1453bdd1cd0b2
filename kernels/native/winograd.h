// A 3x3 convolution with 16 products for 4 pixels, where 36 are usual: Winograd's F(2x2, 3x3):
//
//     y = A^T [(G g G^T) * (B^T d B)] A       d: 4 x 4 pixels around a tile of 2 x 2, g: 3 x 3 weights, *: point by point
//
// (arXiv 1509.09308, section 4.1). Each of the 16 points is a product over channels of its own, in the same K steps and registers
// as other convolutions; weights are transformed once, at load. Zen 5, a step of CIFAR-10 at batch 1: 11.8 -> 8.4 ms (transforms 7 %
// of it), AVX2 43.6 -> 28. B and A hold 0, 1 and -1 only, so points in bf16 suffice: a step of the trained model is 0.3 % from
// float32, as with direct products.
#ifndef DIFFUSEVAE_NATIVE_WINOGRAD_H
#define DIFFUSEVAE_NATIVE_WINOGRAD_H

#include "epilogue.h"
#include "prepare.h"
#include "products_vector.h"

namespace {

// G g G^T: one channel's 3 x 3 weights to sixteen outputs.
DV_INLINE void transform_filter(const F16 (&g)[9], F16 (&points)[kPoints]) {
    const F16 half = broadcast(0.5f);
    F16 left[4][3];                 // G g
    for (int x = 0; x < 3; ++x) {
        const F16 outer = add(g[x], g[6 + x]);
        left[0][x] = g[x], left[3][x] = g[6 + x];
        left[1][x] = mul(half, add(outer, g[3 + x])), left[2][x] = mul(half, sub(outer, g[3 + x]));
    }
    for (int y = 0; y < 4; ++y) {
        const F16 outer = add(left[y][0], left[y][2]);
        points[4 * y] = left[y][0], points[4 * y + 3] = left[y][2];
        points[4 * y + 1] = mul(half, add(outer, left[y][1])), points[4 * y + 2] = mul(half, sub(outer, left[y][1]));
    }
}

// The weights of [n-block][block][9 taps] in K steps, as [n-block][16 points][block].
void transform_weights(const uint8_t* packed, int32_t n_blocks, int32_t blocks, uint8_t* to) {
    for (int32_t n = 0; n < n_blocks; ++n)
        for (int32_t b = 0; b < blocks; ++b)
            for (int32_t row = 0; row < kStepBytes; row += 64) {
                const uint8_t* from = packed + (int64_t(n) * blocks + b) * 9 * kStepBytes + row;
                F16 even[9], odd[9], even_points[kPoints], odd_points[kPoints];
                for (int t = 0; t < 9; ++t) even[t] = even_bf16(from + t * kStepBytes), odd[t] = odd_bf16(from + t * kStepBytes);
                transform_filter(even, even_points);
                transform_filter(odd, odd_points);
                uint8_t* point = to + (int64_t(n) * kPoints * blocks + b) * kStepBytes + row;
                for (int p = 0; p < kPoints; ++p, point += int64_t(blocks) * kStepBytes)
                    store_bf16_pairs(point, even_points[p], odd_points[p]);
            }
}

// Sixteen channels of a pixel of the prepared operand, and of a point: bf16 where that is multiplied, else float32.
#if defined(__AVX512BF16__)
template <bool kHalf>
DV_INLINE F16 load_channels(const uint8_t* p, int32_t lane) {
    const uint16_t* at = reinterpret_cast<const uint16_t*>(p) + lane;
    return kHalf ? load_half(at) : load_bf16(at);
}
DV_INLINE void store_channels(uint8_t* p, int32_t lane, F16 v) { store_bf16(reinterpret_cast<uint16_t*>(p) + lane, v); }
#else
template <bool>
DV_INLINE F16 load_channels(const uint8_t* p, int32_t lane) { return load(reinterpret_cast<const float*>(p) + lane); }
DV_INLINE void store_channels(uint8_t* p, int32_t lane, F16 v) { store(reinterpret_cast<float*>(p) + lane, v); }
#endif

// Tiles of one sample, transformed: [16 points][block][tile][32 channels]. A cache line more from point to point keeps the
// sixteen stores of a tile in different sets of the cache.
struct Points {
    uint8_t* at;
    int32_t first, tiles;           // in the sample's tiles, row by row
    int64_t block_bytes, point_bytes;
};

// B^T d of one column of four pixels.
template <bool kHalf>
DV_INLINE void transform_column(const uint8_t* top, int64_t line, int32_t lane, F16 (&out)[4]) {
    F16 d[4];
    for (int y = 0; y < 4; ++y) d[y] = load_channels<kHalf>(top + y * line, lane);
    out[0] = sub(d[0], d[2]), out[1] = add(d[1], d[2]), out[2] = sub(d[2], d[1]), out[3] = sub(d[1], d[3]);
}

// B^T d B of all tiles; neighbours in a row share two columns. kHalf: the operand is float16 (prepare.h).
template <bool kHalf>
void transform_tiles(const Conv& c, const uint8_t* operand, const Points& to) {
    const Segment& seg = c.main_segment[0];
    const int64_t bytes = c.main.pixel_bytes, line = int64_t(c.main.columns) * bytes;
    const int32_t across = c.output.width / 2;
    for (int32_t b = 0; b < seg.blocks; ++b)
        for (int32_t lane = 0; lane < kBlock; lane += kLanes) {
            F16 v[4][4];
            uint8_t* out = to.at + b * to.block_bytes;
            for (int32_t t = 0; t < to.tiles; ++t, out += bytes) {
                const uint8_t* at = operand + b * seg.block_bytes + seg.origin[to.first + t];
                if (t == 0 || (to.first + t) % across == 0) {
                    transform_column<kHalf>(at, line, lane, v[0]);
                    transform_column<kHalf>(at + bytes, line, lane, v[1]);
                } else {
                    for (int y = 0; y < 4; ++y) v[0][y] = v[2][y], v[1][y] = v[3][y];
                }
                transform_column<kHalf>(at + 2 * bytes, line, lane, v[2]);
                transform_column<kHalf>(at + 3 * bytes, line, lane, v[3]);
                for (int y = 0; y < 4; ++y) {
                    uint8_t* point = out + 4 * y * to.point_bytes;
                    store_channels(point, lane, sub(v[0][y], v[2][y]));
                    store_channels(point + to.point_bytes, lane, add(v[1][y], v[2][y]));
                    store_channels(point + 2 * to.point_bytes, lane, sub(v[2][y], v[1][y]));
                    store_channels(point + 3 * to.point_bytes, lane, sub(v[1][y], v[3][y]));
                }
            }
        }
}

// A^T m A: the 2 x 2 pixels of one tile, 16 outputs each; point p of it at m + p * stride.
DV_INLINE void finish_tile(const float* m, int64_t stride, float* pixels) {
    F16 top[4], bottom[4];
    for (int x = 0; x < 4; ++x) {
        const F16 m1 = load(m + (4 + x) * stride), m2 = load(m + (8 + x) * stride);
        top[x] = add(load(m + x * stride), add(m1, m2));
        bottom[x] = sub(sub(m1, m2), load(m + (12 + x) * stride));
    }
    store(pixels, add(top[0], add(top[1], top[2])));
    store(pixels + kLanes, sub(sub(top[1], top[2]), top[3]));
    store(pixels + 2 * kLanes, add(bottom[0], add(bottom[1], bottom[2])));
    store(pixels + 3 * kLanes, sub(sub(bottom[1], bottom[2]), bottom[3]));
}

template <int kTiles, int kGroups>
void block_winograd(const Panel& panel, const Points& points, int32_t tile) {
    const Conv& c = *panel.conv;
    const int32_t blocks = c.main_segment[0].blocks, first = 4 * (points.first + tile);
    alignas(64) float sums[kPoints][kGroups][kTiles * kLanes], skips[4][kGroups][kTiles * kLanes], pixels[4 * kTiles * kLanes];
    const uint8_t *w[kGroups], *a[kTiles];
    for (int g = 0; g < kGroups; ++g) w[g] = weights_of(c, 0, panel.n + g);
    for (int t = 0; t < kTiles; ++t) a[t] = points.at + int64_t(tile + t) * c.main.pixel_bytes;
    for (int p = 0; p < kPoints; ++p) {
        F16 sum[kTiles][kGroups];
        clear(sum);
        for (int32_t b = 0; b < blocks; ++b) {
            panel.stream->fetch();
            step(sum, a, p * points.point_bytes + b * points.block_bytes, w);
            for (int g = 0; g < kGroups; ++g) w[g] += kStepBytes;
        }
        keep(sum, sums[p]);
    }
    const bool skip = c.skip_segments > 0;
    for (int quarter = 0; skip && quarter < 4; ++quarter)  // the tiles' own pixels, four to a tile
        sum_skip<kTiles, kGroups>(panel, first + quarter * kTiles, skips[quarter]);
    for (int g = 0; g < kGroups; ++g) {
        for (int t = 0; t < kTiles; ++t)
            finish_tile(sums[0][g] + t * kLanes, kGroups * kTiles * kLanes, pixels + 4 * t * kLanes);
        for (int quarter = 0; quarter < 4; ++quarter)
            panel.epilogue[g].take<false>(first + quarter * kTiles, kTiles, pixels + quarter * kTiles * kLanes,
                                          skip ? skips[quarter][g] : nullptr);
    }
}

template <int kTiles, int kGroups>
int32_t run_tiles(const Panel& panel, const Points& points, int32_t tile, int32_t last) {
    for (; last - tile >= kTiles; tile += kTiles) block_winograd<kTiles, kGroups>(panel, points, tile);
    return tile;
}

template <int kGroups>
void run_points(const Panel& panel, const Points& points) {
    int32_t tile = 0;
    const int32_t all = points.tiles, largest = in_largest(all, kPixelsBf16);
    // 32 are four eights, not 14, 14 and 4: few sums wait for each other.
    if (kPixelsBf16 < 8 || all % 16 != 0 || all > 32) tile = run_tiles<kPixelsBf16, kGroups>(panel, points, tile, largest);
    if constexpr (kPixelsBf16 > 8) tile = run_tiles<8, kGroups>(panel, points, tile, all);
    tile = run_tiles<4, kGroups>(panel, points, tile, all);
    tile = run_tiles<2, kGroups>(panel, points, tile, all);
    run_tiles<1, kGroups>(panel, points, tile, all);
}

// The outputs first .. last (n-groups) over some tiles of one sample.
void multiply_points(const Conv& c, const Work& w, const Share& share, const Range& groups, int32_t wide, int32_t image,
                     const Points& points) {
    Panel panel{&c, 0, 0, {}, {}, nullptr, nullptr};
    for (int32_t s = 0; s < c.skip_segments; ++s) panel.skip[s] = base_of(c.skip_segment[s], w, image);
    const Range all{share.unit_first, share.unit_last};
    for (int32_t group = int32_t(groups.first); group < groups.last; ++group) {
        Stream stream(c, w, share, group, all, wide, (points.tiles + kPixelsBf16 - 1) / kPixelsBf16);
        panel.n = group * wide;
        const Epilogue epilogue[2] = {Epilogue(c, w, image, 0, panel.n), Epilogue(c, w, image, 0, panel.n + wide - 1)};
        panel.epilogue = epilogue;
        panel.stream = &stream;
        wide == kWide ? run_points<kWide>(panel, points) : run_points<1>(panel, points);
    }
}

// A piece takes n-groups of one unit after the other, or whole units where the points of one do not fit at a time: a stripe's sums
// are gathered in order by one thread.
void product_winograd(const Conv& c, const Work& w) {
    const int32_t wide = c.n_blocks % kWide == 0 ? kWide : 1;
    const Share share = share_of(int64_t(w.last - w.first) * c.stripes, c.n_blocks / wide, w.part, w.parts);
    const bool whole = c.stripe > 4 * c.tiles;
    const int64_t groups = share.group_last - share.group_first, across = whole ? 1 : groups;
    const Range cells = Range{0, across * (share.unit_last - share.unit_first)}.part(w.piece, w.pieces);
    Points points{reinterpret_cast<uint8_t*>(w.private_scratch), 0, 0, int64_t(c.tiles) * c.main.pixel_bytes, 0};
    points.point_bytes = points.block_bytes * c.main_segment[0].blocks + 64;
    Work again = w;                 // after the last outputs come the first, over the next tiles
    again.upcoming = weights_of(c, 0, share.group_first * wide);
    for (int64_t cell = cells.first; cell < cells.last;) {
        const int64_t unit = share.unit_first + cell / across, from = cell % across;
        const int64_t count = cells.last - cell < across - from ? cells.last - cell : across - from;
        const Range some{share.group_first + from, whole ? share.group_last : share.group_first + from + count};
        const int32_t image = w.first + int32_t(unit / c.stripes), stripe = int32_t(unit % c.stripes);
        const uint8_t* operand = base_of(c.main_segment[0], w, image);
        const int32_t first = stripe * (c.stripe / 4), end = first + c.stripe / 4;
        const int32_t last = end < c.pixels / 4 ? end : c.pixels / 4;
        for (points.first = first; points.first < last; points.first += c.tiles) {
            points.tiles = last - points.first < c.tiles ? last - points.first : c.tiles;
            if (whole || *w.held != unit) is_finer(c) ? transform_tiles<true>(c, operand, points) : transform_tiles<false>(c, operand, points);
            const bool ends = unit + 1 == share.unit_last && points.first + points.tiles >= last;
            multiply_points(c, ends ? w : again, share, some, wide, image, points);
        }
        *w.held = unit;
        cell += count;
    }
}

void product(const Conv& c, const Work& w) { c.tiles > 0 ? product_winograd(c, w) : product_direct(c, w); }

}  // namespace

#endif  // DIFFUSEVAE_NATIVE_WINOGRAD_H
