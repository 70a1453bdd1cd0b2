/* How does a C or C++ program sample from a bundle? This header is the whole interface of libdiffusevae (C99).
 *
 *     diffusevae_sampler* sampler;
 *     if (diffusevae_open("model.bundle", NULL, &sampler) != DIFFUSEVAE_OK) { fputs(diffusevae_error(), stderr); ... }
 *     diffusevae_sample_options options;
 *     diffusevae_sample_options_init(&options);
 *     options.n = 4; options.has_seed = 1; options.seed = 7;
 *     diffusevae_result result;
 *     diffusevae_result_init(&result);
 *     result.capacity = 4; result.images = pixels;                      // uint8 [4, H, W, C], see diffusevae_describe
 *     diffusevae_status status = diffusevae_sample(sampler, &options, &result);
 *     diffusevae_free(sampler);
 *
 * The same bundle, seed and options give the same images as the Python package, bit for bit, on the same backend and
 * instruction set. diffusevae.hpp wraps this header for C++17.
 *
 * Structs. Each begins with its own size. Prepare it with its _init function, then set what you need: programs compiled
 * against this header keep working with later libraries, whose structs only grow at the end (diffusevae_setting and
 * diffusevae_timings, which lie inside others, never do).
 *
 * Not given. Options that were not set hold DIFFUSEVAE_UNSET (integers), DIFFUSEVAE_UNSET_NUMBER (doubles) or NULL. Anything
 * else is taken at its word and refused where it is out of range: 0, -1 and NaN do not mean "the default".
 *
 * Errors. Every function that can fail returns a status; where it is not DIFFUSEVAE_OK, diffusevae_error() is a sentence
 * that says what was found, what was expected and what to do. No exception crosses this interface, and a sampler stays
 * usable after any error. What lies in the buffers of a result is defined after DIFFUSEVAE_OK only.
 *
 * Threads. A sampler serves one diffusevae_sample at a time; a second one, from another thread or from the callback of the
 * first, is answered DIFFUSEVAE_BUSY at once. Give each thread a sampler of its own with diffusevae_clone: clones share
 * weights and plans. diffusevae_cancel, _clone, _describe and _step_table may be called on a sampler at any time, from any
 * thread, also while it runs; diffusevae_free not before every other call on that sampler has returned. The error text is
 * one a thread. After fork(), the child may use a sampler that was idle then; it gets threads of its own.
 *
 * Arrays are contiguous, in C order, aligned as their type is, and the caller's; no pointer is kept after the call. n is the
 * number of images, C, H, W their channels, height and width, S the number of steps. Results must not overlap what is read.
 */
#ifndef DIFFUSEVAE_H
#define DIFFUSEVAE_H

#include <float.h>
#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define DIFFUSEVAE_API
#elif defined(__GNUC__)
#define DIFFUSEVAE_API __attribute__((visibility("default")))
#else
#define DIFFUSEVAE_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* What an option holds that was not given. */
#define DIFFUSEVAE_UNSET INT64_MIN
#define DIFFUSEVAE_UNSET_NUMBER (-DBL_MAX)

/* Coefficients of one step: the width of diffusevae_step_table.rows. */
#define DIFFUSEVAE_ROW_FIELDS 10

/* ---- statuses and texts ----------------------------------------------------------------------------------------------- */

typedef enum diffusevae_status {
    DIFFUSEVAE_OK = 0,
    DIFFUSEVAE_ARGUMENT = 1,   /* an argument is null, out of range, of the wrong size, or contradicts another */
    DIFFUSEVAE_BUNDLE = 2,     /* the bundle is refused: manifest, version, size, SHA-256 or path is not what it must be */
    DIFFUSEVAE_BACKEND = 3,    /* a backend is missing, cannot run here, or failed */
    DIFFUSEVAE_NUMERICS = 4,   /* a network returned NaN or infinity; the text names graph and step */
    DIFFUSEVAE_CANCELLED = 5,  /* diffusevae_cancel or the callback stopped the run */
    DIFFUSEVAE_BUSY = 6,       /* this sampler is running already */
    DIFFUSEVAE_NO_MEMORY = 7,  /* no memory, or no room in the caller's address space for what was asked */
    DIFFUSEVAE_INTERNAL = 8    /* a defect of this library: please report the text */
} diffusevae_status;

