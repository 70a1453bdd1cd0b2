// What a bundle says of cascades: the bundle after it, and its own input that hears how noisy a picture before was made.
#ifndef DIFFUSEVAE_BUNDLE_FOLLOWING_H
#define DIFFUSEVAE_BUNDLE_FOLLOWING_H

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bundle/fields.h"
#include "bundle/inputs.h"

namespace diffusevae {

// The bundle that goes on with this one's images, in a folder beside it, and how it is sampled there.
struct NextSpec {
    std::string bundle, source;  // source: SHA-256 of its checkpoint
    std::optional<int64_t> steps, t_start, noise_level;
    std::optional<double> guidance;
};

// The input that is told the noise level of the picture which the bundle takes: one number a sample.
struct AugmentationSpec {
    std::string input;
};

std::string parse_neighbour(Fields& fields, const char* key);

// The fields `next` and `augmentation`, which may be null or absent.
std::optional<NextSpec> parse_next(Fields& top);
std::optional<AugmentationSpec> parse_augmentation(Fields& top, const std::vector<InputSpec>& inputs);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_BUNDLE_FOLLOWING_H
