// What was trained, and how it is sampled unless a caller says otherwise: schedule, defaults and source of a manifest.
#ifndef DIFFUSEVAE_BUNDLE_TRAINING_H
#define DIFFUSEVAE_BUNDLE_TRAINING_H

#include <optional>
#include <string>
#include <vector>

#include "bundle/fields.h"

namespace diffusevae {

extern const std::vector<std::string> kMethods, kSpacings, kVariances, kPredictions;
extern const char* const kLearnedRange;  // of kVariances: for networks whose second output says it

// The recipe of the betas that the model was trained with, or the betas themselves. What a recipe does not have is 0.
struct ScheduleSpec {
    std::string recipe;
    int64_t T = 0;
    double start = 0, end = 0, s = 0, max_beta = 0;
    std::vector<double> betas;
};

// The sampling options that apply where a caller names none.
struct Defaults {
    int64_t steps = 0;
    std::string method;
    std::optional<std::string> spacing;
    std::optional<int64_t> t_start;
    double eta = 0, temperature = 1, guidance = 0;
};

// The checkpoint that the bundle was built from, and the second one where there were two.
struct Source {
    std::string file, sha256, weights;
    std::optional<std::string> other_file, other_sha256;
};

ScheduleSpec parse_schedule(Fields fields);
Defaults parse_defaults(Fields fields, int64_t T);
Source parse_source(Fields fields);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_BUNDLE_TRAINING_H
