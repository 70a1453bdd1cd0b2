// Settings fitted to a bundle: one for a count of network calls each.
#ifndef DIFFUSEVAE_BUNDLE_FITTED_H
#define DIFFUSEVAE_BUNDLE_FITTED_H

#include <optional>
#include <string>
#include <vector>

#include "bundle/fields.h"
#include "bundle/training.h"

namespace diffusevae {

struct Manifest;

// What `diffusevae fit-setting` wrote: the SHA-256 of the step's graph that the settings were fitted on, and these, each with
// its timesteps listed, the counts all different.
struct Fitted {
    std::string of;
    std::vector<Defaults> settings;

    const Defaults* get(int64_t steps) const;  // null where there is none of so many calls
};

std::optional<Fitted> parse_fitted(Fields& top, int64_t T);
// Refuses settings that were fitted on another network than the bundle's.
void check_fitted(const Manifest& manifest, const Origin& origin);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_BUNDLE_FITTED_H
