// One function a kind: numbers, shapes, dtypes and sizes of weights, and who wrote what is read.
#include "operation_words.h"

namespace diffusevae {
namespace native {
namespace {

class OperationCheck : private OperationWords {
public:
    using OperationWords::OperationWords;

    void run() {
        in_range(op_.kind, DV_NATIVE_INPUT, DV_NATIVE_NORM, name("kind"));
        if (p_.of_rows != is_of_rows(op_.kind) && op_.kind != DV_NATIVE_INPUT)
            refuse(name("kind"), kind_name(op_.kind), "operations of maps or of rows, not of both in one program");
        switch (op_.kind) {
        case DV_NATIVE_INPUT: return input();
        case DV_NATIVE_CONV: return conv();
        case DV_NATIVE_NORM: return norm();
        case DV_NATIVE_ATTENTION: return attention();
        case DV_NATIVE_POOL:
        case DV_NATIVE_UPSAMPLE: return resize();
        case DV_NATIVE_LOOKUP: return lookup();
        case DV_NATIVE_LINEAR: return linear();
        case DV_NATIVE_ADD: return add();
        case DV_NATIVE_EMBED: return embed();
        default: return nearest();
        }
    }

private:
    bool is_tokens(int32_t port) const {
        return port >= 0 && size_t(port) < p_.ports.size() && p_.port(port).kind == DV_NATIVE_PORT_TOKENS;
    }

    void input() {
        const int32_t count = sources(1, kSources);
        if (p_.of_rows) {
            want(count == 1, "sources", text(count) + " of them", "one port of rows");
            const dv_native_port& port = input_port(op_.sources[0], DV_NATIVE_PORT_TABLE);
            want(port.rows == DV_NATIVE_ROWS_BATCH, "sources", "rows of another kind", "rows of the batch");
            in_range(op_.offset, DV_NATIVE_NONE, DV_NATIVE_NONE, name("offset"));
            in_range(op_.factor, 1, 1, name("factor"));
            output(DV_NATIVE_ROWS_BATCH, port.channels, 1, 1);
            return;
        }
        if (is_tokens(op_.sources[0])) {
            want(count == 1, "sources", text(count) + " of them", "one port of tokens");
            const dv_native_port& port = input_port(op_.sources[0], DV_NATIVE_PORT_TOKENS);
            plain_input();
            in_range(op_.offset, DV_NATIVE_NONE, DV_NATIVE_NONE, name("offset"));
            output(DV_NATIVE_ROWS_NONE, port.channels, port.height, 1);
            return;
        }
        const dv_native_port& first = input_port(op_.sources[0], DV_NATIVE_PORT_MAP);
        if (op_.offset != DV_NATIVE_NONE) return slice(first, count);
        one_of(op_.kernel, 1, 3, "kernel");
        in_range(op_.stride, 1, kMostSide, name("stride"));
        in_range(op_.factor, 1, 2, name("factor"));
        const int32_t height = first.height / op_.stride, width = first.width / op_.stride;
        want(height * op_.stride == first.height && width * op_.stride == first.width, "stride", text(op_.stride),
             "a divisor of " + text(first.height) + " and " + text(first.width));
        int64_t channels = 0;
        for (int32_t i = 0; i < count; ++i) {
            const dv_native_port& port = input_port(op_.sources[i], DV_NATIVE_PORT_MAP);
            want(port.height == first.height && port.width == first.width, "sources",
                 size_of(port.channels, port.height, port.width), "ports of one height and width");
            channels += port.channels;
        }
        output(DV_NATIVE_ROWS_NONE, (channels + (op_.factor - 1) * first.channels) * op_.kernel * op_.kernel, height, width);
    }

    void plain_input() const {
        in_range(op_.kernel, 1, 1, name("kernel"));
        in_range(op_.stride, 1, 1, name("stride"));
        in_range(op_.factor, 1, 1, name("factor"));
    }

