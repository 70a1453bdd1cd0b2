// What stored tables do: rows that ids name, the nearest code of a pixel, and tokens that leave a program.
#ifndef DIFFUSEVAE_TESTS_NATIVE_TABLES_H
#define DIFFUSEVAE_TESTS_NATIVE_TABLES_H

#include "native_runs.h"

namespace {

constexpr double kTableExact = 2e-6, kTableRounded = 8e-3;

// Rows of a table of kIds entries, in the mean of side x side ids; to a map, or to a port of the kind `to`.
int32_t embedded(Builder& b, int32_t height, int32_t width, int32_t channels, int32_t side, bool places, int32_t to) {
    dv_native_op op = Builder::blank(DV_NATIVE_EMBED);
    const int32_t h = height / side, w = width / side;
    op.sources[0] = b.port(DV_NATIVE_PORT_IDS, false, 1, height, width);
    op.factor = kIds;
    op.stride = side;
    op.weights = b.values(kIds * channels, channels, channels, -1.0f, 1.0f);
    if (places) op.bias = b.values(h * w * channels, channels, channels, -0.5f, 0.5f);
    if (to == DV_NATIVE_NONE)
        op.output = b.map(channels, h, w);
    else
        op.output_port = b.port(to, true, channels, h, w);
    b.ops.push_back(op);
    return op.output;
}

int32_t coded(Builder& b, int32_t height, int32_t width, int32_t channels, int32_t codes, float scale) {
    dv_native_op op = Builder::blank(DV_NATIVE_NEAREST);
    op.sources[0] = b.port(DV_NATIVE_PORT_MAP, false, channels, height, width);
    op.factor = codes;
    op.scale = scale;
    op.weights = b.values((codes + 15) / 16 * 16 * channels, 16, 16, -2.0f, 2.0f);
    op.bias = b.halves(op.weights, codes, channels);
    op.output_port = b.port(DV_NATIVE_PORT_MAP, true, channels, height, width);
    b.ops.push_back(op);
    return op.output_port;
}

// Embeddings and places, a LayerNorm and a matrix to tokens, as a token encoder begins and ends.
struct Encoder {
    Builder b{8};
    Encoder() {
        ConvOptions layer = Builder::one();
        layer.layer = true;
        const int32_t h = embedded(b, 7, 1, 40, 1, true, DV_NATIVE_NONE), out = b.conv({h}, 24, layer, true);
        b.ports[size_t(out)].kind = DV_NATIVE_PORT_TOKENS;
        coded(b, 3, 5, 4, 37, 0.5f);
    }
};

void check_tables(const char* isa) {
    for (const bool places : {false, true})
        for (const int32_t channels : {3, 32, 70}) {
            const std::string of = " of " + std::to_string(channels) + (places ? ", places" : "");
            Builder map(1), tokens(2), halved(3), one(4);
            map.show(embedded(map, 6, 4, channels, 1, places, DV_NATIVE_NONE));
            check(isa, "tables: ids to a map" + of, map, kTableRounded, 3);
            embedded(tokens, 9, 1, channels, 1, places, DV_NATIVE_PORT_TOKENS);
            check(isa, "tables: ids to tokens" + of, tokens, places ? kTableExact : 0.0, 3);
            embedded(halved, 12, 8, channels, 4, places, DV_NATIVE_PORT_MAP);
            check(isa, "tables: the mean of 4 x 4 ids to a map port" + of, halved, kTableExact, 3);
            embedded(one, 1, 1, channels, 1, places, DV_NATIVE_PORT_TOKENS);
            check(isa, "tables: one id to a token" + of, one, places ? kTableExact : 0.0, 5);
        }
    for (const int32_t channels : {1, 3, 8, 64})
        for (const int32_t codes : {1, 5, 16, 300}) {
            Builder b{uint64_t(channels + codes)};
            coded(b, 7, 5, channels, codes, channels == 3 ? 1.0f : 0.25f);
            check(isa, "tables: nearest of " + std::to_string(codes) + " codes of " + std::to_string(channels), b, 1e-7, 3);
        }
    Encoder encoder;
    check(isa, "tables: tokens behind a layer norm", encoder.b, kTableRounded, 3);
    Builder ids(5), codes(6);
    embedded(ids, 8, 6, 40, 2, true, DV_NATIVE_PORT_MAP);
    coded(codes, 9, 7, 4, 37, 0.5f);
    check_bits(isa, "tables: same bits of ids", ids);
    check_bits(isa, "tables: same bits of codes", codes);
    if (std::string("tables: ids").find(wanted) == std::string::npos) return;
    const Handle open(encoder.b, isa, 2);
    for (const float wrong : {-1.0f, float(kIds)}) {
        Inputs in = draw_inputs(encoder.b, 2, 0, 0);
        in.ports[0].back() = wrong;
        const Result got = run(open.handle, encoder.b, in, 2, 0);
        report(got.status == DV_NATIVE_BAD_CALL, std::string(isa) + " tables: an id beyond the table is refused", got.error);
    }
}

}  // namespace

#endif  // DIFFUSEVAE_TESTS_NATIVE_TABLES_H
