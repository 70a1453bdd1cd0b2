/* Sampling from C and C++: this header is the whole interface of libdiffusevae (C99).
 *
 *     diffusevae_sampler* sampler;
 *     if (diffusevae_open("model.bundle", NULL, &sampler) != DIFFUSEVAE_OK) { fputs(diffusevae_error(), stderr); ... }
 *     diffusevae_sample_options options;
 *     diffusevae_sample_options_init(&options);
 *     options.n = 4; options.has_seed = 1; options.seed = 7;
 *     diffusevae_array images = {"images", DIFFUSEVAE_UINT8, 4, {4, 32, 32, 3}, pixels};   // see diffusevae_output
 *     diffusevae_result result;
 *     diffusevae_result_init(&result);
 *     result.outputs = &images; result.outputs_count = 1;
 *     diffusevae_status status = diffusevae_sample(sampler, &options, &result);
 *     diffusevae_free(sampler);
 *
 * The same bundle, seed and options give the same images as the Python package, bit for bit, on the same backend and
 * instruction set. diffusevae.hpp wraps this header for C++17.
 *
 * Arrays have names. What a bundle takes beside the options below (a class label, a latent, ...) is declared in its
 * manifest: diffusevae_input lists it, diffusevae_output lists what can be had. No function knows a family of models.
 *
 * Structs. Each begins with its own size. Prepare it with its _init function, then set what you need: programs compiled
 * against this header keep working with later libraries, whose structs only grow at the end (diffusevae_array,
 * diffusevae_setting, diffusevae_timings and diffusevae_deadline, which lie inside others, never do).
 *
 * Not given. Options that were not set hold DIFFUSEVAE_UNSET (integers), DIFFUSEVAE_UNSET_NUMBER (doubles) or NULL. Anything
 * else is taken at its word and refused where it is out of range: 0, -1 and NaN do not mean "the default".
 *
 * Errors. Every function that can fail returns a status; where it is not DIFFUSEVAE_OK, diffusevae_error() is a sentence
 * that says what was found, what was expected and what to do. No exception crosses this interface, and a sampler stays
 * usable after any error. What lies in the arrays of a result is defined after DIFFUSEVAE_OK only.
 *
 * Threads. A sampler serves one diffusevae_sample or _inpaint at a time; a second one, from another thread or from the callback of the
 * first, is answered DIFFUSEVAE_BUSY at once. Give each thread a sampler of its own with diffusevae_clone: clones share
 * weights and layouts. diffusevae_cancel, _clone, _describe, _input, _output and _step_table may be called on a sampler at any
 * time, from any thread, also while it runs; diffusevae_free not before every other call on that sampler has returned. The
 * error text is one a thread. After fork(), the child may use a native sampler that was idle then; it gets threads of its own. Backends
 * openvino and tensorrt answer DIFFUSEVAE_BACKEND in such a child, whoever opens the bundle: open it there with native.
 *
 * Arrays are contiguous, in C order, aligned as their type is, and the caller's; no pointer is kept after the call. n is the
 * number of images, R the number of rows of the step table: one a call of the network. Results must not overlap what is read.
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

/* Coefficients of one row: the width of diffusevae_step_table.rows. */
#define DIFFUSEVAE_ROW_FIELDS 31

/* Dimensions that an array can have. */
#define DIFFUSEVAE_MAX_RANK 8

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
    DIFFUSEVAE_INTERNAL = 8,   /* a defect of this library: please report the text */
    DIFFUSEVAE_DEADLINE = 9    /* no fitted setting keeps the budget of time; the text says what can be had */
} diffusevae_status;

/* The sentence about the last call of this thread that failed; "" when there was none. Valid until this thread's next call
 * that fails. UTF-8, at most 4095 bytes. */
DIFFUSEVAE_API const char* diffusevae_error(void);

/* "OK", "ARGUMENT", ...; "UNKNOWN" for any other number. Static. */
DIFFUSEVAE_API const char* diffusevae_status_name(diffusevae_status status);

/* The library's version, such as "0.2.0". Static. */
DIFFUSEVAE_API const char* diffusevae_version(void);

/* ---- arrays ----------------------------------------------------------------------------------------------------------- */

