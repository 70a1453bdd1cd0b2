// Backends and graphs: what a runtime offers, whichever it is. A backend loads the graphs of a bundle, each of which fills
// output arrays from input arrays; a graph may also run the whole loop of a sampler in one call.
#ifndef DIFFUSEVAE_BACKENDS_GRAPH_H
#define DIFFUSEVAE_BACKENDS_GRAPH_H

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "diffusevae.h"

namespace diffusevae {

class Bundle;
struct EngineSpec;

// The numbers of diffusevae.h.
enum class Dtype : int32_t {
    kFloat32 = DIFFUSEVAE_FLOAT32,
    kInt64 = DIFFUSEVAE_INT64,
    kUint8 = DIFFUSEVAE_UINT8,
    kUint64 = DIFFUSEVAE_UINT64,
    kFloat64 = DIFFUSEVAE_FLOAT64
};

// A contiguous array that lies elsewhere, under the name that the manifest gives a graph's input or output.
struct Array {
    Array(const char* its_name, Dtype type, const void* at, const std::vector<int64_t>& dims)
        : name(its_name), dtype(type), data(const_cast<void*>(at)), rank(dims.size()), shape{} {
        std::copy_n(dims.begin(), std::min<size_t>(rank, DIFFUSEVAE_MAX_RANK), shape);
    }

    const char* name;
    Dtype dtype;
    void* data;  // written by a graph where it is an output, only then
    size_t rank;
    int64_t shape[DIFFUSEVAE_MAX_RANK];
};

// The arrays of one call: every input and every output of the graph, once, in any order.
using Arrays = std::vector<Array>;

// A whole chain: every row of a step table over the step's graph. Arrays are contiguous float32, samples n, lanes L.
struct Loop {
    const char *x_port, *row_port, *e_port, *v_port;  // row_port, v_port: null where the graph has none
    Arrays constants;                        // of the other inputs, [L * n, ...]
    int64_t calls, lanes, samples;
    int64_t row_count;                       // 1 or L * n
    const float* embeddings;                 // [calls, row_count, width]
    const float *rows, *weights;             // [calls, 31], [calls, L]
    float *x, *x_in, *e, *v;                 // [n, ...] in and out; [L * n, ...] scratch; x_in and v may be null
    const float* c;                          // [n, ...] or null
    float *y, *h;                            // [n, ...], [3, n, ...] scratch, or null where no row uses them
    const uint64_t* seeds;                   // [n]
    const float* noise;                      // [calls, n or 1, ...] in place of the seeds' streams, or null
    bool noise_shared;
    int32_t (*stop)(void*);                  // asked before each row; other than 0 ends the run
    void* stop_user;

    std::vector<double> step_ms;             // out: milliseconds of the network in each row
    double update_ms = 0.0;                  // out
    int64_t failed = 0;                      // out: the row after which a run was not finite, or that a stop left undone
};

enum class LoopEnd { kUnavailable, kDone, kNotFinite, kStopped };

// One graph of a bundle, ready to run. One thread at a time; a clone has states and threads of its own over the same
// weights. Throws Error(DIFFUSEVAE_BACKEND) when the runtime fails, and can be used again after that.
class Graph {
public:
    virtual ~Graph() = default;

    // Reads the inputs and writes the outputs, all of them complete when it returns.
    virtual void run(const Arrays& arrays) = 0;

    // The whole loop in one call; kUnavailable, and nothing done, where the runtime has no such call.
    virtual LoopEnd run_loop(Loop&) { return LoopEnd::kUnavailable; }

    virtual std::unique_ptr<Graph> clone() const = 0;  // also while this one runs in another thread

    virtual int64_t weight_bytes() const { return 0; }  // what clones share, where the runtime tells
};

// What a caller asked of a backend.
struct BackendRequest {
    std::string precision;  // or "auto"
    int threads;
};

// One runtime over one bundle; the bundle outlives it. Constructing one checks that it can run here, and in which precision.
class Backend {
public:
    virtual ~Backend() = default;

    virtual const char* name() const = 0;             // static texts
    virtual const char* precision() const = 0;        // the one obtained, never "auto"
    virtual const char* isa() const { return ""; }    // the instruction set, where this library chooses it
    virtual bool runs_guides() const { return true; } // whether graphs of guides run on it
    virtual bool runs_regulariser() const { return true; }  // whether a second network runs in the loop

    // A graph of the bundle, in the precision that the manifest gives it under this backend's.
    virtual std::unique_ptr<Graph> load(const std::string& graph) = 0;
};

// The backends, by name ("native", "openvino", "tensorrt"). Throws Error: ARGUMENT for an unknown name or precision, BACKEND
// for what this library was compiled without (the text names the CMake option), this machine or this bundle lacks.
std::unique_ptr<Backend> open_backend(const Bundle& bundle, const std::string& name, const BackendRequest& request);

using Runners = std::map<std::string, std::unique_ptr<Backend>>;  // by name

// The backend that runs a graph for another one: the first in `runs_on` of its engine that this library knows; from `open`, or
// opened and put there. Throws Error (BACKEND) where there is none, or where it was not compiled in.
Backend& open_runner(Runners& open, const Bundle& bundle, const EngineSpec& engine, int threads);

// One function a backend; the last two exist where CMake defines DIFFUSEVAE_WITH_OPENVINO, DIFFUSEVAE_WITH_TENSORRT.
std::unique_ptr<Backend> open_native(const Bundle& bundle, const BackendRequest& request);
std::unique_ptr<Backend> open_openvino(const Bundle& bundle, const BackendRequest& request);
std::unique_ptr<Backend> open_tensorrt(const Bundle& bundle, const BackendRequest& request);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_BACKENDS_GRAPH_H
