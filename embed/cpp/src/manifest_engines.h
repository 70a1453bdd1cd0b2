// What else may lie in a bundle beside the graphs? Built engines and a fitted latent prior: their entries, checked.
#ifndef DIFFUSEVAE_MANIFEST_ENGINES_H
#define DIFFUSEVAE_MANIFEST_ENGINES_H

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "manifest_graphs.h"

namespace diffusevae {

using Versions = std::vector<std::pair<std::string, std::string>>;  // of programs, by name

// One role built for one backend in one precision; `files` by label ("program" and "weights", or "plan").
struct EngineSpec {
    std::string backend, precision, role;
    std::vector<std::pair<std::string, FileSpec>> files;
    std::string source_sha256;
    Versions made_with;
    std::vector<std::string> targets;

    std::string name() const { return backend + " " + precision + " " + role; }
    const FileSpec& file(const std::string& label) const;  // Error (ARGUMENT) where there is none
};

struct LatentPriorSpec : FileSpec {
    std::string kind;
    int64_t components = 0;
};

std::vector<EngineSpec> parse_engines(Fields& top, const Model& model);
std::optional<LatentPriorSpec> parse_latent_prior(Fields& top, const Model& model);

// Versions under names of anybody's choice.
Versions parse_versions(Fields fields);

// Refuses an engine that was built from other graphs or another checkpoint than those of this bundle.
void check_engine_sources(const std::vector<EngineSpec>& engines, const std::vector<GraphSpec>& graphs,
                          const CheckpointSpec& checkpoint, const Origin& origin);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_MANIFEST_ENGINES_H
