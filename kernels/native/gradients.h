// Gradients of what lies between two convolutions: a GroupNorm with its activation, attention.
#ifndef DIFFUSEVAE_NATIVE_GRADIENTS_H
#define DIFFUSEVAE_NATIVE_GRADIENTS_H

#include "attention.h"
#include "prepare.h"

namespace {

using namespace diffusevae::native;

// The gradient of the activation, times the one behind it.
template <bool kSilu>
DV_INLINE F16 through_activation(F16 z, F16 gradient) {
    if constexpr (!kSilu) return gradient;
    const F16 s = sigmoid(z), one = broadcast(1.0f);
    return mul(gradient, mul(s, fma(z, sub(one, s), one)));
}

// A norm over one map, a channel:  x^ = unit x + offset,  z = scale x^ + shift,  y = activation(z),  and backward
//
//     dx = unit (scale dz - mean(scale dz) - x^ mean(scale dz x^)),  dz = dy activation'(z),  means over the group.
struct NormLines {
    float *unit, *offset, *scale, *shift, *mean, *slope, *total, *other;

    NormLines(const NormGradient& op, const Work& w) {
        float* const at = w.private_scratch;
        const int64_t width = op.padded();
        unit = at, offset = at + width, scale = at + 2 * width, shift = at + 3 * width;
        mean = at + 4 * width, slope = at + 5 * width, total = at + 6 * width, other = at + 7 * width;
    }

    // All of them; the means from the sums that the first pass left, where they are wanted.
    void fill(const NormGradient& op, const Work& w, int32_t image, const float* sums) const {
        const Map& map = op.source;
        const int32_t width = map.channels / op.groups;
        const double values = double(width) * map.pixels();
        for (int32_t c = map.channels; c < op.padded(); ++c)
            unit[c] = offset[c] = scale[c] = shift[c] = mean[c] = slope[c] = 0.0f;
        total_sums(w.sums(image, map), map.slots, op.padded(), total, other);
        const float* row = op.scale_row >= 0 ? w.row_of(image) + op.scale_row : nullptr;
        for (int32_t first = 0; first < map.channels; first += width) {
            double sum = 0.0, square = 0.0;
            for (int32_t c = first; c < first + width; ++c) sum += double(total[c]), square += double(other[c]);
            const Moments of(sum, square, values, double(op.epsilon));
            for (int32_t c = first; c < first + width; ++c) {
                unit[c] = float(of.inverse);
                offset[c] = float(-of.mean * of.inverse);
                scale[c] = row ? op.weight[c] * (1.0f + row[c]) : op.weight[c];
                shift[c] = row ? op.bias[c] * (1.0f + row[c]) + row[map.channels + c] : op.bias[c];
            }
        }
        if (!sums) return;
        total_sums(sums, op.stripes, op.padded(), total, other);
        for (int32_t first = 0; first < map.channels; first += width) {
            double sum = 0.0, along = 0.0;
            for (int32_t c = first; c < first + width; ++c)
                sum += double(scale[c]) * double(total[c]), along += double(scale[c]) * double(other[c]);
            for (int32_t c = first; c < first + width; ++c) mean[c] = float(sum / values), slope[c] = float(along / values);
        }
    }
};

// A stripe of one block of a sample: where its rows begin.
struct NormStripe {
    const uint16_t *source, *gradient, *residual;
    uint16_t* output;
    int32_t first, last;            // rows of pixels
    const NormGradient& op;

    NormStripe(const NormGradient& of, const Work& w, int32_t image, int32_t block, int32_t stripe) : op(of) {
        const auto at = [&](const Map& map) {
            return reinterpret_cast<uint16_t*>(w.at(image, map)) + int64_t(block) * map.pixels() * kBlock;
        };
        source = at(op.source), gradient = at(op.gradient), output = at(op.output);
        residual = op.has_residual ? at(op.residual) : nullptr;
        first = stripe * op.rows;
        last = first + op.rows < op.source.height ? first + op.rows : op.source.height;
    }

