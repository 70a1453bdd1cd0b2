// The checks of the operations that gradients are made of.
#include "operation_words.h"

namespace diffusevae {
namespace native {
namespace {

// A thread holds the weights of a quarter of the pixels with all of them, and all tokens of a pool.
constexpr int32_t kMostGradientPixels = 1 << 12;

class GradientCheck : private OperationWords {
public:
    using OperationWords::OperationWords;

    void run() {
        if (p_.of_rows) refuse(name("kind"), kind_name(op_.kind), "operations of maps or of rows, not of both in one program");
        switch (op_.kind) {
        case DV_NATIVE_NORM_GRADIENT: return norm();
        case DV_NATIVE_ATTENTION_GRADIENT: return attention();
        default: return classify();
        }
    }

private:
    void norm() {
        sources(2, 2);
        const dv_native_tensor& x = map(op_.sources[0], "sources");
        const dv_native_tensor& g = map(op_.sources[1], "sources");
        in_range(op_.factor, 1, kMostSide, name("factor"));
        same(g, "sources", x.channels, x.height / op_.factor, x.width / op_.factor);
        want(g.height * op_.factor == x.height && g.width * op_.factor == x.width, "factor", text(op_.factor),
             "a divisor of " + text(x.height) + " and " + text(x.width));
        if (op_.residual != DV_NATIVE_NONE) same(map(op_.residual, "residual"), "residual", g.channels, g.height, g.width);
        in_range(op_.norm_layer, 0, 0, name("norm.layer"));
        group_norm(x.channels, 1);
        activation(op_.activation, {DV_NATIVE_IDENTITY, DV_NATIVE_SILU}, "activation");
        output(DV_NATIVE_ROWS_NONE, x.channels, x.height, x.width);
    }

    void attention() {
        sources(2, 2);
        const dv_native_tensor& in = map(op_.sources[0], "sources");
        want(in.channels % 3 == 0, "sources", text(in.channels) + " channels", "a multiple of 3: queries, keys, values");
        in_range(int64_t(in.height) * in.width, 1, kMostGradientPixels, name("sources: pixels"));
        same(map(op_.sources[1], "sources"), "sources", in.channels / 3, in.height, in.width);
        heads(in.channels / 3);
        output(DV_NATIVE_ROWS_NONE, in.channels, in.height, in.width);
    }

    void classify() {
        sources(1, 1);
        const dv_native_tensor& in = map(op_.sources[0], "source");
        const int64_t pixels = int64_t(in.height) * in.width;
        const dv_native_port& ids = input_port(op_.labels, DV_NATIVE_PORT_IDS, "labels");
        want(ids.height == 1 && ids.width == 1, "labels", size_of(1, ids.height, ids.width) + " ids", "one id a sample");
        in_range(op_.factor, 1, kMostEntries, name("factor"));
        in_range(op_.heads, 0, in.channels, name("heads"));
        int64_t features = in.channels;
        if (op_.heads > 0) {
            want(in.channels % 3 == 0, "source", text(in.channels) + " channels", "a multiple of 3: queries, keys, values");
            in_range(pixels, 1, kMostGradientPixels, name("source: pixels"));
            features = in.channels / 3;
            heads(features);
            blob(op_.places, DV_NATIVE_F32, 4 * (1 + pixels) * in.channels, "places");
        } else {
            in_range(op_.places, DV_NATIVE_NONE, DV_NATIVE_NONE, name("places"));
        }
        const int64_t classes = (int64_t(op_.factor) + kLanes - 1) / kLanes * kLanes;
        blob(op_.weights, DV_NATIVE_F32, 4 * classes * features, "weights");
        blob(op_.bias, DV_NATIVE_F32, 4 * classes, "bias");
        const dv_native_port& entropy = output_port({DV_NATIVE_PORT_MAP});
        want(entropy.channels == 1 && entropy.height == 1 && entropy.width == 1, "output_port",
             size_of(entropy.channels, entropy.height, entropy.width), "one number a sample");
        output(DV_NATIVE_ROWS_NONE, in.channels, in.height, in.width);
        p_.looked_up.push_back({index_, op_.labels});
    }

    void heads(int64_t channels) const {
        in_range(op_.heads, 1, channels, name("heads"));
        want(channels % op_.heads == 0, "heads", text(op_.heads), "a divisor of the " + text(channels) + " channels");
        between(op_.scale, 1e-9f, 1e9f, "scale");
    }

    void same(const dv_native_tensor& t, const std::string& field, int64_t channels, int64_t height, int64_t width) const {
        want(t.channels == channels && t.height == height && t.width == width, field, size_of(t.channels, t.height, t.width),
             "a map of " + size_of(channels, height, width));
    }
};

}  // namespace

void check_gradient(Program& program, int32_t index, std::vector<char>& port_written) {
    GradientCheck(program, index, port_written).run();
}

}  // namespace native
}  // namespace diffusevae
