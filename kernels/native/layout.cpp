// Maps get their place in a sample's arena for as long as they are read; operands get a layout.
#include "layout.h"

#include <algorithm>
#include <utility>

#include "gradient_layout.h"

namespace diffusevae {
namespace native {
namespace {

int64_t rounded_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// First fit over the gaps between live maps.
class Arena {
public:
    int64_t take(int64_t bytes) {
        bytes = rounded_up(bytes, 64);
        int64_t at = 0;
        auto before = live_.begin();
        for (; before != live_.end() && before->first - at < bytes; ++before) at = before->second;
        live_.emplace_hint(before, at, at + bytes);
        size_ = std::max(size_, at + bytes);
        return at;
    }
    void release(int64_t at) { live_.erase(at); }
    int64_t size() const { return size_; }

private:
    std::map<int64_t, int64_t> live_;  // begin -> end
    int64_t size_ = 0;
};

// Stripes whose sums are gathered apart: 64 pixels, or the tiles that Winograd's form transforms at a time; more where there
// would be too many of them.
int32_t stripe_of(int32_t pixels, int32_t tiles) {
    const int32_t most = tiles > 0 ? 256 : 64;
    return std::max<int32_t>(tiles > 0 ? 4 * tiles : 64, int32_t(rounded_up((pixels + most - 1) / most, 64)));
}

// Bytes of Winograd's points that a thread makes before it multiplies them: what L2 holds beside the weights.
constexpr int64_t kPointBytes = int64_t(640) << 10;

class LayoutMaker {
public:
    LayoutMaker(Program program, const Kernels* kernels) : layout_(std::make_shared<Layout>()) {
        layout_->kernels = kernels;
        layout_->program = std::move(program);
    }

    std::shared_ptr<const Layout> run() {
        const auto& ops = layout_->program.ops;
        find_lifetimes();
        maps_.resize(layout_->program.tensors.size());
        layout_->operations.resize(ops.size());
        for (size_t i = 0; i < ops.size(); ++i) {
            place(i);
            place_op(ops[i], layout_->operations[i]);
            release(i);
        }
        layout_->sample_bytes = rounded_up(arena_.size(), 4096) + 4096;
        return layout_;
    }

private:
    const Program& program() const { return layout_->program; }

    template <class Use>
    void each_source(const dv_native_op& op, const Use& use) const {
        if (dv_native_reads_ports(op.kind)) return;
        for (int32_t i = 0; i < count_of(op.sources); ++i) use(op.sources[i]);
        const bool adds = op.kind == DV_NATIVE_CONV || op.kind == DV_NATIVE_NORM_GRADIENT;
        if (adds && op.residual != DV_NATIVE_NONE) use(op.residual);
        if (op.kind == DV_NATIVE_NORM && op.modulation != DV_NATIVE_NONE) use(op.modulation);
        if (op.kind != DV_NATIVE_CONV) return;
        for (int32_t i = 0; i < count_of(op.skip_sources); ++i) use(op.skip_sources[i]);
    }

    void find_lifetimes() {
        const auto& ops = program().ops;
        last_use_.assign(program().tensors.size(), 0);
        needs_sums_.assign(program().tensors.size(), 0);
        for (size_t i = 0; i < ops.size(); ++i) {
            if (ops[i].output != DV_NATIVE_NONE) last_use_[size_t(ops[i].output)] = i;
            each_source(ops[i], [&](int32_t t) { last_use_[size_t(t)] = i; });
            if ((ops[i].kind == DV_NATIVE_CONV || ops[i].kind == DV_NATIVE_NORM) && ops[i].norm_groups > 0)
                for (int32_t s = 0; s < count_of(ops[i].sources); ++s) needs_sums_[size_t(ops[i].sources[s])] = 1;
            if (ops[i].kind == DV_NATIVE_NORM_GRADIENT) needs_sums_[size_t(ops[i].sources[0])] = 1;
        }
    }