/* The sentence about the last call of this thread that failed; "" when there was none. Valid until this thread's next call
 * that fails. UTF-8, at most 4095 bytes. */
DIFFUSEVAE_API const char* diffusevae_error(void);

/* "OK", "ARGUMENT", ...; "UNKNOWN" for any other number. Static. */
DIFFUSEVAE_API const char* diffusevae_status_name(diffusevae_status status);

/* The library's version, such as "0.1.0". Static. */
DIFFUSEVAE_API const char* diffusevae_version(void);

/* ---- opening ---------------------------------------------------------------------------------------------------------- */

/* One bundle on one backend: weights, plans, buffers. */
typedef struct diffusevae_sampler diffusevae_sampler;

typedef struct diffusevae_open_options {
    size_t size;
    const char* backend;    /* "native" (NULL: the same), or "openvino", "tensorrt" where they are compiled in */
    const char* precision;  /* "bf16" or "int8" (native), "f32" (openvino), "fp16" (tensorrt); NULL or "auto": what the
                             * backend prefers among those that the bundle holds. Native: int8 on a processor with AVX-512
                             * VNNI and without AMX or AVX512_BF16, else bf16, as in Python */
    int64_t threads;        /* 1 .. 4 * processors (at least 16), of which native uses at most 256; DIFFUSEVAE_UNSET: what
                             * affinity and the container's CPU quota allow */
    int64_t max_batch;      /* 1 .. 2^20, as initialised 64: larger requests run in chunks of this many samples, with the
                             * same result; memory stays bounded */
} diffusevae_open_options;

DIFFUSEVAE_API void diffusevae_open_options_init(diffusevae_open_options* options);

/* Open and verify a bundle (the SHA-256 of every file) and load what every sample needs. path: its folder, UTF-8.
 * options: NULL for what _init sets. The environment variable DIFFUSEVAE_ISA (amx, avx512_bf16, avx512, avx2) forces an
 * instruction set of backend native. *sampler is NULL unless the status is DIFFUSEVAE_OK. */
DIFFUSEVAE_API diffusevae_status diffusevae_open(const char* path, const diffusevae_open_options* options,
                                                 diffusevae_sampler** sampler);

/* Another sampler over the same weights, with states, buffers and threads of its own, for another thread. Both are freed,
 * in any order. *clone is NULL unless the status is DIFFUSEVAE_OK. */
DIFFUSEVAE_API diffusevae_status diffusevae_clone(const diffusevae_sampler* sampler, diffusevae_sampler** clone);

/* NULL is fine. */
DIFFUSEVAE_API void diffusevae_free(diffusevae_sampler* sampler);

/* ---- what was opened -------------------------------------------------------------------------------------------------- */

/* A complete few-step setting; the texts are static. */
typedef struct diffusevae_setting {
    int64_t steps;         /* asked for; spacing "quad" may merge some */
    int64_t t_start;       /* DIFFUSEVAE_UNSET: none, the chain starts from noise */
    const char* method;
    const char* spacing;
    const char* variance;
    const char* prior;     /* "bundle" or "standard"; NULL where no latent is drawn */
    double eta;
    double temperature;
    double guidance;
    int32_t clip;          /* 0 or 1 */
} diffusevae_setting;

typedef struct diffusevae_info {
    size_t size;
    int64_t image_size;    /* H and W */
    int64_t channels;      /* C */
    int64_t z_dim;         /* width of a latent; 0: the model has none (unconditional) */
    int64_t timesteps;     /* T, the length of the full chain */
    int32_t formulation;   /* 1 or 2; 0: unconditional */
    int32_t conditional;   /* 1: a VAE's reconstruction of z is the condition, and there are recon and z */
    int32_t z_conditioned; /* 1: the denoiser sees z too */
    int32_t has_prior;     /* 1: the bundle holds a fitted density of latents */
    int64_t threads;
    int64_t max_batch;
    int64_t weight_bytes;  /* of the loaded graphs, shared by all clones */
    const char* name;      /* the bundle's; valid while the sampler is */
    const char* backend;   /* static */
    const char* precision; /* static */
    const char* isa;       /* the instruction set that backend native runs on, "" for others; static */
    diffusevae_setting defaults; /* what applies where none of steps, method, spacing, eta and t_start is given */
} diffusevae_info;

