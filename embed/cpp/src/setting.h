// The few-step setting of a run: the caller's options merged with what the bundle recorded, as a whole.
#ifndef DIFFUSEVAE_SETTING_H
#define DIFFUSEVAE_SETTING_H

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "diffusevae.h"
#include "bundle/manifest.h"

namespace diffusevae {

// A list of the caller's or of the bundle's, which must outlive it; none where `values` is null.
template <class Value>
struct Listed {
    const Value* values = nullptr;
    int64_t count = 0;

    explicit operator bool() const { return values != nullptr; }
};

// One number for all steps, or one a step.
struct Scale {
    double value = 0.0;
    Listed<double> list;

    double at(int64_t step) const { return list ? list.values[step] : value; }
};

// One complete setting; the texts are static.
struct Setting {
    int64_t steps;
    Listed<int64_t> timesteps;
    const char* spacing = nullptr;  // null until it is known whether there is a t_start, and with timesteps
    double rho = kRho;
    const char* method = "ddim";
    Scale eta;
    std::optional<int64_t> t_start;
    double temperature = 1.0;
    Scale noise_scale{1.0, {}}, eps_scale{1.0, {}};
    double guidance = 0.0;
    std::optional<std::pair<int64_t, int64_t>> guidance_interval;  // {low, high}, both included; nothing: guidance in every row
    const char* variance;
    bool quantize_denoised = false;
    double guide_scale = 0.0;               // 0: no guide runs
    const char* guide_mode = kConstant;
    std::optional<std::pair<int64_t, int64_t>> guide_interval;  // as guidance_interval, of the rows that take a guide's gradient
    const char* regularise = kOff;
    std::optional<std::pair<int64_t, int64_t>> regularise_interval;  // of the timesteps at which the regulariser runs
    bool clip = true;
    const char* prior = nullptr;  // "bundle" or "standard"; null where no input is drawn

    bool guided() const { return guidance != 0.0; }
    bool draws_from_bundle() const { return prior && prior == std::string_view("bundle"); }
    diffusevae_setting in_c() const;
};

// What the bundle recorded for callers who name nothing.
Setting recorded_setting(const Manifest& manifest);

// The options given that replace the recorded setting as a whole.
std::vector<std::string> replacing(const diffusevae_sample_options& given);

// Without any of steps, timesteps, spacing, rho, method, eta and t_start the recorded setting applies whole. Naming one of
// them replaces it by the library's own (ddim; uniform or, with t_start, linspace; eta 0, scales 1, guidance 0, no guide, no regulariser) at the
// recorded number of steps, or that of the timesteps: half of one setting and half of another is a setting that was never
// measured. Where a setting of so many steps was fitted to the bundle, it takes the place of either, unless more than steps
// is named, `setting` is "plain", or a guide or a regulariser is asked for, which a fitted setting knows nothing of. has_image: whether there is an
// image to start from. Error (ARGUMENT) for unknown words and for what this bundle cannot have; the numbers are checked by
// build_step_table. The prior is left out.
Setting resolve_setting(const Manifest& manifest, const diffusevae_sample_options& given, bool has_image);

// "bundle" or "standard": what the drawn input comes from, null where none is drawn; Error (ARGUMENT) for a prior then.
const char* chosen_prior(const Manifest& manifest, const char* asked, bool draws);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_SETTING_H
