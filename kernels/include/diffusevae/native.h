/* C interface of the native CPU engine, backend `native`; kernels/native/README.md explains a program.
 *
 * A program is four flat arrays (ports, tensors, ops, blobs) and one block of packed weights. dv_native_open checks all of it,
 * lays memory out once and copies the arrays; the weights stay where they are (a mapped file) until the last handle over
 * them is closed. Every function returns a DV_NATIVE_ status and, where it is not OK, a sentence in `error`; none of them
 * throws, exits or trusts a program. One handle serves one thread at a time (a second one is answered
 * DV_NATIVE_BUSY); clones share layout and weights.
 */
#ifndef DIFFUSEVAE_NATIVE_H
#define DIFFUSEVAE_NATIVE_H

#include <stddef.h>
#include <stdint.h>

#include "diffusevae/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Raised whenever a program's structs, numbers or packed layouts change; a program of another version is refused. */
#define DV_NATIVE_VERSION 6

#define DV_NATIVE_MAX_SOURCES 4  /* tensors that one operation may concatenate */
#define DV_NATIVE_MAX_THREADS 256
#define DV_NATIVE_NONE (-1)      /* in any number or offset below: absent */

enum dv_native_status {
    DV_NATIVE_OK = 0,
    DV_NATIVE_BAD_PROGRAM = 1,   /* the program or its weights do not hold together */
    DV_NATIVE_BAD_CALL = 2,      /* arguments of a call */
    DV_NATIVE_NO_MEMORY = 3,
    DV_NATIVE_NO_THREADS = 4,
    DV_NATIVE_UNSUPPORTED = 5,   /* this processor or operating system lacks the instruction set */
    DV_NATIVE_BUSY = 6,          /* another thread is inside this handle */
    DV_NATIVE_FORKED = 7,        /* the handle was opened in another process: open it again in this one */
    DV_NATIVE_NOT_FINITE = 8,    /* dv_native_run_steps: NaN or infinity; `failed_step` says where */
    DV_NATIVE_CANCELLED = 9,     /* dv_native_run_steps: `stop` ended it before row `failed_step` was done */
    DV_NATIVE_PAUSED = 10        /* the slice is over, see dv_native_slice: the same call again goes on */
};

/* What a caller hands in and gets back, one array a port. Float arrays are contiguous float32. */
enum dv_native_port_kind {
    DV_NATIVE_PORT_MAP = 1,      /* float32 [batch, channels, height, width] */
    DV_NATIVE_PORT_ROW = 2,      /* float32 [1 or batch, channels]: what the timestep contributes; input only, at most one */
    DV_NATIVE_PORT_STEPS = 3,    /* int64 [steps]: timesteps; input only */
    DV_NATIVE_PORT_TABLE = 4,    /* float32 [steps, channels], or [steps, batch, channels] (see rows below) */
    DV_NATIVE_PORT_TOKENS = 5,   /* float32 [batch, height, channels]: `height` tokens */
    DV_NATIVE_PORT_IDS = 6       /* int64 [batch, height, width]: numbers of rows in a stored table; channels = 1, input only */
};

typedef struct dv_native_port {
    int32_t kind;
    int32_t is_output;           /* 0 input, 1 output */
    int32_t channels, height, width;  /* height = width = 1 unless a map or ids; of tokens width = 1 */
    int32_t rows;                /* DV_NATIVE_PORT_TABLE: a dv_native_rows; 0 otherwise */
} dv_native_port;

/* A tensor is a value inside the program: a map of bf16 in blocks of 32 channels, or float32 rows. */
enum dv_native_rows {
    DV_NATIVE_ROWS_NONE = 0,     /* a map: one image a sample */
    DV_NATIVE_ROWS_STEPS = 1,    /* float32 [steps, channels] */
    DV_NATIVE_ROWS_BATCH = 2,    /* float32 [batch, channels] */
    DV_NATIVE_ROWS_PAIRS = 3     /* float32 [steps, batch, channels] */
};

typedef struct dv_native_tensor {
    int32_t rows;                /* a dv_native_rows */
    int32_t channels;            /* real channels; storage is padded to 32 with zeros */
    int32_t height, width;       /* 1 for rows */
} dv_native_tensor;