    // Values of a row of them as a map, whose size is the output's own.
    void slice(const dv_native_port& port, int32_t count) {
        want(count == 1, "sources", text(count) + " of them", "one port where there is an offset");
        want(port.height == 1 && port.width == 1, "sources", size_of(port.channels, port.height, port.width),
             "a port of 1 x 1 where there is an offset");
        plain_input();
        const dv_native_tensor& out = output();
        want(out.rows == DV_NATIVE_ROWS_NONE, "output", "rows", "a map");
        in_range(op_.offset, 0, int64_t(port.channels) - int64_t(out.channels) * out.height * out.width, name("offset"));
    }

    // Maps of one height and width: the first of them, and how many channels they have together.
    const dv_native_tensor& concatenated(int64_t& channels) const {
        const int32_t count = sources(1, kSources);
        const dv_native_tensor& first = map(op_.sources[0], "sources");
        channels = first.channels;
        for (int32_t i = 1; i < count; ++i) {
            const dv_native_tensor& other = map(op_.sources[i], "sources");
            want(other.height == first.height && other.width == first.width, "sources",
                 size_of(other.channels, other.height, other.width), "maps of one height and width");
            channels += other.channels;
        }
        in_range(channels, 1, kMostChannels, name("sources: channels"));
        return first;
    }

    void norm() {
        int64_t channels = 0;
        const dv_native_tensor& first = concatenated(channels);
        in_range(op_.norm_layer, 0, 0, name("norm.layer"));
        group_norm(channels, count_of(op_.sources));
        activation(op_.activation, {DV_NATIVE_IDENTITY, DV_NATIVE_SILU, DV_NATIVE_GELU, DV_NATIVE_RELU}, "activation");
        if (op_.modulation != DV_NATIVE_NONE) {
            const dv_native_tensor& m = map(op_.modulation, "modulation");
            want(m.channels == 2 * channels && m.height == first.height && m.width == first.width, "modulation",
                 size_of(m.channels, m.height, m.width), "a map of " + size_of(2 * channels, first.height, first.width));
        }
        output(DV_NATIVE_ROWS_NONE, channels, first.height, first.width);
    }

    void conv() {
        int64_t channels = 0;
        const dv_native_tensor& first = concatenated(channels);
        const int32_t count = count_of(op_.sources);
        // Before the output counts as written: no operation may add its own result.
        for (int32_t i = 0; i < count_of(op_.skip_sources); ++i) map(op_.skip_sources[i], "skip.sources");
        if (op_.residual != DV_NATIVE_NONE) map(op_.residual, "residual");
        conv_numbers();
        conv_output(first);
        const ConvShape s = conv_shape(p_, op_);
        conv_pixelwise(s, count);
        conv_norm(s, count);
        conv_weights(s);
        conv_added(s);
    }

    void conv_numbers() const {
        want(op_.kernel == 1 || op_.kernel == 3 || op_.kernel == 6, "kernel", text(op_.kernel), "1, 3 or 6");
        want(op_.stride == 1 ? op_.kernel != 6 : op_.stride == 2 && op_.kernel != 1, "stride", text(op_.stride),
             op_.kernel == 6 ? "2 with kernel 6" : "1, or 2 with kernel 3");
        want(op_.upsample == 0 || (op_.upsample == 1 && op_.kernel == 3 && op_.stride == 1), "upsample", text(op_.upsample),
             "false, or true with kernel 3 and stride 1");
        if (op_.stride == 1)
            in_range(op_.pad_top, op_.kernel / 2, op_.kernel / 2, name("pad_top"));
        else
            in_range(op_.pad_top, op_.kernel == 6 ? 2 : 0, op_.kernel == 6 ? 2 : 1, name("pad_top"));
        in_range(op_.pad_left, op_.pad_top, op_.pad_top, name("pad_left"));
        activation(op_.activation, {DV_NATIVE_IDENTITY, DV_NATIVE_SILU, DV_NATIVE_GELU, DV_NATIVE_GEGLU, DV_NATIVE_RELU},
                   "activation");
        if (op_.output == DV_NATIVE_NONE)
            activation(op_.output_activation, {DV_NATIVE_IDENTITY, DV_NATIVE_SIGMOID, DV_NATIVE_SIGNED_SIGMOID},
                       "output_activation");
        else
            activation(op_.output_activation, {DV_NATIVE_IDENTITY}, "output_activation");
    }