DIFFUSEVAE_API void diffusevae_info_init(diffusevae_info* info);
DIFFUSEVAE_API diffusevae_status diffusevae_describe(const diffusevae_sampler* sampler, diffusevae_info* info);

/* ---- sampling --------------------------------------------------------------------------------------------------------- */

/* What a callback sees after a step. x and x0 are float32 [n, C, H, W], valid during the call only: copy what you keep. */
typedef struct diffusevae_step {
    size_t size;
    int64_t step;        /* 0 .. steps - 1 */
    int64_t steps;
    int64_t timestep;    /* falls to the last kept one */
    int64_t first;       /* index in the batch of the first of these samples: a large batch runs in chunks */
    int64_t n;           /* samples of this chunk */
    const float* x;      /* x_{t-1} */
    const float* x0;     /* this step's prediction of the image */
} diffusevae_step;

/* Called in the thread that called diffusevae_sample, after every step of every chunk. 0 goes on, anything else stops the
 * run (DIFFUSEVAE_CANCELLED). It must return: neither longjmp nor an exception may leave it. */
typedef int32_t (*diffusevae_callback)(const diffusevae_step* step, void* user);

typedef struct diffusevae_sample_options {
    size_t size;

    /* Number of images, 1 or more. Unset: what seeds, z, x_T or noise say, else 1. All that say a number must agree. */
    int64_t n;

    /* Seeds. A list, one a sample; or has_seed = 1 and one number: sample i uses (seed + i) mod 2^64; or neither: drawn from
     * the operating system, see diffusevae_result.seeds. A sample depends on its own seed only, never on its batch. */
    const uint64_t* seeds;  /* [seeds_count], or NULL */
    int64_t seeds_count;    /* 1 or more with seeds, else as initialised: 0 */
    int32_t has_seed;       /* 0 or 1; 0 with seeds */
    uint64_t seed;

    /* The few-step setting. With none of these five given the bundle's recorded setting applies as a whole, its temperature
     * and guidance included; naming any replaces it by ddim, uniform spacing (linspace with t_start), eta 0, no t_start,
     * temperature 1, guidance 0, at the recorded number of steps. */
    int64_t steps;          /* 1 .. T, or 1 .. t_start + 1 */
    const char* method;     /* "ddim" or "ddpm" */
    const char* spacing;    /* "uniform" (whole strides only), "quad", "linspace", "trailing" or "truncated" */
    double eta;             /* 0 (deterministic) .. 1, ddim only */
    int64_t t_start;        /* 0 .. T - 1: start from sqrt(alpha_bar) recon + sqrt(1 - alpha_bar) noise at this timestep */

    double temperature;     /* 0 or more: scales the noise that the chain starts from */
    double guidance;        /* w in eps_c + w (eps_c - eps_u), finite; not 0 doubles the work; 0 if unconditional */
    const char* variance;   /* "fixedlarge" or "fixedsmall" (ddpm); NULL: the bundle's own */
    int32_t clip;           /* 1 (as initialised): limit each step's prediction of the image to [-1, 1]; 0: do not */
    const char* prior;      /* what z is drawn from: "bundle", the density fitted to the VAE, or "standard", N(0, I); NULL:
                             * the bundle's where it has one. Refused where no z is drawn */

    /* Arrays in place of what is drawn, every value finite. */
    const float* z;         /* float32 [z_count, z_dim], or NULL */
    int64_t z_count;        /* n */
    const float* x_T;       /* float32 [x_T_count, C, H, W], or NULL: the unit Gaussian that the start's coefficients
                             * multiply */
    int64_t x_T_count;      /* n, or 1: shared by the batch */
    const float* noise;     /* float32 [noise_steps, noise_count, C, H, W], or NULL: in the order used, from the noisiest
                             * step to the last; read in the steps that add noise */
    int64_t noise_steps;    /* the number of steps that run */
    int64_t noise_count;    /* n, or 1: shared by the batch */

    diffusevae_callback callback;  /* or NULL */
    void* user;                    /* handed to the callback */
} diffusevae_sample_options;

DIFFUSEVAE_API void diffusevae_sample_options_init(diffusevae_sample_options* options);

