// Attention of pixels to pixels or tokens, a head at a time in float32: keys channel-major, values pixel-major, softmax by rows.
#ifndef DIFFUSEVAE_NATIVE_ATTENTION_H
#define DIFFUSEVAE_NATIVE_ATTENTION_H

#include "target.h"
#include "vectors.h"

namespace {

using namespace diffusevae::native;

constexpr int kQueries = 6;         // rows of scores at a time: 6 x 16 accumulators, as in the convolutions
constexpr int kTogether = 8 * kQueries;  // that share what they read of keys and values, which are more than caches hold

DV_INLINE int32_t padded_lanes(int32_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

DV_INLINE float float_of(uint16_t bf16) {
    const uint32_t u = uint32_t(bf16) << 16;
    float x;
    __builtin_memcpy(&x, &u, 4);
    return x;
}

// A head's matrices: queries [pixels][width padded], values [others][width padded], keys [width][others padded]; padding is zero.
struct Head {
    float *queries, *keys, *values, *scores, *result;
    int32_t pixels, others, width, others_padded, width_padded;

    Head(const Attention& op, float* scratch) : pixels(op.source.pixels()), others(op.others.pixels()), width(op.width) {
        others_padded = padded_lanes(others);
        width_padded = padded_lanes(width);
        queries = scratch;
        values = queries + int64_t(padded_lanes(pixels) + kQueries) * width_padded;
        keys = values + int64_t(others_padded) * width_padded;
        scores = keys + int64_t(width) * others_padded;
        result = scores + int64_t(kTogether) * others_padded;
    }

    void read(const Attention& op, const uint16_t* map, const uint16_t* other, int32_t head) {
        for (int64_t i = 0; i < int64_t(padded_lanes(pixels) + kQueries) * width_padded; ++i) queries[i] = 0.0f;
        for (int64_t i = 0; i < int64_t(others_padded) * width_padded; ++i) values[i] = 0.0f;
        for (int32_t c = 0; c < width; ++c) {
            const int32_t channel = head * width + c;
            float* key = keys + int64_t(c) * others_padded;
            for (int32_t p = 0; p < pixels; ++p) queries[int64_t(p) * width_padded + c] = at(map, channel, p, pixels);
            for (int32_t p = 0; p < others; ++p) {
                key[p] = at(other, op.keys + channel, p, others) * op.scale;
                values[int64_t(p) * width_padded + c] = at(other, op.values + channel, p, others);
            }
            for (int32_t p = others; p < others_padded; ++p) key[p] = 0.0f;
        }
    }

    static float at(const uint16_t* map, int32_t channel, int32_t pixel, int32_t pixels) {
        return float_of(map[(int64_t(channel / kBlock) * pixels + pixel) * kBlock + channel % kBlock]);
    }
};

// out[rows][n] = a[rows][k] b[k][n], rows in steps of 6, n in steps of 16; strides in floats.
DV_INLINE void rows_times(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int32_t rows, int32_t k, int32_t n,
                          float* out, int64_t out_stride) {
    for (int32_t j = 0; j < n; j += kLanes)
        for (int32_t r = 0; r < rows; r += kQueries) {
            F16 sum[kQueries];
            for (int q = 0; q < kQueries; ++q) sum[q] = zero();
            for (int32_t i = 0; i < k; ++i) {
                const F16 v = load(b + i * b_stride + j);
                for (int q = 0; q < kQueries; ++q) sum[q] = fma(broadcast(a[(r + q) * a_stride + i]), v, sum[q]);
            }
            for (int q = 0; q < kQueries; ++q) store(out + (r + q) * out_stride + j, sum[q]);
        }
}

// exp(score - largest) in place, zero beyond the last pixel; returns one over their sum.
DV_INLINE float softmax_row(float* row, int32_t pixels, int32_t padded) {
    for (int32_t p = pixels; p < padded; ++p) row[p] = -3.0e38f;
    F16 most = load(row), sum = zero();
    for (int32_t p = kLanes; p < padded; p += kLanes) most = greater(most, load(row + p));
    const F16 top = broadcast(largest(most));
    for (int32_t p = 0; p < padded; p += kLanes) store(row + p, exponential(sub(load(row + p), top)));
    for (int32_t p = pixels; p < padded; ++p) row[p] = 0.0f;
    for (int32_t p = 0; p < padded; p += kLanes) sum = add(sum, load(row + p));
    return 1.0f / sum_of(sum);
}

void attend(Head& h, uint16_t* out, int32_t head, int32_t first, int32_t last) {
    for (int32_t q = first; q < last; q += kTogether) {
        const int32_t left = last - q < kTogether ? last - q : kTogether, rows = (left + kQueries - 1) / kQueries * kQueries;
        const float* query = h.queries + int64_t(q) * h.width_padded;
        rows_times(query, h.width_padded, h.keys, h.others_padded, rows, h.width, h.others_padded, h.scores, h.others_padded);
        float inverse[kTogether];
        for (int32_t r = 0; r < rows; ++r)
            inverse[r] = softmax_row(h.scores + int64_t(r) * h.others_padded, h.others, h.others_padded);
        rows_times(h.scores, h.others_padded, h.values, h.width_padded, rows, h.others, h.width_padded, h.result, h.width_padded);
        for (int32_t r = 0; r < left; ++r)
            for (int32_t c = 0; c < h.width; c += kLanes) {
                uint16_t rounded[kLanes];
                store_bf16(rounded, mul(load(h.result + int64_t(r) * h.width_padded + c), broadcast(inverse[r])));
                for (int32_t i = 0; i < kLanes && c + i < h.width; ++i) {
                    const int32_t channel = head * h.width + c + i;
                    out[(int64_t(channel / kBlock) * h.pixels + q + r) * kBlock + channel % kBlock] = rounded[i];
                }
            }
    }
}

// A unit is six queries of a head of a sample.
void attention(const Attention& op, const Work& w) {
    const int32_t pixels = op.source.pixels();
    const int64_t a_head = (pixels + kQueries - 1) / kQueries;
    const Range mine = units_of(w, int64_t(w.last - w.first) * op.heads * a_head);
    Head h(op, w.private_scratch);
    for (int64_t unit = mine.first; unit < mine.last;) {
        const int64_t which = unit / a_head, from = unit % a_head, left = a_head - from;
        const int64_t count = mine.last - unit < left ? mine.last - unit : left;
        const int32_t image = w.first + int32_t(which / op.heads), head = int32_t(which % op.heads);
        uint16_t* out = reinterpret_cast<uint16_t*>(w.at(image, op.output));
        const uint16_t* map = reinterpret_cast<const uint16_t*>(w.at(image, op.source));
        if (*w.held != which) h.read(op, map, reinterpret_cast<const uint16_t*>(w.at(image, op.others)), head);
        *w.held = which;
        const int64_t end = (from + count) * kQueries;
        attend(h, out, head, int32_t(from * kQueries), end < pixels ? int32_t(end) : pixels);
        unit += count;
        if (head != 0 || from != 0) continue;
        for (int32_t c = op.output.channels; c < op.output.blocks * kBlock; ++c)  // padding stays zero
            for (int32_t p = 0; p < pixels; ++p) out[(int64_t(c / kBlock) * pixels + p) * kBlock + c % kBlock] = 0;
    }
}

}  // namespace

#endif  // DIFFUSEVAE_NATIVE_ATTENTION_H
