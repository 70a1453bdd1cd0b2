// Guides: graphs whose gradient the loop adds to its steps (`pipeline.guides`), and how much of it unless a caller says otherwise
// (`guide`); engine/bundle/guides.py says what each field is.
#ifndef DIFFUSEVAE_BUNDLE_GUIDES_H
#define DIFFUSEVAE_BUNDLE_GUIDES_H

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bundle/fields.h"
#include "bundle/pipeline.h"

namespace diffusevae {

// The index of the guide of a timestep: the first that serves it, so that a boundary belongs to the lower one.
size_t guide_of(const std::vector<GuideSpec>& guides, int64_t timestep);

// The options of the guides that apply where a caller names none.
struct GuideDefaults {
    double scale = 0.0;
    std::string mode;
    std::optional<std::pair<int64_t, int64_t>> interval;  // low and high, both included; nothing: every row
};

// Two timesteps, the lower one first, where null may do as well.
std::pair<int64_t, int64_t> parse_interval(Fields& fields, const char* key);

// The field `guide`, which is there where `pipeline.guides` is; each held against the T timesteps of the schedule.
std::optional<GuideDefaults> parse_guide(Fields& top, const PipelineSpec& pipeline, int64_t T);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_BUNDLE_GUIDES_H
