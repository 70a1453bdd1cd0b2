// The operations of gradients with their maps, weights, scratch and work.
#include "gradient_layout.h"

#include <algorithm>

namespace diffusevae {
namespace native {
namespace {

double bytes_of(const Map& m) { return 2.0 * m.pixels() * m.blocks * kBlock; }

const float* floats(const Program& program, int32_t blob) {
    return blob == DV_NATIVE_NONE ? nullptr : reinterpret_cast<const float*>(program.blob(blob));
}

// As many rows as 64 pixels have, more where there would be over 64 stripes: by the shape alone.
int32_t rows_of_stripe(const Map& map) { return std::max((63 + map.width) / map.width, (map.height + 63) / 64); }

int64_t place_norm(const Program& p, const dv_native_op& op, const std::vector<Map>& maps, Operation& to) {
    NormGradient& g = to.norm_gradient;
    g.source = maps[size_t(op.sources[0])];
    g.gradient = maps[size_t(op.sources[1])];
    g.output = maps[size_t(op.output)];
    g.has_residual = op.residual != DV_NATIVE_NONE;
    if (g.has_residual) g.residual = maps[size_t(op.residual)];
    g.factor = op.factor;
    g.groups = op.norm_groups;
    g.epsilon = op.norm_epsilon;
    g.weight = floats(p, op.norm_weight);
    g.bias = floats(p, op.norm_bias);
    g.scale_row = op.scale_row;
    g.activation = op.activation;
    g.rows = rows_of_stripe(g.source);
    g.stripes = (g.source.height + g.rows - 1) / g.rows;
    to.scratch_bytes = (g.sums_floats() * 4 + 63) / 64 * 64;
    to.activation_bytes = 2.0 * (bytes_of(g.source) + bytes_of(g.gradient)) + bytes_of(g.output)
                          + (g.has_residual ? bytes_of(g.residual) : 0.0);
    return g.private_floats();
}

// Queries that one thread works on: at most four chunks, as each holds the gradients of all keys and values. By the shape alone.
int32_t chunk_of(int32_t pixels) { return std::max(256, (pixels + 511) / 512 * 128); }

int64_t place_attention(const dv_native_op& op, const std::vector<Map>& maps, const Kernels& kernels, Operation& to) {
    AttentionGradient& a = to.attention_gradient;
    const Map &source = maps[size_t(op.sources[0])], &gradient = maps[size_t(op.sources[1])];
    const int32_t channels = gradient.channels;
    a.of = Attention{source, source, maps[size_t(op.output)], op.heads, channels / op.heads, channels, 2 * channels, op.scale};
    a.gradient = gradient;
    a.chunk = chunk_of(source.pixels());
    a.chunks = (source.pixels() + a.chunk - 1) / a.chunk;
    a.together = kernels.attention_queries;
    to.scratch_bytes = op.heads * a.head_bytes();
    // Five products of all pixels with all pixels, for the forward's two.
    to.flop = 10.0 * double(source.pixels()) * double(source.pixels()) * channels;
    to.activation_bytes = bytes_of(source) + bytes_of(gradient) + bytes_of(a.of.output);
    return (GradientRoom(a, kernels.bf16_pixel_bytes).bytes + 3) / 4;
}

int64_t place_classify(const Program& p, const dv_native_op& op, const std::vector<Map>& maps, Operation& to) {
    Classify& c = to.classify;
    const Map& source = maps[size_t(op.sources[0])];
    c = Classify{source, maps[size_t(op.output)], op.labels, op.output_port, op.factor,
                 op.heads > 0 ? source.channels / 3 : source.channels, floats(p, op.weights), floats(p, op.bias),
                 op.heads, op.scale, floats(p, op.places)};
    to.flop = 4.0 * c.features * c.classes + 10.0 * double(c.tokens()) * c.features;
    to.activation_bytes = bytes_of(source) + bytes_of(c.output);
    to.weight_bytes = 4.0 * c.groups() * kLanes * (c.features + 1.0);
    return ClassifyRoom(c).floats;
}

}  // namespace

int64_t place_gradient(const Program& program, const dv_native_op& op, const std::vector<Map>& maps, const Kernels& kernels,
                       Operation& to) {
    if (op.kind == DV_NATIVE_NORM_GRADIENT) return place_norm(program, op, maps, to);
    if (op.kind == DV_NATIVE_ATTENTION_GRADIENT) return place_attention(op, maps, kernels, to);
    return place_classify(program, op, maps, to);
}

}  // namespace native
}  // namespace diffusevae
