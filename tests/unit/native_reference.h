// What a native program should compute: every op again, one scalar loop each, in double, from the packed weights as documented.
#ifndef DIFFUSEVAE_TESTS_NATIVE_REFERENCE_H
#define DIFFUSEVAE_TESTS_NATIVE_REFERENCE_H

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "diffusevae/native.h"

namespace reference {

inline float bf16(float x) {
    uint32_t u;
    std::memcpy(&u, &x, 4);
    u = (u + 0x7FFFu + (u >> 16 & 1u)) & 0xFFFF0000u;
    std::memcpy(&x, &u, 4);
    return x;
}

inline double activate(int32_t kind, double x) {
    if (kind == DV_NATIVE_SILU) return x / (1.0 + std::exp(-x));
    if (kind == DV_NATIVE_RELU) return std::max(x, 0.0);
    if (kind == DV_NATIVE_GELU) return 0.5 * x * (1.0 + std::erf(x / std::sqrt(2.0)));
    if (kind == DV_NATIVE_SIGMOID) return 1.0 / (1.0 + std::exp(-x));
    if (kind == DV_NATIVE_SIGNED_SIGMOID) return 2.0 / (1.0 + std::exp(-x)) - 1.0;
    return x;
}

// [samples][channels][height][width], or rows with height = width = 1.
struct Array {
    int64_t samples = 0, channels = 0, height = 1, width = 1;
    std::vector<double> values;
    Array() = default;
    Array(int64_t n, int64_t c, int64_t h, int64_t w) : samples(n), channels(c), height(h), width(w), values(size_t(n * c * h * w)) {}
    double& at(int64_t n, int64_t c, int64_t y, int64_t x) { return values[size_t(((n * channels + c) * height + y) * width + x)]; }
    double at(int64_t n, int64_t c, int64_t y, int64_t x) const {
        return values[size_t(((n * channels + c) * height + y) * width + x)];
    }
};

class Machine {
public:
    Machine(const dv_native_program& program, const std::vector<std::vector<float>>& inputs, const std::vector<int64_t>& timesteps,
            int64_t batch, int32_t row_count)
        : p_(program), inputs_(inputs), timesteps_(timesteps), batch_(batch), row_count_(row_count),
          tensors_(size_t(program.tensors_count)), ports_(size_t(program.ports_count)) {}
    virtual ~Machine() = default;

    // Output ports, as floats in the caller's layout.
    std::vector<std::vector<float>> run() {
        for (int32_t i = 0; i < p_.ops_count; ++i) step(p_.ops[i]);
        return ports_;
    }

protected:
    // What native_gradient_reference.h has.
    virtual void gradient(const dv_native_op& op) = 0;

    void step(const dv_native_op& op) {
        switch (op.kind) {
        case DV_NATIVE_INPUT: return input(op);
        case DV_NATIVE_CONV: return conv(op);
        case DV_NATIVE_NORM: return norm(op);
        case DV_NATIVE_ATTENTION: return attention(op);
        case DV_NATIVE_POOL: return resize(op, true);
        case DV_NATIVE_UPSAMPLE: return resize(op, false);
        case DV_NATIVE_LOOKUP: return lookup(op);
        case DV_NATIVE_LINEAR: return linear(op);
        case DV_NATIVE_ADD: return add(op);
        case DV_NATIVE_EMBED: return embed(op);
        case DV_NATIVE_NEAREST: return nearest(op);
        default: return gradient(op);
        }
    }

    Array& made(int32_t tensor, int64_t samples) {
        const dv_native_tensor& t = p_.tensors[tensor];
        return tensors_[size_t(tensor)] = Array(samples, t.channels, t.height, t.width);
    }
    const Array& tensor(int32_t i) const { return tensors_[size_t(i)]; }
    const char* packed(int32_t blob) const { return static_cast<const char*>(p_.weights) + p_.blobs[blob].offset; }
    const float* floats(int32_t blob) const { return reinterpret_cast<const float*>(packed(blob)); }

    double row(int64_t n, int64_t i) const {
        for (int32_t p = 0; p < p_.ports_count; ++p)
            if (p_.ports[p].kind == DV_NATIVE_PORT_ROW)
                return inputs_[size_t(p)][size_t((row_count_ > 1 ? n : 0) * p_.ports[p].channels + i)];
        return 0.0;
    }

