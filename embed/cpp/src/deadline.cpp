#include "deadline.h"

#include <algorithm>
#include <cstdio>
#include <limits>

#include "checks.h"
#include "error.h"
#include "setting.h"
#include "text.h"

namespace diffusevae {
namespace {

std::string three_digits(double number) {
    char text[32];
    std::snprintf(text, sizeof text, "%.3g", number);
    return text;
}

std::string many(int64_t number, const char* what) {
    return std::to_string(number) + " " + what + (number == 1 ? "" : "s");
}

}  // namespace

std::optional<Budget> budget_of(const diffusevae_sample_options& given) {
    check_flag("at_most", given.at_most);
    check_flag("anytime", given.anytime);
    if (given.budget_ms == DIFFUSEVAE_UNSET_NUMBER) {
        if (given.at_most || given.anytime)
            refuse_argument(std::string(given.at_most ? "at_most" : "anytime")
                            + " is given without a budget; expected budget_ms beside it");
        return std::nullopt;
    }
    check_number("budget_ms", given.budget_ms, 0.0, std::numeric_limits<double>::infinity());
    if (given.budget_ms == 0.0) refuse_argument("budget_ms is 0; expected milliseconds above 0");
    return Budget{given.budget_ms, given.at_most != 0, given.anytime != 0};
}

const std::vector<Defaults>& settings_within(const Manifest& manifest, const std::string& path,
                                             const diffusevae_sample_options& given) {
    if (given.guide_scale != DIFFUSEVAE_UNSET_NUMBER && given.guide_scale != 0.0)
        refuse_argument("budget_ms chooses a fitted setting, which knows no guide: leave guide_scale or the budget out.");
    if (given.regularise && std::string_view(given.regularise) != kOff)
        refuse_argument("budget_ms chooses a fitted setting, which knows no regulariser: leave regularise or the budget out.");
    const std::vector<std::string> others = replacing(given);
    if (!others.empty() || (given.setting && std::string_view(given.setting) == "plain"))
        refuse_argument("budget_ms chooses the setting, but " + (others.empty() ? "setting 'plain'" : others[0])
                        + " is given: leave one of the two out.");
    if (!manifest.fitted)
        refuse_argument("budget_ms chooses among settings that are fitted to a bundle, but this one has none; expected some: "
                        "diffusevae fit-setting " + in_quotes(path, kPath));
    return manifest.fitted->settings;
}

std::pair<const Defaults*, const Defaults*> ends_of(const std::vector<Defaults>& settings) {
    const auto fewer = [](const Defaults& a, const Defaults& b) { return a.steps < b.steps; };
    const auto [fewest, most] = std::minmax_element(settings.begin(), settings.end(), fewer);
    return {&*fewest, &*most};
}

const Defaults& choose(const Budget& budget, const std::vector<Defaults>& settings, const Pace& pace, int64_t n) {
    for (const Defaults& setting : settings)
        if (pace.kept(setting.steps) <= budget.milliseconds) return setting;
    const Defaults& fastest = *ends_of(settings).first;
    if (budget.at_most) return fastest;
    throw Error(DIFFUSEVAE_DEADLINE,
                "budget_ms is " + brief(budget.milliseconds) + ", which no fitted setting keeps here: found "
                    + many(fastest.steps, "call") + " for " + many(n, "image") + " in "
                    + three_digits(pace.kept(fastest.steps)) + " ms (99 of 100 runs; half of them in "
                    + three_digits(pace.usual(fastest.steps)) + "); expected no more than the budget. Take that with at_most, "
                    "ask for fewer images at a time, or raise the budget.");
}

std::optional<Pace> Times::pace(const Size& size) const {
    const std::lock_guard<std::mutex> turn(lock_);
    const auto found = times_.find(size);
    return found == times_.end() ? std::nullopt : std::optional<Pace>(found->second.pace());
}

Pace Times::measured(const Size& size, RunTimes times) {
    const std::lock_guard<std::mutex> turn(lock_);
    return times_.emplace(size, std::move(times)).first->second.pace();
}

Pace Times::add(const Size& size, int64_t calls, const diffusevae_timings& timings) {
    const std::lock_guard<std::mutex> turn(lock_);
    RunTimes& times = times_[size];
    times.add(calls, timings.network_ms + timings.update_ms, timings.total_ms);
    return times.pace();
}

After Watcher::operator()(const diffusevae_step& seen) {
    const double now = began_.elapsed(), step = now - last_;
    last_ = now;
    const After answer = watch_ ? watch_(seen) : After::kGoOn;
    if (answer != After::kGoOn || now + step <= budget_ms_ || seen.step + 1 == seen.steps) return answer;
    done_ = std::min(done_, seen.step + 1);
    return After::kFinish;
}

}  // namespace diffusevae
