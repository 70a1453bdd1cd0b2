// Attention of pixels to pixels or tokens. Keys and values are packed as a convolution's weights are, and queries its pixels; the
// softmax streams over blocks of keys, so that scores exist for some queries and one block at a time.
//
// A query's numbers run over the blocks in order, whatever is worked on beside it: same bits for any batch, piece and thread.
#ifndef DIFFUSEVAE_NATIVE_ATTENTION_H
#define DIFFUSEVAE_NATIVE_ATTENTION_H

#if defined(__AMX_TILE__)
#include "products_tiles.h"
#else
#include "products_vector.h"
#endif

namespace {

using namespace diffusevae::native;

// The channels first .. first + count of pixel p of a map, at most 32, zeros behind them.
DV_INLINE void copy_channels(const uint16_t* map, int32_t pixels, int32_t p, int32_t first, int32_t count, uint16_t* to) {
    const auto at = [&](int32_t c) { return map + (int64_t(c / kBlock) * pixels + p) * kBlock + c % kBlock; };
    if (first % kBlock == 0 && count == kBlock) {
        __builtin_memcpy(to, at(first), 2 * kBlock);
        return;
    }
    __builtin_memset(to, 0, 2 * kBlock);
    int32_t c = 0;
    if (first % 8 == 0)
        for (; c + 8 <= count; c += 8) __builtin_memcpy(to + c, at(first + c), 16);
    for (; c < count; ++c) to[c] = *at(first + c);
}

// to[c][r] = from[r][c] of 8 x 8 words; strides in words.
DV_INLINE void transpose_8x8(const float* from, float* to) {
    constexpr int kFrom = kBlock / 2, kTo = kLanes;
    __m256 row[8], pair[8], four[8];
    for (int r = 0; r < 8; ++r) row[r] = _mm256_loadu_ps(from + r * kFrom);
    for (int r = 0; r < 8; r += 2) {
        pair[r] = _mm256_unpacklo_ps(row[r], row[r + 1]);
        pair[r + 1] = _mm256_unpackhi_ps(row[r], row[r + 1]);
    }
    for (int r = 0; r < 8; r += 4)
        for (int half = 0; half < 2; ++half) {
            four[r + 2 * half] = _mm256_shuffle_ps(pair[r + half], pair[r + half + 2], 0x44);
            four[r + 2 * half + 1] = _mm256_shuffle_ps(pair[r + half], pair[r + half + 2], 0xEE);
        }
    for (int c = 0; c < 4; ++c) {
        _mm256_storeu_ps(to + c * kTo, _mm256_permute2f128_ps(four[c], four[c + 4], 0x20));
        _mm256_storeu_ps(to + (c + 4) * kTo, _mm256_permute2f128_ps(four[c], four[c + 4], 0x31));
    }
}

// 16 rows of 32 channels to a K step of 16 outputs: [16 pairs of channels][16 rows][2].
DV_INLINE void pack_keys(const uint16_t* rows, uint8_t* to) {
    const float* from = reinterpret_cast<const float*>(rows);
    float* out = reinterpret_cast<float*>(to);
    for (int r = 0; r < kLanes; r += 8)
        for (int c = 0; c < kLanes; c += 8) transpose_8x8(from + r * (kBlock / 2) + c, out + c * kLanes + r);
}

// 16 channels of 32 rows to a K step: [16 pairs of rows][16 channels][2].
DV_INLINE void pack_values(const uint16_t* rows, uint8_t* to) {
    for (int pair = 0; pair < kLanes; ++pair, rows += 2 * kBlock, to += 64) {
        const __m256i a = _mm256_loadu_si256((const __m256i*)rows), b = _mm256_loadu_si256((const __m256i*)(rows + kBlock));
        const __m256i low = _mm256_unpacklo_epi16(a, b), high = _mm256_unpackhi_epi16(a, b);
        _mm256_storeu_si256((__m256i*)to, _mm256_permute2x128_si256(low, high, 0x20));
        _mm256_storeu_si256((__m256i*)(to + 32), _mm256_permute2x128_si256(low, high, 0x31));
    }
}

// 32 pixels' channels from `channel` on, as many as a head has, into packed matrices: one over channels, whose outputs are the pixels,
// and one over pixels, whose outputs are the channels. Either may be null.
inline void pack_some(const Attention& op, const uint16_t* map, int32_t channel, int32_t which, uint8_t* by_channels,
                      uint8_t* by_pixels) {
    alignas(64) uint16_t rows[kBlock * kBlock];
    const int32_t pixels = op.others.pixels(), first = which * kBlock;
    const int32_t count = pixels - first < kBlock ? pixels - first : kBlock;
    for (int32_t s = 0; s < op.steps(); ++s) {
        const int32_t left = op.width - s * kBlock, channels = left < kBlock ? left : kBlock;
        for (int32_t p = 0; p < count; ++p)
            copy_channels(map, pixels, first + p, channel + s * kBlock, channels, rows + p * kBlock);
        __builtin_memset(rows + count * kBlock, 0, size_t(2 * kBlock * (kBlock - count)));
        for (int32_t half = 0; by_channels && half < 2 && 2 * which + half < op.key_groups(); ++half)
            pack_keys(rows + half * kLanes * kBlock, by_channels + (int64_t(2 * which + half) * op.steps() + s) * kStepBytes);
        for (int32_t half = 0; by_pixels && half < 2 && 2 * s + half < op.groups(); ++half)
            pack_values(rows + half * kLanes, by_pixels + (int64_t(2 * s + half) * op.key_steps() + which) * kStepBytes);
    }
}

// A unit is 32 keys of a head of a sample.
void pack(const Attention& op, const Work& w) {
    const int64_t a_head = op.key_steps();
    const Range mine = units_of(w, int64_t(w.last - w.first) * op.heads * a_head);
    for (int64_t unit = mine.first; unit < mine.last; ++unit) {
        const int32_t image = w.first + int32_t(unit / a_head / op.heads), head = int32_t(unit / a_head % op.heads);
        const uint16_t* map = reinterpret_cast<const uint16_t*>(w.at(image, op.others));
        uint8_t* to = w.scratch + (image - w.first) * w.scratch_stride + head * op.head_bytes();
        const int32_t channel = head * op.width, which = int32_t(unit % a_head);
        pack_some(op, map, op.keys + channel, which, to, nullptr);
        pack_some(op, map, op.values + channel, which, nullptr, to + op.keys_bytes());
    }
}

// 16 values of a row as the products take them.
DV_INLINE void put_operand(uint8_t* to, int32_t lane, F16 v) {
#if defined(__AVX512BF16__)
    store_bf16(reinterpret_cast<uint16_t*>(to) + lane, v);
#else
    store(reinterpret_cast<float*>(to) + lane, v);
#endif
}

// `count` pixels' channels of one head as an operand of `rows` rows, zeros behind the last: [K steps][kTogether][32 channels].
inline void read_rows(const Attention& op, const Map& map, const uint16_t* values, int32_t channel, int32_t first, int32_t count,
                      int32_t rows, uint8_t* operand) {
    for (int32_t s = 0; s < op.steps(); ++s) {
        const int32_t left = op.width - s * kBlock, channels = left < kBlock ? left : kBlock;
        for (int32_t r = 0; r < rows; ++r) {
            uint16_t some[kBlock] = {};
            if (r < count) copy_channels(values, map.pixels(), first + r, channel + s * kBlock, channels, some);
            uint8_t* to = operand + (int64_t(s) * kTogether + r) * kPixelBytesBf16;
            for (int32_t lane = 0; lane < kBlock; lane += kLanes) put_operand(to, lane, load_bf16(some + lane));
        }
    }
}

// 16 channels of pixel p, of which `left` are to be written.
DV_INLINE void write_channels(uint16_t* map, int64_t pixels, int32_t p, int32_t channel, int32_t left, F16 v) {
    const auto at = [&](int32_t c) { return map + (c / kBlock * pixels + p) * kBlock + c % kBlock; };
    if (channel % kBlock <= kBlock - kLanes && left >= kLanes) return store_bf16(at(channel), v);
    uint16_t rounded[kLanes];
    store_bf16(rounded, v);
    for (int32_t i = 0; i < kLanes && i < left; ++i) *at(channel + i) = rounded[i];
}

// The channels behind the last real one are zero.
inline void clear_padding(uint16_t* map, const Map& of) {
    for (int32_t c = of.channels; c < of.blocks * kBlock; ++c)
        for (int32_t p = 0; p < of.pixels(); ++p) map[(int64_t(c / kBlock) * of.pixels() + p) * kBlock + c % kBlock] = 0;
}

// Queries of one head that are worked on together: their operands, and what the softmax has seen so far.
struct Queries {
    const Attention& op;
    uint8_t *operand, *weights;
    float *scores, *part, *result;
    int32_t rows;                       // filled up to whole tiles of rows
    float most[kTogether], shrink[kTogether];
    float sums[kTogether * kLanes];     // of what was added to each lane

