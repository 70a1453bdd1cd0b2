// Products with AMX: tiles of 16 pixels x 32 channels (64 for int8) times tiles of packed weights.
//
// A block is 2 x 2 tiles (two loads a product instead of the 5/4 of 1 x 4 and 4 x 1); a single tile of pixels takes 1 x 4,
// a single n-block 4 x 1. Tiles of several samples share a block, so that small maps fill it.
#ifndef DIFFUSEVAE_NATIVE_PRODUCTS_TILES_H
#define DIFFUSEVAE_NATIVE_PRODUCTS_TILES_H

#include "epilogue.h"
#include "stream.h"
#include "tiles.h"

namespace {

// One tile of 16 pixels.
struct Tile {
    int32_t image, first;           // first pixel of the phase
};

// One K step of a block: pixels at a[m] + at, weights at w[g].
template <int kTiles, int kGroups, bool kInt8>
DV_INLINE void step_tiles(const uint8_t* const (&a)[kTiles], int64_t at, int64_t stride, const uint8_t* const (&w)[kGroups]) {
    if constexpr (kTiles == 2 && kGroups == 2) {
        load_tile<4>(a[0] + at, stride);
        load_tile<6>(w[0], 64);
        multiply<kInt8, 0, 4, 6>();
        load_tile<7>(w[1], 64);
        multiply<kInt8, 1, 4, 7>();
        load_tile<5>(a[1] + at, stride);
        multiply<kInt8, 2, 5, 6>();
        multiply<kInt8, 3, 5, 7>();
    } else if constexpr (kTiles == 1) {
        load_tile<4>(a[0] + at, stride);
        load_tile<6>(w[0], 64);
        multiply<kInt8, 0, 4, 6>();
        if constexpr (kGroups > 1) {
            load_tile<7>(w[1], 64);
            multiply<kInt8, 1, 4, 7>();
        }
        if constexpr (kGroups > 2) {
            load_tile<5>(w[2], 64);
            multiply<kInt8, 2, 4, 5>();
            load_tile<6>(w[3], 64);
            multiply<kInt8, 3, 4, 6>();
        }
    } else {
        static_assert(kGroups == 1, "a block is 2 x 2, 1 x N or N x 1");
        load_tile<6>(w[0], 64);
        load_tile<4>(a[0] + at, stride);
        multiply<kInt8, 0, 4, 6>();
        load_tile<5>(a[1] + at, stride);
        multiply<kInt8, 1, 5, 6>();
        if constexpr (kTiles > 2) {
            load_tile<7>(a[2] + at, stride);
            multiply<kInt8, 2, 7, 6>();
            load_tile<4>(a[3] + at, stride);
            multiply<kInt8, 3, 4, 6>();
        }
    }
}

template <int kCount>
DV_INLINE void clear_sums() {
    clear_tile<0>();
    if constexpr (kCount > 1) clear_tile<1>();
    if constexpr (kCount > 2) clear_tile<2>(), clear_tile<3>();
}

template <int kCount>
DV_INLINE void store_sums(uint8_t* to) {
    store_tile<0>(to);
    if constexpr (kCount > 1) store_tile<1>(to + 1024);
    if constexpr (kCount > 2) store_tile<2>(to + 2048), store_tile<3>(to + 3072);
}

DV_INLINE const uint8_t* tile_at(const Segment& s, const Work& w, const Tile& tile) {
    const uint8_t* base = s.in_arena ? w.arena + tile.image * w.arena_stride + s.offset
                                     : w.scratch + (tile.image - w.first) * w.scratch_stride + s.offset;
    return base + s.origin[tile.first];
}

template <int kTiles, int kGroups, bool kInt8>
DV_INLINE void sum_tiles(const Segment* segments, int32_t count, int32_t phase, const Work& work, const Tile* tiles,
                         const uint8_t* (&w)[kGroups], Stream& stream, uint8_t* spare) {
    int32_t quiet = 0;
    for (int32_t s = 0; s < count; ++s) {
        const Segment& seg = segments[s];
        const int64_t stride = seg.pixel_stride;
        const uint8_t* a[kTiles];
        for (int m = 0; m < kTiles; ++m) a[m] = tile_at(seg, work, tiles[m]);
        for (int32_t b = 0; b < seg.blocks; ++b) {
            for (int32_t t = 0; t < seg.taps; ++t) {
                stream.fetch();
                step_tiles<kTiles, kGroups, kInt8>(a, b * seg.block_bytes + seg.tap[phase][t], stride, w);
                for (int g = 0; g < kGroups; ++g) w[g] += kStepBytes;
                // The store unit falls asleep after about 2,100 cycles, and waking it costs 950: a store that is
                // never read, every 9 steps, keeps it awake (32 x 32 maps: 10 %).
                if (++quiet == 9) quiet = 0, store_tile<7>(spare);
            }
        }
    }
}

template <int kTiles, int kGroups>
void block_tiles(const Conv& c, const Work& w, int32_t phase, int32_t n, const Tile* tiles, const Epilogue* epilogues,
                 Stream& stream) {
    constexpr int kCount = kTiles * kGroups;
    alignas(64) uint8_t sums[kCount * 1024], skips[kCount * 1024], spare[1024];
    const uint8_t *weights[kGroups], *skip_weights[kGroups];
    for (int g = 0; g < kGroups; ++g) {
        weights[g] = c.weights + (int64_t(phase) * c.n_blocks + n + g) * c.steps * kStepBytes;
        skip_weights[g] = c.skip_weights + int64_t(n + g) * c.skip_steps * kStepBytes;
    }
    const bool separate = c.int8 && c.skip_segments > 0;
    clear_sums<kCount>();
    if (separate) {
        sum_tiles<kTiles, kGroups, false>(c.skip_segment, c.skip_segments, 0, w, tiles, skip_weights, stream, spare);
        store_sums<kCount>(skips);
        clear_sums<kCount>();
    }
    if (c.int8) {
        sum_tiles<kTiles, kGroups, true>(c.main_segment, c.main_segments, phase, w, tiles, weights, stream, spare);
    } else {
        sum_tiles<kTiles, kGroups, false>(c.main_segment, c.main_segments, phase, w, tiles, weights, stream, spare);
        if (c.skip_segments > 0)
            sum_tiles<kTiles, kGroups, false>(c.skip_segment, c.skip_segments, 0, w, tiles, skip_weights, stream, spare);
    }
    store_sums<kCount>(sums);
    for (int m = 0; m < kTiles; ++m) {
        const int32_t first = tiles[m].first, left = c.pixels - first, count = left < kLanes ? left : kLanes;
        for (int g = 0; g < kGroups; ++g) {
            const int64_t at = (m * kGroups + g) * 1024;
            const float* skip = separate ? reinterpret_cast<const float*>(skips + at) : nullptr;
            const Epilogue& epilogue = epilogues[m * kGroups + g];
            c.int8 ? epilogue.take<true>(first, count, sums + at, skip) : epilogue.take<false>(first, count, sums + at, skip);
        }
    }
}

template <int kTiles, int kGroups>
DV_INLINE void run_block(const Conv& c, const Work& w, int32_t phase, int32_t n, const Tile* tiles, Stream& stream) {
    alignas(Epilogue) uint8_t room[kTiles * kGroups * sizeof(Epilogue)];
    Epilogue* epilogues = reinterpret_cast<Epilogue*>(room);
    for (int m = 0; m < kTiles; ++m)
        for (int g = 0; g < kGroups; ++g) {
            const Epilogue made(c, w, tiles[m].image, phase, n + g);
            __builtin_memcpy(epilogues + m * kGroups + g, &made, sizeof made);
        }
    block_tiles<kTiles, kGroups>(c, w, phase, n, tiles, epilogues, stream);
}

// The tiles of the units first .. last, in order; a stripe is a multiple of a tile, or the whole of a small map.
struct TileList {
    const Conv& c;
    const Work& w;
    int32_t per_sample, per_stripe;
    int64_t first, count;