    // The size follows from the first source's; the channels are the output's own.
    void conv_output(const dv_native_tensor& in) {
        const auto size = [&](int32_t side) {
            if (op_.stride == 1) return op_.upsample == 1 ? 2 * side : side;
            return op_.pad_top == 1 ? (side - 1) / 2 + 1 : side / 2;
        };
        one_output();
        if (op_.output != DV_NATIVE_NONE) {
            in_range(op_.output, 0, int64_t(p_.tensors.size()) - 1, name("output"));
            output(DV_NATIVE_ROWS_NONE, p_.tensor(op_.output).channels, size(in.height), size(in.width));
            return;
        }
        const dv_native_port& port = output_port({DV_NATIVE_PORT_MAP, DV_NATIVE_PORT_TOKENS});
        want(port.height == size(in.height) && port.width == size(in.width), "output_port",
             size_of(port.channels, port.height, port.width), size_of(port.channels, size(in.height), size(in.width)));
    }

    // What is done to a pixel at a time, before a product over that pixel alone.
    void conv_pixelwise(const ConvShape& s, int32_t count) const {
        in_range(op_.norm_layer, 0, 1, name("norm.layer"));
        const bool gated = op_.activation == DV_NATIVE_GEGLU, layer = op_.norm_layer == 1;
        if (!gated && !layer) return;
        const std::string field = gated ? "activation" : "norm.layer", found = gated ? "geglu" : "true";
        want(!gated || (op_.norm_groups == 0 && !layer), field, found + " behind a norm", "one without");
        want(!layer || (op_.norm_groups == 0 && op_.scale_row == DV_NATIVE_NONE), field, found, "false with groups or a row");
        want(op_.kernel == 1 && count == 1, field, found, "another where the kernel is not 1 or sources are concatenated");
        want(!gated || s.channels % (2 * kBlock) == 0, "sources", text(s.channels) + " channels",
             "a multiple of 64, for halves of whole blocks");
    }

    void conv_norm(const ConvShape& s, int32_t count) const {
        if (op_.norm_layer == 1) {
            between(op_.norm_epsilon, 1e-12f, 1.0f, "norm.epsilon");
            blob(op_.norm_weight, DV_NATIVE_F32, 4ll * s.channels, "norm.weight");
            blob(op_.norm_bias, DV_NATIVE_F32, 4ll * s.channels, "norm.bias");
            return;
        }
        if (op_.norm_groups == 0) {
            want(op_.norm_weight == DV_NATIVE_NONE && op_.norm_bias == DV_NATIVE_NONE && op_.scale_row == DV_NATIVE_NONE,
                 "norm.groups", "0", "1 or more");
            return;
        }
        group_norm(s.channels, count);
    }

    void conv_weights(const ConvShape& s) const {
        const int64_t outputs = 16ll * s.n_blocks * s.phases, bytes = s.steps() * s.n_blocks * s.phases * kStepBytes;
        in_range(op_.int8, 0, 1, name("int8"));
        blob(op_.weights, op_.int8 == 1 ? DV_NATIVE_I8 : DV_NATIVE_BF16, bytes, "weights");
        if (op_.bias != DV_NATIVE_NONE) blob(op_.bias, DV_NATIVE_F32, 4 * outputs, "bias");
        if (op_.bias_row != DV_NATIVE_NONE) row_slice(op_.bias_row, s.outputs, "bias_row");
        if (op_.int8 == 0) return;
        in_range(op_.zero_point, 0, 255, name("int8.zero_point"));
        between(op_.inverse_scale, 1e-9f, 1e9f, "int8.inverse_scale");
        blob(op_.multiplier, DV_NATIVE_F32, 4 * outputs, "int8.multiplier");
        // 255 * 127 * K must stay below 2^31 for int32 sums to be exact.
        in_range(int64_t(s.k_blocks) * 64 * s.taps, 0, 66000, name("sources: products a sum of int8"));
    }

