// Images that enter, shrink and grow. Input with patches, average pooling, nearest upsampling.
#ifndef DIFFUSEVAE_NATIVE_PIXELS_H
#define DIFFUSEVAE_NATIVE_PIXELS_H

#include "target.h"
#include "vectors.h"

namespace {

using namespace diffusevae::native;

DV_INLINE uint16_t bf16_of(float x) {
    uint32_t u;
    __builtin_memcpy(&u, &x, 4);
    if (x != x) return 0x7FC0;      // a caller's NaN may have bits that rounding would carry into the sign
    return uint16_t((u + 0x7FFFu + ((u >> 16) & 1u)) >> 16);
}

// Token y of a sample, whose channels are adjacent.
inline void token(const Map& map, const float* from, int32_t y, uint16_t* out) {
    for (int32_t c = 0; c < map.blocks * kBlock; ++c)
        out[(int64_t(c / kBlock) * map.pixels() + y) * kBlock + c % kBlock] = c < map.channels ? bf16_of(from[c]) : uint16_t(0);
}

// What bf16 leaves of a number, and where that part is asked for, what it leaves out, in bf16 again.
DV_INLINE uint16_t part_of(float x, int32_t part) {
    const uint16_t rounded = bf16_of(x);
    if (part == 0) return rounded;
    const uint32_t bits = uint32_t(rounded) << 16;
    float near;
    __builtin_memcpy(&near, &bits, 4);
    return bf16_of(x - near);       // infinity leaves NaN, which no result survives unseen
}

// Channels in order over all ports, of every stride-th pixel; patches: channel c of shift (kh, kw) is map channel c*9 + kh*3 + kw.
// All of the first part lie before the second.
void input(const Input& op, const Work& w) {
    const Map& map = op.output;
    const int32_t height = map.height, width = map.width, side = op.patch, pad = side / 2, stride = op.stride;
    const int64_t port_row = int64_t(width) * stride, plane_size = port_row * height * stride;
    const int64_t units = int64_t(w.last - w.first) * height;
    const Range mine = units_of(w, units);
    for (int64_t unit = mine.first; unit < mine.last; ++unit) {
        const int32_t image = w.first + int32_t(unit / height), y = int32_t(unit % height);
        uint16_t* out = reinterpret_cast<uint16_t*>(w.at(image, map));
        const auto row_at = [&](int32_t channel) {
            return out + (int64_t(channel / kBlock) * map.pixels() + int64_t(y) * width) * kBlock + channel % kBlock;
        };
        if (op.tokens) {
            token(map, static_cast<const float*>(w.ports[op.port[0]]) + ((w.sample + image) * height + y) * map.channels, y, out);
            continue;
        }
        int32_t channel = 0;
        for (int32_t entry = 0; entry < op.count * op.parts; ++entry) {
            const int32_t p = entry % op.count, part = entry / op.count;
            for (int32_t c = 0; c < op.channels[p]; ++c) {
                const float* plane = static_cast<const float*>(w.ports[op.port[p]]) + (w.sample + image) * op.values[p]
                                     + op.offset + c * plane_size;
                for (int32_t kh = -pad; kh <= pad; ++kh)
                    for (int32_t kw = -pad; kw <= pad; ++kw, ++channel) {
                        uint16_t* to = row_at(channel);
                        const int32_t from = y + kh;
                        for (int32_t x = 0; x < width; ++x, to += kBlock) {
                            const bool inside = from >= 0 && from < height && x + kw >= 0 && x + kw < width;
                            *to = inside ? part_of(plane[from * stride * port_row + (x + kw) * stride], part) : uint16_t(0);
                        }
                    }
            }
        }
        for (; channel < map.blocks * kBlock; ++channel) {
            uint16_t* to = row_at(channel);
            for (int32_t x = 0; x < width; ++x, to += kBlock) *to = 0;
        }
    }
}

// Calls row(source block, output block, y) for this piece's output rows.
template <class Row>
DV_INLINE void resize_rows(const Resize& op, const Work& w, const Row& row) {
    const int32_t height = op.output.height, per_sample = op.output.blocks * height;
    const int64_t units = int64_t(w.last - w.first) * per_sample;
    const Range mine = units_of(w, units);
    for (int64_t unit = mine.first; unit < mine.last; ++unit) {
        const int32_t image = w.first + int32_t(unit / per_sample), block = int32_t(unit % per_sample) / height;
        const uint16_t* in = reinterpret_cast<const uint16_t*>(w.at(image, op.source));
        uint16_t* out = reinterpret_cast<uint16_t*>(w.at(image, op.output));
        row(in + int64_t(block) * op.source.pixels() * kBlock, out + int64_t(block) * op.output.pixels() * kBlock,
            int32_t(unit % height));
    }
}

// What a pixel of a filtered map is made of in one direction: weights from..to of the four, the first of which is of pixel `first`.
struct Taps {
    int32_t first, from, to;
    float weight[4];

