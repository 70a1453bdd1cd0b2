// What the operations of gradients should compute: one scalar loop each, in double.
#ifndef DIFFUSEVAE_TESTS_NATIVE_GRADIENT_REFERENCE_H
#define DIFFUSEVAE_TESTS_NATIVE_GRADIENT_REFERENCE_H

#include "native_reference.h"

namespace reference {

using Numbers = std::vector<double>;

inline double silu_slope(double z) {
    const double s = 1.0 / (1.0 + std::exp(-z));
    return s + z * s * (1.0 - s);
}

// Of one group of a norm: x and the gradient behind the activation, [channel][pixel]; scale and shift a channel.
inline Numbers norm_slope(const Numbers& x, const Numbers& g, const Numbers& scale, const Numbers& shift, double epsilon, bool silu) {
    const size_t count = x.size(), pixels = count / scale.size();
    double mean = 0.0, variance = 0.0, along = 0.0, sum = 0.0;
    for (const double v : x) mean += v / double(count);
    for (const double v : x) variance += (v - mean) * (v - mean) / double(count);
    const double deviation = std::sqrt(variance + epsilon);
    Numbers unit(count), slope(count);
    for (size_t i = 0; i < count; ++i) {
        const size_t c = i / pixels;
        unit[i] = (x[i] - mean) / deviation;
        slope[i] = scale[c] * g[i] * (silu ? silu_slope(scale[c] * unit[i] + shift[c]) : 1.0);
        sum += slope[i] / double(count);
        along += slope[i] * unit[i] / double(count);
    }
    for (size_t i = 0; i < count; ++i) slope[i] = (slope[i] - sum - unit[i] * along) / deviation;
    return slope;
}

// Attention of `queries` queries to `keys` keys, rows of `width`: the weights, and the gradients at q, k and v for that of the answer.
struct Attended {
    Numbers weights, seen, q, k, v;

    Attended(const Numbers& query, const Numbers& key, const Numbers& value, size_t width, double scale) {
        const size_t queries = query.size() / width, keys = key.size() / width;
        weights.resize(queries * keys);
        seen.assign(query.size(), 0.0);
        for (size_t i = 0; i < queries; ++i) {
            double* p = weights.data() + i * keys;
            for (size_t j = 0; j < keys; ++j) {
                for (size_t c = 0; c < width; ++c) p[j] += query[i * width + c] * key[j * width + c];
                p[j] *= scale;
            }
            const double most = *std::max_element(p, p + keys);
            double sum = 0.0;
            for (size_t j = 0; j < keys; ++j) sum += p[j] = std::exp(p[j] - most);
            for (size_t j = 0; j < keys; ++j) {
                p[j] /= sum;
                for (size_t c = 0; c < width; ++c) seen[i * width + c] += p[j] * value[j * width + c];
            }
        }
    }

    void back(const Numbers& query, const Numbers& key, const Numbers& value, const Numbers& g, size_t width, double scale) {
        const size_t queries = query.size() / width, keys = key.size() / width;
        q.assign(query.size(), 0.0), k.assign(key.size(), 0.0), v.assign(value.size(), 0.0);
        for (size_t i = 0; i < queries; ++i) {
            Numbers off(keys, 0.0);
            double along = 0.0;
            for (size_t j = 0; j < keys; ++j) {
                for (size_t c = 0; c < width; ++c) off[j] += g[i * width + c] * value[j * width + c];
                along += weights[i * keys + j] * off[j];
            }
            for (size_t j = 0; j < keys; ++j) {
                const double p = weights[i * keys + j], slope = scale * p * (off[j] - along);
                for (size_t c = 0; c < width; ++c) {
                    q[i * width + c] += slope * key[j * width + c];
                    k[j * width + c] += slope * query[i * width + c];
                    v[j * width + c] += p * g[i * width + c];
                }
            }
        }
    }
};

// Logits to the gradient of the label's log-probability at them; the entropy.
inline double softmax_slope(Numbers& logits, size_t label) {
    const double most = *std::max_element(logits.begin(), logits.end());
    double sum = 0.0, entropy = 0.0;
    for (const double v : logits) sum += std::exp(v - most);
    for (double& v : logits) {
        const double log_p = v - most - std::log(sum);
        entropy -= std::exp(log_p) * log_p;
        v = -std::exp(log_p);
    }
    logits[label] += 1.0;
    return entropy;
}

// All operations.
class WholeMachine final : public Machine {
public:
    using Machine::Machine;

private:
    void gradient(const dv_native_op& op) override {
        if (op.kind == DV_NATIVE_NORM_GRADIENT) return norm_gradient(op);
        if (op.kind == DV_NATIVE_ATTENTION_GRADIENT) return attention_gradient(op);
        classify(op);
    }

    void norm_gradient(const dv_native_op& op) {
        const Array &x = tensor(op.sources[0]), &g = tensor(op.sources[1]);
        Array& out = made(op.output, batch_);
        const int64_t width = x.channels / op.norm_groups, k = op.factor;
        for (int64_t n = 0; n < batch_; ++n)
            for (int64_t first = 0; first < x.channels; first += width) {
                Numbers seen, slopes, scale, shift, added;
                for (int64_t c = first; c < first + width; ++c) {
                    const double rise = op.scale_row < 0 ? 1.0 : 1.0 + row(n, op.scale_row + c);
                    scale.push_back(floats(op.norm_weight)[c] * rise);
                    shift.push_back(floats(op.norm_bias)[c] * rise + (op.scale_row < 0 ? 0.0 : row(n, op.scale_row + x.channels + c)));
                    for (int64_t i = 0; i < x.height * x.width; ++i) {
                        const int64_t v = i / x.width / k, u = i % x.width / k;
                        seen.push_back(x.at(n, c, 0, i));
                        slopes.push_back(g.at(n, c, v, u) / double(k * k));
                        added.push_back(op.residual < 0 ? 0.0 : tensor(op.residual).at(n, c, v, u) / double(k * k));
                    }
                }
                const Numbers made = norm_slope(seen, slopes, scale, shift, double(op.norm_epsilon), op.activation == DV_NATIVE_SILU);
                for (size_t i = 0; i < made.size(); ++i) out.at(n, first, 0, int64_t(i)) = bf16(float(made[i] + added[i]));
            }
    }

