// Compile without contraction (-ffp-contract=off), and keep the order of the operations. Below, a = alpha_bar and
// a' = previous.
#include "solvers.h"

#include <algorithm>
#include <cmath>

#include "bundle/training.h"

namespace diffusevae {
namespace {

constexpr double kPushesE = 1.0, kPushesX0 = 2.0;

// x0 = x0_x x_t + x0_e e and eps = eps_x x_t + eps_e e, e being what the network returns.
struct Prediction {
    double x0_x, x0_e, eps_x, eps_e;
};

Prediction predicted(const Levels& levels, size_t i) {
    const double a = levels.alpha_bar[i];
    if (levels.prediction == "x0") return {0.0, 1.0, 1.0 / std::sqrt(1.0 - a), -std::sqrt(a / (1.0 - a))};
    if (levels.prediction == "v") {
        const double signal = std::sqrt(a), noise = std::sqrt(1.0 - a);
        return {signal, -noise, noise, signal};
    }
    return {1.0 / std::sqrt(a), -std::sqrt(1.0 / a - 1.0), 0.0, 1.0};
}

// The fields p of x0 = limit(p_x x + p_e e + p_c c).
void predict_x0(const Levels& levels, size_t i, double* row) {
    const Prediction of = predicted(levels, i);
    row[kPX] = of.x0_x;
    row[kPE] = of.x0_e;
    row[kPC] = levels.centred ? 0.0 - of.x0_x : 0.0;
}

void ddim_row(const Levels& levels, size_t i, double eta, double* row) {
    const double previous = levels.previous[i];
    const Prediction of = predicted(levels, i);
    const double sigma = eta * std::sqrt(levels.posterior_variance(i));
    const double along = std::sqrt(std::max(0.0, 1.0 - previous - sigma * sigma));  // rounding may fall below 0 at eta = 1
    predict_x0(levels, i, row);
    row[kKX0] = std::sqrt(previous);
    row[kKX] = along * of.eps_x;
    row[kKE] = along * of.eps_e;
    row[kKC] = levels.around_centre(row[kKX]);
    row[kKN] = sigma;
}

Columns ddim(const Levels& levels) {
    Columns columns(levels.steps());
    columns.timesteps = levels.timesteps;
    for (size_t i = 0; i < levels.steps(); ++i) ddim_row(levels, i, levels.eta, columns.row(i));
    return columns;
}

Columns ddpm(const Levels& levels) {
    Columns columns(levels.steps());
    columns.timesteps = levels.timesteps;
    for (size_t i = 0; i < levels.steps(); ++i) {
        const double a = levels.alpha_bar[i], previous = levels.previous[i], beta = levels.beta(i);
        double* row = columns.row(i);
        const double k_x = std::sqrt(1.0 - beta) * (1.0 - previous) / (1.0 - a);
        predict_x0(levels, i, row);
        row[kKX0] = std::sqrt(previous) * beta / (1.0 - a);
        row[kKX] = k_x;
        row[kKC] = levels.around_centre(k_x);
        if (levels.final(i)) continue;  // no noise
        const double posterior = levels.posterior_variance(i);
        if (levels.variance == kLearnedRange) {
            row[kKN] = std::sqrt(std::sqrt(beta * posterior));
            row[kSN] = std::log((1.0 - a) / (1.0 - previous)) / 4.0;
        } else {
            row[kKN] = std::sqrt(levels.variance == "fixedlarge" ? beta : posterior);
        }
    }
    return columns;
}

// Half the logarithm of the signal-to-noise ratio, infinite at alpha_bar = 1.
double log_ratio(double alpha_bar) { return 0.5 * (std::log(alpha_bar) - std::log1p(-alpha_bar)); }

Columns dpmpp_2m(const Levels& levels) {
    const size_t steps = levels.steps();
    Columns columns(steps);
    columns.timesteps = levels.timesteps;
    std::vector<double> h, past(steps);  // past: 1 / (2 r)
    for (size_t i = 0; i < steps; ++i) h.push_back(log_ratio(levels.previous[i]) - log_ratio(levels.alpha_bar[i]));
    for (size_t i = 1; i < steps; ++i)
        if (!levels.final(i)) past[i] = h[i] / (2.0 * h[i - 1]);
    for (size_t i = 0; i < steps; ++i) {
        const double a = levels.alpha_bar[i], previous = levels.previous[i];
        double* row = columns.row(i);
        const double toward = -std::sqrt(previous) * std::expm1(-h[i]);
        const double k_x = std::sqrt((1.0 - previous) / (1.0 - a));
        predict_x0(levels, i, row);
        row[kKX0] = toward * (1.0 + past[i]);
        row[kKH1] = 0.0 - toward * past[i];
        row[kKX] = k_x;
        row[kKC] = levels.around_centre(k_x);
        row[kPush] = i + 1 < steps && past[i + 1] != 0.0 ? kPushesX0 : 0.0;  // only what the next row reads
    }
    return columns;
}

// The coefficient of eps spread over e and the past.
void combine(double of_eps, const double (&order)[4], double* e, double* h1, double* h2, double* h3) {
    *e = of_eps * order[0];
    *h1 = of_eps * order[1];
    *h2 = of_eps * order[2];
    *h3 = of_eps * order[3];
}

Columns plms(const Levels& levels) {
    // Adams-Bashforth weights of e, h1, h2, h3 by the number of past eps, and Heun's average for the second row.
    static constexpr double kOrders[4][4] = {{1.0, 0.0, 0.0, 0.0},
                                             {3.0 / 2.0, -1.0 / 2.0, 0.0, 0.0},
                                             {23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0, 0.0},
                                             {55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0}};
    static constexpr double kAverage[4] = {0.5, 0.5, 0.0, 0.0};
    const size_t steps = levels.steps(), calls = steps + 1;
    Columns columns(calls);
    for (size_t i = 0; i < calls; ++i) {
        const size_t at = i < 2 ? 0 : i - 1;  // the step that this row belongs to
        const bool from_base = i == 1;
        double step[kRowWidth] = {};
        ddim_row(levels, at, 0.0, step);
        double* row = columns.row(i);
        columns.timesteps[i] = levels.timesteps[from_base ? std::min<size_t>(1, steps - 1) : at];
        row[kPX] = from_base ? 0.0 : step[kPX];
        row[kPY] = from_base ? step[kPX] : 0.0;
        row[kPC] = step[kPC];
        row[kKX0] = step[kKX0];
        row[kKC] = step[kKC];
        const auto& order = from_base ? kAverage : kOrders[std::min<size_t>(at, 3)];
        combine(step[kPE], order, row + kPE, row + kPH1, row + kPH2, row + kPH3);
        combine(step[kKE], order, row + kKE, row + kKH1, row + kKH2, row + kKH3);
        row[kQX] = i == 0 ? 1.0 : 0.0;
        row[kPush] = from_base || i + 1 == calls ? 0.0 : kPushesE;
    }
    return columns;
}

}  // namespace

const std::vector<Method> kSolvers = {
    {"ddim", ddim, true, false},
    {"ddpm", ddpm, false, false},
    {"dpmpp_2m", dpmpp_2m, false, false},
    {"plms", plms, false, true},
};

}  // namespace diffusevae