    // The output map of op i, with its sums right behind it.
    void place(size_t i) {
        const dv_native_op& op = program().ops[i];
        if (op.output == DV_NATIVE_NONE || program().of_rows) return;
        const dv_native_tensor& t = program().tensor(op.output);
        Map& map = maps_[size_t(op.output)];
        map = Map{0, t.channels, blocks_of(t.channels), t.height, t.width, -1, 0};
        const int64_t bytes = int64_t(map.pixels()) * map.blocks * kBlock * 2;
        int64_t sums = 0;
        if (needs_sums_[size_t(op.output)]) {
            const ConvShape s = conv_shape(program(), op);
            const int32_t pixels = map.pixels() / s.phases, stripe = stripe_of(pixels, winograd_tiles(op, s));
            map.slots = (pixels + stripe - 1) / stripe * s.phases;
            sums = int64_t(map.slots) * 2 * map.blocks * kBlock * int64_t(sizeof(float));
        }
        map.offset = arena_.take(bytes + sums);
        if (sums > 0) map.sums = map.offset + bytes;
    }

    void release(size_t i) {
        if (program().of_rows) return;
        const dv_native_op& op = program().ops[i];
        std::vector<int32_t> ended;
        const auto end = [&](int32_t t) {
            if (last_use_[size_t(t)] == i) ended.push_back(t);
        };
        each_source(op, end);
        if (op.output != DV_NATIVE_NONE) end(op.output);
        std::sort(ended.begin(), ended.end());
        ended.erase(std::unique(ended.begin(), ended.end()), ended.end());
        for (int32_t t : ended) arena_.release(maps_[size_t(t)].offset);
    }

    const Map& map(int32_t tensor) const { return maps_[size_t(tensor)]; }

    void place_op(const dv_native_op& op, Operation& to) {
        to = Operation{};
        to.kind = op.kind;
        switch (op.kind) {
        case DV_NATIVE_INPUT: program().of_rows ? rows(op, to) : input(op, to); break;
        case DV_NATIVE_CONV: conv(op, to); break;
        case DV_NATIVE_NORM: norm_map(op, to); break;
        case DV_NATIVE_ATTENTION: attention(op, to); break;
        case DV_NATIVE_POOL:
        case DV_NATIVE_UPSAMPLE:
            to.resize = Resize{map(op.sources[0]), map(op.output), op.factor, op.kernel == 4};
            to.activation_bytes = map_bytes(to.resize.source) + map_bytes(to.resize.output);
            break;
        case DV_NATIVE_EMBED: embed(op, to); break;
        case DV_NATIVE_NEAREST: nearest(op, to); break;
        case DV_NATIVE_NORM_GRADIENT:
        case DV_NATIVE_ATTENTION_GRADIENT:
        case DV_NATIVE_CLASSIFY: private_floats(place_gradient(program(), op, maps_, *layout_->kernels, to)); break;
        default: rows(op, to);
        }
        layout_->scratch_bytes = std::max(layout_->scratch_bytes, to.scratch_bytes);
    }

    // Winograd where weights are few beside pixels: its own are 16/9 as many, and 4 x 4 maps wait for theirs already.
    // A choice of the shape alone, so that a sample has the same bits in any batch.
    bool winograd(const dv_native_op& op, const ConvShape& s) const {
        return layout_->kernels->transform_weights && op.int8 == 0 && op.kernel == 3 && op.stride == 1 && s.phases == 1
               && s.out_height % 2 == 0 && s.out_width % 2 == 0 && s.out_height * s.out_width >= 64 && s.n_blocks >= 2;
    }

    // Tiles whose points are made and then multiplied; 0 for direct products.
    int32_t winograd_tiles(const dv_native_op& op, const ConvShape& s) const {
        const int64_t tile = int64_t(kPoints) * s.k_blocks * layout_->kernels->bf16_pixel_bytes;
        return !winograd(op, s) ? 0 : tile * 64 <= kPointBytes ? 64 : tile * 32 <= kPointBytes ? 32 : 16;
    }

    static double map_bytes(const Map& m) { return 2.0 * m.pixels() * m.blocks * kBlock; }

    void private_floats(int64_t count) { layout_->private_floats = std::max(layout_->private_floats, count); }

