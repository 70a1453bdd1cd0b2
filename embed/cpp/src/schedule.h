// Noise levels of the trained timesteps, and the timesteps that a short chain keeps: as engine/solver/schedule.py, in the same
// float64 operations in the same order, so that every number is the same, bit for bit.
#ifndef DIFFUSEVAE_SCHEDULE_H
#define DIFFUSEVAE_SCHEDULE_H

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bundle/training.h"

namespace diffusevae {

// The forward process q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I), t = 0 .. T - 1 (DDPM eq. 4).
struct Schedule {
    explicit Schedule(const ScheduleSpec& spec);  // Error (BUNDLE) for a recipe with a beta outside (0, 1)

    int64_t T;
    std::vector<double> alpha_bar;  // [T]: product of 1 - beta up to and including t, falling
};

// uniform, as the reference; linspace where a chain starts at t_start.
const char* default_spacing(std::optional<int64_t> t_start);

// The original timesteps that a chain keeps, ascending; with t_start the last one is t_start. Error says what can be had.
std::vector<int64_t> kept_timesteps(int64_t T, int64_t steps, const std::string& spacing, std::optional<int64_t> t_start);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_SCHEDULE_H
