// Exported graphs: their entries in a manifest, checked. Which of them run when is the pipeline's business.
//
// A graph is kept under its name (float32) or under NAME.fp16. `sampler` is the whole pipeline as one graph, which a pipeline
// never names.
#ifndef DIFFUSEVAE_BUNDLE_GRAPHS_H
#define DIFFUSEVAE_BUNDLE_GRAPHS_H

#include <string>
#include <utility>
#include <vector>

#include "bundle/files.h"
#include "bundle/tensors.h"

namespace diffusevae {

constexpr const char* kManifestFile = "manifest.json";
constexpr const char* kSampler = "sampler";

extern const std::vector<std::string> kPrecisions;  // that a caller may ask for; a backend has some of them

struct GraphSpec : FileSpec {
    std::string key, precision;
    std::vector<TensorSpec> inputs, outputs;
    // {precision asked for, precision that this graph runs in}, where they differ.
    std::vector<std::pair<std::string, std::string>> compute;

    // The precision that this graph runs in when `asked` is what the caller wants.
    std::string computes_in(const std::string& asked) const;
};

// The name of the graph under a key: "denoiser" of "denoiser.fp16".
std::string graph_of(const std::string& key);

// The file, size and sha256 of an entry; size up to `limit`.
FileSpec parse_file(Fields& fields, int64_t limit);

std::vector<GraphSpec> parse_graphs(Fields fields);

// A graph in half takes and gives what the one in float32 does.
void check_twins(Fields& top, const std::vector<GraphSpec>& graphs);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_BUNDLE_GRAPHS_H
