#include "manifest_graphs.h"

#include <algorithm>

#include "diffusevae/row.h"
#include "text.h"

namespace diffusevae {
namespace {

constexpr int64_t kMaxDimension = int64_t(1) << 31;
constexpr double kMaxMeasured = 1e9;

using Tensors = std::vector<TensorSpec>;

bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }

// What may name a free dimension; those that a graph of ours has are of these letters.
bool is_identifier(const std::string& text) {
    return !text.empty() && is_letter(text[0])
           && std::all_of(text.begin(), text.end(), [](char c) { return is_letter(c) || (c >= '0' && c <= '9'); });
}

std::vector<Dimension> parse_shape(Fields& fields) {
    std::vector<Dimension> shape;
    for (const Value& value : fields.items("shape", "a list of dimensions")) {
        const std::optional<int64_t> size = value.integer();
        const std::string* name = value.text();
        if (size && *size >= 1 && *size <= kMaxDimension) {
            shape.emplace_back(*size);
        } else if (name != nullptr && is_identifier(*name)) {
            shape.emplace_back(*name);
        } else {
            fields.refuse("shape", "dimensions that are names or positive integers");
        }
    }
    return shape;
}

void check_range(Fields& fields) {
    const char* const expected = "'unbounded' or [low, high]";
    const Value& value = fields.take("range", expected);
    if (value.text() != nullptr && *value.text() == "unbounded") return;
    const List* list = value.list();
    if (list == nullptr || list->size() != 2) fields.refuse("range", expected);
    const std::optional<long double> low = (*list)[0].number(), high = (*list)[1].number();
    if (!low || !high) fields.refuse("range", expected);
    if (!(*low < *high)) fields.refuse("range", "[low, high] with low < high");
}

TensorSpec parse_tensor(Fields fields) {
    TensorSpec tensor;
    tensor.shape = parse_shape(fields);
    tensor.name = fields.text("name");
    tensor.dtype = fields.choice("dtype", {"float32", "int64", "uint8"});
    check_range(fields);
    fields.done();
    return tensor;
}

Tensors parse_tensors(Fields& fields, const char* key) {
    Tensors tensors;
    for (Fields& tensor : fields.objects(key, "a list of tensors")) tensors.push_back(parse_tensor(std::move(tensor)));
    return tensors;
}

void check_parity(Fields fields) {
    for (const Value& batch : fields.items("batches", "a list of batch sizes"))
        if (!is_at_least(batch, 1)) fields.refuse("batches", "a list of batch sizes of at least 1");
    fields.text("reference");
    fields.number("max_relative_error", 0.0, kMaxMeasured);
    Fields runtimes = fields.object("runtimes");
    for (const std::string& name : runtimes.keys()) runtimes.number(name, 0.0, kMaxMeasured);
    fields.done();
}

// ---- what a role's graph must take and give -------------------------------------------------------------------------

struct Contract {
    Tensors inputs, outputs;
};

class ContractOf {
public:
    explicit ContractOf(const Model& m)
        : m_(m), image_({"batch", m.channels, m.image_size, m.image_size}), z_({"batch", m.z_dim.value_or(0)}) {}

    Contract role(const std::string& role) const {
        if (role == kSampler) return sampler();
        if (role == "vae_encoder") return {{f32("image", image_)}, {f32("mu", z_), f32("logvar", z_)}};
        if (role == "vae_decoder") return {{f32("z", z_)}, {f32("image", image_)}};
        return role == "timestep_table" ? table() : denoiser();
    }

private:
    using Shape = std::vector<Dimension>;
    static TensorSpec f32(const char* name, Shape shape) { return {name, "float32", std::move(shape)}; }

    Contract table() const {
        Contract c{{{"timesteps", "int64", {"steps"}}}, {f32("rows", {"steps", m_.row_width})}};
        if (m_.z_conditioned) {
            c.inputs.push_back(f32("z", z_));
            c.outputs[0].shape = {"steps", "batch", m_.row_width};
        }
        return c;
    }

