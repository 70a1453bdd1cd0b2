// Which graphs may a bundle hold, and what must each take and give? The part `graphs` of a manifest, checked.
//
// A graph is kept under its role (float32) or under ROLE.fp16. `sampler` is the whole chain as one graph.
#ifndef DIFFUSEVAE_MANIFEST_GRAPHS_H
#define DIFFUSEVAE_MANIFEST_GRAPHS_H

#include <string>
#include <variant>
#include <vector>

#include "files.h"
#include "manifest_model.h"

namespace diffusevae {

constexpr const char* kManifestFile = "manifest.json";
constexpr int64_t kMaxGraphBytes = (int64_t(1) << 31) - 1;  // a protobuf message, and so an ONNX file, ends below 2 GiB

extern const char* const kSampler;  // the role of the whole chain

using Dimension = std::variant<int64_t, std::string>;  // a name is a free dimension

struct TensorSpec {
    std::string name, dtype;
    std::vector<Dimension> shape;

    std::string text() const;  // "x float32[batch, 3, 32, 32]"
};

struct GraphSpec : FileSpec {
    std::string key, role, precision;
    std::vector<TensorSpec> inputs, outputs;
};

// The file, size and sha256 of an entry; size up to `limit`.
FileSpec parse_file(Fields& fields, int64_t limit);

// The required graphs first, then whatever else this version knows.
std::vector<GraphSpec> parse_graphs(Fields fields, const Model& model);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_MANIFEST_GRAPHS_H