    DV_INLINE Taps(bool half, int32_t at, int32_t side) : from(0), to(half ? 4 : 2), weight{0.125f, 0.375f, 0.375f, 0.125f} {
        first = half ? 2 * at - 1 : (at + 1) / 2 - 1;
        if (!half) weight[at % 2] = 0.25f, weight[1 - at % 2] = 0.75f;
        if (first < 0) from = -first;
        if (to > side - first) to = side - first;
    }
};

// The filter 1-3-3-1 in either direction, with zeros around the map. To half the size: 1, 3, 3 and 1 eighths of the four pixels in the
// middle of which the new one lies. To twice the size: 3 quarters of the nearer and 1 of the other.
void filtered(const Resize& op, const Work& w) {
    const int32_t width = op.source.width;
    const bool half = op.output.width < width;
    resize_rows(op, w, [&](const uint16_t* in, uint16_t* out, int32_t y) {
        const Taps down(half, y, op.source.height);
        out += int64_t(y) * op.output.width * kBlock;
        for (int32_t x = 0; x < op.output.width; ++x, out += kBlock) {
            const Taps across(half, x, width);
            for (int32_t lane = 0; lane < kBlock; lane += kLanes) {
                F16 sum = zero();
                for (int32_t i = down.from; i < down.to; ++i)
                    for (int32_t j = across.from; j < across.to; ++j) {
                        const uint16_t* from = in + (int64_t(down.first + i) * width + across.first + j) * kBlock + lane;
                        sum = fma(load_bf16(from), broadcast(down.weight[i] * across.weight[j]), sum);
                    }
                store_bf16(out + lane, sum);
            }
        }
    });
}

void pool(const Resize& op, const Work& w) {
    if (op.filtered) return filtered(op, w);
    const int32_t k = op.factor, from_width = op.source.width, width = op.output.width;
    const F16 share = broadcast(1.0f / float(k * k));
    resize_rows(op, w, [&](const uint16_t* in, uint16_t* out, int32_t y) {
        for (int32_t x = 0; x < width; ++x)
            for (int32_t lane = 0; lane < kBlock; lane += kLanes) {
                F16 sum = zero();
                for (int32_t dy = 0; dy < k; ++dy)
                    for (int32_t dx = 0; dx < k; ++dx)
                        sum = add(sum, load_bf16(in + ((int64_t(y) * k + dy) * from_width + x * k + dx) * kBlock + lane));
                store_bf16(out + (int64_t(y) * width + x) * kBlock + lane, mul(sum, share));
            }
    });
}

void upsample(const Resize& op, const Work& w) {
    if (op.filtered) return filtered(op, w);
    const int32_t k = op.factor, from_width = op.source.width, width = op.output.width;
    resize_rows(op, w, [&](const uint16_t* in, uint16_t* out, int32_t y) {
        for (int32_t x = 0; x < width; ++x)
            __builtin_memcpy(out + (int64_t(y) * width + x) * kBlock, in + (int64_t(y / k) * from_width + x / k) * kBlock,
                             2 * kBlock);
    });
}

}  // namespace

#endif  // DIFFUSEVAE_NATIVE_PIXELS_H
