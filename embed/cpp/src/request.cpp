// How is a request checked? Shapes first, then what is in the arrays; see engine/sampler.py, _request.
#include "request.h"

#include <string>

#include "checks.h"

namespace diffusevae {

namespace {

using Number = std::optional<int64_t>;

int64_t counted(const char* name, int64_t count) {
    if (count < 1) refuse_argument(std::string(name) + " is " + std::to_string(count) + "; expected at least 1.");
    return count;
}

// The count that comes with an array; nothing where there is no array.
Number count_beside(const char* array, const void* data, const char* name, int64_t count) {
    if (data) return counted(name, count);
    if (count != 0)
        refuse_argument(std::string(name) + " is " + std::to_string(count) + ", but " + array
                        + " is a null pointer; expected both or neither.");
    return std::nullopt;
}

void check_flag(const char* name, int32_t flag) {
    if (flag != 0 && flag != 1)
        refuse_argument(std::string(name) + " is " + std::to_string(flag) + "; expected 0 or 1.");
}

void check_latent(const Model& model, const diffusevae_sample_options& given) {
    if (!given.z) return;
    if (!model.z_dim)
        refuse_argument("z was given, but this bundle is unconditional: it has no VAE and no latent. Leave it out.");
    check_finite_array("z", given.z, {given.z_count, *model.z_dim});
}

Seeds seeds_of(const diffusevae_sample_options& given) {
    check_flag("has_seed", given.has_seed);
    if (given.seeds && given.has_seed)
        refuse_argument("seeds and seed are both given; expected a list, or has_seed = 1 and one number.");
    if (given.seeds) {
        check_array("seeds", given.seeds, sizeof(uint64_t), {given.seeds_count});
        return Seeds{given.seeds, 0};
    }
    return Seeds{nullptr, given.has_seed ? given.seed : drawn_seed()};
}

}  // namespace

Request checked_request(const Manifest& manifest, const diffusevae_sample_options& given) {
    const Model& model = manifest.model;
    check_flag("clip", given.clip);
    const Setting setting = resolve_setting(manifest, given, model.z_dim && !given.z);
    const Number n = given.n == DIFFUSEVAE_UNSET ? Number() : counted("n", given.n);
    const Number seeds = count_beside("seeds", given.seeds, "seeds_count", given.seeds_count);
    const Number z = count_beside("z", given.z, "z_count", given.z_count);
    const Number x_T = count_beside("x_T", given.x_T, "x_T_count", given.x_T_count);
    const Number noise = count_beside("noise", given.noise, "noise_count", given.noise_count);
    count_beside("noise", given.noise, "noise_steps", given.noise_steps);
    const int64_t size = model.image_size, channels = model.channels;
    check_latent(model, given);
    if (x_T) check_finite_array("x_T", given.x_T, {*x_T, channels, size, size});
    if (noise) check_finite_array("noise", given.noise, {given.noise_steps, *noise, channels, size, size});
    const Number agreed =
        agree_on_count({{"n", n}, {"seeds", seeds}, {"z", z}, {"x_T", x_T, true}, {"noise", noise, true}});
    const int64_t count = agreed.value_or(1);
    return Request{setting,    count, seeds_of(given),        given.z,           given.x_T,      x_T == 1 && count != 1,
                   given.noise, noise == 1 && count != 1, given.noise_steps, given.callback, given.user};
}

void check_steps(const Request& request, int64_t steps, const diffusevae_result& result) {
    const std::string count = std::to_string(steps);
    if (request.noise && request.noise_steps != steps)
        refuse_argument("noise holds " + std::to_string(request.noise_steps) + " steps; this run has " + count
                        + ". Pass one slice a step, in the order used (from the noisiest step to the last).");
    if (!result.timesteps && !result.step_ms) return;
    if (result.steps_capacity < steps)
        refuse_argument("steps_capacity of the result is " + std::to_string(result.steps_capacity) + "; this run has "
                        + count + " steps. Make room for them, or leave timesteps and step_ms null.");
    if (result.timesteps) check_array("timesteps of the result", result.timesteps, sizeof(int64_t), {steps});
    if (result.step_ms) check_array("step_ms of the result", result.step_ms, sizeof(double), {steps});
}

void check_room(const Manifest& manifest, int64_t n, const diffusevae_result& result) {
    const Model& model = manifest.model;
    const int64_t size = model.image_size, channels = model.channels;
    const bool wanted = result.images || result.recon || result.z || result.x || result.seeds;
    if (wanted && result.capacity < n)
        refuse_argument("capacity of the result is " + std::to_string(result.capacity) + "; this request has "
                        + std::to_string(n) + " images. Make room for them, or ask for fewer.");
    if (!model.conditional() && (result.recon || result.z))
        refuse_argument("recon or z of the result is an array, but this bundle is unconditional and has neither; expected "
                        "null pointers.");
    if (result.images) check_array("images of the result", result.images, 1, {n, size, size, channels});
    if (result.recon) check_array("recon of the result", result.recon, 1, {n, size, size, channels});
    if (result.x) check_array("x of the result", result.x, sizeof(float), {n, channels, size, size});
    if (result.z) check_array("z of the result", result.z, sizeof(float), {n, *model.z_dim});
    if (result.seeds) check_array("seeds of the result", result.seeds, sizeof(uint64_t), {n});
}

}  // namespace diffusevae
