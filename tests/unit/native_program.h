// Native programs as a test writes them: ports, tensors and ops are added one by one; weights are drawn and packed on the way.
#ifndef DIFFUSEVAE_TESTS_NATIVE_PROGRAM_H
#define DIFFUSEVAE_TESTS_NATIVE_PROGRAM_H

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <vector>

#include "diffusevae/native.h"
#include "native_reference.h"

class Random {
public:
    explicit Random(uint64_t seed) : state_(seed * 2654435769u + 1) {}
    uint32_t bits() {
        state_ = state_ * 6364136223846793005u + 1442695040888963407u;
        return uint32_t(state_ >> 33);
    }
    int32_t below(int32_t n) { return int32_t(bits() % uint32_t(n)); }
    float uniform(float least, float most) { return least + (most - least) * float(bits() & 0xFFFFFF) / 16777216.0f; }

private:
    uint64_t state_;
};

struct ConvOptions {
    int32_t kernel = 3, stride = 1, pad = -1;  // -1: kernel / 2
    int32_t activation = DV_NATIVE_IDENTITY, groups = 0, output_activation = DV_NATIVE_IDENTITY;
    float residual_scale = 1.0f;
    bool upsample = false, int8 = false, bias = true, scale_row = false, bias_row = false, layer = false;
    int32_t residual = DV_NATIVE_NONE;
    std::vector<int32_t> skips;
};

class Builder {
public:
    explicit Builder(uint64_t seed) : random(seed) {}

    Random random;
    std::vector<dv_native_port> ports;
    std::vector<dv_native_tensor> tensors;
    std::vector<dv_native_op> ops;
    std::vector<dv_native_blob> blobs;

    int32_t port(int32_t kind, bool output, int32_t c, int32_t h = 1, int32_t w = 1, int32_t rows = 0) {
        ports.push_back({kind, output ? 1 : 0, c, h, w, rows});
        return int32_t(ports.size()) - 1;
    }

    int32_t rows(int32_t kind, int32_t channels) {
        tensors.push_back({kind, channels, 1, 1});
        return int32_t(tensors.size()) - 1;
    }

    int32_t map(int32_t c, int32_t h, int32_t w) {
        tensors.push_back({DV_NATIVE_ROWS_NONE, c, h, w});
        return int32_t(tensors.size()) - 1;
    }

    static dv_native_op blank(int32_t kind) {
        dv_native_op op{};
        op.kind = kind;
        for (int32_t& s : op.sources) s = DV_NATIVE_NONE;
        for (int32_t& s : op.skip_sources) s = DV_NATIVE_NONE;
        op.output = op.output_port = op.scale_row = op.bias_row = op.residual = DV_NATIVE_NONE;
        op.norm_weight = op.norm_bias = op.weights = op.bias = op.skip_weights = op.multiplier = DV_NATIVE_NONE;
        op.labels = op.places = op.offset = op.modulation = DV_NATIVE_NONE;
        return op;
    }

    static void put(int32_t (&list)[DV_NATIVE_MAX_SOURCES], const std::vector<int32_t>& numbers) {
        for (size_t i = 0; i < numbers.size(); ++i) list[i] = numbers[i];
    }

    int32_t input(const std::vector<int32_t>& from, int32_t patch = 1, int32_t stride = 1, int32_t parts = 1) {
        dv_native_op op = blank(DV_NATIVE_INPUT);
        int32_t channels = 0;
        for (int32_t p : from) channels += ports[size_t(p)].channels;
        const dv_native_port& first = ports[size_t(from[0])];
        const bool table = first.kind == DV_NATIVE_PORT_TABLE;
        put(op.sources, from);
        op.kernel = table ? 0 : patch;
        op.stride = table ? 0 : stride;
        op.factor = parts;
        op.output = table ? rows(DV_NATIVE_ROWS_BATCH, channels)
                          : map((channels + (parts - 1) * first.channels) * patch * patch, first.height / stride, first.width / stride);
        ops.push_back(op);
        return op.output;
    }

    // A map of the values of a port of 1 x 1, from `offset` on.
    int32_t slice(int32_t from, int32_t offset, int32_t c, int32_t h, int32_t w) {
        dv_native_op op = blank(DV_NATIVE_INPUT);
        op.sources[0] = from;
        op.kernel = op.stride = op.factor = 1;
        op.offset = offset;
        op.output = map(c, h, w);
        ops.push_back(op);
        return op.output;
    }

