// The regulariser of a pipeline at work on one chunk of samples: its table of timesteps, and the network of its rows. As
// engine/backends/regulariser.py.
#ifndef DIFFUSEVAE_REGULARISER_H
#define DIFFUSEVAE_REGULARISER_H

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "backends/graph.h"
#include "bundle/pipeline.h"
#include "guides.h"
#include "steps.h"
#include "tensor.h"

namespace diffusevae {

class Regulariser {
public:
    explicit Regulariser(const std::optional<RegulariserSpec>& spec) : spec_(spec) {}

    // Makes the table of timesteps of these rows.
    void begin(const StepTable& table, const Guides::Call& call);

    // e of row i for x, both of this shape [n, C, H, W]; and the second output, where the network has one and there is room for it.
    void evaluate(Graph& graph, int64_t i, float* x, const std::vector<int64_t>& shape, float* e, float* v);

private:
    const std::optional<RegulariserSpec>& spec_;
    std::vector<int64_t> timesteps_;  // that rows_ belong to
    Tensor rows_;                     // [R, width]
    std::vector<float> unread_;       // a second output that no row reads
};

}  // namespace diffusevae

#endif  // DIFFUSEVAE_REGULARISER_H