/* Wall-clock milliseconds of one run by stage, summed over its chunks. */
typedef struct diffusevae_timings {
    double vae_ms;         /* the VAE's decoder */
    double table_ms;       /* the timestep table's network */
    double noise_ms;       /* drawing z and x_T; the steps' noise is part of update_ms */
    double network_ms;     /* the denoiser, all steps */
    double first_step_ms;  /* of that, the first step: it may pay for one-off preparation */
    double update_ms;      /* the solver's arithmetic */
    double post_ms;        /* rounding to pixels */
    double total_ms;
    int64_t network_calls; /* evaluations of the denoiser; with guidance one evaluates both branches */
    int64_t chunks;        /* pieces that the batch was cut into */
} diffusevae_timings;

/* Where the results go. Each array may be NULL: not wanted. */
typedef struct diffusevae_result {
    size_t size;
    int64_t capacity;        /* samples that each of the next five arrays has room for: n or more */
    uint8_t* images;         /* uint8 [n, H, W, C] */
    uint8_t* recon;          /* uint8 [n, H, W, C], the VAE's reconstruction; must be NULL for an unconditional model */
    float* z;                /* float32 [n, z_dim], the latents; must be NULL for an unconditional model */
    float* x;                /* float32 [n, C, H, W], the samples before rounding, in [-1, 1] unless clip is 0 */
    uint64_t* seeds;         /* uint64 [n]: sample i again is has_seed = 1, seed = seeds[i], with z where z was given */
    int64_t steps_capacity;  /* steps that the next two arrays have room for: S or more */
    int64_t* timesteps;      /* int64 [S], in the order used (falling) */
    double* step_ms;         /* float64 [S]: milliseconds of the denoiser in each step, summed over chunks */

    /* Set by diffusevae_sample. */
    int64_t n;
    int64_t steps;           /* S */
    diffusevae_setting setting;
    diffusevae_timings timings;
} diffusevae_result;

DIFFUSEVAE_API void diffusevae_result_init(diffusevae_result* result);

/* Sample: draw z, take the VAE's reconstruction of it as condition, then the chain. options: NULL for what _init sets. */
DIFFUSEVAE_API diffusevae_status diffusevae_sample(diffusevae_sampler* sampler, const diffusevae_sample_options* options,
                                                   diffusevae_result* result);

/* Stop the run that is in progress before its next step; it returns DIFFUSEVAE_CANCELLED unless it was in its last one.
 * Without effect on runs that begin later. From any thread and from signal handlers; NULL is fine. */
DIFFUSEVAE_API void diffusevae_cancel(diffusevae_sampler* sampler);

/* ---- the step table --------------------------------------------------------------------------------------------------- */

/* The coefficients of a chain, as whole-sampler graphs take them. A row is p_x, p_eps, p_cond, k_x0, k_prev, k_x, k_eps,
 * k_cond, sigma, clip:
 *     x0 = limit(p_x x + p_eps eps + p_cond cond, clip)
 *     x' = k_x0 x0 + k_prev x0_prev + k_x x + k_eps eps + k_cond cond + sigma noise
 * from x = k_noise noise + k_image recon + start_k_cond cond, with cond = recon in [-1, 1]. */
typedef struct diffusevae_step_table {
    size_t size;
    int64_t capacity;      /* steps that the arrays have room for: S or more */
    int64_t* timesteps;    /* int64 [S], falling, or NULL */
    float* rows;           /* float32 [S, DIFFUSEVAE_ROW_FIELDS], or NULL */

    /* Set by diffusevae_get_step_table. */
    int64_t steps;         /* S */
    double k_noise;
    double k_image;
    double start_k_cond;
    diffusevae_setting setting;
} diffusevae_step_table;

DIFFUSEVAE_API void diffusevae_step_table_init(diffusevae_step_table* table);

/* The table that diffusevae_sample would run with these options. Without arrays it tells S (capacity is then not looked at).
 * Of the options, only the setting counts: steps, method, spacing, eta, t_start, temperature, guidance, variance, clip,
 * prior. */
DIFFUSEVAE_API diffusevae_status diffusevae_get_step_table(const diffusevae_sampler* sampler,
                                                           const diffusevae_sample_options* options,
                                                           diffusevae_step_table* table);

#ifdef __cplusplus
}
#endif

#endif /* DIFFUSEVAE_H */
