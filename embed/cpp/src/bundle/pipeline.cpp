#include "bundle/pipeline.h"

#include <algorithm>

namespace diffusevae {

bool operator==(const ValueKind& a, const ValueKind& b) { return a.dtype == b.dtype && a.shape == b.shape; }

void ValueKinds::add(const std::string& name, ValueKind kind) {
    for (auto& [known, its] : kinds_) {
        if (known != name) continue;
        its = std::move(kind);
        return;
    }
    kinds_.emplace_back(name, std::move(kind));
}

const ValueKind* ValueKinds::find(const std::string& name) const {
    for (const auto& [known, kind] : kinds_)
        if (known == name) return &kind;
    return nullptr;
}

std::vector<std::string> ValueKinds::names() const {
    std::vector<std::string> found;
    for (const auto& [name, kind] : kinds_) found.push_back(name);
    return found;
}

const std::string* value_at(const Wires& wires, const std::string& port) {
    for (const auto& [name, value] : wires)
        if (name == port) return &value;
    return nullptr;
}

const std::string* port_of(const Wires& wires, const std::string& value) {
    for (const auto& [port, name] : wires)
        if (name == value) return &port;
    return nullptr;
}

std::vector<const CallSpec*> PipelineSpec::calls() const {
    std::vector<const CallSpec*> all;
    for (const CallSpec& call : encode) all.push_back(&call);
    for (const CallSpec& call : before) all.push_back(&call);
    all.push_back(&rows);
    all.push_back(&step);
    if (quantize) all.push_back(&*quantize);
    for (const CallSpec& call : after) all.push_back(&call);
    return all;
}

std::vector<const CallSpec*> PipelineSpec::guide_calls() const {
    std::vector<const CallSpec*> all;
    for (const GuideSpec& guide : guides) {
        if (guide.rows) all.push_back(&*guide.rows);
        all.push_back(&guide.step);
    }
    return all;
}

std::vector<const CallSpec*> PipelineSpec::regulariser_calls() const {
    std::vector<const CallSpec*> all;
    if (regulariser && regulariser->rows) all.push_back(&*regulariser->rows);
    if (regulariser) all.push_back(&regulariser->step);
    return all;
}

bool PipelineSpec::encodes_state() const {
    return std::any_of(encode.begin(), encode.end(), [](const CallSpec& call) { return port_of(call.outputs, kX) != nullptr; });
}

const CallSpec* PipelineSpec::maker(const std::string& value) const {
    for (const CallSpec& call : before)
        if (port_of(call.outputs, value) != nullptr) return &call;
    return nullptr;
}

bool PipelineSpec::null_is_computed(const std::string& value) const {
    const CallSpec* call = maker(value);
    return nulls.count(value) == 0 && call != nullptr
           && std::any_of(call->inputs.begin(), call->inputs.end(), [&](const auto& wire) { return has_null(wire.second); });
}

bool PipelineSpec::guided() const {
    const auto nullable = [&](const auto& wire) { return has_null(wire.second); };
    return std::any_of(rows.inputs.begin(), rows.inputs.end(), nullable)
           || std::any_of(step.inputs.begin(), step.inputs.end(), nullable);
}

std::vector<int64_t> PipelineSpec::image_shape() const {
    const Dimensions& shape = values.find(image)->shape;
    std::vector<int64_t> sizes;
    for (size_t i = 1; i < shape.size(); ++i) sizes.push_back(std::get<int64_t>(shape[i]));
    return sizes;
}

}  // namespace diffusevae