    void input(const dv_native_op& op, Operation& to) {
        Input& in = to.input;
        in.count = count_of(op.sources);
        in.patch = op.kernel;
        in.parts = op.factor;
        in.stride = op.stride;
        in.offset = std::max(op.offset, 0);
        in.tokens = program().port(op.sources[0]).kind == DV_NATIVE_PORT_TOKENS;
        in.output = map(op.output);
        for (int32_t i = 0; i < in.count; ++i) {
            in.port[i] = op.sources[i];
            const dv_native_port& port = program().port(op.sources[i]);
            in.channels[i] = op.offset == DV_NATIVE_NONE ? port.channels : in.output.channels;
            in.values[i] = int64_t(port.channels) * port.height * port.width;
        }
        to.activation_bytes = map_bytes(in.output);
    }

    void embed(const dv_native_op& op, Operation& to) const {
        const dv_native_port& ids = program().port(op.sources[0]);
        Embed& e = to.embed;
        e = Embed{op.sources[0], ids.height, ids.width, op.stride, floats_at(op.weights), floats_at(op.bias),
                  op.output == DV_NATIVE_NONE, false, op.output_port, {}};
        if (!e.to_port) {
            e.output = map(op.output);
        } else {
            const dv_native_port& port = program().port(op.output_port);
            e.to_tokens = port.kind == DV_NATIVE_PORT_TOKENS;
            e.output = Map{0, port.channels, blocks_of(port.channels), port.height, port.width, -1, 0};
        }
        to.activation_bytes = 4.0 * ids.height * ids.width * e.output.channels + map_bytes(e.output);
    }

    void nearest(const dv_native_op& op, Operation& to) const {
        const dv_native_port& in = program().port(op.sources[0]);
        to.nearest = Nearest{op.sources[0], op.output_port, floats_at(op.weights), floats_at(op.bias),
                             (op.factor + kLanes - 1) / kLanes, in.channels, in.height * in.width, op.scale};
        to.flop = 2.0 * in.height * in.width * op.factor * (in.channels + 1.0);
        to.activation_bytes = 8.0 * in.height * in.width * in.channels;
        to.weight_bytes = 4.0 * to.nearest.groups * kLanes * (in.channels + 1.0);
    }

    void attention(const dv_native_op& op, Operation& to) {
        Attention& a = to.attention;
        const bool crossed = op.sources[1] != DV_NATIVE_NONE;
        const int32_t channels = map(op.output).channels, keys = crossed ? op.keys : channels;
        a = Attention{map(op.sources[0]), map(op.sources[crossed ? 1 : 0]), map(op.output), op.heads, channels / op.heads,
                      keys, keys + channels, op.scale};
        const Kernels& k = *layout_->kernels;
        private_floats(AttentionRoom(a, k.attention_queries, k.attention_keys, k.bf16_pixel_bytes).bytes / 4);
        to.scratch_bytes = a.heads * a.head_bytes();
        to.flop = 4.0 * double(a.source.pixels()) * double(a.others.pixels()) * channels;
        to.activation_bytes = map_bytes(a.source) + map_bytes(a.output) + (crossed ? 2.0 * a.others.pixels() * 2 * channels : 0.0);
    }

    // A norm as a map: the part of a convolution that ends before the product.
    void norm_map(const dv_native_op& op, Operation& to) {
        Conv& c = to.conv;
        c.main.count = count_of(op.sources);
        for (int32_t i = 0; i < c.main.count; ++i) {
            c.main.source[i] = map(op.sources[i]);
            c.main.map_blocks += c.main.source[i].blocks;
            to.activation_bytes += map_bytes(c.main.source[i]);
        }
        c.output = map(op.output);
        c.channels = c.output.channels;
        norm(op, c);
        c.modulated = op.modulation != DV_NATIVE_NONE;
        c.row_behind = DV_NATIVE_NONE;
        if (c.modulated) {
            c.modulation = map(op.modulation);
            std::swap(c.row_behind, c.scale_row);
            to.activation_bytes += map_bytes(c.modulation);
        }
        to.activation_bytes += map_bytes(c.output);
        private_floats(4ll * (c.main.map_blocks + c.output.blocks) * kBlock + 3ll * c.output.width * kLanes / 2);
    }