    void input(const dv_native_op& op) {
        if (p_.tensors[op.output].rows != DV_NATIVE_ROWS_NONE) {
            Array& out = made(op.output, batch_);
            for (size_t i = 0; i < out.values.size(); ++i) out.values[i] = inputs_[size_t(op.sources[0])][i];
            return;
        }
        if (p_.ports[op.sources[0]].kind == DV_NATIVE_PORT_TOKENS) {
            Array& out = made(op.output, batch_);
            for (int64_t n = 0; n < batch_; ++n)
                for (int64_t y = 0; y < out.height; ++y)
                    for (int64_t c = 0; c < out.channels; ++c)
                        out.at(n, c, y, 0) = bf16(inputs_[size_t(op.sources[0])][size_t((n * out.height + y) * out.channels + c)]);
            return;
        }
        Array& out = made(op.output, batch_);
        if (op.offset >= 0) {
            const int64_t all = p_.ports[op.sources[0]].channels, count = out.channels * out.height * out.width;
            for (int64_t n = 0; n < batch_; ++n)
                for (int64_t i = 0; i < count; ++i)
                    out.values[size_t(n * count + i)] = bf16(inputs_[size_t(op.sources[0])][size_t(n * all + op.offset + i)]);
            return;
        }
        int64_t channel = 0;
        const int64_t pad = op.kernel / 2, stride = op.stride;
        int32_t count = 0;
        while (count < DV_NATIVE_MAX_SOURCES && op.sources[count] >= 0) ++count;
        for (int32_t entry = 0; entry < count + op.factor - 1; ++entry) {
            const int32_t s = entry % count;
            for (int64_t c = 0; c < p_.ports[op.sources[s]].channels; ++c)
                for (int64_t kh = -pad; kh <= pad; ++kh)
                    for (int64_t kw = -pad; kw <= pad; ++kw, ++channel)
                        for (int64_t n = 0; n < batch_; ++n)
                            for (int64_t y = 0; y < out.height; ++y)
                                for (int64_t x = 0; x < out.width; ++x) {
                                    const int64_t u = y + kh, v = x + kw, all = p_.ports[op.sources[s]].channels;
                                    const bool inside = u >= 0 && v >= 0 && u < out.height && v < out.width;
                                    const int64_t i = (((n * all + c) * out.height + u) * out.width * stride + v) * stride;
                                    const float value = inside ? inputs_[size_t(op.sources[s])][size_t(i)] : 0.0f;
                                    out.at(n, channel, y, x) = entry < count ? bf16(value) : bf16(value - bf16(value));
                                }
        }
    }

    // The sources in padded blocks of 32 channels: what K runs over. `real` maps padded to real channels, -1 for padding.
    Array concatenated(const int32_t (&sources)[DV_NATIVE_MAX_SOURCES], std::vector<int64_t>& real) const {
        int64_t channels = 0;
        for (int32_t s = 0; s < DV_NATIVE_MAX_SOURCES && sources[s] >= 0; ++s) channels += tensor(sources[s]).channels;
        const Array& first = tensor(sources[0]);
        Array all(batch_, channels, first.height, first.width);
        int64_t at = 0;
        for (int32_t s = 0; s < DV_NATIVE_MAX_SOURCES && sources[s] >= 0; ++s) {
            const Array& from = tensor(sources[s]);
            for (int64_t n = 0; n < batch_; ++n)
                for (int64_t c = 0; c < from.channels; ++c)
                    for (int64_t i = 0; i < all.height * all.width; ++i)
                        all.at(n, at + c, 0, i) = from.at(n, c, 0, i);
            for (int64_t c = 0; c < (from.channels + 31) / 32 * 32; ++c) real.push_back(c < from.channels ? at + c : -1);
            at += from.channels;
        }
        return all;
    }

