// Is this program sound? Ports, then tensors, then every op in order: numbers, shapes, sizes of weights, who wrote what.
#include "program.h"

#include <algorithm>
#include <cmath>

namespace diffusevae {
namespace native {
namespace {

constexpr int32_t kMostPorts = 64, kMostTensors = 1 << 14, kMostOps = 1 << 14;
constexpr int32_t kMostChannels = 1 << 16, kMostSide = 1024;
const char* const kKinds[] = {"", "INPUT", "CONV", "ATTENTION", "POOL", "UPSAMPLE", "LOOKUP", "LINEAR", "ADD"};

std::string text(int64_t value) { return std::to_string(value); }

[[noreturn]] void refuse(const std::string& what) { throw Failure(DV_NATIVE_BAD_PROGRAM, what); }

void demand(bool good, const std::string& what) {
    if (!good) refuse(what);
}

void in_range(int64_t value, int64_t least, int64_t most, const std::string& what) {
    if (value < least || value > most)
        refuse(what + " is " + text(value) + ", expected " + text(least) + ".." + text(most));
}

// One op under check: numbers are looked up and refused with the op's name.
class OpCheck {
public:
    OpCheck(Program& program, int32_t index, std::vector<char>& port_written)
        : p_(program), op_(program.ops[size_t(index)]), index_(index), port_written_(port_written) {}

    void run() {
        in_range(op_.kind, DV_NATIVE_INPUT, DV_NATIVE_ADD, name("kind"));
        demand(p_.of_rows == (op_.kind >= DV_NATIVE_LOOKUP) || op_.kind == DV_NATIVE_INPUT,
               name("kind") + " does not go with the others: a program is of maps or of rows, not of both");
        const bool list = op_.kind == DV_NATIVE_INPUT || op_.kind == DV_NATIVE_CONV;
        const int32_t number = op_.kind == DV_NATIVE_ADD ? 2 : 1;
        want(list || count_of(op_.sources) == number, "sources", text(number) + ", then NONE");
        switch (op_.kind) {
        case DV_NATIVE_INPUT: return input();
        case DV_NATIVE_CONV: return conv();
        case DV_NATIVE_ATTENTION: return attention();
        case DV_NATIVE_POOL:
        case DV_NATIVE_UPSAMPLE: return resize();
        case DV_NATIVE_LOOKUP: return lookup();
        case DV_NATIVE_LINEAR: return linear();
        default: return add();
        }
    }

private:
    std::string name(const std::string& field) const {
        const std::string kind = op_.kind >= 1 && op_.kind <= DV_NATIVE_ADD ? kKinds[op_.kind] : "?";
        return "op " + text(index_) + " (" + kind + "), " + field;
    }

    void want(bool good, const std::string& field, const std::string& expected) const {
        if (!good) refuse(name(field) + ": expected " + expected);
    }

    const dv_native_tensor& source(int32_t number, int32_t rows, const std::string& field) const {
        in_range(number, 0, int64_t(p_.tensors.size()) - 1, name(field));
        const int32_t writer = p_.writer[size_t(number)];
        want(writer != DV_NATIVE_NONE, field, "a tensor that an earlier op wrote, found tensor " + text(number));
        const dv_native_tensor& t = p_.tensor(number);
        want(t.rows == rows, field, rows == DV_NATIVE_ROWS_NONE ? "a map" : "rows of another kind");
        return t;
    }

    // The tensor that this op writes; marks it written.
    const dv_native_tensor& output() {
        in_range(op_.output, 0, int64_t(p_.tensors.size()) - 1, name("output"));
        int32_t& writer = p_.writer[size_t(op_.output)];
        want(writer == DV_NATIVE_NONE, "output", "a tensor that no other op writes, found tensor " + text(op_.output));
        writer = index_;
        return p_.tensor(op_.output);
    }

    const dv_native_port& output_port(int32_t kind) {
        in_range(op_.output_port, 0, int64_t(p_.ports.size()) - 1, name("output_port"));
        const dv_native_port& port = p_.port(op_.output_port);
        want(port.is_output == 1 && port.kind == kind, "output_port", "an output port of the op's kind");
        char& written = port_written_[size_t(op_.output_port)];
        want(written == 0, "output_port", "a port that no other op writes");
        written = 1;
        return port;
    }

    const dv_native_port& input_port(int32_t number, int32_t kind) const {
        in_range(number, 0, int64_t(p_.ports.size()) - 1, name("sources"));
        const dv_native_port& port = p_.port(number);
        want(port.is_output == 0 && port.kind == kind, "sources", "an input port of the op's kind");
        return port;
    }

