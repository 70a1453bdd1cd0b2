// The step table: every solver as rows of coefficients, one row a call of the network; engine/solver/table.py explains them,
// and every row is the same, bit for bit.
#ifndef DIFFUSEVAE_STEPS_H
#define DIFFUSEVAE_STEPS_H

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "bundle/manifest.h"
#include "schedule.h"
#include "setting.h"
#include "solvers.h"

namespace diffusevae {

// What a chain starts from: x = k_noise x_T + k_start start + k_centre centre.
struct Start {
    double k_noise, k_start, k_centre;
};

// A chain, in the order of its R network calls.
struct StepTable {
    std::vector<int64_t> timesteps;  // [R]
    std::vector<float> rows;         // [R, kRowWidth]
    std::vector<float> weights;      // [R, lanes]
    int64_t lanes;                   // 1, or 2 with guidance: the inputs, and their nulls
    Start start;
    std::vector<int64_t> nets;       // [R], 1 where the regulariser is called; empty where it is nowhere

    int64_t calls() const { return int64_t(timesteps.size()); }
    const float* row(int64_t i) const { return rows.data() + i * kRowWidth; }
    const float* weight(int64_t i) const { return weights.data() + i * lanes; }
    // Lanes that row i evaluates: a row without weight beyond the first runs that one alone.
    int64_t active_lanes(int64_t i) const;
    // Whether any row has a coefficient other than `usual` in one of these fields.
    bool any(std::initializer_list<int> fields, float usual = 0.0f) const;
    bool uses_y() const;
    // Whether a row takes a guide's gradient, and whether any does.
    bool guided(int64_t i) const { return row(i)[kKG] != 0.0f; }
    bool takes_guide() const { return any({kKG}); }
    // Whether a row calls the regulariser.
    bool regularised(int64_t i) const { return !nets.empty() && nets[size_t(i)] != 0; }
};

// The rows of one chain. Error (ARGUMENT) says what can be had.
StepTable build_step_table(const Schedule& schedule, const Manifest& manifest, const Setting& setting);

// Two rows that do what one does to x, y and e. The first gives x0 as its x' and has no other result. The second takes x0 back in
// slot g, which no row reads that is quantised, and does all the rest; where the row pushes x0, its caller pushes what g is.
struct Halves {
    std::array<float, kRowWidth> first, second;
};
Halves halves_of(const float* row);

// The row whose x' is that of this one without noise and gradient, and which leaves y and the history as they are.
std::array<float, kRowWidth> mean_row(const float* row);

// Refuses (ARGUMENT) rows that no executor can run: coefficients that are not finite, a slot that is read before it is written, a
// gradient where there is no guide.
void check_table(const StepTable& table, bool guide);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_STEPS_H
