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
        for (int32_t activation : {DV_NATIVE_IDENTITY, DV_NATIVE_SILU, DV_NATIVE_GELU, DV_NATIVE_RELU})
            for (int32_t mode = 0; mode < 4; ++mode) {
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
    Mapped mapped;
    check(isa, "maps: a block with a label map", mapped.b, 3 * kMapRounded, 3);
    check_bits(isa, "maps: same bits of a block with a label map", mapped.b);
    check_refusals(isa);
}

}  // namespace

#endif  // DIFFUSEVAE_TESTS_NATIVE_MAPS_H