    void normalise(const dv_native_op& op, Array& a) const {
        const int64_t width = a.channels / op.norm_groups, pixels = a.height * a.width;
        for (int64_t n = 0; n < batch_; ++n)
            for (int64_t g = 0; g < op.norm_groups; ++g) {
                double sum = 0.0, square = 0.0;
                for (int64_t c = g * width; c < (g + 1) * width; ++c)
                    for (int64_t i = 0; i < pixels; ++i) sum += a.at(n, c, 0, i);
                const double mean = sum / double(width * pixels);
                for (int64_t c = g * width; c < (g + 1) * width; ++c)
                    for (int64_t i = 0; i < pixels; ++i) square += (a.at(n, c, 0, i) - mean) * (a.at(n, c, 0, i) - mean);
                const double inverse = 1.0 / std::sqrt(square / double(width * pixels) + double(op.norm_epsilon));
                for (int64_t c = g * width; c < (g + 1) * width; ++c)
                    for (int64_t i = 0; i < pixels; ++i) {
                        double v = (a.at(n, c, 0, i) - mean) * inverse * floats(op.norm_weight)[c] + floats(op.norm_bias)[c];
                        if (op.modulation >= 0)
                            v = v * (1.0 + tensor(op.modulation).at(n, c, 0, i)) + tensor(op.modulation).at(n, a.channels + c, 0, i);
                        if (op.scale_row >= 0) v = v * (1.0 + row(n, op.scale_row + c)) + row(n, op.scale_row + a.channels + c);
                        a.at(n, c, 0, i) = v;
                    }
            }
    }

    void norm(const dv_native_op& op) {
        std::vector<int64_t> real;
        Array a = concatenated(op.sources, real);
        normalise(op, a);
        for (double& v : a.values) v = bf16(float(activate(op.activation, v)));
        tensors_[size_t(op.output)] = a;
    }

    // The same of each pixel's channels.
    void normalise_pixels(const dv_native_op& op, Array& a) const {
        for (int64_t n = 0; n < batch_; ++n)
            for (int64_t i = 0; i < a.height * a.width; ++i) {
                double sum = 0.0, square = 0.0;
                for (int64_t c = 0; c < a.channels; ++c) sum += a.at(n, c, 0, i);
                const double mean = sum / double(a.channels);
                for (int64_t c = 0; c < a.channels; ++c) square += (a.at(n, c, 0, i) - mean) * (a.at(n, c, 0, i) - mean);
                const double inverse = 1.0 / std::sqrt(square / double(a.channels) + double(op.norm_epsilon));
                for (int64_t c = 0; c < a.channels; ++c)
                    a.at(n, c, 0, i) = (a.at(n, c, 0, i) - mean) * inverse * floats(op.norm_weight)[c] + floats(op.norm_bias)[c];
            }
    }

    // x gelu(y) of [x | y].
    Array gated(const Array& a) const {
        Array half(a.samples, a.channels / 2, a.height, a.width);
        for (int64_t n = 0; n < batch_; ++n)
            for (int64_t c = 0; c < half.channels; ++c)
                for (int64_t i = 0; i < a.height * a.width; ++i)
                    half.at(n, c, 0, i) = a.at(n, c, 0, i) * activate(DV_NATIVE_GELU, a.at(n, half.channels + c, 0, i));
        return half;
    }

    // Packed weight of padded channel `k` and tap, K steps of `width` channels, to output `o`.
    double weight(int32_t blob, bool int8, int64_t phase, int64_t n_blocks, int64_t blocks, int64_t taps,
                  int64_t o, int64_t k, int64_t tap) const {
        const int64_t width = int8 ? 64 : 32, lane = int8 ? 4 : 2, inside = k % width;
        const int64_t step = ((phase * n_blocks + o / 16) * blocks + k / width) * taps + tap;
        const int64_t element = (inside / lane * 16 + o % 16) * lane + inside % lane;
        const char* at = packed(blob) + step * 1024;
        if (int8) return double(reinterpret_cast<const int8_t*>(at)[element]);
        const uint32_t u = uint32_t(reinterpret_cast<const uint16_t*>(at)[element]) << 16;
        float f;
        std::memcpy(&f, &u, 4);
        return double(f);
    }

