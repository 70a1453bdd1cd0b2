/* How is the kernel library called? Its C interface; kernels/loader.py declares the same to ctypes. */
#ifndef DIFFUSEVAE_KERNELS_H
#define DIFFUSEVAE_KERNELS_H

#include <stdint.h>

#if defined(__GNUC__)
#define DV_API __attribute__((visibility("default")))
#else
#define DV_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Raised whenever a signature or a struct below changes; the loader refuses a library of another version. */
#define DV_ABI_VERSION 1

/* Operands of one step over `samples` x `count` float32 elements, each array contiguous and aligned as a float is.
 * A null operand counts as zeros and is not read. `out` may be `x` or any other operand of the same extent
 * (update in place); partial overlap is not allowed. */
typedef struct dv_update_args {
    const float* row;         /* 10 coefficients, struct Row of row.h */
    const float* x;
    const float* eps;
    const float* eps_uncond;  /* may be null: then guidance has no effect */
    const float* cond;        /* may be null */
    const float* x0_prev;     /* may be null */
    const float* noise;       /* may be null */
    const uint64_t* seeds;    /* may be null; used where noise is null and sigma is not 0: generated, one seed a sample */
    float* out;
    float* x0_out;            /* may be null */
    int64_t samples;
    int64_t count;            /* elements of one sample */
    int64_t noise_stride;     /* elements from one sample's noise to the next: count, or 0 where all share one */
    uint32_t step;            /* step of the generated noise */
    float guidance;
    int32_t threads;          /* at most so many; fewer where the work is small */
} dv_update_args;

DV_API int32_t dv_abi_version(void);

/* The instruction set chosen at run time. */
DV_API const char* dv_isa(void);

/* One step; returns 1 where every guided eps was finite, 0 where not. */
DV_API int32_t dv_update(const dv_update_args* args);

/* Standard normals [samples, count]; a sample's numbers depend on its seed, stream, step and the element only. */
DV_API void dv_normal(const uint64_t* seeds, int64_t samples, uint32_t stream, uint32_t step, int64_t count,
                      float* out);

/* [samples, channels, pixels] in [-1, 1] to [samples, pixels, channels] in 0..255. */
DV_API void dv_to_uint8(const float* x, int64_t samples, int64_t channels, int64_t pixels, uint8_t* out);

/* One block of Philox4x32-10, for known-answer tests. */
DV_API void dv_philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

#ifdef __cplusplus
}
#endif

#endif /* DIFFUSEVAE_KERNELS_H */