    // The norm and activation that `o` says as a map, scaled and shifted by another one.
    int32_t norm_map(const std::vector<int32_t>& from, const ConvOptions& o, int32_t modulation = DV_NATIVE_NONE) {
        dv_native_op op = blank(DV_NATIVE_NORM);
        const dv_native_tensor in = tensors[size_t(from[0])];
        int32_t channels = 0;
        for (int32_t s : from) channels += tensors[size_t(s)].channels;
        put(op.sources, from);
        op.modulation = modulation;
        op.activation = o.activation;
        norm(op, o, channels);
        op.output = map(channels, in.height, in.width);
        ops.push_back(op);
        return op.output;
    }

    // A new map port behind INPUT and a convolution, whose sums a norm can use.
    int32_t source(int32_t c, int32_t h, int32_t w) { return conv({input({port(DV_NATIVE_PORT_MAP, false, c, h, w)})}, c, one()); }

    static ConvOptions one() {
        ConvOptions o;
        o.kernel = 1;
        return o;
    }

    // A convolution into a new map; or with to_port into a new output port, whose number is returned.
    int32_t conv(const std::vector<int32_t>& from, int32_t outputs, const ConvOptions& o, bool to_port = false) {
        dv_native_op op = blank(DV_NATIVE_CONV);
        put(op.sources, from);
        put(op.skip_sources, o.skips);
        op.kernel = o.kernel;
        op.stride = o.stride;
        op.pad_top = op.pad_left = o.pad >= 0 ? o.pad : o.kernel / 2;
        op.upsample = o.upsample ? 1 : 0;
        op.activation = o.activation;
        op.output_activation = o.output_activation;
        op.residual = o.residual;
        op.residual_scale = o.residual_scale;
        const dv_native_tensor in = tensors[size_t(from[0])];
        const auto size = [&](int32_t side) {
            return o.upsample ? 2 * side : o.stride == 1 ? side : op.pad_top == 1 ? (side - 1) / 2 + 1 : side / 2;
        };
        const int32_t h = size(in.height), w = size(in.width), taps = o.upsample ? 4 : o.kernel * o.kernel;
        int32_t channels = 0;
        for (int32_t s : from) channels += tensors[size_t(s)].channels;
        norm(op, o, channels);
        const int32_t phases = o.upsample ? 4 : 1, n = to_port ? (outputs + 15) / 16 * 16 : (outputs + 31) / 32 * 32;
        std::vector<bool> real = padded_channels(from);
        if (o.activation == DV_NATIVE_GEGLU) real.resize(real.size() / 2);
        op.weights = matrix(real, n, outputs, taps, phases, o.int8);
        if (!o.skips.empty()) op.skip_weights = matrix(padded_channels(o.skips), n, outputs, 1, 1, false);
        if (o.bias) op.bias = values(phases * n, outputs, n, -0.5f, 0.5f);
        if (o.bias_row) op.bias_row = row_slice(outputs);
        if (o.int8) {
            op.int8 = 1;
            op.zero_point = 37;
            op.inverse_scale = 16.0f;
            op.multiplier = values(phases * n, outputs, n, 0.0001f, 0.0005f);
        }
        if (to_port)
            op.output_port = port(DV_NATIVE_PORT_MAP, true, outputs, h, w);
        else
            op.output = map(outputs, h, w);
        ops.push_back(op);
        return to_port ? op.output_port : op.output;
    }

    int32_t resize(int32_t kind, int32_t from, int32_t factor, bool filtered = false) {
        dv_native_op op = blank(kind);
        const dv_native_tensor in = tensors[size_t(from)];
        op.sources[0] = from;
        op.factor = factor;
        op.kernel = filtered ? 4 : 0;
        op.output = kind == DV_NATIVE_POOL ? map(in.channels, in.height / factor, in.width / factor)
                                           : map(in.channels, in.height * factor, in.width * factor);
        ops.push_back(op);
        return op.output;
    }

