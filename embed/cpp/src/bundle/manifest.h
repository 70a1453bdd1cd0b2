// The manifest of a bundle as typed values, and every reason for which one is refused.
#ifndef DIFFUSEVAE_BUNDLE_MANIFEST_H
#define DIFFUSEVAE_BUNDLE_MANIFEST_H

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bundle/directions.h"
#include "bundle/engines.h"
#include "bundle/fitted.h"
#include "bundle/following.h"
#include "bundle/guides.h"
#include "bundle/regulariser.h"
#include "bundle/inputs.h"
#include "bundle/pipeline.h"
#include "bundle/starts.h"
#include "bundle/training.h"
#include "bundle/vocabulary.h"

namespace diffusevae {

// A manifest that passed every check.
struct Manifest {
    std::string name, family;
    std::vector<InputSpec> inputs;
    PipelineSpec pipeline;
    ScheduleSpec schedule;
    std::string prediction, variance;
    Defaults defaults;
    std::optional<Fitted> fitted;
    std::optional<Starts> refine;
    Source source;
    std::vector<std::string> backends;
    std::vector<GraphSpec> graphs;
    std::optional<PriorSpec> prior;
    std::optional<DirectionsSpec> directions;
    std::optional<TextSpec> text;
    std::optional<AugmentationSpec> augmentation;
    std::optional<NextSpec> next;
    std::optional<GuideDefaults> guide;
    std::optional<RegulariseDefaults> regularise;
    std::vector<EngineSpec> engines;

    const GraphSpec* graph(const std::string& key) const;  // null where there is none
    const InputSpec* input(const std::string& name) const;
    const InputSpec* drawn() const;                        // the input that is drawn once a sample when it is not given
    std::vector<FileSpec> files() const;                   // every file beside the manifest itself
};

std::vector<std::string> parse_backends(Fields& fields, const char* key);

// Error (BUNDLE) names the field, what was found and what was expected.
Manifest parse_manifest(std::string_view data, const std::string& where);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_BUNDLE_MANIFEST_H