    void blob(int64_t offset, int64_t bytes, const std::string& field) const {
        if (offset < 0 || offset % 64 != 0 || bytes > p_.weights_size || offset > p_.weights_size - bytes)
            refuse(name(field) + " is " + text(offset) + " for " + text(bytes) + " bytes, expected a multiple of 64 inside the "
                   + text(p_.weights_size) + " bytes of weights");
    }

    void input() {
        const int32_t count = count_of(op_.sources);
        want(count > 0, "sources", "1 to 4 ports");
        const dv_native_tensor& out = output();
        if (out.rows != DV_NATIVE_ROWS_NONE) {
            const dv_native_port& port = input_port(op_.sources[0], DV_NATIVE_PORT_TABLE);
            want(p_.of_rows && count == 1 && port.rows == DV_NATIVE_ROWS_BATCH && out.rows == DV_NATIVE_ROWS_BATCH
                     && port.channels == out.channels,
                 "output", "rows of batch like the one port read");
            return;
        }
        want(!p_.of_rows, "output", "rows, in a program of rows");
        want(op_.kernel == 1 || op_.kernel == 3, "kernel", "1 or 3");
        int64_t channels = 0;
        for (int32_t i = 0; i < count; ++i) {
            const dv_native_port& port = input_port(op_.sources[i], DV_NATIVE_PORT_MAP);
            want(port.height == out.height && port.width == out.width, "sources", "ports of the output's size");
            channels += port.channels;
        }
        want(channels * op_.kernel * op_.kernel == out.channels, "output",
             text(channels * op_.kernel * op_.kernel) + " channels, found " + text(out.channels));
    }

    void conv() {
        const int32_t count = count_of(op_.sources);
        want(count > 0, "sources", "1 to 4 maps");
        const dv_native_tensor& first = source(op_.sources[0], DV_NATIVE_ROWS_NONE, "sources");
        for (int32_t i = 1; i < count; ++i) {
            const dv_native_tensor& other = source(op_.sources[i], DV_NATIVE_ROWS_NONE, "sources");
            want(other.height == first.height && other.width == first.width, "sources", "maps of one size");
        }
        conv_added_numbers();
        int32_t channels, height, width;
        conv_output(channels, height, width);
        conv_geometry(first, height, width);
        const ConvShape s = conv_shape(p_, op_);
        in_range(s.channels, 1, kMostChannels, name("sources: channels"));
        conv_norm(s, count);
        conv_weights(s);
        conv_added(s, channels, height, width);
    }

    // Before the output counts as written: no op may add its own result.
    void conv_added_numbers() const {
        for (int32_t i = 0; i < count_of(op_.skip_sources); ++i)
            source(op_.skip_sources[i], DV_NATIVE_ROWS_NONE, "skip_sources");
        if (op_.residual != DV_NATIVE_NONE) source(op_.residual, DV_NATIVE_ROWS_NONE, "residual");
    }

    void conv_output(int32_t& channels, int32_t& height, int32_t& width) {
        want((op_.output == DV_NATIVE_NONE) != (op_.output_port == DV_NATIVE_NONE), "output", "either a tensor or a port");
        if (op_.output_port == DV_NATIVE_NONE) {
            const dv_native_tensor& out = output();
            want(out.rows == DV_NATIVE_ROWS_NONE, "output", "a map");
            want(op_.output_activation == DV_NATIVE_IDENTITY, "output_activation", "IDENTITY for a tensor");
            channels = out.channels, height = out.height, width = out.width;
            return;
        }
        const dv_native_port& out = output_port(DV_NATIVE_PORT_MAP);
        want(op_.output_activation == DV_NATIVE_IDENTITY || op_.output_activation == DV_NATIVE_SIGMOID
                 || op_.output_activation == DV_NATIVE_SIGNED_SIGMOID,
             "output_activation", "identity, sigmoid or signed_sigmoid");
        channels = out.channels, height = out.height, width = out.width;
    }

