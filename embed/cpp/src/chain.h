// How is an image sampled? The loop of DiffuseVAE's second stage over one chunk of samples.
//
// The solver is not here: each step applies one row of a StepTable, so DDIM, DDPM, both formulations and truncated chains
// all run through the same lines.
#ifndef DIFFUSEVAE_CHAIN_H
#define DIFFUSEVAE_CHAIN_H

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "diffusevae.h"
#include "backends/graph.h"
#include "steps.h"

namespace diffusevae {

// Channels, height and width of an image.
struct Shape {
    int64_t channels, height, width;
    int64_t pixels() const { return height * width; }
    int64_t count() const { return channels * pixels(); }
};

// The buffers of one chunk; they grow to the largest chunk that ran. With guidance there are twice as many lanes as samples:
// lane n + i is sample i without its condition (all zeros, as in training).
struct Workspace {
    Workspace(int64_t samples, Shape image) : n(samples), lanes(samples), shape(image) {}

    // Room for n samples; the upper half of cond, where there is one, is set to zeros.
    void prepare(int64_t samples, bool guided, bool conditional, bool keep_x0);

    int64_t n, lanes;
    Shape shape;
    std::vector<float> x, cond, eps;  // [lanes, C, H, W]; cond is empty for an unconditional model
    std::vector<float> x0, x0_prev;   // [n, C, H, W], or empty where nobody looks
    std::vector<float> z;             // [lanes, z_dim], or empty
};

// What a run of the loop needs beside its buffers; all of it is decided before the first step.
struct Chain {
    const StepTable& table;
    Graph& denoiser;
    const float* embeddings;     // [S, row_count, row_width]: the timestep table's rows, one slice a step
    int64_t row_count, row_width;
    const uint64_t* seeds;       // [n]: each sample's noise stream
    const float* noise;          // this chunk's part of a caller's noise in place of the seeds' streams, or null
    int64_t noise_step, noise_sample;  // elements from one step's noise to the next, and from one sample's (0: shared)
    float guidance;
    int threads;
    int64_t first;               // of the samples of this chunk in the batch
    diffusevae_callback callback;
    void* user;
    const std::atomic<bool>& cancelled;
    std::string where;           // names backend and precision in messages
};

// work.x = k_noise x_T + k_image cond + k_cond cond, with x_T [n, C, H, W] or one for all where `shared`; may be work.x.
void start_state(const StartRow& start, const float* x_T, bool shared, Workspace& work);

// Takes work.x from x_T to x_0 in place. Error: NUMERICS when the denoiser returns NaN or infinity, CANCELLED when the
// callback or diffusevae_cancel asks to stop. step_ms [S], or null, and timings are added to.
void run_chain(const Chain& chain, Workspace& work, diffusevae_timings& timings, double* step_ms);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_CHAIN_H
