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
        for (int32_t y = first; y < last; ++y)
            for (int32_t x = 0; x < width; ++x)
                take(int64_t(y) * width + x, int64_t(y / k) * op.gradient.width + x / k);
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

// Rows of one head that are worked on together, against all of its pixels: queries in pass 1, keys in pass 2.
struct GradientRows {
    const AttentionGradient& a;
    const Attention& op;
    uint8_t *first, *second, *weights, *weighted;
    float *scores, *slopes, *result;
    int32_t rows = 0;               // filled up to whole tiles of rows
    float doublings;                // e^x = 2^(x log2 e)

    GradientRows(const AttentionGradient& gradient, float* room) : a(gradient), op(gradient.of) {
        uint8_t* at = reinterpret_cast<uint8_t*>(room);
        const GradientRoom r(a, kTogether, kPixelBytesBf16);
        first = at + r.first, second = at + r.second, weights = at + r.weights, weighted = at + r.weighted;
        scores = reinterpret_cast<float*>(at + r.scores), slopes = reinterpret_cast<float*>(at + r.slopes);
        result = reinterpret_cast<float*>(at + r.result);
        doublings = op.scale * 1.44269504f;
    }

    void read(const Map& map, const uint16_t* values, int32_t channel, int32_t from, int32_t count, uint8_t* operand) {
        rows = (count + kRowTile - 1) / kRowTile * kRowTile;
        read_rows(op, map, values, channel, from, count, rows, operand);
    }

    void times_pixels(const uint8_t* operand, const uint8_t* packed, float* to) const {
        rows_times(operand, rows, packed, int64_t(op.steps()) * kStepBytes, op.key_groups(), op.width, to);
    }

    // The product with a matrix over pixels, to a map's channels from `channel` on.
    void write(const uint8_t* operand, const uint8_t* packed, uint16_t* map, int32_t channel, int32_t from, int32_t count) const {
        rows_times(operand, rows, packed, int64_t(op.key_steps()) * kStepBytes, op.groups(), op.others.pixels(), result);
        for (int32_t r = 0; r < count; ++r)
            for (int32_t g = 0; g < op.groups(); ++g)
                write_channels(map, op.output.pixels(), from + r, channel + g * kLanes, op.width - g * kLanes,
                               load(result + (int64_t(g) * kTogether + r) * kLanes));
    }

    DV_INLINE static float* at(float* values, int32_t group, int32_t r) {
        return values + (int64_t(group) * kTogether + r) * kLanes;
    }

    DV_INLINE static void put_weight(uint8_t* operand, int32_t group, int32_t r, F16 v) {
        put_operand(operand + (int64_t(group / 2) * kTogether + r) * kPixelBytesBf16, group % 2 * kLanes, v);
    }

    // Of query r: its weights p, then scale p (dp - sum p dp) as an operand. What the second pass needs goes to `line`.
    void query(int32_t r, float* line, int64_t apart) const {
        const int32_t groups = op.key_groups(), keys = op.others.pixels();
        for (int32_t k = keys; k < groups * kLanes; ++k) at(scores, k / kLanes, r)[k % kLanes] = -3.0e38f;
        F16 top = load(at(scores, 0, r));
        for (int32_t g = 1; g < groups; ++g) top = greater(top, load(at(scores, g, r)));
        const float most = largest(top);
        const F16 reach = broadcast(-doublings * most);
        F16 sum = zero(), along = zero();
        for (int32_t g = 0; g < groups; ++g) {
            const F16 p = softmax_weight(fma(load(at(scores, g, r)), broadcast(doublings), reach));
            store(at(scores, g, r), p);
            sum = add(sum, p);
            along = fma(p, load(at(slopes, g, r)), along);
        }
        const float inverse = 1.0f / sum_of(sum), mean = sum_of(along) * inverse;
        for (int32_t g = 0; g < (groups + 1) / 2 * 2; ++g) {
            F16 v = zero();
            if (g < groups)
                v = mul(mul(load(at(scores, g, r)), broadcast(inverse * op.scale)), sub(load(at(slopes, g, r)), broadcast(mean)));
            put_weight(weighted, g, r, v);
        }
        line[0] = most, line[apart] = inverse, line[2 * apart] = mean;
    }

    // Of key r: every query's weight of it, and the same of its gradient.
    void key(int32_t r, const float* lines, int64_t apart) const {
        const int32_t groups = op.key_groups();
        for (int32_t g = 0; g < (groups + 1) / 2 * 2; ++g) {
            F16 p = zero(), d = zero();
            if (g < groups) {
                const float* line = lines + g * kLanes;
                const F16 off = sub(load(at(scores, g, r)), load(line));
                p = mul(softmax_weight(mul(off, broadcast(doublings))), load(line + apart));
                d = mul(mul(p, broadcast(op.scale)), sub(load(at(slopes, g, r)), load(line + 2 * apart)));
            }
            put_weight(weights, g, r, p);
            put_weight(weighted, g, r, d);
        }
    }
};

