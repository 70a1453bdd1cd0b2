#include "regulariser.h"

#include <cstring>
#include <utility>

#include "checks.h"

namespace diffusevae {

void Regulariser::begin(const StepTable& table, const Guides::Call& call) {
    if (!spec_->rows || timesteps_ == table.timesteps) return;
    timesteps_.clear();
    Tensor timesteps;
    timesteps.prepare(Dtype::kInt64, {table.calls()});
    std::memcpy(timesteps.data(), table.timesteps.data(), timesteps.size());
    Tensors made;
    call(*spec_->rows, [&](const std::string&) -> const Tensor& { return timesteps; }, made);
    rows_ = std::move(made[kRows]);
    timesteps_ = table.timesteps;
}

void Regulariser::evaluate(Graph& graph, int64_t i, float* x, const std::vector<int64_t>& shape, float* e, float* v) {
    const CallSpec& step = spec_->step;
    Arrays arrays = {Array(port_of(step.inputs, kX)->c_str(), Dtype::kFloat32, x, shape),
                     Array(port_of(step.outputs, kE)->c_str(), Dtype::kFloat32, e, shape)};
    if (const std::string* const port = port_of(step.outputs, kVariance)) {
        if (v == nullptr) {
            unread_.resize(memory_size(shape));
            v = unread_.data();
        }
        arrays.emplace_back(port->c_str(), Dtype::kFloat32, v, shape);
    }
    if (const std::string* const port = port_of(step.inputs, kRows)) {
        const int64_t width = rows_.shape().back();
        arrays.emplace_back(port->c_str(), Dtype::kFloat32, rows_.floats() + i * width, std::vector<int64_t>{1, width});
    }
    graph.run(arrays);
}

}  // namespace diffusevae
