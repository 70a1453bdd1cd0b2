#include "backends/native_program.h"

#include <algorithm>
#include <map>
#include <set>

#include "text.h"

namespace diffusevae {
namespace {

constexpr int64_t kVersion = 1;
constexpr size_t kMaxProgramBytes = size_t(16) << 20;
// Channels of a block, outputs of a tile, bytes of a packed K step.
constexpr int64_t kBlock = 32, kTileOutputs = 16, kStepBytes = 1024;
constexpr int64_t kMaxChannels = int64_t(1) << 20, kMaxSide = int64_t(1) << 14, kMaxRow = int64_t(1) << 24;
constexpr int64_t kMaxLookupRows = 1'000'000;

// In the order of native.h's numbers, from DV_NATIVE_PORT_MAP, _ROWS_NONE, _IDENTITY and _INPUT on.
const std::vector<std::string> kPortKinds = {"map", "row", "steps", "table"};
const std::vector<std::string> kRows = {"none", "steps", "batch", "pairs"};
const std::vector<std::string> kActivations = {"identity", "silu", "gelu", "sigmoid", "signed_sigmoid"};
const std::vector<std::string> kOps = {"input", "conv", "attention", "pool", "upsample", "lookup", "linear", "add"};

int32_t number_of(const std::vector<std::string>& words, const std::string& word) {
    return int32_t(std::find(words.begin(), words.end(), word) - words.begin());
}

int64_t rounded(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }
int64_t blocks_of(int64_t channels) { return (channels + kBlock - 1) / kBlock; }

dv_native_op empty_op(int32_t kind) {
    dv_native_op op = {};
    op.kind = kind;
    std::fill(std::begin(op.sources), std::end(op.sources), DV_NATIVE_NONE);
    std::fill(std::begin(op.skip_sources), std::end(op.skip_sources), DV_NATIVE_NONE);
    op.output = op.output_port = op.scale_row = op.bias_row = op.residual = DV_NATIVE_NONE;
    op.norm_weight = op.norm_bias = op.weights = op.bias = op.skip_weights = op.multiplier = DV_NATIVE_NONE;
    return op;
}

// Reads ports, tensors and operations in order, and knows by name what there is so far.
class Reader {
public:
    Reader(const Blobs& blobs, NativeProgram& program) : blobs_(blobs), p_(program) {}

    void read_ports(Fields& top) {
        for (Fields& fields : top.objects("ports", "a list of ports")) {
            p_.port_names.push_back(name(fields, port_index_));
            dv_native_port port = {};
            port.kind = DV_NATIVE_PORT_MAP + number_of(kPortKinds, fields.choice("kind", kPortKinds));
            port.rows = number_of(kRows, fields.choice("rows", kRows));
            if ((port.kind == DV_NATIVE_PORT_TABLE) != (port.rows != DV_NATIVE_ROWS_NONE))
                fields.refuse("rows", "'none' unless the port is a table, and something else if it is");
            sizes(fields, port);
            port.is_output = fields.boolean("output");
            fields.done();
            p_.ports.push_back(port);
        }
    }

    void read_tensors(Fields& top) {
        for (Fields& fields : top.objects("tensors", "a list of tensors")) {
            name(fields, tensor_index_);
            dv_native_tensor tensor = {};
            tensor.rows = number_of(kRows, fields.choice("rows", kRows));
            sizes(fields, tensor);
            fields.done();
            p_.tensors.push_back(tensor);
        }
    }

    void read_op(Fields& fields) {
        using Read = void (Reader::*)(Fields&, dv_native_op&);
        static constexpr Read kReads[] = {&Reader::input, &Reader::conv, &Reader::attention, &Reader::resample,
                                          &Reader::resample, &Reader::lookup, &Reader::linear, &Reader::add};
        const int32_t kind = number_of(kOps, fields.choice("kind", kOps));
        fields.text("name");
        dv_native_op op = empty_op(DV_NATIVE_INPUT + kind);
        (this->*kReads[kind])(fields, op);
        fields.done();
        if (op.output != DV_NATIVE_NONE && !written_.insert(op.output).second)
            fields.refuse("output", "a tensor that no operation before this one writes");
        p_.ops.push_back(op);
    }

private:
    using Index = std::map<std::string, int32_t, std::less<>>;

    static std::string name(Fields& fields, Index& index) {
        const std::string name = fields.text("name");
        if (!index.emplace(name, int32_t(index.size())).second) fields.refuse("name", "a name of its own");
        return name;
    }

