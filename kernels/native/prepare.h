// Source maps as the operand of a product. Norm, activation, rounding and padding in one pass over memory.
#ifndef DIFFUSEVAE_NATIVE_PREPARE_H
#define DIFFUSEVAE_NATIVE_PREPARE_H

#include "target.h"
#include "vectors.h"

namespace {

using namespace diffusevae::native;

// Where the channels of one K block of one pixel row come from; a null half is padding.
struct RowSource {
    const uint16_t* half[2];        // blocks of 32 channels; bf16 operands use the first only
    const float *scale[2], *shift[2];
    const uint16_t* gate[2];        // GEGLU: what the blocks are multiplied by
    const float* pixel;             // LayerNorm: of each pixel one over the deviation, and what is added then
};

enum NormKind { kNoNorm, kGroupNorm, kLayerNorm };

// Two sums of each of `width` channels over all stripes, in the order of the stripes: the same bits for any number of threads.
inline void total_sums(const float* sums, int32_t slots, int32_t width, float* total, float* squares) {
    for (int32_t c = 0; c < width; c += kLanes) {
        F16 s = zero(), q = zero();
        for (int32_t slot = 0; slot < slots; ++slot) {
            const float* at = sums + int64_t(slot) * 2 * width + c;
            s = add(s, load(at));
            q = add(q, load(at + width));
        }
        store(total + c, s);
        store(squares + c, q);
    }
}

// Mean and one over the deviation of a group, from its sums.
struct Moments {
    double mean, inverse;
    Moments(double sum, double square, double values, double epsilon) {
        mean = sum / values;
        const double variance = square / values - mean * mean;  // NaN stays NaN
        inverse = 1.0 / __builtin_sqrt((variance > 0.0 ? variance : (variance == variance ? 0.0 : variance)) + epsilon);
    }
};

// The norm as y = x * scale + shift per padded channel. `work` holds four times the padded channels.
inline void norm_coefficients(const Conv& conv, const Work& w, int32_t image, float* scale, float* shift) {
    const int32_t padded = conv.main.map_blocks * kBlock;
    float *total = shift + padded, *squares = total + padded;
    for (int32_t s = 0, at = 0; s < conv.main.count; at += conv.main.source[s].blocks * kBlock, ++s)
        total_sums(w.sums(image, conv.main.source[s]), conv.main.source[s].slots, conv.main.source[s].blocks * kBlock, total + at,
                   squares + at);
    for (int32_t c = 0; c < padded; ++c) scale[c] = shift[c] = 0.0f;

    const int32_t width = conv.channels / conv.groups;
    const double values = double(width) * conv.main.source[0].pixels();
    const float* row = conv.scale_row >= 0 ? w.row_of(image) + conv.scale_row : nullptr;
    int32_t source = 0, inside = 0, at = 0;  // the source, channel in it and padded position of the next channel
    for (int32_t group = 0; group < conv.groups; ++group) {
        double sum = 0.0, square = 0.0;
        const int32_t begin_source = source, begin_inside = inside, begin_at = at;
        const auto advance = [&] {
            ++inside, ++at;
            if (inside < conv.main.source[source].channels) return;
            at += conv.main.source[source].blocks * kBlock - inside;
            inside = 0, ++source;
        };
        for (int32_t k = 0; k < width; ++k) {
            sum += double(total[at]);
            square += double(squares[at]);
            advance();
        }
        const Moments of(sum, square, values, double(conv.epsilon));
        source = begin_source, inside = begin_inside, at = begin_at;
        for (int32_t k = 0; k < width; ++k) {
            const int32_t c = group * width + k;
            float a = float(of.inverse) * conv.norm_weight[c];
            float b = conv.norm_bias[c] - float(of.mean) * a;
            if (row) {
                a *= 1.0f + row[c];
                b = b * (1.0f + row[c]) + row[conv.channels + c];
            }
            scale[at] = a;
            shift[at] = b;
            advance();
        }
    }
}

// A LayerNorm as y = (x * pixel[0] + pixel[1]) * scale + shift: `scale` and `shift` a padded channel, `pixel` two a pixel of the
// rows first .. last. Mean first, then the squares of what differs from it; the padding of the last block counts in neither.
inline void layer_coefficients(const Conv& conv, const Work& w, int32_t image, int32_t first, int32_t last, float* scale,
                               float* shift, float* pixel) {
    const Map& map = conv.main.source[0];
    float mask[kBlock];
    for (int32_t c = 0; c < kBlock; ++c) mask[c] = (map.blocks - 1) * kBlock + c < map.channels ? 1.0f : 0.0f;
    for (int32_t c = 0; c < map.blocks * kBlock; ++c) {
        scale[c] = c < map.channels ? conv.norm_weight[c] : 0.0f;
        shift[c] = c < map.channels ? conv.norm_bias[c] : 0.0f;
    }
    const uint16_t* all = reinterpret_cast<const uint16_t*>(w.at(image, map));
    for (int32_t p = first * map.width; p < last * map.width; ++p) {
        const auto at = [&](int32_t block, int32_t lane) {
            return load_bf16(all + (int64_t(block) * map.pixels() + p) * kBlock + lane);
        };
        F16 sum = zero(), square = zero();
        for (int32_t b = 0; b < map.blocks; ++b) sum = add(sum, add(at(b, 0), at(b, kLanes)));
        const float mean = sum_of(sum) / float(map.channels);
        for (int32_t b = 0; b < map.blocks; ++b)
            for (int32_t lane = 0; lane < kBlock; lane += kLanes) {
                F16 d = sub(at(b, lane), broadcast(mean));
                if (b + 1 == map.blocks) d = mul(d, load(mask + lane));
                square = fma(d, d, square);
            }
        const float inverse = 1.0f / __builtin_sqrtf(sum_of(square) / float(map.channels) + conv.epsilon);
        pixel[2 * p] = inverse;
        pixel[2 * p + 1] = -mean * inverse;
    }
}

template <int kActivation>
DV_INLINE F16 activate(F16 v, const uint16_t* gate) {
    if constexpr (kActivation == DV_NATIVE_SILU) return silu(v);
    if constexpr (kActivation == DV_NATIVE_GELU) return gelu(v);
    if constexpr (kActivation == DV_NATIVE_GEGLU) return mul(v, gelu(load_bf16(gate)));
    if constexpr (kActivation == DV_NATIVE_RELU) return greater(zero(), v);  // NaN stays NaN
    return v;
}

// What an operand's channels become: rounded to bf16, to int8, or finer, for Winograd's form, which rounds them to bf16 once they
// are transformed: float32, or where bf16 is multiplied, float16 in as many bytes.
enum Element { kRounded, kInt8, kFiner };

// A norm bounds what float16 must hold; a value beyond it becomes infinity, which no result survives unseen.
DV_INLINE bool is_finer(const Conv& conv) { return conv.tiles > 0 && conv.groups > 0; }

// 16 channels of one pixel into the operand's element type.
template <Element kElement>
DV_INLINE void put(uint8_t* to, int32_t lane, F16 v, F16 inverse_scale, F16 zero_point) {
    if constexpr (kElement == kFiner) {
#if defined(__AVX512BF16__)
        store_half(reinterpret_cast<uint16_t*>(to) + lane, v);
#else
        store(reinterpret_cast<float*>(to) + lane, v);
#endif
    } else if constexpr (kElement == kInt8) {
        v = fma(v, inverse_scale, zero_point);
#if defined(__AVX512F__)
        store_u8(to + lane, v);
#else
        store_u8_as_s16(reinterpret_cast<int16_t*>(to) + lane, v);
#endif
    } else {
#if defined(__AVX512BF16__)
        store_bf16(reinterpret_cast<uint16_t*>(to) + lane, v);
#else
        store(reinterpret_cast<float*>(to) + lane, round_bf16(v));
#endif
    }
}

template <int kActivation, NormKind kNorm, Element kElement>
void prepare_row(const Conv& conv, const RowSource& from, int32_t pixels, int32_t pixel_bytes, uint8_t* to) {
    const F16 inverse = broadcast(conv.inverse_scale), point = broadcast(float(conv.zero_point));
    for (int32_t half = 0; half < (kElement == kInt8 ? 2 : 1); ++half)
        for (int32_t lane = 0; lane < kBlock; lane += kLanes) {
            const int32_t place = half * kBlock + lane;
            uint8_t* out = to;
            if (!from.half[half]) {
                for (int32_t x = 0; x < pixels; ++x, out += pixel_bytes) put<kElement>(out, place, zero(), inverse, point);
                continue;
            }
            const uint16_t* in = from.half[half] + lane;
            F16 scale = zero(), shift = zero();
            if constexpr (kNorm != kNoNorm) scale = load(from.scale[half] + lane), shift = load(from.shift[half] + lane);
            const uint16_t* gate = kActivation == DV_NATIVE_GEGLU ? from.gate[half] + lane : nullptr;
            for (int32_t x = 0; x < pixels; ++x, in += kBlock, out += pixel_bytes) {
                F16 v = load_bf16(in);
                if constexpr (kNorm == kLayerNorm) v = fma(v, broadcast(from.pixel[2 * x]), broadcast(from.pixel[2 * x + 1]));
                if constexpr (kNorm != kNoNorm) v = fma(v, scale, shift);
                put<kElement>(out, place, activate<kActivation>(v, gate), inverse, point);
                if constexpr (kActivation == DV_NATIVE_GEGLU) gate += kBlock;
            }
        }
}

using PrepareRow = void (*)(const Conv&, const RowSource&, int32_t, int32_t, uint8_t*);

template <NormKind kNorm, Element kElement>
PrepareRow row_kernel(int32_t activation) {
    if (activation == DV_NATIVE_SILU) return prepare_row<DV_NATIVE_SILU, kNorm, kElement>;
    if (activation == DV_NATIVE_GELU) return prepare_row<DV_NATIVE_GELU, kNorm, kElement>;
    if (activation == DV_NATIVE_RELU) return prepare_row<DV_NATIVE_RELU, kNorm, kElement>;
    return prepare_row<DV_NATIVE_IDENTITY, kNorm, kElement>;
}

inline PrepareRow row_kernel(const Conv& conv, bool main) {
    if (!main) return prepare_row<DV_NATIVE_IDENTITY, kNoNorm, kRounded>;
    const int32_t kind = conv.activation;
    if (is_finer(conv)) return row_kernel<kGroupNorm, kFiner>(kind);
    if (conv.layer) return conv.int8 ? row_kernel<kLayerNorm, kInt8>(kind) : row_kernel<kLayerNorm, kRounded>(kind);
    if (kind == DV_NATIVE_GEGLU)
        return conv.int8 ? prepare_row<DV_NATIVE_GEGLU, kNoNorm, kInt8> : prepare_row<DV_NATIVE_GEGLU, kNoNorm, kRounded>;
    if (conv.groups > 0) return conv.int8 ? row_kernel<kGroupNorm, kInt8>(kind) : row_kernel<kGroupNorm, kRounded>(kind);
    return conv.int8 ? row_kernel<kNoNorm, kInt8>(kind) : row_kernel<kNoNorm, kRounded>(kind);
}

// The map block `index` of a concatenation: its rows, or null beyond the last.
inline const uint16_t* block_of(const Gather& g, const Work& w, int32_t image, int32_t index, int32_t y) {
    for (int32_t s = 0; s < g.count; ++s) {
        const Map& map = g.source[s];
        if (index < map.blocks) {
            const int64_t pixel = int64_t(index) * map.pixels() + int64_t(y) * map.width;
            return reinterpret_cast<const uint16_t*>(w.at(image, map)) + pixel * kBlock;
        }
        index -= map.blocks;
    }
    return nullptr;
}

// One padded row of one K block, at `to`.
inline void padded_row(const Conv& conv, const Gather& g, bool main, PrepareRow kernel, const Work& w, int32_t image,
                       int32_t block, int32_t padded_y, const float* scale, const float* shift, const float* pixel, uint8_t* to) {
    const bool int8 = main && conv.int8;
    const int32_t y = padded_y - g.pad_top, bytes = g.pixel_bytes;
    const RowSource none{};
    // Zeros are the same in every element but int8.
    const PrepareRow pad = int8 ? prepare_row<DV_NATIVE_IDENTITY, kNoNorm, kInt8> : prepare_row<DV_NATIVE_IDENTITY, kNoNorm, kRounded>;
    if (y < 0 || y >= g.source[0].height) return pad(conv, none, g.columns, bytes, to);
    const int32_t available = g.columns - g.pad_left;
    const int32_t width = g.source[0].width < available ? g.source[0].width : available;
    if (g.pad_left > 0) pad(conv, none, g.pad_left, bytes, to);
    const bool gated = main && conv.activation == DV_NATIVE_GEGLU;
    const int32_t blocks = gated ? g.map_blocks / 2 : g.map_blocks;  // behind them lie a GEGLU's gates
    RowSource from{};
    for (int32_t half = 0; half < (int8 ? 2 : 1); ++half) {
        const int32_t index = int8 ? 2 * block + half : block;
        if (index >= blocks) break;
        from.half[half] = block_of(g, w, image, index, y);
        from.scale[half] = scale + int64_t(index) * kBlock;
        from.shift[half] = shift + int64_t(index) * kBlock;
        if (gated) from.gate[half] = block_of(g, w, image, index + blocks, y);
    }
    if (main && conv.layer) from.pixel = pixel + 2ll * y * g.source[0].width;
    kernel(conv, from, width, bytes, to + int64_t(g.pad_left) * bytes);
    if (width < available) pad(conv, none, available - width, bytes, to + int64_t(g.pad_left + width) * bytes);
}

// Copies a finished padded row to wherever a tap reads it: tiles need their pixels at one stride (see Gather::copies).
inline void spread_row(const Gather& g, int32_t padded_y, const uint8_t* row, uint8_t* block) {
    const int64_t bytes = g.pixel_bytes, line = g.out_width * bytes;
    if (g.stride == 1) {
        const int64_t copy = g.rows * line;
        for (int32_t kw = 0; kw < g.kernel; ++kw)
            __builtin_memcpy(block + kw * copy + padded_y * line, row + kw * bytes, size_t(line));
        return;
    }
    const int64_t copy = g.out_height * line;
    for (int32_t kh = 0; kh < g.kernel; ++kh) {
        const int32_t y = padded_y - kh;
        if (y < 0 || y % g.stride != 0 || y / g.stride >= g.out_height) continue;
        for (int32_t kw = 0; kw < g.kernel; ++kw) {
            uint8_t* to = block + (kh * g.kernel + kw) * copy + y / g.stride * line;
            for (int32_t x = 0; x < g.out_width; ++x)
                __builtin_memcpy(to + x * bytes, row + (x * g.stride + kw) * bytes, size_t(bytes));
        }
    }
}

inline void prepare_gather(const Conv& conv, const Gather& g, bool main, const Work& w, bool by_rows) {
    if (g.count == 0 || g.in_place) return;
    const PrepareRow kernel = row_kernel(conv, main);
    const int64_t samples = w.last - w.first, units = by_rows ? samples * g.rows : samples * g.blocks;
    const Range mine = units_of(w, units);
    const int32_t padded = conv.main.map_blocks * kBlock + kBlock;  // an odd block count leaves half a pair
    float *scale = w.private_scratch, *shift = scale + padded, *wide = shift + 3 * int64_t(padded);
    uint8_t* line = reinterpret_cast<uint8_t*>(wide);
    float* pixel = shift + padded;  // of a LayerNorm, which needs no sums
    const int32_t per_sample = by_rows ? g.rows : g.blocks;
    for (int64_t unit = mine.first; unit < mine.last;) {
        const int32_t sample = int32_t(unit / per_sample), image = w.first + sample;
        const int32_t from = int32_t(unit % per_sample);
        const int64_t left = mine.last - unit;
        const int32_t to = from + int32_t(left < per_sample - from ? left : per_sample - from);
        if (main && conv.groups > 0 && *w.held != image) norm_coefficients(conv, w, image, scale, shift), *w.held = image;
        if (main && conv.layer && (by_rows || *w.held != image)) {
            // Every piece of rows its own, and all of them where the operand is cut by blocks.
            layer_coefficients(conv, w, image, by_rows ? from : 0, by_rows ? to : g.rows, scale, shift, pixel);
            if (!by_rows) *w.held = image;
        }
        uint8_t* base = w.scratch + sample * w.scratch_stride + g.scratch;
        for (int32_t b = by_rows ? 0 : from; b < (by_rows ? g.blocks : to); ++b)
            for (int32_t y = by_rows ? from : 0; y < (by_rows ? to : g.rows); ++y) {
                uint8_t* block = base + b * g.block_bytes;
                uint8_t* row = g.copies ? line : block + int64_t(y) * g.columns * g.pixel_bytes;
                padded_row(conv, g, main, kernel, w, image, b, y, scale, shift, pixel, row);
                if (g.copies) spread_row(g, y, row, block);
            }
        unit += to - from;
    }
}

void prepare(const Conv& conv, const Work& w) {
    const int32_t groups = conv.n_blocks * conv.phases;
    const Share share = share_of(int64_t(w.last - w.first) * conv.stripes, groups, w.part, w.parts);
    // Rows where the product is cut by pixels: each thread prepares most of what it reads.
    const bool by_rows = share.group_last - share.group_first == groups;
    prepare_gather(conv, conv.main, true, w, by_rows);
    prepare_gather(conv, conv.skip, false, w, by_rows);
}

}  // namespace

#endif  // DIFFUSEVAE_NATIVE_PREPARE_H
