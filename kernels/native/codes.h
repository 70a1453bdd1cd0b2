// Stored tables: rows that ids name, and the row nearest to a pixel. float32 throughout.
#ifndef DIFFUSEVAE_NATIVE_CODES_H
#define DIFFUSEVAE_NATIVE_CODES_H

#include "pixels.h"
#include "target.h"
#include "vectors.h"

namespace {

using namespace diffusevae::native;

constexpr int kPixelsAtOnce = 8;  // whose scores with sixteen codes stay in registers

// Where the values of one pixel go: bf16 of a map, whose padding is zero, or floats of a port.
struct EmbedTo {
    uint16_t* map;
    float* port;
    int64_t apart;                  // values from one channel of a port to the next
    EmbedTo(const Embed& op, const Work& w, int32_t image, int32_t pixel) : map(nullptr), port(nullptr), apart(0) {
        const Map& m = op.output;
        if (!op.to_port) {
            map = reinterpret_cast<uint16_t*>(w.at(image, m)) + int64_t(pixel) * kBlock;
            return;
        }
        apart = op.to_tokens ? 1 : m.pixels();
        port = static_cast<float*>(w.ports[op.output_port]) + (w.sample + image) * m.channels * int64_t(m.pixels())
               + int64_t(pixel) * (op.to_tokens ? m.channels : 1);
    }
};

void embed(const Embed& op, const Work& w) {
    const Map& map = op.output;
    const int32_t pixels = map.pixels(), side = op.side;
    const float share = 1.0f / float(side * side);
    const Range mine = units_of(w, int64_t(w.last - w.first) * pixels);
    for (int64_t unit = mine.first; unit < mine.last; ++unit) {
        const int32_t image = w.first + int32_t(unit / pixels), pixel = int32_t(unit % pixels);
        const int64_t* ids = static_cast<const int64_t*>(w.ports[op.port]) + (w.sample + image) * op.height * int64_t(op.width)
                             + int64_t(pixel / map.width) * side * op.width + int64_t(pixel % map.width) * side;
        const float* place = op.places ? op.places + int64_t(pixel) * map.channels : nullptr;
        const EmbedTo to(op, w, image, pixel);
        for (int32_t c = 0; c < map.blocks * kBlock; ++c) {
            float value = 0.0f;
            if (c < map.channels) {
                for (int32_t i = 0; i < side * side; ++i)
                    value += op.table[ids[int64_t(i / side) * op.width + i % side] * map.channels + c];
                value = value * share + (place ? place[c] : 0.0f);
                if (to.port) to.port[c * to.apart] = value;
            }
            if (to.map) to.map[int64_t(c / kBlock) * pixels * kBlock + c % kBlock] = bf16_of(value);
        }
    }
}

// Of sixteen candidates the one with the largest score, the first of equal ones.
inline int64_t best_code(F16 scores, F16 groups) {
    float score[kLanes], group[kLanes];
    store(score, scores);
    store(group, groups);
    int64_t best = int64_t(group[0]) * kLanes;
    float most = score[0];
    for (int32_t i = 1; i < kLanes; ++i) {
        const int64_t code = int64_t(group[i]) * kLanes + i;
        if (score[i] > most || (score[i] == most && code < best)) best = code, most = score[i];
    }
    return best;
}

void nearest_codes(const Nearest& op, const Work& w) {
    const int32_t blocks = (op.pixels + kPixelsAtOnce - 1) / kPixelsAtOnce, channels = op.channels;
    const Range mine = units_of(w, int64_t(w.last - w.first) * blocks);
    for (int64_t unit = mine.first; unit < mine.last; ++unit) {
        const int64_t sample = (w.sample + w.first + unit / blocks) * channels * op.pixels;
        const int32_t first = int32_t(unit % blocks) * kPixelsAtOnce, left = op.pixels - first;
        const int32_t count = left < kPixelsAtOnce ? left : kPixelsAtOnce;
        const float* in = static_cast<const float*>(w.ports[op.port]) + sample + first;
        float* out = static_cast<float*>(w.ports[op.output_port]) + sample + first;
        float z[kPixelsAtOnce * kMostCodeChannels] = {};
        for (int32_t c = 0; c < channels; ++c)
            for (int32_t p = 0; p < count; ++p) z[c * kPixelsAtOnce + p] = in[int64_t(c) * op.pixels + p] / op.scale;
        F16 best[kPixelsAtOnce], group[kPixelsAtOnce];
        for (int p = 0; p < kPixelsAtOnce; ++p) best[p] = broadcast(-__builtin_inff()), group[p] = zero();
        const float* codes = op.codes;
        for (int32_t g = 0; g < op.groups; ++g, codes += int64_t(channels) * kLanes) {
            const F16 half = load(op.halves + int64_t(g) * kLanes), number = broadcast(float(g));
            F16 score[kPixelsAtOnce];
            for (int p = 0; p < kPixelsAtOnce; ++p) score[p] = sub(zero(), half);
            for (int32_t c = 0; c < channels; ++c) {
                const F16 code = load(codes + int64_t(c) * kLanes);
                for (int p = 0; p < kPixelsAtOnce; ++p) score[p] = fma(broadcast(z[c * kPixelsAtOnce + p]), code, score[p]);
            }
            for (int p = 0; p < kPixelsAtOnce; ++p) {
                group[p] = where_greater(score[p], best[p], number, group[p]);
                best[p] = where_greater(score[p], best[p], score[p], best[p]);
            }
        }
        for (int32_t p = 0; p < count; ++p) {
            const int64_t code = best_code(best[p], group[p]);
            const float* at = op.codes + code / kLanes * channels * kLanes + code % kLanes;
            for (int32_t c = 0; c < channels; ++c) out[int64_t(c) * op.pixels + p] = at[int64_t(c) * kLanes] * op.scale;
        }
    }
}

}  // namespace

#endif  // DIFFUSEVAE_NATIVE_CODES_H