    void conv(const dv_native_op& op) {
        std::vector<int64_t> real, skip_real;
        Array in = concatenated(op.sources, real);
        if (op.norm_groups > 0) normalise(op, in);
        if (op.norm_layer == 1) normalise_pixels(op, in);
        if (op.activation == DV_NATIVE_GEGLU) in = gated(in), real.resize(real.size() / 2);
        const bool int8 = op.int8 == 1;
        for (double& v : in.values) {
            v = activate(op.activation, v);
            v = int8 ? std::min(255.0, std::max(0.0, std::nearbyint(v * double(op.inverse_scale) + op.zero_point))) : bf16(float(v));
        }
        const bool skips = op.skip_sources[0] >= 0;
        const Array skip = skips ? concatenated(op.skip_sources, skip_real) : Array();
        const bool port = op.output < 0;
        const int64_t outputs = port ? p_.ports[op.output_port].channels : p_.tensors[op.output].channels;
        const int64_t height = port ? p_.ports[op.output_port].height : p_.tensors[op.output].height;
        const int64_t width = port ? p_.ports[op.output_port].width : p_.tensors[op.output].width;
        Array out(batch_, outputs, height, width);
        const int64_t side = op.upsample ? 2 : op.kernel, taps = side * side, step = int8 ? 64 : 32;
        const int64_t n_blocks = port ? (outputs + 15) / 16 : (outputs + 31) / 32 * 2;
        const int64_t blocks = (int64_t(real.size()) + step - 1) / step;
        for (int64_t o = 0; o < outputs; ++o) {
            std::vector<double> weights;        // [phase][channel][tap]: unpacked once, not at every pixel
            for (int64_t phase = 0; phase < (op.upsample ? 4 : 1); ++phase)
                for (int64_t k = 0; k < int64_t(real.size()); ++k)
                    for (int64_t tap = 0; tap < taps; ++tap)
                        weights.push_back(weight(op.weights, int8, phase, n_blocks, blocks, taps, o, k, tap));
            std::vector<double> skip_weights;
            for (int64_t k = 0; k < int64_t(skip_real.size()); ++k)
                skip_weights.push_back(
                    weight(op.skip_weights, false, 0, n_blocks, int64_t(skip_real.size()) / 32, 1, o, k, 0));
            for (int64_t n = 0; n < batch_; ++n)
                for (int64_t y = 0; y < height; ++y)
                    for (int64_t x = 0; x < width; ++x) {
                        const int64_t phase = op.upsample ? 2 * (y % 2) + x % 2 : 0;
                        double sum = 0.0;
                        for (int64_t tap = 0; tap < taps; ++tap) {
                            const int64_t kh = tap / side, kw = tap % side;
                            const int64_t u = op.upsample ? y / 2 + y % 2 - 1 + kh : y * op.stride + kh - op.pad_top;
                            const int64_t v = op.upsample ? x / 2 + x % 2 - 1 + kw : x * op.stride + kw - op.pad_left;
                            const bool inside = u >= 0 && v >= 0 && u < in.height && v < in.width;
                            const double* w = weights.data() + phase * int64_t(real.size()) * taps + tap;
                            for (size_t k = 0; k < real.size(); ++k)
                                if (real[k] >= 0)
                                    sum += (inside ? in.at(n, real[k], u, v) : int8 ? op.zero_point : 0.0) * w[int64_t(k) * taps];
                        }
                        if (int8) sum *= floats(op.multiplier)[phase * n_blocks * 16 + o];
                        for (size_t k = 0; k < skip_real.size(); ++k)
                            if (skip_real[k] >= 0) sum += skip.at(n, skip_real[k], y, x) * skip_weights[k];
                        if (op.bias >= 0) sum += floats(op.bias)[phase * n_blocks * 16 + o];
                        if (op.bias_row >= 0) sum += row(n, op.bias_row + o);
                        if (op.residual >= 0) sum += double(op.residual_scale) * tensor(op.residual).at(n, o, y, x);
                        out.at(n, o, y, x) = port ? activate(op.output_activation, sum) : bf16(float(sum));
                    }
        }
        if (port)
            answer(op.output_port, out);
        else
            tensors_[size_t(op.output)] = out;
    }

