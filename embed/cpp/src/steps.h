// Which coefficients does each step of a chain have? Every solver as a table of rows; engine/steps.py explains them, and the
// float64 operations here are its own, in its order: rows are the same, bit for bit.
#ifndef DIFFUSEVAE_STEPS_H
#define DIFFUSEVAE_STEPS_H

#include <cstdint>
#include <vector>

#include "schedule.h"
#include "setting.h"

namespace diffusevae {

// The fields of a row, in the order in memory (struct Row of the kernels' row.h, ROW_FIELDS in Python).
enum RowField { kPX, kPEps, kPCond, kKX0, kKPrev, kKX, kKEps, kKCond, kSigma, kClip, kRowFields };

// What a chain starts from: x_start = k_noise noise + k_image image + k_cond cond.
struct StartRow {
    double k_noise, k_image, k_cond;
};

struct StepTable {
    std::vector<int64_t> timesteps;  // [S], in the order used (falling)
    std::vector<float> rows;         // [S, kRowFields]
    StartRow start;

    int64_t steps() const { return int64_t(timesteps.size()); }
    const float* row(int64_t step) const { return rows.data() + step * kRowFields; }
    bool needs_x0_prev() const;  // whether any step uses the x0 of the step before it
};

// The rows of one chain. formulation: 1, 2, or 0 for an unconditional model (no term with cond). Error says what can be had.
StepTable build_step_table(const Schedule& schedule, int formulation, const Setting& setting);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_STEPS_H
