// A norm with its activation as a map: what `prepare` makes of a convolution's sources, where other operations can read it.
#ifndef DIFFUSEVAE_NATIVE_NORMS_H
#define DIFFUSEVAE_NATIVE_NORMS_H

#include "prepare.h"

namespace {

using namespace diffusevae::native;

// Sixteen channels of a row of pixels: the first of them, and how far it is to the next pixel's.
struct Lane {
    const uint16_t* at;
    int32_t step;
};

// What a thread holds: the norm's coefficients as they are made, then by the output's channels, then rows whose channels lie apart.
struct NormRoom {
    float *made, *scale, *shift, *row_scale, *row_shift;
    uint16_t* rows[3];
    DV_MERGED NormRoom(const Conv& op, float* at) {
        const int64_t width = op.output.blocks * int64_t(kBlock);
        made = at;
        scale = made + 4ll * op.main.map_blocks * kBlock;
        shift = scale + width, row_scale = shift + width, row_shift = row_scale + width;
        for (int32_t i = 0; i < 3; ++i)
            rows[i] = reinterpret_cast<uint16_t*>(row_shift + width) + int64_t(i) * op.output.width * kLanes;
    }
};

// y = x scale + shift a channel; behind the modulation, which stands between them, y row_scale + row_shift. Zero in the padding.
inline void fill_norm(const Conv& op, const Work& w, int32_t image, const NormRoom& room) {
    const int32_t padded = op.main.map_blocks * kBlock, width = op.output.blocks * kBlock;
    norm_coefficients(op, w, image, room.made, room.made + padded);
    for (int32_t c = 0; c < width; ++c) room.scale[c] = room.shift[c] = room.row_scale[c] = room.row_shift[c] = 0.0f;
    for (int32_t s = 0, c = 0, at = 0; s < op.main.count; at += op.main.source[s].blocks * kBlock, ++s)
        for (int32_t k = 0; k < op.main.source[s].channels; ++k, ++c) {
            room.scale[c] = room.made[at + k];
            room.shift[c] = room.made[padded + at + k];
        }
    if (!op.modulated) return;
    const float* row = op.row_behind >= 0 ? w.row_of(image) + op.row_behind : nullptr;
    for (int32_t c = 0; c < op.channels; ++c) {
        room.row_scale[c] = row ? 1.0f + row[c] : 1.0f;
        room.row_shift[c] = row ? row[op.channels + c] : 0.0f;
    }
}

// Channels first .. first + 16 of some maps together, at row y: where they lie; or beside each other in `room`, where they begin in the
// middle of a vector, lie in two maps or end before sixteen.
inline Lane lane_of(const Map* maps, int32_t count, const Work& w, int32_t image, int32_t first, int32_t last, int32_t y,
                    uint16_t* room) {
    const auto row_of = [&](const Map& map, int32_t channel) {
        return reinterpret_cast<const uint16_t*>(w.at(image, map))
               + (int64_t(channel / kBlock) * map.pixels() + int64_t(y) * map.width) * kBlock + channel % kBlock;
    };
    for (int32_t lane = 0; lane < kLanes; ++lane) {
        int32_t s = 0, inside = first + lane;
        while (s + 1 < count && inside >= maps[s].channels) inside -= maps[s].channels, ++s;
        const Map& map = maps[s];
        if (lane == 0 && inside % kLanes == 0 && inside + kLanes <= map.channels && first + kLanes <= last)
            return Lane{row_of(map, inside), kBlock};
        if (first + lane >= last) {
            for (int32_t x = 0; x < map.width; ++x) room[x * kLanes + lane] = 0;
            continue;
        }
        const uint16_t* from = row_of(map, inside);
        for (int32_t x = 0; x < map.width; ++x) room[x * kLanes + lane] = from[int64_t(x) * kBlock];
    }
    return Lane{room, kLanes};
}

// One row of one block's half.
template <int kActivation>
void norm_row(const Conv& op, const NormRoom& room, int32_t c, const Lane& x, const Lane& g, const Lane& b, uint16_t* to) {
    const F16 scale = load(room.scale + c), shift = load(room.shift + c);
    const F16 row_scale = load(room.row_scale + c), row_shift = load(room.row_shift + c);
    for (int32_t p = 0; p < op.output.width; ++p, to += kBlock) {
        F16 v = fma(load_bf16(x.at + int64_t(p) * x.step), scale, shift);
        if (op.modulated) {
            v = add(fma(v, load_bf16(g.at + int64_t(p) * g.step), v), load_bf16(b.at + int64_t(p) * b.step));
            v = fma(v, row_scale, row_shift);
        }
        store_bf16(to, activate<kActivation>(v, nullptr));
    }
}

// A unit is a row of a block of a sample.
void norm(const Conv& op, const Work& w) {
    using Row = void (*)(const Conv&, const NormRoom&, int32_t, const Lane&, const Lane&, const Lane&, uint16_t*);
    const Row row = op.activation == DV_NATIVE_SILU   ? norm_row<DV_NATIVE_SILU>
                    : op.activation == DV_NATIVE_GELU ? norm_row<DV_NATIVE_GELU>
                    : op.activation == DV_NATIVE_RELU ? norm_row<DV_NATIVE_RELU>
                                                      : norm_row<DV_NATIVE_IDENTITY>;
    const NormRoom room(op, w.private_scratch);
    const Map& out = op.output;
    const int64_t a_sample = int64_t(out.blocks) * out.height;
    const Range mine = units_of(w, int64_t(w.last - w.first) * a_sample);
    for (int64_t unit = mine.first; unit < mine.last; ++unit) {
        const int32_t image = w.first + int32_t(unit / a_sample), inside = int32_t(unit % a_sample);
        const int32_t block = inside / out.height, y = inside % out.height;
        if (*w.held != image) fill_norm(op, w, image, room), *w.held = image;
        uint16_t* to = reinterpret_cast<uint16_t*>(w.at(image, out)) + (int64_t(block) * out.pixels() + int64_t(y) * out.width) * kBlock;
        for (int32_t c = block * kBlock; c < (block + 1) * kBlock; c += kLanes) {
            const int32_t channels = op.channels;
            const Lane x = lane_of(op.main.source, op.main.count, w, image, c, channels, y, room.rows[0]);
            Lane g{}, b{};
            if (op.modulated) {
                g = lane_of(&op.modulation, 1, w, image, c, channels, y, room.rows[1]);
                b = lane_of(&op.modulation, 1, w, image, channels + c, 2 * channels, y, room.rows[2]);
            }
            row(op, room, c, x, g, b, to + c % kBlock);
        }
    }
}

}  // namespace

#endif  // DIFFUSEVAE_NATIVE_NORMS_H
