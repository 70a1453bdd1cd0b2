// How do the kernels run on a CPU? One pass over memory in chunks that fit L1, vectorised by the compiler.
//
// The arithmetic is in row.h and philox.h; this file only walks over it. Compile with -O3 -ffp-contract=off
// -fno-math-errno -fno-trapping-math: none of them changes a result, the latter two let loops vectorise.

#include "diffusevae/kernels.h"

#include <algorithm>
#include <cstddef>
#include <system_error>
#include <thread>
#include <vector>

#include "diffusevae/row.h"

// gcc on x86-64 with glibc compiles a hot function once per instruction set and picks at load time (ifunc); elsewhere,
// or with DV_NO_CLONES, there is one version for the compiler's target. Every version computes the same bits.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && !defined(DV_NO_CLONES)
#define DV_HAS_CLONES 1
#define DV_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define DV_HAS_CLONES 0
#define DV_CLONES
#endif

// In place means equal addresses, never partial overlap, so no iteration reads what another one wrote.
#if defined(__clang__)
#define DV_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define DV_INDEPENDENT _Pragma("GCC ivdep")
#else
#define DV_INDEPENDENT
#endif

namespace dv = diffusevae;

namespace {

// Elements handled at a time: the chunk's noise stays in L1, and absent operands read one zero block of this size.
constexpr int64_t kChunk = 512;

// Blocks of four normals generated at a time.
constexpr int64_t kLanes = 64;

// A second thread costs tens of microseconds to start; a thread below this many elements would not earn it back.
constexpr int64_t kElementsPerThread = int64_t(1) << 20;

alignas(64) const float kZeros[kChunk] = {};

struct Operands {
    const float *x, *eps, *eps_uncond, *cond, *x0_prev, *noise;
    float *out, *x0_out;
};

DV_CLONES
int step_chunk(const dv::Row* row_at, float guidance, const Operands* at, int64_t n) {
    const dv::Row row = *row_at;
    const Operands o = *at;
    int32_t bad = 0;
    DV_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) {
        const dv::Step s =
            dv::step(row, guidance, o.x[i], o.eps[i], o.eps_uncond[i], o.cond[i], o.x0_prev[i], o.noise[i]);
        o.x0_out[i] = s.x0;
        o.out[i] = s.x;
        bad |= dv::not_finite(s.eps);
    }
    return bad;
}

// kLanes blocks in the making; every array is one column of them.
struct Lanes {
    alignas(64) uint32_t w0[kLanes], w1[kLanes], w2[kLanes], w3[kLanes];
    alignas(64) float z0[kLanes], z1[kLanes], z2[kLanes], z3[kLanes];
};

// philox4x32() round by round over all lanes. Without clones: gcc's 128-bit code for 32 x 32 -> 64 bit products takes
// two thirds of the time of its 256-bit code, which shuffles across the halves of a register.
void philox_lanes(uint64_t seed, uint32_t stream, uint32_t step, uint64_t first_block, Lanes* lanes) {
    Lanes& l = *lanes;
    for (int64_t b = 0; b < kLanes; ++b) {
        const uint64_t block = first_block + uint64_t(b);
        l.w0[b] = uint32_t(block);
        l.w1[b] = uint32_t(block >> 32);
        l.w2[b] = step;
        l.w3[b] = stream;
    }
    uint32_t key0 = uint32_t(seed), key1 = uint32_t(seed >> 32);
    for (int r = 0; r < dv::kPhiloxRounds; ++r, key0 += dv::kWeyl0, key1 += dv::kWeyl1) {
        for (int64_t b = 0; b < kLanes; ++b) {
            const dv::Words w = dv::philox_round(dv::Words{l.w0[b], l.w1[b], l.w2[b], l.w3[b]}, key0, key1);
            l.w0[b] = w.v0;
            l.w1[b] = w.v1;
            l.w2[b] = w.v2;
            l.w3[b] = w.v3;
        }
    }
}

DV_CLONES
void box_muller_lanes(Lanes* lanes, int64_t blocks, float* out) {
    Lanes& l = *lanes;
    for (int64_t b = 0; b < kLanes; ++b) dv::box_muller(l.w0[b], l.w1[b], &l.z0[b], &l.z1[b]);
    for (int64_t b = 0; b < kLanes; ++b) dv::box_muller(l.w2[b], l.w3[b], &l.z2[b], &l.z3[b]);
    for (int64_t b = 0; b < blocks; ++b) {
        out[4 * b] = l.z0[b];
        out[4 * b + 1] = l.z1[b];
        out[4 * b + 2] = l.z2[b];
        out[4 * b + 3] = l.z3[b];
    }
}

// Elements first .. first + n of one sample; first is a multiple of 4.
void normal_range(uint64_t seed, uint32_t stream, uint32_t step, int64_t first, int64_t n, float* out) {
    const int64_t whole = n / 4;
    const uint64_t block = uint64_t(first / 4);
    Lanes lanes;
    for (int64_t done = 0; done < whole; done += kLanes) {
        philox_lanes(seed, stream, step, block + uint64_t(done), &lanes);
        box_muller_lanes(&lanes, std::min(kLanes, whole - done), out + 4 * done);
    }
    if (n % 4 == 0) return;
    const dv::Normals z = dv::normal4(seed, stream, step, block + uint64_t(whole));
    const float tail[3] = {z.v0, z.v1, z.v2};
    std::copy(tail, tail + n % 4, out + 4 * whole);
}

