#include "outputs.h"

#include <algorithm>

#include "checks.h"
#include "tensor.h"
#include "text.h"

namespace diffusevae {
namespace {

const char* const kRowsDimension = "rows";

void describe(const std::string& name, Dtype dtype, const Dimensions& shape, diffusevae_array_info& info) {
    info.name = name.c_str();
    info.dtype = int32_t(dtype);
    info.rank = int32_t(shape.size());
    for (size_t i = 0; i < shape.size(); ++i) {
        const int64_t* size = std::get_if<int64_t>(&shape[i]);
        info.shape[i] = size != nullptr ? *size : -1;
        info.dimensions[i] = size != nullptr ? nullptr : std::get<std::string>(shape[i]).c_str();
    }
}

// The shape in this run; an array of pixels has its channels last.
std::vector<int64_t> sizes_of(const OutputSpec& spec, bool pixels, const Sizes& sizes) {
    std::vector<int64_t> shape;
    for (const Dimension& dimension : spec.shape) {
        const int64_t* fixed = std::get_if<int64_t>(&dimension);
        const auto free = fixed != nullptr ? sizes.end() : sizes.find(std::get<std::string>(dimension));
        if (fixed == nullptr && free == sizes.end())
            refuse_argument(spec.name + " of the result: found an array whose " + text_of(dimension)
                            + " no input of this request says; expected none. Leave it out.");
        shape.push_back(fixed != nullptr ? *fixed : free->second);
    }
    if (pixels) std::rotate(shape.begin() + 1, shape.begin() + 2, shape.end());
    return shape;
}

Wanted wanted(const std::vector<OutputSpec>& outputs, const std::string& where, diffusevae_array& array) {
    std::vector<std::string> names;
    for (const OutputSpec& spec : outputs) names.push_back(spec.name);
    if (!array.name) refuse_argument(where + " of the result has no name; expected one of " + joined(names) + ".");
    for (const OutputSpec& spec : outputs) {
        if (spec.name != array.name) continue;
        const bool pixels = spec.is_image() && array.dtype == DIFFUSEVAE_UINT8;
        if (!pixels && array.dtype != int32_t(spec.dtype))
            refuse_argument(spec.name + " of the result has dtype " + name_of(Dtype(array.dtype)) + " ("
                            + std::to_string(array.dtype) + "); expected " + name_of(spec.dtype)
                            + (spec.is_image() ? ", or uint8 for its pixels." : "."));
        return {&spec, pixels, &array};
    }
    refuse_argument(where + " of the result is " + in_quotes(array.name) + ", which this bundle does not give; expected one of "
                    + joined(names) + "." + did_you_mean(array.name, names));
}

void check_room(const Wanted& one, const std::vector<int64_t>& shape) {
    const diffusevae_array& array = *one.array;
    const std::string name = one.spec->name + " of the result", needed = name_of(Dtype(array.dtype)) + (" " + shape_text(shape));
    if (array.rank != int32_t(shape.size()))
        refuse_argument(name + " has rank " + std::to_string(array.rank) + "; expected " + needed + ".");
    const std::vector<int64_t> room(array.shape, array.shape + array.rank);
    if (!std::equal(shape.begin() + 1, shape.end(), room.begin() + 1))
        refuse_argument(name + " has shape " + shape_text(room) + "; expected " + needed + ", or more in front.");
    if (room[0] < shape[0])
        refuse_argument(name + " has room for " + std::to_string(room[0]) + "; this request has " + std::to_string(shape[0])
                        + ". Make room for them, or ask for fewer.");
    check_array(name, array.data, bytes_of(Dtype(array.dtype)), shape);
}

}  // namespace

std::vector<OutputSpec> outputs_of(const Manifest& manifest) {
    const PipelineSpec& pipeline = manifest.pipeline;
    const std::vector<int64_t> image = pipeline.image_shape();
    const StateSpec& s = pipeline.state;
    std::vector<OutputSpec> outputs = {
        {"images", Dtype::kUint8, {kBatch, image[1], image[2], image[0]}},
        {"x", Dtype::kFloat32, {kBatch, s.channels, s.height, s.width}},
        {"seeds", Dtype::kUint64, {kBatch}},
        {"timesteps", Dtype::kInt64, {kRowsDimension}},
        {"step_ms", Dtype::kFloat64, {kRowsDimension}},
    };
    const auto add = [&](const std::string& name) {
        const ValueKind& kind = *pipeline.values.find(name);
        // What there is of every row is as long as the table, which a caller learns from the result only.
        const bool by_row = std::find(kind.shape.begin(), kind.shape.end(), Dimension(kSteps)) != kind.shape.end();
        if (kind.shape[0] == Dimension(kBatch) && !by_row) outputs.push_back({name, dtype_of(kind.dtype), kind.shape});
    };
    for (const InputSpec& input : manifest.inputs) add(input.name);
    for (const std::vector<CallSpec>* calls : {&pipeline.before, &pipeline.after})
        for (const CallSpec& call : *calls)
            for (const auto& [port, name] : call.outputs) add(name);
    return outputs;
}

void describe_input(const InputSpec& input, diffusevae_array_info& info) {
    describe(input.name, dtype_of(input.dtype), input.shape, info);
    info.drawn = input.draw ? 1 : 0;
    info.has_null = input.null ? 1 : 0;
    info.bounded = input.range ? 1 : 0;
    info.low = input.range ? input.range->first : 0.0;
    info.high = input.range ? input.range->second : 0.0;
}

void describe_output(const OutputSpec& output, diffusevae_array_info& info) {
    describe(output.name, output.dtype, output.shape, info);
    info.is_image = output.is_image() ? 1 : 0;
}

std::vector<Wanted> wanted_outputs(const std::vector<OutputSpec>& outputs, const std::set<std::string>& there,
                                   const Sizes& sizes, const diffusevae_result& result) {
    if ((result.outputs != nullptr) != (result.outputs_count > 0))
        refuse_argument("outputs_count of the result is " + std::to_string(result.outputs_count) + ", and outputs is "
                        + (result.outputs ? "an array" : "a null pointer") + "; expected both or neither.");
    std::vector<Wanted> found;
    for (int64_t i = 0; i < result.outputs_count; ++i) {
        Wanted one = wanted(outputs, "outputs[" + std::to_string(i) + "]", result.outputs[i]);
        for (const Wanted& other : found)
            if (other.spec == one.spec && other.pixels == one.pixels)
                refuse_argument("outputs of the result has " + in_quotes(one.spec->name) + " twice in one dtype; expected it "
                                "once.");
        if (there.count(one.spec->name) == 0)
            refuse_argument(one.spec->name + " of the result takes no part in this request; expected none. Leave it out.");
        check_room(one, sizes_of(*one.spec, one.pixels, sizes));
        found.push_back(one);
    }
    return found;
}

}  // namespace diffusevae
