// The streams are those of philox.h.
#include "noise.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include "bundle/constants.h"
#include "diffusevae/kernels.h"
#include "diffusevae/philox.h"
#include "error.h"

namespace diffusevae {

std::vector<uint64_t> Seeds::part(int64_t begin, int64_t count) const {
    std::vector<uint64_t> seeds;
    seeds.reserve(size_t(count));
    for (int64_t i = begin; i < begin + count; ++i) seeds.push_back(at(i));
    return seeds;
}

uint64_t drawn_seed() {
    uint64_t seed = 0;
    if (getentropy(&seed, sizeof seed) != 0)
        throw Error(DIFFUSEVAE_BACKEND, std::string("seed: found no random numbers in the operating system (")
                                            + std::strerror(errno) + "), expected some; pass a seed.");
    return seed;
}

void draw_input(const std::vector<uint64_t>& seeds, int64_t count, float* z) {
    dv_normal(seeds.data(), int64_t(seeds.size()), kStreamZ, 0, count, z);
}

void draw_fresh(const std::vector<uint64_t>& seeds, int64_t rows, int64_t count, float* z) {
    for (const uint64_t seed : seeds)
        for (int64_t row = 0; row < rows; ++row, z += count) dv_normal(&seed, 1, kStreamFresh, uint32_t(row), count, z);
}

void draw_augmentation(const std::vector<uint64_t>& seeds, int64_t count, float* noise) {
    dv_normal(seeds.data(), int64_t(seeds.size()), kStreamAugment, 0, count, noise);
}

uint64_t stage_seed(uint64_t first, uint32_t stage) {
    if (stage == 0) return first;
    const Words words = philox4x32(Words{0, 0, stage, kStreamStage}, uint32_t(first), uint32_t(first >> 32));
    return uint64_t(words.v0) | uint64_t(words.v1) << 32;
}

namespace {

// As engine/solver/noise.py lays a canvas out: block by block from its upper left, each from a stream of its own.
void draw(const uint64_t* seeds, int64_t n, uint32_t stream, uint32_t step, const Layout& layout, float* out) {
    if (!layout.in_blocks()) {
        dv_normal(seeds, n, stream, step, layout.count(), out);
        return;
    }
    const int64_t high = layout.block_height, wide = layout.block_width;
    std::vector<float> block(size_t(n * layout.channels * high * wide));
    for (int64_t top = 0; top < layout.height; top += high)
        for (int64_t left = 0; left < layout.width; left += wide) {
            const uint32_t named = stream | uint32_t(top / high) << kStreamBits
                                   | uint32_t(left / wide) << (kStreamBits + kBlockBits);
            dv_normal(seeds, n, named, step, layout.channels * high * wide, block.data());
            const int64_t rows = std::min(high, layout.height - top), columns = std::min(wide, layout.width - left);
            for (int64_t plane = 0; plane < n * layout.channels; ++plane)
                for (int64_t y = 0; y < rows; ++y)
                    std::copy_n(block.data() + (plane * high + y) * wide, columns,
                                out + (plane * layout.height + top + y) * layout.width + left);
        }
}

}  // namespace

void draw_initial(const std::vector<uint64_t>& seeds, const Layout& layout, float* x_T) {
    draw(seeds.data(), int64_t(seeds.size()), kStreamXT, 0, layout, x_T);
}

void draw_step(const uint64_t* seeds, int64_t n, int64_t row, const Layout& layout, float* noise) {
    draw(seeds, n, kStreamStep, uint32_t(row), layout, noise);
}

void draw_known(const uint64_t* seeds, int64_t n, int64_t row, const Layout& layout, float* noise) {
    draw(seeds, n, kStreamKnown, uint32_t(row), layout, noise);
}

}  // namespace diffusevae
