// What the operations of gradients should compute: one scalar loop each, in double.
#ifndef DIFFUSEVAE_TESTS_NATIVE_GRADIENT_REFERENCE_H
#define DIFFUSEVAE_TESTS_NATIVE_GRADIENT_REFERENCE_H

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

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

}  // namespace reference

#endif  // DIFFUSEVAE_TESTS_NATIVE_GRADIENT_REFERENCE_H
