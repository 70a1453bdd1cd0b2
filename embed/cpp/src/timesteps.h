// The timesteps that a short chain keeps: as engine/solver/timesteps.py, in the same float64 operations in the same order.
#ifndef DIFFUSEVAE_TIMESTEPS_H
#define DIFFUSEVAE_TIMESTEPS_H

#include <cstdint>
#include <optional>
#include <vector>

#include "setting.h"

namespace diffusevae {

// uniform, as the reference; linspace where a chain starts at t_start.
const char* default_spacing(std::optional<int64_t> t_start);

// Whether the last step ends at the level of t = 0, and not in x0.
bool is_leading(const Setting& setting);

// Error (ARGUMENT) for a rho that no spacing takes, and for what contradicts a list of timesteps.
void check_timesteps(const Setting& setting);

// The timesteps of a chain, ascending: those that are listed, or what its spacing keeps. Error says what can be had.
std::vector<int64_t> kept_timesteps(const std::vector<double>& alpha_bar, const Setting& setting);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_TIMESTEPS_H
