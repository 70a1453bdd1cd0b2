#include "bundle/graphs.h"

#include <algorithm>

#include "bundle/schema.h"
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

}  // namespace

std::string GraphSpec::computes_in(const std::string& asked) const {
    for (const auto& [from, to] : compute)
        if (from == asked) return to;
    return asked;
}

std::string graph_of(const std::string& key) { return key.substr(0, key.find('.')); }

std::string parse_file_name(Fields& fields, const char* key) {
    const std::string name = fields.file_name(key);
    if (lower(name) == kManifestFile) fields.refuse(key, std::string("another name than ") + kManifestFile);
    return name;
}

Compute parse_compute(Fields& fields, const char* key) {
    Fields entries = fields.object(key);
    Compute compute;
    for (const std::string& asked : kPrecisions)
        if (entries.has(asked)) compute.emplace_back(asked, entries.choice(asked, kPrecisions));
    entries.done(kPrecisions);
    return compute;
}

void parse_batches(Fields& fields, const char* key) {
    for (const Value& batch : fields.items(key, "a list of batch sizes"))
        if (!is_at_least(batch, 1)) fields.refuse(key, "a list of batch sizes of at least 1");
}

void parse_runtimes(Fields& fields, const char* key) {
    Fields runtimes = fields.object(key);
    for (const std::string& name : runtimes.keys()) runtimes.number(name, 0.0, kMaxMeasured);
}

std::vector<GraphSpec> parse_graphs(Fields fields) {
    std::vector<GraphSpec> graphs;
    for (const std::string& key : fields.keys()) {
        const std::string name = graph_of(key);
        const bool half = key == name + ".fp16";
        if (!is_graph_name(name) || (key != name && !half))
            fields.refuse(key, "a graph under NAME or NAME.fp16, NAME of lower-case letters, digits and '_'");
        graphs.push_back(read<GraphSpec>(fields.object(key), std::vector<std::string>{half ? "fp16" : "f32"}));
        graphs.back().key = key;
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
