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
    const uint32_t rounded = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
    return uint16_t(x != x ? 0x7FC0u : rounded);  // a caller's NaN may have bits that rounding would carry into the sign
}

// Token y of a sample, whose channels are adjacent.
inline void token(const Map& map, const float* from, int32_t y, uint16_t* out) {
    for (int32_t c = 0; c < map.blocks * kBlock; ++c)
        out[(int64_t(c / kBlock) * map.pixels() + y) * kBlock + c % kBlock] = c < map.channels ? bf16_of(from[c]) : uint16_t(0);
}

// What bf16 leaves of a number, and where that part is asked for, what it leaves out, in bf16 again.
DV_INLINE uint16_t part_of(float x, int32_t part) {
    const uint16_t rounded = bf16_of(x);
    const uint32_t bits = uint32_t(rounded) << 16;
    float near;
    __builtin_memcpy(&near, &bits, 4);
    return part == 0 ? rounded : bf16_of(x - near);  // infinity leaves NaN, which no result survives unseen
}

constexpr int32_t kTurned = 8, kRowPixels = 128;  // channels, and pixels of a row, that are turned around together

// Eight channels of up to kRowPixels pixels, a row each, to eight adjacent channels of every pixel. Rows are read to a multiple of 8.
DV_INLINE void turn_rows(const uint16_t* const (&rows)[kTurned], int32_t pixels, uint16_t* to) {
    for (int32_t x = 0; x < pixels; x += 8) {
        __m128i r[8], s[8];
        for (int i = 0; i < 8; ++i) r[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[i] + x));
        for (int i = 0; i < 4; ++i)
            s[2 * i] = _mm_unpacklo_epi16(r[2 * i], r[2 * i + 1]), s[2 * i + 1] = _mm_unpackhi_epi16(r[2 * i], r[2 * i + 1]);
        for (int i = 0; i < 8; i += 4)
            for (int j = 0; j < 2; ++j) {
                r[i + 2 * j] = _mm_unpacklo_epi32(s[i + j], s[i + 2 + j]);
                r[i + 2 * j + 1] = _mm_unpackhi_epi32(s[i + j], s[i + 2 + j]);
            }
        for (int i = 0; i < 4; ++i) s[2 * i] = _mm_unpacklo_epi64(r[i], r[4 + i]), s[2 * i + 1] = _mm_unpackhi_epi64(r[i], r[4 + i]);
        for (int32_t i = 0; i < 8 && x + i < pixels; ++i)
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to + int64_t(x + i) * kBlock), s[i]);
    }
}

// Some pixels of one row of a map, channel by channel: all ports, then what rounding left out of the first; of patches, channel c of
// shift (kh, kw) is map channel c*9 + kh*3 + kw.
class InputRow {
public:
    InputRow(const Input& op, const Work& w) : op_(op), w_(w), pad_(op.patch / 2) {}

    void begin(int32_t image, int32_t y, int32_t first, int32_t count) {
        image_ = w_.sample + image, y_ = y, first_ = first, count_ = count;
        part_ = port_ = channel_ = shift_ = slot_ = 0;
    }

    // The next channel; zeros behind the last.
    DV_INLINE const uint16_t* next() {
        if (part_ == op_.parts) return zeros_;
        if (shift_ == 0) round();
        const uint16_t* row = rows_[slot_][shift_ / op_.patch] + kEdge - pad_ + shift_ % op_.patch;
        if (++shift_ == op_.patch * op_.patch) shift_ = 0, advance();
        return row;
    }

private:
    static constexpr int32_t kEdge = 8;  // pixels beside a row, of which a patch sees one

    DV_INLINE void advance() {
        slot_ = (slot_ + 1) % kTurned;   // of eight channels that are read together none is overwritten
        if (++channel_ < op_.channels[port_]) return;
        channel_ = 0;
        if (++port_ < op_.count && part_ == 0) return;
        port_ = 0, ++part_;
    }

    template <int32_t kPart>
    DV_INLINE static void round_all(const float* __restrict in, int32_t count, uint16_t* __restrict to) {
        for (int32_t x = 0; x < count; ++x) to[x] = part_of(in[x], kPart);
    }

    // The rows of a port's channel that its patches lie in, rounded, with zeros outside of the image.
    void round() {
        const int32_t height = op_.output.height, width = op_.output.width, stride = op_.stride;
        const int64_t line = int64_t(width) * stride;
        const float* plane = static_cast<const float*>(w_.ports[op_.port[port_]]) + image_ * op_.values[port_] + op_.offset
                             + channel_ * line * height * stride;
        for (int32_t kh = 0; kh < op_.patch; ++kh) {
            uint16_t* to = rows_[slot_][kh] + kEdge;
            const int32_t y = y_ + kh - pad_;
            if (y < 0 || y >= height) {
                for (int32_t x = -pad_; x < count_ + pad_; ++x) to[x] = 0;
                continue;
            }
            const float* in = plane + (y * line + first_) * stride;
            if (pad_ > 0) to[-1] = first_ > 0 ? part_of(in[-stride], part_) : uint16_t(0);
            if (pad_ > 0) to[count_] = first_ + count_ < width ? part_of(in[int64_t(count_) * stride], part_) : uint16_t(0);
            if (stride > 1)
                for (int32_t x = 0; x < count_; ++x) to[x] = part_of(in[int64_t(x) * stride], part_);
            else
                part_ == 0 ? round_all<0>(in, count_, to) : round_all<1>(in, count_, to);
        }
    }

    const Input& op_;
    const Work& w_;
    int32_t pad_;
    int64_t image_ = 0;
    int32_t y_ = 0, first_ = 0, count_ = 0, part_ = 0, port_ = 0, channel_ = 0, shift_ = 0, slot_ = 0;
    uint16_t rows_[kTurned][3][kEdge + kRowPixels + kEdge] = {}, zeros_[kRowPixels] = {};
};

// Every stride-th pixel of the ports.
void input(const Input& op, const Work& w) {
    const Map& map = op.output;
    const int32_t height = map.height, width = map.width;
    const int64_t units = int64_t(w.last - w.first) * height;
    const Range mine = units_of(w, units);
    InputRow row(op, w);
    for (int64_t unit = mine.first; unit < mine.last; ++unit) {
        const int32_t image = w.first + int32_t(unit / height), y = int32_t(unit % height);
        uint16_t* out = reinterpret_cast<uint16_t*>(w.at(image, map));
        if (op.tokens) {
            token(map, static_cast<const float*>(w.ports[op.port[0]]) + ((w.sample + image) * height + y) * map.channels, y, out);
            continue;
        }
        for (int32_t first = 0; first < width; first += kRowPixels) {
            const int32_t count = width - first < kRowPixels ? width - first : kRowPixels;
            row.begin(image, y, first, count);
            for (int32_t c = 0; c < map.blocks * kBlock; c += kTurned) {
                const uint16_t* rows[kTurned];
                for (auto& channel : rows) channel = row.next();
                turn_rows(rows, count, out + (int64_t(c / kBlock) * map.pixels() + int64_t(y) * width + first) * kBlock + c % kBlock);
            }
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
