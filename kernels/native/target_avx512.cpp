// The kernels of target `avx512`: compiled with -mavx512f/bw/dq/vl/vnni; chosen at run time (isa.cpp).
#include "target_vector.h"

namespace diffusevae {
namespace native {

extern const Kernels kAvx512;
constexpr Kernels kAvx512 = make_kernels("avx512");

}  // namespace native
}  // namespace diffusevae
