// Where Python's `refine` starts a chain, by how damaged its images look: checked here, and of no use to C++, which refines
// no images.
#ifndef DIFFUSEVAE_BUNDLE_STARTS_H
#define DIFFUSEVAE_BUNDLE_STARTS_H

#include <optional>
#include <string>
#include <vector>

#include "bundle/fields.h"

namespace diffusevae {

struct Manifest;

// A row of the table: how images with one damage look, and what each start gives.
struct StartRow {};

// What `diffusevae fit-refine` wrote: the SHA-256 of the step's graph that the table was fitted on.
struct Starts {
    std::string of;
    std::vector<int64_t> t_starts;
};

std::optional<Starts> parse_starts(Fields& top, int64_t T);
// Refuses a table that was fitted on another network than the bundle's.
void check_starts(const Manifest& manifest, const Origin& origin);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_BUNDLE_STARTS_H
