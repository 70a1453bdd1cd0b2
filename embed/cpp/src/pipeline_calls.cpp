// A call of a graph on a pipeline's values: sizes of free dimensions from what it is given, room for what it makes.
#include <algorithm>
#include <cmath>

#include "checks.h"
#include "error.h"
#include "pipeline.h"

namespace diffusevae {
namespace {

void check_finite(const Tensor& tensor, const CallSpec& call, const std::string& where) {
    if (tensor.dtype() != Dtype::kFloat32) return;
    const float* const end = tensor.floats() + tensor.size() / sizeof(float);
    if (std::all_of(tensor.floats(), end, [](float value) { return std::isfinite(value); })) return;
    std::string names;
    for (const auto& [port, name] : call.inputs) names += (names.empty() ? "" : ", ") + name;
    throw Error(DIFFUSEVAE_NUMERICS, "The graph '" + call.graph + "' (" + where
                                         + ") returned NaN or infinity outside the loop; every value was expected to be "
                                           "finite. Check " + names + " as you passed them, and build the bundle again from "
                                           "its checkpoint if they are ordinary.");
}

// The sizes of a graph's free dimensions, from the arrays that it is given.
void bind(Sizes& sizes, const TensorSpec& tensor, const std::vector<int64_t>& shape, const std::string& graph) {
    for (size_t i = 0; i < tensor.shape.size(); ++i) {
        const std::string* name = std::get_if<std::string>(&tensor.shape[i]);
        if (name == nullptr) continue;
        const auto [at, fresh] = sizes.emplace(*name, shape[i]);
        if (!fresh && at->second != shape[i])
            throw Error(DIFFUSEVAE_ARGUMENT, graph + ", " + tensor.name + ": found " + *name + " = "
                                                 + std::to_string(shape[i]) + ", expected " + std::to_string(at->second)
                                                 + " as in the inputs before it; convert the input");
    }
}

std::vector<int64_t> resolved(const TensorSpec& tensor, const Sizes& sizes, const std::string& graph) {
    std::vector<int64_t> shape;
    for (const Dimension& dimension : tensor.shape) {
        const int64_t* fixed = std::get_if<int64_t>(&dimension);
        const auto free = fixed != nullptr ? sizes.end() : sizes.find(std::get<std::string>(dimension));
        if (fixed == nullptr && free == sizes.end())
            throw Error(DIFFUSEVAE_BUNDLE, "graph '" + graph + "': found the output " + tensor.text() + ", whose "
                                               + text_of(dimension) + " no input says, expected dimensions of its inputs; "
                                               + kRebuild);
        shape.push_back(fixed != nullptr ? *fixed : free->second);
    }
    return shape;
}

}  // namespace

Graph& Pipeline::loaded(const std::string& name) const {
    const auto found = graphs_.find(name);
    return found != graphs_.end() ? *found->second : *later_.at(name);
}

void Pipeline::call(const CallSpec& spec, const Find& find, Tensors& into) {
    call_unchecked(spec, find, into);
    for (const auto& [port, name] : spec.outputs) check_finite(into.at(name), spec, where_of(parts_.backend));
}

void Pipeline::call_unchecked(const CallSpec& spec, const Find& find, Tensors& into) {
    const GraphSpec& graph = parts_.bundle.spec(spec.graph);
    Arrays arrays;
    Sizes sizes;
    for (const TensorSpec& tensor : graph.inputs) {
        const Tensor& given = find(*value_at(spec.inputs, tensor.name));
        bind(sizes, tensor, given.shape(), spec.graph);
        arrays.push_back(given.named(tensor.name));
    }
    for (const TensorSpec& tensor : graph.outputs) {
        Tensor& made = into[*value_at(spec.outputs, tensor.name)];
        std::vector<int64_t> shape = resolved(tensor, sizes, spec.graph);
        const Canvas* const canvas = parts_.bundle.canvas();
        if (canvas && canvas->ports.count(spec.graph) != 0) {  // but for guides, which run in the bundle's own size
            const auto& ports = canvas->ports.at(spec.graph);
            const auto factor = ports.find(tensor.name);
            if (factor != ports.end()) {
                shape[shape.size() - 2] = factor->second * canvas->whole_height;
                shape[shape.size() - 1] = factor->second * canvas->whole_width;
            }
        }
        made.prepare(dtype_of(tensor.dtype), shape);
        arrays.push_back(made.named(tensor.name));
    }
    loaded(spec.graph).run(arrays);
}

}  // namespace diffusevae
