// The few-step setting of a run: the caller's options merged with what the bundle recorded, as a whole.
#ifndef DIFFUSEVAE_SETTING_H
#define DIFFUSEVAE_SETTING_H

#include <cstdint>
#include <optional>
#include <string_view>

#include "diffusevae.h"
#include "bundle/manifest.h"

namespace diffusevae {

// One complete setting; the texts are static.
struct Setting {
    int64_t steps;
    const char* method = "ddim";
    const char* spacing = nullptr;  // null until it is known whether there is a t_start
    double eta = 0.0;
    std::optional<int64_t> t_start;
    double temperature = 1.0;
    double guidance = 0.0;
    const char* variance;
    bool clip = true;
    const char* prior = nullptr;  // "bundle" or "standard"; null where no input is drawn

    bool guided() const { return guidance != 0.0; }
    bool draws_from_bundle() const { return prior && prior == std::string_view("bundle"); }
    diffusevae_setting in_c() const;
};

// What the bundle recorded for callers who name nothing.
Setting recorded_setting(const Manifest& manifest);

// Without any of steps, method, spacing, eta and t_start the recorded setting applies whole. Naming one of them replaces it
// by the library's own (ddim; uniform or, with t_start, linspace; eta 0, temperature 1, guidance 0) at the recorded number of
// steps: half of one setting and half of another is a setting that was never measured. draws: whether an input is drawn.
// Error (ARGUMENT) for unknown words, for what this bundle cannot have, and for a prior where none is used; the
// numbers are checked by build_step_table.
Setting resolve_setting(const Manifest& manifest, const diffusevae_sample_options& given, bool draws);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_SETTING_H