    void conv_added(const ConvShape& s) const {
        if (op_.residual != DV_NATIVE_NONE) {
            const dv_native_tensor& r = p_.tensor(op_.residual);
            want(r.channels == s.outputs && r.height == s.out_height && r.width == s.out_width, "residual",
                 size_of(r.channels, r.height, r.width), size_of(s.outputs, s.out_height, s.out_width) + " as the output");
            between(op_.residual_scale, -1e9f, 1e9f, "residual_scale");
        }
        if (s.skips == 0) {
            want(op_.skip_weights == DV_NATIVE_NONE, "skip.sources", "none of them", "1 to 4");
            return;
        }
        want(op_.upsample == 0, "skip", "one", "null where the convolution upsamples");
        for (int32_t i = 0; i < s.skips; ++i) {
            const dv_native_tensor& t = p_.tensor(op_.skip_sources[i]);
            want(t.height == s.out_height && t.width == s.out_width, "skip.sources", size_of(t.channels, t.height, t.width),
                 "maps of " + text(s.out_height) + " x " + text(s.out_width) + " as the output");
        }
        blob(op_.skip_weights, DV_NATIVE_BF16, int64_t(s.skip_blocks) * s.n_blocks * kStepBytes, "skip.weights");
    }

    void attention() {
        const bool crossed = sources(1, 2) == 2;
        const dv_native_tensor& in = map(op_.sources[0], "sources");
        const dv_native_tensor& others = crossed ? map(op_.sources[1], "sources") : in;
        want(crossed || in.channels % 3 == 0, "sources", text(in.channels) + " channels",
             "a multiple of 3: queries, keys, values");
        in_range(int64_t(in.height) * in.width, 1, kMostAttended, name("sources: pixels"));
        in_range(int64_t(others.height) * others.width, 1, kMostAttended, name("sources: pixels of keys"));
        const int32_t channels = crossed ? in.channels : in.channels / 3;
        in_range(op_.keys, 0, crossed ? int64_t(others.channels) - 2ll * channels : 0, name("keys"));
        const dv_native_tensor& out = output(DV_NATIVE_ROWS_NONE, channels, in.height, in.width);
        in_range(op_.heads, 1, out.channels, name("heads"));
        want(out.channels % op_.heads == 0, "heads", text(op_.heads), "a divisor of the " + text(out.channels) + " channels");
        between(op_.scale, 1e-9f, 1e9f, "scale");
    }

    void resize() {
        sources(1, 1);
        const dv_native_tensor& in = map(op_.sources[0], "source");
        one_of(op_.kernel, 0, 4, "kernel");
        in_range(op_.factor, op_.kernel == 4 ? 2 : 1, op_.kernel == 4 ? 2 : kMostSide, name("factor"));
        const int32_t k = op_.factor;
        if (op_.kind == DV_NATIVE_POOL)
            output(DV_NATIVE_ROWS_NONE, in.channels, in.height / k, in.width / k);
        else
            output(DV_NATIVE_ROWS_NONE, in.channels, int64_t(in.height) * k, int64_t(in.width) * k);
    }

    void lookup() {
        sources(1, 1);
        input_port(op_.sources[0], DV_NATIVE_PORT_STEPS);
        const dv_native_tensor& out = output();
        want(out.rows == DV_NATIVE_ROWS_STEPS, "output", "a tensor of another kind", "rows of steps");
        in_range(op_.factor, 1, kMostEntries, name("factor"));
        blob(op_.weights, DV_NATIVE_F32, 4ll * op_.factor * out.channels, "weights");
    }

