// The native kernels against a scalar reference, on every instruction set that runs here: one line a check.
//
// usage: native_selftest [isa] [part of a check's name]; ends with "N passed, M failed" and 1 where one failed.
#include "native_hostile.h"

namespace {

constexpr double kExact = 2e-6, kRounded = 8e-3, kTransformed = 1.2e-2, kQuantised = 2e-2;

const Size kSizes[] = {{1, 1}, {2, 2}, {3, 5}, {4, 4}, {7, 9}, {8, 8}, {5, 16}, {16, 16}, {11, 13}, {6, 32}};

// Plain products: bf16 operands are exact, so only the order of float32 sums differs.
void check_products(const char* isa) {
    const int32_t widths[][2] = {{3, 5}, {32, 32}, {40, 48}, {96, 16}};
    for (const Size& size : kSizes)
        for (const auto& c : widths)
            for (int32_t mode = 0; mode < 5; ++mode) {
                const char* names[] = {"conv 1x1", "conv 3x3", "conv 3x3 / 2", "conv 3x3 / 2 right-bottom", "conv 3x3 doubled"};
                if ((mode == 2 || mode == 3) && (size.height < 2 || size.width < 2)) continue;
                ConvOptions o;
                o.kernel = mode == 0 ? 1 : 3;
                o.stride = mode == 2 || mode == 3 ? 2 : 1;
                o.pad = mode == 3 ? 0 : -1;
                o.upsample = mode == 4;
                Builder b(uint64_t(mode + 7 * c[0]));
                const int32_t in = b.input({b.port(DV_NATIVE_PORT_MAP, false, c[0], size.height, size.width)});
                b.conv({in}, c[1], o, true);
                b.show(b.conv({in}, c[1], o));
                check(isa, named(names[mode], c[0], c[1], size), b, kRounded);
                o.int8 = true;
                Builder quantised(uint64_t(mode + 5 * c[0]));
                const int32_t map = quantised.input({quantised.port(DV_NATIVE_PORT_MAP, false, c[0], size.height, size.width)});
                quantised.conv({map}, c[1], o, true);
                quantised.show(quantised.conv({map}, c[1], o));
                check(isa, named(std::string(names[mode]) + " int8", c[0], c[1], size), quantised, kRounded);
            }
    Builder b(3);
    b.conv({b.input({b.port(DV_NATIVE_PORT_MAP, false, 64, 9, 8)})}, 32, ConvOptions(), true);
    check(isa, "conv 3x3 to float32 is exact but for the order of sums", b, kExact, 3);
}

// Norms whose groups straddle blocks and sources, activations, rows.
void check_norms(const char* isa) {
    const struct { int32_t first, second, groups; } cases[] = {{32, 0, 32}, {48, 48, 32}, {32, 16, 16}, {64, 32, 32}, {20, 12, 8}};
    for (const auto& c : cases)
        for (int32_t activation : {DV_NATIVE_IDENTITY, DV_NATIVE_SILU, DV_NATIVE_GELU, DV_NATIVE_RELU})
            for (int32_t mode = 0; mode < 4; ++mode) {
                const char* names[] = {"norm", "norm scaled by a row", "norm scaled by a shared row", "norm int8"};
                const Size size = mode % 2 == 0 ? Size{8, 8} : Size{5, 7};
                Builder b(uint64_t(c.first + mode));
                std::vector<int32_t> sources = {b.source(c.first, size.height, size.width)};
                if (c.second > 0) sources.push_back(b.source(c.second, size.height, size.width));
                ConvOptions o;
                o.groups = c.groups;
                o.activation = activation;
                o.scale_row = mode == 1 || mode == 2;
                o.bias_row = mode != 0;
                o.int8 = mode == 3;
                b.conv(sources, 33, o, true);
                const std::string what = std::string(names[mode]) + " activation " + std::to_string(activation);
                check(isa, named(what, c.first + c.second, 33, size), b, o.int8 ? kQuantised : kRounded, 3, mode == 2);
            }
    // Over 64 x 64 pixels, sums come from many stripes.
    Builder b(8);
    ConvOptions o;
    o.groups = 4;
    o.kernel = 1;
    b.conv({b.source(4, 70, 64)}, 3, o, true);
    check(isa, "norm over many stripes", b, kRounded, 1);
}

// What is added in the epilogue: residual, skip of several sources, rows; and a block as a UNet has it.
void check_added(const char* isa) {
    for (const Size& size : {Size{4, 4}, Size{9, 6}, Size{16, 16}})
        for (bool int8 : {false, true})
            for (bool skip : {false, true}) {
                Builder b(17);
                const int32_t first = b.source(64, size.height, size.width), second = b.source(24, size.height, size.width);
                ConvOptions o;
                o.groups = 8;
                o.activation = DV_NATIVE_SILU;
                o.bias_row = true;
                o.int8 = int8;
                const int32_t h = b.conv({first, second}, 64, o);
                o.groups = 32;
                o.bias_row = false;
                if (skip) o.skips = {first, second};
                if (!skip) o.residual = first;
                const int32_t out = b.conv({h}, 64, o);
                o = ConvOptions();
                o.upsample = true;
                o.int8 = int8;
                b.show(b.conv({out}, 64, o));
                const std::string what = std::string("block with ") + (skip ? "skip" : "residual") + (int8 ? " int8" : "");
                check(isa, named(what, 88, 64, size), b, int8 ? 3 * kQuantised : 2 * kRounded, 3);
            }
}

// Maps large enough for Winograd's form: tiles that do and do not fill a block, stripes, chunks of tiles, what is added.
void check_winograd(const char* isa) {
    const struct { int32_t first, second, outputs; Size size; } cases[] = {
        {32, 0, 32, {16, 16}}, {40, 0, 48, {18, 20}}, {64, 0, 33, {18, 34}}, {24, 40, 64, {8, 50}},
        {352, 0, 16, {16, 18}}, {704, 0, 16, {16, 16}}};
    for (const auto& c : cases)
        for (int32_t mode = 0; mode < (c.first > 100 ? 1 : 3); ++mode) {
            const char* names[] = {"winograd", "winograd with residual and row", "winograd with skip and norm"};
            Builder b(uint64_t(c.first + mode));
            std::vector<int32_t> sources = {b.source(c.first, c.size.height, c.size.width)};
            if (c.second > 0) sources.push_back(b.source(c.second, c.size.height, c.size.width));
            ConvOptions o;
            o.bias_row = mode == 1;
            if (mode == 1) o.residual = b.source(c.outputs, c.size.height, c.size.width);
            if (mode == 2) o.groups = 8, o.activation = DV_NATIVE_SILU, o.skips = sources;
            const int32_t out = b.conv(sources, c.outputs, o);
            o = ConvOptions();          // sums of the stripes, by way of a norm
            o.kernel = 1;
            o.groups = 1;
            b.conv({out}, 3, o, true);
            check(isa, named(names[mode], c.first + c.second, c.outputs, c.size), b, kTransformed);
        }
}

void check_attention(const char* isa) {
    for (int32_t heads : {1, 2, 4})
        for (int32_t channels : {32, 24, 80})
            for (const Size& size : {Size{1, 1}, Size{3, 3}, Size{4, 4}, Size{5, 8}}) {
                Builder b{uint64_t(heads)};
                b.show(b.attention(b.source(3 * channels, size.height, size.width), heads, 0.3f));
                check(isa, named("attention with " + std::to_string(heads) + " heads", channels, channels, size), b, 2 * kRounded);
            }
    // More keys than a block, the last of which is not full; weights spread out, and all but all of it on one key.
    for (const Size& size : {Size{17, 19}, Size{12, 43}})
        for (float scale : {0.1f, 8.0f}) {
            Builder b{uint64_t(size.width)};
            b.show(b.attention(b.source(120, size.height, size.width), 2, scale));
            check(isa, named("attention by blocks, scale " + std::to_string(scale), 40, 40, size), b, 2 * kRounded, 1);
            if (scale < 1.0f) check_bits(isa, named("attention by blocks, same bits", 40, 40, size), b);
        }
}

// The 1 GiB that all scores of 16,384 pixels would take is never there; queries here and there against a sum in float64.
void check_large_attention(const char* isa) {
    constexpr int64_t kSide = 128, kPixels = kSide * kSide, kChannels = 8;
    const std::string name = std::string(isa) + " 16384 pixels look at each other in a few MB";
    if (name.find(wanted) == std::string::npos) return;
    Builder b(11);
    const int32_t from = b.port(DV_NATIVE_PORT_MAP, false, 3 * kChannels, kSide, kSide);
    const int32_t shown = b.show(b.attention(b.input({from}), 1, 0.7f));
    const Inputs in = draw_inputs(b, 1, 0, 0);
    const Handle open(b, isa, 2);
    if (open.status != DV_NATIVE_OK) return report(false, name, open.text);
    dv_native_info info;
    dv_native_describe(open.handle, &info);
    const int64_t before = peak_kib();
    const Result got = run(open.handle, b, in, 1, 0);
    const int64_t grown = peak_kib() - before;
    const auto at = [&](int64_t c, int64_t p) { return reference::bf16(in.ports[size_t(from)][size_t(c * kPixels + p)]); };
    double off = 0.0;
    for (int64_t q = 0; q < kPixels; q += 1365) {
        std::vector<double> sum(kChannels + 1, 0.0);
        for (int64_t k = 0; k < kPixels; ++k) {
            double score = 0.0;
            for (int64_t c = 0; c < kChannels; ++c) score += at(c, q) * at(kChannels + c, k);
            const double weight = std::exp(double(0.7f) * score);
            for (int64_t c = 0; c < kChannels; ++c) sum[size_t(c)] += weight * at(2 * kChannels + c, k);
            sum[kChannels] += weight;
        }
        for (int64_t c = 0; c < kChannels; ++c) {
            const double d = std::fabs(got.ports[size_t(shown)][size_t(c * kPixels + q)] - sum[size_t(c)] / sum[kChannels]);
            off = d <= off ? off : d;
        }
    }
    const bool small = info.arena_bytes < (int64_t(64) << 20) && grown < int64_t(64) << 10;
    report(got.status == DV_NATIVE_OK && off <= 2 * kRounded && small, name, "deviation " + std::to_string(off) + ", "
           + std::to_string(info.arena_bytes >> 20) + " MiB planned, " + std::to_string(grown >> 10) + " MiB more at the peak");
}

// What transformers are made of: each by itself, on maps and channels that fill a block and that do not.
void check_transformers(const char* isa) {
    for (const Size& size : {Size{1, 1}, Size{5, 3}, Size{8, 8}}) {
        for (int32_t channels : {24, 32, 80}) {
            for (bool int8 : {false, true}) {
                Builder b{uint64_t(channels + size.height)};
                ConvOptions o = Builder::one();
                o.layer = true;
                o.int8 = int8;
                b.conv({b.source(channels, size.height, size.width)}, 40, o, true);
                const std::string what = std::string("transformer: layer norm") + (int8 ? " int8" : "");
                check(isa, named(what, channels, 40, size), b, int8 ? kQuantised : 2 * kRounded);
            }
        }
        for (int32_t tokens : {1, 5, 40, 300})
            for (int32_t heads : {1, 4}) {
                Builder b{uint64_t(tokens)};
                const int32_t words = b.input({b.port(DV_NATIVE_PORT_TOKENS, false, 130, tokens)});
                b.show(b.attention(b.source(48, size.height, size.width), heads, 0.3f, words, 17));
                check(isa, named("transformer: attention to " + std::to_string(tokens) + " tokens", 48, 48, size), b, 2 * kRounded);
            }
        for (int32_t channels : {64, 128, 192, 320})  // int8 takes blocks in pairs: of an odd number, half a pair is empty
            for (bool int8 : {false, true}) {
                Builder b{uint64_t(channels)};
                ConvOptions o = Builder::one();
                o.activation = DV_NATIVE_GEGLU;
                o.residual = b.source(40, size.height, size.width);
                o.int8 = int8;
                b.show(b.conv({b.source(channels, size.height, size.width)}, 40, o));
                const std::string what = std::string("transformer: geglu") + (int8 ? " int8" : " without a norm");
                check(isa, named(what, channels, 40, size), b, int8 ? kQuantised : 2 * kRounded);
            }
        Builder b(3);
        ConvOptions o = Builder::one();
        o.int8 = true;
        o.residual = b.source(40, size.height, size.width);
        b.show(b.conv({b.attention(b.source(120, size.height, size.width), 2, 0.3f)}, 40, o));
        check(isa, named("transformer: int8 behind attention", 120, 40, size), b, 2 * kRounded);
    }
}

void check_pixels(const char* isa) {
    for (int32_t factor : {1, 2, 4})
        for (int32_t channels : {3, 64}) {
            const Size size{4 * factor, 3 * factor};
            Builder b(1);
            const int32_t p = b.port(DV_NATIVE_PORT_MAP, false, channels, size.height, size.width);
            b.show(b.resize(DV_NATIVE_POOL, b.input({p}), factor));
            check(isa, named("pool by " + std::to_string(factor), channels, channels, size), b, kRounded);
            Builder up(1);
            const int32_t q = up.port(DV_NATIVE_PORT_MAP, false, channels, size.height, size.width);
            up.show(up.resize(DV_NATIVE_UPSAMPLE, up.input({q}), factor));
            check(isa, named("upsample by " + std::to_string(factor), channels, channels, size), up, 0.0);
        }
    for (const Size& size : kSizes) {
        Builder b(2);
        const int32_t x = b.port(DV_NATIVE_PORT_MAP, false, 3, size.height, size.width);
        const int32_t cond = b.port(DV_NATIVE_PORT_MAP, false, 2, size.height, size.width);
        b.show(b.input({x, cond}, 3, 1, 1 + size.height % 2));
        ConvOptions o;
        o.output_activation = size.height % 2 == 0 ? DV_NATIVE_SIGMOID : DV_NATIVE_SIGNED_SIGMOID;
        o.activation = DV_NATIVE_GELU;
        b.conv({b.input({x, cond})}, 3, o, true);
        check(isa, named("patches, and a sigmoid behind", 5, 45, size), b, kRounded);
    }
}

// 2 sigmoid - 1 is the sigmoid times 2 less 1 in float32, to the bit.
void check_signed_sigmoid(const char* isa) {
    const std::string name = std::string(isa) + " signed sigmoid has the same bits as the sigmoid, scaled";
    if (name.find(wanted) == std::string::npos) return;
    std::vector<float> answers[2];
    for (const bool is_signed : {false, true}) {
        Builder b(9);
        ConvOptions o;
        o.output_activation = is_signed ? DV_NATIVE_SIGNED_SIGMOID : DV_NATIVE_SIGMOID;
        const int32_t shown = b.conv({b.source(16, 9, 7)}, 3, o, true);
        const Handle open(b, isa, 2);
        answers[is_signed] = run(open.handle, b, draw_inputs(b, 2, 0, 0), 2, 0).ports[size_t(shown)];
    }
    bool same = answers[0].size() == 2 * 3 * 9 * 7;
    for (size_t i = 0; i < answers[0].size(); ++i) same = same && answers[1][i] == answers[0][i] * 2.0f - 1.0f;
    report(same, name, "");
}

void check_rows(const char* isa) {
    for (bool z : {false, true}) {
        Builder b(4);
        const int32_t steps = b.port(DV_NATIVE_PORT_STEPS, false, 1);
        dv_native_op op = Builder::blank(DV_NATIVE_LOOKUP);
        op.sources[0] = steps;
        op.factor = 10;
        op.output = b.rows(DV_NATIVE_ROWS_STEPS, 20);
        op.weights = b.values(200, 200, 200, -1.0f, 1.0f);
        b.ops.push_back(op);
        const auto linear = [&](int32_t from, int32_t rows, int32_t inputs, int32_t outputs, int32_t activation, bool to_port) {
            dv_native_op l = Builder::blank(DV_NATIVE_LINEAR);
            l.sources[0] = from;
            l.activation = activation;
            l.weights = b.values((outputs + 15) / 16 * 16 * inputs, 16, 16, -0.5f, 0.5f);
            l.bias = b.values((outputs + 15) / 16 * 16, outputs, 1 << 20, -0.5f, 0.5f);
            if (to_port)
                l.output_port = b.port(DV_NATIVE_PORT_TABLE, true, outputs, 1, 1, rows);
            else
                l.output = b.rows(rows, outputs);
            b.ops.push_back(l);
            return l.output;
        };
        int32_t h = linear(op.output, DV_NATIVE_ROWS_STEPS, 20, 37, DV_NATIVE_IDENTITY, false);
        int32_t rows = DV_NATIVE_ROWS_STEPS;
        if (z) {
            const int32_t from = b.input({b.port(DV_NATIVE_PORT_TABLE, false, 9, 1, 1, DV_NATIVE_ROWS_BATCH)});
            const int32_t other = linear(from, DV_NATIVE_ROWS_BATCH, 9, 37, DV_NATIVE_SILU, false);
            dv_native_op add = Builder::blank(DV_NATIVE_ADD);
            add.sources[0] = h;
            add.sources[1] = other;
            add.output = h = b.rows(rows = DV_NATIVE_ROWS_PAIRS, 37);
            b.ops.push_back(add);
        }
        linear(h, rows, 37, 50, DV_NATIVE_SILU, true);
        check(isa, z ? "timestep table with z" : "timestep table", b, kExact, 3, false, 7);
    }
}

void check_all(const char* isa) {
    check_products(isa);
    check_norms(isa);
    check_added(isa);
    check_winograd(isa);
    check_attention(isa);
    check_large_attention(isa);
    check_transformers(isa);
    check_pixels(isa);
    check_signed_sigmoid(isa);
    check_rows(isa);
    check_tables(isa);
    check_gradients(isa);
    check_maps(isa);
    check_same_bits(isa);
    check_steps(isa);
    check_handles(isa);
    check_hostile_programs(isa);
}

}  // namespace

int main(int count, char** arguments) {
    wanted = count > 2 ? arguments[2] : "";
    for (const char* isa : {"avx2", "avx512", "avx512_bf16", "amx"}) {
        char why[256];
        if (count > 1 && std::string(arguments[1]) != isa && *arguments[1] != 0) continue;
        if (dv_native_supports(isa, why, sizeof why) == 1)
            check_all(isa);
        else
            std::printf("skipped %s: %s\n", isa, why);
    }
    std::printf("%d passed, %d failed\n", passed, failed);
    return failed == 0 ? 0 : 1;
}
