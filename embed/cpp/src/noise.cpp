// The streams are those of philox.h.
#include "noise.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

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

void draw_initial(const std::vector<uint64_t>& seeds, int64_t count, float* x_T) {
    dv_normal(seeds.data(), int64_t(seeds.size()), kStreamXT, 0, count, x_T);
}

void draw_known(const uint64_t* seeds, int64_t n, int64_t row, int64_t count, float* noise) {
    dv_normal(seeds, n, kStreamKnown, uint32_t(row), count, noise);
}

}  // namespace diffusevae
