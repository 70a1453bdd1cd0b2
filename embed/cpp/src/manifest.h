// What does a bundle say about itself? The manifest as typed values, and every reason for which one is refused.
#ifndef DIFFUSEVAE_MANIFEST_H
#define DIFFUSEVAE_MANIFEST_H

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "manifest_engines.h"
#include "manifest_graphs.h"
#include "manifest_model.h"

namespace diffusevae {

constexpr size_t kMaxManifestBytes = size_t(4) << 20;

// A manifest that passed every check.
struct Manifest {
    std::string name, family;
    Model model;
    ScheduleSpec schedule;
    std::string variance;
    Defaults defaults;
    CheckpointSpec checkpoint;
    std::vector<std::string> backends;
    std::vector<GraphSpec> graphs;
    std::optional<LatentPriorSpec> latent_prior;
    std::vector<EngineSpec> engines;

    const GraphSpec* graph(const std::string& key) const;  // null where there is none
    std::vector<FileSpec> files() const;                   // every file beside the manifest itself
};

// Error (BUNDLE) names the field, what was found and what was expected.
Manifest parse_manifest(std::string_view data, const std::string& where);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_MANIFEST_H
