// Seeds, and the normals that belong to each sample: the kernels draw them (dv_normal), for C++ and Python.
#ifndef DIFFUSEVAE_NOISE_H
#define DIFFUSEVAE_NOISE_H

#include <cstdint>
#include <vector>

namespace diffusevae {

// One seed a sample: a caller's list, or counted up from one number modulo 2^64.
struct Seeds {
    const uint64_t* list;  // or null
    uint64_t first;

    uint64_t at(int64_t sample) const { return list ? list[sample] : first + uint64_t(sample); }
    std::vector<uint64_t> part(int64_t begin, int64_t count) const;
};

// 64 bits from the operating system; Error (BACKEND) where it has none.
uint64_t drawn_seed();

// Unit normals [n, count]: the input that a bundle draws, and the noise that a chain starts from before temperature.
void draw_input(const std::vector<uint64_t>& seeds, int64_t count, float* z);
void draw_initial(const std::vector<uint64_t>& seeds, int64_t count, float* x_T);
// And that of what is known of n states, for blending it in before a row.
void draw_known(const uint64_t* seeds, int64_t n, int64_t row, int64_t count, float* noise);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_NOISE_H
