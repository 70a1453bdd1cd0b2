// Noise levels of the trained timesteps: as engine/solver/schedule.py, in the same float64 operations in the same order, so that
// every number is the same, bit for bit.
#ifndef DIFFUSEVAE_SCHEDULE_H
#define DIFFUSEVAE_SCHEDULE_H

#include <cstdint>
#include <vector>

#include "bundle/training.h"

namespace diffusevae {

// The forward process q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I), t = 0 .. T - 1 (DDPM eq. 4).
struct Schedule {
    explicit Schedule(const ScheduleSpec& spec);  // Error (BUNDLE) for a recipe with a beta outside (0, 1)

    int64_t T;
    std::vector<double> alpha_bar;  // [T]: product of 1 - beta up to and including t, falling
};

// lambda, half the logarithm of the signal-to-noise ratio: infinite at alpha_bar = 1 and minus that at 0.
double log_ratio(double alpha_bar);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_SCHEDULE_H
