// What was trained, and how it is sampled unless a caller says otherwise: schedule, defaults and source of a manifest.
#ifndef DIFFUSEVAE_BUNDLE_TRAINING_H
#define DIFFUSEVAE_BUNDLE_TRAINING_H

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "bundle/constants.h"
#include "bundle/fields.h"

namespace diffusevae {

// The recipe of the betas that the model was trained with and its numbers, or the betas themselves.
struct ScheduleSpec {
    std::string recipe;
    int64_t T = 0;
    std::map<std::string, double> numbers;
    std::vector<double> betas;
};

// The sampling options that apply where a caller names none.
struct Defaults {
    int64_t steps = 0;
    std::optional<std::vector<int64_t>> timesteps;
    std::optional<std::string> spacing;
    double rho = 0;
    std::string method;
    Numbers eta;
    std::optional<int64_t> t_start;
    double temperature = 1;
    Numbers noise_scale, eps_scale;
    double guidance = 0;
};

// The checkpoint that the bundle was built from, and the second one where there were two.
struct Source {
    std::string file, sha256, weights;
    std::optional<std::string> other_file, other_sha256;
};

ScheduleSpec parse_schedule(Fields fields);
Source parse_source(Fields& fields, const char* key);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_BUNDLE_TRAINING_H
