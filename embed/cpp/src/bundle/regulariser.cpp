#include "bundle/regulariser.h"

#include "bundle/schema.h"
#include "text.h"

namespace diffusevae {

std::optional<RegulariseDefaults> parse_regularise(Fields& top, const PipelineSpec& pipeline, int64_t T) {
    const bool there = pipeline.regulariser.has_value();
    if (!top.has("regularise") || top.take_null("regularise")) {
        if (there) {
            top.take("regularise", "how the regulariser of the pipeline is used: an object of mode and interval");
            top.refuse("regularise", "an object of mode and interval, as the pipeline has a regulariser");
        }
        return std::nullopt;
    }
    Fields fields = top.object("regularise");
    const RegulariseDefaults found = read<RegulariseDefaults>(fields);
    if (!there) top.refuse("regularise", "null, as the pipeline has no regulariser");
    if (found.interval && found.mode == kOff) fields.refuse("interval", "null, as the mode is " + in_quotes(kOff));
    if (found.interval && found.interval->second >= T)
        fields.refuse("interval", "two timesteps of 0 .. " + std::to_string(T - 1));
    return found;
}

}  // namespace diffusevae
