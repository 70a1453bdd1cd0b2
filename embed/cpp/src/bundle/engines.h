// Built engines and a fitted prior: what may lie in a bundle beside its graphs, their entries checked.
#ifndef DIFFUSEVAE_BUNDLE_ENGINES_H
#define DIFFUSEVAE_BUNDLE_ENGINES_H

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bundle/graphs.h"
#include "bundle/inputs.h"
#include "bundle/training.h"

namespace diffusevae {

using Versions = std::vector<std::pair<std::string, std::string>>;  // of programs, by name

// One graph built for one backend in one precision; `files` by label ("program" and "weights", or "plan"). In place of files,
// `runs_on` names the backends that run the bundle's graph in float32 for this one, of which the first counts that a library knows.
struct EngineSpec {
    std::string backend, precision, graph;
    std::vector<std::pair<std::string, FileSpec>> files;
    std::string source_sha256;
    Versions made_with;
    std::vector<std::string> targets, runs_on;

    std::string name() const { return backend + " " + precision + " " + graph; }
    const FileSpec& file(const std::string& label) const;  // Error (ARGUMENT) where there is none
};

// The density that an input is drawn from instead of N(0, I), and the file that holds it.
struct PriorSpec : FileSpec {
    std::string input;
    int64_t components = 0;
};

// step: the graph in the loop, which no other backend runs
std::vector<EngineSpec> parse_engines(Fields& top, const std::vector<GraphSpec>& graphs, const std::string& step);
std::optional<PriorSpec> parse_prior(Fields& top, const std::vector<InputSpec>& inputs);

std::vector<std::string> parse_targets(Fields& fields, const char* key);
Versions parse_versions(Fields& fields, const char* key);  // under any names

// Refuses an engine that was built from other graphs or another checkpoint than those of this bundle.
void check_engine_sources(const std::vector<EngineSpec>& engines, const std::vector<GraphSpec>& graphs,
                          const Source& source, const Origin& origin);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_BUNDLE_ENGINES_H
