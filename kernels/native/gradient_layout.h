// Where the operands of gradients lie.
#ifndef DIFFUSEVAE_NATIVE_GRADIENT_LAYOUT_H
#define DIFFUSEVAE_NATIVE_GRADIENT_LAYOUT_H

#include <vector>

#include "layout.h"

namespace diffusevae {
namespace native {

// Resolves a NORM_GRADIENT, ATTENTION_GRADIENT or CLASSIFY into `to`; the floats that each thread needs for it.
int64_t place_gradient(const Program& program, const dv_native_op& op, const std::vector<Map>& maps, const Kernels& kernels,
                       Operation& to);

}  // namespace native
}  // namespace diffusevae

#endif  // DIFFUSEVAE_NATIVE_GRADIENT_LAYOUT_H
