#include "manifest_model.h"

#include "text.h"

namespace diffusevae {
namespace {

constexpr int64_t kMaxTimesteps = 1'000'000;
constexpr double kLeastBeta = 1e-12, kMostBeta = 0.999999;

}  // namespace

const std::vector<std::string> kMethods = {"ddim", "ddpm"};
const std::vector<std::string> kSpacings = {"uniform", "quad", "linspace", "trailing", "truncated"};
const std::vector<std::string> kVariances = {"fixedlarge", "fixedsmall"};

Model parse_model(Fields fields) {
    Model model;
    model.formulation = fields.nullable_integer("formulation", 1, 2);
    model.image_size = fields.integer("image_size", 1, 4096);
    model.channels = fields.integer("channels", 1, 64);
    model.z_dim = fields.nullable_integer("z_dim", 1, int64_t(1) << 20);
    model.z_conditioned = fields.boolean("z_conditioned");
    model.row_width = fields.integer("row_width", 1, int64_t(1) << 24);
    fields.free("unet");
    const bool has_vae = !fields.is_null("vae");
    if (has_vae) fields.free("vae");
    fields.take("vae", "an object or null");
    if (model.conditional()) {
        for (const char* key : {"z_dim", "vae"})
            if (fields.is_null(key))
                fields.refuse(key, "a value, since model.formulation is " + std::to_string(*model.formulation));
    } else {
        const char* const nothing = "nothing of a VAE, since model.formulation is null (unconditional)";
        if (model.z_dim) fields.refuse("z_dim", nothing);
        if (has_vae) fields.refuse("vae", nothing);
        if (model.z_conditioned) fields.refuse("z_conditioned", nothing);
    }
    fields.done();
    return model;
}

ScheduleSpec parse_schedule(Fields fields) {
    ScheduleSpec schedule;
    schedule.recipe = fields.choice("recipe", {"linear"});
    schedule.beta_1 = fields.number("beta_1", kLeastBeta, kMostBeta);
    schedule.beta_T = fields.number("beta_T", kLeastBeta, kMostBeta);
    schedule.T = fields.integer("T", 1, kMaxTimesteps);
    if (schedule.beta_T < schedule.beta_1)
        fields.refuse("beta_T", "at least schedule.beta_1 = " + short_number(schedule.beta_1));
    fields.done();
    return schedule;
}

Defaults parse_defaults(Fields fields, int64_t T) {
    Defaults defaults;
    defaults.steps = fields.integer("steps", 1, T);
    defaults.method = fields.choice("method", kMethods);
    if (!fields.is_null("spacing")) defaults.spacing = fields.choice("spacing", kSpacings);
    defaults.t_start = fields.nullable_integer("t_start", 0, T - 1);
    defaults.eta = fields.number("eta", 0.0, 1.0);
    defaults.temperature = fields.number("temperature", 0.0, 100.0);
    defaults.guidance = fields.number("guidance", -100.0, 100.0);
    fields.take("spacing", "a spacing or null");
    fields.done();
    return defaults;
}

CheckpointSpec parse_checkpoint(Fields fields) {
    const bool has_vae = !fields.is_null("vae_file");
    CheckpointSpec checkpoint;
    checkpoint.file = fields.text("file");
    checkpoint.sha256 = fields.sha256("sha256");
    checkpoint.weights = fields.choice("weights", {"ema", "online"});
    if (has_vae) {
        checkpoint.vae_file = fields.text("vae_file");
        checkpoint.vae_sha256 = fields.sha256("vae_sha256");
    }
    fields.take("vae_file", "a file name or null");
    if (!fields.take("vae_sha256", "a SHA-256 of 64 lower-case hexadecimal digits, or null").is_null() && !has_vae)
        fields.refuse("vae_sha256", "null, since source.vae_file is null");
    fields.done();
    return checkpoint;
}

std::vector<std::string> roles_of(const Model& model) {
    if (!model.conditional()) return {"timestep_table", "denoiser"};
    return {"vae_encoder", "vae_decoder", "timestep_table", "denoiser"};
}

}  // namespace diffusevae
