#include "backends/tiles.h"

#include <cstring>
#include <map>
#include <utility>
#include <vector>

#include "tensor.h"

namespace diffusevae {
namespace {

using Windows = std::vector<std::pair<int64_t, int64_t>>;

class TiledGraph final : public Graph {
public:
    TiledGraph(std::unique_ptr<Graph> graph, const GraphSpec& spec, const Canvas& canvas)
        : graph_(std::move(graph)), spec_(spec), canvas_(canvas), ports_(canvas.ports.at(spec.key)),
          windows_(canvas.windows()) {}

    void run(const Arrays& arrays) override {
        int64_t n = 0;
        for (const Array& array : arrays)
            if (ports_.count(array.name) != 0 && !is_output(array)) n = std::max(n, array.shape[0]);
        for (const Array& array : arrays)
            if (is_output(array) && windows_.size() > 1) std::memset(array.data, 0, bytes(array));
        const size_t at_once = size_t(std::max<int64_t>(1, kAtOnce / n));
        for (size_t begin = 0; begin < windows_.size(); begin += at_once)
            run_some(arrays, Windows(windows_.begin() + int64_t(begin),
                                     windows_.begin() + int64_t(std::min(begin + at_once, windows_.size()))), n);
        if (windows_.size() == 1) return;
        for (const Array& array : arrays)
            if (is_output(array)) divide(array);
    }

    std::unique_ptr<Graph> clone() const override {
        return std::make_unique<TiledGraph>(graph_->clone(), spec_, canvas_);
    }

    int64_t weight_bytes() const override { return graph_->weight_bytes(); }

private:
    bool is_output(const Array& array) const {
        for (const TensorSpec& tensor : spec_.outputs)
            if (tensor.name == array.name) return true;
        return false;
    }

    const TensorSpec& input(const Array& array) const {
        size_t at = 0;
        while (spec_.inputs[at].name != array.name) ++at;
        return spec_.inputs[at];
    }

    static size_t bytes(const Array& array) {
        size_t size = bytes_of(array.dtype);
        for (size_t i = 0; i < array.rank; ++i) size *= size_t(array.shape[i]);
        return size;
    }

    void run_some(const Arrays& arrays, const Windows& some, int64_t n) {
        Arrays cut;
        for (const Array& array : arrays) {
            const auto factor = ports_.find(array.name);
            if (factor == ports_.end() && input(array).shape[0] != Dimension(kBatch)) {
                cut.push_back(array);
                continue;
            }
            Tensor& buffer = buffers_[array.name];
            std::vector<int64_t> shape(array.shape, array.shape + array.rank);
            shape[0] *= int64_t(some.size());
            if (factor != ports_.end()) {
                shape[shape.size() - 2] = factor->second * canvas_.height;
                shape[shape.size() - 1] = factor->second * canvas_.width;
            }
            buffer.prepare(array.dtype, shape);
            if (factor == ports_.end())
                for (size_t i = 0; i < some.size(); ++i)
                    std::memcpy(static_cast<char*>(buffer.data()) + i * bytes(array), array.data, bytes(array));
            else if (!is_output(array))
                take(array, factor->second, some, buffer);
            cut.emplace_back(array.name, array.dtype, buffer.data(), shape);
        }
        graph_->run(cut);
        for (const Array& array : arrays)
            if (is_output(array)) put(array, ports_.at(array.name), some, n);
    }

    // The windows of a map, window by window, row by row.
    void take(const Array& array, int64_t factor, const Windows& some, Tensor& into) const {
        const int64_t height = factor * canvas_.height, width = factor * canvas_.width;
        const int64_t whole_height = array.shape[array.rank - 2], whole_width = array.shape[array.rank - 1];
        const size_t size = bytes_of(array.dtype), row = size_t(width) * size;
        const int64_t planes = array.shape[0] * (array.rank == 4 ? array.shape[1] : 1);  // [n, C, H, W] or [n, H, W]
        char* to = static_cast<char*>(into.data());
        for (const auto& [top, left] : some)
            for (int64_t plane = 0; plane < planes; ++plane)
                for (int64_t y = 0; y < height; ++y, to += row) {
                    const int64_t at = (plane * whole_height + factor * top + y) * whole_width + factor * left;
                    std::memcpy(to, static_cast<const char*>(array.data) + size_t(at) * size, row);
                }
    }

    // total += weights * window; or the window itself where it is the only one: the weights would only round it.
    void put(const Array& array, int64_t factor, const Windows& some, int64_t n) {
        const std::vector<float>& weights = weights_of(factor).window;
        const int64_t height = factor * canvas_.height, width = factor * canvas_.width;
        const float* from = buffers_.at(array.name).floats();
        if (windows_.size() == 1) {
            std::memcpy(array.data, from, bytes(array));
            return;
        }
        for (const auto& [top, left] : some)
            for (int64_t plane = 0; plane < n * array.shape[1]; ++plane)
                for (int64_t y = 0; y < height; ++y, from += width) {
                    const float* const weight = weights.data() + y * width;
                    float* const to = static_cast<float*>(array.data)
                                      + (plane * array.shape[2] + factor * top + y) * array.shape[3] + factor * left;
                    for (int64_t x = 0; x < width; ++x) to[x] = to[x] + from[x] * weight[x];
                }
    }

    void divide(const Array& array) {
        const Weights& weights = weights_of(ports_.at(array.name));
        float* to = static_cast<float*>(array.data);
        for (int64_t plane = 0; plane < array.shape[0] * array.shape[1]; ++plane)
            for (const float total : weights.totals) *to++ /= total;
    }

    // Of a map: the weight of each pixel of a window, and their sums for each pixel of the whole.
    struct Weights {
        std::vector<float> window, totals;
    };

    const Weights& weights_of(int64_t factor) {
        const auto found = weights_.find(factor);
        if (found != weights_.end()) return found->second;
        const int64_t width = factor * canvas_.whole_width;
        std::vector<float> window = canvas_.weights(factor), totals(size_t(factor * canvas_.whole_height * width), 0.0f);
        for (const auto& [top, left] : windows_)
            for (int64_t y = 0; y < factor * canvas_.height; ++y)
                for (int64_t x = 0; x < factor * canvas_.width; ++x)
                    totals[size_t((factor * top + y) * width + factor * left + x)]
                        += window[size_t(y * factor * canvas_.width + x)];
        return weights_.emplace(factor, Weights{std::move(window), std::move(totals)}).first->second;
    }

    std::unique_ptr<Graph> graph_;
    const GraphSpec& spec_;
    const Canvas& canvas_;
    const std::map<std::string, int64_t>& ports_;
    const Windows windows_;
    std::map<std::string, Tensor, std::less<>> buffers_;
    std::map<int64_t, Weights> weights_;
};

}  // namespace

std::unique_ptr<Graph> on_canvas(std::unique_ptr<Graph> graph, const GraphSpec& spec, const Canvas& canvas) {
    if (canvas.ports.at(spec.key).empty()) return graph;
    return std::make_unique<TiledGraph>(std::move(graph), spec, canvas);
}

}  // namespace diffusevae
