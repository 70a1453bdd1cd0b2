#include "setting.h"

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

// Refuse what this bundle cannot have: guidance without nulls, a learned variance without a second output, x0 quantised without
// a codebook, and a start from a value that there is not.
void check_possible(const Setting& setting, const PipelineSpec& pipeline, bool has_image) {
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

std::optional<std::pair<int64_t, int64_t>> interval_of(const diffusevae_sample_options& given) {
    const auto [low, high] = given.guidance_interval;
    if (is_given(low) != is_given(high))
        refuse_argument("guidance_interval has one of its two timesteps alone; expected both, or neither.");
    if (!is_given(low)) return std::nullopt;
    return std::pair(low, high);
}

// The fitted setting that is meant: of the steps named, or of the recorded ones where nothing of a setting is; null for none.
// asked: "fitted" insists on one, "plain" wants none, null takes one where there is one. others: what is named beside steps.
const Defaults* fitted_setting(const Manifest& manifest, const char* asked, int64_t steps, const std::vector<std::string>& others) {
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

}  // namespace

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
    setting.prior = manifest.drawn() != nullptr ? chosen_prior(manifest, nullptr, true) : nullptr;
    return setting;
}

}  // namespace

Setting recorded_setting(const Manifest& manifest) { return setting_of(manifest.defaults, manifest); }

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

Setting resolve_setting(const Manifest& manifest, const diffusevae_sample_options& given, bool draws, bool has_image) {
    Setting setting = recorded_setting(manifest);
    const GivenScale eta{"eta", "etas", given.eta, given.etas, given.etas_count};
    const Listed<int64_t> timesteps = listed("timesteps", given.timesteps, given.timesteps_count);
    std::vector<std::string> others = replacing(given);
    if (is_given(given.steps)) others.erase(others.begin());
    const int64_t steps = is_given(given.steps) ? given.steps : manifest.defaults.steps;
    if (const Defaults* fitted = fitted_setting(manifest, given.setting, steps, others)) {
        setting = setting_of(*fitted, manifest);
    } else if (!others.empty() || is_given(given.steps)) {
        Setting own{};
        own.steps = timesteps ? timesteps.count : setting.steps;
        own.timesteps = timesteps;
        own.variance = setting.variance;
        setting = own;
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
    setting.guidance_interval = interval_of(given);
    take_word(setting.variance, "variance", given.variance, kVariances);
    setting.quantize_denoised = given.quantize_denoised != 0;
    if (!setting.spacing && !setting.timesteps) setting.spacing = default_spacing(setting.t_start);
    setting.clip = given.clip != 0;
    check_number("guidance", setting.guidance, -std::numeric_limits<double>::infinity(),
                 std::numeric_limits<double>::infinity());
    check_possible(setting, manifest.pipeline, has_image);
    setting.prior = chosen_prior(manifest, given.prior, draws);
    return setting;
}

}  // namespace diffusevae
