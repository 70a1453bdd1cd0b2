// The named arrays of a caller, checked: that a bundle or a verb takes one of the name, and its dtype, shape and values.
#ifndef DIFFUSEVAE_ARRAYS_H
#define DIFFUSEVAE_ARRAYS_H

#include <cstdint>
#include <string>
#include <vector>

#include "backends/graph.h"
#include "bundle/manifest.h"
#include "diffusevae.h"

namespace diffusevae {

using NamedArrays = std::vector<const diffusevae_array*>;

// "label int64[batch], z float32[batch, 512]", or "none".
std::string takes(const Manifest& manifest);

// The arrays of a request, each of a name that the bundle declares, "x_T", "noise" or one of `others`, and each name once.
NamedArrays named_arrays(const Manifest& manifest, const diffusevae_sample_options& given, const std::vector<std::string>& others);

const diffusevae_array* find(const NamedArrays& arrays, const std::string& name);  // null where it is not given

std::vector<int64_t> shape_of(const diffusevae_array& array);

// "float64 (5)"
std::string dtype_text(const diffusevae_array& array);

// Refuses an array of another dtype or shape; `expected` has names where any size of 1 or more will do.
std::vector<int64_t> checked_shape(const diffusevae_array& array, Dtype dtype, const Dimensions& expected);

// Refuses values that are not finite, or outside the range of `spec`.
void check_values(const TensorSpec& spec, const float* values, const std::vector<int64_t>& shape);
void check_values(const TensorSpec& spec, const int64_t* values, const std::vector<int64_t>& shape);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_ARRAYS_H