enum dv_native_op_kind {
    DV_NATIVE_INPUT = 1,         /* input ports, concatenated -> map; tokens -> map of a token a row */
    DV_NATIVE_CONV = 2,          /* maps -> norm -> activation -> convolution + what is added -> map or output port */
    DV_NATIVE_ATTENTION = 3,     /* map [q | k | v], or maps q and [.. k | v ..] -> map */
    DV_NATIVE_POOL = 4,          /* average over factor x factor, or filtered to half the size */
    DV_NATIVE_UPSAMPLE = 5,      /* nearest neighbour by factor, or filtered to twice the size */
    DV_NATIVE_LOOKUP = 6,        /* timesteps -> rows of a stored table */
    DV_NATIVE_LINEAR = 7,        /* rows -> activation -> matrix -> rows or output port, float32 throughout */
    DV_NATIVE_ADD = 8,           /* rows of steps + rows of batch -> rows of pairs */
    DV_NATIVE_EMBED = 9,         /* ids -> rows of a stored table + a row a place, as a map or to a port */
    DV_NATIVE_NEAREST = 10,      /* input port (a map) -> the nearest row of a stored table at every pixel, to a port */
    DV_NATIVE_NORM_GRADIENT = 11,      /* the map that a norm saw, the gradient behind its activation -> the gradient at the map */
    DV_NATIVE_ATTENTION_GRADIENT = 12, /* map [q | k | v], the gradient at what attention gave -> the gradient at [q | k | v] */
    DV_NATIVE_CLASSIFY = 13,     /* map, label -> the gradient of the label's log-probability at the map, and the entropy to a port */
    DV_NATIVE_NORM = 14          /* maps -> norm, scaled and shifted by a map where there is one -> activation -> map */
};

/* Whether an operation's sources are ports, not tensors. */
static inline int dv_native_reads_ports(int32_t kind) {
    return kind == DV_NATIVE_INPUT || kind == DV_NATIVE_LOOKUP || kind == DV_NATIVE_EMBED || kind == DV_NATIVE_NEAREST;
}

enum dv_native_activation {
    DV_NATIVE_IDENTITY = 0,
    DV_NATIVE_SILU = 1,
    DV_NATIVE_GELU = 2,          /* x Phi(x), by erf */
    DV_NATIVE_SIGMOID = 3,       /* output_activation only */
    DV_NATIVE_SIGNED_SIGMOID = 4, /* 2 sigmoid(x) - 1; output_activation only */
    DV_NATIVE_GEGLU = 5,         /* x gelu(y) of the sources' halves [x | y]: CONV of kernel 1 over one source without a norm */
    DV_NATIVE_RELU = 6           /* CONV, NORM */
};

/* A packed tensor inside the weights. */
enum dv_native_dtype {
    DV_NATIVE_F32 = 1,
    DV_NATIVE_BF16 = 2,
    DV_NATIVE_I8 = 3
};

typedef struct dv_native_blob {
    int64_t offset;              /* bytes from the start of the weights, a multiple of 64 */
    int64_t size;                /* bytes; what its reader needs, rounded up to 64 */
    int32_t dtype;               /* a dv_native_dtype */
} dv_native_blob;

/* One operation. Fields that a kind does not use are 0, or DV_NATIVE_NONE where they are numbers of tensors, ports or
 * blobs, or places in the row. */