    // An output port of maps, or of tokens, whose channels are adjacent.
    void answer(int32_t port, const Array& out) {
        std::vector<float>& to = ports_[size_t(port)];
        to.assign(out.values.begin(), out.values.end());
        if (p_.ports[port].kind != DV_NATIVE_PORT_TOKENS) return;
        for (int64_t n = 0; n < out.samples; ++n)
            for (int64_t y = 0; y < out.height; ++y)
                for (int64_t c = 0; c < out.channels; ++c)
                    to[size_t((n * out.height + y) * out.channels + c)] = float(out.at(n, c, y, 0));
    }

    void embed(const dv_native_op& op) {
        const dv_native_port& ids = p_.ports[op.sources[0]];
        const int64_t side = op.stride, height = ids.height / side, width = ids.width / side;
        const bool port = op.output < 0;
        const int64_t channels = port ? p_.ports[op.output_port].channels : p_.tensors[op.output].channels;
        Array out(batch_, channels, height, width);
        for (int64_t n = 0; n < batch_; ++n)
            for (int64_t c = 0; c < channels; ++c)
                for (int64_t y = 0; y < height; ++y)
                    for (int64_t x = 0; x < width; ++x) {
                        double v = op.bias >= 0 ? floats(op.bias)[(y * width + x) * channels + c] : 0.0;
                        for (int64_t i = 0; i < side * side; ++i) {
                            const int64_t at = (n * ids.height + y * side + i / side) * ids.width + x * side + i % side;
                            const int64_t id = int64_t(inputs_[size_t(op.sources[0])][size_t(at)]);
                            v += floats(op.weights)[id * channels + c] / double(side * side);
                        }
                        out.at(n, c, y, x) = port ? v : bf16(float(v));
                    }
        if (port)
            answer(op.output_port, out);
        else
            tensors_[size_t(op.output)] = out;
    }

    void nearest(const dv_native_op& op) {
        const dv_native_port& in = p_.ports[op.sources[0]];
        const int64_t channels = in.channels, pixels = int64_t(in.height) * in.width;
        const auto code = [&](int64_t k, int64_t c) { return double(floats(op.weights)[(k / 16 * channels + c) * 16 + k % 16]); };
        Array out(batch_, channels, in.height, in.width);
        for (int64_t n = 0; n < batch_; ++n)
            for (int64_t p = 0; p < pixels; ++p) {
                int64_t best = 0;
                double least = INFINITY;
                for (int64_t k = 0; k < op.factor; ++k) {
                    double off = 0.0;
                    for (int64_t c = 0; c < channels; ++c) {
                        const double z = inputs_[size_t(op.sources[0])][size_t((n * channels + c) * pixels + p)] / double(op.scale);
                        off += (z - code(k, c)) * (z - code(k, c));
                    }
                    if (off < least) best = k, least = off;
                }
                for (int64_t c = 0; c < channels; ++c) out.at(n, c, 0, p) = code(best, c) * double(op.scale);
            }
        answer(op.output_port, out);
    }

    void attention(const dv_native_op& op) {
        const bool crossed = op.sources[1] >= 0;
        const Array &in = tensor(op.sources[0]), &other = tensor(op.sources[crossed ? 1 : 0]);
        Array& out = made(op.output, batch_);
        const int64_t channels = out.channels, width = channels / op.heads, pixels = in.height * in.width;
        const int64_t others = other.height * other.width, keys = crossed ? op.keys : channels, values = keys + channels;
        for (int64_t n = 0; n < batch_; ++n)
            for (int64_t c0 = 0; c0 < channels; c0 += width)
                for (int64_t q = 0; q < pixels; ++q) {
                    std::vector<double> p(size_t(others), 0.0);
                    for (int64_t k = 0; k < others; ++k) {
                        for (int64_t c = c0; c < c0 + width; ++c) p[size_t(k)] += in.at(n, c, 0, q) * other.at(n, keys + c, 0, k);
                        p[size_t(k)] *= double(op.scale);
                    }
                    const double most = *std::max_element(p.begin(), p.end());
                    double sum = 0.0;
                    for (double& v : p) sum += v = std::exp(v - most);
                    for (int64_t c = c0; c < c0 + width; ++c) {
                        double v = 0.0;
                        for (int64_t k = 0; k < others; ++k) v += p[size_t(k)] * other.at(n, values + c, 0, k);
                        out.at(n, c, 0, q) = bf16(float(v / sum));
                    }
                }
    }

