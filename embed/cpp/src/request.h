// What is asked for, once it is checked? A setting, seeds and the arrays that a caller gave, for n samples.
#ifndef DIFFUSEVAE_REQUEST_H
#define DIFFUSEVAE_REQUEST_H

#include <cstdint>

#include "diffusevae.h"
#include "bundle/manifest.h"
#include "noise.h"
#include "setting.h"

namespace diffusevae {

// Arrays are the caller's; null where this library draws them.
struct Request {
    Setting setting;
    int64_t n;
    Seeds seeds;
    const float* z;      // [n, z_dim]
    const float* x_T;    // [n or 1, C, H, W]
    bool x_T_shared;
    const float* noise;  // [noise_steps, n or 1, C, H, W]
    bool noise_shared;
    int64_t noise_steps;
    diffusevae_callback callback;
    void* user;
};

// Checks everything that a caller gave and settles n; Error (ARGUMENT) otherwise.
Request checked_request(const Manifest& manifest, const diffusevae_sample_options& given);

// Refuses (ARGUMENT) noise for another number of steps than will run, and results that have no room.
void check_steps(const Request& request, int64_t steps, const diffusevae_result& result);
void check_room(const Manifest& manifest, int64_t n, const diffusevae_result& result);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_REQUEST_H
