// How does a thread read and write its four elements? 16 bytes at once where the addresses allow, else one by one.
#ifndef DIFFUSEVAE_CUDA_ACCESS_H
#define DIFFUSEVAE_CUDA_ACCESS_H

#include "diffusevae/row.h"

namespace diffusevae {

// A half as it lies in memory; there is no arithmetic on it.
struct Half {
    uint16_t bits;
};

// Four elements of one thread: what one Philox block gives noise for.
struct alignas(16) Four {
    float v[4];
};
struct alignas(8) FourHalves {
    Half v[4];
};

// Exact: every half is a float.
__device__ __forceinline__ float to_float(Half half) {
#if defined(__CUDA_ARCH__)
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half.bits));
    return value;
#else
    const uint32_t sign = uint32_t(half.bits & 0x8000u) << 16, magnitude = half.bits & 0x7FFFu;
    if (magnitude >= 0x7C00u) return bits_float(sign | 0x7F800000u | (magnitude & 0x3FFu) << 13);  // infinity, NaN
    // The fields at their places in a float, with the exponent's bias mended by 2^112: this covers subnormals as well.
    return bits_float(sign | float_bits(bits_float(magnitude << 13) * 5.192296858534828e33f));
#endif
}
__device__ __forceinline__ float to_float(float value) { return value; }

template <class T>
struct Wide;
template <>
struct Wide<float> {
    using Type = Four;
};
template <>
struct Wide<Half> {
    using Type = FourHalves;
};

// Whether four elements at `p` can be one access; absent arrays are not accessed.
template <class T>
__device__ __forceinline__ bool is_wide(const T* p) {
    return reinterpret_cast<uintptr_t>(p) % sizeof(typename Wide<T>::Type) == 0;
}

// Elements i .. i + n - 1 of p, zeros beyond and where p is null. kWide: in one access; then n is 4.
template <bool kWide, class T>
__device__ __forceinline__ Four load(const T* p, int64_t i, int n) {
    Four four = {};
    if (p == nullptr) return four;
    if constexpr (kWide) {
        const typename Wide<T>::Type raw = *reinterpret_cast<const typename Wide<T>::Type*>(p + i);
#pragma unroll
        for (int j = 0; j < 4; ++j) four.v[j] = to_float(raw.v[j]);
    } else {
#pragma unroll
        for (int j = 0; j < 4; ++j)
            if (j < n) four.v[j] = to_float(p[i + j]);
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