    void linear() {
        sources(1, 1);
        const dv_native_tensor& in = source(op_.sources[0], "source");
        one_output();
        activation(op_.activation, {DV_NATIVE_IDENTITY, DV_NATIVE_SILU}, "activation");
        const bool to_port = op_.output == DV_NATIVE_NONE;
        const int32_t rows = to_port ? output_port({DV_NATIVE_PORT_TABLE}).rows : output().rows;
        const int64_t outputs = to_port ? p_.port(op_.output_port).channels : p_.tensor(op_.output).channels;
        want(rows == in.rows, "output", "rows of another kind", "rows of the source's kind");
        const int64_t blocks = (outputs + kLanes - 1) / kLanes;
        blob(op_.weights, DV_NATIVE_F32, blocks * kLanes * in.channels * 4, "weights");
        if (op_.bias != DV_NATIVE_NONE) blob(op_.bias, DV_NATIVE_F32, blocks * kLanes * 4, "bias");
    }

    void add() {
        sources(2, 2);
        const dv_native_tensor& steps = source(op_.sources[0], DV_NATIVE_ROWS_STEPS, "sources");
        const dv_native_tensor& batch = source(op_.sources[1], DV_NATIVE_ROWS_BATCH, "sources");
        want(steps.channels == batch.channels, "sources", text(steps.channels) + " and " + text(batch.channels) + " channels",
             "rows of one width");
        output(DV_NATIVE_ROWS_PAIRS, steps.channels, 1, 1);
    }

    void embed() {
        sources(1, 1);
        const dv_native_port& ids = input_port(op_.sources[0], DV_NATIVE_PORT_IDS);
        in_range(op_.stride, 1, kMostSide, name("stride"));
        in_range(op_.factor, 1, kMostEntries, name("factor"));
        const int32_t height = ids.height / op_.stride, width = ids.width / op_.stride;
        want(height * op_.stride == ids.height && width * op_.stride == ids.width, "stride", text(op_.stride),
             "a divisor of " + text(ids.height) + " and " + text(ids.width));
        one_output();
        int64_t channels = 0;
        if (op_.output != DV_NATIVE_NONE) {
            in_range(op_.output, 0, int64_t(p_.tensors.size()) - 1, name("output"));
            channels = p_.tensor(op_.output).channels;
            output(DV_NATIVE_ROWS_NONE, channels, height, width);
        } else {
            const dv_native_port& port = output_port({DV_NATIVE_PORT_MAP, DV_NATIVE_PORT_TOKENS});
            channels = port.channels;
            want(port.height == height && port.width == width, "output_port", size_of(channels, port.height, port.width),
                 size_of(channels, height, width));
        }
        blob(op_.weights, DV_NATIVE_F32, 4ll * op_.factor * channels, "weights");
        if (op_.bias != DV_NATIVE_NONE) blob(op_.bias, DV_NATIVE_F32, 4ll * height * width * channels, "bias");
        p_.looked_up.push_back({index_, op_.sources[0]});
    }

    void nearest() {
        sources(1, 1);
        const dv_native_port& in = input_port(op_.sources[0], DV_NATIVE_PORT_MAP);
        in_range(in.channels, 1, kMostCodeChannels, name("sources: channels"));
        in_range(op_.output, DV_NATIVE_NONE, DV_NATIVE_NONE, name("output"));
        const dv_native_port& out = output_port({DV_NATIVE_PORT_MAP});
        want(out.channels == in.channels && out.height == in.height && out.width == in.width, "output_port",
             size_of(out.channels, out.height, out.width), size_of(in.channels, in.height, in.width) + " as the source");
        in_range(op_.factor, 1, kMostEntries, name("factor"));
        between(op_.scale, 1e-9f, 1e9f, "scale");
        const int64_t codes = (int64_t(op_.factor) + kLanes - 1) / kLanes * kLanes;
        blob(op_.weights, DV_NATIVE_F32, 4 * codes * in.channels, "weights");
        blob(op_.bias, DV_NATIVE_F32, 4 * codes, "bias");
    }
};

}  // namespace

void check_operation(Program& program, int32_t index, std::vector<char>& port_written) {
    if (is_gradient(program.ops[size_t(index)].kind)) return check_gradient(program, index, port_written);
    OperationCheck(program, index, port_written).run();
}

}  // namespace native
}  // namespace diffusevae