// The chunks first .. last, counted through the samples one after the other.
int update_chunks(const dv_update_args& a, const dv::Row& row, int64_t first, int64_t last) {
    alignas(64) float noise[kChunk];
    alignas(64) float x0[kChunk];
    const int64_t per_sample = (a.count + kChunk - 1) / kChunk;
    const auto operand = [](const float* p, int64_t at) { return p ? p + at : kZeros; };
    int bad = 0;
    for (int64_t chunk = first; chunk < last; ++chunk) {
        const int64_t sample = chunk / per_sample, begin = chunk % per_sample * kChunk;
        const int64_t n = std::min(kChunk, a.count - begin), at = sample * a.count + begin;
        Operands o{a.x + at, a.eps + at, a.eps_uncond ? a.eps_uncond + at : a.eps + at,
                   operand(a.cond, at), operand(a.x0_prev, at), operand(a.noise, sample * a.noise_stride + begin),
                   a.out + at, a.x0_out ? a.x0_out + at : x0};
        if (!a.noise && a.seeds && row.sigma != 0.0f) {
            normal_range(a.seeds[sample], dv::kStreamStep, a.step, begin, n, noise);
            o.noise = noise;
        }
        bad |= step_chunk(&row, a.guidance, &o, n);
    }
    return bad;
}

// Runs work(first, last) over 0 .. units in up to `threads` contiguous parts; true where any part returned non-zero.
template <class Work>
int in_parallel(int64_t units, int64_t threads, const Work& work) {
    std::vector<int> bad(size_t(threads), 0);
    std::vector<std::thread> running;
    running.reserve(size_t(threads));
    for (int64_t t = 1; t < threads; ++t) {
        const int64_t first = units * t / threads, last = units * (t + 1) / threads;
        int* result = &bad[size_t(t)];
        try {
            running.emplace_back([=, &work] { *result = work(first, last); });
        } catch (const std::system_error&) {  // the system grants no more threads: this one does the part as well
            *result = work(first, last);
        }
    }
    bad[0] = work(0, units / threads);
    for (std::thread& thread : running) thread.join();
    return *std::max_element(bad.begin(), bad.end());
}

template <int64_t kChannels>
void interleave(const float* x, int64_t channels, int64_t pixels, uint8_t* out) {
    const int64_t width = kChannels > 0 ? kChannels : channels;
    for (int64_t p = 0; p < pixels; ++p)
        for (int64_t c = 0; c < width; ++c) out[p * width + c] = dv::to_uint8(x[c * pixels + p]);
}

DV_CLONES
void to_uint8_sample(const float* x, int64_t channels, int64_t pixels, uint8_t* out) {
    if (channels == 3)
        interleave<3>(x, channels, pixels, out);
    else if (channels == 1)
        interleave<1>(x, channels, pixels, out);
    else
        interleave<0>(x, channels, pixels, out);
}

}  // namespace

extern "C" {

int32_t dv_abi_version(void) { return DV_ABI_VERSION; }

const char* dv_isa(void) {
#if DV_HAS_CLONES
    if (__builtin_cpu_supports("avx512f")) return "avx512f";
    if (__builtin_cpu_supports("avx2")) return "avx2";
    return "x86-64";
#elif defined(__AVX512F__)
    return "avx512f";
#elif defined(__AVX2__)
    return "avx2";
#elif defined(__x86_64__)
    return "x86-64";
#elif defined(__aarch64__)
    return "aarch64";
#else
    return "generic";
#endif
}

int32_t dv_update(const dv_update_args* args) {
    const dv_update_args a = *args;
    if (a.samples <= 0 || a.count <= 0) return 1;
    const float* r = a.row;
    const dv::Row row{r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7], r[8], r[9]};
    const int64_t chunks = a.samples * ((a.count + kChunk - 1) / kChunk);
    const int64_t useful = a.samples * a.count / kElementsPerThread;
    const int64_t threads = std::max<int64_t>(1, std::min<int64_t>({a.threads, useful, chunks}));
    const auto work = [&](int64_t first, int64_t last) { return update_chunks(a, row, first, last); };
    const int bad = threads == 1 ? work(0, chunks) : in_parallel(chunks, threads, work);
    return bad == 0 ? 1 : 0;
}

void dv_normal(const uint64_t* seeds, int64_t samples, uint32_t stream, uint32_t step, int64_t count, float* out) {
    for (int64_t s = 0; s < samples; ++s) normal_range(seeds[s], stream, step, 0, count, out + s * count);
}

void dv_to_uint8(const float* x, int64_t samples, int64_t channels, int64_t pixels, uint8_t* out) {
    const int64_t size = channels * pixels;
    for (int64_t s = 0; s < samples; ++s) to_uint8_sample(x + s * size, channels, pixels, out + s * size);
}

void dv_philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
    const dv::Words w = dv::philox4x32(dv::Words{counter[0], counter[1], counter[2], counter[3]}, key[0], key[1]);
    out[0] = w.v0;
    out[1] = w.v1;
    out[2] = w.v2;
    out[3] = w.v3;
}

}  // extern "C"