    // Of a map to itself; or to another one, whose channels from `keys` on are keys, then values.
    int32_t attention(int32_t from, int32_t heads, float scale, int32_t other = DV_NATIVE_NONE, int32_t keys = 0) {
        dv_native_op op = blank(DV_NATIVE_ATTENTION);
        const dv_native_tensor in = tensors[size_t(from)];
        op.sources[0] = from;
        op.sources[1] = other;
        op.heads = heads;
        op.keys = keys;
        op.scale = scale;
        op.output = map(other == DV_NATIVE_NONE ? in.channels / 3 : in.channels, in.height, in.width);
        ops.push_back(op);
        return op.output;
    }

    // At a map that a convolution wrote, of the norm and activation that `o` says; `g` is `factor` times smaller.
    int32_t norm_gradient(int32_t x, int32_t g, const ConvOptions& o, int32_t factor = 1) {
        dv_native_op op = blank(DV_NATIVE_NORM_GRADIENT);
        const dv_native_tensor in = tensors[size_t(x)];
        put(op.sources, {x, g});
        op.residual = o.residual;
        op.factor = factor;
        op.activation = o.activation;
        norm(op, o, in.channels);
        op.output = map(in.channels, in.height, in.width);
        ops.push_back(op);
        return op.output;
    }

    int32_t attention_gradient(int32_t qkv, int32_t g, int32_t heads, float scale) {
        dv_native_op op = blank(DV_NATIVE_ATTENTION_GRADIENT);
        const dv_native_tensor in = tensors[size_t(qkv)];
        put(op.sources, {qkv, g});
        op.heads = heads;
        op.scale = scale;
        op.output = map(in.channels, in.height, in.width);
        ops.push_back(op);
        return op.output;
    }

    // New ports for the label and the entropy.
    int32_t classify(int32_t from, int32_t classes, int32_t heads, float scale = 0.0f) {
        dv_native_op op = blank(DV_NATIVE_CLASSIFY);
        const dv_native_tensor in = tensors[size_t(from)];
        const int32_t features = in.channels / (heads > 0 ? 3 : 1), padded = (classes + 15) / 16 * 16;
        op.sources[0] = from;
        op.labels = port(DV_NATIVE_PORT_IDS, false, 1);
        op.output_port = port(DV_NATIVE_PORT_MAP, true, 1);
        op.factor = classes;
        op.weights = values(padded * features, 16, 16, -0.5f, 0.5f);
        op.bias = values(padded, classes, padded, -0.5f, 0.5f);
        op.heads = heads;
        op.scale = scale;
        const int32_t places = (1 + in.height * in.width) * in.channels;
        if (heads > 0) op.places = values(places, 1, 1, -0.5f, 0.5f);
        op.output = map(in.channels, in.height, in.width);
        ops.push_back(op);
        return op.output;
    }

    // Shows a map as it is: an identity in bf16 to a new port.
    int32_t show(int32_t from) {
        const int32_t channels = tensors[size_t(from)].channels, shown = conv({from}, channels, one(), true);
        dv_native_op& op = ops.back();
        op.bias = DV_NATIVE_NONE;
        uint16_t* w = reinterpret_cast<uint16_t*>(at(op.weights));
        const int32_t blocks = (channels + 31) / 32;
        std::memset(w, 0, size_t((channels + 15) / 16) * size_t(blocks) * 1024);
        for (int32_t c = 0; c < channels; ++c) w[(c / 16 * blocks + c / 32) * 512 + (c % 32 / 2 * 16 + c % 16) * 2 + c % 2] = 0x3F80;
        return shown;
    }

    // Room for `count` floats, of which `real` of each `stride` are drawn from least..most.
    int32_t values(int32_t count, int32_t real, int32_t stride, float least, float most) {
        const int32_t blob = room(DV_NATIVE_F32, 4ll * count);
        float* to = reinterpret_cast<float*>(at(blob));
        for (int32_t i = 0; i < count; ++i) to[i] = i % stride < real ? random.uniform(least, most) : 0.0f;
        return blob;
    }

    // |code|^2 / 2 of packed codes, infinity behind the last.
    int32_t halves(int32_t codes_blob, int32_t codes, int32_t channels) {
        const int32_t count = (codes + 15) / 16 * 16, blob = room(DV_NATIVE_F32, 4ll * count);
        float* to = reinterpret_cast<float*>(at(blob));
        const float* from = reinterpret_cast<const float*>(at(codes_blob));
        for (int32_t k = 0; k < count; ++k) {
            to[k] = k < codes ? 0.0f : INFINITY;
            for (int32_t c = 0; c < channels && k < codes; ++c) {
                const float value = from[(k / 16 * channels + c) * 16 + k % 16];
                to[k] += value * value / 2;
            }
        }
        return blob;
    }

