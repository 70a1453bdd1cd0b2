#include "backends/native_program.h"

#include <algorithm>
#include <limits>
#include <map>
#include <set>

#include "text.h"

namespace diffusevae {
namespace {

constexpr size_t kMaxProgramBytes = size_t(16) << 20;
constexpr double kMaxFloat = double(std::numeric_limits<float>::max());

// In the order of native.h's numbers, from DV_NATIVE_PORT_MAP, _ROWS_NONE, _IDENTITY and _INPUT on.
const std::vector<std::string> kPortKinds = {"map", "row", "steps", "table", "tokens", "ids"};
const std::vector<std::string> kRows = {"none", "steps", "batch", "pairs"};
const std::vector<std::string> kActivations = {"identity", "silu", "gelu", "sigmoid", "signed_sigmoid", "geglu", "relu"};
const std::vector<std::string> kOps = {"input", "conv",  "attention", "pool",          "upsample",           "lookup",  "linear",
                                       "add",   "embed", "nearest",   "norm_gradient", "attention_gradient", "classify", "norm"};
const std::vector<std::string> kDtypes = {"F32", "BF16", "I8"};

int32_t number_of(const std::vector<std::string>& words, const std::string& word) {
    return int32_t(std::find(words.begin(), words.end(), word) - words.begin());
}

dv_native_op empty_op(int32_t kind) {
    dv_native_op op = {};
    op.kind = kind;
    std::fill(std::begin(op.sources), std::end(op.sources), DV_NATIVE_NONE);
    std::fill(std::begin(op.skip_sources), std::end(op.skip_sources), DV_NATIVE_NONE);
    op.output = op.output_port = op.scale_row = op.bias_row = op.residual = DV_NATIVE_NONE;
    op.norm_weight = op.norm_bias = op.weights = op.bias = op.skip_weights = op.multiplier = DV_NATIVE_NONE;
    op.labels = op.places = op.offset = op.modulation = DV_NATIVE_NONE;
    return op;
}

// Reads ports, tensors and operations in order; names become numbers, null becomes NONE.
class Reader {
public:
    Reader(const Blobs& blobs, NativeProgram& program) : p_(program) {
        for (const auto& [name, blob] : blobs) {
            blob_index_.emplace(name, int32_t(p_.blobs.size()));
            p_.blobs.push_back({blob.offset, blob.size, DV_NATIVE_F32 + number_of(kDtypes, blob.dtype)});
        }
    }

    void read_ports(Fields& top) {
        for (Fields& fields : top.objects("ports", "a list of ports")) {
            p_.port_names.push_back(name(fields, port_index_));
            dv_native_port port = {};
            port.kind = DV_NATIVE_PORT_MAP + number_of(kPortKinds, fields.choice("kind", kPortKinds));
            port.rows = number_of(kRows, fields.choice("rows", kRows));
            sizes(fields, port);
            port.is_output = fields.boolean("output");
            fields.done();
            p_.ports.push_back(port);
        }
    }

    void read_tensors(Fields& top) {
        for (Fields& fields : top.objects("tensors", "a list of tensors, which may be empty", true)) {
            name(fields, tensor_index_);
            dv_native_tensor tensor = {};
            tensor.rows = number_of(kRows, fields.choice("rows", kRows));
            sizes(fields, tensor);
            fields.done();
            p_.tensors.push_back(tensor);
        }
    }

    void read_op(Fields& fields) {
        using Read = void (Reader::*)(Fields&, dv_native_op&) const;
        static constexpr Read kReads[] = {&Reader::input, &Reader::conv, &Reader::attention, &Reader::resample,
                                          &Reader::resample, &Reader::lookup, &Reader::linear, &Reader::add,
                                          &Reader::embed, &Reader::nearest, &Reader::norm_gradient,
                                          &Reader::attention_gradient, &Reader::classify, &Reader::activated_norm};
        const int32_t kind = number_of(kOps, fields.choice("kind", kOps));
        fields.text("name");
        dv_native_op op = empty_op(DV_NATIVE_INPUT + kind);
        (this->*kReads[kind])(fields, op);
        fields.done();
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
        sized.channels = integer(fields, "channels");
        sized.height = integer(fields, "height");
        sized.width = integer(fields, "width");
    }