    void conv_geometry(const dv_native_tensor& in, int32_t height, int32_t width) const {
        want(op_.kernel == 1 || op_.kernel == 3, "kernel", "1 or 3");
        want(op_.stride == 1 || (op_.stride == 2 && op_.kernel == 3), "stride", "1, or 2 with kernel 3");
        want(op_.upsample == 0 || (op_.upsample == 1 && op_.kernel == 3 && op_.stride == 1), "upsample",
             "0, or 1 with kernel 3 and stride 1");
        const bool fits = op_.stride == 1 ? op_.pad_top == op_.kernel / 2 : op_.pad_top == 0 || op_.pad_top == 1;
        want(op_.pad_top == op_.pad_left && fits, "pad_top, pad_left", "kernel / 2 for stride 1, 0 or 1 for stride 2, the same in both directions");
        const auto size = [&](int32_t side) {
            if (op_.stride == 1) return op_.upsample == 1 ? 2 * side : side;
            return op_.pad_top == 1 ? (side - 1) / 2 + 1 : side / 2;
        };
        want(height == size(in.height) && width == size(in.width), "output",
             text(size(in.height)) + " x " + text(size(in.width)) + " pixels, found " + text(height) + " x " + text(width));
    }

    void conv_norm(const ConvShape& s, int32_t count) const {
        want(op_.activation >= DV_NATIVE_IDENTITY && op_.activation <= DV_NATIVE_GELU, "activation", "IDENTITY, SILU or GELU");
        if (op_.norm_groups == 0) {
            want(op_.scale_row == DV_NATIVE_NONE, "scale_row", "NONE without a norm");
            return;
        }
        want(op_.norm_groups > 0 && s.channels % op_.norm_groups == 0, "norm_groups",
             "a divisor of the " + text(s.channels) + " channels, found " + text(op_.norm_groups));
        want(std::isfinite(op_.norm_epsilon) && op_.norm_epsilon > 0.0f, "norm_epsilon", "a positive number");
        blob(op_.norm_weight, 4ll * s.channels, "norm_weight");
        blob(op_.norm_bias, 4ll * s.channels, "norm_bias");
        if (op_.scale_row != DV_NATIVE_NONE) row_slice(op_.scale_row, 2ll * s.channels, "scale_row");
        for (int32_t i = 0; i < count; ++i) {
            const int32_t writer = p_.writer[size_t(op_.sources[i])];
            want(p_.ops[size_t(writer)].kind == DV_NATIVE_CONV, "sources", "maps written by a CONV, which gathers the norm's sums");
        }
    }

    void row_slice(int32_t first, int64_t count, const std::string& field) const {
        want(p_.row_port != DV_NATIVE_NONE, field, "NONE in a program without a ROW port");
        const int64_t width = p_.port(p_.row_port).channels;
        if (first < 0 || first > width - count)
            refuse(name(field) + " is " + text(first) + " for " + text(count) + " values, expected a slice of the row's "
                   + text(width));
    }

    void conv_weights(const ConvShape& s) const {
        const int64_t outputs = 16ll * s.n_blocks * s.phases;
        blob(op_.weights, s.steps() * s.n_blocks * s.phases * kStepBytes, "weights");
        if (op_.bias != DV_NATIVE_NONE) blob(op_.bias, 4 * outputs, "bias");
        if (op_.bias_row != DV_NATIVE_NONE) row_slice(op_.bias_row, s.outputs, "bias_row");
        want(op_.int8 == 0 || op_.int8 == 1, "int8", "0 or 1");
        if (op_.int8 == 0) return;
        in_range(op_.zero_point, 0, 255, name("zero_point"));
        want(std::isfinite(op_.inverse_scale) && op_.inverse_scale > 0.0f, "inverse_scale", "a positive number");
        blob(op_.multiplier, 4 * outputs, "multiplier");
        // 255 * 127 * K must stay below 2^31 for int32 sums to be exact.
        want(int64_t(s.k_blocks) * 64 * s.taps <= 66000, "sources", "at most 66,000 products a sum for int8");
    }

    void conv_added(const ConvShape& s, int32_t channels, int32_t height, int32_t width) const {
        if (op_.residual != DV_NATIVE_NONE) {
            const dv_native_tensor& r = source(op_.residual, DV_NATIVE_ROWS_NONE, "residual");
            want(r.channels == channels && r.height == height && r.width == width, "residual", "a map of the output's shape");
        }
        if (s.skips == 0) {
            want(op_.skip_weights == DV_NATIVE_NONE, "skip_weights", "NONE without skip_sources");
            return;
        }
        want(op_.upsample == 0, "skip_sources", "none where the convolution upsamples");
        for (int32_t i = 0; i < s.skips; ++i) {
            const dv_native_tensor& t = p_.tensor(op_.skip_sources[i]);
            want(t.height == height && t.width == width, "skip_sources", "maps of the output's size");
        }
        blob(op_.skip_weights, int64_t(s.skip_blocks) * s.n_blocks * kStepBytes, "skip_weights");
    }

