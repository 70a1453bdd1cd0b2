// What was trained, and from which file? The parts of a manifest that describe the model, checked.
#ifndef DIFFUSEVAE_MANIFEST_MODEL_H
#define DIFFUSEVAE_MANIFEST_MODEL_H

#include <optional>
#include <string>
#include <vector>

#include "fields.h"

namespace diffusevae {

extern const std::vector<std::string> kMethods, kSpacings, kVariances;

// Unconditional: formulation and z_dim are absent, z_conditioned is false.
struct Model {
    std::optional<int64_t> formulation;
    int64_t image_size = 0, channels = 0;
    std::optional<int64_t> z_dim;
    bool z_conditioned = false;
    int64_t row_width = 0;

    bool conditional() const { return formulation.has_value(); }
};

struct ScheduleSpec {
    std::string recipe;
    double beta_1 = 0, beta_T = 0;
    int64_t T = 0;
};

// The sampling options of a caller who names none.
struct Defaults {
    int64_t steps = 0;
    std::string method;
    std::optional<std::string> spacing;
    std::optional<int64_t> t_start;
    double eta = 0, temperature = 1, guidance = 0;
};

// Which checkpoint the bundle was built from.
struct CheckpointSpec {
    std::string file, sha256, weights;
    std::optional<std::string> vae_file, vae_sha256;
};

Model parse_model(Fields fields);
ScheduleSpec parse_schedule(Fields fields);
Defaults parse_defaults(Fields fields, int64_t T);
CheckpointSpec parse_checkpoint(Fields fields);

// "vae_encoder", "vae_decoder", "timestep_table", "denoiser": those that a bundle of this model must hold.
std::vector<std::string> roles_of(const Model& model);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_MANIFEST_MODEL_H
