// The kernels of target `avx512_bf16`: as `avx512`, with products of bf16 pairs in hardware; chosen at run time (isa.cpp).
#include "target_vector.h"

namespace diffusevae {
namespace native {

extern const Kernels kAvx512Bf16;
constexpr Kernels kAvx512Bf16 = make_kernels("avx512_bf16");

}  // namespace native
}  // namespace diffusevae
