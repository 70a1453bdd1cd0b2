// Maps that are made and changed between convolutions: of rows and of some pixels, norms that another map scales and shifts.
#ifndef DIFFUSEVAE_TESTS_NATIVE_MAPS_H
#define DIFFUSEVAE_TESTS_NATIVE_MAPS_H

#include "native_runs.h"

namespace {

constexpr double kMapRounded = 8e-3;

// A block of a network with a label map: gamma and beta of the first norm lie in a row, those of the second are made of the label map.
struct Mapped {
    Builder b{21};

    Mapped() {
        const int32_t x = b.port(DV_NATIVE_PORT_MAP, false, 3, 8, 6), labels = b.port(DV_NATIVE_PORT_MAP, false, 5, 16, 12);
        const int32_t row = b.port(DV_NATIVE_PORT_MAP, false, 7 + 2 * 72 * 48);
        const int32_t stem = b.conv({b.input({x})}, 40, ConvOptions()), other = b.conv({b.input({x}, 3)}, 32, Builder::one());
        ConvOptions o;
        o.groups = 8;
        o.activation = DV_NATIVE_SILU;
        const int32_t h = b.conv({b.norm_map({stem, other}, o, b.slice(row, 7, 144, 8, 6))}, 32, ConvOptions());
        ConvOptions relu;
        relu.activation = DV_NATIVE_RELU;
        const int32_t hidden = b.conv({b.input({labels}, 1, 2)}, 24, ConvOptions()), maps = b.conv({hidden}, 64, relu);
        o.scale_row = true;
        ConvOptions last;
        last.residual = h;
        b.conv({b.conv({b.norm_map({h}, o, maps)}, 32, last)}, 3, ConvOptions(), true);
    }
};

// Half the size on both branches and beside them the image's own, then twice; as a denoising diffusion GAN has it.
struct Filtered {
    Builder b{22};