typedef enum diffusevae_dtype {
    DIFFUSEVAE_FLOAT32 = 1,
    DIFFUSEVAE_INT64 = 2,
    DIFFUSEVAE_UINT8 = 3,
    DIFFUSEVAE_UINT64 = 4,
    DIFFUSEVAE_FLOAT64 = 5
} diffusevae_dtype;

/* A named array. */
typedef struct diffusevae_array {
    const char* name;
    int32_t dtype;                       /* a diffusevae_dtype */
    int32_t rank;                        /* dimensions in shape, 1 .. DIFFUSEVAE_MAX_RANK */
    int64_t shape[DIFFUSEVAE_MAX_RANK];  /* of an input: its sizes; of a result: its room, see diffusevae_result */
    void* data;
} diffusevae_array;

/* What is known of an array before there is one. */
typedef struct diffusevae_array_info {
    size_t size;
    const char* name;          /* valid while the sampler is, as the texts below are */
    int32_t dtype;
    int32_t rank;
    int64_t shape[DIFFUSEVAE_MAX_RANK];             /* -1 where the dimension is free */
    const char* dimensions[DIFFUSEVAE_MAX_RANK];    /* names of the free ones ("batch", "rows", ...), NULL where it is fixed */
    int32_t drawn;             /* inputs: 1 where the library draws it if it is not given; with a dimension "steps" for each row */
    int32_t has_null;          /* inputs: 1 where guidance knows what stands for its absence */
    int32_t bounded;           /* inputs: 1 where values must lie in low .. high, both included */
    double low, high;
    int32_t is_image;          /* outputs of float32 [batch, C, H, W]: 1 where uint8 [batch, H, W, C] can be asked for too */
} diffusevae_array_info;

DIFFUSEVAE_API void diffusevae_array_info_init(diffusevae_array_info* info);

/* ---- opening ---------------------------------------------------------------------------------------------------------- */

/* One bundle on one backend: weights, layouts, buffers. */
typedef struct diffusevae_sampler diffusevae_sampler;

