// The end of a classifier and the beginning of its gradient: a pool, a matrix, the softmax, and back. float32 throughout, a sample
// in one thread and one order.
#ifndef DIFFUSEVAE_NATIVE_CLASSIFY_H
#define DIFFUSEVAE_NATIVE_CLASSIFY_H

#include "epilogue.h"
#include "target.h"
#include "vectors.h"

namespace {

using namespace diffusevae::native;

DV_INLINE float dot(const float* a, const float* b, int32_t count) {
    F16 sum = zero();
    for (int32_t i = 0; i < count; i += kLanes) sum = fma(load_some(a + i, count - i), load_some(b + i, count - i), sum);
    return sum_of(sum);
}

// to += factor from
DV_INLINE void add_scaled(float* to, float factor, const float* from, int32_t count) {
    for (int32_t i = 0; i < count; ++i) to[i] += factor * from[i];
}

// values[0 .. count) -> e^(value - the largest); returns their sum. What lies behind, up to a multiple of 16, becomes 0.
inline float exponentials(float* values, int32_t count) {
    float most = values[0];
    for (int32_t i = 1; i < count; ++i) most = values[i] > most ? values[i] : most;
    F16 sum = zero();
    for (int32_t i = 0; i < count; i += kLanes) {
        store(values + i, exponential(sub(load(values + i), broadcast(most))));
        for (int32_t lane = count - i; lane < kLanes; ++lane) values[i + lane] = 0.0f;
        sum = add(sum, load(values + i));
    }
    return sum_of(sum);
}

// One sample, whose numbers lie in the thread's private floats.
struct Classified {
    const Classify& op;
    float *mean, *features, *slopes, *logits, *sums, *tokens, *weights;
    int32_t channels, pixels;

    Classified(const Classify& of, float* room) : op(of), channels(of.source.channels), pixels(of.source.pixels()) {
        const ClassifyRoom r(op);
        mean = room + r.mean, features = room + r.features, slopes = room + r.slopes, logits = room + r.logits;
        sums = room + r.sums, tokens = room + r.tokens, weights = room + r.weights;
    }

    void pool(const uint16_t* map) const {
        const F16 share = broadcast(1.0f / float(pixels));
        for (int32_t c = 0; c < op.padded(); c += kLanes) {
            const uint16_t* at = map + int64_t(c / kBlock) * pixels * kBlock + c % kBlock;
            F16 sum = zero();
            for (int32_t p = 0; p < pixels; ++p) sum = add(sum, load_bf16(at + int64_t(p) * kBlock));
            store(mean + c, mul(sum, share));
        }
    }

    // ---- what the token of the mean sees ------------------------------------------------------------------------------

    float* token(int64_t number) const { return tokens + number * op.padded(); }
    float* weights_of(int32_t head) const { return weights + head * op.padded_tokens(); }

    // The mean, then the pixels, with their places.
    void make_tokens(const uint16_t* map) const {
        for (int64_t t = 0; t < op.tokens(); ++t) {
            float* to = token(t);
            const uint16_t* at = map + (t - 1) * kBlock;
            for (int32_t c = 0; c < op.padded(); c += kLanes)
                store(to + c, t == 0 ? load(mean + c) : load_bf16(at + int64_t(c / kBlock) * pixels * kBlock + c % kBlock));
            add_scaled(to, 1.0f, op.places + t * channels, channels);
        }
    }

    void look() const {
        const int32_t width = op.features / op.heads, count = int32_t(op.tokens());
        for (int32_t c = 0; c < op.features; ++c) features[c] = 0.0f;
        for (int32_t h = 0, at = 0; h < op.heads; ++h, at += width) {
            float* p = weights_of(h);
            for (int32_t t = 0; t < count; ++t) p[t] = op.scale * dot(token(0) + at, token(t) + op.features + at, width);
            const float inverse = 1.0f / exponentials(p, count);
            for (int32_t t = 0; t < count; ++t) {
                p[t] *= inverse;
                add_scaled(features + at, p[t], token(t) + 2 * op.features + at, width);
            }
        }
    }

    // The gradient at a pixel's [q | k | v] is its own part and its share of the mean's. `mean` holds the mean's q then.
    void look_back(uint16_t* map) const {
        const int32_t width = op.features / op.heads, count = int32_t(op.tokens());
        const float share = 1.0f / float(pixels);
        float* off = weights_of(op.heads);
        for (int32_t c = 0; c < op.padded(); ++c) mean[c] = 0.0f;
        for (int32_t h = 0, at = 0; h < op.heads; ++h, at += width) {
            float* p = weights_of(h);
            float along = 0.0f;
            for (int32_t t = 0; t < count; ++t) {
                off[t] = dot(slopes + at, token(t) + 2 * op.features + at, width);
                along += p[t] * off[t];
            }
            for (int32_t t = 0; t < count; ++t) {
                off[t] = op.scale * p[t] * (off[t] - along);
                add_scaled(mean + at, off[t] * share, token(t) + op.features + at, width);
            }
            // Keys and values have done their work: each token takes the gradients of its own.
            for (int32_t t = 1; t < count; ++t) {
                const float key = off[t] + share * off[0], value = p[t] + share * p[0];
                float* to = token(t) + op.features + at;
                for (int32_t c = 0; c < width; ++c) to[c] = key * token(0)[at + c];
                to += op.features;
                for (int32_t c = 0; c < width; ++c) to[c] = value * slopes[at + c];
            }
        }
        for (int32_t p = 0; p < pixels; ++p) {
            float* row = token(p + 1);
            for (int32_t c = 0; c < op.features; ++c) row[c] = mean[c];
            put(map, p, row);
        }
    }