    // ---- one of each kind ------------------------------------------------------------------------------------------

    void input(Fields& fields, dv_native_op& op) const {
        list(fields, "sources", port_index_, "names of ports", op.sources);
        op.output = tensor(fields, "output");
        op.kernel = integer(fields, "kernel");
        op.stride = integer(fields, "stride");
        op.factor = integer(fields, "factor");
        if (is_there(fields, "offset")) op.offset = integer(fields, "offset");
    }

    void conv(Fields& fields, dv_native_op& op) const {
        list(fields, "sources", tensor_index_, "names of tensors", op.sources);
        target(fields, op);
        op.kernel = integer(fields, "kernel");
        op.stride = integer(fields, "stride");
        op.pad_top = integer(fields, "pad_top");
        op.pad_left = integer(fields, "pad_left");
        op.upsample = fields.boolean("upsample");
        op.activation = activation(fields, "activation");
        op.output_activation = activation(fields, "output_activation");
        op.weights = weights(fields, "weights");
        if (is_there(fields, "bias")) op.bias = weights(fields, "bias");
        if (is_there(fields, "bias_row")) op.bias_row = integer(fields, "bias_row");
        if (is_there(fields, "residual")) op.residual = tensor(fields, "residual");
        op.residual_scale = real(fields, "residual_scale");
        if (is_there(fields, "norm")) norm(fields.object("norm"), op);
        if (is_there(fields, "int8")) int8(fields.object("int8"), op);
        if (is_there(fields, "skip")) skip(fields.object("skip"), op);
    }

    void norm(Fields fields, dv_native_op& op) const {
        op.norm_groups = integer(fields, "groups");
        op.norm_layer = fields.boolean("layer");
        op.norm_epsilon = real(fields, "epsilon");
        op.norm_weight = weights(fields, "weight");
        op.norm_bias = weights(fields, "bias");
        if (is_there(fields, "scale_row")) op.scale_row = integer(fields, "scale_row");
        fields.done();
    }

    void int8(Fields fields, dv_native_op& op) const {
        op.int8 = 1;
        op.zero_point = integer(fields, "zero_point");
        op.inverse_scale = real(fields, "inverse_scale");
        op.multiplier = weights(fields, "multiplier");
        fields.done();
    }

    void skip(Fields fields, dv_native_op& op) const {
        list(fields, "sources", tensor_index_, "names of tensors", op.skip_sources);
        op.skip_weights = weights(fields, "weights");
        fields.done();
    }

    void attention(Fields& fields, dv_native_op& op) const {
        list(fields, "sources", tensor_index_, "names of tensors", op.sources);
        op.output = tensor(fields, "output");
        op.heads = integer(fields, "heads");
        op.keys = integer(fields, "keys");
        op.scale = real(fields, "scale");
    }

    void resample(Fields& fields, dv_native_op& op) const {
        op.sources[0] = tensor(fields, "source");
        op.output = tensor(fields, "output");
        op.factor = integer(fields, "factor");
        op.kernel = integer(fields, "kernel");
    }

    void lookup(Fields& fields, dv_native_op& op) const {
        op.sources[0] = port(fields, "source");
        op.output = tensor(fields, "output");
        op.factor = integer(fields, "factor");
        op.weights = weights(fields, "weights");
    }

    void linear(Fields& fields, dv_native_op& op) const {
        op.sources[0] = tensor(fields, "source");
        target(fields, op);
        op.activation = activation(fields, "activation");
        op.weights = weights(fields, "weights");
        if (is_there(fields, "bias")) op.bias = weights(fields, "bias");
    }

    void add(Fields& fields, dv_native_op& op) const {
        list(fields, "sources", tensor_index_, "names of tensors", op.sources);
        op.output = tensor(fields, "output");
    }

    void embed(Fields& fields, dv_native_op& op) const {
        op.sources[0] = port(fields, "source");
        target(fields, op);
        op.factor = integer(fields, "factor");
        op.stride = integer(fields, "stride");
        op.weights = weights(fields, "weights");
        if (is_there(fields, "places")) op.bias = weights(fields, "places");
    }

