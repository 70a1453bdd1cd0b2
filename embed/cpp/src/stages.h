// Stages of a cascade: how one takes the images of the one before it, and whether it fits.
#ifndef DIFFUSEVAE_STAGES_H
#define DIFFUSEVAE_STAGES_H

#include <cstdint>
#include <string>
#include <vector>

#include "bundle/reader.h"
#include "diffusevae.h"
#include "request.h"
#include "schedule.h"

namespace diffusevae {

// The one picture that a sample is made of, or null.
const InputSpec* upscaled_input(const Manifest& manifest);

// A request of the images among its inputs: enlarged to the size that the bundle takes, noised to a level of its schedule, and then
// its one picture, where it has exactly one, or else what a chain starts from; Error (ARGUMENT) otherwise. noised: false for a check
// alone, which need not draw the noise.
Request checked_stage(const Manifest& manifest, const Schedule& schedule, const diffusevae_sample_options& given,
                      int64_t noise_level, bool noised = true);

// Error (BUNDLE) where these bundles are no cascade, one cannot take the images of the one before it, or an input of one name is not
// one that fits all.
void check_stages(const std::vector<const Bundle*>& stages);

// The folder of the bundle that the last of some stages names next, "" where it names none; Error (BUNDLE) for one that leads back
// and for too many.
std::string next_folder(const std::vector<const Bundle*>& stages);

// Error (BUNDLE) for another bundle than `before` names, and for one that does not fit it.
void check_next(const Bundle& before, const Bundle& after);

// What `before` records for `after`, where it names that; else as initialised.
void recorded_options(const Manifest& before, const Manifest& after, diffusevae_stage_options& into);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_STAGES_H