    template <class Sized>
    static void sizes(Fields& fields, Sized& sized) {
        sized.channels = int32_t(fields.integer("channels", 1, kMaxChannels));
        sized.height = int32_t(fields.integer("height", 1, kMaxSide));
        sized.width = int32_t(fields.integer("width", 1, kMaxSide));
    }

    // ---- one of each kind ------------------------------------------------------------------------------------------

    void input(Fields& fields, dv_native_op& op) {
        const List& names = fields.items("sources", "a list of ports");
        for (size_t i = 0; i < names.size(); ++i) {
            const int32_t* port = find(port_index_, names[i]);
            if (port == nullptr || names.size() > DV_NATIVE_MAX_SOURCES)
                fields.refuse("sources", "1 to " + std::to_string(DV_NATIVE_MAX_SOURCES) + " names of ports");
            op.sources[i] = *port;
        }
        op.kernel = one_of(fields, "kernel", 1, 3);
        op.output = output(fields);
    }

    void conv(Fields& fields, dv_native_op& op) {
        sources(fields, op.sources);
        const int64_t padded = target(fields, op, kBlock);
        op.kernel = one_of(fields, "kernel", 1, 3);
        op.stride = one_of(fields, "stride", 1, 2);
        op.pad_top = one_of(fields, "pad_top", 0, 1);
        op.pad_left = one_of(fields, "pad_left", 0, 1);
        op.upsample = fields.boolean("upsample");
        op.activation = number_of(kActivations, fields.choice("activation", {"identity", "silu", "gelu"}));
        op.output_activation = number_of(kActivations, fields.choice("output_activation", {"identity", "sigmoid", "signed_sigmoid"}));
        if (is_there(fields, "norm", "an object or null")) norm(fields.object("norm"), op);
        op.bias_row = row(fields, "bias_row");
        if (is_there(fields, "residual", "the name of a tensor, or null")) op.residual = tensor(fields, "residual");
        conv_weights(fields, op, padded);
        if (is_there(fields, "skip", "an object or null")) skip(fields.object("skip"), op, padded);
    }

    void conv_weights(Fields& fields, dv_native_op& op, int64_t padded) {
        const int64_t phases = op.upsample != 0 ? 4 : 1, taps = op.upsample != 0 ? 4 : int64_t(op.kernel) * op.kernel;
        const int64_t tiles = phases * (padded / kTileOutputs), count = source_blocks(op.sources);
        if (is_there(fields, "int8", "an object or null")) {
            Fields int8 = fields.object("int8");
            op.int8 = 1;
            op.zero_point = int32_t(int8.integer("zero_point", 0, 255));
            op.inverse_scale = float(int8.number("inverse_scale", 1e-9, 1e9));
            op.multiplier = blob(int8, "multiplier", "F32", 4 * phases * padded);
            int8.done();
            op.weights = blob(fields, "weights", "I8", tiles * ((count + 1) / 2) * taps * kStepBytes);
        } else {
            op.weights = blob(fields, "weights", "BF16", tiles * count * taps * kStepBytes);
        }
        if (is_there(fields, "bias", "the name of weights, or null"))
            op.bias = blob(fields, "bias", "F32", 4 * phases * padded);
    }

    void norm(Fields fields, dv_native_op& op) {
        int64_t channels = 0;
        for (const int32_t source : op.sources)
            if (source != DV_NATIVE_NONE) channels += p_.tensors[size_t(source)].channels;
        op.norm_groups = int32_t(fields.integer("groups", 1, channels));
        op.norm_epsilon = float(fields.number("epsilon", 1e-12, 1.0));
        op.norm_weight = blob(fields, "weight", "F32", 4 * channels);
        op.norm_bias = blob(fields, "bias", "F32", 4 * channels);
        op.scale_row = row(fields, "scale_row");
        fields.done();
    }

    void skip(Fields fields, dv_native_op& op, int64_t padded) {
        sources(fields, op.skip_sources);
        const int64_t count = source_blocks(op.skip_sources);
        op.skip_weights = blob(fields, "weights", "BF16", padded / kTileOutputs * count * kStepBytes);
        fields.done();
    }

    void attention(Fields& fields, dv_native_op& op) {
        op.sources[0] = tensor(fields, "source");
        op.output = output(fields);
        op.heads = int32_t(fields.integer("heads", 1, kMaxChannels));
        op.scale = float(fields.number("scale", 1e-9, 1e9));
    }

    void resample(Fields& fields, dv_native_op& op) {
        op.sources[0] = tensor(fields, "source");
        op.output = output(fields);
        op.factor = int32_t(fields.integer("factor", 2, kMaxSide));
    }