    // Rows of `width` channels of every pixel, from `channel` on.
    static Numbers rows_of(const Array& a, int64_t n, int64_t channel, int64_t width) {
        Numbers made;
        for (int64_t i = 0; i < a.height * a.width; ++i)
            for (int64_t c = channel; c < channel + width; ++c) made.push_back(a.at(n, c, 0, i));
        return made;
    }

    void attention_gradient(const dv_native_op& op) {
        const Array &in = tensor(op.sources[0]), &g = tensor(op.sources[1]);
        Array& out = made(op.output, batch_);
        const int64_t width = g.channels / op.heads;
        for (int64_t n = 0; n < batch_; ++n)
            for (int64_t channel = 0; channel < g.channels; channel += width) {
                const Numbers q = rows_of(in, n, channel, width), k = rows_of(in, n, g.channels + channel, width);
                const Numbers v = rows_of(in, n, 2 * g.channels + channel, width);
                Attended a(q, k, v, size_t(width), double(op.scale));
                a.back(q, k, v, rows_of(g, n, channel, width), size_t(width), double(op.scale));
                int64_t to = channel;
                for (const Numbers* part : {&a.q, &a.k, &a.v}) {
                    for (size_t i = 0; i < part->size(); ++i)
                        out.at(n, to + int64_t(i) % width, 0, int64_t(i) / width) = bf16(float((*part)[i]));
                    to += g.channels;
                }
            }
    }

    void classify(const dv_native_op& op) {
        const Array& in = tensor(op.sources[0]);
        Array& out = made(op.output, batch_);
        const int64_t pixels = in.height * in.width, features = in.channels / (op.heads > 0 ? 3 : 1), classes = op.factor;
        for (int64_t n = 0; n < batch_; ++n) {
            Array tokens(1, in.channels, 1, pixels + 1);  // the mean first
            for (int64_t c = 0; c < in.channels; ++c)
                for (int64_t i = 0; i < pixels; ++i) {
                    tokens.at(0, c, 0, 0) += in.at(n, c, 0, i) / double(pixels);
                    tokens.at(0, c, 0, i + 1) = in.at(n, c, 0, i);
                }
            Numbers taken = rows_of(tokens, 0, 0, features);
            taken.resize(size_t(features));
            std::vector<Attended> heads;
            const int64_t width = op.heads > 0 ? features / op.heads : features;
            Numbers q, k, v;
            const auto read = [&](int64_t channel) {
                q = rows_of(tokens, 0, channel, width), k = rows_of(tokens, 0, features + channel, width);
                v = rows_of(tokens, 0, 2 * features + channel, width);
                q.resize(size_t(width));
            };
            for (int64_t t = 0; op.heads > 0 && t <= pixels; ++t)
                for (int64_t c = 0; c < in.channels; ++c) tokens.at(0, c, 0, t) += floats(op.places)[t * in.channels + c];
            for (int64_t channel = 0; op.heads > 0 && channel < features; channel += width) {
                read(channel);
                heads.emplace_back(q, k, v, size_t(width), double(op.scale));
                std::copy(heads.back().seen.begin(), heads.back().seen.end(), taken.begin() + channel);
            }
            const auto weight = [&](int64_t o, int64_t c) { return double(floats(op.weights)[(o / 16 * features + c) * 16 + o % 16]); };
            Numbers logits, slopes(size_t(features), 0.0);
            for (int64_t o = 0; o < classes; ++o) {
                logits.push_back(floats(op.bias)[o]);
                for (int64_t c = 0; c < features; ++c) logits.back() += weight(o, c) * taken[size_t(c)];
            }
            ports_[size_t(op.output_port)].push_back(float(softmax_slope(logits, size_t(inputs_[size_t(op.labels)][size_t(n)]))));
            for (int64_t o = 0; o < classes; ++o)
                for (int64_t c = 0; c < features; ++c) slopes[size_t(c)] += weight(o, c) * logits[size_t(o)];
            Array back(1, in.channels, 1, pixels + 1);
            for (int64_t channel = 0; op.heads > 0 && channel < features; channel += width) {
                read(channel);
                Attended& a = heads[size_t(channel / width)];
                a.back(q, k, v, Numbers(slopes.begin() + channel, slopes.begin() + channel + width), size_t(width), double(op.scale));
                for (int64_t c = 0; c < width; ++c) {
                    back.at(0, channel + c, 0, 0) = a.q[size_t(c)];
                    for (int64_t t = 0; t <= pixels; ++t) {
                        back.at(0, features + channel + c, 0, t) = a.k[size_t(t * width + c)];
                        back.at(0, 2 * features + channel + c, 0, t) = a.v[size_t(t * width + c)];
                    }
                }
            }
            for (int64_t c = 0; c < in.channels; ++c)
                for (int64_t i = 0; i < pixels; ++i) {
                    const double own = op.heads > 0 ? back.at(0, c, 0, 0) : slopes[size_t(c)];
                    out.at(n, c, 0, i) = bf16(float(back.at(0, c, 0, i + 1) + own / double(pixels)));
                }
        }
    }
};

}  // namespace reference

#endif  // DIFFUSEVAE_TESTS_NATIVE_GRADIENT_REFERENCE_H