    // Calls take(pixel of the source, pixel of the gradient).
    template <class Take>
    DV_INLINE void each(const Take& take) const {
        const int32_t width = op.source.width, k = op.factor;
        if (k == 1) {
            for (int64_t p = int64_t(first) * width; p < int64_t(last) * width; ++p) take(p, p);
            return;
        }
        for (int32_t y = first; y < last; ++y) {
            int64_t p = int64_t(y) * width, q = int64_t(y / k) * op.gradient.width;
            for (int32_t u = 0; u < op.gradient.width; ++u, ++q)
                for (int32_t i = 0; i < k; ++i, ++p) take(p, q);
        }
    }
};

// sums [stripe][2][channels]: of dz and of dz x^.
template <bool kSilu>
void sum_stripe(const NormLines& lines, const NormStripe& at, int32_t channel, F16 share, float* sums, int32_t width) {
    for (int32_t lane = 0; lane < kBlock; lane += kLanes) {
        const int32_t c = channel + lane;
        const F16 unit = load(lines.unit + c), offset = load(lines.offset + c);
        const F16 scale = load(lines.scale + c), shift = load(lines.shift + c);
        F16 sum = zero(), along = zero();
        at.each([&](int64_t p, int64_t q) {
            const F16 x = fma(load_bf16(at.source + p * kBlock + lane), unit, offset);
            const F16 d = through_activation<kSilu>(fma(x, scale, shift), mul(load_bf16(at.gradient + q * kBlock + lane), share));
            sum = add(sum, d);
            along = fma(d, x, along);
        });
        store(sums + c, sum);
        store(sums + width + c, along);
    }
}

template <bool kSilu>
void write_stripe(const NormLines& lines, const NormStripe& at, int32_t channel, F16 share) {
    for (int32_t lane = 0; lane < kBlock; lane += kLanes) {
        const int32_t c = channel + lane;
        const F16 unit = load(lines.unit + c), offset = load(lines.offset + c);
        const F16 scale = load(lines.scale + c), shift = load(lines.shift + c);
        const F16 mean = load(lines.mean + c), slope = load(lines.slope + c);
        at.each([&](int64_t p, int64_t q) {
            const F16 x = fma(load_bf16(at.source + p * kBlock + lane), unit, offset);
            const F16 d = through_activation<kSilu>(fma(x, scale, shift), mul(load_bf16(at.gradient + q * kBlock + lane), share));
            F16 v = mul(unit, sub(sub(mul(scale, d), mean), mul(x, slope)));
            if (at.residual) v = fma(load_bf16(at.residual + q * kBlock + lane), share, v);
            store_bf16(at.output + p * kBlock + lane, v);
        });
    }
}

// Pass 0 leaves the sums in the scratch, pass 1 writes the gradient. A unit is a stripe of a block of a sample.
void norm_gradient(const NormGradient& op, int32_t pass, const Work& w) {
    const int64_t a_sample = int64_t(op.source.blocks) * op.stripes;
    const Range mine = units_of(w, int64_t(w.last - w.first) * a_sample);
    const NormLines lines(op, w);
    const F16 share = broadcast(1.0f / (float(op.factor) * float(op.factor)));
    const bool silu = op.activation == DV_NATIVE_SILU;
    for (int64_t unit = mine.first; unit < mine.last; ++unit) {
        const int32_t image = w.first + int32_t(unit / a_sample), inside = int32_t(unit % a_sample);
        const int32_t block = inside / op.stripes, stripe = inside % op.stripes, width = op.padded();
        float* sums = reinterpret_cast<float*>(w.scratch + (image - w.first) * w.scratch_stride);
        if (*w.held != image) lines.fill(op, w, image, pass == 0 ? nullptr : sums), *w.held = image;
        const NormStripe at(op, w, image, block, stripe);
        if (pass == 1) {
            silu ? write_stripe<true>(lines, at, block * kBlock, share) : write_stripe<false>(lines, at, block * kBlock, share);
            continue;
        }
        sums += int64_t(stripe) * 2 * width;
        silu ? sum_stripe<true>(lines, at, block * kBlock, share, sums, width)
             : sum_stripe<false>(lines, at, block * kBlock, share, sums, width);
    }
}

// A chunk of one head's queries, against all of its pixels.
struct GradientChunk {
    // Rows of a product that are whole blocks of 32, as the weights of 32 queries are a K step.
    static constexpr int32_t kSome = kTogether / kBlock * kBlock;