    void nearest(Fields& fields, dv_native_op& op) const {
        op.sources[0] = port(fields, "source");
        op.output_port = port(fields, "output_port");
        op.factor = integer(fields, "factor");
        op.scale = real(fields, "scale");
        op.weights = weights(fields, "weights");
        op.bias = weights(fields, "halves");
    }

    void norm_gradient(Fields& fields, dv_native_op& op) const {
        list(fields, "sources", tensor_index_, "names of tensors", op.sources);
        op.output = tensor(fields, "output");
        if (is_there(fields, "residual")) op.residual = tensor(fields, "residual");
        op.factor = integer(fields, "factor");
        op.activation = activation(fields, "activation");
        norm(fields.object("norm"), op);
    }

    void attention_gradient(Fields& fields, dv_native_op& op) const {
        list(fields, "sources", tensor_index_, "names of tensors", op.sources);
        op.output = tensor(fields, "output");
        op.heads = integer(fields, "heads");
        op.scale = real(fields, "scale");
    }

    void classify(Fields& fields, dv_native_op& op) const {
        op.sources[0] = tensor(fields, "source");
        op.output = tensor(fields, "output");
        op.labels = port(fields, "labels");
        op.output_port = port(fields, "output_port");
        op.factor = integer(fields, "factor");
        op.heads = integer(fields, "heads");
        op.scale = real(fields, "scale");
        op.weights = weights(fields, "weights");
        op.bias = weights(fields, "bias");
        if (is_there(fields, "places")) op.places = weights(fields, "places");
    }

    void activated_norm(Fields& fields, dv_native_op& op) const {
        list(fields, "sources", tensor_index_, "names of tensors", op.sources);
        op.output = tensor(fields, "output");
        if (is_there(fields, "modulation")) op.modulation = tensor(fields, "modulation");
        op.activation = activation(fields, "activation");
        norm(fields.object("norm"), op);
    }

    // ---- fields ----------------------------------------------------------------------------------------------------

    static bool is_there(Fields& fields, const char* key) { return !fields.take(key, "a value or null").is_null(); }

    // What an int32 holds; NONE, a negative number, is not for files.
    static int32_t integer(Fields& fields, const char* key) { return int32_t(fields.integer(key, 0, INT32_MAX)); }

    static float real(Fields& fields, const char* key) { return float(fields.number(key, -kMaxFloat, kMaxFloat)); }

    static int32_t activation(Fields& fields, const char* key) {
        return number_of(kActivations, fields.choice(key, kActivations));
    }

    static int32_t number(Fields& fields, const char* key, const Value& name, const Index& index, const std::string& expected) {
        const std::string* text = name.text();
        const auto found = text == nullptr ? index.end() : index.find(*text);
        if (found == index.end()) fields.refuse(key, expected + " (not " + shown(name) + ")");
        return found->second;
    }

    static int32_t one(Fields& fields, const char* key, const Index& index, const char* expected) {
        return number(fields, key, fields.take(key, expected), index, expected);
    }

    int32_t port(Fields& fields, const char* key) const { return one(fields, key, port_index_, "the name of a port"); }
    int32_t tensor(Fields& fields, const char* key) const { return one(fields, key, tensor_index_, "the name of a tensor"); }
    int32_t weights(Fields& fields, const char* key) const { return one(fields, key, blob_index_, "the name of weights"); }

    // One to MAX_SOURCES names.
    static void list(Fields& fields, const char* key, const Index& index, const std::string& expected,
                     int32_t (&numbers)[DV_NATIVE_MAX_SOURCES]) {
        const std::string most = std::to_string(DV_NATIVE_MAX_SOURCES) + " " + expected;
        const List& names = fields.items(key, "1 to " + most);
        if (names.size() > DV_NATIVE_MAX_SOURCES) fields.refuse(key, "at most " + most);
        for (size_t i = 0; i < names.size(); ++i) numbers[i] = number(fields, key, names[i], index, expected);
    }

