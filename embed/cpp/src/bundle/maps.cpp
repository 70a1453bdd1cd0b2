// The fields `maps` and `multiple` of a pipeline: the checks and sentences of engine/bundle/maps.py.
#include <algorithm>
#include <set>

#include "bundle/constants.h"
#include "bundle/pipeline.h"
#include "text.h"

namespace diffusevae {
namespace {

const std::set<std::string> kStates = {kX, kX0, kE, kVariance};  // the state's own shape, as its reader has seen to

// How many pixels of a value, [batch, C, H, W] or [batch, H, W], one of the state's has a side.
int64_t factor_of(Fields& top, const StateSpec& state, const std::string& name, const ValueKind& kind) {
    const size_t rank = kind.shape.size();
    if ((rank == 3 || rank == 4) && kind.shape[0] == Dimension(kBatch)) {
        const int64_t* height = std::get_if<int64_t>(&kind.shape[rank - 2]);
        const int64_t* width = std::get_if<int64_t>(&kind.shape[rank - 1]);
        const int64_t factor = height != nullptr ? *height / state.height : 0;
        if (factor > 0 && width != nullptr && *height == factor * state.height && *width == factor * state.width)
            return factor;
    }
    top.refuse("maps", "null, as " + name + " is " + kind.text() + ", which is no whole multiple of the state's "
                           + size_text(state.height, state.width));
}

std::vector<std::string> named(Fields& top, const std::vector<InputSpec>& inputs) {
    const std::string expected = "null, or a list of different inputs that lie over the state";
    std::vector<std::string> names;
    for (const Value& entry : top.array("maps", expected)) {
        const std::string* name = entry.text();
        const bool input = name != nullptr && std::any_of(inputs.begin(), inputs.end(),
                                                          [&](const InputSpec& spec) { return spec.name == *name; });
        if (!input || std::count(names.begin(), names.end(), *name) != 0) top.refuse("maps", expected);
        names.push_back(*name);
    }
    return names;
}

void parse_multiple(Fields& top, PipelineSpec& spec) {
    if (top.take_null("multiple")) return;
    const int64_t multiple = top.integer_or_null("multiple", 1, kMaxSide);
    if (!spec.maps) top.refuse("multiple", "null where maps is null");
    if (spec.state.height % multiple != 0 || spec.state.width % multiple != 0)
        top.refuse("multiple", "a divisor of the state's " + size_text(spec.state.height, spec.state.width));
    spec.multiple = multiple;
}

void parse_named_maps(Fields& top, PipelineSpec& spec, const std::vector<InputSpec>& inputs) {
    if (top.take_null("maps")) return;
    const std::vector<std::string> names = named(top, inputs);
    const StateSpec& state = spec.state;
    if (std::min(state.height, state.width) < 2)
        top.refuse("maps", "null for a state of " + size_text(state.height, state.width)
                               + ", which windows have no borders in");
    std::map<std::string, int64_t> maps;
    for (const std::string& name : kStates) maps[name] = 1;
    for (const std::string& name : names) maps[name] = factor_of(top, state, name, *spec.values.find(name));
    if (spec.encoder_image) maps[kImage] = factor_of(top, state, kImage, {spec.encoder_image->dtype, spec.encoder_image->shape});
    for (const CallSpec* call : spec.calls()) {
        const bool over = std::any_of(call->inputs.begin(), call->inputs.end(),
                                      [&](const auto& wire) { return maps.count(wire.second) != 0; });
        for (const auto& [port, name] : call->outputs) {
            if (over && kStates.count(name) == 0)
                maps[name] = factor_of(top, state, name, *spec.values.find(name));
            else if (!over && maps.count(name) != 0)
                top.refuse("maps", "null, as " + call->graph + " makes " + name + " of what does not lie over the state");
        }
    }
    for (const std::optional<std::string>& used : {state.centre, state.start, std::optional<std::string>(spec.image)})
        if (used && maps.count(*used) == 0) top.refuse("maps", "null, as " + *used + " does not lie over the state");
    for (const auto& [name, null] : spec.nulls) {
        const bool one = null.size() == (spec.values.find(name)->dtype == kInt64 ? sizeof(int64_t) : sizeof(float));
        if (maps.count(name) != 0 && !one) top.refuse("maps", "null, as the null of " + name + " is a map of its own");
    }
    spec.maps = maps;
}

}  // namespace

void parse_maps(Fields& top, PipelineSpec& spec, const std::vector<InputSpec>& inputs) {
    parse_named_maps(top, spec, inputs);
    parse_multiple(top, spec);
}

}  // namespace diffusevae
