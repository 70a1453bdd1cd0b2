#include "bundle/inputs.h"

#include <algorithm>

#include "bundle/schema.h"
#include "text.h"

namespace diffusevae {
namespace {

bool is_free(const Dimension& dimension) { return std::holds_alternative<std::string>(dimension); }

// Whether an input that is said to be a picture can be one.
bool is_picture(const InputSpec& input) {
    const bool mask = *input.picture == "mask";
    const Dimensions sample = input.sample();
    if (input.dtype != kFloat32 || sample.size() != 3 || std::any_of(sample.begin(), sample.end(), is_free)) return false;
    const int64_t channels = std::get<int64_t>(sample[0]);
    const bool ranged = input.range && input.range->first == (mask ? 0.0 : -1.0) && input.range->second == 1.0;
    return !input.draw && ranged && (channels == 1 || (!mask && (channels == 3 || channels == 4)));
}

InputSpec parse_input(Fields& fields) {
    InputSpec input;
    take(fields, input);
    const Dimensions sample = input.sample();
    if (!is_identifier(input.name) || is_reserved(input.name))
        fields.refuse("name", "an identifier, and none of " + joined(kReserved));
    if (input.shape[0] != Dimension(kBatch) || std::find(sample.begin(), sample.end(), Dimension(kBatch)) != sample.end())
        fields.refuse("shape", in_quotes(kBatch) + " as the first dimension, and only there");
    const bool each = input.draw == std::string(kEachStep), by_step = !sample.empty() && sample[0] == Dimension(kSteps);
    const bool fixed = std::none_of(sample.begin() + (each && by_step ? 1 : 0), sample.end(), is_free);
    const bool drawable = input.dtype == kFloat32 && !input.range && fixed && (!each || by_step);
    if (input.draw && !drawable)
        fields.refuse("draw", "null, unless the input is float32, unbounded and of fixed dimensions"
                                  + (each ? ", but for " + in_quotes(kSteps) + " behind " + in_quotes(kBatch) : ""));
    if (input.picture && !is_picture(input)) {
        const bool mask = *input.picture == "mask";
        fields.refuse("picture", std::string("null, unless the input is float32[batch, ") + (mask ? "1" : "1 or 3 or 4")
                                     + ", H, W] in [" + (mask ? "0" : "-1") + ", 1], of fixed dimensions, and not drawn");
    }
    input.null = parse_null(fields, "null", sample, input.dtype, input.range);
    fields.done();
    return input;
}

}  // namespace

bool is_reserved(const std::string& name) {
    return std::find(kReserved.begin(), kReserved.end(), name) != kReserved.end();
}

std::vector<InputSpec> parse_inputs(Fields& top) {
    std::vector<Fields> entries = top.objects("inputs", "a list of inputs, which may be empty", true);
    if (int64_t(entries.size()) > kMaxInputs) top.refuse("inputs", "at most " + std::to_string(kMaxInputs) + " inputs");
    std::vector<InputSpec> inputs;
    for (Fields& fields : entries) {
        InputSpec found = parse_input(fields);
        for (const InputSpec& other : inputs)
            if (other.name == found.name) fields.refuse("name", "a name of its own");
        for (const InputSpec& other : inputs)
            if (found.draw && other.draw == found.draw)
                fields.refuse("draw", "null: one input is drawn already, and a sample has one stream for it");
        inputs.push_back(std::move(found));
    }
    return inputs;
}

}  // namespace diffusevae