    void lookup(Fields& fields, dv_native_op& op) {
        op.sources[0] = port(fields, "source");
        op.output = output(fields);
        op.factor = int32_t(fields.integer("factor", 1, kMaxLookupRows));
        op.weights = blob(fields, "weights", "F32", 4 * int64_t(op.factor) * p_.tensors[size_t(op.output)].channels);
    }

    void linear(Fields& fields, dv_native_op& op) {
        op.sources[0] = tensor(fields, "source");
        const int64_t inputs = p_.tensors[size_t(op.sources[0])].channels, padded = target(fields, op, kTileOutputs);
        op.activation = number_of(kActivations, fields.choice("activation", {"identity", "silu"}));
        op.weights = blob(fields, "weights", "F32", 4 * padded * inputs);
        if (is_there(fields, "bias", "the name of weights, or null")) op.bias = blob(fields, "bias", "F32", 4 * padded);
    }

    void add(Fields& fields, dv_native_op& op) {
        if (sources(fields, op.sources) != 2)
            fields.refuse("sources", "two tensors: rows of steps, and rows of the batch");
        op.output = output(fields);
    }

    // ---- what an operation refers to -------------------------------------------------------------------------------

    static const int32_t* find(const Index& index, const Value& name) {
        const std::string* text = name.text();
        const auto found = text == nullptr ? index.end() : index.find(*text);
        return found == index.end() ? nullptr : &found->second;
    }

    static bool is_there(Fields& fields, const char* key, const char* expected) {
        return !fields.take(key, expected).is_null();
    }

    static int32_t one_of(Fields& fields, const char* key, int32_t low, int32_t high) {
        const int64_t value = fields.integer(key, low, high);
        const bool known = value == low || value == high;
        if (!known) fields.refuse(key, "one of " + std::to_string(low) + ", " + std::to_string(high));
        return int32_t(value);
    }

    // An offset into the row, or NONE where it is null.
    static int32_t row(Fields& fields, const char* key) {
        return is_there(fields, key, "an integer or null") ? int32_t(fields.integer(key, 0, kMaxRow)) : DV_NATIVE_NONE;
    }

    int32_t port(Fields& fields, const char* key) const {
        const int32_t* number = find(port_index_, fields.take(key, "the name of a port"));
        if (number == nullptr) fields.refuse(key, "the name of a port");
        return *number;
    }

    int32_t tensor(Fields& fields, const char* key) const {
        return earlier(fields, key, fields.take(key, "the name of a tensor"));
    }

    int32_t earlier(const Fields& fields, const char* key, const Value& name) const {
        const int32_t* number = find(tensor_index_, name);
        if (number == nullptr || written_.count(*number) == 0)
            fields.refuse(key, "names of tensors that operations before this one write (not " + shown(name) + ")");
        return *number;
    }

    // One to MAX_SOURCES tensors that earlier operations write; how many.
    size_t sources(Fields& fields, int32_t (&numbers)[DV_NATIVE_MAX_SOURCES]) const {
        const List& names = fields.items("sources", "a list of tensors");
        if (names.size() > DV_NATIVE_MAX_SOURCES)
            fields.refuse("sources", "at most " + std::to_string(DV_NATIVE_MAX_SOURCES) + " tensors");
        for (size_t i = 0; i < names.size(); ++i) numbers[i] = earlier(fields, "sources", names[i]);
        return names.size();
    }

    int64_t source_blocks(const int32_t (&numbers)[DV_NATIVE_MAX_SOURCES]) const {
        int64_t count = 0;
        for (const int32_t number : numbers)
            if (number != DV_NATIVE_NONE) count += blocks_of(p_.tensors[size_t(number)].channels);
        return count;
    }

    int32_t output(Fields& fields) const {
        const int32_t* number = find(tensor_index_, fields.take("output", "the name of a tensor"));
        if (number == nullptr) fields.refuse("output", "the name of a tensor");
        return *number;
    }

    // Reads `output` and `output_port`, one of which is null; the channels as weights pad them: to tiles for a port, else
    // to `tensor_multiple`.
    int64_t target(Fields& fields, dv_native_op& op, int64_t tensor_multiple) const {
        if (!is_there(fields, "output", "the name of a tensor, or null")) {
            op.output_port = port(fields, "output_port");
            return rounded(p_.ports[size_t(op.output_port)].channels, kTileOutputs);
        }
        if (is_there(fields, "output_port", "null, since there is an output"))
            fields.refuse("output_port", "null, since there is an output");
        op.output = output(fields);
        return rounded(p_.tensors[size_t(op.output)].channels, tensor_multiple);
    }