    Queries(const Attention& attention, float* room) : op(attention) {
        uint8_t* at = reinterpret_cast<uint8_t*>(room);
        const AttentionRoom r(op, kTogether, kKeys, kPixelBytesBf16);
        operand = at + r.queries, weights = at + r.weights;
        scores = reinterpret_cast<float*>(at + r.scores);
        part = reinterpret_cast<float*>(at + r.part), result = reinterpret_cast<float*>(at + r.result);
    }

    void read(const uint16_t* map, int32_t channel, int32_t first, int32_t count) {
        rows = (count + kRowTile - 1) / kRowTile * kRowTile;
        read_rows(op, op.source, map, channel, first, count, rows, operand);
    }

    // Scores of row r with `groups` n-blocks of keys, `keys` of them real -> exp(scale (score - most)). Keys that are not real
    // count with 2^-126 at most, and their values are 0.
    void softmax(int32_t r, int32_t groups, int32_t keys, bool begins) {
        const auto at = [&](int32_t group) { return scores + (group * kTogether + r) * kLanes; };
        for (int32_t k = keys; k < groups * kLanes; ++k) at(k / kLanes)[k % kLanes] = -3.0e38f;
        F16 top = load(at(0));
        for (int32_t g = 1; g < groups; ++g) top = greater(top, load(at(g)));
        const float before = most[r], here = largest(top);
        most[r] = begins || here > before ? here : before;
        const float doublings = op.scale * 1.44269504f;  // e^x = 2^(x log2 e)
        const F16 scale = broadcast(doublings), reach = broadcast(-doublings * most[r]);
        shrink[r] = begins ? 0.0f : first_of(softmax_weight(fma(broadcast(before), scale, reach)));
        F16 sum = begins ? zero() : mul(load(sums + r * kLanes), broadcast(shrink[r]));
        for (int32_t g = 0; g < (groups + 1) / 2 * 2; ++g) {
            const F16 p = g < groups ? softmax_weight(fma(load(at(g)), scale, reach)) : zero();
            sum = add(sum, p);
            put_operand(weights + (int64_t(g / 2) * kTogether + r) * kPixelBytesBf16, g % 2 * kLanes, p);
        }
        store(sums + r * kLanes, sum);
    }

