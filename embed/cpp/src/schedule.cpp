// Compile without contraction (-ffp-contract=off).
#include "schedule.h"

#include <algorithm>
#include <cmath>

#include "bundle/json.h"
#include "error.h"
#include "text.h"

namespace diffusevae {

namespace {

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

double log_ratio(double alpha_bar) { return 0.5 * (std::log(alpha_bar) - std::log1p(-alpha_bar)); }

Schedule::Schedule(const ScheduleSpec& spec) : T(spec.T), alpha_bar(size_t(spec.T)) {
    double product = 1.0;
    const std::vector<double> betas = betas_of(spec);
    for (size_t t = 0; t < betas.size(); ++t) {
        if (!(betas[t] > 0 && betas[t] < 1))
            throw Error(DIFFUSEVAE_BUNDLE, "schedule: found a beta of " + short_number(betas[t]) + " at t = "
                                               + std::to_string(t) + ", expected a variance in (0, 1); " + kRebuild);
        product *= 1.0 - betas[t];
        alpha_bar[t] = product;
    }
}

}  // namespace diffusevae