    // The offset of packed weights of exactly this dtype and size, rounded up to 64 bytes.
    int64_t blob(Fields& fields, const char* key, const char* dtype, int64_t size) const {
        size = rounded(size, 64);
        const std::string expected =
            std::string("the name of ") + dtype + " weights of " + std::to_string(size) + " bytes";
        const std::string* name = fields.take(key, expected).text();
        const auto found = name == nullptr ? blobs_.end() : blobs_.find(*name);
        if (found == blobs_.end()) fields.refuse(key, expected);
        const Blob& blob = found->second;
        if (blob.dtype != dtype || blob.size != size)
            fields.refuse(key, expected + " (these are " + blob.dtype + ", " + std::to_string(blob.size) + " bytes)");
        return blob.offset;
    }

    const Blobs& blobs_;
    NativeProgram& p_;
    Index port_index_, tensor_index_;
    std::set<int32_t> written_;
};

// Whether a port takes exactly the arrays of a tensor in the manifest.
bool fits(const dv_native_port& port, const TensorSpec& tensor) {
    using Shape = std::vector<Dimension>;
    const int64_t channels = port.channels;
    const Dimension batch("batch"), steps("steps");
    if (port.kind == DV_NATIVE_PORT_STEPS) return tensor.dtype == "int64" && tensor.shape == Shape{steps};
    std::vector<Shape> shapes;
    if (port.kind == DV_NATIVE_PORT_MAP) {
        shapes.push_back({batch, channels, int64_t(port.height), int64_t(port.width)});
        if (port.height == 1 && port.width == 1) shapes.push_back({batch, channels});
    } else if (port.kind == DV_NATIVE_PORT_ROW) {
        shapes = {{int64_t(1), channels}, {batch, channels}};
    } else {
        const Shape of_rows[] = {{}, {steps, channels}, {batch, channels}, {steps, batch, channels}};
        shapes.push_back(of_rows[port.rows]);
    }
    return tensor.dtype == "float32" && std::find(shapes.begin(), shapes.end(), tensor.shape) != shapes.end();
}

std::string as_text(const dv_native_port& port) {
    return std::string(port.is_output != 0 ? "output" : "input") + " of (" + std::to_string(port.channels) + ", "
           + std::to_string(port.height) + ", " + std::to_string(port.width) + ")";
}

}  // namespace

int32_t NativeProgram::port(std::string_view name) const {
    const auto found = std::find(port_names.begin(), port_names.end(), name);
    return found == port_names.end() ? DV_NATIVE_NONE : int32_t(found - port_names.begin());
}

dv_native_program NativeProgram::flat(const Weights& weights) const {
    return {DV_NATIVE_VERSION, int32_t(ports.size()), int32_t(tensors.size()), int32_t(ops.size()),
            ports.data(), tensors.data(), ops.data(), weights.data(), weights.size()};
}

NativeProgram parse_program(std::string_view data, const Blobs& blobs, const std::string& role,
                            const std::string& precision, const std::string& where) {
    const Origin origin = program_origin(where);
    if (data.size() > kMaxProgramBytes)
        refuse(origin, "", std::to_string(data.size()) + " bytes", "at most " + std::to_string(kMaxProgramBytes));
    const Value raw = parse_json(data, origin);
    Fields top(raw, origin);
    top.choice("format", {"diffusevae-native"});
    top.integer("version", kVersion, kVersion);
    top.choice("role", {role});
    top.choice("precision", {precision});
    NativeProgram program;
    Reader reader(blobs, program);
    reader.read_ports(top);
    reader.read_tensors(top);
    for (Fields& fields : top.objects("ops", "a list of operations")) reader.read_op(fields);
    top.done();
    return program;
}

void check_ports(const NativeProgram& program, const GraphSpec& spec, const std::string& where) {
    std::map<std::string, std::pair<const TensorSpec*, bool>> expected;
    for (const TensorSpec& tensor : spec.inputs) expected[tensor.name] = {&tensor, false};
    for (const TensorSpec& tensor : spec.outputs) expected[tensor.name] = {&tensor, true};
    std::vector<std::string> want, have = program.port_names;
    for (const auto& [name, tensor] : expected) want.push_back(name);
    std::sort(have.begin(), have.end());
    if (have != want)
        refuse(program_origin(where), "ports", in_quotes(joined(program.port_names)),
               joined(want) + " as the manifest says of the graph");
    for (size_t i = 0; i < program.ports.size(); ++i) {
        const auto& [tensor, output] = expected[program.port_names[i]];
        if ((program.ports[i].is_output != 0) != output || !fits(program.ports[i], *tensor))
            refuse(program_origin(where), "ports", program.port_names[i] + " as " + as_text(program.ports[i]),
                   (output ? "output " : "input ") + tensor->text() + " as the manifest says of the graph");
    }
}

}  // namespace diffusevae
