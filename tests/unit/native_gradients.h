// The operations that gradients are made of, each by itself and as a classifier's guide puts them together.
#ifndef DIFFUSEVAE_TESTS_NATIVE_GRADIENTS_H
#define DIFFUSEVAE_TESTS_NATIVE_GRADIENTS_H

#include "native_tables.h"

namespace {

constexpr double kGradientRounded = 1.6e-2;

// A small classifier and its gradient: a convolution, a norm with SiLU, attention, a pool; then all of it back.
struct Guide {
    Builder b{12};
    explicit Guide(bool attends, int32_t side = 6) {
        ConvOptions norm = Builder::one();
        norm.groups = 8;
        const int32_t x = b.port(DV_NATIVE_PORT_MAP, false, 3, side, side);
        const int32_t stem = b.conv({b.input({x}, 3)}, 32, Builder::one()), qkv = b.conv({stem}, 96, norm);
        ConvOptions added = Builder::one();
        added.residual = stem;
        const int32_t h = b.conv({b.attention(qkv, 2, 0.25f)}, 32, added);
        norm.activation = DV_NATIVE_SILU;
        const int32_t last = b.conv({h}, attends ? 72 : 32, norm), classified = b.classify(last, kIds, attends ? 3 : 0, 0.3f);
        const int32_t at_h = b.norm_gradient(h, b.conv({classified}, 32, Builder::one()), norm);
        norm.activation = DV_NATIVE_IDENTITY;
        norm.residual = at_h;
        const int32_t at_qkv = b.attention_gradient(qkv, b.conv({at_h}, 32, Builder::one()), 2, 0.25f);
        const int32_t at_stem = b.norm_gradient(stem, b.conv({at_qkv}, 32, Builder::one()), norm);
        b.conv({at_stem}, 3, ConvOptions(), true);
    }
};

void check_norm_gradients(const char* isa) {
    const struct { int32_t channels, groups; Size size; int32_t factor; } cases[] = {
        {32, 32, {8, 8}, 1}, {48, 4, {5, 7}, 1},    {64, 32, {16, 16}, 2}, {24, 3, {6, 9}, 3}, {72, 8, {4, 4}, 4},
        {40, 5, {1, 1}, 1}, {32, 2, {70, 64}, 2}, {96, 32, {3, 130}, 1}};
    for (const auto& c : cases)
        for (const bool silu : {false, true})
            for (int32_t mode = 0; mode < 3; ++mode) {
                const char* names[] = {"", ", a row", ", a shared row and a residual"};
                Builder b(uint64_t(c.channels + mode));
                const int32_t x = b.source(c.channels, c.size.height, c.size.width);
                const auto small = [&] {
                    return b.input({b.port(DV_NATIVE_PORT_MAP, false, c.channels, c.size.height / c.factor, c.size.width / c.factor)});
                };
                ConvOptions o;
                o.groups = c.groups;
                o.activation = silu ? DV_NATIVE_SILU : DV_NATIVE_IDENTITY;
                o.scale_row = mode > 0;
                const int32_t g = small();
                if (mode == 2) o.residual = small();
                b.show(b.norm_gradient(x, g, o, c.factor));
                const std::string what = std::string("gradient of a norm") + (silu ? " and SiLU" : "") + names[mode] + " by "
                                         + std::to_string(c.factor);
                check(isa, named(what, c.channels, c.channels, c.size), b, kGradientRounded, 2, mode == 2);
            }
}

void check_attention_gradients(const char* isa) {
    for (const int32_t heads : {1, 2, 4})
        for (const int32_t channels : {32, 24, 80, 136})
            for (const Size& size : {Size{1, 1}, Size{3, 3}, Size{4, 4}, Size{5, 8}, Size{17, 19}, Size{36, 30}}) {
                if (size.height > 16 && (heads != 2 || channels > (size.height == 17 ? 80 : 24))) continue;
                Builder b{uint64_t(heads + channels)};
                const int32_t qkv = b.source(3 * channels, size.height, size.width);
                const int32_t g = b.input({b.port(DV_NATIVE_PORT_MAP, false, channels, size.height, size.width)});
                b.show(b.attention_gradient(qkv, g, heads, 0.3f));
                const std::string name = named("gradient of attention with " + std::to_string(heads) + " heads", channels, channels, size);
                check(isa, name, b, 2 * kGradientRounded, size.height > 16 ? 1 : 2);
                if (size.height == 17 && channels == 80) check_bits(isa, "gradient: same bits of attention", b);
            }
}

void check_classified(const char* isa) {
    for (const int32_t classes : {10, 16, 37})
        for (const int32_t heads : {0, 1, 3})
            for (const int32_t features : {24, 48, 96})
                for (const Size& size : {Size{1, 1}, Size{4, 4}, Size{3, 7}}) {
                    Builder b{uint64_t(classes + heads)};
                    const int32_t from = b.source(features * (heads > 0 ? 3 : 1), size.height, size.width);
                    b.show(b.classify(from, classes, heads, 0.2f));
                    const std::string what = "gradient of a pool with " + std::to_string(heads) + " heads";
                    check(isa, named(what, features, classes, size), b, kGradientRounded, 3);
                }
}

void check_gradients(const char* isa) {
    check_norm_gradients(isa);
    check_attention_gradients(isa);
    check_classified(isa);
    for (const bool attends : {false, true})
        for (const int32_t side : {6, 18}) {
            Guide guide(attends, side);
            check_bits(isa, std::string("gradient: same bits of a guide of side ") + std::to_string(side) + (attends ? ", attends" : ""),
                       guide.b);
        }
    if (std::string("gradient: a label").find(wanted) == std::string::npos) return;
    Guide guide(false);
    const Handle open(guide.b, isa, 2);
    for (const float wrong : {-1.0f, float(kIds)}) {
        Inputs in = draw_inputs(guide.b, 2, 0, 0);
        for (size_t p = 0; p < in.ports.size(); ++p)
            if (guide.b.ports[p].kind == DV_NATIVE_PORT_IDS) in.ports[p].back() = wrong;
        const Result got = run(open.handle, guide.b, in, 2, 0);
        report(got.status == DV_NATIVE_BAD_CALL, std::string(isa) + " gradient: a label that is no class is refused", got.error);
    }
}

}  // namespace

#endif  // DIFFUSEVAE_TESTS_NATIVE_GRADIENTS_H
