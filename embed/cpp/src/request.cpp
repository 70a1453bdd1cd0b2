// Shapes first, then what is in the arrays; engine/resolve.py is the same in Python.
#include "request.h"

#include <algorithm>

#include "arrays.h"
#include "checks.h"
#include "tensor.h"
#include "text.h"

namespace diffusevae {
namespace {

using Number = std::optional<int64_t>;

constexpr const char* kOneSlice = ". Pass one slice a step, in the order used (from the noisiest step to the last).";

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

GivenInput given_input(const InputSpec& spec, const diffusevae_array& array) {
    Dimensions expected = spec.shape;
    expected[0] = "N";
    const Dtype dtype = dtype_of(spec.dtype);
    const std::vector<int64_t> shape = checked_shape(array, dtype, expected);
    if (dtype == Dtype::kFloat32) {
        check_values(spec, static_cast<const float*>(array.data), shape);
    } else {
        check_values(spec, static_cast<const int64_t*>(array.data), shape);
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

bool is_encoded(const Verb& verb, const InputSpec* input) {
    return std::find(verb.encoded.begin(), verb.encoded.end(), input) != verb.encoded.end();
}

struct Drawn {
    const InputSpec *once = nullptr, *each_step = nullptr;
};

// The drawn inputs where they are needed and neither given nor encoded; guided: whether guides run. Refuses a request that
// lacks another.
Drawn drawn_inputs(const Manifest& manifest, const NamedArrays& arrays, const Verb& verb, bool guided, bool check) {
    Drawn drawn;
    std::vector<std::string> missing;
    for (const InputSpec* input : needed_inputs(manifest, verb.given, guided)) {
        if (find(arrays, input->name) != nullptr || is_encoded(verb, input)) continue;
        if (input->draw) {
            (*input->draw == kEachStep ? drawn.each_step : drawn.once) = input;
        } else {
            missing.push_back(input->name);
        }
    }
    if (check && !missing.empty())
        refuse_argument(std::string(verb.name) + ": found no " + joined(missing) + ", expected it: this bundle takes "
                        + takes(manifest) + ". Pass it by name in inputs.");
    return drawn;
}

void collect(const PipelineSpec& pipeline, const std::string& value, const std::set<std::string>& given,
             std::set<std::string>& names) {
    if (given.count(value) != 0) return;
    const CallSpec* call = pipeline.maker(value);
    if (call == nullptr) {
        names.insert(value);
    } else {
        for (const auto& [port, name] : call->inputs) collect(pipeline, name, given, names);
    }
}

}  // namespace

std::vector<const InputSpec*> needed_inputs(const Manifest& manifest, const std::set<std::string>& given, bool guided) {
    const PipelineSpec& pipeline = manifest.pipeline;
    std::set<std::string> names;
    const auto add = [&](const CallSpec& call) {
        for (const auto& [port, value] : call.inputs) collect(pipeline, value, given, names);
    };
    if (guided)
        for (const CallSpec* call : pipeline.guide_calls()) add(*call);
    add(pipeline.rows);
    add(pipeline.step);
    for (const CallSpec& call : pipeline.after) add(call);
    for (const auto& name : {pipeline.state.centre, pipeline.state.start})
        if (name) collect(pipeline, *name, given, names);
    std::vector<const InputSpec*> needed;
    for (const InputSpec& input : manifest.inputs)
        if (names.count(input.name) != 0) needed.push_back(&input);
    return needed;
}

GivenNoise given_noise(const StateSpec& state, const diffusevae_array& array, int64_t& count) {
    const auto shape = checked_shape(array, Dtype::kFloat32, {"steps", "N", state.channels, state.height, state.width});
    const float* const values = static_cast<const float*>(array.data);
    check_finite_array(array.name, values, shape);
    count = shape[1];
    return {values, false, shape[0]};
}

Setting checked_setting(const Manifest& manifest, const diffusevae_sample_options& given, const Verb& verb) {
    check_flag("clip", given.clip);
    check_flag("quantize_denoised", given.quantize_denoised);
    const NamedArrays arrays = named_arrays(manifest, given, verb.arrays);
    Setting setting = resolve_setting(manifest, given, verb.starts_from_image);
    const bool draws = drawn_inputs(manifest, arrays, verb, setting.guide_scale != 0.0, false).once != nullptr;
    setting.prior = chosen_prior(manifest, given.prior, draws);
    return setting;
}

Request checked_request(const Manifest& manifest, const diffusevae_sample_options& given, const Verb& verb) {
    const StateSpec& state = manifest.pipeline.state;
    Request request;
    request.setting = checked_setting(manifest, given, verb);
    request.watch = watch_of(given);
    const NamedArrays arrays = named_arrays(manifest, given, verb.arrays);
    std::vector<Count> counts;
    counts.push_back({"n", given.n == DIFFUSEVAE_UNSET ? Number() : counted("n", given.n)});
    counts.push_back({"seeds", count_beside("seeds", given.seeds, "seeds_count", given.seeds_count)});
    if (verb.starts_from_image) counts.push_back({"images", given.n});
    int64_t x_T = 0, noise = 0;
    if (const diffusevae_array* array = find(arrays, "x_T")) {
        const auto shape = checked_shape(*array, Dtype::kFloat32, {"N", state.channels, state.height, state.width});
        request.x_T = static_cast<const float*>(array->data);
        check_finite_array("x_T", request.x_T, shape);
        x_T = shape[0];
        counts.push_back({"x_T", x_T, true});
    }
    if (const diffusevae_array* array = find(arrays, "noise")) {
        request.noise = given_noise(state, *array, noise);
        counts.push_back({"noise", noise, true});
    }
    for (const InputSpec& spec : manifest.inputs) {
        const diffusevae_array* array = find(arrays, spec.name);
        if (array == nullptr) continue;
        request.inputs.push_back(given_input(spec, *array));
        counts.push_back({spec.name, request.inputs.back().shape[0], true});
    }
    const Drawn drawn = drawn_inputs(manifest, arrays, verb, request.setting.guide_scale != 0.0, true);
    request.drawn = drawn.once;
    request.fresh = drawn.each_step;
    request.edits = checked_edits(manifest.directions, given);
    if (!request.edits.empty()) {
        const InputSpec* const moved = manifest.input(manifest.directions->input);
        if (request.drawn == nullptr && find(arrays, moved->name) == nullptr && !is_encoded(verb, moved))
            refuse_argument("edits: found some, but this run needs no " + moved->name + ", which they move. Leave them out.");
    }
    request.n = agree_on_count(counts).value_or(1);
    request.seeds = seeds_of(given);
    request.x_T_shared = x_T == 1 && request.n != 1;
    request.noise.shared = noise == 1 && request.n != 1;
    for (GivenInput& input : request.inputs) input.shared = input.shape[0] == 1 && request.n != 1;
    request.sizes = free_sizes(request.inputs);
    return request;
}

void check_rows(const Request& request, int64_t rows) {
    const auto check = [rows](const char* name, const GivenNoise& noise) {
        if (noise.values && noise.rows != rows)
            refuse_argument(std::string(name) + " holds " + std::to_string(noise.rows) + " steps; this run has "
                            + std::to_string(rows) + kOneSlice);
    };
    check("noise", request.noise);
    if (request.blend) check("known_noise", request.blend->noise);
    const auto steps = request.sizes.find(kSteps);
    if (steps == request.sizes.end() || steps->second == rows) return;
    for (const GivenInput& input : request.inputs) {
        const Dimensions& shape = input.spec->shape;
        if (std::find(shape.begin(), shape.end(), Dimension(kSteps)) != shape.end())
            refuse_argument(input.spec->name + " holds " + std::to_string(steps->second) + " steps; this run has "
                            + std::to_string(rows) + kOneSlice);
    }
}

}  // namespace diffusevae
