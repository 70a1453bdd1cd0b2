#include "setting.h"

#include <algorithm>
#include <limits>
#include <set>
#include <string>
#include <utility>

#include "checks.h"
#include "bundle/prior.h"
#include "text.h"
#include "timesteps.h"

namespace diffusevae {

namespace {

bool is_given(int64_t number) { return number != DIFFUSEVAE_UNSET; }
bool is_given(double number) { return number != DIFFUSEVAE_UNSET_NUMBER; }
bool is_given(const char* text) { return text != nullptr; }

// A list of the options; nothing where there is none.
template <class Value>
Listed<Value> listed(const std::string& name, const Value* values, int64_t count) {
    if (!count_beside(name.c_str(), values, (name + "_count").c_str(), count)) return {};
    check_array(name, values, sizeof(Value), {count});
    return {values, count};
}

// What the options say of a scale: one number, or a list.
struct GivenScale {
    const char *name, *plural;
    double value;
    const double* list;
    int64_t count;

    bool is_given() const { return value != DIFFUSEVAE_UNSET_NUMBER || list || count != 0; }
};

void take(Scale& into, const GivenScale& given) {
    const Listed<double> list = listed(given.plural, given.list, given.count);
    if (list && given.value != DIFFUSEVAE_UNSET_NUMBER)
        refuse_argument(std::string(given.name) + " and " + given.plural + " are both given; expected one number, or a list.");
    if (given.is_given()) into = {given.value, list};
}

Scale scale_of(const Numbers& numbers) {
    if (numbers.list.empty()) return {numbers.value, {}};
    return {DIFFUSEVAE_UNSET_NUMBER, {numbers.list.data(), int64_t(numbers.list.size())}};
}

template <class Value>
void take(Value& into, const Value& given) {
    if (is_given(given)) into = given;
}

void take_word(const char*& into, const char* name, const char* given, const std::vector<std::string>& choices) {
    if (given) into = known(name, given, choices);
}

// Refuse options of a guide to a bundle without one, and a mode that one of its guides has no entropy for.
void check_guide_options(const Setting& setting, const std::vector<GuideSpec>& guides) {
    if (setting.guide_scale != 0.0 && guides.empty())
        refuse_argument("guide_scale is " + brief(setting.guide_scale) + ", but this bundle has no guide; expected 0. Leave it out, or "
                        "build the bundle with one: diffusevae build CKPT --guide CLASSIFIER");
    const bool all = std::all_of(guides.begin(), guides.end(), [](const GuideSpec& guide) { return guide.gives_entropy(); });
    if (std::string_view(setting.guide_mode) == kByEntropy && !all)
        refuse_argument(std::string("guide_mode is '") + kByEntropy + "', but not every guide of this bundle gives its entropy.");
}

// Refuse a regulariser to a bundle without one, and the steps of a learned variance to one that has learned none.
void check_regulariser_options(const Setting& setting, const std::optional<RegulariserSpec>& regulariser) {
    const std::string_view mode = setting.regularise;
    if (mode == kOff) return;
    const std::string found = "regularise is " + in_quotes(setting.regularise);
    if (!regulariser)
        refuse_argument(found + ", but this bundle has no regulariser; expected 'off'. Leave it out, or build the bundle with one: "
                        "diffusevae build CKPT --regulariser UNCONDITIONAL");
    if (mode == kBefore && std::string_view(setting.variance) == kLearnedRange && !regulariser->learns_variance())
        refuse_argument(found + " with variance 'learned_range', but this bundle's regulariser, which takes the steps, has no second "
                        "output that would say it; expected one of fixedlarge, fixedsmall, or regularise='after'.");
}

// Refuse what this bundle cannot have: guidance without nulls, a learned variance without a second output, x0 quantised without
// a codebook, and a start from a value that there is not.
void check_possible(const Setting& setting, const PipelineSpec& pipeline, bool has_image) {
    check_guide_options(setting, pipeline.guides);
    check_regulariser_options(setting, pipeline.regulariser);
    if (setting.guided() && !pipeline.guided())
        refuse_argument("guidance is " + brief(setting.guidance) + ", but nothing that this bundle's network is fed has a null "
                        "to be guided by; expected 0. Leave it out.");
    if (std::string(setting.variance) == kLearnedRange && !pipeline.learns_variance())
        refuse_argument("variance is 'learned_range', but this bundle's network has no second output that would say it; expected "
                        "one of fixedlarge, fixedsmall.");
    if (setting.quantize_denoised && !pipeline.quantize)
        refuse_argument("quantize_denoised is given, but this bundle has no codebook in which x0 could be looked up. Leave it out.");
    if (setting.t_start && !has_image && !pipeline.state.start)
        refuse_argument("t_start is " + std::to_string(*setting.t_start) + ", but this bundle's pipeline has no start value "
                        "to start from. Leave it out.");
}

std::optional<std::pair<int64_t, int64_t>> interval_of(const char* name, const int64_t (&given)[2]) {
    const auto [low, high] = given;
    if (is_given(low) != is_given(high))
        refuse_argument(std::string(name) + " has one of its two timesteps alone; expected both, or neither.");
    if (!is_given(low)) return std::nullopt;
    return std::pair(low, high);
}

// What is said of guides: in the bundle, where its recorded setting applies and guides are not switched off, and by the caller.
void take_guide(Setting& into, const Manifest& manifest, const diffusevae_sample_options& given, bool recorded) {
    if (recorded && manifest.guide && given.guide_scale != 0.0) {
        into.guide_scale = manifest.guide->scale;
        into.guide_mode = known("guide_mode", manifest.guide->mode, kModes);
        into.guide_interval = manifest.guide->interval;
    }
    take(into.guide_scale, given.guide_scale);
    take_word(into.guide_mode, "guide_mode", given.guide_mode, kModes);
    if (const auto interval = interval_of("guide_interval", given.guide_interval)) into.guide_interval = interval;
}

// What is said of a regulariser, likewise.
void take_regularise(Setting& into, const Manifest& manifest, const diffusevae_sample_options& given, bool recorded) {
    if (given.regularise) known("regularise", given.regularise, kRegularise);
    const bool off = given.regularise && std::string_view(given.regularise) == kOff;
    if (recorded && manifest.regularise && !off) {
        into.regularise = known("regularise", manifest.regularise->mode, kRegularise);
        into.regularise_interval = manifest.regularise->interval;
    }
    take_word(into.regularise, "regularise", given.regularise, kRegularise);
    if (const auto interval = interval_of("regularise_interval", given.regularise_interval)) into.regularise_interval = interval;
}

// The fitted setting that is meant: of the steps named, or of the recorded ones where nothing of a setting is; null for none.
// asked: "fitted" insists on one, "plain" wants none, null takes one where there is one and no guide runs, which a fitted setting
// knows nothing of. others: what is named beside steps.
const Defaults* fitted_setting(const Manifest& manifest, const diffusevae_sample_options& given, int64_t steps,
                               const std::vector<std::string>& others) {
    const char* const asked = given.setting;
    const double recorded = manifest.guide && replacing(given).empty() ? manifest.guide->scale : 0.0;
    const double scale = is_given(given.guide_scale) ? given.guide_scale : recorded;
    if (!asked && manifest.guide && scale != 0.0) return nullptr;
    const std::string own = manifest.regularise && replacing(given).empty() ? manifest.regularise->mode : kOff;
    if (!asked && manifest.regularise && (given.regularise ? given.regularise : own) != kOff) return nullptr;
    const std::string_view word = asked ? known("setting", asked, kSettings) : "";
    const Defaults* found = !others.empty() || !manifest.fitted ? nullptr : manifest.fitted->get(steps);
    if (word == "fitted" && !others.empty())
        refuse_argument("setting is 'fitted', but " + others[0] + " is given, which a fitted setting says itself: leave one of the "
                        "two out.");
    if (word == "fitted" && found == nullptr) {
        std::set<int64_t> there;
        if (manifest.fitted)
            for (const Defaults& setting : manifest.fitted->settings) there.insert(setting.steps);
        std::vector<std::string> counts;
        for (const int64_t count : there) counts.push_back(std::to_string(count));
        refuse_argument("setting is 'fitted', but this bundle has none of " + std::to_string(steps) + " steps; expected one of those "
                        "it has: " + (counts.empty() ? "none yet" : joined(counts))
                        + ". Fit some with: diffusevae fit-setting BUNDLE");
    }
    return word == "plain" ? nullptr : found;
}

}  // namespace

const char* chosen_prior(const Manifest& manifest, const char* asked, bool draws) {
    if (draws) {
        const auto word = asked ? std::optional<std::string>(asked) : std::nullopt;
        return resolve_prior(word, manifest.prior.has_value()) ? "bundle" : "standard";
    }
    if (asked)
        refuse_argument("prior is " + in_quotes(asked) + ", but no input is drawn here: it is given, or the bundle has "
                        "none. Leave it out.");
    return nullptr;
}

diffusevae_setting Setting::in_c() const {
    diffusevae_setting c{};
    c.steps = steps;
    c.timesteps = timesteps.values;
    c.timesteps_count = timesteps.count;
    c.spacing = spacing;
    c.rho = rho;
    c.method = method;
    c.eta = eta.value;
    c.etas = eta.list.values;
    c.etas_count = eta.list.count;
    c.t_start = t_start.value_or(DIFFUSEVAE_UNSET);
    c.temperature = temperature;
    c.noise_scale = noise_scale.value;
    c.noise_scales = noise_scale.list.values;
    c.noise_scales_count = noise_scale.list.count;
    c.eps_scale = eps_scale.value;
    c.eps_scales = eps_scale.list.values;
    c.eps_scales_count = eps_scale.list.count;
    c.guidance = guidance;
    c.guidance_interval[0] = guidance_interval ? guidance_interval->first : DIFFUSEVAE_UNSET;
    c.guidance_interval[1] = guidance_interval ? guidance_interval->second : DIFFUSEVAE_UNSET;
    c.variance = variance;
    c.quantize_denoised = quantize_denoised ? 1 : 0;
    c.guide_scale = guide_scale;
    c.guide_mode = guide_mode;
    c.guide_interval[0] = guide_interval ? guide_interval->first : DIFFUSEVAE_UNSET;
    c.guide_interval[1] = guide_interval ? guide_interval->second : DIFFUSEVAE_UNSET;
    c.regularise = regularise;
    c.regularise_interval[0] = regularise_interval ? regularise_interval->first : DIFFUSEVAE_UNSET;
    c.regularise_interval[1] = regularise_interval ? regularise_interval->second : DIFFUSEVAE_UNSET;
    c.clip = clip ? 1 : 0;
    c.prior = prior;
    return c;
}

namespace {

Setting setting_of(const Defaults& recorded, const Manifest& manifest) {
    Setting setting{};
    setting.steps = recorded.steps;
    if (recorded.timesteps) setting.timesteps = {recorded.timesteps->data(), int64_t(recorded.timesteps->size())};
    if (recorded.spacing) setting.spacing = known("spacing", *recorded.spacing, kSpacings);
    else if (!recorded.timesteps) setting.spacing = default_spacing(recorded.t_start);
    setting.rho = recorded.rho;
    setting.method = known("method", recorded.method, kMethods);
    setting.eta = scale_of(recorded.eta);
    setting.t_start = recorded.t_start;
    setting.temperature = recorded.temperature;
    setting.noise_scale = scale_of(recorded.noise_scale);
    setting.eps_scale = scale_of(recorded.eps_scale);
    setting.guidance = recorded.guidance;
    setting.variance = known("variance", manifest.variance, kVariances);
    return setting;
}

}  // namespace

Setting recorded_setting(const Manifest& manifest) {
    Setting setting = setting_of(manifest.defaults, manifest);
    diffusevae_sample_options none{};
    none.guide_scale = DIFFUSEVAE_UNSET_NUMBER;
    none.guide_interval[0] = none.guide_interval[1] = DIFFUSEVAE_UNSET;
    none.regularise_interval[0] = none.regularise_interval[1] = DIFFUSEVAE_UNSET;
    take_guide(setting, manifest, none, true);
    take_regularise(setting, manifest, none, true);
    setting.prior = manifest.drawn() != nullptr ? chosen_prior(manifest, nullptr, true) : nullptr;
    return setting;
}

std::vector<std::string> replacing(const diffusevae_sample_options& given) {
    const GivenScale eta{"eta", "etas", given.eta, given.etas, given.etas_count};
    const bool timesteps = given.timesteps != nullptr || given.timesteps_count != 0;
    const std::pair<const char*, bool> options[] = {
        {"steps", is_given(given.steps)},   {"timesteps", timesteps},           {"spacing", is_given(given.spacing)},
        {"rho", is_given(given.rho)},       {"method", is_given(given.method)}, {"eta", eta.is_given()},
        {"t_start", is_given(given.t_start)},
    };
    std::vector<std::string> names;
    for (const auto& [name, there] : options)
        if (there) names.push_back(name);
    return names;
}

Setting resolve_setting(const Manifest& manifest, const diffusevae_sample_options& given, bool has_image) {
    Setting setting = setting_of(manifest.defaults, manifest);
    bool recorded = false;
    const GivenScale eta{"eta", "etas", given.eta, given.etas, given.etas_count};
    const Listed<int64_t> timesteps = listed("timesteps", given.timesteps, given.timesteps_count);
    std::vector<std::string> others = replacing(given);
    if (is_given(given.steps)) others.erase(others.begin());
    const int64_t steps = is_given(given.steps) ? given.steps : manifest.defaults.steps;
    if (const Defaults* fitted = fitted_setting(manifest, given, steps, others)) {
        setting = setting_of(*fitted, manifest);
    } else if (!others.empty() || is_given(given.steps)) {
        Setting own{};
        own.steps = timesteps ? timesteps.count : setting.steps;
        own.timesteps = timesteps;
        own.variance = setting.variance;
        setting = own;
    } else {
        recorded = true;
    }
    take(setting.steps, given.steps);
    take_word(setting.method, "method", given.method, kMethods);
    take_word(setting.spacing, "spacing", given.spacing, kSpacings);
    take(setting.rho, given.rho);
    take(setting.eta, eta);
    if (is_given(given.t_start)) setting.t_start = given.t_start;
    take(setting.temperature, given.temperature);
    take(setting.noise_scale, {"noise_scale", "noise_scales", given.noise_scale, given.noise_scales, given.noise_scales_count});
    take(setting.eps_scale, {"eps_scale", "eps_scales", given.eps_scale, given.eps_scales, given.eps_scales_count});
    take(setting.guidance, given.guidance);
    setting.guidance_interval = interval_of("guidance_interval", given.guidance_interval);
    take_word(setting.variance, "variance", given.variance, kVariances);
    setting.quantize_denoised = given.quantize_denoised != 0;
    take_guide(setting, manifest, given, recorded);
    take_regularise(setting, manifest, given, recorded);
    if (!setting.spacing && !setting.timesteps) setting.spacing = default_spacing(setting.t_start);
    setting.clip = given.clip != 0;
    check_number("guidance", setting.guidance, -std::numeric_limits<double>::infinity(),
                 std::numeric_limits<double>::infinity());
    check_number("guide_scale", setting.guide_scale, -std::numeric_limits<double>::infinity(),
                 std::numeric_limits<double>::infinity());
    check_possible(setting, manifest.pipeline, has_image);
    return setting;
}

}  // namespace diffusevae
