#include "bundle/guides.h"

#include <algorithm>
#include <limits>

#include "bundle/schema.h"
#include "text.h"

namespace diffusevae {
namespace {

// A timestep as it is written; one of more digits than a number has room for is beyond every schedule.
std::optional<int64_t> timestep_of(const Value& value) {
    if (!is_at_least(value, 0)) return std::nullopt;
    return value.integer().value_or(std::numeric_limits<int64_t>::max() - 1);
}

// Refuse timesteps that no guide serves.
void check_coverage(Fields pipeline, const std::vector<GuideSpec>& guides, int64_t T) {
    if (guides.empty()) return;
    const std::vector<Fields> entries = pipeline.objects("guides", "a list of guides");
    if (guides[0].low != 0)
        entries[0].refuse("timesteps", "0 as the first timestep of the first guide: they are listed from the clean end");
    for (size_t i = 1; i < guides.size(); ++i) {
        const GuideSpec &before = guides[i - 1], &after = guides[i];
        if (!(before.low < after.low && after.low <= before.high + 1))
            entries[i].refuse("timesteps", "a first timestep of " + std::to_string(before.low + 1) + " .. "
                                               + std::to_string(before.high + 1) + ", without a gap to the guide before it");
        if (after.high <= before.high)
            entries[i].refuse("timesteps", "a last timestep above " + std::to_string(before.high)
                                               + ", that of the guide before it");
    }
    if (guides.back().high != T - 1)
        entries.back().refuse("timesteps", std::to_string(T - 1) + ", the schedule's last timestep, as that of the last guide");
}

}  // namespace

size_t guide_of(const std::vector<GuideSpec>& guides, int64_t timestep) {
    const auto found = std::find_if(guides.begin(), guides.end(), [&](const GuideSpec& guide) { return guide.serves(timestep); });
    return size_t(found - guides.begin());
}

std::pair<int64_t, int64_t> parse_interval(Fields& fields, const char* key) {
    const char* const expected = "two timesteps, [low, high], the lower one first";
    std::vector<int64_t> found;
    const List& items = fields.items(key, expected);
    for (const Value& value : items)
        if (const std::optional<int64_t> one = timestep_of(value)) found.push_back(*one);
    if (items.size() != 2 || found.size() != 2 || found[0] > found[1]) fields.refuse(key, expected);
    return {found[0], found[1]};
}

std::optional<GuideDefaults> parse_guide(Fields& top, const PipelineSpec& pipeline, int64_t T) {
    const std::vector<GuideSpec>& guides = pipeline.guides;
    check_coverage(top.object("pipeline"), guides, T);
    if (!top.has("guide") || top.take_null("guide")) {
        if (!guides.empty()) {
            top.take("guide", "how the guides of the pipeline are used: an object of scale, mode and interval");
            top.refuse("guide", "an object of scale, mode and interval, as the pipeline has guides");
        }
        return std::nullopt;
    }
    Fields fields = top.object("guide");
    const GuideDefaults found = read<GuideDefaults>(fields);
    if (guides.empty()) top.refuse("guide", "null, as the pipeline has no guides");
    if (found.interval && found.interval->second >= T)
        fields.refuse("interval", "two timesteps of 0 .. " + std::to_string(T - 1));
    const bool all = std::all_of(guides.begin(), guides.end(), [](const GuideSpec& guide) { return guide.gives_entropy(); });
    if (found.mode == kByEntropy && !all)
        fields.refuse("mode", "another mode, as not every guide gives " + in_quotes(kEntropy));
    return found;
}

}  // namespace diffusevae
