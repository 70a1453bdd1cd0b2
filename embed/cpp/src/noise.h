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

// How the noise of a state lies: drawn at once, or on a canvas in blocks of a window's size.
struct Layout {
    int64_t channels, height, width;
    int64_t block_height, block_width;

    int64_t count() const { return channels * height * width; }
    bool in_blocks() const { return height != block_height || width != block_width; }
};

// Unit normals: the input that a bundle draws, [n, count]; and of states, [n, C, H, W], the noise that a chain starts from
// before temperature, that of a row's step, and that of what is known, for blending it in before a row.
void draw_input(const std::vector<uint64_t>& seeds, int64_t count, float* z);
// The same of an input that is drawn anew for every row of a table, [n, rows, count].
void draw_fresh(const std::vector<uint64_t>& seeds, int64_t rows, int64_t count, float* z);
void draw_initial(const std::vector<uint64_t>& seeds, const Layout& layout, float* x_T);
void draw_step(const uint64_t* seeds, int64_t n, int64_t row, const Layout& layout, float* noise);
void draw_known(const uint64_t* seeds, int64_t n, int64_t row, const Layout& layout, float* noise);

// That of pictures that a stage of a cascade takes, [n, count].
void draw_augmentation(const std::vector<uint64_t>& seeds, int64_t count, float* noise);

// The seed of a cascade's stage, counted from 0, from that of the first, which is its own.
uint64_t stage_seed(uint64_t first, uint32_t stage);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_NOISE_H
