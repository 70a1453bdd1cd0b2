// The tile instructions, one inline function each. Tests put software in their place (DV_SOFTWARE_TILES), so that what is
// built on them also runs where no processor has them.
#ifndef DIFFUSEVAE_NATIVE_TILES_H
#define DIFFUSEVAE_NATIVE_TILES_H

#include "vectors.h"

#if defined(DV_SOFTWARE_TILES)
#include "tiles_in_software.h"
#else

namespace {

struct TileConfig {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

void enter_tiles() {
    TileConfig config = {};
    config.palette = 1;
    for (int i = 0; i < 8; ++i) config.row_bytes[i] = 64, config.rows[i] = 16;
    // Inline assembly: gcc 12's intrinsic tells the compiler that it reads one byte, and the rest is optimised away.
    asm volatile("ldtilecfg (%0)" : : "r"(&config) : "memory");
}

void leave_tiles() { _tile_release(); }

// Tiles 0..3 accumulate, 4 and 5 hold pixels, 6 and 7 weights.
template <bool kInt8, int kSum, int kPixelTile, int kWeightTile>
DV_INLINE void multiply() {
    // The intrinsics want literals; every combination in use is spelled out by the compiler's inliner.
    if constexpr (kInt8) {
        asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kPixelTile), "i"(kWeightTile));
    } else {
        asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kPixelTile), "i"(kWeightTile));
    }
}

template <int kTile>
DV_INLINE void load_tile(const void* from, int64_t stride) {
    asm volatile("tileloadd (%1,%2,1), %%tmm%c0" : : "i"(kTile), "r"(from), "r"(stride) : "memory");
}

template <int kTile>
DV_INLINE void store_tile(void* to) {
    asm volatile("tilestored %%tmm%c0, (%1,%2,1)" : : "i"(kTile), "r"(to), "r"(int64_t(64)) : "memory");
}

template <int kTile>
DV_INLINE void clear_tile() {
    asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
}

}  // namespace

#endif

#endif  // DIFFUSEVAE_NATIVE_TILES_H
