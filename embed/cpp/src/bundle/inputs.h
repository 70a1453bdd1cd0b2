// Inputs that a bundle declares: what a caller may hand in, how it is drawn otherwise, and its null for guidance.
#ifndef DIFFUSEVAE_BUNDLE_INPUTS_H
#define DIFFUSEVAE_BUNDLE_INPUTS_H

#include <optional>
#include <string>
#include <vector>

#include "bundle/tensors.h"

namespace diffusevae {

// A declared input. shape[0] is "batch".
struct InputSpec : TensorSpec {
    // Of the sample's own stream, or from the bundle's fitted prior; or anew for every row; nothing: it must be given.
    std::optional<std::string> draw;
    std::optional<std::string> picture;  // "image", or "mask", where 1 is what is to be filled in; nothing: something else
    std::optional<Null> null;

    Dimensions sample() const { return Dimensions(shape.begin() + 1, shape.end()); }
};

// Whether a name has a meaning of its own in a pipeline, a request or a result.
bool is_reserved(const std::string& name);

// The list `inputs`, which may be empty.
std::vector<InputSpec> parse_inputs(Fields& top);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_BUNDLE_INPUTS_H
