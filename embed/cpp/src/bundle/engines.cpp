#include "bundle/engines.h"

#include <algorithm>

#include "bundle/schema.h"
#include "text.h"

namespace diffusevae {
namespace {

// The graphs that an engine may be of: each once, the whole sampler last where it has none of its own.
std::vector<std::string> names_of(const std::vector<GraphSpec>& graphs) {
    std::vector<std::string> names;
    const auto add = [&](const std::string& name) {
        if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
    };
    for (const GraphSpec& graph : graphs) add(graph_of(graph.key));
    add(kSampler);
    return names;
}

// `runs_on`, which stands in place of `files`.
std::vector<std::string> parse_runners(Fields& fields, const std::string& backend) {
    const std::string expected = "a list of " + in_quotes(kRunners[0]) + " and " + in_quotes(kRunners[1])
                                 + ", each at most once, of an engine of " + in_quotes(kShared);
    std::vector<std::string> names;
    for (const Value& value : fields.items("runs_on", expected)) {
        const std::string* name = value.text();
        const bool known = name != nullptr && std::find(kRunners.begin(), kRunners.end(), *name) != kRunners.end();
        if (!known || backend != kShared || std::find(names.begin(), names.end(), *name) != names.end())
            fields.refuse("runs_on", expected);
        names.push_back(*name);
    }
    return names;
}

EngineSpec parse_engine(Fields& fields, const std::vector<std::string>& graphs) {
    EngineSpec engine;
    take(fields, engine, graphs);
    if (fields.has("runs_on")) {
        engine.runs_on = parse_runners(fields, engine.backend);
        fields.done();
        return engine;
    }
    Fields files = fields.object("files");
    for (const EngineFile& file : kEngineFiles)
        if (file.backend == engine.backend)
            engine.files.emplace_back(file.label, read<FileSpec>(files.object(file.label)));
    files.done();
    fields.done();
    return engine;
}

}  // namespace

const FileSpec& EngineSpec::file(const std::string& label) const {
    std::vector<std::string> labels;
    for (const auto& [name_of_file, spec] : files) {
        if (name_of_file == label) return spec;
        labels.push_back(name_of_file);
    }
    throw Error(DIFFUSEVAE_ARGUMENT, "label: found " + in_quotes(label) + ", expected one of " + joined(labels)
                                         + ", the files of the engine " + name() + "." + did_you_mean(label, labels));
}

std::vector<EngineSpec> parse_engines(Fields& top, const std::vector<GraphSpec>& graphs, const std::string& step) {
    const std::vector<std::string> names = names_of(graphs);
    std::vector<EngineSpec> engines;
    for (Fields& fields : top.objects("engines", "a list of engines, which may be empty", true)) {
        EngineSpec engine = parse_engine(fields, names);
        if (!engine.runs_on.empty() && (engine.graph == step || engine.graph == kSampler))
            fields.refuse("graph", "another graph than " + engine.graph + ", which a backend runs itself");
        const bool twice = std::any_of(engines.begin(), engines.end(),
                                       [&](const EngineSpec& other) { return other.name() == engine.name(); });
        if (twice)
            fields.refuse("graph", "one engine for " + engine.backend + ", " + engine.precision + " and this graph");
        engines.push_back(std::move(engine));
    }
    return engines;
}

std::optional<PriorSpec> parse_prior(Fields& top, const std::vector<InputSpec>& inputs) {
    if (top.take("prior", "an object or null").is_null()) return std::nullopt;
    std::vector<std::string> drawn;
    for (const InputSpec& input : inputs)
        if (input.draw == std::string(kNormal)) drawn.push_back(input.name);
    if (drawn.empty()) top.refuse("prior", "null, since no input is drawn");
    return read<PriorSpec>(top.object("prior"), drawn);
}

std::vector<std::string> parse_targets(Fields& fields, const char* key) {
    const char* const expected = "a list of printable texts, which may be empty";
    std::vector<std::string> targets;
    for (const Value& value : fields.array(key, expected)) {
        if (!is_text(value)) fields.refuse(key, expected);
        targets.push_back(*value.text());
    }
    return targets;
}

Versions parse_versions(Fields& fields, const char* key) {
    Fields named = fields.object(key);
    Versions versions;
    for (const std::string& name : named.keys()) versions.emplace_back(name, named.text(name));
    return versions;
}

void check_engine_sources(const std::vector<EngineSpec>& engines, const std::vector<GraphSpec>& graphs,
                          const Source& source, const Origin& origin) {
    for (size_t i = 0; i < engines.size(); ++i) {
        const std::string& built_from = engines[i].source_sha256;
        const bool known = built_from == source.sha256 || (source.other_sha256 && built_from == *source.other_sha256)
                           || std::any_of(graphs.begin(), graphs.end(),
                                          [&](const GraphSpec& graph) { return graph.sha256 == built_from; });
        if (!known)
            refuse(origin, "engines[" + std::to_string(i) + "].source_sha256", in_quotes(built_from),
                   "the SHA-256 of a graph of this bundle or of its checkpoint: " + engines[i].name()
                       + " was built from something else");
    }
}

}  // namespace diffusevae