typedef struct dv_native_op {
    int32_t kind;
    int32_t sources[DV_NATIVE_MAX_SOURCES];  /* tensors in the order of concatenation (INPUT, LOOKUP, EMBED, NEAREST: ports) */
    int32_t output;              /* tensor written, or NONE where output_port is */
    int32_t output_port;         /* CONV, LINEAR, EMBED, NEAREST: port written in float32, or NONE; CLASSIFY: the entropy's */

    int32_t kernel;              /* CONV: 1, 3, or 6 of stride 2; INPUT: 1, or 3 for patches of 3 x 3; POOL, UPSAMPLE by 2: 4 for the
                                    filter 1-3-3-1, else 0 */
    int32_t stride;              /* CONV: 1 or 2; EMBED: the mean over stride x stride ids is one pixel; INPUT: every stride-th
                                    pixel of maps, down and across */
    int32_t pad_top, pad_left;   /* CONV: 0 or 1, 2 of kernel 6; the far sides follow from the output's size */
    int32_t upsample;            /* CONV: 1 = nearest doubling before a 3 x 3, as four packed 2 x 2 */
    int32_t factor;              /* POOL, UPSAMPLE; LOOKUP, EMBED, NEAREST: rows of the stored table; CLASSIFY: classes;
                                    NORM_GRADIENT: the gradients are of the mean over factor x factor pixels; INPUT: 2 =
                                    what bf16 leaves out of the first port as well, in channels behind all others */

    int32_t offset;              /* INPUT of a MAP port of 1 x 1: which of its values the map begins with, or NONE: all of them */

    int32_t norm_groups;         /* CONV, NORM: GroupNorm over the concatenated sources; 0 = none. NORM_GRADIENT: that of its first source */
    int32_t norm_layer;          /* CONV of kernel 1 over one source: 1 = LayerNorm over the channels of each pixel */
    float norm_epsilon;
    int32_t norm_weight, norm_bias;  /* blobs, float32 [channels of all sources]; NONE without a norm */
    int32_t scale_row;           /* norm * (1 + row[scale_row + c]) + row[scale_row + channels + c], or NONE */
    int32_t modulation;          /* NORM: map [g | b] of 2 C channels, norm * (1 + g) + b before the row's scale, or NONE */
    int32_t activation;          /* applied to the sources: CONV after the norm, LINEAR; NORM, NORM_GRADIENT: behind the norm */

    int32_t weights;             /* blob, packed; LOOKUP, EMBED: float32 [factor, channels]; CLASSIFY: as LINEAR's */
    int32_t bias;                /* blob, float32 [phases, outputs padded], or NONE; EMBED: float32 [pixels, channels], or NONE */
    int32_t bias_row;            /* adds row[bias_row + c] to every pixel, or NONE */
    int32_t residual;            /* tensor of the output's shape that is added (NORM_GRADIENT: of the gradient's shape), or NONE */
    float residual_scale;        /* CONV with a residual: what it is multiplied by */
    int32_t skip_sources[DV_NATIVE_MAX_SOURCES];  /* maps of the output's size through a 1 x 1 without norm, then NONE */
    int32_t skip_weights;        /* blob, packed bf16, or NONE */
    int32_t output_activation;   /* CONV to a port: IDENTITY, SIGMOID or SIGNED_SIGMOID */

    int32_t int8;                /* CONV: 1 = u8 x s8 products (the skip stays bf16) */
    int32_t zero_point;          /* 0..255, also what padding positions hold */
    float inverse_scale;         /* u8 = clamp(round(value * inverse_scale + zero_point)) */
    int32_t multiplier;          /* blob, float32 [phases, outputs padded]: activation scale * weight scale */

    int32_t heads;               /* ATTENTION, ATTENTION_GRADIENT; CLASSIFY: of its attention over the pixels, or 0 for their mean */
    int32_t keys;                /* ATTENTION with a second source: the channel of it where the keys begin, the values behind */
    float scale;                 /* ATTENTION and where heads are: factor of q k^T; NEAREST: what the port's values are multiples of */

    int32_t labels;              /* CLASSIFY: port of one id a sample, or NONE */
    int32_t places;              /* CLASSIFY with heads: blob, float32 [1 + pixels, channels], added to the mean and to the pixels */
} dv_native_op;

typedef struct dv_native_program {
    int32_t version;             /* DV_NATIVE_VERSION */
    int32_t ports_count, tensors_count, ops_count, blobs_count;
    const dv_native_port* ports;
    const dv_native_tensor* tensors;
    const dv_native_op* ops;
    const dv_native_blob* blobs;
    const void* weights;         /* 64-byte aligned; not copied */
    int64_t weights_size;
} dv_native_program;

typedef struct dv_native dv_native;

/* A run in slices, for a caller who has something to look after meanwhile: with `ms` other than 0 a run returns PAUSED between
 * two tiles of samples, or two rows, once so many milliseconds are over, and the same struct handed in again goes on from there.
 * The bits are the same. Between two slices the handle must not run anything else. */
typedef struct dv_native_slice {
    double ms;                   /* 0: run to the end */
    double left_ms;              /* out: when it returned PAUSED, by the system's monotonic clock */
    int64_t rows, samples;       /* 0 at first: rows of the table and samples of the batch that are done */
} dv_native_slice;

/* What one run gets. `ports` holds one pointer a port, in the program's order. */
typedef struct dv_native_call {
    void* const* ports;
    int32_t ports_count;
    int32_t row_count;           /* rows of the ROW port: 1 (shared) or batch; 0 where there is no such port */
    int64_t batch;               /* any size from 1: worked off in tiles, so memory does not grow with it */
    int64_t steps;               /* length of the STEPS port; 0 where there is none */
    dv_native_slice slice;
} dv_native_call;

/* The loop of a sampler in one call: S rows of a step table, each of them the network and then dv_update, for `samples`
 * samples. The network works on lanes, one behind the other: a batch of lanes * samples, in which lane l has the caller's
 * constants and embeddings of its own. A row whose weights beyond lane 0 are all 0 runs lane 0 alone. */