    Filtered() {
        const int32_t x = b.port(DV_NATIVE_PORT_MAP, false, 3, 8, 12);
        const int32_t stem = b.conv({b.input({x}, 3)}, 40, Builder::one());
        ConvOptions o, large;
        o.groups = 10;
        o.activation = DV_NATIVE_SILU;
        o.scale_row = true;
        large.kernel = 6, large.stride = 2, large.pad = 2;
        large.residual = half(stem, b.norm_map({stem}, o), DV_NATIVE_POOL);
        large.residual_scale = 0.70710678f;
        const int32_t small = b.conv({b.input({x})}, 40, large);
        const int32_t whole = half(small, b.norm_map({small}, o), DV_NATIVE_UPSAMPLE);
        b.conv({whole}, 3, ConvOptions(), true);
    }

private:
    int32_t half(int32_t from, int32_t active, int32_t kind) {
        ConvOptions o;
        o.skips = {b.resize(kind, from, 2, true)};
        return b.conv({b.resize(kind, active, 2, true)}, 40, o);
    }
};

void check_inputs(const char* isa) {
    for (int32_t stride : {1, 2, 4})
        for (int32_t patch : {1, 3}) {
            const Size size{4 * stride, 5 * stride};
            Builder b(2);
            const int32_t x = b.port(DV_NATIVE_PORT_MAP, false, 3, size.height, size.width);
            const int32_t y = b.port(DV_NATIVE_PORT_MAP, false, 2, size.height, size.width);
            b.show(b.input({x, y}, patch, stride));
            const std::string what = "maps: pixels by " + std::to_string(stride) + ", patches of " + std::to_string(patch);
            check(isa, named(what, 5, 5 * patch * patch, size), b, 0.0, 3);
        }
    for (int32_t offset : {0, 5, 33}) {
        Builder b(3);
        const int32_t row = b.port(DV_NATIVE_PORT_MAP, false, 33 + 40 * 15);
        b.show(b.slice(row, offset, 40, 3, 5));
        b.show(b.slice(row, 33 - offset, 7, 5, 3));
        check(isa, "maps: of a row from " + std::to_string(offset) + " on", b, 0.0, 3);
    }
}

// Groups and vectors that straddle sources, channels that fill no block; with a map, a row behind it, and neither.
void check_norm_maps(const char* isa) {
    const struct { int32_t first, second, groups; } cases[] = {{32, 0, 32}, {48, 48, 32}, {64, 32, 8}, {20, 12, 8}, {5, 0, 1}, {33, 18, 3}};
    for (const auto& c : cases)
        for (int32_t turn : {0, 1})
            for (int32_t mode = 0; mode < 4; ++mode) {
                const int32_t activations[] = {DV_NATIVE_IDENTITY, DV_NATIVE_SILU, DV_NATIVE_GELU, DV_NATIVE_RELU};
                const int32_t activation = activations[(2 * turn + mode + c.first) % 4];
                const char* names[] = {"a norm", "a norm scaled by a row", "a norm scaled by a map", "a norm scaled by a map and a row"};
                const Size size = mode % 2 == 0 ? Size{8, 8} : Size{5, 7};
                Builder b(uint64_t(c.first + mode));
                std::vector<int32_t> sources = {b.source(c.first, size.height, size.width)};
                if (c.second > 0) sources.push_back(b.source(c.second, size.height, size.width));
                const int32_t channels = c.first + c.second;
                ConvOptions o;
                o.groups = c.groups;
                o.activation = activation;
                o.scale_row = mode % 2 == 1;
                const int32_t map = mode >= 2 ? b.source(2 * channels, size.height, size.width) : DV_NATIVE_NONE;
                b.show(b.norm_map(sources, o, map));
                const std::string what = std::string("maps: ") + names[mode] + ", activation " + std::to_string(activation);
                check(isa, named(what, channels, channels, size), b, kMapRounded, 3, mode == 1);
            }
}

void check_filters(const char* isa) {
    const Size sizes[] = {{1, 1}, {2, 2}, {3, 5}, {8, 8}, {7, 9}, {6, 32}};
    for (const Size& size : sizes)
        for (int32_t channels : {3, 32, 70})
            for (int32_t kind : {DV_NATIVE_POOL, DV_NATIVE_UPSAMPLE}) {
                if (kind == DV_NATIVE_POOL && (size.height < 2 || size.width < 2)) continue;
                Builder b{uint64_t(channels)};
                b.show(b.resize(kind, b.input({b.port(DV_NATIVE_PORT_MAP, false, channels, size.height, size.width)}), 2, true));
                const char* what = kind == DV_NATIVE_POOL ? "maps: filtered to half" : "maps: filtered to twice";
                check(isa, named(what, channels, channels, size), b, kMapRounded, 3);
            }
    // An image's own path: from a few channels, from several blocks of two maps; behind a norm; in int8.
    const struct { int32_t first, second; } widths[] = {{3, 0}, {40, 0}, {48, 33}};
    for (const Size& size : {Size{2, 2}, Size{7, 9}, Size{12, 32}})
        for (const auto& c : widths)
            for (int32_t mode = 0; mode < 3; ++mode) {
                const char* names[] = {"maps: conv 6x6 / 2", "maps: conv 6x6 / 2 behind a norm", "maps: conv 6x6 / 2 int8"};
                Builder b{uint64_t(c.first + mode)};
                std::vector<int32_t> sources = {b.source(c.first, size.height, size.width)};
                if (c.second > 0) sources.push_back(b.source(c.second, size.height, size.width));
                ConvOptions o;
                o.kernel = 6;
                o.stride = 2;
                o.pad = 2;
                o.int8 = mode == 2;
                if (mode == 1) o.groups = 1, o.activation = DV_NATIVE_SILU;
                b.conv(sources, 33, o, true);
                b.show(b.conv(sources, 33, o));
                check(isa, named(names[mode], c.first + c.second, 33, size), b, mode == 2 ? 2e-2 : kMapRounded, 2);
            }
}

// Directly, in Winograd's form, in int8, behind doubling and stride 2; of 1 and of the root of one half.
void check_residual_scale(const char* isa) {
    for (float scale : {1.0f, 0.70710678f, -3.0f})
        for (int32_t mode = 0; mode < 5; ++mode) {
            const char* names[] = {"1x1", "3x3", "3x3 int8", "3x3 doubled", "6x6 / 2"};
            Builder b{uint64_t(mode + 1)};
            const int32_t side = 18, out = mode == 3 ? 36 : mode == 4 ? 9 : 18;
            ConvOptions o;
            o.kernel = mode == 0 ? 1 : mode == 4 ? 6 : 3;
            o.stride = mode == 4 ? 2 : 1;
            o.pad = mode == 4 ? 2 : -1;
            o.int8 = mode == 2;
            o.upsample = mode == 3;
            o.residual = b.source(40, out, out);
            o.residual_scale = scale;
            b.show(b.conv({b.source(24, side, side)}, 40, o));
            check(isa, std::string("maps: a residual times ") + std::to_string(scale) + ", " + names[mode], b, 1.2e-2, 2);
        }
}

// What the judge says of a field.
void check_refused(const char* isa, const std::string& name, Builder& b, const std::string& sentence) {
    const std::string full = std::string(isa) + " maps: refused, " + name;
    if (full.find(wanted) == std::string::npos) return;
    const Handle open(b, isa, 1);
    report(open.status == DV_NATIVE_BAD_PROGRAM && open.text == sentence, full, open.text);
}

// The last operation of that kind.
dv_native_op& last_of(Builder& b, int32_t kind) {
    for (size_t i = b.ops.size(); i-- > 0;)
        if (b.ops[i].kind == kind) return b.ops[i];
    std::abort();
}

void check_refusals(const char* isa) {
    const auto refused = [isa](const std::string& name, int32_t kind, int32_t dv_native_op::*field, int32_t value, const std::string& sentence) {
        Mapped m;
        last_of(m.b, kind).*field = value;
        check_refused(isa, name, m.b, sentence);
    };
    refused("a stride that leaves pixels over", DV_NATIVE_INPUT, &dv_native_op::stride, 5,
            "ops[7].stride (input): found 5, expected a divisor of 16 and 12");
    refused("an offset in an image", DV_NATIVE_INPUT, &dv_native_op::offset, 0,
            "ops[7].sources (input): found 5 x 16 x 12, expected a port of 1 x 1 where there is an offset");
    refused("a map that is not twice the channels", DV_NATIVE_NORM, &dv_native_op::modulation, 0,
            "ops[10].modulation (norm): found 3 x 8 x 6, expected a map of 64 x 8 x 6");
    refused("a map from later on", DV_NATIVE_NORM, &dv_native_op::modulation, 11,
            "ops[10].modulation (norm): found tensors[11], not yet written, expected tensors that operations before this one write");
    refused("no groups", DV_NATIVE_NORM, &dv_native_op::norm_groups, 0, "ops[10].norm.groups (norm): found 0, expected 1..32");
    refused("a layer norm", DV_NATIVE_NORM, &dv_native_op::norm_layer, 1, "ops[10].norm.layer (norm): found 1, expected 0");
    refused("a gate", DV_NATIVE_NORM, &dv_native_op::activation, DV_NATIVE_GEGLU,
            "ops[10].activation (norm): found geglu, expected one of identity, silu, gelu, relu");
    refused("a row that ends too soon", DV_NATIVE_NORM, &dv_native_op::scale_row, 1, "ops[10].norm.scale_row (norm): found 1, expected 0");
    for (int32_t offset : {8, -2, INT32_MAX}) {
        Mapped m;
        for (dv_native_op& op : m.b.ops)
            if (op.offset >= 0) op.offset = offset;
        check_refused(isa, "an offset of " + std::to_string(offset), m.b,
                      "ops[4].offset (input): found " + std::to_string(offset) + ", expected 0..7");
    }
    const auto filter = [isa](const std::string& name, int32_t dv_native_op::*field, int32_t value, const std::string& sentence) {
        Builder b(1);
        b.show(b.resize(DV_NATIVE_POOL, b.input({b.port(DV_NATIVE_PORT_MAP, false, 4, 8, 8)}), 2, true));
        b.ops[1].*field = value;
        check_refused(isa, name, b, sentence);
    };
    filter("another filter", &dv_native_op::kernel, 3, "ops[1].kernel (pool): found 3, expected 0 or 4");
    filter("a filter to a quarter", &dv_native_op::factor, 4, "ops[1].factor (pool): found 4, expected 2");
    const auto large = [isa](const std::string& name, int32_t dv_native_op::*field, int32_t value, const std::string& sentence) {
        Builder b(1);
        ConvOptions o;
        o.kernel = 6, o.stride = 2, o.pad = 2;
        b.conv({b.input({b.port(DV_NATIVE_PORT_MAP, false, 4, 8, 8)})}, 5, o, true);
        b.ops[1].*field = value;
        check_refused(isa, name, b, sentence);
    };
    large("6 x 6 of stride 1", &dv_native_op::stride, 1, "ops[1].stride (conv): found 1, expected 2 with kernel 6");
    large("6 x 6 padded by 1", &dv_native_op::pad_top, 1, "ops[1].pad_top (conv): found 1, expected 2");
    large("6 x 6 padded otherwise to the left", &dv_native_op::pad_left, 0, "ops[1].pad_left (conv): found 0, expected 2");
    large("6 x 6 behind doubling", &dv_native_op::upsample, 1,
          "ops[1].upsample (conv): found 1, expected false, or true with kernel 3 and stride 1");
    large("a kernel between", &dv_native_op::kernel, 5, "ops[1].kernel (conv): found 5, expected 1, 3 or 6");
    for (float scale : {NAN, 2e9f}) {
        Mapped m;
        for (dv_native_op& op : m.b.ops)
            if (op.residual >= 0) op.residual_scale = scale;
        check_refused(isa, "a residual's scale of " + std::to_string(scale), m.b,
                      std::string("ops[11].residual_scale (conv): found ") + (scale > 0 ? "2e+09" : "nan") + ", expected -1e+09..1e+09");
    }
    Builder b(1);
    ConvOptions o;
    o.groups = 8;
    b.show(b.norm_map({b.input({b.port(DV_NATIVE_PORT_MAP, false, 40, 4, 4)})}, o));
    check_refused(isa, "a norm of what no convolution has written", b,
                  "ops[1].sources (norm): found a map that input writes, expected maps that conv writes, which gathers the norm's sums");
}

void check_maps(const char* isa) {
    check_inputs(isa);
    check_norm_maps(isa);
    check_filters(isa);
    check_residual_scale(isa);
    Mapped mapped;
    check(isa, "maps: a block with a label map", mapped.b, 3 * kMapRounded, 3);
    check_bits(isa, "maps: same bits of a block with a label map", mapped.b);
    Filtered two;
    check(isa, "maps: a network of filtered sizes", two.b, 3 * kMapRounded, 3);
    check_bits(isa, "maps: same bits of a network of filtered sizes", two.b);
    check_refusals(isa);
}

}  // namespace

#endif  // DIFFUSEVAE_TESTS_NATIVE_MAPS_H