    void attention() {
        const dv_native_tensor& in = source(op_.sources[0], DV_NATIVE_ROWS_NONE, "sources");
        const dv_native_tensor& out = output();
        want(out.rows == DV_NATIVE_ROWS_NONE && out.height == in.height && out.width == in.width
                 && int64_t(in.channels) == 3ll * out.channels,
             "output", "a map of the source's size and a third of its channels");
        want(op_.heads > 0 && out.channels % op_.heads == 0, "heads", "a divisor of the output's channels");
        want(std::isfinite(op_.scale), "scale", "a number");
        want(in.height * in.width <= 1 << 14, "sources", "at most 16,384 pixels");
    }

    void resize() {
        const dv_native_tensor& in = source(op_.sources[0], DV_NATIVE_ROWS_NONE, "sources");
        const dv_native_tensor& out = output();
        in_range(op_.factor, 1, kMostSide, name("factor"));
        const int32_t k = op_.factor;
        const bool pool = op_.kind == DV_NATIVE_POOL;
        const bool fits = pool ? in.height / k == out.height && in.width / k == out.width
                               : in.height * k == out.height && in.width * k == out.width;
        want(out.rows == DV_NATIVE_ROWS_NONE && out.channels == in.channels && fits, "output",
             "a map of the source's channels whose size follows from the factor");
    }

    void lookup() {
        want(op_.sources[0] != DV_NATIVE_NONE, "sources", "the STEPS port");
        input_port(op_.sources[0], DV_NATIVE_PORT_STEPS);
        const dv_native_tensor& out = output();
        want(out.rows == DV_NATIVE_ROWS_STEPS, "output", "rows of steps");
        in_range(op_.factor, 1, 1 << 24, name("factor"));
        blob(op_.weights, 4ll * op_.factor * out.channels, "weights");
    }

    void linear() {
        in_range(op_.sources[0], 0, int64_t(p_.tensors.size()) - 1, name("sources"));
        const dv_native_tensor& in = source(op_.sources[0], p_.tensor(op_.sources[0]).rows, "sources");
        want((op_.output == DV_NATIVE_NONE) != (op_.output_port == DV_NATIVE_NONE), "output", "either a tensor or a port");
        want(op_.activation == DV_NATIVE_IDENTITY || op_.activation == DV_NATIVE_SILU, "activation", "IDENTITY or SILU");
        const bool to_port = op_.output == DV_NATIVE_NONE;
        const int32_t rows = to_port ? output_port(DV_NATIVE_PORT_TABLE).rows : output().rows;
        const int64_t outputs = to_port ? p_.port(op_.output_port).channels : p_.tensor(op_.output).channels;
        want(rows == in.rows, "output", "rows of the source's kind");
        const int64_t blocks = (outputs + kLanes - 1) / kLanes;
        blob(op_.weights, blocks * kLanes * in.channels * 4, "weights");
        if (op_.bias != DV_NATIVE_NONE) blob(op_.bias, blocks * kLanes * 4, "bias");
    }

    void add() {
        const dv_native_tensor& steps = source(op_.sources[0], DV_NATIVE_ROWS_STEPS, "sources[0]");
        const dv_native_tensor& batch = source(op_.sources[1], DV_NATIVE_ROWS_BATCH, "sources[1]");
        const dv_native_tensor& out = output();
        want(out.rows == DV_NATIVE_ROWS_PAIRS && out.channels == steps.channels && out.channels == batch.channels, "output",
             "rows of pairs, as wide as both sources");
    }