    // The finished program; the builder owns what it points to.
    const dv_native_program& program() {
        weights_.reset(static_cast<char*>(std::aligned_alloc(64, (packed_.size() + 127) / 64 * 64)));
        std::memcpy(weights_.get(), packed_.data(), packed_.size());
        program_ = {DV_NATIVE_VERSION, int32_t(ports.size()), int32_t(tensors.size()), int32_t(ops.size()),
                    int32_t(blobs.size()), ports.data(), tensors.data(), ops.data(), blobs.data(), weights_.get(),
                    int64_t(packed_.size())};
        return program_;
    }

    int32_t row_port = DV_NATIVE_NONE;

private:
    void norm(dv_native_op& op, const ConvOptions& o, int32_t channels) {
        if (o.groups == 0 && !o.layer) return;
        op.norm_groups = o.groups;
        op.norm_layer = o.layer ? 1 : 0;
        op.norm_epsilon = 1e-5f;
        op.norm_weight = values(channels, channels, channels, 0.5f, 1.5f);
        op.norm_bias = values(channels, channels, channels, -0.5f, 0.5f);
        if (o.scale_row) op.scale_row = row_slice(2 * channels);
    }

    int32_t row_slice(int32_t count) {
        if (row_port == DV_NATIVE_NONE) row_port = port(DV_NATIVE_PORT_ROW, false, 0);
        const int32_t first = ports[size_t(row_port)].channels;
        ports[size_t(row_port)].channels += count;
        return first;
    }

    std::vector<bool> padded_channels(const std::vector<int32_t>& from) const {
        std::vector<bool> real;
        for (int32_t s : from)
            for (int32_t c = 0; c < (tensors[size_t(s)].channels + 31) / 32 * 32; ++c) real.push_back(c < tensors[size_t(s)].channels);
        return real;
    }

    // Packed random weights, as kernels/native/README.md lays them out.
    int32_t matrix(const std::vector<bool>& real, int32_t n, int32_t outputs, int32_t taps, int32_t phases, bool int8) {
        const int32_t width = int8 ? 64 : 32, lane = int8 ? 4 : 2;
        const int32_t blocks = (int32_t(real.size()) + width - 1) / width, steps = blocks * taps;
        const int32_t blob = room(int8 ? DV_NATIVE_I8 : DV_NATIVE_BF16, int64_t(phases) * (n / 16) * steps * 1024);
        for (int64_t tile = 0; tile < int64_t(phases) * (n / 16) * steps; ++tile)
            for (int32_t e = 0; e < width * 16; ++e) {
                const size_t k = size_t(tile % steps / taps * width + e / (16 * lane) * lane + e % lane);
                const int64_t output = tile / steps % (n / 16) * 16 + e / lane % 16;
                if (k >= real.size() || !real[k] || output >= outputs) continue;
                char* to = at(blob) + tile * 1024;
                if (int8) {
                    reinterpret_cast<int8_t*>(to)[e] = int8_t(random.below(255) - 127);
                } else {
                    const float value = reference::bf16(random.uniform(-0.25f, 0.25f));
                    uint32_t bits;
                    std::memcpy(&bits, &value, 4);
                    reinterpret_cast<uint16_t*>(to)[e] = uint16_t(bits >> 16);
                }
            }
        return blob;
    }

    int32_t room(int32_t dtype, int64_t bytes) {
        const int64_t offset = int64_t(packed_.size()), size = (bytes + 63) / 64 * 64;
        packed_.resize(size_t(offset + size), 0);
        blobs.push_back({offset, size, dtype});
        return int32_t(blobs.size()) - 1;
    }

    char* at(int32_t blob) { return packed_.data() + blobs[size_t(blob)].offset; }

    struct Free {
        void operator()(char* p) const { std::free(p); }
    };
    std::vector<char> packed_;
    std::unique_ptr<char, Free> weights_;
    dv_native_program program_{};
};

#endif  // DIFFUSEVAE_TESTS_NATIVE_PROGRAM_H
