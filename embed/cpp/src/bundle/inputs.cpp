#include "bundle/inputs.h"

#include <algorithm>

#include "bundle/limits.h"
#include "text.h"

namespace diffusevae {
namespace {

// As RESERVED of engine/bundle/inputs.py; a test compares the two.
const std::vector<std::string> kReserved = {
    "x", "x_T", "noise", "timesteps", "rows", "e", "image", "images", "seeds", "weights", "start", "coefficients",
    "n", "steps", "seed", "method", "spacing", "eta", "t_start", "temperature", "guidance", "variance", "clip", "prior",
    "callback", "progress", "stream", "a", "b", "mode", "step_ms",
};

bool is_free(const Dimension& dimension) { return std::holds_alternative<std::string>(dimension); }

InputSpec parse_input(Fields& fields) {
    InputSpec input;
    input.name = fields.text("name");
    if (!is_identifier(input.name) || is_reserved(input.name))
        fields.refuse("name", "an identifier, and none of " + joined(kReserved));
    input.dtype = fields.choice("dtype", {kFloat32, kInt64});
    input.shape = parse_shape(fields);
    const Dimensions sample = input.sample();
    if (input.shape[0] != Dimension(kBatch) || std::find(sample.begin(), sample.end(), Dimension(kBatch)) != sample.end())
        fields.refuse("shape", in_quotes(kBatch) + " as the first dimension, and only there");
    input.range = parse_range(fields);
    input.drawn = !fields.is_null("draw") && fields.choice("draw", {"normal"}) == "normal";
    fields.take("draw", "'normal' or null");
    if (input.drawn
        && (input.dtype != kFloat32 || std::any_of(sample.begin(), sample.end(), is_free) || input.range))
        fields.refuse("draw", "null, unless the input is float32, unbounded and of fixed dimensions");
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
            if (other.drawn && found.drawn)
                fields.refuse("draw", "null: one input is drawn already, and a sample has one stream for it");
        inputs.push_back(std::move(found));
    }
    return inputs;
}

}  // namespace diffusevae