    // ---- logits and back ----------------------------------------------------------------------------------------------

    // The entropy; `logits` become the gradient of the label's log-probability at them.
    float softmax(int64_t label) const {
        for (int32_t g = 0; g < op.groups(); ++g) {
            const float* panel = op.weights + int64_t(g) * op.features * kLanes;
            F16 sum = load(op.bias + int64_t(g) * kLanes);
            for (int32_t c = 0; c < op.features; ++c) sum = fma(broadcast(features[c]), load(panel + int64_t(c) * kLanes), sum);
            store(logits + int64_t(g) * kLanes, sum);
        }
        float most = logits[0];
        for (int32_t k = 1; k < op.classes; ++k) most = logits[k] > most ? logits[k] : most;
        // sum e^l (l - log sum e^l) of l less the largest, by the logits as they are before and after.
        double along = 0.0, sum = 0.0;
        for (int32_t g = 0; g < op.groups(); ++g) {
            float* at = logits + int64_t(g) * kLanes;
            const F16 off = sub(load(at), broadcast(most)), e = exponential(off);
            float each[kLanes], product[kLanes];
            store(each, e);
            store(product, mul(e, off));
            for (int32_t i = 0; i < kLanes; ++i) {
                const bool real = g * kLanes + i < op.classes;
                at[i] = real ? each[i] : 0.0f;
                sum += real ? double(each[i]) : 0.0;
                along += real ? double(product[i]) : 0.0;
            }
        }
        const float inverse = float(-1.0 / sum);
        for (int32_t k = 0; k < op.groups() * kLanes; ++k) logits[k] *= inverse;
        logits[label] += 1.0f;
        return float(__builtin_log(sum) - along / sum);
    }

    void slopes_of_features() const {
        for (int32_t c = 0; c < op.features; ++c) store(sums + int64_t(c) * kLanes, zero());
        for (int32_t g = 0; g < op.groups(); ++g) {
            const float* panel = op.weights + int64_t(g) * op.features * kLanes;
            const F16 slope = load(logits + int64_t(g) * kLanes);
            for (int64_t c = 0; c < op.features; ++c)
                store(sums + c * kLanes, fma(load(panel + c * kLanes), slope, load(sums + c * kLanes)));
        }
        for (int64_t c = 0; c < op.features; ++c) slopes[c] = sum_of(load(sums + c * kLanes));
    }

    // A pixel's channels; zeros behind the last.
    void put(uint16_t* map, int32_t pixel, float* row) const {
        for (int32_t c = channels; c < op.padded(); ++c) row[c] = 0.0f;
        for (int32_t c = 0; c < op.padded(); c += kLanes)
            store_bf16(map + (int64_t(c / kBlock) * pixels + pixel) * kBlock + c % kBlock, load(row + c));
    }
};

// A unit is a sample.
void classify(const Classify& op, const Work& w) {
    const Range mine = units_of(w, w.last - w.first);
    const Classified one(op, w.private_scratch);
    for (int64_t unit = mine.first; unit < mine.last; ++unit) {
        const int32_t image = w.first + int32_t(unit);
        const uint16_t* map = reinterpret_cast<const uint16_t*>(w.at(image, op.source));
        uint16_t* out = reinterpret_cast<uint16_t*>(w.at(image, op.output));
        one.pool(map);
        if (op.heads > 0) {
            one.make_tokens(map);
            one.look();
        } else {
            for (int32_t c = 0; c < op.features; ++c) one.features[c] = one.mean[c];
        }
        const int64_t label = static_cast<const int64_t*>(w.ports[op.labels])[w.sample + image];
        static_cast<float*>(w.ports[op.entropy])[w.sample + image] = one.softmax(label);
        one.slopes_of_features();
        if (op.heads > 0) {
            one.look_back(out);
            continue;
        }
        for (int32_t c = 0; c < op.features; ++c) one.mean[c] = one.slopes[c] / float(one.pixels);
        for (int32_t p = 0; p < one.pixels; ++p) one.put(out, p, one.mean);
    }
}

}  // namespace

#endif  // DIFFUSEVAE_NATIVE_CLASSIFY_H