    void conv(const dv_native_op& op, Operation& to) {
        const ConvShape s = conv_shape(program(), op);
        Conv& c = to.conv;
        c.channels = s.channels;
        c.int8 = op.int8 == 1;
        norm(op, c);
        c.weights = bytes_at(op.weights);
        c.skip_weights = op.skip_weights == DV_NATIVE_NONE ? nullptr : bytes_at(op.skip_weights);
        c.steps = int32_t(s.steps());
        c.skip_steps = s.skip_blocks;
        c.n_blocks = s.n_blocks;
        c.phases = s.phases;
        c.bias = floats_at(op.bias);
        c.multiplier = c.int8 ? floats_at(op.multiplier) : nullptr;
        c.bias_row = op.bias_row;
        c.outputs = s.outputs;
        c.tiles = winograd_tiles(op, s);
        if (c.tiles > 0) transform(s, c);
        c.inverse_scale = op.inverse_scale;
        c.zero_point = op.zero_point;
        output(op, s, c);
        operands(op, s, c);
        to.scratch_bytes = rounded_up(c.main.bytes, 64) + rounded_up(c.skip.bytes, 64) + kSlack;
        // Coefficients and sums of the norm, then one padded row.
        private_floats(c.tiles > 0 ? kPoints * (int64_t(c.tiles) * s.k_blocks * c.main.pixel_bytes + 64) / 4 : 0);
        private_floats(5ll * (s.map_blocks + 1) * kBlock + int64_t(c.main.columns) * c.main.pixel_bytes / 4);
        // Coefficients of a LayerNorm a channel, then two a pixel.
        private_floats(c.layer ? 2ll * (s.map_blocks + 1) * kBlock + 2ll * s.height * s.width : 0);
        measure(op, s, c, to);
    }

    void transform(const ConvShape& s, Conv& c) {
        c.steps = kPoints * s.k_blocks;
        layout_->transformed.push_back(std::make_unique<Memory>(int64_t(s.n_blocks) * c.steps * kStepBytes));
        uint8_t* to = layout_->transformed.back()->at();
        layout_->kernels->transform_weights(c.weights, s.n_blocks, s.k_blocks, to);
        c.weights = to;
    }

    void norm(const dv_native_op& op, Conv& c) const {
        c.groups = op.norm_groups;
        c.epsilon = op.norm_epsilon;
        c.layer = op.norm_layer == 1;
        c.norm_weight = floats_at(op.norm_weight);  // null without a norm
        c.norm_bias = floats_at(op.norm_bias);
        c.scale_row = op.scale_row;
        c.activation = op.activation;
    }

    void output(const dv_native_op& op, const ConvShape& s, Conv& c) {
        c.to_port = op.output == DV_NATIVE_NONE;
        c.to_tokens = c.to_port && program().port(op.output_port).kind == DV_NATIVE_PORT_TOKENS;
        c.port = op.output_port;
        c.output_activation = op.output_activation;
        c.output = c.to_port ? Map{0, s.outputs, blocks_of(s.outputs), s.out_height, s.out_width, -1, 0} : map(op.output);
        c.has_residual = op.residual != DV_NATIVE_NONE;
        if (c.has_residual) c.residual = map(op.residual);
        c.residual_scale = op.residual_scale;
        const int32_t height = s.phases == 4 ? s.height : s.out_height, width = s.phases == 4 ? s.width : s.out_width;
        c.pixels = height * width;
        c.stripe = stripe_of(c.pixels, c.tiles);
        c.stripes = (c.pixels + c.stripe - 1) / c.stripe;
        const int32_t step = s.phases == 4 ? 2 : 1;
        c.place = c.tiles > 0 ? table(height, width, s.out_width, 1, true)
                              : table(height, width, int64_t(step) * s.out_width, step);
        for (int32_t p = 0; p < s.phases; ++p) c.phase_place[p] = (p / 2) * s.out_width + p % 2;
    }

