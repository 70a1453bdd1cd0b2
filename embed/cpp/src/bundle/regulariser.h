// Where the regulariser (`pipeline.regulariser`) comes in unless a caller says otherwise (`regularise`); engine/bundle/regulariser.py
// says what each field is.
#ifndef DIFFUSEVAE_BUNDLE_REGULARISER_H
#define DIFFUSEVAE_BUNDLE_REGULARISER_H

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "bundle/fields.h"
#include "bundle/pipeline.h"

namespace diffusevae {

// The options of the regulariser that apply where a caller names none.
struct RegulariseDefaults {
    std::string mode;
    std::optional<std::pair<int64_t, int64_t>> interval;  // low and high, both included; nothing: every timestep
};

// The field `regularise`, which is there where `pipeline.regulariser` is; held against the T timesteps of the schedule.
std::optional<RegulariseDefaults> parse_regularise(Fields& top, const PipelineSpec& pipeline, int64_t T);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_BUNDLE_REGULARISER_H
