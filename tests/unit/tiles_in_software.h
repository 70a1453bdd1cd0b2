// The tile instructions in software. The eight tiles of a thread as arrays, after Intel's description; misuse ends the
// program.
//
// Takes the place of the instructions in kernels/native/tiles.h, so that the AMX kernels are tested on processors without AMX.
#ifndef DIFFUSEVAE_TESTS_TILES_IN_SOFTWARE_H
#define DIFFUSEVAE_TESTS_TILES_IN_SOFTWARE_H

namespace {

struct TileRegisters {
    alignas(64) uint8_t row[8][16][64];
    bool known[8];                  // written since the configuration was loaded
    bool configured;
};

thread_local TileRegisters tiles;

inline void demand(bool good, const char* what) {
    if (good) return;
    __builtin_printf("tiles: %s\n", what);
    __builtin_abort();
}

inline void enter_tiles() {
    demand(!tiles.configured, "configured twice");
    tiles.configured = true;
    for (bool& known : tiles.known) known = false;
}

inline void leave_tiles() {
    demand(tiles.configured, "released without a configuration");
    tiles.configured = false;
}

// TDPBUSD: sum[m][n] += the four products of unsigned pixels[m][k] and signed weights[k][n], exact.
inline void multiply_bytes(const uint8_t (&pixels)[16][64], const uint8_t (&weights)[16][64], uint8_t (&sums)[16][64]) {
    for (int m = 0; m < 16; ++m) {
        __m512i sum = _mm512_load_si512(sums[m]);
        for (int k = 0; k < 16; ++k) {
            int32_t four;
            __builtin_memcpy(&four, &pixels[m][4 * k], 4);
            sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi32(four), _mm512_load_si512(weights[k]));
        }
        _mm512_store_si512(sums[m], sum);
    }
}

// TDPBF16PS: even and odd channels are summed apart in float32 with FMAs, then both are added to sum[m][n].
inline void multiply_pairs(const uint8_t (&pixels)[16][64], const uint8_t (&weights)[16][64], uint8_t (&sums)[16][64]) {
    for (int m = 0; m < 16; ++m) {
        F16 even = zero(), odd = zero();
        for (int k = 0; k < 16; ++k) {
            uint32_t two;
            __builtin_memcpy(&two, &pixels[m][4 * k], 4);
            float first, second;
            const uint32_t low = two << 16, high = two & 0xFFFF0000u;
            __builtin_memcpy(&first, &low, 4);
            __builtin_memcpy(&second, &high, 4);
            even = fma(broadcast(first), even_bf16(weights[k]), even);
            odd = fma(broadcast(second), odd_bf16(weights[k]), odd);
        }
        float* to = reinterpret_cast<float*>(sums[m]);
        store(to, add(load(to), add(even, odd)));
    }
}

template <bool kInt8, int kSum, int kPixelTile, int kWeightTile>
void multiply() {
    demand(tiles.configured, "a product without a configuration");
    demand(tiles.known[kSum] && tiles.known[kPixelTile] && tiles.known[kWeightTile], "a product of a tile that was never written");
    if constexpr (kInt8)
        multiply_bytes(tiles.row[kPixelTile], tiles.row[kWeightTile], tiles.row[kSum]);
    else
        multiply_pairs(tiles.row[kPixelTile], tiles.row[kWeightTile], tiles.row[kSum]);
}

template <int kTile>
void load_tile(const void* from, int64_t stride) {
    demand(tiles.configured, "a load without a configuration");
    for (int m = 0; m < 16; ++m) __builtin_memcpy(tiles.row[kTile][m], static_cast<const uint8_t*>(from) + m * stride, 64);
    tiles.known[kTile] = true;
}

template <int kTile>
void store_tile(void* to) {
    demand(tiles.configured, "a store without a configuration");
    __builtin_memcpy(to, tiles.row[kTile], 1024);
}

template <int kTile>
void clear_tile() {
    demand(tiles.configured, "a zero without a configuration");
    __builtin_memset(tiles.row[kTile], 0, 1024);
    tiles.known[kTile] = true;
}

}  // namespace

#endif  // DIFFUSEVAE_TESTS_TILES_IN_SOFTWARE_H