    void resize(const dv_native_op& op, bool pool) {
        const Array& in = tensor(op.sources[0]);
        Array& out = made(op.output, batch_);
        if (op.kernel == 4) return filtered(in, out, pool);
        const int64_t k = op.factor;
        for (int64_t n = 0; n < batch_; ++n)
            for (int64_t c = 0; c < out.channels; ++c)
                for (int64_t y = 0; y < out.height; ++y)
                    for (int64_t x = 0; x < out.width; ++x) {
                        double v = 0.0;
                        for (int64_t i = 0; pool && i < k * k; ++i) v += in.at(n, c, y * k + i / k, x * k + i % k) / double(k * k);
                        out.at(n, c, y, x) = pool ? bf16(float(v)) : in.at(n, c, y / k, x / k);
                    }
    }

    // As a convolution of stride 2 has it, or a transposed one: 4 x 4, padded by one.
    void filtered(const Array& in, Array& out, bool half) const {
        const double taps[] = {1.0, 3.0, 3.0, 1.0};
        for (int64_t n = 0; n < batch_; ++n)
            for (int64_t c = 0; c < out.channels; ++c)
                for (int64_t y = 0; y < out.height; ++y)
                    for (int64_t x = 0; x < out.width; ++x) {
                        double sum = 0.0;
                        for (int64_t u = 0; u < in.height; ++u)
                            for (int64_t v = 0; v < in.width; ++v) {
                                const int64_t i = half ? u - 2 * y + 1 : y - 2 * u + 1, j = half ? v - 2 * x + 1 : x - 2 * v + 1;
                                if (i < 0 || j < 0 || i > 3 || j > 3) continue;
                                sum += in.at(n, c, u, v) * taps[i] * taps[j] / (half ? 64.0 : 16.0);
                            }
                        out.at(n, c, y, x) = bf16(float(sum));
                    }
    }

    void lookup(const dv_native_op& op) {
        Array& out = made(op.output, int64_t(timesteps_.size()));
        for (int64_t s = 0; s < out.samples; ++s)
            for (int64_t c = 0; c < out.channels; ++c) out.at(s, c, 0, 0) = floats(op.weights)[timesteps_[size_t(s)] * out.channels + c];
    }

    void linear(const dv_native_op& op) {
        const Array& in = tensor(op.sources[0]);
        const int64_t outputs = op.output < 0 ? p_.ports[op.output_port].channels : p_.tensors[op.output].channels;
        Array out(in.samples, outputs, 1, 1);
        for (int64_t r = 0; r < in.samples; ++r)
            for (int64_t o = 0; o < outputs; ++o) {
                double v = op.bias >= 0 ? floats(op.bias)[o] : 0.0;
                for (int64_t k = 0; k < in.channels; ++k)
                    v += activate(op.activation, in.at(r, k, 0, 0)) * floats(op.weights)[(o / 16 * in.channels + k) * 16 + o % 16];
                out.at(r, o, 0, 0) = v;
            }
        if (op.output < 0)
            ports_[size_t(op.output_port)].assign(out.values.begin(), out.values.end());
        else
            tensors_[size_t(op.output)] = out;
    }

    void add(const dv_native_op& op) {
        const Array &steps = tensor(op.sources[0]), &batch = tensor(op.sources[1]);
        Array& out = made(op.output, steps.samples * batch.samples);
        for (int64_t r = 0; r < out.samples; ++r)
            for (int64_t c = 0; c < out.channels; ++c)
                out.at(r, c, 0, 0) = steps.at(r / batch.samples, c, 0, 0) + batch.at(r % batch.samples, c, 0, 0);
    }

    const dv_native_program& p_;
    const std::vector<std::vector<float>>& inputs_;
    const std::vector<int64_t>& timesteps_;
    int64_t batch_;
    int32_t row_count_;
    std::vector<Array> tensors_;
    std::vector<std::vector<float>> ports_;
};

}  // namespace reference

#endif  // DIFFUSEVAE_TESTS_NATIVE_REFERENCE_H
