// The instruction sets that can run here.
#ifndef DIFFUSEVAE_NATIVE_ISA_H
#define DIFFUSEVAE_NATIVE_ISA_H

#include <string>

#include "target.h"

namespace diffusevae {
namespace native {

// The kernels of `isa`, or null with what is missing in `why`.
const Kernels* kernels_of(const std::string& isa, std::string& why);

// The best of those that run here, or null.
const Kernels* best_kernels(std::string& why);

}  // namespace native
}  // namespace diffusevae

#endif  // DIFFUSEVAE_NATIVE_ISA_H
