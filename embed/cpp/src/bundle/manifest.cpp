#include "bundle/manifest.h"

#include <algorithm>
#include <set>

#include "bundle/schema.h"
#include "text.h"

namespace diffusevae {
namespace {

// The version is looked at before any field whose meaning it decides.
void check_version(int64_t version, const Origin& origin) {
    if (version == kFormatVersion) return;
    const bool newer = version > kFormatVersion;
    const std::string writer = newer ? "a newer engine" : "an older engine";
    refuse(Origin{origin.where, "", newer ? "upgrade this library to that engine's version" : origin.cure},
           "format_version", std::to_string(version),
           std::to_string(kFormatVersion) + ": the bundle was written by " + writer);
}

// A graph that the pipeline never runs is a misspelt name, or weights that nothing needs.
void check_all_used(Fields& top, const Manifest& manifest) {
    std::vector<std::string> used;
    for (const std::vector<const CallSpec*>& calls : {manifest.pipeline.calls(), manifest.pipeline.guide_calls(),
                                                       manifest.pipeline.regulariser_calls()})
        for (const CallSpec* call : calls)
            if (std::find(used.begin(), used.end(), call->graph) == used.end()) used.push_back(call->graph);
    used.push_back(kSampler);
    for (const GraphSpec& graph : manifest.graphs)
        if (std::find(used.begin(), used.end(), graph_of(graph.key)) == used.end())
            top.object("graphs").refuse(graph.key, "graphs that the pipeline runs: " + in_quotes(joined(used)));
}

// Every file with the field that names it.
std::vector<std::pair<std::string, FileSpec>> named_files(const Manifest& manifest) {
    std::vector<std::pair<std::string, FileSpec>> named;
    for (const GraphSpec& graph : manifest.graphs) {
        named.emplace_back("graphs." + graph.key, graph);
        if (graph.weights) named.emplace_back("graphs." + graph.key + ".weights", *graph.weights);
    }
    if (manifest.prior) named.emplace_back("prior", *manifest.prior);
    if (manifest.directions) named.emplace_back("directions", *manifest.directions);
    if (manifest.text) named.emplace_back("text", *manifest.text);
    for (size_t i = 0; i < manifest.engines.size(); ++i)
        for (const auto& [label, file] : manifest.engines[i].files)
            named.emplace_back("engines[" + std::to_string(i) + "].files." + label, file);
    return named;
}

// Refuses two entries with one file, also where they differ in case alone: some disks know no case.
void check_file_names(const Manifest& manifest, const Origin& origin) {
    std::set<std::string> seen;
    for (const auto& [field, spec] : named_files(manifest))
        if (!seen.insert(lower(spec.file)).second)
            refuse(origin, field + ".file", in_quotes(spec.file) + " (str)", "a file of its own for each entry");
}

}  // namespace

const GraphSpec* Manifest::graph(const std::string& key) const {
    for (const GraphSpec& graph : graphs)
        if (graph.key == key) return &graph;
    return nullptr;
}

const InputSpec* Manifest::input(const std::string& name) const {
    for (const InputSpec& input : inputs)
        if (input.name == name) return &input;
    return nullptr;
}

const InputSpec* Manifest::drawn() const {
    for (const InputSpec& input : inputs)
        if (input.draw == std::string(kNormal)) return &input;
    return nullptr;
}

std::vector<FileSpec> Manifest::files() const {
    std::vector<FileSpec> specs;
    for (auto& [field, spec] : named_files(*this)) specs.push_back(spec);
    return specs;
}

// Any name is let through: a bundle may hold graphs for a runtime that only a later engine knows.
std::vector<std::string> parse_backends(Fields& fields, const char* key) {
    const char* const expected = "a list of different backend names";
    std::vector<std::string> names;
    for (const Value& value : fields.items(key, expected)) {
        const std::string* name = value.text();
        if (name == nullptr || !is_file_name(*name) || std::find(names.begin(), names.end(), *name) != names.end())
            fields.refuse(key, expected);
        names.push_back(*name);
    }
    return names;
}

Manifest parse_manifest(std::string_view data, const std::string& where) {
    const Origin origin = manifest_origin(where);
    if (data.size() > size_t(kMaxManifestBytes))
        refuse(origin, "", "a manifest of " + std::to_string(data.size()) + " bytes or more",
               "at most " + std::to_string(kMaxManifestBytes));
    const Value raw = parse_json(data, origin);
    Fields top(raw, origin);
    top.choice("format", {kFormat});
    check_version(top.integer("format_version", 0, int64_t(1) << 31), origin);
    Manifest manifest;
    manifest.inputs = parse_inputs(top);
    manifest.graphs = parse_graphs(top.object("graphs"));
    check_twins(top, manifest.graphs);
    manifest.schedule = parse_schedule(top.object("schedule"));
    take(top, manifest);
    std::vector<const GraphSpec*> named;  // what a pipeline may name: those in float32 but the whole sampler
    for (const GraphSpec& graph : manifest.graphs)
        if (graph.key == graph_of(graph.key) && graph.key != kSampler) named.push_back(&graph);
    manifest.pipeline = parse_pipeline(top.object("pipeline"), manifest.inputs, named);
    const int64_t T = manifest.schedule.T;
    manifest.defaults = read<Defaults>(top.object("defaults"), T, T - 1);
    manifest.fitted = parse_fitted(top, T);
    manifest.refine = parse_starts(top, T);
    manifest.prior = parse_prior(top, manifest.inputs);
    manifest.directions = parse_directions(top, manifest.inputs);
    manifest.text = parse_text(top, manifest.inputs);
    manifest.augmentation = parse_augmentation(top, manifest.inputs);
    manifest.next = parse_next(top);
    manifest.guide = parse_guide(top, manifest.pipeline, T);
    manifest.regularise = parse_regularise(top, manifest.pipeline, T);
    manifest.engines = parse_engines(top, manifest.graphs, manifest.pipeline.step.graph);
    top.done(kOptional);
    check_all_used(top, manifest);
    if (manifest.variance == kLearnedRange && !manifest.pipeline.learns_variance())
        top.refuse("variance", "'fixedlarge' or 'fixedsmall', or a second output in pipeline.step.outputs, called "
                                   + in_quotes(kVariance));
    check_sampler(top, manifest.graphs, manifest.inputs, manifest.pipeline);
    check_file_names(manifest, origin);
    check_engine_sources(manifest.engines, manifest.graphs, manifest.source, origin);
    check_fitted(manifest, origin);
    check_directions(manifest, origin);
    check_starts(manifest, origin);
    return manifest;
}

}  // namespace diffusevae
