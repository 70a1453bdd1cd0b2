#include "manifest.h"

#include <algorithm>
#include <set>

#include "text.h"

namespace diffusevae {
namespace {

constexpr int64_t kFormatVersion = 2;

// The version is looked at before any field whose meaning it decides.
void check_version(int64_t version, const Origin& origin) {
    if (version == kFormatVersion) return;
    const bool newer = version > kFormatVersion;
    const std::string writer = newer ? "a newer engine" : "an older engine";
    refuse(Origin{origin.where, "", newer ? "upgrade this library to that engine's version" : origin.cure},
           "format_version", std::to_string(version),
           std::to_string(kFormatVersion) + ": the bundle was written by " + writer);
}

// Any name is let through: a bundle may hold graphs for a runtime that only a later engine knows.
std::vector<std::string> parse_backends(Fields& top) {
    const char* const expected = "a list of different backend names";
    std::vector<std::string> names;
    for (const Value& value : top.items("backends", expected)) {
        const std::string* name = value.text();
        if (name == nullptr || !is_file_name(*name) || std::find(names.begin(), names.end(), *name) != names.end())
            top.refuse("backends", expected);
        names.push_back(*name);
    }
    return names;
}

// Every file with the field that names it.
std::vector<std::pair<std::string, FileSpec>> named_files(const Manifest& manifest) {
    std::vector<std::pair<std::string, FileSpec>> named;
    for (const GraphSpec& graph : manifest.graphs) named.emplace_back("graphs." + graph.key, graph);
    if (manifest.latent_prior) named.emplace_back("latent_prior", *manifest.latent_prior);
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

std::vector<FileSpec> Manifest::files() const {
    std::vector<FileSpec> specs;
    for (auto& [field, spec] : named_files(*this)) specs.push_back(spec);
    return specs;
}

Manifest parse_manifest(std::string_view data, const std::string& where) {
    const Origin origin = manifest_origin(where);
    if (data.size() > kMaxManifestBytes)
        refuse(origin, "", "a manifest of " + std::to_string(data.size()) + " bytes or more",
               "at most " + std::to_string(kMaxManifestBytes));
    const Value raw = parse_json(data, origin);
    Fields top(raw, origin);
    top.choice("format", {"diffusevae-bundle"});
    check_version(top.integer("format_version", 0, int64_t(1) << 31), origin);
    Manifest manifest;
    manifest.model = parse_model(top.object("model"));
    manifest.schedule = parse_schedule(top.object("schedule"));
    manifest.name = top.text("name");
    manifest.family = top.choice("family", {"diffusevae"});
    manifest.variance = top.choice("variance", kVariances);
    manifest.defaults = parse_defaults(top.object("defaults"), manifest.schedule.T);
    manifest.checkpoint = parse_checkpoint(top.object("source"));
    manifest.backends = parse_backends(top);
    manifest.graphs = parse_graphs(top.object("graphs"), manifest.model);
    manifest.latent_prior = parse_latent_prior(top, manifest.model);
    manifest.engines = parse_engines(top, manifest.model);
    parse_versions(top.object("built_with"));
    top.done();
    check_file_names(manifest, origin);
    check_engine_sources(manifest.engines, manifest.graphs, manifest.checkpoint, origin);
    return manifest;
}

}  // namespace diffusevae
