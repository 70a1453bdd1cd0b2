// Shapes first, then what is in the arrays; engine/resolve.py is the same in Python.
#include "request.h"

#include <algorithm>
#include <limits>

#include "checks.h"
#include "tensor.h"
#include "text.h"

namespace diffusevae {
namespace {

using Number = std::optional<int64_t>;

std::string takes(const Manifest& manifest) {
    std::vector<std::string> texts;
    for (const InputSpec& input : manifest.inputs) texts.push_back(input.text());
    return texts.empty() ? "none" : joined(texts);
}

Seeds seeds_of(const diffusevae_sample_options& given) {
    check_flag("has_seed", given.has_seed);
    if (given.seeds && given.has_seed)
        refuse_argument("seeds and seed are both given; expected a list, or has_seed = 1 and one number.");
    if (given.seeds) {
        check_array("seeds", given.seeds, sizeof(uint64_t), {given.seeds_count});
        return Seeds{given.seeds, 0};
    }
    return Seeds{nullptr, given.has_seed ? given.seed : drawn_seed()};
}

Watch watch_of(const diffusevae_sample_options& given) {
    if (!given.callback) return {};
    return [callback = given.callback, user = given.user](const diffusevae_step& seen) {
        return callback(&seen, user) == 0 ? After::kGoOn : After::kStop;
    };
}

// ---- named arrays ------------------------------------------------------------------------------------------------------

std::vector<const diffusevae_array*> named_arrays(const Manifest& manifest, const diffusevae_sample_options& given) {
    count_beside("inputs", given.inputs, "inputs_count", given.inputs_count);
    std::vector<const diffusevae_array*> arrays;
    std::vector<std::string> known = {"x_T", "noise"};
    for (const InputSpec& input : manifest.inputs) known.push_back(input.name);
    for (int64_t i = 0; i < given.inputs_count; ++i) {
        const diffusevae_array& array = given.inputs[i];
        if (!array.name) refuse_argument("inputs[" + std::to_string(i) + "] has no name; expected one of " + joined(known) + ".");
        if (std::find(known.begin(), known.end(), array.name) == known.end())
            refuse_argument("inputs has an array " + in_quotes(array.name) + ", and this bundle has no such input: it takes "
                            + takes(manifest) + "." + did_you_mean(array.name, known));
        for (const diffusevae_array* other : arrays)
            if (std::string(other->name) == array.name)
                refuse_argument("inputs has the array " + in_quotes(array.name) + " twice; expected each name once.");
        arrays.push_back(&array);
    }
    return arrays;
}

const diffusevae_array* find(const std::vector<const diffusevae_array*>& arrays, const std::string& name) {
    for (const diffusevae_array* array : arrays)
        if (name == array->name) return array;
    return nullptr;
}

std::vector<int64_t> shape_of(const diffusevae_array& array) {
    if (array.rank < 1 || array.rank > DIFFUSEVAE_MAX_RANK)
        refuse_argument(std::string(array.name) + " has rank " + std::to_string(array.rank) + "; expected 1 .. "
                        + std::to_string(DIFFUSEVAE_MAX_RANK) + ".");
    return std::vector<int64_t>(array.shape, array.shape + array.rank);
}

// Refuses an array of another dtype or shape; `expected` has names where any size of 1 or more will do.
std::vector<int64_t> checked_shape(const diffusevae_array& array, Dtype dtype, const Dimensions& expected) {
    const std::vector<int64_t> shape = shape_of(array);
    const std::string wanted = std::string(name_of(dtype)) + " [" + text_of(expected) + "]";
    if (array.dtype != int32_t(dtype))
        refuse_argument(std::string(array.name) + " has dtype " + name_of(Dtype(array.dtype)) + " (" + std::to_string(array.dtype)
                        + "); expected " + wanted + ".");
    bool fits = shape.size() == expected.size();
    for (size_t i = 0; fits && i < shape.size(); ++i) {
        const int64_t* fixed = std::get_if<int64_t>(&expected[i]);
        fits = shape[i] >= 1 && (fixed == nullptr || *fixed == shape[i]);
    }
    if (!fits) refuse_argument(std::string(array.name) + " has shape " + shape_text(shape) + "; expected " + wanted + ".");
    return shape;
}

// Refuses values outside the range that the manifest gives.
template <class Value>
void check_values(const InputSpec& spec, const Value* values, size_t count) {
    if (!spec.range) return;
    const auto [low, high] = std::minmax_element(values, values + count);
    if (double(*low) < spec.range->first || double(*high) > spec.range->second)
        refuse_argument(spec.name + " runs from " + brief(double(*low)) + " to " + brief(double(*high))
                        + "; expected values in " + brief(spec.range->first) + " .. " + brief(spec.range->second)
                        + ", as this bundle takes them.");
}

GivenInput given_input(const InputSpec& spec, const diffusevae_array& array) {
    Dimensions expected = spec.shape;
    expected[0] = "N";
    const Dtype dtype = dtype_of(spec.dtype);
    const std::vector<int64_t> shape = checked_shape(array, dtype, expected);
    if (dtype == Dtype::kFloat32) {
        check_finite_array(spec.name, static_cast<const float*>(array.data), shape);
        check_values(spec, static_cast<const float*>(array.data), memory_size(shape));
    } else {
        check_array(spec.name, array.data, bytes_of(dtype), shape);
        check_values(spec, static_cast<const int64_t*>(array.data), memory_size(shape));
    }
    return {&spec, array.data, shape, false};
}

// Refuses inputs that disagree on a free dimension; the size of each.
Sizes free_sizes(const std::vector<GivenInput>& inputs) {
    Sizes sizes;
    std::map<std::string, std::string> said_by;
    for (const GivenInput& input : inputs) {
        for (size_t i = 1; i < input.shape.size(); ++i) {
            const std::string* name = std::get_if<std::string>(&input.spec->shape[i]);
            if (name == nullptr) continue;
            const auto [at, fresh] = sizes.emplace(*name, input.shape[i]);
            if (fresh) said_by[*name] = input.spec->name;
            if (at->second != input.shape[i])
                refuse_argument(input.spec->name + " has " + *name + " = " + std::to_string(input.shape[i]) + ", but "
                                + said_by[*name] + " has " + std::to_string(at->second) + "; expected one " + *name
                                + " for both.");
        }
    }
    return sizes;
}

// The drawn input where it is needed and not given. Refuses a request that lacks another.
const InputSpec* drawn_input(const Manifest& manifest, const std::vector<const diffusevae_array*>& arrays, bool check) {
    const InputSpec* drawn = nullptr;
    std::vector<std::string> missing;
    for (const InputSpec* input : needed_inputs(manifest)) {
        if (find(arrays, input->name) != nullptr) continue;
        if (input->draw) {
            drawn = input;
        } else {
            missing.push_back(input->name);
        }
    }
    if (check && !missing.empty())
        refuse_argument("sample: found no " + joined(missing) + ", expected it: this bundle takes " + takes(manifest)
                        + ". Pass it by name in inputs.");
    return drawn;
}

void collect(const PipelineSpec& pipeline, const std::string& value, std::set<std::string>& names) {
    const CallSpec* call = pipeline.maker(value);
    if (call == nullptr) {
        names.insert(value);
    } else {
        for (const auto& [port, name] : call->inputs) collect(pipeline, name, names);
    }
}

}  // namespace

std::vector<const InputSpec*> needed_inputs(const Manifest& manifest) {
    const PipelineSpec& pipeline = manifest.pipeline;
    std::set<std::string> names;
    const auto add = [&](const CallSpec& call) {
        for (const auto& [port, value] : call.inputs) collect(pipeline, value, names);
    };
    add(pipeline.rows);
    add(pipeline.step);
    for (const CallSpec& call : pipeline.after) add(call);
    for (const auto& name : {pipeline.state.centre, pipeline.state.start})
        if (name) collect(pipeline, *name, names);
    std::vector<const InputSpec*> needed;
    for (const InputSpec& input : manifest.inputs)
        if (names.count(input.name) != 0) needed.push_back(&input);
    return needed;
}

Setting checked_setting(const Manifest& manifest, const diffusevae_sample_options& given) {
    check_flag("clip", given.clip);
    check_flag("quantize_denoised", given.quantize_denoised);
    const bool draws = drawn_input(manifest, named_arrays(manifest, given), false) != nullptr;
    return resolve_setting(manifest, given, draws);
}

Request checked_request(const Manifest& manifest, const diffusevae_sample_options& given) {
    const StateSpec& state = manifest.pipeline.state;
    Request request{checked_setting(manifest, given), 1, {}, {}, nullptr, {}, nullptr, false, nullptr, false, 0, {}, watch_of(given)};
    const std::vector<const diffusevae_array*> arrays = named_arrays(manifest, given);
    std::vector<Count> counts;
    counts.push_back({"n", given.n == DIFFUSEVAE_UNSET ? Number() : counted("n", given.n)});
    counts.push_back({"seeds", count_beside("seeds", given.seeds, "seeds_count", given.seeds_count)});
    Number x_T, noise;
    if (const diffusevae_array* array = find(arrays, "x_T")) {
        const auto shape = checked_shape(*array, Dtype::kFloat32, {"N", state.channels, state.height, state.width});
        request.x_T = static_cast<const float*>(array->data);
        check_finite_array("x_T", request.x_T, shape);
        x_T = shape[0];
        counts.push_back({"x_T", x_T, true});
    }
    if (const diffusevae_array* array = find(arrays, "noise")) {
        const auto shape = checked_shape(*array, Dtype::kFloat32, {"steps", "N", state.channels, state.height, state.width});
        request.noise = static_cast<const float*>(array->data);
        check_finite_array("noise", request.noise, shape);
        request.noise_rows = shape[0];
        noise = shape[1];
        counts.push_back({"noise", noise, true});
    }
    for (const InputSpec& spec : manifest.inputs) {
        const diffusevae_array* array = find(arrays, spec.name);
        if (array == nullptr) continue;
        request.inputs.push_back(given_input(spec, *array));
        counts.push_back({spec.name, request.inputs.back().shape[0], true});
    }
    request.drawn = drawn_input(manifest, arrays, true);
    request.edits = checked_edits(manifest.directions, given);
    if (!request.edits.empty() && request.drawn == nullptr && find(arrays, manifest.directions->input) == nullptr)
        refuse_argument("edits: found some, but this run needs no " + manifest.directions->input
                        + ", which they move. Leave them out.");
    request.n = agree_on_count(counts).value_or(1);
    request.seeds = seeds_of(given);
    request.x_T_shared = x_T == 1 && request.n != 1;
    request.noise_shared = noise == 1 && request.n != 1;
    for (GivenInput& input : request.inputs) input.shared = input.shape[0] == 1 && request.n != 1;
    request.sizes = free_sizes(request.inputs);
    return request;
}

void check_rows(const Request& request, int64_t rows) {
    if (request.noise && request.noise_rows != rows)
        refuse_argument("noise holds " + std::to_string(request.noise_rows) + " steps; this run has " + std::to_string(rows)
                        + ". Pass one slice a step, in the order used (from the noisiest step to the last).");
}

}  // namespace diffusevae
