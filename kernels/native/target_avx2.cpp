// The kernels of target `avx2`: compiled with -mavx2 -mfma -mf16c; chosen at run time (isa.cpp).
#include "target_vector.h"

namespace diffusevae {
namespace native {

extern const Kernels kAvx2;
constexpr Kernels kAvx2 = make_kernels("avx2");

}  // namespace native
}  // namespace diffusevae