    TileList(const Conv& conv, const Work& work, const Range& units) : c(conv), w(work) {
        per_sample = (c.pixels + kLanes - 1) / kLanes;
        per_stripe = (c.stripe + kLanes - 1) / kLanes;
        first = index_of(units.first);
        count = index_of(units.last) - first;
    }
    int64_t index_of(int64_t unit) const {
        return unit / c.stripes * per_sample + unit % c.stripes * per_stripe;
    }
    Tile at(int64_t index) const {
        index += first;
        return Tile{w.first + int32_t(index / per_sample), int32_t(index % per_sample) * kLanes};
    }
};

template <int kTiles, int kGroups>
DV_INLINE int64_t run_blocks(const TileList& list, int32_t phase, int32_t n, int64_t from, Stream& stream) {
    for (; list.count - from >= kTiles; from += kTiles) {
        Tile tiles[kTiles];
        for (int m = 0; m < kTiles; ++m) tiles[m] = list.at(from + m);
        run_block<kTiles, kGroups>(list.c, list.w, phase, n, tiles, stream);
    }
    return from;
}

template <int kGroups>
void run_tiles(const TileList& list, int32_t phase, int32_t n, Stream& stream) {
    int64_t done = 0;
    if constexpr (kGroups == 1) done = run_blocks<4, 1>(list, phase, n, done, stream);
    if constexpr (kGroups <= 2) done = run_blocks<2, kGroups>(list, phase, n, done, stream);
    run_blocks<1, kGroups>(list, phase, n, done, stream);
}

void product(const Conv& c, const Work& w) {
    const int64_t units = int64_t(w.last - w.first) * c.stripes;
    const int32_t tiles_at_most = int32_t((units * ((c.stripe + kLanes - 1) / kLanes)));
    const int32_t wide = c.n_blocks % 2 != 0 ? 1 : tiles_at_most == 1 && c.n_blocks % 4 == 0 ? 4 : 2;
    const int32_t groups = c.n_blocks / wide;
    const Share share = share_of(units, groups * c.phases, w.part, w.parts);
    const int64_t blocks = (TileList(c, w, Range{share.unit_first, share.unit_last}).count + 1) / 2;
    // Pieces cut no block: four tiles are two blocks of 2 x 2, or one of 4 x 1.
    const int32_t tiles = ((c.stripe < c.pixels ? c.stripe : c.pixels) + kLanes - 1) / kLanes;
    Runs runs(share, (3 + tiles) / tiles, w);
    Range some{};
    for (int32_t group = 0; runs.next(group, some);) {
        const int32_t phase = group / groups, n = group % groups * wide;
        const TileList list(c, w, some);
        Stream stream(c, w, share, group, some, wide, blocks);
        if (wide == 1) run_tiles<1>(list, phase, n, stream);
        if (wide == 2) run_tiles<2>(list, phase, n, stream);
        if (wide == 4) run_tiles<4>(list, phase, n, stream);
    }
}

// Attention: rows of a block and of a tile, rows and keys that are worked on together.
constexpr int kQueries = 32, kRowTile = kLanes, kTogether = 128, kKeys = 256, kPixelBytesBf16 = 2 * kBlock;

template <int kTiles, int kGroups>
DV_INLINE void rows_block(const uint8_t* operand, const uint8_t* weights, int64_t group_bytes, int32_t channels, float* out) {
    const uint8_t *a[kTiles], *w[kGroups];
    for (int m = 0; m < kTiles; ++m) a[m] = operand + m * kStepBytes;
    for (int g = 0; g < kGroups; ++g) w[g] = weights + g * group_bytes;
    clear_sums<kTiles * kGroups>();
    for (int64_t at = 0; channels > 0; channels -= kBlock, at += kTogether * kPixelBytesBf16) {
        step_tiles<kTiles, kGroups, false>(a, at, kPixelBytesBf16, w);
        for (int g = 0; g < kGroups; ++g) w[g] += kStepBytes;
    }
    float* next = out + kTogether * kLanes;  // of the second n-block
    store_tile<0>(out);
    if constexpr (kTiles == 1 && kGroups == 2) store_tile<1>(next);
    if constexpr (kTiles == 2 && kGroups == 1) store_tile<1>(out + kLanes * kLanes);
    if constexpr (kTiles == 2 && kGroups == 2)
        store_tile<1>(next), store_tile<2>(out + kLanes * kLanes), store_tile<3>(next + kLanes * kLanes);
}

template <int kGroups>
DV_INLINE void rows_group(const uint8_t* operand, int32_t rows, const uint8_t* weights, int64_t group_bytes,
                          int32_t channels, float* out) {
    for (int32_t r = 0; r < rows; r += kQueries) {
        const uint8_t* from = operand + int64_t(r) * kPixelBytesBf16;
        if (rows - r >= kQueries)
            rows_block<2, kGroups>(from, weights, group_bytes, channels, out + r * kLanes);
        else
            rows_block<1, kGroups>(from, weights, group_bytes, channels, out + r * kLanes);
    }
}

// out [groups][kTogether][16] = operand [K steps][kTogether][32 channels] times packed weights, whose n-blocks are `group_bytes`
// apart; `rows` rows, in steps of kRowTile.
inline void rows_times(const uint8_t* operand, int32_t rows, const uint8_t* weights, int64_t group_bytes, int32_t groups,
                       int32_t channels, float* out) {
    int32_t g = 0;
    for (; groups - g >= 2; g += 2, weights += 2 * group_bytes, out += 2 * kTogether * kLanes)
        rows_group<2>(operand, rows, weights, group_bytes, channels, out);
    if (g < groups) rows_group<1>(operand, rows, weights, group_bytes, channels, out);
}

}  // namespace

#endif  // DIFFUSEVAE_NATIVE_PRODUCTS_TILES_H
