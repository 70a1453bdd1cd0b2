// Named arrays that a bundle takes and gives, as diffusevae_input and diffusevae_output list them, and the checks of those
// that a result asks for.
#ifndef DIFFUSEVAE_OUTPUTS_H
#define DIFFUSEVAE_OUTPUTS_H

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "backends/graph.h"
#include "bundle/manifest.h"
#include "diffusevae.h"

namespace diffusevae {

using Sizes = std::map<std::string, int64_t>;  // of free dimensions, by name

// One array that can be had.
struct OutputSpec {
    std::string name;
    Dtype dtype;
    Dimensions shape;

    // float32 [batch, C, H, W], which can be had as pixels too.
    bool is_image() const { return dtype == Dtype::kFloat32 && shape.size() == 4; }
};

// "images", "x", "seeds", "timesteps", "step_ms", then the values of the pipeline.
std::vector<OutputSpec> outputs_of(const Manifest& manifest);

void describe_input(const InputSpec& input, diffusevae_array_info& info);
void describe_output(const OutputSpec& output, diffusevae_array_info& info);

// One array that a caller wants: of a value as it is, or of its pixels.
struct Wanted {
    const OutputSpec* spec;
    bool pixels;
    diffusevae_array* array;
};

// The arrays of a result, checked. there: values that this run has; sizes: of the free dimensions, "batch" and "rows" among
// them.
std::vector<Wanted> wanted_outputs(const std::vector<OutputSpec>& outputs, const std::set<std::string>& there,
                                   const Sizes& sizes, const diffusevae_result& result);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_OUTPUTS_H
