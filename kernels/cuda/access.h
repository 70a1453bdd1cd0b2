// A thread's four elements, read and written: 16 bytes at once where the addresses allow, else one by one.
#ifndef DIFFUSEVAE_CUDA_ACCESS_H
#define DIFFUSEVAE_CUDA_ACCESS_H

#include "diffusevae/row.h"

namespace diffusevae {

// Four elements of one thread: what one Philox block gives noise for.
struct alignas(16) Four {
    float v[4];
};

// Whether four elements at `p` can be one access; absent arrays are not accessed.
__device__ __forceinline__ bool is_wide(const float* p) { return reinterpret_cast<uintptr_t>(p) % sizeof(Four) == 0; }

// Elements i .. i + n - 1 of p, zeros beyond and where p is null. kWide: in one access; then n is 4.
template <bool kWide>
__device__ __forceinline__ Four load(const float* p, int64_t i, int n) {
    Four four = {};
    if (p == nullptr) return four;
    if constexpr (kWide) {
        four = *reinterpret_cast<const Four*>(p + i);
    } else {
#pragma unroll
        for (int j = 0; j < 4; ++j)
            if (j < n) four.v[j] = p[i + j];
    }
    return four;
}

template <bool kWide>
__device__ __forceinline__ void store(float* p, int64_t i, int n, const Four& four) {
    if (p == nullptr) return;
    if constexpr (kWide) {
        *reinterpret_cast<Four*>(p + i) = four;
    } else {
#pragma unroll
        for (int j = 0; j < 4; ++j)
            if (j < n) p[i + j] = four.v[j];
    }
}

// The elements of block `b` that exist: 4, or fewer at the end.
__device__ __forceinline__ int block_length(int64_t b, int64_t count) {
    const int64_t rest = count - 4 * b;
    return rest < 4 ? int(rest) : 4;
}

// Where this thread begins along x, and how far its next element of work lies.
__device__ __forceinline__ int64_t first_x() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ __forceinline__ int64_t stride_x() { return int64_t(gridDim.x) * blockDim.x; }

struct Yes {
    static constexpr bool value = true;
};
struct No {
    static constexpr bool value = false;
};

// work(Yes or No, block, length) for every block of four that this thread has from `begin` on, `stride` blocks apart:
// Yes where the whole block may be accessed at once.
template <class Work>
__device__ __forceinline__ void for_blocks(int64_t begin, int64_t stride, int64_t count, bool wide, const Work& work) {
    for (int64_t b = begin; 4 * b < count; b += stride) {
        const int n = block_length(b, count);
        if (wide && n == 4)
            work(Yes(), b, 4);
        else
            work(No(), b, n);
    }
}

}  // namespace diffusevae

#endif  // DIFFUSEVAE_CUDA_ACCESS_H