    const AttentionGradient& a;
    const Attention& op;
    uint8_t *first, *second, *weighted, *packed[2], *across;
    uint16_t* rows[2];              // [blocks of 32 pixels][32 queries][32]: weights, and the gradients behind them
    float *scores, *slopes, *result;
    float doublings;                // e^x = 2^(x log2 e)

    GradientChunk(const AttentionGradient& gradient, float* room) : a(gradient), op(gradient.of) {
        uint8_t* at = reinterpret_cast<uint8_t*>(room);
        const GradientRoom r(a, kPixelBytesBf16);
        first = at + r.first, second = at + r.second, weighted = at + r.weighted, across = at + r.across;
        scores = reinterpret_cast<float*>(at + r.scores), slopes = reinterpret_cast<float*>(at + r.slopes);
        result = reinterpret_cast<float*>(at + r.result);
        for (int which = 0; which < 2; ++which) {
            rows[which] = reinterpret_cast<uint16_t*>(at + r.rows + which * r.rows_bytes);
            packed[which] = at + r.packed + which * r.packed_bytes;
        }
        doublings = op.scale * 1.44269504f;
    }

    DV_INLINE static float* at(float* values, int32_t group, int32_t r) {
        return values + (int64_t(group) * kTogether + r) * kLanes;
    }

    // Of query r: its weights p of all pixels, then scale p (dp - sum p dp): both among the rows, the second as an operand too.
    void query(int32_t r) const {
        const int32_t groups = op.key_groups(), keys = op.others.pixels();
        for (int32_t k = keys; k < groups * kLanes; ++k) at(scores, k / kLanes, r)[k % kLanes] = -3.0e38f;
        F16 top = load(at(scores, 0, r));
        for (int32_t g = 1; g < groups; ++g) top = greater(top, load(at(scores, g, r)));
        const F16 reach = broadcast(-doublings * largest(top));
        F16 sum = zero(), along = zero();
        for (int32_t g = 0; g < groups; ++g) {
            const F16 p = softmax_weight(fma(load(at(scores, g, r)), broadcast(doublings), reach));
            store(at(scores, g, r), p);
            sum = add(sum, p);
            along = fma(p, load(at(slopes, g, r)), along);
        }
        const float inverse = 1.0f / sum_of(sum);
        const F16 mean = broadcast(sum_of(along) * inverse);
        for (int32_t g = 0; g < (groups + 1) / 2 * 2; ++g) {
            const F16 p = g < groups ? mul(load(at(scores, g, r)), broadcast(inverse)) : zero();
            const F16 d = g < groups ? mul(mul(p, broadcast(op.scale)), sub(load(at(slopes, g, r)), mean)) : zero();
            const int64_t place = (int64_t(g / 2) * kBlock + r % kBlock) * kBlock + g % 2 * kLanes;
            store_bf16(rows[0] + place, p);
            store_bf16(rows[1] + place, d);
            put_operand(weighted + (int64_t(g / 2) * kTogether + r) * kPixelBytesBf16, g % 2 * kLanes, d);
        }
    }

    // 32 queries, of which `count` are there, as K step `step` of the chunk's packed weights.
    void pack_rows(int32_t step, int32_t count) const {
        for (int which = 0; which < 2; ++which)
            for (int32_t block = 0; block < op.key_steps(); ++block) {
                uint16_t* from = rows[which] + int64_t(block) * kBlock * kBlock;
                __builtin_memset(from + count * kBlock, 0, size_t(2 * kBlock * (kBlock - count)));
                for (int32_t half = 0; half < 2 && 2 * block + half < op.key_groups(); ++half)
                    pack_values(from + half * kLanes, packed[which] + (int64_t(2 * block + half) * (a.chunk / kBlock) + step) * kStepBytes);
            }
    }

