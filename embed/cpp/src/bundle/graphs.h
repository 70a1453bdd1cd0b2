// Exported graphs: their entries in a manifest, checked. Which of them run when is the pipeline's business.
//
// A graph is kept under its name (float32) or under NAME.fp16. `sampler` is the whole pipeline as one graph, which a pipeline
// never names.
#ifndef DIFFUSEVAE_BUNDLE_GRAPHS_H
#define DIFFUSEVAE_BUNDLE_GRAPHS_H

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bundle/files.h"
#include "bundle/tensors.h"

namespace diffusevae {

using Compute = std::vector<std::pair<std::string, std::string>>;  // {precision asked for, precision computed in}

struct Parity {};  // what was measured when the graph was exported: checked, and not kept

struct GraphSpec : FileSpec {
    std::string key, precision;
    std::optional<FileSpec> weights;  // the file of its large weights, where they do not fit into an ONNX file
    std::vector<TensorSpec> inputs, outputs;
    Compute compute;  // where the two differ

    // The precision that this graph runs in when `asked` is what the caller wants.
    std::string computes_in(const std::string& asked) const;
};

// The name of the graph under a key: "denoiser" of "denoiser.fp16".
std::string graph_of(const std::string& key);

std::string parse_file_name(Fields& fields, const char* key);  // not the manifest's
Compute parse_compute(Fields& fields, const char* key);
void parse_batches(Fields& fields, const char* key);
void parse_runtimes(Fields& fields, const char* key);

std::vector<GraphSpec> parse_graphs(Fields fields);

// A graph in half takes and gives what the one in float32 does.
void check_twins(Fields& top, const std::vector<GraphSpec>& graphs);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_BUNDLE_GRAPHS_H
