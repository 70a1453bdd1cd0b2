// Where Python's `refine` starts a chain, by how damaged its images look: checked here, and of no use to C++, which refines
// no images.
#ifndef DIFFUSEVAE_BUNDLE_STARTS_H
#define DIFFUSEVAE_BUNDLE_STARTS_H

#include <optional>
#include <string>

#include "bundle/fields.h"

namespace diffusevae {

struct Manifest;

// A row of the table: noise and residual of an estimate, and the best timestep to start from.
struct StartRow {
    double noise = 0, residual = 0;
    int64_t t_start = 0;
};

// What `diffusevae fit-refine` wrote: the SHA-256 of the step's graph that the table was fitted on.
struct Starts {
    std::string of;
};

std::optional<Starts> parse_starts(Fields& top, int64_t T);
// Refuses a table that was fitted on another network than the bundle's.
void check_starts(const Manifest& manifest, const Origin& origin);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_BUNDLE_STARTS_H
