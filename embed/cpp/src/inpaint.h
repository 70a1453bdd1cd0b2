// Images with a hole, as a checked request: by a network that takes image and mask, or by blending the known part in.
// engine/inpaint.py is the same in Python.
#ifndef DIFFUSEVAE_INPAINT_H
#define DIFFUSEVAE_INPAINT_H

#include <cstdint>

#include "bundle/manifest.h"
#include "diffusevae.h"
#include "request.h"
#include "schedule.h"

namespace diffusevae {

// The arrays "images", "masks" and "known_noise" among the inputs, with all else that a sample takes but a number of images and a
// budget of time; Error (ARGUMENT) otherwise. Where something is blended in, `set_levels` completes it.
Request checked_inpaint(const Manifest& manifest, const diffusevae_sample_options& given, bool composite);

// The noise of x before each of these timesteps.
void set_levels(Blend& blend, const Schedule& schedule, const std::vector<int64_t>& timesteps);

// Puts what is known back into images begin .. begin + n, uint8 [n, H, W, C].
void put_back(const Holed& holed, int64_t begin, int64_t n, uint8_t* images);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_INPAINT_H