    // [height * width]: y * row + x * column, row by row or by tiles of 2 x 2.
    const uint32_t* table(int32_t height, int32_t width, int64_t row, int64_t column, bool by_tiles = false) {
        std::vector<uint32_t>& made = layout_->tables[{height, width, row, column, by_tiles}];
        if (made.empty()) {
            const int64_t side = by_tiles ? 2 : 1;
            made.reserve(size_t(height) * size_t(width));
            for (int64_t tile = 0; tile < height / side * (width / side); ++tile)
                for (int64_t inside = 0; inside < side * side; ++inside) {
                    const int64_t across = width / side;
                    const int64_t y = tile / across * side + inside / side, x = tile % across * side + inside % side;
                    made.push_back(uint32_t(y * row + x * column));
                }
        }
        return made.data();
    }

    void operands(const dv_native_op& op, const ConvShape& s, Conv& c) {
        const Kernels& k = *layout_->kernels;
        const bool plain = op.norm_groups == 0 && op.norm_layer == 0 && op.activation == DV_NATIVE_IDENTITY && !c.int8;
        const int32_t height = s.phases == 4 ? s.height : s.out_height, width = s.phases == 4 ? s.width : s.out_width;
        gather(op.sources, c.int8 ? k.int8_pixel_bytes : k.bf16_pixel_bytes, s.k_blocks, op.kernel, op.stride, op.pad_top, height,
               width, plain, c.main);
        c.main_segments = segments(c.main, c.main_segment, s.taps, s.phases);
        const int64_t bytes = c.main.pixel_bytes;
        if (c.tiles > 0) c.main_segment[0].origin = table(height / 2, width / 2, 2 * c.main.columns * bytes, 2 * bytes);
        if (s.skips == 0) return;
        gather(op.skip_sources, k.bf16_pixel_bytes, s.skip_blocks, 1, 1, 0, s.out_height, s.out_width, true, c.skip);
        c.skip.scratch = rounded_up(c.main.bytes, 64);
        c.skip_segments = segments(c.skip, c.skip_segment, 1, 1);
        for (int32_t i = 0; c.tiles > 0 && i < c.skip_segments; ++i)
            c.skip_segment[i].origin = table(height, width, width * int64_t(c.skip.pixel_bytes), c.skip.pixel_bytes, true);
    }

    void gather(const int32_t (&sources)[kSources], int32_t pixel_bytes, int32_t blocks, int32_t kernel, int32_t stride,
                int32_t pad, int32_t height, int32_t width, bool plain, Gather& g) const {
        g.count = count_of(sources);
        for (int32_t i = 0; i < g.count; ++i) {
            g.source[i] = map(sources[i]);
            g.map_blocks += g.source[i].blocks;
        }
        g.blocks = blocks;
        g.pixel_bytes = pixel_bytes;
        g.kernel = kernel;
        g.stride = stride;
        g.pad_top = g.pad_left = pad;
        g.rows = (height - 1) * stride + kernel;
        g.columns = (width - 1) * stride + kernel;
        g.out_height = height;
        g.out_width = width;
        const bool tiles = layout_->kernels->tiles;
        // Maps are read as they are where nothing is to be done to them and the products take bf16; others need it widened.
        g.in_place = layout_->kernels->bf16_pixel_bytes == 2 * kBlock && plain && kernel == 1 && stride == 1;
        // Sixteen pixels must lie at one stride: a row of them, or maps without padding between the rows.
        g.copies = tiles && kernel > 1 && width % kLanes != 0;
        const int64_t pixels = !g.copies     ? int64_t(g.rows) * g.columns
                               : stride == 1 ? int64_t(kernel) * g.rows * width
                                             : int64_t(kernel) * kernel * height * width;
        g.block_bytes = pixels * pixel_bytes;
        g.bytes = g.in_place ? 0 : g.block_bytes * blocks;
    }

