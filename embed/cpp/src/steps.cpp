// How are rows computed? Below, a = alpha_bar at t and b = alpha_bar at the kept timestep before it, with b = 1 where there
// is none, so that the last step of every chain returns x0 itself. Equations: engine/steps.py. Compile with
// -ffp-contract=off, and keep the order of the operations.
#include "steps.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "arguments.h"
#include "error.h"

namespace diffusevae {

namespace {

struct Level {
    double a, b;
    double beta() const { return 1.0 - a / b; }
    double posterior_variance() const { return beta() * (1.0 - b) / (1.0 - a); }
};

// x0 from x_t and eps; formulation 2 takes the condition, around which its noise is centred, away first.
void predict_x0(double* row, Level at, int formulation) {
    const double scale = 1.0 / std::sqrt(at.a);
    row[kPX] = scale;
    row[kPEps] = -std::sqrt(1.0 / at.a - 1.0);
    row[kPCond] = formulation == 2 ? -scale : 0.0;
}

// Ancestral step, the mean of q(x_s | x_t, x0) (DDPM eq. 7, with the spaced chain's beta).
void ddpm(double* row, Level at, int formulation, const Setting& setting) {
    const double k_x = std::sqrt(1.0 - at.beta()) * (1.0 - at.b) / (1.0 - at.a);
    row[kKX0] = std::sqrt(at.b) * at.beta() / (1.0 - at.a);
    row[kKX] = k_x;
    row[kKCond] = formulation == 2 ? 1.0 - k_x : 0.0;
    row[kSigma] = std::sqrt(setting.variance == std::string("fixedlarge") ? at.beta() : at.posterior_variance());
}

// DDIM eq. 12 with the sigma of eq. 16; formulation 2 keeps exactly one cond as the centre.
void ddim(double* row, Level at, int formulation, const Setting& setting) {
    const double sigma = setting.eta * std::sqrt(at.posterior_variance());
    row[kKX0] = std::sqrt(at.b);
    row[kKEps] = std::sqrt(std::max(0.0, 1.0 - at.b - sigma * sigma));  // rounding may fall below 0 at eta = 1
    row[kKCond] = formulation == 2 ? 1.0 : 0.0;
    row[kSigma] = sigma;
}

struct Solver {
    const char* method;
    void (*fill)(double*, Level, int, const Setting&);
};

constexpr Solver kSolvers[] = {{"ddim", ddim}, {"ddpm", ddpm}};

const Solver& solver_of(const std::string& method) {
    for (const Solver& solver : kSolvers)
        if (method == solver.method) return solver;
    throw Error(DIFFUSEVAE_INTERNAL, "method '" + method + "' is in the list, but nothing computes it");
}

// x_T = temperature noise, or at t_start a sample of q(x_t | image) (DDPM eq. 4); + cond with formulation 2.
StartRow start_row(const Schedule& schedule, int formulation, const Setting& setting) {
    const double centre = formulation == 2 ? 1.0 : 0.0;
    if (!setting.t_start) return StartRow{setting.temperature, 0.0, centre};
    const double a = schedule.alpha_bar[size_t(*setting.t_start)];
    return StartRow{setting.temperature * std::sqrt(1.0 - a), std::sqrt(a), centre};
}

void check(const Setting& setting) {
    check_number("eta", setting.eta, 0.0, 1.0);
    if (setting.eta != 0.0 && setting.method != std::string("ddim"))
        refuse_argument("eta is " + brief(setting.eta) + " with method '" + setting.method
                        + "'; only ddim takes eta: leave it 0 or use method 'ddim'");
    check_number("temperature", setting.temperature, 0.0, std::numeric_limits<double>::infinity());
}

}  // namespace

bool StepTable::needs_x0_prev() const {
    for (int64_t i = 0; i < steps(); ++i)
        if (row(i)[kKPrev] != 0.0f) return true;
    return false;
}

StepTable build_step_table(const Schedule& schedule, int formulation, const Setting& setting) {
    const Solver& solver = solver_of(setting.method);
    check(setting);
    const std::vector<int64_t> kept = kept_timesteps(schedule.T, setting.steps, setting.spacing, setting.t_start);
    StepTable table{{kept.rbegin(), kept.rend()}, std::vector<float>(kept.size() * kRowFields),
                    start_row(schedule, formulation, setting)};
    for (size_t i = 0; i < kept.size(); ++i) {  // i counts the steps taken: from the noisiest
        const bool last = i + 1 == kept.size();
        const double before = last ? 1.0 : schedule.alpha_bar[size_t(table.timesteps[i + 1])];
        const Level at{schedule.alpha_bar[size_t(table.timesteps[i])], before};
        double row[kRowFields] = {};
        predict_x0(row, at, formulation);
        solver.fill(row, at, formulation, setting);
        if (last) row[kSigma] = 0.0;
        // The image is x_0 without the centre that the chain carried along.
        if (last && formulation == 2) row[kKCond] -= 1.0;
        row[kClip] = setting.clip ? 1.0 : std::numeric_limits<double>::infinity();
        for (int field = 0; field < kRowFields; ++field) table.rows[i * kRowFields + size_t(field)] = float(row[field]);
    }
    return table;
}

}  // namespace diffusevae
