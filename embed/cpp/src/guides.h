// The guides of a pipeline at work on one chunk of samples: their tables of timesteps, and the gradient of a row, scaled by its mode.
// As engine/backends/guides.py and engine/solver/guides.py, to the same bits.
#ifndef DIFFUSEVAE_GUIDES_H
#define DIFFUSEVAE_GUIDES_H

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "bundle/pipeline.h"
#include "steps.h"
#include "tensor.h"

namespace diffusevae {

// A row that takes a gradient.
struct GuidedRow {
    const StepTable& table;
    int64_t i;
    const char* mode;                    // one of kModes
    const Tensor& x;                     // [n, C, H, W], before the row
    const float* v;                      // [n, C, H, W], the network's second output, where the row reads it
    int64_t first;                       // of these samples in the batch
    std::function<const float*()> mean;  // the row's x' without noise and gradient, asked for where the mode needs it
};

class Guides {
public:
    using Find = std::function<const Tensor&(const std::string&)>;                        // a value by name
    using Call = std::function<void(const CallSpec&, const Find&, Tensors&)>;  // runs a call of the pipeline

    explicit Guides(const std::vector<GuideSpec>& guides) : guides_(guides) {}

    // Makes the tables of timesteps of the guides that these rows take.
    void begin(const StepTable& table, const Call& call);

    // The operand g of a row, [n, C, H, W], valid until the next one. Error (NUMERICS) names step and sample where it is not
    // finite; where: backend and precision, for that message.
    const float* gradient(const GuidedRow& row, const Find& value, const Call& call, const std::string& where);

private:
    void check(const GuidedRow& row, const GuideSpec& guide, const std::string& where) const;
    void scale(const GuidedRow& row, const GuideSpec& guide);

    const std::vector<GuideSpec>& guides_;
    std::vector<int64_t> timesteps_;    // that tables_ belong to
    std::map<size_t, Tensor> tables_;   // [R, width], by guide
    Tensor own_row_;                    // [1, width]
    Tensors made_;                      // g and entropy
};

}  // namespace diffusevae

#endif  // DIFFUSEVAE_GUIDES_H