    Contract denoiser() const {
        const Dimension rows = m_.z_conditioned ? Dimension("batch") : Dimension(int64_t(1));
        Contract c{{f32("x", image_), f32("row", {rows, m_.row_width})}, {f32("eps", image_)}};
        if (m_.conditional()) c.inputs.push_back(f32("cond", image_));
        return c;
    }

    Contract sampler() const {
        Contract c{{f32("x_T", image_), {"timesteps", "int64", {"steps"}}, f32("coefficients", {"steps", kRowFields}),
                    f32("start", {int64_t(3)}),
                    f32("noise", {"noise_steps", "batch", m_.channels, m_.image_size, m_.image_size})},
                   {{"images", "uint8", {"batch", m_.image_size, m_.image_size, m_.channels}}, f32("x", image_)}};
        if (m_.conditional()) {
            c.inputs.push_back(f32("z", z_));
            c.inputs.push_back(f32("guidance", {"lanes"}));
            c.outputs.push_back(f32("recon", image_));
        }
        return c;
    }

    static constexpr int64_t kRowFields = sizeof(Row) / sizeof(float);
    const Model& m_;
    const Shape image_, z_;
};

std::vector<std::string> sorted_texts(const Tensors& tensors) {
    std::vector<std::string> texts;
    for (const TensorSpec& tensor : tensors) texts.push_back(tensor.text());
    std::sort(texts.begin(), texts.end());
    return texts;
}

void check_tensors(const Fields& fields, const char* direction, const Tensors& found, const Tensors& expected) {
    const std::vector<std::string> have = sorted_texts(found), want = sorted_texts(expected);
    if (have == want) return;
    refuse(fields.origin(), fields.name_of(direction), in_quotes(joined(have, "; ")),
           "'" + joined(want, "; ") + "' (by model.image_size, channels, z_dim, row_width, formulation)");
}

GraphSpec parse_graph(Fields fields, const std::string& key, const std::string& role, const std::string& precision,
                      const Model& model) {
    GraphSpec graph;
    static_cast<FileSpec&>(graph) = parse_file(fields, kMaxGraphBytes);
    graph.key = key;
    graph.role = role;
    graph.precision = fields.choice("precision", {precision});
    fields.integer("opset", 1, 1000);
    graph.inputs = parse_tensors(fields, "inputs");
    graph.outputs = parse_tensors(fields, "outputs");
    check_parity(fields.object("parity"));
    fields.done();
    const Contract contract = ContractOf(model).role(role);
    check_tensors(fields, "inputs", graph.inputs, contract.inputs);
    check_tensors(fields, "outputs", graph.outputs, contract.outputs);
    return graph;
}

}  // namespace

const char* const kSampler = "sampler";

std::string TensorSpec::text() const {
    std::vector<std::string> dimensions;
    for (const Dimension& dimension : shape) {
        const int64_t* size = std::get_if<int64_t>(&dimension);
        dimensions.push_back(size != nullptr ? std::to_string(*size) : std::get<std::string>(dimension));
    }
    return name + " " + dtype + "[" + joined(dimensions) + "]";
}

FileSpec parse_file(Fields& fields, int64_t limit) {
    FileSpec spec;
    spec.file = fields.file_name("file");
    spec.size = fields.integer("size", 1, limit);
    spec.sha256 = fields.sha256("sha256");
    if (lower(spec.file) == kManifestFile) fields.refuse("file", std::string("another name than ") + kManifestFile);
    return spec;
}

std::vector<GraphSpec> parse_graphs(Fields fields, const Model& model) {
    const std::vector<std::string> roles = roles_of(model);
    std::vector<GraphSpec> graphs;
    std::vector<std::string> known;
    const auto read = [&](const std::string& role, const std::string& precision, bool required) {
        const std::string key = precision == "f32" ? role : role + "." + precision;
        known.push_back(key);
        if (required || fields.has(key)) graphs.push_back(parse_graph(fields.object(key), key, role, precision, model));
    };
    for (const std::string& role : roles) read(role, "f32", true);
    read(kSampler, "f32", false);
    for (const std::string& role : roles) read(role, "fp16", false);
    read(kSampler, "fp16", false);
    fields.done(known);
    return graphs;
}

}  // namespace diffusevae
