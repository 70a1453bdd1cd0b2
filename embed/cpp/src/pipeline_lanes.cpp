// Values over the lanes of guidance: what is asked for in the first one, in the others what stands for nothing.
#include <algorithm>
#include <cstring>

#include "checks.h"
#include "pipeline.h"

namespace diffusevae {

const Tensor& Pipeline::stacked(const std::string& name, int64_t lanes) {
    const Tensor& first = value(name);
    if (lanes == 1) return first;
    const Tensor& null = null_of(name);
    std::vector<int64_t> shape = first.shape();
    shape[0] = lanes * n_;
    Tensor& stack = stacked_[name];
    stack.prepare(first.dtype(), shape);
    std::memcpy(stack.data(), first.data(), first.size());
    for (int64_t lane = 1; lane < lanes; ++lane) {
        if (null.samples() == n_) {
            std::memcpy(static_cast<char*>(stack.data()) + size_t(lane) * first.size(), null.data(), first.size());
        } else {
            stack.repeat(null.data(), lane * n_, n_);
        }
    }
    return stack;
}

const Tensor& Pipeline::null_of(const std::string& name) {
    const auto own = spec_.nulls.find(name);
    if (own == spec_.nulls.end() && !spec_.null_is_computed(name)) return value(name);
    if (own != spec_.nulls.end()) {
        const Null& null = own->second;  // all of a sample, or one number that fills it
        const Tensor& like = value(name);
        std::vector<int64_t> shape = like.shape();
        shape[0] = 1;
        Tensor& made = nulls_[name];
        made.prepare(like.dtype(), shape);
        for (size_t at = 0; at < made.size(); at += null.size())
            std::memcpy(static_cast<char*>(made.data()) + at, null.data(), null.size());
        return made;
    }
    const CallSpec& maker = *spec_.maker(name);
    // Inputs of one sample where all are nulls, else of all samples.
    Tensors inputs;
    int64_t most = 1;
    std::string shapes;
    for (const auto& [port, value_name] : maker.inputs) {
        const Tensor& null = null_of(value_name);
        most = std::max(most, null.samples());
        shapes += shape_text(null.shape());
    }
    // Kept from request to request, of the last sizes where dimensions are free.
    if (nulls_there_.count(name) != 0 && null_shapes_[name] == shapes) return nulls_.at(name);
    for (const auto& [port, value_name] : maker.inputs) {
        const Tensor& null = null_of(value_name);
        std::vector<int64_t> shape = null.shape();
        shape[0] = most;
        Tensor& input = inputs[value_name];
        input.prepare(null.dtype(), shape);
        if (null.samples() == most) {
            std::memcpy(input.data(), null.data(), null.size());
        } else {
            input.repeat(null.data(), 0, most);
        }
    }
    call(maker, [&](const std::string& value_name) -> const Tensor& { return inputs.at(value_name); }, nulls_);
    for (const auto& [port, made] : maker.outputs) {
        nulls_there_.insert(made);
        null_shapes_[made] = shapes;
    }
    return nulls_.at(name);
}

// Whether a computed null is made of something without a null, and so of this request.
bool Pipeline::null_depends_on_request(const std::string& name) const {
    if (spec_.nulls.count(name) != 0) return false;
    const CallSpec* maker = spec_.maker(name);
    return maker == nullptr || std::any_of(maker->inputs.begin(), maker->inputs.end(),
                                           [&](const auto& wire) { return null_depends_on_request(wire.second); });
}

}  // namespace diffusevae