    // `output` and `output_port`, of which the library demands one.
    void target(Fields& fields, dv_native_op& op) const {
        if (is_there(fields, "output")) op.output = tensor(fields, "output");
        if (is_there(fields, "output_port")) op.output_port = port(fields, "output_port");
    }

    NativeProgram& p_;
    Index blob_index_, port_index_, tensor_index_;
};

// Whether a port takes exactly the arrays of a tensor in the manifest.
bool fits(const dv_native_port& port, const TensorSpec& tensor) {
    using Shape = std::vector<Dimension>;
    const int64_t channels = port.channels;
    const Dimension batch("batch"), steps("steps");
    if (port.kind == DV_NATIVE_PORT_STEPS) return tensor.dtype == "int64" && tensor.shape == Shape{steps};
    std::vector<Shape> shapes;
    if (port.kind == DV_NATIVE_PORT_IDS) {
        const int64_t height = port.height, width = port.width;
        shapes.push_back({batch, height, width});
        if (width == 1) shapes.push_back({batch, height});
        if (width == 1 && height == 1) shapes.push_back({batch});
        return tensor.dtype == "int64" && std::find(shapes.begin(), shapes.end(), tensor.shape) != shapes.end();
    }
    if (port.kind == DV_NATIVE_PORT_MAP) {
        shapes.push_back({batch, channels, int64_t(port.height), int64_t(port.width)});
        if (port.height == 1 && port.width == 1) shapes.push_back({batch, channels});
        if (port.height == 1 && port.width == 1 && port.channels == 1) shapes.push_back({batch});
    } else if (port.kind == DV_NATIVE_PORT_TOKENS) {
        shapes.push_back({batch, int64_t(port.height), channels});
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
    return {DV_NATIVE_VERSION, int32_t(ports.size()), int32_t(tensors.size()), int32_t(ops.size()), int32_t(blobs.size()),
            ports.data(), tensors.data(), ops.data(), blobs.data(), weights.data(), weights.size()};
}

NativeProgram parse_program(std::string_view data, const Blobs& blobs, const std::string& graph,
                            const std::string& precision, const std::string& where) {
    const Origin origin = program_origin(where);
    if (data.size() > kMaxProgramBytes)
        refuse(origin, "", std::to_string(data.size()) + " bytes", "at most " + std::to_string(kMaxProgramBytes));
    const Value raw = parse_json(data, origin);
    Fields top(raw, origin);
    top.choice("format", {"diffusevae-native"});
    top.integer("version", DV_NATIVE_VERSION, DV_NATIVE_VERSION);
    top.choice("graph", {graph});
    top.choice("precision", {precision});
    NativeProgram program;
    Reader reader(blobs, program);
    reader.read_ports(top);
    reader.read_tensors(top);
    for (Fields& fields : top.objects("ops", "a list of operations")) reader.read_op(fields);
    top.done();
    return program;
}

bool resize(NativeProgram& program, const Canvas& canvas, const std::string& graph) {
    const auto over = canvas.ports.find(graph);
    if (canvas.tiled() || canvas.own_size() || over == canvas.ports.end() || over->second.empty()) return false;
    const auto grow = [&canvas](auto& sized) {
        sized.height = int32_t(sized.height * canvas.whole_height / canvas.height);
        sized.width = int32_t(sized.width * canvas.whole_width / canvas.width);
    };
    std::set<int32_t> ports, made;
    for (size_t i = 0; i < program.ports.size(); ++i)
        if (over->second.count(program.port_names[i]) != 0) ports.insert(int32_t(i));
    for (const dv_native_op& op : program.ops) {
        const std::set<int32_t>& grown = dv_native_reads_ports(op.kind) != 0 ? ports : made;
        const bool of_maps = std::any_of(std::begin(op.sources), std::end(op.sources),
                                         [&](int32_t source) { return grown.count(source) != 0; });
        if (of_maps && op.output != DV_NATIVE_NONE) made.insert(op.output);
    }
    for (const int32_t port : ports) grow(program.ports[size_t(port)]);
    for (const int32_t tensor : made) grow(program.tensors[size_t(tensor)]);
    return true;
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