typedef struct diffusevae_open_options {
    size_t size;
    const char* backend;    /* "native" (NULL: the same), or "openvino", "tensorrt" where they are compiled in */
    const char* precision;  /* "bf16" or "int8" (native), "f32" (openvino), "fp16" (tensorrt); NULL or "auto": the first of
                             * these that the bundle was built in, as in Python */
    int64_t threads;        /* 1 .. 4 * processors (at least 16), of which native uses at most 256; DIFFUSEVAE_UNSET: what
                             * affinity and the container's CPU quota allow */
    int64_t max_batch;      /* 1 .. 2^20, as initialised 64: larger requests run in chunks of this many samples, with the
                             * same result; memory stays bounded */
    const char* const* allow_links;  /* folders where links among the bundle's files may end, beside the bundle's own: such as */
    int64_t allow_links_count;       /* the Hugging Face cache's "blobs"; "/" for any place. NULL and 0: none */
    int64_t height, width;  /* of the images, other than the bundle's own: its networks run on the whole of them. Both, or
                             * none: DIFFUSEVAE_UNSET */
    double overlap;         /* with larger ones: they run on windows of the bundle's own size instead, of which the next one
                             * covers this share, 0 .. 0.9; DIFFUSEVAE_UNSET_NUMBER for the whole */
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

/* A complete few-step setting; the texts are static. Lists are NULL and 0 long where there is none; else they are those of the
 * options, valid while these are, or the bundle's, valid while the sampler is. */
typedef struct diffusevae_setting {
    int64_t steps;         /* asked for; spacings "quad" may merge some and "leading" have more, method "plms" calls once more */
    const int64_t* timesteps;  /* [timesteps_count], falling, where they were listed */
    int64_t timesteps_count;
    const char* spacing;   /* NULL where the timesteps were listed */
    double rho;
    const char* method;
    double eta;            /* DIFFUSEVAE_UNSET_NUMBER where there is a list, as the scales below */
    const double* etas;    /* [etas_count], one a step */
    int64_t etas_count;
    int64_t t_start;       /* DIFFUSEVAE_UNSET: none, the chain starts from noise */
    double temperature;
    double noise_scale;
    const double* noise_scales;
    int64_t noise_scales_count;
    double eps_scale;
    const double* eps_scales;
    int64_t eps_scales_count;
    double guidance;
    int64_t guidance_interval[2];  /* low and high; DIFFUSEVAE_UNSET twice: guidance in every row */
    const char* variance;
    int32_t quantize_denoised;     /* 0 or 1 */
    double guide_scale;            /* 0: no guide runs */
    const char* guide_mode;
    int64_t guide_interval[2];     /* as guidance_interval */
    const char* regularise;        /* "off", "after" or "before" */
    int64_t regularise_interval[2];
    int32_t clip;          /* 0 or 1 */
    const char* prior;     /* "bundle" or "standard"; NULL where no input is drawn */
} diffusevae_setting;

typedef struct diffusevae_info {
    size_t size;
    int64_t image_channels, image_height, image_width;
    int64_t state_channels, state_height, state_width;  /* of what the loop carries: x, x_T and noise */
    int64_t timesteps;     /* T, the length of the full chain */
    int64_t inputs;        /* that diffusevae_input lists */
    int64_t outputs;       /* that diffusevae_output lists */
    int32_t guided;        /* 1: something that the network is fed has a null, so that guidance can be other than 0 */
    int32_t has_start;     /* 1: the pipeline has a value to start from at t_start */
    int32_t has_prior;     /* 1: the bundle holds a fitted density of the input that is drawn */
    int32_t has_guides;    /* 1: the bundle has guides, so that guide_scale can be other than 0 */
    int32_t has_regulariser;  /* 1: the bundle has a second network, so that regularise can be other than "off" */
    int64_t threads;
    int64_t max_batch;
    int64_t weight_bytes;  /* of the loaded graphs, shared by all clones */
    const char* name;      /* the bundle's; valid while the sampler is, as the next two */
    const char* family;
    const char* start;     /* name of the value to start from, NULL where there is none */
    const char* backend;   /* static */
    const char* precision; /* static */
    const char* isa;       /* the instruction set that backend native runs on, "" for others; static */
    diffusevae_setting defaults; /* the recorded setting, see diffusevae_sample_options */
    const int64_t* fitted;   /* [fitted_count]: the calls of each setting fitted to the bundle, the best first; or NULL */
    int64_t fitted_count;
    const char* const* directions; /* [directions_count], the names that edits may have; valid while the sampler is; NULL */
    int64_t directions_count;
    const char* text_input;  /* name of the input of token ids that texts become; NULL where the bundle holds no vocabulary */
} diffusevae_info;

DIFFUSEVAE_API void diffusevae_info_init(diffusevae_info* info);
DIFFUSEVAE_API diffusevae_status diffusevae_describe(const diffusevae_sampler* sampler, diffusevae_info* info);

/* The index-th input that the bundle declares, index 0 .. info.inputs - 1. "x_T" and "noise" can be given beside them. */
DIFFUSEVAE_API diffusevae_status diffusevae_input(const diffusevae_sampler* sampler, int64_t index,
                                                  diffusevae_array_info* info);

/* The index-th output that a result can ask for: "images" uint8 [n, H, W, C]; "x" float32, the state after the last row;
 * "seeds" uint64 [n]; "timesteps" int64 [R]; "step_ms" float64 [R], milliseconds of network and guide in each row, summed
 * over chunks;
 * then the values of the pipeline by name: the inputs, and what the graphs before and after the loop make. */
DIFFUSEVAE_API diffusevae_status diffusevae_output(const diffusevae_sampler* sampler, int64_t index,
                                                   diffusevae_array_info* info);

/* ---- sampling --------------------------------------------------------------------------------------------------------- */

/* What a callback sees after a row of the step table. x and x0 are float32 [n, C, H, W] of the state, valid during the call
 * only: copy what you keep. */
typedef struct diffusevae_step {
    size_t size;
    int64_t step;        /* 0 .. steps - 1 */
    int64_t steps;       /* R */
    int64_t timestep;    /* falls to the last kept one */
    int64_t first;       /* index in the batch of the first of these samples: a large batch runs in chunks */
    int64_t n;           /* samples of this chunk */
    const float* x;      /* after the row */
    const float* x0;     /* this row's prediction of the end */
} diffusevae_step;

/* Called in the thread that called diffusevae_sample, after every row of every chunk. 0 goes on, anything else stops the
 * run (DIFFUSEVAE_CANCELLED). It must return: neither longjmp nor an exception may leave it. */
typedef int32_t (*diffusevae_callback)(const diffusevae_step* step, void* user);

/* A direction of the bundle by name, and how far to go along it: 1 is the way from the mean of the samples without to that of
 * the samples with, -1 the way back. */
typedef struct diffusevae_edit {
    const char* name;
    double strength;     /* -1000 .. 1000 */
} diffusevae_edit;

typedef struct diffusevae_sample_options {
    size_t size;

    /* Number of images, 1 or more. Unset: what seeds and arrays say, else 1. All that say a number must agree. */
    int64_t n;

    /* Seeds. A list, one a sample; or has_seed = 1 and one number: sample i uses (seed + i) mod 2^64; or neither: drawn from
     * the operating system, see output "seeds". A sample depends on its own seed only, never on its batch. */
    const uint64_t* seeds;  /* [seeds_count], or NULL */
    int64_t seeds_count;    /* 1 or more with seeds, else as initialised: 0 */
    int32_t has_seed;       /* 0 or 1; 0 with seeds */
    uint64_t seed;

    /* The few-step setting. With nothing given down to t_start the bundle's recorded setting applies as a whole, its scales
     * and guidance included, and its guides and regulariser are used as it records; naming any replaces it by ddim, uniform spacing
     * (linspace with t_start), eta 0, no t_start, scales 1, guidance 0, no guide, no regulariser, at the recorded number of steps. */
    int64_t steps;          /* 1 .. T, or 1 .. t_start + 1 where a spacing is laid up to t_start */
    const char* setting;    /* "fitted", the bundle's own for this number of steps (`diffusevae fit-setting`), or "plain", as
                             * above; NULL: the fitted one where there is one, nothing but steps is named and no guide
                             * runs, which it knows nothing of */
    const int64_t* timesteps;  /* [timesteps_count], or NULL: the timesteps themselves, falling, in place of steps and spacing */
    int64_t timesteps_count;   /* 1 or more with timesteps, else as initialised: 0; so for the lists below */
    const char* spacing;    /* "uniform" (whole strides only), "quad", "linspace", "trailing", "truncated", "karras",
                             * "logsnr", "leading" or "leading_quad" */
    double rho;             /* 1 .. 100, of spacing "karras"; unset: 7 */
    const char* method;     /* "ddim", "ddim_clipped", "ddpm", "dpmpp_2m", "sde_dpmpp_2m", "unipc_2", "ipndm" or "plms" */
    double eta;             /* 0 (deterministic) .. 1, ddim and ddim_clipped only */
    const double* etas;     /* [etas_count], one a step in place of eta; or NULL */
    int64_t etas_count;
    int64_t t_start;        /* 0 .. T - 1: start from the pipeline's start value, noised to this timestep; with timesteps the
                             * first of them */

    double temperature;     /* 0 or more: scales the noise that the chain starts from */
    double noise_scale;     /* 0 or more: scales the noise of the steps */
    const double* noise_scales;  /* [noise_scales_count], one a step in place of noise_scale; or NULL */
    int64_t noise_scales_count;
    double eps_scale;       /* 0 or more: scales eps wherever it is used */
    const double* eps_scales;    /* [eps_scales_count], one a step in place of eps_scale; or NULL */
    int64_t eps_scales_count;
    double guidance;        /* w in e_c + w (e_c - e_u), finite; not 0 doubles the work; 0 where nothing has a null */
    int64_t guidance_interval[2];  /* low and high, 0 .. T - 1, both included: the timesteps that are guided; the others cost what
                                    * they do without guidance. As initialised, both unset: all */
    const char* variance;   /* "fixedlarge", "fixedsmall" or, where the network has it, "learned_range" (ddpm); NULL: the
                               bundle's own */
    int32_t quantize_denoised;  /* 0 (as initialised), or 1: replace each row's prediction of the end by the nearest codes of the
                                 * bundle's codebook, where it has one */
    double guide_scale;     /* what the gradient of the bundle's guides (a classifier's, say) is multiplied by, finite; 0 runs none.
                             * With "ddim_clipped" and "ddpm", where the bundle has a guide */
    const char* guide_mode; /* "constant"; "entropy": times log K / H, H the entropy of each sample's K classes; "norm": the gradient
                             * at the length of each sample's step */
    int64_t guide_interval[2];  /* low and high, 0 .. T - 1, both included: the timesteps whose rows run a guide; unset: all */
    const char* regularise; /* "off"; "after": each step but the last is followed by the bundle's second network, which predicts the
                             * clean state from the step's result and noises it afresh; "before": the state is replaced by the own
                             * network's prediction noised afresh, and the second network takes the step. Its rows come on top of
                             * steps. With "ddim", "ddim_clipped" and "ddpm" */
    int64_t regularise_interval[2];  /* low and high, 0 .. T - 1, both included: the timesteps at which it runs; unset: all */
    int32_t clip;           /* 1 (as initialised): limit each row's prediction of the end as the pipeline says; 0: do not */
    const char* prior;      /* what the drawn input comes from: "bundle", its fitted density, or "standard", N(0, I); NULL:
                             * the bundle's where it has one. Refused where no input is drawn */

    /* Arrays by name, every value finite: inputs that the bundle declares, [n, ...], or [1, ...] for all samples; "x_T", float32
     * [n or 1, C, H, W], the unit Gaussian that the start's coefficients multiply; "noise", float32 [R, n or 1, C, H, W], in
     * the order used, from the noisiest row to the last, read in the rows that add noise. */
    const diffusevae_array* inputs;  /* [inputs_count], or NULL */
    int64_t inputs_count;

    diffusevae_callback callback;  /* or NULL */
    void* user;                    /* handed to the callback */

    /* A budget of time in place of what stands down to t_start: the best setting fitted to the bundle that keeps it in 99 of 100
     * runs here. The first request of a size measures a few runs; those that follow are booked, for clones too. */
    double budget_ms;              /* above 0: milliseconds from call to return */
    int32_t at_most;               /* 0 or 1: where none keeps the budget take the fastest; otherwise that is DEADLINE */
    int32_t anytime;               /* 0 or 1: end a chain that is late with the last row's x0 */
    /* Directions that the drawn input, drawn or given, is moved along before anything is made of it. */
    const diffusevae_edit* edits;  /* [edits_count], each name once; or NULL */
    int64_t edits_count;
    /* Texts in place of the input info.text_input, UTF-8: one for all samples, or one each. What is too long for it is cut. Latin,
     * Greek, Cyrillic, Chinese, Japanese and Korean text becomes the ids of Python's `text=`; other scripts are refused. */
    const char* const* texts;  /* [texts_count], or NULL */
    int64_t texts_count;
} diffusevae_sample_options;

DIFFUSEVAE_API void diffusevae_sample_options_init(diffusevae_sample_options* options);

/* Wall-clock milliseconds of one run by stage, summed over its chunks. */
typedef struct diffusevae_timings {
    double before_ms;      /* graphs before the loop */
    double rows_ms;        /* the table of timesteps */
    double noise_ms;       /* drawing an input and x_T; the rows' noise is part of update_ms */
    double network_ms;     /* the step's network, and its guides, all rows */
    double first_step_ms;  /* of that, the first row: it may pay for one-off preparation */
    double update_ms;      /* the solver's arithmetic */
    double after_ms;       /* graphs after the loop */
    double post_ms;        /* rounding to pixels, and copies of results */
    double total_ms;
    int64_t network_calls; /* evaluations of the step's network */
    int64_t chunks;        /* pieces that the batch was cut into */
} diffusevae_timings;

/* What became of a budget of time. */
typedef struct diffusevae_deadline {
    double budget_ms;      /* what was asked for; DIFFUSEVAE_UNSET_NUMBER: nothing, and the other fields are 0 */
    double expected_ms;    /* what 99 of 100 runs of the chosen setting keep */
    double took_ms;        /* from call to return */
    int64_t calls;         /* of the network: those of the setting */
    int64_t done;          /* those that were made for every image; fewer with anytime */
    int32_t kept;          /* 1: the images were there in time */
} diffusevae_deadline;

/* Where the results go. */
typedef struct diffusevae_result {
    size_t size;

    /* The arrays that are wanted, of the names and kinds that diffusevae_output lists, each name once a dtype. shape[0] is the
     * room: n or more (of "timesteps" and "step_ms": R or more, with a budget that of any fitted setting); the other sizes are
     * exact. After OK shape[0] is what was written. */
    diffusevae_array* outputs;  /* [outputs_count], or NULL */
    int64_t outputs_count;

    /* Set by diffusevae_sample. */
    int64_t n;
    int64_t rows;            /* R */
    diffusevae_setting setting;
    diffusevae_timings timings;
    diffusevae_deadline deadline;
} diffusevae_result;

DIFFUSEVAE_API void diffusevae_result_init(diffusevae_result* result);

/* Sample: take the inputs, given or drawn, through the bundle's pipeline. options: NULL for what _init sets. */
DIFFUSEVAE_API diffusevae_status diffusevae_sample(diffusevae_sampler* sampler, const diffusevae_sample_options* options,
                                                   diffusevae_result* result);

/* Fill in the part of each image that its mask marks. Among the inputs, beside those of a sample:
 *     "images"       uint8 [n, H, W, C] or [H, W, C], or float32 [n, C, H, W] in 0 .. 1
 *     "masks"        one each or one for all, of the images' size: uint8 [n, H, W, 1], [n, H, W] or [H, W], where 128 and above
 *                    is to be filled in, or float32 [n, 1, H, W] in 0 .. 1. The state's is taken by nearest
 *     "known_noise"  float32 [R, n or 1, C, H, W] of the state, or none: what the known state is noised with, in place of the
 *                    seeds' own stream for it
 * A bundle that takes an image and a mask (inputs that are pictures) is handed them. Any other whose state is the image, or whose
 * encoder makes the state, is kept to what is known: before each row x is replaced outside of the mask by the known state, noised
 * afresh to the row's level. Inputs that are missing are then encoded from the images; with t_start the chain starts from the noised
 * start value, or without one from the noised images. The graphs that encode are loaded for the first such request.
 * composite: 0 or 1: whether the result "images" are the given ones outside of the mask (a mask between 0 and 1 mixes); "x" is
 * what the chain made. n, budget_ms, at_most and anytime are left unset. */
DIFFUSEVAE_API diffusevae_status diffusevae_inpaint(diffusevae_sampler* sampler, const diffusevae_sample_options* options,
                                                    int32_t composite, diffusevae_result* result);

/* ---- cascades --------------------------------------------------------------------------------------------------------- */

/* As a stage of a cascade: one sample of each of the "images" among the inputs, uint8 [n, H, W, C] or [H, W, C], or float32
 * [n, C, H, W] in 0 .. 1, of the size that the bundle takes or smaller: they are enlarged, bilinear between the centres of pixels.
 * A bundle with exactly one input that is a picture is handed them as that. Any other whose state is the image, or whose encoder
 * makes the state, starts from them, image to image: they stand for the pipeline's start value where it has one, and otherwise
 * there must be a t_start; inputs that are missing are encoded from them.
 * noise_level: 0 .. T - 1, or DIFFUSEVAE_UNSET, which is 0: the bundle takes sqrt(alpha_bar) image + sqrt(1 - alpha_bar) noise,
 * alpha_bar that of this timestep and the noise of a stream of its own; and the level itself, where it has an input for it. 0: the
 * images as they are. n, budget_ms, at_most and anytime are left unset. */
DIFFUSEVAE_API diffusevae_status diffusevae_upscale(diffusevae_sampler* sampler, const diffusevae_sample_options* options,
                                                    int64_t noise_level, diffusevae_result* result);

/* What diffusevae_upscale would answer to these options and images, but for its outputs, without a run: what is in the images does
 * not matter. So the options of all stages can be checked before the first of them runs. */
DIFFUSEVAE_API diffusevae_status diffusevae_check_upscale(const diffusevae_sampler* sampler, const diffusevae_sample_options* options,
                                                          int64_t noise_level);

/* Open the bundle that the last of these stages names next (`diffusevae cascade` writes that), which lies beside it. *next is NULL
 * where it names none, and where the status is not OK: BUNDLE for one that is missing, another than was named, leads back to one of
 * the stages, or does not fit. stages: [count], from the first on. options: as for diffusevae_open. */
DIFFUSEVAE_API diffusevae_status diffusevae_open_next(const diffusevae_sampler* const* stages, int64_t count,
                                                      const diffusevae_open_options* options, diffusevae_sampler** next);

/* BUNDLE where these are no cascade: fewer than two or too many, one cannot take the images of the one before it, or an input of one
 * name differs in dtype or shape, or has no range in common. */
DIFFUSEVAE_API diffusevae_status diffusevae_check_stages(const diffusevae_sampler* const* stages, int64_t count);

/* How a bundle records that the next one is sampled; unset where it does not say. */
typedef struct diffusevae_stage_options {
    size_t size;
    int64_t steps, t_start, noise_level;
    double guidance;
} diffusevae_stage_options;

DIFFUSEVAE_API void diffusevae_stage_options_init(diffusevae_stage_options* options);

/* What `before` records for `after`; all unset where it names another bundle, or none. */
DIFFUSEVAE_API diffusevae_status diffusevae_get_stage_options(const diffusevae_sampler* before, const diffusevae_sampler* after,
                                                              diffusevae_stage_options* options);

/* The inputs that diffusevae_upscale makes of the images: the picture, and the noise level that the network is told; NULL where there
 * is none. Valid while the sampler is. */
typedef struct diffusevae_stage_inputs {
    size_t size;
    const char *picture, *level;
} diffusevae_stage_inputs;

DIFFUSEVAE_API void diffusevae_stage_inputs_init(diffusevae_stage_inputs* inputs);
DIFFUSEVAE_API diffusevae_status diffusevae_get_stage_inputs(const diffusevae_sampler* sampler, diffusevae_stage_inputs* inputs);

/* The seeds of a cascade's stage, counted from 0, from those of its first, [n] each. seeds may be into. */
DIFFUSEVAE_API diffusevae_status diffusevae_stage_seeds(const uint64_t* seeds, int64_t n, int64_t stage, uint64_t* into);

/* ---- while it runs ---------------------------------------------------------------------------------------------------- */

/* Within a callback of this sampler: the images that the x0 makes which it is looking at, as the last row's would be; the calls
 * after the loop (a decoder's, say) run for it, and only then. images: uint8 [n, H, W, C] under the name "images", room for
 * step->n or more. The run and its results stay as they are. */
DIFFUSEVAE_API diffusevae_status diffusevae_preview(diffusevae_sampler* sampler, diffusevae_array* images);

/* Stop the run that is in progress before its next row; it returns DIFFUSEVAE_CANCELLED unless it was in its last one.
 * Without effect on runs that begin later. From any thread and from signal handlers; NULL is fine. */
DIFFUSEVAE_API void diffusevae_cancel(diffusevae_sampler* sampler);

/* ---- the step table --------------------------------------------------------------------------------------------------- */

/* The coefficients of a chain, as whole-sampler graphs take them; one row is one call of the network:
 *     e  = sum of weight * e of each lane
 *     x0 = limit(p . (x, e, c, y, h1, h2, h3), clip)
 *     x' = k . (x0, x, e, c, n, y, h1, h2, h3, g),   y' = q . (the same);   push puts e (1) or x0 (2) in front of h1, h2, h3
 * A row is p_x p_e p_c p_y p_h1 p_h2 p_h3, k_x0 k_x k_e k_c k_n k_y k_h1 k_h2 k_h3 k_g, q_x0 .. q_g, clip c_in push, from
 * x = k_noise x_T + k_start start + k_centre centre. */
typedef struct diffusevae_step_table {
    size_t size;
    int64_t capacity;      /* rows that the arrays have room for: R or more */
    int64_t* timesteps;    /* int64 [R], or NULL */
    float* rows;           /* float32 [R, DIFFUSEVAE_ROW_FIELDS], or NULL */
    float* weights;        /* float32 [R, lanes], room for 2 lanes where guidance may be other than 0; or NULL */
    int64_t* nets;         /* int64 [R], 1 where the regulariser is called and 0 elsewhere; or NULL */

    /* Set by diffusevae_get_step_table. */
    int64_t calls;         /* R */
    int64_t lanes;         /* 1, or 2 with guidance: the inputs, and their nulls */
    double k_noise;
    double k_start;
    double k_centre;
    diffusevae_setting setting;
} diffusevae_step_table;

DIFFUSEVAE_API void diffusevae_step_table_init(diffusevae_step_table* table);

/* The table that diffusevae_sample would run with these options. Without arrays it tells R and lanes (capacity is then not
 * looked at). Of the options, only the setting counts, from steps to prior, and whether the input that would be drawn is given. */
DIFFUSEVAE_API diffusevae_status diffusevae_get_step_table(const diffusevae_sampler* sampler,
                                                           const diffusevae_sample_options* options,
                                                           diffusevae_step_table* table);

#ifdef __cplusplus
}
#endif

#endif /* DIFFUSEVAE_H */
