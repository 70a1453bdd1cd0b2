// The prefetch of weights: those of the next n-group are fetched while this one is multiplied.
#ifndef DIFFUSEVAE_NATIVE_STREAM_H
#define DIFFUSEVAE_NATIVE_STREAM_H

#include "target.h"
#include "vectors.h"

namespace {

using namespace diffusevae::native;

// Cache lines fetched into L2, a few a K step (batch 1: AMX 10 % bf16, 4 % int8).
struct Stream {
    const uint8_t *next, *end;
    int32_t lines;                  // a K step

    // What follows n-group `group` of `wide` n-blocks: the next group of this share, or what is read after it; `units` of the
    // share's fetch their part. `blocks`: how often all of them run through the K steps of a group.
    Stream(const Conv& c, const Work& w, const Share& share, int32_t group, const Range& units, int32_t wide, int64_t blocks) {
        const int32_t groups = c.n_blocks / wide, after = group + 1;
        next = after == share.group_last
                   ? w.upcoming
                   : c.weights + (int64_t(after / groups) * c.n_blocks + after % groups * wide) * c.steps * kStepBytes;
        const int64_t steps = int64_t(wide) * c.steps, all = share.unit_last - share.unit_first;
        end = next ? next + steps * (units.last - share.unit_first) / all * kStepBytes : next;
        next = next ? next + steps * (units.first - share.unit_first) / all * kStepBytes : next;
        blocks = blocks > 0 ? blocks : 1;
        lines = int32_t((int64_t(wide) * kStepBytes / 64 + blocks - 1) / blocks);
    }

    DV_INLINE void fetch() {
        for (int32_t i = 0; i < lines && next < end; ++i, next += 64) _mm_prefetch(next, _MM_HINT_T1);
    }
};

}  // namespace

#endif  // DIFFUSEVAE_NATIVE_STREAM_H