    // Queries first .. first + count, at most kSome: their gradient, and their weights packed from K step `step` on.
    void queries(const uint16_t* map, const uint16_t* gradient, uint16_t* out, const uint8_t* head, int32_t channel, int32_t begin,
                 int32_t count, int32_t step) const {
        const int32_t filled = (count + kRowTile - 1) / kRowTile * kRowTile;
        const int64_t key_bytes = int64_t(op.steps()) * kStepBytes;
        read_rows(op, op.source, map, channel, begin, count, filled, first);
        read_rows(op, a.gradient, gradient, channel, begin, count, filled, second);
        rows_times(first, filled, head, key_bytes, op.key_groups(), op.width, scores);
        rows_times(second, filled, head + op.keys_bytes(), key_bytes, op.key_groups(), op.width, slopes);
        for (int32_t r = 0; r < count; ++r) {
            query(r);
            if (r % kBlock == kBlock - 1 || r + 1 == count) pack_rows(step + r / kBlock, r % kBlock + 1);
        }
        rows_times(weighted, filled, head + a.keys_by_pixels(), int64_t(op.key_steps()) * kStepBytes, op.groups(),
                   op.others.pixels(), result);
        for (int32_t r = 0; r < count; ++r)
            for (int32_t g = 0; g < op.groups(); ++g)
                write_channels(out, op.output.pixels(), begin + r, channel + g * kLanes, op.width - g * kLanes,
                               load(at(result, g, r)));
    }

