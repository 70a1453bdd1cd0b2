// The machine's ceilings. Products from L2 and streaming reads, for the roofline of a benchmark.
#ifndef DIFFUSEVAE_NATIVE_CEILING_H
#define DIFFUSEVAE_NATIVE_CEILING_H

#include <string>

#include "target.h"

namespace diffusevae {
namespace native {

// Operations or bytes a second; see dv_native_ceiling.
double measure_ceiling(const std::string& what, const Kernels* kernels, int32_t threads, double seconds);

}  // namespace native
}  // namespace diffusevae

#endif  // DIFFUSEVAE_NATIVE_CEILING_H
