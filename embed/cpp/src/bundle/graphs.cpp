#include "bundle/graphs.h"

#include <algorithm>

#include "bundle/limits.h"
#include "text.h"

namespace diffusevae {
namespace {

constexpr double kMaxMeasured = 1e9;
constexpr size_t kMaxName = 64;

// Lower-case letters, digits and '_', the first a letter.
bool is_graph_name(const std::string& text) {
    const auto letter = [](char c) { return c >= 'a' && c <= 'z'; };
    return !text.empty() && text.size() <= kMaxName && letter(text[0])
           && std::all_of(text.begin(), text.end(),
                          [&](char c) { return letter(c) || (c >= '0' && c <= '9') || c == '_'; });
}

void check_parity(Fields fields) {
    for (const Value& batch : fields.items("batches", "a list of batch sizes"))
        if (!is_at_least(batch, 1)) fields.refuse("batches", "a list of batch sizes of at least 1");
    Fields runtimes = fields.object("runtimes");
    fields.text("reference");
    fields.number("max_relative_error", 0.0, kMaxMeasured);
    for (const std::string& name : runtimes.keys()) runtimes.number(name, 0.0, kMaxMeasured);
    fields.done();
}

std::vector<std::pair<std::string, std::string>> parse_compute(Fields fields) {
    std::vector<std::pair<std::string, std::string>> compute;
    for (const std::string& asked : kPrecisions)
        if (fields.has(asked)) compute.emplace_back(asked, fields.choice(asked, kPrecisions));
    fields.done(kPrecisions);
    return compute;
}

void check_names(Fields& fields, const char* direction, const std::vector<TensorSpec>& tensors) {
    for (size_t i = 0; i < tensors.size(); ++i)
        for (size_t j = 0; j < i; ++j)
            if (tensors[i].name == tensors[j].name) fields.refuse(direction, "a name of its own for each tensor");
}

GraphSpec parse_graph(Fields fields, const std::string& key, const std::string& precision) {
    GraphSpec graph;
    static_cast<FileSpec&>(graph) = parse_file(fields, kMaxGraphBytes);
    graph.key = key;
    graph.precision = fields.choice("precision", {precision});
    fields.integer("opset", 1, kMaxOpset);
    graph.inputs = parse_tensors(fields, "inputs");
    graph.outputs = parse_tensors(fields, "outputs");
    check_parity(fields.object("parity"));
    graph.compute = parse_compute(fields.object("compute"));
    check_names(fields, "inputs", graph.inputs);
    check_names(fields, "outputs", graph.outputs);
    fields.done();
    return graph;
}

}  // namespace

const std::vector<std::string> kPrecisions = {"f32", "bf16", "fp16", "int8"};

std::string GraphSpec::computes_in(const std::string& asked) const {
    for (const auto& [from, to] : compute)
        if (from == asked) return to;
    return asked;
}

std::string graph_of(const std::string& key) { return key.substr(0, key.find('.')); }

FileSpec parse_file(Fields& fields, int64_t limit) {
    FileSpec spec;
    spec.file = fields.file_name("file");
    spec.size = fields.integer("size", 1, limit);
    spec.sha256 = fields.sha256("sha256");
    if (lower(spec.file) == kManifestFile) fields.refuse("file", std::string("another name than ") + kManifestFile);
    return spec;
}

std::vector<GraphSpec> parse_graphs(Fields fields) {
    std::vector<GraphSpec> graphs;
    for (const std::string& key : fields.keys()) {
        const std::string name = graph_of(key);
        const bool half = key == name + ".fp16";
        if (!is_graph_name(name) || (key != name && !half))
            fields.refuse(key, "a graph under NAME or NAME.fp16, NAME of lower-case letters, digits and '_'");
        graphs.push_back(parse_graph(fields.object(key), key, half ? "fp16" : "f32"));
    }
    fields.done();
    return graphs;
}

void check_twins(Fields& top, const std::vector<GraphSpec>& graphs) {
    const Fields fields = top.object("graphs");
    for (const GraphSpec& graph : graphs) {
        const std::string name = graph_of(graph.key);
        if (name == graph.key) continue;
        const auto twin = std::find_if(graphs.begin(), graphs.end(), [&](const GraphSpec& g) { return g.key == name; });
        if (twin == graphs.end()) fields.refuse(graph.key, name + " in float32 beside it");
        if (twin->inputs != graph.inputs || twin->outputs != graph.outputs)
            fields.refuse(graph.key, "the inputs and outputs of " + name);
    }
}

}  // namespace diffusevae
