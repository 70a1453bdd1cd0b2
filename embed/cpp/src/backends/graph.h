// What is a backend? Something that loads the graphs of a bundle, each of which fills output arrays from input arrays.
#ifndef DIFFUSEVAE_GRAPH_H
#define DIFFUSEVAE_GRAPH_H

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

namespace diffusevae {

class Bundle;

enum class Dtype { kFloat32, kInt64 };

// Somebody's contiguous array under the name that the manifest gives a graph's input or output.
struct Array {
    static constexpr size_t kMaxRank = 4;

    Array(const char* its_name, const float* at, std::initializer_list<int64_t> dims)
        : Array(its_name, Dtype::kFloat32, at, dims) {}
    Array(const char* its_name, const int64_t* at, std::initializer_list<int64_t> dims)
        : Array(its_name, Dtype::kInt64, at, dims) {}

    const char* name;
    Dtype dtype;
    void* data;  // written by a graph where it is an output, only then
    size_t rank;
    int64_t shape[kMaxRank];

private:
    Array(const char* its_name, Dtype type, const void* at, std::initializer_list<int64_t> dims)
        : name(its_name), dtype(type), data(const_cast<void*>(at)), rank(dims.size()), shape{} {
        std::copy_n(dims.begin(), std::min(rank, kMaxRank), shape);
    }
};

// The arrays of one call: every input and every output of the graph, once, in any order.
using Arrays = std::vector<Array>;

// One graph of a bundle, ready to run. One thread at a time; a clone has states and threads of its own over the same
// weights.
// Throws Error(DIFFUSEVAE_BACKEND) when the runtime fails, and can be used again after that.
class Graph {
public:
    virtual ~Graph() = default;

    // Reads the inputs and writes the outputs, all of them complete when it returns.
    virtual void run(const Arrays& arrays) = 0;

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

    // The graph of a role: "vae_decoder" (z -> image), "timestep_table" (timesteps, and z where the denoiser is conditioned
    // on it -> rows) or "denoiser" (x, cond where the model is conditional, row -> eps).
    virtual std::unique_ptr<Graph> load(const std::string& role) = 0;
};

// The backends, by name ("native", "openvino", "tensorrt"). Throws Error: ARGUMENT for an unknown name or precision, BACKEND
// for what this library was compiled without (the text names the CMake option), this machine or this bundle lacks.
std::unique_ptr<Backend> open_backend(const Bundle& bundle, const std::string& name, const BackendRequest& request);

// One function a backend; the last two exist where CMake defines DIFFUSEVAE_WITH_OPENVINO, DIFFUSEVAE_WITH_TENSORRT.
std::unique_ptr<Backend> open_native(const Bundle& bundle, const BackendRequest& request);
std::unique_ptr<Backend> open_openvino(const Bundle& bundle, const BackendRequest& request);
std::unique_ptr<Backend> open_tensorrt(const Bundle& bundle, const BackendRequest& request);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_GRAPH_H
