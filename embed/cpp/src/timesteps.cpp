// Compile without contraction (-ffp-contract=off).
#include "timesteps.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <string>

#include "checks.h"
#include "error.h"
#include "schedule.h"

namespace diffusevae {

namespace {

// What a spacing chooses from: alpha_bar of every trained timestep, how many to keep, and where to start.
struct Choice {
    const std::vector<double>& alpha_bar;
    int64_t steps;
    std::optional<int64_t> t_start;
    double rho;

    int64_t T() const { return int64_t(alpha_bar.size()); }
    int64_t last() const { return t_start.value_or(T() - 1); }  // the noisiest timestep that can be kept
};

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
Kept uniform(const Choice& choice) {
    const int64_t T = choice.T(), steps = choice.steps;
    if (choice.t_start)
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

// Squares of evenly spaced numbers from 0 to sqrt(end), rounded down.
Kept squares(double end, int64_t count) {
    const double last = std::sqrt(end), step = last / double(count - 1);
    Kept found;
    for (int64_t i = 0; i < count; ++i) {
        const double root = i == count - 1 ? last : double(i) * step;
        found.push_back(int64_t(root * root));
    }
    return found;
}

// Squares of evenly spaced numbers, dense near 0; the reference ends at 0.8 T. Duplicates are kept once.
Kept quad(const Choice& choice) {
    const int64_t steps = choice.steps;
    const std::optional<int64_t> t_start = choice.t_start;
    if (steps == 1) {
        if (!t_start)
            refuse_argument("steps is 1, which quad spacing would spend at t = 0: use spacing 'linspace' or t_start");
        return {*t_start};
    }
    Kept kept = squares(t_start ? double(*t_start) : double(choice.T()) * 0.8, steps);
    if (t_start) kept.back() = *t_start;  // sqrt(t_start)^2 may fall just short of it
    kept.erase(std::unique(kept.begin(), kept.end()), kept.end());
    return kept;
}

// Evenly from 0 to the start, rounded half up, any count; a single step is the start itself.
Kept linspace(const Choice& choice) {
    const int64_t steps = choice.steps, last = choice.last();
    if (steps == 1) return {last};
    Kept kept;
    for (int64_t i = 0; i < steps; ++i) kept.push_back((2 * last * i + steps - 1) / (2 * (steps - 1)));
    return kept;
}

// Evenly from the start down to one stride above 0, any count: no network call is spent at t = 0, where x is clean.
Kept trailing(const Choice& choice) {
    const int64_t steps = choice.steps, count = choice.last() + 1;
    Kept kept;
    for (int64_t i = 1; i <= steps; ++i) kept.push_back((2 * count * i + steps) / (2 * steps) - 1);
    return kept;
}

// The last `steps` timesteps of the full chain, steps - 1 .. 0.
Kept truncated(const Choice& choice) {
    const int64_t steps = choice.steps;
    const std::optional<int64_t> t_start = choice.t_start;
    if (t_start && *t_start != steps - 1)
        refuse_argument("spacing 'truncated' with " + of(steps) + " steps starts at t = " + of(steps - 1)
                        + ", but t_start is " + of(*t_start) + ": pass steps " + of(*t_start + 1)
                        + ", leave t_start out, or use spacing 'linspace'");
    Kept kept;
    for (int64_t t = 0; t < steps; ++t) kept.push_back(t);
    return kept;
}

// lambda of a timestep, finite also where alpha_bar has been rounded to 0 or 1.
double lambda_at(const std::vector<double>& alpha_bar, int64_t t) {
    return log_ratio(std::min(std::max(alpha_bar[size_t(t)], 0x1p-1022), 1.0 - 0x1p-53));
}

// The timestep whose lambda is nearest to `value`; of two that are as near, the less noisy one.
int64_t nearest_to(const std::vector<double>& alpha_bar, double value) {
    int64_t low = 0, high = int64_t(alpha_bar.size());
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (-lambda_at(alpha_bar, middle) < -value) low = middle + 1;
        else high = middle;
    }
    if (low == int64_t(alpha_bar.size())) return low - 1;
    return low > 0 && lambda_at(alpha_bar, low - 1) - value <= value - lambda_at(alpha_bar, low) ? low - 1 : low;
}

// The timesteps nearest in lambda to these, which rise from that of the start; moved apart where two would be one.
Kept nearest(const Choice& choice, const std::vector<double>& lambdas) {
    Kept kept;
    for (size_t i = lambdas.size(); i-- > 0;) {
        const int64_t t = nearest_to(choice.alpha_bar, lambdas[i]);
        kept.push_back(kept.empty() ? t : std::max(t, kept.back() + 1));
    }
    kept.back() = choice.last();
    for (size_t i = kept.size() - 1; i-- > 0;) kept[i] = std::min(kept[i], kept[i + 1] - 1);
    return kept;
}

// Even in sigma^(1 / rho), sigma = sqrt((1 - a) / a), from the start to t = 0 (Karras et al. 2022, eq. 5), of which the last is
// left out, as by trailing: no network call is spent where x is clean.
Kept karras(const Choice& choice) {
    const double root = 1.0 / choice.rho;
    const double first = std::pow(std::exp(-lambda_at(choice.alpha_bar, choice.last())), root);
    const double end = std::pow(std::exp(-lambda_at(choice.alpha_bar, 0)), root);
    std::vector<double> lambdas;
    for (int64_t i = 0; i < choice.steps; ++i) {
        const double sigma = std::pow(first + double(i) / double(choice.steps) * (end - first), choice.rho);
        lambdas.push_back(-std::log(sigma));
    }
    return nearest(choice, lambdas);
}

// Even in lambda from the start to t = 0, of which the last is left out, as by trailing.
Kept logsnr(const Choice& choice) {
    const double first = lambda_at(choice.alpha_bar, choice.last()), end = lambda_at(choice.alpha_bar, 0);
    std::vector<double> lambdas;
    for (int64_t i = 0; i < choice.steps; ++i) lambdas.push_back(first + double(i) / double(choice.steps) * (end - first));
    return nearest(choice, lambdas);
}

// The timesteps of a grid up to t_start, which is one of them.
Kept up_to_start(const Choice& choice, const Kept& grid) {
    if (!choice.t_start) return grid;
    const int64_t t_start = *choice.t_start;
    const auto distance = [t_start](int64_t t) { return t < t_start ? t_start - t : t - t_start; };
    const auto nearest = std::min_element(grid.begin(), grid.end(),
                                          [&](int64_t a, int64_t b) { return distance(a) < distance(b); });
    if (*nearest != t_start)
        refuse_argument("t_start is " + of(t_start) + ", which is none of the timesteps of this spacing with "
                        + of(choice.steps) + " steps: pass t_start " + of(*nearest)
                        + ", the nearest, or use spacing 'linspace'");
    return Kept(grid.begin(), nearest + 1);
}

// Whether leading spacing has timesteps below T alone.
bool leads(int64_t T, int64_t steps) {
    const int64_t stride = T / steps;
    return (T - 1) / stride * stride + 1 < T;
}

// 1, 1 + T // steps, ... up to T: often more than `steps` of them (Lin et al. 2023, arXiv 2305.08891, table 2).
Kept leading(const Choice& choice) {
    const int64_t T = choice.T(), steps = choice.steps;
    if (!leads(T, steps)) {
        int64_t below = steps - 1, above = steps + 1;
        while (below > 0 && !leads(T, below)) --below;
        while (above <= T && !leads(T, above)) ++above;
        Kept near;
        if (below > 0) near.push_back(below);
        if (above <= T) near.push_back(above);
        refuse_argument("steps is " + of(steps) + ", with which leading spacing over T=" + of(T) + " would end at t = "
                        + of(T) + ", beyond the last timestep; "
                        + (near.empty() ? "" : "nearest to " + of(steps) + ": " + joined(near, " and ") + "; or ")
                        + "use spacing 'linspace', which takes any count");
    }
    Kept grid;
    for (int64_t t = 0; t < T; t += T / steps) grid.push_back(t + 1);
    return up_to_start(choice, grid);
}

// Squares of evenly spaced numbers up to 0.8 T, rounded down, + 1. Of duplicates one is kept: DDIM's step from a timestep to
// itself changes nothing.
Kept leading_quad(const Choice& choice) {
    if (choice.steps == 1)
        refuse_argument("steps is 1, which leading_quad spacing would spend at t = 1: use spacing 'linspace'");
    Kept grid = squares(double(choice.T()) * 0.8, choice.steps);
    grid.erase(std::unique(grid.begin(), grid.end()), grid.end());
    for (int64_t& t : grid) ++t;
    if (grid.back() >= choice.T())
        refuse_argument("leading_quad spacing over T=" + of(choice.T()) + " would end at t = " + of(grid.back())
                        + ", beyond the last timestep: use spacing 'linspace'");
    return up_to_start(choice, grid);
}

struct Spacing {
    const char* name;
    Kept (*keep)(const Choice&);
};

constexpr Spacing kKept[] = {{"uniform", uniform},     {"quad", quad},     {"linspace", linspace}, {"trailing", trailing},
                             {"truncated", truncated}, {"karras", karras}, {"logsnr", logsnr},     {"leading", leading},
                             {"leading_quad", leading_quad}};

Kept spaced(const std::string& spacing, const Choice& choice) {
    for (const Spacing& one : kKept)
        if (spacing == one.name) return one.keep(choice);
    throw Error(DIFFUSEVAE_INTERNAL, "spacing '" + spacing + "' is in the list, but nothing computes it");
}

// The caller's own timesteps.
Kept listed(const Setting& setting, int64_t T) {
    Kept kept;
    for (int64_t i = 0; i < setting.timesteps.count; ++i) {
        const int64_t t = setting.timesteps.values[i];
        const std::string found = "timesteps[" + of(i) + "] is " + of(t);
        if (t < 0 || t >= T) refuse_argument(found + "; expected a timestep in 0 .. " + of(T - 1));
        if (!kept.empty() && t >= kept.back())
            refuse_argument(found + " after " + of(kept.back()) + "; expected a smaller one: each comes once");
        kept.push_back(t);
    }
    return Kept(kept.rbegin(), kept.rend());
}

}  // namespace

bool is_leading(const Setting& setting) {
    return setting.spacing && std::find(kLeading.begin(), kLeading.end(), setting.spacing) != kLeading.end();
}

const char* default_spacing(std::optional<int64_t> t_start) { return t_start ? "linspace" : "uniform"; }

void check_timesteps(const Setting& setting) {
    check_number("rho", setting.rho, kLeastRho, kMostRho);
    if (!setting.timesteps) return;
    const int64_t first = setting.timesteps.values[0], count = setting.timesteps.count;
    if (setting.steps != count)
        refuse_argument("steps is " + of(setting.steps) + ", but timesteps lists " + of(count)
                        + ": leave steps out, the list says it");
    const std::string beside = " beside timesteps, which need no spacing: leave one of the two out";
    if (setting.spacing) refuse_argument("spacing is '" + std::string(setting.spacing) + "'" + beside);
    if (setting.rho != kRho) refuse_argument("rho is " + brief(setting.rho) + beside);
    if (setting.t_start.value_or(first) != first)
        refuse_argument("t_start is " + of(*setting.t_start) + ", but timesteps begin at " + of(first) + ": pass t_start "
                        + of(first) + " to start from an image, or leave it out to start from noise");
}

Kept kept_timesteps(const std::vector<double>& alpha_bar, const Setting& setting) {
    const int64_t T = int64_t(alpha_bar.size());
    const std::optional<int64_t> t_start = setting.t_start;
    if (setting.timesteps) return listed(setting, T);
    const std::string spacing = setting.spacing;
    if (setting.rho != kRho && spacing != "karras")
        refuse_argument("rho is " + brief(setting.rho) + " with spacing '" + spacing
                        + "'; only karras takes rho: leave it out or use spacing 'karras'");
    if (t_start && !(*t_start >= 0 && *t_start < T))
        refuse_argument("t_start is " + of(*t_start) + "; expected a timestep in 0 .. " + of(T - 1) + ", e.g. "
                        + of(int64_t(std::nearbyint(0.45 * double(T)))));
    const bool whole = !t_start || is_leading(setting);
    const int64_t available = whole ? T : *t_start + 1;
    if (!(setting.steps >= 1 && setting.steps <= available))
        refuse_argument("steps is " + of(setting.steps) + "; expected 1 .. " + of(available)
                        + ", the timesteps there are with " + (whole ? "T = " + of(T) : "t_start = " + of(*t_start)));
    return spaced(spacing, Choice{alpha_bar, setting.steps, t_start, setting.rho});
}

}  // namespace diffusevae
