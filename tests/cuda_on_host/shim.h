// CUDA C++ for g++: the words that it lacks, the thread's indices, barrier and atomics.
//
// Included before kernels/cuda/update.cu, which knows nothing of it; launch.cpp runs the threads.
#ifndef CUDA_ON_HOST_SHIM_H
#define CUDA_ON_HOST_SHIM_H

#include <stdint.h>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(threads, blocks)

struct Index {
    uint32_t x, y, z;
};

// Threads run one at a time and change only at barriers, so globals hold the running one's indices.
extern Index threadIdx, blockIdx, blockDim, gridDim;

void __syncthreads();
inline void __threadfence() {}

inline uint32_t atomicCAS(uint32_t* at, uint32_t expected, uint32_t value) {
    const uint32_t old = *at;
    if (old == expected) *at = value;
    return old;
}

inline uint32_t atomicInc(uint32_t* at, uint32_t limit) {
    const uint32_t old = *at;
    *at = old >= limit ? 0 : old + 1;
    return old;
}

#endif  // CUDA_ON_HOST_SHIM_H
