#include "setting.h"

#include <limits>
#include <string>

#include "checks.h"
#include "bundle/prior.h"
#include "schedule.h"
#include "text.h"

namespace diffusevae {

namespace {

bool is_given(int64_t number) { return number != DIFFUSEVAE_UNSET; }
bool is_given(double number) { return number != DIFFUSEVAE_UNSET_NUMBER; }
bool is_given(const char* text) { return text != nullptr; }

template <class Value>
void take(Value& into, const Value& given) {
    if (is_given(given)) into = given;
}

void take_word(const char*& into, const char* name, const char* given, const std::vector<std::string>& choices) {
    if (given) into = known(name, given, choices);
}

// Refuse what this bundle cannot have: guidance without nulls, a learned variance without a second output, and a start from
// a value that there is not.
void check_possible(const Setting& setting, const PipelineSpec& pipeline) {
    if (setting.guided() && !pipeline.guided())
        refuse_argument("guidance is " + brief(setting.guidance) + ", but nothing that this bundle's network is fed has a null "
                        "to be guided by; expected 0. Leave it out.");
    if (std::string(setting.variance) == kLearnedRange && !pipeline.learns_variance())
        refuse_argument("variance is 'learned_range', but this bundle's network has no second output that would say it; expected "
                        "one of fixedlarge, fixedsmall.");
    if (setting.t_start && !pipeline.state.start)
        refuse_argument("t_start is " + std::to_string(*setting.t_start) + ", but this bundle's pipeline has no start value "
                        "to start from. Leave it out.");
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
    return diffusevae_setting{steps, t_start.value_or(DIFFUSEVAE_UNSET), method, spacing, variance, prior,
                              eta,   temperature, guidance, clip ? 1 : 0};
}

Setting recorded_setting(const Manifest& manifest) {
    const Defaults& recorded = manifest.defaults;
    Setting setting{};
    setting.steps = recorded.steps;
    setting.method = known("method", recorded.method, kMethods);
    setting.spacing = recorded.spacing ? known("spacing", *recorded.spacing, kSpacings) : default_spacing(recorded.t_start);
    setting.eta = recorded.eta;
    setting.t_start = recorded.t_start;
    setting.temperature = recorded.temperature;
    setting.guidance = recorded.guidance;
    setting.variance = known("variance", manifest.variance, kVariances);
    setting.prior = manifest.drawn() != nullptr ? chosen_prior(manifest, nullptr, true) : nullptr;
    return setting;
}

Setting resolve_setting(const Manifest& manifest, const diffusevae_sample_options& given, bool draws) {
    Setting setting = recorded_setting(manifest);
    const bool replaces = is_given(given.steps) || is_given(given.method) || is_given(given.spacing) || is_given(given.eta)
                          || is_given(given.t_start);
    if (replaces) {
        Setting own{};
        own.steps = setting.steps;
        own.variance = setting.variance;
        setting = own;
    }
    take(setting.steps, given.steps);
    take_word(setting.method, "method", given.method, kMethods);
    take_word(setting.spacing, "spacing", given.spacing, kSpacings);
    take(setting.eta, given.eta);
    if (is_given(given.t_start)) setting.t_start = given.t_start;
    take(setting.temperature, given.temperature);
    take(setting.guidance, given.guidance);
    take_word(setting.variance, "variance", given.variance, kVariances);
    if (!setting.spacing) setting.spacing = default_spacing(setting.t_start);
    setting.clip = given.clip != 0;
    check_number("guidance", setting.guidance, -std::numeric_limits<double>::infinity(),
                 std::numeric_limits<double>::infinity());
    check_possible(setting, manifest.pipeline);
    setting.prior = chosen_prior(manifest, given.prior, draws);
    return setting;
}

}  // namespace diffusevae
