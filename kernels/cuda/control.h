// The control block: eight words in device memory by which host and kernels agree on where a run stands (README.md).
#ifndef DIFFUSEVAE_CUDA_CONTROL_H
#define DIFFUSEVAE_CUDA_CONTROL_H

#include "diffusevae/row.h"

namespace diffusevae {

// The host writes all of it before a run: cuda_module.CONTROL_FORMAT.
struct alignas(16) Control {
    uint32_t step;    // the row in use; the last block of each update moves it on
    uint32_t ticket;  // blocks of the running update that are done; 0 between launches
    uint32_t bad;     // 0, 1 + the first row with a bad e, or a code: one below, or one that dv_finite was given
    uint32_t steps;   // rows in the tables
    uint32_t pushes;  // values pushed into the history so far; moved on with `step`
    float k_noise, k_start, k_centre;  // x = k_noise x_T + k_start start + k_centre centre
};
static_assert(sizeof(Control) == 32, "the layout that the host writes");
static_assert(sizeof(Row) == 124, "a row of kernels.ROW_FIELDS, without padding");

enum Bad : uint32_t { kBadRows = 0xFFFFFFFDu, kFullRow = 0xFFFFFFFEu, kOverrun = 0xFFFFFFFFu };

// The first finding stays: later ones follow from it.
__device__ __forceinline__ void report(Control* control, uint32_t code) { atomicCAS(&control->bad, 0u, code); }

// Called by every thread at the end of an update: moves on to the next row once no thread of the grid needs this one's
// numbers. The barrier covers the block's own threads, the ticket the other blocks; atomicInc wraps to 0 at the last one.
__device__ __forceinline__ void advance(Control* control, bool pushed) {
    __syncthreads();
    if (threadIdx.x != 0) return;
    __threadfence();
    const uint32_t blocks = gridDim.x * gridDim.y * gridDim.z;
    if (atomicInc(&control->ticket, blocks - 1) != blocks - 1) return;
    control->step += 1;
    control->pushes += pushed ? 1u : 0u;
}

// The history is a ring of three: a push overwrites the oldest, so that nothing moves and every launch has the same
// arguments. h_age (age 1 is the newest) lies in this slot after so many pushes; a push goes where h3 was.
constexpr uint32_t kHistory = 3;
__device__ __forceinline__ uint32_t slot_of(uint32_t pushes, uint32_t age) {
    return (pushes % kHistory + kHistory - age) % kHistory;
}

}  // namespace diffusevae

#endif  // DIFFUSEVAE_CUDA_CONTROL_H
