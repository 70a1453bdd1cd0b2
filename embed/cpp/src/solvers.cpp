// Compile without contraction (-ffp-contract=off), and keep the order of the operations. Below, a = alpha_bar and
// a' = previous.
#include "solvers.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "bundle/training.h"
#include "schedule.h"

namespace diffusevae {
namespace {

constexpr double kPushesE = 1.0, kPushesX0 = 2.0;

// x0 = x0_x x_t + x0_e e and eps = eps_x x_t + eps_e e, e being what the network returns.
struct Prediction {
    double x0_x, x0_e, eps_x, eps_e;
};

Prediction predicted_unscaled(const Levels& levels, size_t i) {
    const double a = levels.alpha_bar[i];
    if (levels.prediction == "x0") return {0.0, 1.0, 1.0 / std::sqrt(1.0 - a), -std::sqrt(a / (1.0 - a))};
    if (levels.prediction == "v") {
        const double signal = std::sqrt(a), noise = std::sqrt(1.0 - a);
        return {signal, -noise, noise, signal};
    }
    return {1.0 / std::sqrt(a), -std::sqrt(1.0 / a - 1.0), 0.0, 1.0};
}

// Where eps is scaled, x0 follows it: x_t stays what it is.
Prediction predicted(const Levels& levels, size_t i, double scale) {
    const Prediction of = predicted_unscaled(levels, i);
    const double more = scale == 1.0 ? 0.0 : (scale - 1.0) * std::sqrt(1.0 / levels.alpha_bar[i] - 1.0);
    return {of.x0_x - more * of.eps_x, of.x0_e - more * of.eps_e, scale * of.eps_x, scale * of.eps_e};
}

// The fields p of x0 = limit(p_x x + p_e e + p_c c).
void predict_x0(const Levels& levels, const Prediction& of, double* row) {
    row[kPX] = of.x0_x;
    row[kPE] = of.x0_e;
    row[kPC] = levels.centred ? 0.0 - of.x0_x : 0.0;
}

// How much noise a step of DDIM adds, and how far it goes along eps.
struct Ddim {
    double sigma, along;
    Ddim(const Levels& levels, size_t i, double eta)
        : sigma(eta * std::sqrt(levels.posterior_variance(i))),
          along(std::sqrt(std::max(0.0, 1.0 - levels.previous[i] - sigma * sigma))) {}  // rounding may fall below 0 at eta = 1
};

void ddim_row(const Levels& levels, size_t i, double eta, double eps_scale, double* row) {
    const Prediction of = predicted(levels, i, eps_scale);
    const Ddim step(levels, i, eta);
    predict_x0(levels, of, row);
    row[kKX0] = std::sqrt(levels.previous[i]);
    row[kKX] = step.along * of.eps_x;
    row[kKE] = step.along * of.eps_e;
    row[kKC] = levels.around_centre(row[kKX]);
    row[kKN] = levels.noise_scale[i] * step.sigma;
}

Columns ddim(const Levels& levels) {
    Columns columns(levels.steps());
    columns.timesteps = levels.timesteps;
    for (size_t i = 0; i < levels.steps(); ++i) ddim_row(levels, i, levels.eta[i], levels.eps_scale[i], columns.row(i));
    return columns;
}

// The same with the eps that belongs to x0 as limited: eps' = (x - sqrt(a) x0) / sqrt(1 - a). With a guide, eps' - s sqrt(1 - a) g
// takes its place, and x0 is made of that.
Columns ddim_clipped(const Levels& levels) {
    Columns columns = ddim(levels);
    for (size_t i = 0; i < levels.steps(); ++i) {
        double* row = columns.row(i);
        const double along = Ddim(levels, i, levels.eta[i]).along, noise = std::sqrt(1.0 - levels.alpha_bar[i]);
        row[kKX] = along / noise;
        row[kKX0] -= row[kKX] * std::sqrt(levels.alpha_bar[i]);
        row[kKE] = 0.0;
        row[kKC] = levels.around_centre(row[kKX]);
        if (levels.guided(i))
            row[kKG] = levels.guide_scale[i] * noise * (std::sqrt(levels.previous[i] / levels.alpha_bar[i]) * noise - along);
    }
    return columns;
}

// k_g and s_n of a row of ddpm that is guided: sigma^2 is k_g exp(2 s_n v) / s. The last step has the beta~ of the step before it as
// its own, but not as fixedsmall's sigma.
void guide_ddpm(const Levels& levels, size_t i, double* row) {
    if (!levels.guided(i)) return;
    const double beta = levels.beta(i), scale = levels.guide_scale[i];
    const double before = !levels.final(i) ? levels.posterior_variance(i)
                          : i == 0         ? levels.beta(0)
                                           : levels.posterior_variance(i - 1);
    if (levels.variance == kLearnedRange) {
        row[kKG] = scale * std::sqrt(beta * before);
        if (levels.final(i)) row[kSN] = std::log(beta / before) / 4.0;
    } else if (levels.variance == "fixedlarge") {
        row[kKG] = scale * (levels.final(i) ? before : beta);
    } else {
        row[kKG] = scale * levels.posterior_variance(i);
    }
}

Columns ddpm(const Levels& levels) {
    Columns columns(levels.steps());
    columns.timesteps = levels.timesteps;
    for (size_t i = 0; i < levels.steps(); ++i) {
        const double a = levels.alpha_bar[i], previous = levels.previous[i], beta = levels.beta(i);
        double* row = columns.row(i);
        const double k_x = std::sqrt(1.0 - beta) * (1.0 - previous) / (1.0 - a);
        predict_x0(levels, predicted(levels, i, levels.eps_scale[i]), row);
        row[kKX0] = std::sqrt(previous) * beta / (1.0 - a);
        row[kKX] = k_x;
        row[kKC] = levels.around_centre(k_x);
        guide_ddpm(levels, i, row);
        if (levels.final(i)) continue;  // no noise
        const double posterior = levels.posterior_variance(i);
        if (levels.variance == kLearnedRange) {
            row[kKN] = levels.noise_scale[i] * std::sqrt(std::sqrt(beta * posterior));
            row[kSN] = std::log((1.0 - a) / (1.0 - previous)) / 4.0;
        } else {
            row[kKN] = levels.noise_scale[i] * std::sqrt(levels.variance == "fixedlarge" ? beta : posterior);
        }
    }
    return columns;
}

using Each = std::vector<double>;

// h of every row, infinite where a' = 1.
Each lambda_steps(const Levels& levels) {
    Each h;
    for (size_t i = 0; i < levels.steps(); ++i) h.push_back(log_ratio(levels.previous[i]) - log_ratio(levels.alpha_bar[i]));
    return h;
}

// 1 / (2 r) = h / (2 h of the row before); 0 in the first row, without a past, and where a' = 1 (lambda' infinite).
double half_ratio(const Levels& levels, const Each& h, size_t i) {
    return i == 0 || levels.final(i) ? 0.0 : h[i] / (2.0 * h[i - 1]);
}

// DDIM's rows with gain(i) (x0 - h1) added, and the pushes that this takes: only what the next row reads.
template <class Gain>
Columns with_past_x0(const Levels& levels, double eta, const Gain& gain) {
    Columns columns(levels.steps());
    columns.timesteps = levels.timesteps;
    for (size_t i = 0; i < levels.steps(); ++i) {
        double* row = columns.row(i);
        ddim_row(levels, i, eta, levels.eps_scale[i], row);
        row[kKX0] = std::sqrt(levels.previous[i]) + gain(i);
        row[kKH1] = 0.0 - gain(i);
        row[kPush] = i + 1 < levels.steps() && !levels.final(i + 1) ? kPushesX0 : 0.0;
    }
    return columns;
}

Columns dpmpp_2m(const Levels& levels) {
    const Each h = lambda_steps(levels);
    return with_past_x0(levels, 0.0, [&](size_t i) {
        return std::sqrt(levels.previous[i]) * -std::expm1(-h[i]) * half_ratio(levels, h, i);
    });
}

Columns sde_dpmpp_2m(const Levels& levels) {
    const Each h = lambda_steps(levels);
    return with_past_x0(levels, 1.0, [&](size_t i) {
        return std::sqrt(levels.previous[i]) * -std::expm1(-2.0 * h[i]) * half_ratio(levels, h, i);
    });
}

// What UniC adds to the state that a row was given, in x0, h1 and h2.
struct Correction {
    double x0 = 0.0, h1 = 0.0, h2 = 0.0;
};

Correction correction(const Levels& levels, const Each& h, size_t i) {
    if (i == 0 || levels.final(i)) return {};
    const double before = h[i - 1];
    const double phi1 = std::expm1(-before);
    const double size = std::sqrt(levels.alpha_bar[i]) * -phi1;
    if (i == 1) return {size / 2.0, -size / 2.0, 0.0};
    const double phi2 = -phi1 / before - 1.0;
    const double phi3 = -phi2 / before - 0.5;
    const double r = -h[i - 2] / before;
    const double b0 = (phi2 - 2.0 * phi3) / phi1 / (1.0 - r);
    const double b1 = phi2 / phi1 - b0;
    const double of_h2 = size * (b0 - 0.5) / r;
    return {size * b1, -of_h2 - size * b1, of_h2};
}

Columns unipc_2(const Levels& levels) {
    const Each h = lambda_steps(levels);
    Columns columns = dpmpp_2m(levels);
    for (size_t i = 0; i < levels.steps(); ++i) {
        const double of_x = std::sqrt((1.0 - levels.previous[i]) / (1.0 - levels.alpha_bar[i]));
        const Correction corrected = correction(levels, h, i);
        double* row = columns.row(i);
        row[kKX0] += of_x * corrected.x0;
        row[kKH1] += of_x * corrected.h1;
        row[kKH2] = of_x * corrected.h2;
    }
    return columns;
}

// Adams-Bashforth weights of e, h1, h2, h3 by the number of past eps, and Heun's average.
using Order = double[4];
constexpr Order kOrders[4] = {{1.0, 0.0, 0.0, 0.0},
                              {3.0 / 2.0, -1.0 / 2.0, 0.0, 0.0},
                              {23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0, 0.0},
                              {55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0}};
constexpr Order kAverage = {0.5, 0.5, 0.0, 0.0};

// DDIM's row of step `at`, with order . (e, h1, h2, h3) in place of eps, each past eps scaled as that of its own step was.
void row_with_past_eps(const Levels& levels, size_t at, const Order& order, double* row) {
    double step[kRowWidth] = {};
    ddim_row(levels, at, 0.0, 1.0, step);
    for (const RowField field : {kPX, kPC, kKX0, kKC}) row[field] = step[field];
    constexpr RowField kPast[2][4] = {{kPE, kPH1, kPH2, kPH3}, {kKE, kKH1, kKH2, kKH3}};
    for (const auto& fields : kPast)
        for (size_t i = 0; i < 4; ++i)
            row[fields[i]] = step[fields[0]] * order[i] * levels.eps_scale[at < i ? 0 : at - i];
}

Columns ipndm(const Levels& levels) {
    const size_t steps = levels.steps();
    Columns columns(steps);
    columns.timesteps = levels.timesteps;
    for (size_t i = 0; i < steps; ++i) {
        row_with_past_eps(levels, i, kOrders[std::min<size_t>(i, 3)], columns.row(i));
        columns.row(i)[kPush] = i + 1 < steps ? kPushesE : 0.0;
    }
    return columns;
}

Columns plms(const Levels& levels) {
    const size_t steps = levels.steps(), calls = steps + 1;
    Columns columns(calls);
    for (size_t i = 0; i < calls; ++i) {
        const size_t at = i < 2 ? 0 : i - 1;  // the step that this row belongs to
        const bool from_base = i == 1;
        double* row = columns.row(i);
        row_with_past_eps(levels, at, from_base ? kAverage : kOrders[std::min<size_t>(at, 3)], row);
        columns.timesteps[i] = levels.timesteps[from_base ? std::min<size_t>(1, steps - 1) : at];
        if (from_base) std::swap(row[kPX], row[kPY]);
        row[kQX] = i == 0 ? 1.0 : 0.0;
        row[kPush] = from_base || i + 1 == calls ? 0.0 : kPushesE;
    }
    return columns;
}

}  // namespace

void noise_again(const Levels& levels, size_t i, double* row) {
    predict_x0(levels, predicted(levels, i, levels.eps_scale[i]), row);
    row[kKX0] = std::sqrt(levels.alpha_bar[i]);
    row[kKN] = std::sqrt(1.0 - levels.alpha_bar[i]);
}

const std::vector<Method> kSolvers = {
    {"ddim", ddim, true, false, true, false},
    {"ddim_clipped", ddim_clipped, true, true, true, false},
    {"ddpm", ddpm, false, true, true, false},
    {"dpmpp_2m", dpmpp_2m, false, false, false, false},
    {"sde_dpmpp_2m", sde_dpmpp_2m, false, false, false, false},
    {"unipc_2", unipc_2, false, false, false, false},
    {"ipndm", ipndm, false, false, false, true},
    {"plms", plms, false, false, false, true},
};

}  // namespace diffusevae