    // One block of keys from key `first` on: scores, softmax, and what the values add.
    void take(const uint8_t* head, int32_t first) {
        const int32_t left = op.others.pixels() - first, keys = left < kKeys ? left : kKeys;
        const int32_t groups = (keys + kLanes - 1) / kLanes;
        const int64_t key_bytes = int64_t(op.steps()) * kStepBytes, value_bytes = int64_t(op.key_steps()) * kStepBytes;
        rows_times(operand, rows, head + first / kLanes * key_bytes, key_bytes, groups, op.width, scores);
        for (int32_t r = 0; r < rows; ++r) softmax(r, groups, keys, first == 0);
        float* to = first == 0 ? result : part;
        rows_times(weights, rows, head + op.keys_bytes() + first / kBlock * int64_t(kStepBytes), value_bytes, op.groups(), keys, to);
        if (first == 0) return;
        for (int32_t g = 0; g < op.groups(); ++g)
            for (int32_t r = 0; r < rows; ++r) {
                const int64_t row = (int64_t(g) * kTogether + r) * kLanes;
                store(result + row, fma(load(result + row), broadcast(shrink[r]), load(part + row)));
            }
    }

    void write(uint16_t* map, int32_t channel, int32_t first, int32_t count) const {
        const int64_t pixels = op.output.pixels();
        for (int32_t r = 0; r < count; ++r) {
            const F16 inverse = broadcast(1.0f / sum_of(load(sums + r * kLanes)));
            for (int32_t g = 0; g < op.groups(); ++g) {
                const F16 v = mul(load(result + (int64_t(g) * kTogether + r) * kLanes), inverse);
                write_channels(map, pixels, first + r, channel + g * kLanes, op.width - g * kLanes, v);
            }
        }
    }
};

// A unit is kQueries queries of a head of a sample.
void attention(const Attention& op, const Work& w) {
    const int32_t pixels = op.source.pixels();
    const int64_t a_head = (pixels + kQueries - 1) / kQueries;
    const Range mine = units_of(w, int64_t(w.last - w.first) * op.heads * a_head);
    Queries some(op, w.private_scratch);
    for (int64_t unit = mine.first; unit < mine.last;) {
        const int64_t which = unit / a_head, from = unit % a_head, left = a_head - from;
        int64_t count = mine.last - unit < left ? mine.last - unit : left;
        count = count < kTogether / kQueries ? count : kTogether / kQueries;
        const int32_t image = w.first + int32_t(which / op.heads), head = int32_t(which % op.heads);
        uint16_t* out = reinterpret_cast<uint16_t*>(w.at(image, op.output));
        const uint8_t* packed = w.scratch + (image - w.first) * w.scratch_stride + head * op.head_bytes();
        const int32_t first = int32_t(from) * kQueries, end = int32_t(from + count) * kQueries;
        const int32_t queries = (end < pixels ? end : pixels) - first;
        some.read(reinterpret_cast<const uint16_t*>(w.at(image, op.source)), head * op.width, first, queries);
        for (int32_t key = 0; key < op.others.pixels(); key += kKeys) some.take(packed, key);
        some.write(out, head * op.width, first, queries);
        unit += count;
        if (head == 0 && from == 0) clear_padding(out, op.output);
    }
}

}  // namespace

#endif  // DIFFUSEVAE_NATIVE_ATTENTION_H
