// The loop of a sampler over one chunk of samples: in one call of the backend where it has such a call, and nothing watches,
// quantises, guides, regularises or is blended in, else row by row from here.
//
// The solver is not here: each row of a StepTable says what one network call becomes, so every solver, prediction and guidance
// runs through these lines.
#ifndef DIFFUSEVAE_CHAIN_H
#define DIFFUSEVAE_CHAIN_H

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "backends/graph.h"
#include "bundle/pipeline.h"
#include "diffusevae.h"
#include "noise.h"
#include "request.h"
#include "steps.h"
#include "tensor.h"

namespace diffusevae {

// The buffers of one chunk; they grow to the largest chunk that ran.
struct Workspace {
    explicit Workspace(const StateSpec& state) : shape{0, state.channels, state.height, state.width} {}

    // Room for n samples and what this table uses. shows_x0: whether each row's x0 is to be seen; second: whether the network
    // has a second output.
    void prepare(int64_t samples, const StepTable& table, bool shows_x0, bool second);

    int64_t n = 0;
    std::vector<int64_t> shape;             // of x
    Tensor x, x0;                           // [n, C, H, W]; x0 where it is shown
    // [lanes * n, ...] thrice, [n, ...], [3, n, ...], [n, ...] twice; empty where not used
    std::vector<float> x_in, e, v, y, h, noise, fresh;  // fresh: what a known state is noised with
    std::vector<float> mean;                            // of a row that is guided at the length of its step
};

// This chunk's part of a caller's noise, or none.
struct ChainNoise {
    ChainNoise(const GivenNoise& given, int64_t n, int64_t begin, const StateSpec& state);  // n: samples of the whole request

    const float* of(int64_t row) const { return start ? start + row * row_stride : nullptr; }

    const float* start;
    int64_t row_stride, sample_stride;  // elements from one row's noise to the next, and from one sample's (0: shared)
};

// This chunk's part of what is known of the state.
struct ChainBlend {
    const float* known;          // [n, C, H, W]
    const float* keep;           // [n or 1, H, W]
    int64_t keep_stride;         // elements from one sample's to the next, 0: shared
    const float *signal, *sigma; // [R]
    ChainNoise noise;
};

// Makes the operand g of a row that takes a guide's gradient, of the network's second output and what makes the row's mean.
using Guide = std::function<const float*(int64_t row, const float* v, const std::function<const float*()>& mean)>;

// e of a row that calls the regulariser, for x [n, C, H, W]; and its second output where there is room for one.
using Second = std::function<void(int64_t row, float* x, float* e, float* v)>;

// What a run of the loop needs beside its buffers; all of it is decided before the first row.
struct Chain {
    const StepTable& table;
    Graph& graph;                // of the step
    const std::string& graph_name;
    const char *x_port, *row_port, *e_port, *v_port;  // row_port, v_port: null where the graph has none
    Arrays constants;            // what else it takes, [lanes * n, ...]
    const float* embeddings;     // [R, row_count, row_width]
    int64_t row_count, row_width;
    const float* centre;         // [n, C, H, W] or null
    const uint64_t* seeds;       // [n]: each sample's noise stream
    Layout layout;               // of that noise
    ChainNoise noise;
    int threads;
    int64_t first;               // of the samples of this chunk in the batch
    const Watch& watch;          // or none
    const std::function<void(Tensor&)>& quantize;  // makes of a row's x0 what is meant by it; or none
    const Guide& guide;          // or none
    const Second& second;        // or none
    const std::string& second_name;
    const std::optional<ChainBlend>& blend;
    const std::atomic<bool>& cancelled;
    std::string where;           // names backend and precision in messages
};

// "native, precision bf16"
std::string where_of(const Backend& backend);

// Takes work.x from the start to x_0 in place. Error: NUMERICS when the network returns NaN or infinity, CANCELLED when the
// watcher or diffusevae_cancel asks to stop. step_ms [R] and timings are added to.
void run_chain(const Chain& chain, Workspace& work, diffusevae_timings& timings, std::vector<double>& step_ms);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_CHAIN_H
