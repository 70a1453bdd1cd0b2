#include "bundle/canvas.h"

#include <algorithm>
#include <cmath>

#include "checks.h"
#include "text.h"

namespace diffusevae {
namespace {

using Maps = std::map<std::string, int64_t>;

// A side of the state for one of the image, in steps of so many pixels of the state from `least` on.
int64_t side_of(const char* name, int64_t side, int64_t factor, int64_t step, int64_t own, int64_t least) {
    const int64_t most = std::min(kMaxSide / factor, kMaxBlocks * own) / step * step, unit = factor * step;
    if (side >= 0 && side % unit == 0 && side / factor >= least && side / factor <= most) return side / factor;
    const double rounded = std::nearbyint(double(side) / double(unit));
    const int64_t nearest = unit * int64_t(std::min(std::max(double(least / step), rounded), double(most / step)));
    refuse_argument("size: found a " + std::string(name) + " of " + std::to_string(side) + ", expected a multiple of "
                    + std::to_string(unit) + " from " + std::to_string(factor * least) + " to "
                    + std::to_string(factor * most) + "; the nearest is " + std::to_string(nearest) + ".");
}

std::vector<int64_t> begins(int64_t side, int64_t window, double overlap) {
    const int64_t stride = std::max<int64_t>(1, int64_t(std::nearbyint((1 - overlap) * double(window))));
    std::vector<int64_t> found;
    for (int64_t begin = 0; begin < side - window; begin += stride) found.push_back(begin);
    found.push_back(side - window);
    return found;
}

void grow(const Maps& maps, const std::string& name, int64_t height, int64_t width, Dimensions& shape) {
    const auto factor = maps.find(name);
    if (factor == maps.end()) return;
    shape[shape.size() - 2] = factor->second * height;
    shape[shape.size() - 1] = factor->second * width;
}

int64_t step_of(const PipelineSpec& spec, int64_t height, int64_t width, bool tiled) {
    if (tiled) return 1;
    if (spec.multiple) return *spec.multiple;
    const std::vector<int64_t> image = spec.image_shape();
    refuse_argument("size: found " + size_text(height, width) + " and no overlap for a bundle whose graphs take "
                    + size_text(image[1], image[2]) + " alone; expected an overlap, for tiles of that size. Pass overlap=0.5 too.");
}

}  // namespace

std::vector<std::pair<int64_t, int64_t>> Canvas::windows() const {
    std::vector<std::pair<int64_t, int64_t>> found;
    for (int64_t top : rows)
        for (int64_t left : columns) found.emplace_back(top, left);
    return found;
}

std::vector<float> Canvas::weights(int64_t factor) const {
    const auto distance = [](int64_t at, int64_t size) { return double(std::min(at, size - 1 - at)) / double(size - 1); };
    std::vector<float> found;
    for (int64_t y = 0; y < factor * height; ++y)
        for (int64_t x = 0; x < factor * width; ++x) {
            const double nearest = std::min(distance(y, factor * height), distance(x, factor * width));
            found.push_back(float(std::min(std::max(nearest, kLeastWeight), kMostWeight)));
        }
    return found;
}

Canvas resize(Manifest& manifest, int64_t height, int64_t width, std::optional<double> overlap) {
    PipelineSpec& spec = manifest.pipeline;
    if (overlap) check_number("overlap", *overlap, 0.0, kMostOverlap);
    if (!spec.maps) {
        const std::vector<int64_t> image = spec.image_shape();
        refuse_argument("size: found " + size_text(height, width) + " for a bundle that works in " + size_text(image[1], image[2])
                        + " alone, as something in it depends on the whole picture; expected no size. Leave it out.");
    }
    const Maps& maps = *spec.maps;
    const int64_t factor = maps.at(spec.image), step = step_of(spec, height, width, overlap.has_value());
    Canvas canvas;
    canvas.height = spec.state.height;
    canvas.width = spec.state.width;
    canvas.whole_height = side_of("height", height, factor, step, canvas.height, overlap ? canvas.height : step);
    canvas.whole_width = side_of("width", width, factor, step, canvas.width, overlap ? canvas.width : step);
    spec.state.height = canvas.whole_height;
    spec.state.width = canvas.whole_width;
    if (overlap) {
        canvas.rows = begins(spec.state.height, canvas.height, *overlap);
        canvas.columns = begins(spec.state.width, canvas.width, *overlap);
    }
    for (const CallSpec* call : spec.calls())
        for (const Wires* wires : {&call->inputs, &call->outputs})
            for (const auto& [port, name] : *wires) {
                auto& ports = canvas.ports[call->graph];
                if (maps.count(name) != 0) ports[port] = maps.at(name);
            }
    const ValueKinds kinds = spec.values;
    for (auto [name, kind] : kinds.all()) {
        grow(maps, name, spec.state.height, spec.state.width, kind.shape);
        spec.values.add(name, kind);
    }
    for (InputSpec& input : manifest.inputs) grow(maps, input.name, spec.state.height, spec.state.width, input.shape);
    if (spec.encoder_image) grow(maps, kImage, spec.state.height, spec.state.width, spec.encoder_image->shape);
    if (canvas.tiled()) return canvas;
    for (GraphSpec& graph : manifest.graphs) {
        const auto ports = canvas.ports.find(graph.key.substr(0, graph.key.find('.')));  // NAME or NAME.fp16
        if (ports == canvas.ports.end()) continue;
        for (std::vector<TensorSpec>* tensors : {&graph.inputs, &graph.outputs})
            for (TensorSpec& tensor : *tensors)
                grow(ports->second, tensor.name, spec.state.height, spec.state.width, tensor.shape);
    }
    return canvas;
}

}  // namespace diffusevae