typedef struct dv_native_steps {
    int32_t x_port, row_port, e_port, v_port;  /* row_port, v_port: NONE where the program has none */
    int32_t constants_count;     /* of the other input ports: what stays the same in all rows */
    const int32_t* constant_ports;
    const float* const* constants;     /* [lanes * samples, ...] a port */
    int32_t steps;               /* rows S */
    int32_t row_count;           /* 1 or lanes * samples */
    int32_t lanes;
    int32_t samples;
    const float* embeddings;     /* [steps, row_count, channels of the row port] */
    const float* rows;           /* [steps, 31], struct Row of row.h; no guide: k_g = q_g = 0 */
    const float* weights;        /* [steps, lanes] */
    float* x;                    /* [samples, C, H, W]: the start in, x_0 out */
    float* x_in;                 /* [lanes * samples, C, H, W] scratch, or null where one lane is given x itself throughout */
    const float* c;              /* [samples, C, H, W], the centre, or null */
    float* e;                    /* [lanes * samples, C, H, W] scratch */
    float* v;                    /* [lanes * samples, C, H, W] scratch, or null without v_port */
    float* x0;                   /* [samples, C, H, W], x0 of the last row out, or null */
    float* y;                    /* [samples, C, H, W] scratch, or null where no row has y */
    float* h;                    /* [3, samples, C, H, W] scratch, or null where no row pushes or has h1, h2, h3 */
    const uint64_t* seeds;       /* [samples], or null with noise */
    const float* noise;          /* [steps, samples or 1, C, H, W], or null: generated from seeds */
    int32_t noise_shared;        /* 1: noise is [steps, 1, ...] */
    int64_t first_step;          /* added to the step number of generated noise */
    double* step_ms;             /* [steps] milliseconds of the network alone, or null */
    double* update_ms;           /* sum over the updates, or null */
    int32_t (*stop)(void*);      /* asked before every row and tile; other than 0 ends the run as CANCELLED. May be null */
    void* stop_user;
    int32_t failed_step;         /* out: first row whose e was not finite, or that a stop left undone; else -1 */
    dv_native_slice slice;
} dv_native_steps;

/* Time spent in one operation since dv_native_profile switched it on: seen by the first thread, barriers included. */
typedef struct dv_native_timing {
    double prepare_us, product_us;   /* norm + activation + layout, then products + epilogue; other kinds: product_us */
    double flop;                     /* useful operations, all runs; in Winograd's form 16 products for 4 pixels, not 36 */
    double weight_bytes;             /* packed weights read at least once, all runs */
    double activation_bytes;         /* maps read and written, all runs */
    int64_t runs;
} dv_native_timing;

DV_API int32_t dv_native_version(void);

/* The best instruction set of this machine: "amx", "avx512_bf16", "avx512", "avx2", or "" where none of them runs. */
DV_API const char* dv_native_isa(void);

/* Whether this machine runs `isa`; where not, `why` says what is missing. */
DV_API int32_t dv_native_supports(const char* isa, char* why, size_t why_size);

/* isa: one of these names, or null for the best. threads: 1..256. */
DV_API int32_t dv_native_open(const dv_native_program* program, const char* isa, int32_t threads, dv_native** handle,
                              char* error, size_t error_size);

/* Another handle over the same layout and weights, with its own memory and threads; a handle of another process is fine:
 * that is how a forked child gets a working one. */
DV_API int32_t dv_native_clone(const dv_native* handle, int32_t threads, dv_native** clone, char* error, size_t error_size);

/* Ends the threads and gives the memory back; null is fine. Not while another thread is inside. */
DV_API void dv_native_close(dv_native* handle);

DV_API int32_t dv_native_run(dv_native* handle, dv_native_call* call, char* error, size_t error_size);
DV_API int32_t dv_native_run_steps(dv_native* handle, dv_native_steps* steps, char* error, size_t error_size);

typedef struct dv_native_info {
    const char* isa;             /* what this handle runs on */
    int32_t threads;
    int32_t batch_tile;          /* samples worked on at a time */
    int64_t arena_bytes;         /* this handle's activations and scratch */
    int64_t weights_bytes;       /* shared */
} dv_native_info;

DV_API void dv_native_describe(const dv_native* handle, dv_native_info* info);

/* on = 1 clears and starts the clocks, 0 stops them. */
DV_API int32_t dv_native_profile(dv_native* handle, int32_t on);

/* Copies up to `count` entries, one an operation in the program's order; returns the number of operations. */
DV_API int32_t dv_native_timings(const dv_native* handle, dv_native_timing* timings, int32_t count);

/* What the machine could do, for a roofline: runs for about `seconds` and stores operations (2 per multiply-add) or bytes a
 * second. what: "bf16_l2", "int8_l2" (this instruction set's products as the convolutions do them, operands from L2),
 * "f32_l2" (the same in float32; UNSUPPORTED on amx, which has no such unit) or "stream" (reading a buffer far larger
 * than the caches). isa: null for the best. */
DV_API int32_t dv_native_ceiling(const char* what, const char* isa, int32_t threads, double seconds, double* result,
                                 char* error, size_t error_size);

#ifdef __cplusplus
}
#endif

#endif /* DIFFUSEVAE_NATIVE_H */