    // One segment of everything prepared, or one a source read in place. Returns their number.
    int32_t segments(const Gather& g, Segment (&to)[kSources], int32_t taps, int32_t phases) {
        const int64_t bytes = g.pixel_bytes;
        const uint32_t* flat = table(g.out_height, g.out_width, g.out_width * bytes, bytes);
        if (g.in_place) {
            for (int32_t i = 0; i < g.count; ++i)
                to[i] = Segment{true, g.source[i].offset, g.source[i].pixels() * bytes, g.source[i].blocks, 1, {}, flat,
                                int32_t(bytes)};
            return g.count;
        }
        Segment& s = to[0];
        s = Segment{false, g.scratch, g.block_bytes, g.blocks, taps, {}, nullptr, int32_t(bytes)};
        if (!g.copies) {
            s.origin = table(g.out_height, g.out_width, int64_t(g.stride) * g.columns * bytes, g.stride * bytes);
            s.pixel_stride = int32_t(g.stride * bytes);
        } else {
            s.origin = flat;
        }
        for (int32_t p = 0; p < phases; ++p)
            for (int32_t t = 0; t < taps; ++t) {
                const int32_t side = phases == 4 ? 2 : g.kernel;
                const int32_t kh = t / side + (phases == 4 ? p / 2 : 0), kw = t % side + (phases == 4 ? p % 2 : 0);
                s.tap[p][t] = int32_t(tap_offset(g, kh, kw));
            }
        return 1;
    }

    static int64_t tap_offset(const Gather& g, int32_t kh, int32_t kw) {
        const int64_t bytes = g.pixel_bytes, line = g.out_width * bytes;
        if (!g.copies) return (int64_t(kh) * g.columns + kw) * bytes;
        if (g.stride == 1) return kw * (g.rows * line) + kh * line;
        return (kh * g.kernel + kw) * (g.out_height * line);
    }

    void measure(const dv_native_op& op, const ConvShape& s, const Conv& c, Operation& to) const {
        double skip_channels = 0.0, read = 0.0;
        for (int32_t i = 0; i < c.main.count; ++i) read += map_bytes(c.main.source[i]);
        for (int32_t i = 0; i < s.skips; ++i) {
            skip_channels += program().tensor(op.skip_sources[i]).channels;
            read += map_bytes(c.skip.source[i]);
        }
        if (c.has_residual) read += map_bytes(c.residual);
        const double pixels = double(s.out_height) * s.out_width;
        const double taps = c.tiles > 0 ? kPoints / 4.0 : op.activation == DV_NATIVE_GEGLU ? 0.5 : s.taps;
        to.flop = 2.0 * pixels * s.outputs * (double(s.channels) * taps + skip_channels);
        to.activation_bytes = read + (c.to_port ? 4.0 * pixels * s.outputs : map_bytes(c.output));
        to.weight_bytes = double(kStepBytes) * s.n_blocks * (double(c.steps) * s.phases + c.skip_steps);
    }

    void rows(const dv_native_op& op, Operation& to) const {
        RowsOp& r = to.rows;
        r.first = op.sources[0];
        r.second = op.sources[1];
        r.output = op.output;
        r.output_port = op.output_port;
        r.entries = op.factor;
        if (op.kind == DV_NATIVE_LOOKUP) r.table = floats_at(op.weights);
        if (op.kind != DV_NATIVE_LINEAR) return;
        const bool to_port = op.output == DV_NATIVE_NONE;
        const int32_t outputs = to_port ? program().port(op.output_port).channels : program().tensor(op.output).channels;
        r.linear = Linear{floats_at(op.weights), floats_at(op.bias), program().tensor(op.sources[0]).channels, outputs,
                          op.activation};
        to.weight_bytes = 4.0 * r.linear.inputs * double(rounded_up(r.linear.outputs, kLanes));
        to.flop = 2.0 * r.linear.inputs * r.linear.outputs;
    }

    const uint8_t* bytes_at(int32_t blob) const { return program().blob(blob); }
    const float* floats_at(int32_t blob) const {
        return blob == DV_NATIVE_NONE ? nullptr : reinterpret_cast<const float*>(bytes_at(blob));
    }

    std::shared_ptr<Layout> layout_;
    std::vector<Map> maps_;
    std::vector<size_t> last_use_;
    std::vector<char> needs_sums_;
    Arena arena_;
};

}  // namespace

std::shared_ptr<const Layout> make_layout(Program program, const Kernels* kernels) {
    return LayoutMaker(std::move(program), kernels).run();
}

}  // namespace native
}  // namespace diffusevae
