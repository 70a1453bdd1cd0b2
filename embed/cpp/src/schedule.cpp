// Compile without contraction (-ffp-contract=off).
#include "schedule.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "checks.h"
#include "bundle/json.h"
#include "error.h"
#include "text.h"

namespace diffusevae {

namespace {

using Start = std::optional<int64_t>;
using Kept = std::vector<int64_t>;

std::string of(int64_t number) { return std::to_string(number); }

int64_t strides_to(int64_t T, int64_t stride) { return (T + stride - 1) / stride; }

std::string joined(const std::vector<int64_t>& numbers, const char* between) {
    std::string text;
    for (const int64_t number : numbers) text += (text.empty() ? "" : between) + of(number);
    return text;
}

// Which counts there are, for the message that refuses one: those without a gap, the last few, and the nearest.
std::string uniform_counts(int64_t T, int64_t steps) {
    std::set<int64_t> there;
    for (int64_t i = 1; i < std::max<int64_t>(2, T); ++i) there.insert(strides_to(T, i));
    const Kept counts(there.begin(), there.end());
    size_t run = 0;
    while (run < counts.size() && counts[run] == counts[0] + int64_t(run)) ++run;
    std::string text = of(counts[0]) + (run > 1 ? " to " + of(counts[run - 1]) : "");
    const Kept rest(counts.begin() + int64_t(run), counts.end());
    if (rest.size() > 4) {
        text += ", " + of(rest[0]) + ", ..., " + joined(Kept(rest.end() - 3, rest.end()), ", ");
    } else if (!rest.empty()) {
        text += ", " + joined(rest, ", ");
    }
    Kept near;
    const auto above = there.upper_bound(steps);
    if (above != there.begin()) near.push_back(*std::prev(above));
    if (above != there.end()) near.push_back(*above);
    return "steps is " + of(steps) + ", which no whole stride gives: uniform spacing over T=" + of(T) + " exists for " + text
           + "; nearest to " + of(steps) + ": " + joined(near, " and ")
           + "; or use spacing 'linspace', which takes any count";
}

// range(0, T, i) for the smallest stride i that keeps exactly `steps`, as the reference.
Kept uniform(int64_t T, int64_t steps, Start t_start) {
    if (t_start)
        refuse_argument("spacing 'uniform' counts from 0 in whole strides and would miss t_start: use spacing 'linspace' or "
                        "'quad'");
    // ceil(T / i) timesteps at stride i < T; T = 1 has the single one.
    int64_t stride = 1;
    while (stride < std::max<int64_t>(2, T) && strides_to(T, stride) != steps) ++stride;
    if (stride == std::max<int64_t>(2, T)) refuse_argument(uniform_counts(T, steps));
    Kept kept;
    for (int64_t t = 0; t < T; t += stride) kept.push_back(t);
    return kept;
}

// Squares of evenly spaced numbers, dense near 0; the reference ends at 0.8 T. Duplicates are kept once.
Kept quad(int64_t T, int64_t steps, Start t_start) {
    if (steps == 1) {
        if (!t_start)
            refuse_argument("steps is 1, which quad spacing would spend at t = 0: use spacing 'linspace' or t_start");
        return {*t_start};
    }
    const double end = std::sqrt(t_start ? double(*t_start) : double(T) * 0.8);
    const double step = end / double(steps - 1);
    Kept kept;
    for (int64_t i = 0; i < steps; ++i) {
        const double root = i == steps - 1 ? end : double(i) * step;
        kept.push_back(int64_t(root * root));
    }
    if (t_start) kept.back() = *t_start;  // sqrt(t_start)^2 may fall just short of it
    kept.erase(std::unique(kept.begin(), kept.end()), kept.end());
    return kept;
}

// Evenly from 0 to the start, rounded half up, any count; a single step is the start itself.
Kept linspace(int64_t T, int64_t steps, Start t_start) {
    const int64_t last = t_start.value_or(T - 1);
    if (steps == 1) return {last};
    Kept kept;
    for (int64_t i = 0; i < steps; ++i) kept.push_back((2 * last * i + steps - 1) / (2 * (steps - 1)));
    return kept;
}

// Evenly from the start down to one stride above 0, any count: no network call is spent at t = 0, where x is clean.
Kept trailing(int64_t T, int64_t steps, Start t_start) {
    const int64_t count = t_start ? *t_start + 1 : T;
    Kept kept;
    for (int64_t i = 1; i <= steps; ++i) kept.push_back((2 * count * i + steps) / (2 * steps) - 1);
    return kept;
}

// The last `steps` timesteps of the full chain, steps - 1 .. 0.
Kept truncated(int64_t, int64_t steps, Start t_start) {
    if (t_start && *t_start != steps - 1)
        refuse_argument("spacing 'truncated' with " + of(steps) + " steps starts at t = " + of(steps - 1)
                        + ", but t_start is " + of(*t_start) + ": pass steps " + of(*t_start + 1)
                        + ", leave t_start out, or use spacing 'linspace'");
    Kept kept;
    for (int64_t t = 0; t < steps; ++t) kept.push_back(t);
    return kept;
}

struct Spacing {
    const char* name;
    Kept (*keep)(int64_t, int64_t, Start);
};

constexpr Spacing kKept[] = {
    {"uniform", uniform}, {"quad", quad}, {"linspace", linspace}, {"trailing", trailing}, {"truncated", truncated}};

Kept keep(const std::string& spacing, int64_t T, int64_t steps, Start t_start) {
    for (const Spacing& one : kKept)
        if (spacing == one.name) return one.keep(T, steps, t_start);
    throw Error(DIFFUSEVAE_INTERNAL, "spacing '" + spacing + "' is in the list, but nothing computes it");
}

// ---- betas -------------------------------------------------------------------------------------------------------------

using Betas = std::vector<double>;

// Evenly from start to end (DDPM section 4), as float32 values. Trained networks saw those of torch.linspace, which counts from
// both ends with fused multiply-adds: here products and sums are exact in float64 and rounded once.
Betas linear(const ScheduleSpec& spec) {
    const int64_t T = spec.T;
    const float first = float(spec.numbers.at("start")), last = float(spec.numbers.at("end"));
    const double step = double((last - first) / float(std::max<int64_t>(1, T - 1)));
    Betas betas;
    for (int64_t t = 0; t < T; ++t) {
        const bool rising = t < std::max<int64_t>(1, T / 2);
        const double value = rising ? double(first) + step * double(t) : double(last) - step * double(T - 1 - t);
        betas.push_back(double(float(value)));
    }
    return betas;
}

// Square roots of the betas evenly from start to end.
Betas scaled_linear(const ScheduleSpec& spec) {
    const double first = std::sqrt(spec.numbers.at("start")), last = std::sqrt(spec.numbers.at("end"));
    const double step = spec.T > 1 ? (last - first) / double(spec.T - 1) : 0.0;
    Betas betas;
    for (int64_t t = 0; t < spec.T; ++t) {
        const double root = t > 0 && t == spec.T - 1 ? last : double(t) * step + first;
        betas.push_back(root * root);
    }
    return betas;
}

// alpha_bar falls as a squared cosine (Nichol & Dhariwal 2021, eq. 17).
Betas cosine(const ScheduleSpec& spec) {
    constexpr double kHalfPi = 3.141592653589793 / 2.0;
    std::vector<double> f;
    for (int64_t t = 0; t <= spec.T; ++t) {
        const double root = std::cos((double(t) / double(spec.T) + spec.numbers.at("s")) / (1.0 + spec.numbers.at("s")) * kHalfPi);
        f.push_back(root * root);
    }
    Betas betas;
    for (size_t t = 0; t + 1 < f.size(); ++t) betas.push_back(std::min(1.0 - f[t + 1] / f[t], spec.numbers.at("max_beta")));
    return betas;
}

Betas betas_of(const ScheduleSpec& spec) {
    if (spec.recipe == "linear") return linear(spec);
    if (spec.recipe == "scaled_linear") return scaled_linear(spec);
    if (spec.recipe == "cosine") return cosine(spec);
    return spec.betas;
}

}  // namespace

Schedule::Schedule(const ScheduleSpec& spec) : T(spec.T), alpha_bar(size_t(spec.T)) {
    double product = 1.0;
    const std::vector<double> betas = betas_of(spec);
    for (size_t t = 0; t < betas.size(); ++t) {
        if (!(betas[t] > 0 && betas[t] < 1))
            throw Error(DIFFUSEVAE_BUNDLE, "schedule: found a beta of " + short_number(betas[t]) + " at t = "
                                               + of(int64_t(t)) + ", expected a variance in (0, 1); " + kRebuild);
        product *= 1.0 - betas[t];
        alpha_bar[t] = product;
    }
}

const char* default_spacing(Start t_start) { return t_start ? "linspace" : "uniform"; }

Kept kept_timesteps(int64_t T, int64_t steps, const std::string& spacing, Start t_start) {
    known("spacing", spacing, kSpacings);
    if (t_start && !(*t_start >= 0 && *t_start < T))
        refuse_argument("t_start is " + of(*t_start) + "; expected a timestep in 0 .. " + of(T - 1) + ", e.g. "
                        + of(int64_t(std::nearbyint(0.45 * double(T)))));
    const int64_t available = t_start ? *t_start + 1 : T;
    if (!(steps >= 1 && steps <= available))
        refuse_argument("steps is " + of(steps) + "; expected 1 .. " + of(available) + ", the timesteps there are with "
                        + (t_start ? "t_start = " + of(*t_start) : "T = " + of(T)));
    return keep(spacing, T, steps, t_start);
}

}  // namespace diffusevae
