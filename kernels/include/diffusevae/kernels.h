/* C interface of the kernel library; engine/kernels/loader.py declares the same to ctypes. */
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
#define DV_ABI_VERSION 4

/* Operands of one row over `samples` x `count` float32 elements, each array contiguous and aligned as a float is.
 * An operand whose coefficients are all 0 is not read; a null one counts as zeros. A result may be any operand of the same
 * extent (in place: out = x, y_out = y, push_out = h3); partial overlap, of two results too, is not allowed. */
typedef struct dv_update_args {
    const float* row;         /* 31 coefficients, struct Row of row.h */
    const float* x;
    const float* e;           /* [lanes, samples, count]: the network's output, one lane behind the other */
    const float* weights;     /* [lanes]; null: 1, of one lane. Lanes of weight 0 are not read */
    const float* c;           /* the centre; may be null, as all that follow but out */
    const float* y;
    const float* h1;
    const float* h2;
    const float* h3;
    const float* g;
    const float* v;           /* [samples, count]: the network's second output, of lane 0 */
    const float* noise;
    const uint64_t* seeds;    /* used where noise is null and the row has noise: generated, one seed a sample */
    float* out;               /* x' */
    float* x0_out;
    float* y_out;             /* y'; written where any q of the row is not 0 */
    float* push_out;          /* e or x0; written where the row's push says so */
    int64_t samples;
    int64_t count;            /* elements of one sample */
    int64_t noise_stride;     /* elements from one sample's noise to the next: count, or 0 where all share one */
    uint32_t step;            /* step of the generated noise */
    int32_t lanes;            /* 1 or more */
    int32_t threads;          /* at most so many; fewer where the work is small */
} dv_update_args;

DV_API int32_t dv_abi_version(void);

/* The instruction set chosen at run time. */
DV_API const char* dv_isa(void);

/* One row; returns 1 where every e, its lanes summed up, and every v that was read was finite, 0 where not. */
DV_API int32_t dv_update(const dv_update_args* args);

/* Standard normals [samples, count]; a sample's numbers depend on its seed, stream, step and the element only. */
DV_API void dv_normal(const uint64_t* seeds, int64_t samples, uint32_t stream, uint32_t step, int64_t count,
                      float* out);

/* A draw of a Gaussian mixture for each seed, [samples, width]: means[k] + factors[k] units, each row of the product summed from
 * the left, zeros too, and the mean last: any other order would give other bits. `units` [samples, width] are the seeds' normals;
 * k is the first component with the first word of (seed, kStreamPrior) below thresholds[k], of which the last is 2^32.
 * means [components, width], factors [components, width, width]. */
DV_API void dv_mixture(const uint64_t* seeds, int64_t samples, const uint64_t* thresholds, int64_t components,
                       const float* means, const float* factors, int64_t width, const float* units, float* out);

/* [samples, channels, pixels] in [-1, 1] to [samples, pixels, channels] in 0..255. */
DV_API void dv_to_uint8(const float* x, int64_t samples, int64_t channels, int64_t pixels, uint8_t* out);

/* Images at another, larger size: [planes, height, width] to [planes, to_height, to_width], bilinear between the centres of
 * pixels, (i + 1/2) height / to_height - 1/2, and by the nearest pixel beyond the outermost centres. Nothing exceeds the range
 * of what is enlarged, and an image of the same size stays as it is. */
DV_API void dv_enlarge(const float* x, int64_t planes, int64_t height, int64_t width, int64_t to_height, int64_t to_width,
                       float* out);

/* One block of Philox4x32-10, for known-answer tests. */
DV_API void dv_philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

#ifdef __cplusplus
}
#endif

#endif /* DIFFUSEVAE_KERNELS_H */
