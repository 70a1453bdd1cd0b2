// How do host and kernels agree on where a run stands? One block of eight words in device memory (README.md).
#ifndef DIFFUSEVAE_CUDA_CONTROL_H
#define DIFFUSEVAE_CUDA_CONTROL_H

#include "diffusevae/row.h"

namespace diffusevae {

// The host writes all of it before a run: cuda_module.CONTROL_FORMAT.
struct alignas(16) Control {
    uint32_t step;    // the row in use; the last block of each update moves it on
    uint32_t ticket;  // blocks of the running update that are done; 0 between launches
    uint32_t bad;     // 0, 1 + the first step with a bad eps, or one of the codes below
    uint32_t steps;   // rows in the tables
    float guidance;
    float k_noise, k_image, k_cond;  // x = k_noise x_T + k_image image + k_cond cond
};
static_assert(sizeof(Control) == 32, "the layout that the host writes");
static_assert(sizeof(Row) == 40, "a row of kernels.ROW_FIELDS, without padding");

enum Bad : uint32_t { kBadTable = 0xFFFFFFFDu, kBadImage = 0xFFFFFFFEu, kOverrun = 0xFFFFFFFFu };

// The first finding stays: later ones follow from it.
__device__ __forceinline__ void report(Control* control, uint32_t code) { atomicCAS(&control->bad, 0u, code); }

// Called by every thread at the end of an update: moves on to the next step once no thread of the grid needs this one's
// number. The barrier covers the block's own threads, the ticket the other blocks; atomicInc wraps to 0 at the last one.
__device__ __forceinline__ void advance(Control* control) {
    __syncthreads();
    if (threadIdx.x != 0) return;
    __threadfence();
    const uint32_t blocks = gridDim.x * gridDim.y * gridDim.z;
    if (atomicInc(&control->ticket, blocks - 1) == blocks - 1) control->step += 1;
}

}  // namespace diffusevae

#endif  // DIFFUSEVAE_CUDA_CONTROL_H