// A unit is 32 pixels of a head of a sample.
void pack_gradient(const AttentionGradient& a, const Work& w) {
    const Attention& op = a.of;
    const int64_t a_head = op.key_steps();
    const Range mine = units_of(w, int64_t(w.last - w.first) * op.heads * a_head);
    for (int64_t unit = mine.first; unit < mine.last; ++unit) {
        const int32_t image = w.first + int32_t(unit / a_head / op.heads), head = int32_t(unit / a_head % op.heads);
        const int32_t channel = head * op.width, which = int32_t(unit % a_head);
        const uint16_t* map = reinterpret_cast<const uint16_t*>(w.at(image, op.source));
        const uint16_t* gradient = reinterpret_cast<const uint16_t*>(w.at(image, a.gradient));
        uint8_t* to = w.scratch + (image - w.first) * w.scratch_stride + head * a.head_bytes();
        const auto put = [&](const uint16_t* from, int32_t first, int32_t matrix, bool by_pixels) {
            pack_some(op, from, first, which, to + a.by_channels(matrix), by_pixels ? to + a.by_pixels(matrix) : nullptr);
        };
        put(map, channel, AttentionGradient::kQueriesPacked, true);
        put(map, op.keys + channel, AttentionGradient::kKeysPacked, true);
        put(gradient, channel, AttentionGradient::kGradientPacked, true);
        put(map, op.values + channel, AttentionGradient::kValuesPacked, false);
    }
}

// Pass 0 packs, pass 1 makes the gradient of the queries, pass 2 those of keys and values. A unit is kQueries rows of a head.
void attention_gradient(const AttentionGradient& a, int32_t pass, const Work& w) {
    if (pass == 0) return pack_gradient(a, w);
    const Attention& op = a.of;
    const int32_t pixels = op.source.pixels();
    const int64_t a_head = (pixels + kQueries - 1) / kQueries, apart = a.padded_pixels();
    const Range mine = units_of(w, int64_t(w.last - w.first) * op.heads * a_head);
    GradientRows some(a, w.private_scratch);
    for (int64_t unit = mine.first; unit < mine.last;) {
        const int64_t which = unit / a_head, begin = unit % a_head, left = a_head - begin;
        int64_t take = mine.last - unit < left ? mine.last - unit : left;
        take = take < kTogether / kQueries ? take : kTogether / kQueries;
        const int32_t image = w.first + int32_t(which / op.heads), head = int32_t(which % op.heads), channel = head * op.width;
        const uint16_t* map = reinterpret_cast<const uint16_t*>(w.at(image, op.source));
        const uint16_t* gradient = reinterpret_cast<const uint16_t*>(w.at(image, a.gradient));
        uint16_t* out = reinterpret_cast<uint16_t*>(w.at(image, op.output));
        uint8_t* packed = w.scratch + (image - w.first) * w.scratch_stride + head * a.head_bytes();
        float* lines = reinterpret_cast<float*>(packed + a.lines());
        const int32_t first = int32_t(begin) * kQueries, end = int32_t(begin + take) * kQueries;
        const int32_t count = (end < pixels ? end : pixels) - first;
        const auto by_channels = [&](int32_t matrix) { return packed + a.by_channels(matrix); };
        const auto by_pixels = [&](int32_t matrix) { return packed + a.by_pixels(matrix); };
        if (pass == 1) {
            some.read(op.source, map, channel, first, count, some.first);
            some.read(a.gradient, gradient, channel, first, count, some.second);
            some.times_pixels(some.first, by_channels(AttentionGradient::kKeysPacked), some.scores);
            some.times_pixels(some.second, by_channels(AttentionGradient::kValuesPacked), some.slopes);
            for (int32_t r = 0; r < count; ++r) some.query(r, lines + first + r, apart);
            for (int64_t p = pixels; end >= pixels && p < apart; ++p) lines[p] = lines[apart + p] = lines[2 * apart + p] = 0.0f;
            some.write(some.weighted, by_pixels(AttentionGradient::kKeysPacked), out, channel, first, count);
        } else {
            some.read(op.source, map, op.keys + channel, first, count, some.first);
            some.read(op.source, map, op.values + channel, first, count, some.second);
            some.times_pixels(some.first, by_channels(AttentionGradient::kQueriesPacked), some.scores);
            some.times_pixels(some.second, by_channels(AttentionGradient::kGradientPacked), some.slopes);
            for (int32_t r = 0; r < count; ++r) some.key(r, lines, apart);
            some.write(some.weighted, by_pixels(AttentionGradient::kQueriesPacked), out, op.keys + channel, first, count);
            some.write(some.weights, by_pixels(AttentionGradient::kGradientPacked), out, op.values + channel, first, count);
            if (head == 0 && begin == 0) clear_padding(out, op.output);
        }
        unit += take;
    }
}

}  // namespace

#endif  // DIFFUSEVAE_NATIVE_GRADIENTS_H