    Program& p_;
    const dv_native_op& op_;
    int32_t index_;
    std::vector<char>& port_written_;
};

void check_ports(Program& p) {
    for (size_t i = 0; i < p.ports.size(); ++i) {
        const dv_native_port& port = p.ports[i];
        const std::string name = "port " + text(int64_t(i));
        in_range(port.kind, DV_NATIVE_PORT_MAP, DV_NATIVE_PORT_TABLE, name + ", kind");
        in_range(port.is_output, 0, 1, name + ", is_output");
        in_range(port.channels, 1, port.kind == DV_NATIVE_PORT_MAP ? kMostChannels : 1 << 24, name + ", channels");
        in_range(port.height, 1, port.kind == DV_NATIVE_PORT_MAP ? kMostSide : 1, name + ", height");
        in_range(port.width, 1, port.kind == DV_NATIVE_PORT_MAP ? kMostSide : 1, name + ", width");
        const bool table = port.kind == DV_NATIVE_PORT_TABLE;
        in_range(port.rows, table ? DV_NATIVE_ROWS_STEPS : 0, table ? DV_NATIVE_ROWS_PAIRS : 0, name + ", rows");
        if (port.kind != DV_NATIVE_PORT_ROW && port.kind != DV_NATIVE_PORT_STEPS) continue;
        demand(port.is_output == 0, name + " is an output, expected an input for its kind");
        int32_t& only = port.kind == DV_NATIVE_PORT_ROW ? p.row_port : p.steps_port;
        demand(only == DV_NATIVE_NONE, name + " is the second of its kind, expected at most one");
        only = int32_t(i);
    }
}

void check_tensors(const Program& p) {
    for (size_t i = 0; i < p.tensors.size(); ++i) {
        const dv_native_tensor& t = p.tensors[i];
        const std::string name = "tensor " + text(int64_t(i));
        in_range(t.rows, DV_NATIVE_ROWS_NONE, DV_NATIVE_ROWS_PAIRS, name + ", rows");
        const bool map = t.rows == DV_NATIVE_ROWS_NONE;
        in_range(t.channels, 1, kMostChannels, name + ", channels");
        in_range(t.height, 1, map ? kMostSide : 1, name + ", height");
        in_range(t.width, 1, map ? kMostSide : 1, name + ", width");
    }
}

}  // namespace

ConvShape conv_shape(const Program& p, const dv_native_op& op) {
    ConvShape s{};
    s.sources = count_of(op.sources);
    int64_t channels = 0, blocks = 0;
    for (int32_t i = 0; i < s.sources; ++i) {
        channels += p.tensor(op.sources[i]).channels;
        blocks += blocks_of(p.tensor(op.sources[i]).channels);
    }
    s.channels = int32_t(channels);
    s.map_blocks = int32_t(blocks);
    s.k_blocks = op.int8 == 1 ? (s.map_blocks + 1) / 2 : s.map_blocks;
    s.height = p.tensor(op.sources[0]).height;
    s.width = p.tensor(op.sources[0]).width;
    const bool to_port = op.output == DV_NATIVE_NONE;
    s.outputs = to_port ? p.port(op.output_port).channels : p.tensor(op.output).channels;
    s.out_height = to_port ? p.port(op.output_port).height : p.tensor(op.output).height;
    s.out_width = to_port ? p.port(op.output_port).width : p.tensor(op.output).width;
    s.taps = op.upsample == 1 ? 4 : op.kernel * op.kernel;
    s.phases = op.upsample == 1 ? 4 : 1;
    s.n_blocks = to_port ? (s.outputs + kLanes - 1) / kLanes : 2 * blocks_of(s.outputs);
    s.skips = count_of(op.skip_sources);
    for (int32_t i = 0; i < s.skips; ++i) s.skip_blocks += blocks_of(p.tensor(op.skip_sources[i]).channels);
    return s;
}

Program checked(const dv_native_program& given) {
    demand(given.version == DV_NATIVE_VERSION,
           "the program has version " + text(given.version) + ", expected " + text(DV_NATIVE_VERSION));
    in_range(given.ports_count, 1, kMostPorts, "ports_count");
    in_range(given.tensors_count, 1, kMostTensors, "tensors_count");
    in_range(given.ops_count, 1, kMostOps, "ops_count");
    demand(given.ports && given.tensors && given.ops && given.weights, "a pointer of the program is null");
    in_range(given.weights_size, 0, INT64_MAX, "weights_size");
    demand(reinterpret_cast<uintptr_t>(given.weights) % 64 == 0, "the weights do not start at a multiple of 64 bytes");
    Program p{{given.ports, given.ports + given.ports_count},
              {given.tensors, given.tensors + given.tensors_count},
              {given.ops, given.ops + given.ops_count},
              static_cast<const uint8_t*>(given.weights),
              given.weights_size,
              false,
              DV_NATIVE_NONE,
              DV_NATIVE_NONE,
              {}};
    check_ports(p);
    check_tensors(p);
    p.writer.assign(p.tensors.size(), DV_NATIVE_NONE);
    p.of_rows = std::any_of(p.ops.begin(), p.ops.end(), [](const dv_native_op& op) { return op.kind >= DV_NATIVE_LOOKUP; });
    std::vector<char> port_written(p.ports.size(), 0);
    for (int32_t i = 0; i < given.ops_count; ++i) OpCheck(p, i, port_written).run();
    for (size_t i = 0; i < p.ports.size(); ++i)
        demand(p.ports[i].is_output == 0 || port_written[i] == 1, "port " + text(int64_t(i)) + " is written by no op");
    return p;
}

}  // namespace native
}  // namespace diffusevae