    // The channels of the chunk's queries as rows, times packed weights: a part of the gradient of keys or values.
    void part(const Map& of, const uint16_t* values, int32_t channel, int32_t begin, int32_t count, const uint8_t* weights,
              float* to) const {
        for (int32_t top = 0; top < op.width; top += kTogether, to += a.block_floats()) {
            const int32_t left = op.width - top, some = left < kTogether ? left : kTogether;
            const int32_t filled = (some + kRowTile - 1) / kRowTile * kRowTile;
            for (int32_t step = 0; step * kBlock < count; ++step)
                for (int32_t r = 0; r < filled; ++r) {
                    const int32_t c = channel + top + r;
                    const uint16_t* from = values + (int64_t(c / kBlock) * of.pixels() + begin + step * kBlock) * kBlock + c % kBlock;
                    uint16_t line[kBlock] = {};
                    for (int32_t i = 0; r < some && i < kBlock && step * kBlock + i < count; ++i) line[i] = from[i * kBlock];
                    uint8_t* row = across + (int64_t(step) * kTogether + r) * kPixelBytesBf16;
                    for (int32_t lane = 0; lane < kBlock; lane += kLanes) put_operand(row, lane, load_bf16(line + lane));
                }
            rows_times(across, filled, weights, int64_t(a.chunk / kBlock) * kStepBytes, op.key_groups(), count, to);
        }
    }
};

// Where a head's packed matrices lie.
DV_INLINE uint8_t* head_of(const AttentionGradient& a, const Work& w, int32_t image, int32_t head) {
    return w.scratch + (image - w.first) * w.scratch_stride + head * a.head_bytes();
}

// A unit is 32 pixels of a head of a sample.
void pack_gradient(const AttentionGradient& a, const Work& w) {
    const Attention& op = a.of;
    const int64_t a_head = op.key_steps();
    const Range mine = units_of(w, int64_t(w.last - w.first) * op.heads * a_head);
    for (int64_t unit = mine.first; unit < mine.last; ++unit) {
        const int32_t image = w.first + int32_t(unit / a_head / op.heads), head = int32_t(unit / a_head % op.heads);
        const int32_t channel = head * op.width, which = int32_t(unit % a_head);
        const uint16_t* map = reinterpret_cast<const uint16_t*>(w.at(image, op.source));
        uint8_t* to = head_of(a, w, image, head);
        pack_some(op, map, op.keys + channel, which, to, to + a.keys_by_pixels());
        pack_some(op, map, op.values + channel, which, to + op.keys_bytes(), nullptr);
    }
}

// A unit is a chunk of a head of a sample.
void gradient_of_queries(const AttentionGradient& a, const Work& w) {
    const Attention& op = a.of;
    const int64_t a_head = a.chunks;
    const Range mine = units_of(w, int64_t(w.last - w.first) * op.heads * a_head);
    const GradientChunk some(a, w.private_scratch);
    for (int64_t unit = mine.first; unit < mine.last; ++unit) {
        const int32_t image = w.first + int32_t(unit / a_head / op.heads), head = int32_t(unit / a_head % op.heads);
        const int32_t chunk = int32_t(unit % a_head), channel = head * op.width, begin = chunk * a.chunk;
        const int32_t left = op.source.pixels() - begin, count = left < a.chunk ? left : a.chunk;
        const uint16_t* map = reinterpret_cast<const uint16_t*>(w.at(image, op.source));
        const uint16_t* gradient = reinterpret_cast<const uint16_t*>(w.at(image, a.gradient));
        uint16_t* out = reinterpret_cast<uint16_t*>(w.at(image, op.output));
        uint8_t* packed = head_of(a, w, image, head);
        for (int32_t done = 0; done < count; done += GradientChunk::kSome) {
            const int32_t now = count - done < GradientChunk::kSome ? count - done : GradientChunk::kSome;
            some.queries(map, gradient, out, packed, channel, begin + done, now, done / kBlock);
        }
        float* part = reinterpret_cast<float*>(packed + a.parts()) + chunk * 2 * a.matrix_floats();
        some.part(op.source, map, channel, begin, count, some.packed[1], part);
        some.part(a.gradient, gradient, channel, begin, count, some.packed[0], part + a.matrix_floats());
    }
}

// The chunks' parts in order. A unit is 16 keys of a head of a sample.
void gradient_of_keys(const AttentionGradient& a, const Work& w) {
    const Attention& op = a.of;
    const int32_t pixels = op.others.pixels();
    const int64_t a_head = op.key_groups();
    const Range mine = units_of(w, int64_t(w.last - w.first) * op.heads * a_head);
    for (int64_t unit = mine.first; unit < mine.last; ++unit) {
        const int32_t image = w.first + int32_t(unit / a_head / op.heads), head = int32_t(unit / a_head % op.heads);
        const int32_t first = int32_t(unit % a_head) * kLanes, count = pixels - first < kLanes ? pixels - first : kLanes;
        uint16_t* out = reinterpret_cast<uint16_t*>(w.at(image, op.output));
        const float* parts = reinterpret_cast<const float*>(head_of(a, w, image, head) + a.parts());
        for (int32_t which = 0; which < 2; ++which, parts += a.matrix_floats())
            for (int32_t c = 0; c < op.width; ++c) {
                const float* at = parts + c / kTogether * a.block_floats()
                                  + (unit % a_head * kTogether + c % kTogether) * kLanes;
                F16 sum = load(at);
                for (int32_t chunk = 1; chunk < a.chunks; ++chunk) sum = add(sum, load(at + chunk * 2 * a.matrix_floats()));
                uint16_t values[kLanes];
                store_bf16(values, sum);
                const int32_t channel = (which == 0 ? op.keys : op.values) + head * op.width + c;
                uint16_t* to = out + (int64_t(channel / kBlock) * pixels + first) * kBlock + channel % kBlock;
                for (int32_t i = 0; i < count; ++i) to[i * kBlock] = values[i];
            }
        if (head == 0 && first == 0) clear_padding(out, op.output);
    }
}

// Three passes: packed, then the gradient of the queries and what they add to the others, then that of keys and values.
void attention_gradient(const AttentionGradient& a, int32_t pass, const Work& w) {
    if (pass == 0) return pack_gradient(a, w);
    pass == 1 ? gradient_of_queries(a, w) : gradient_of_keys(a, w);
}

}  // namespace

#endif  // DIFFUSEVAE_NATIVE_GRADIENTS_H
