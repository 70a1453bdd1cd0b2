// The kernels on a CPU: one pass over memory in chunks that fit L1, vectorised by the compiler.
//
// The arithmetic is in row.h and philox.h; this file only walks over it. Compile with -O3 -ffp-contract=off
// -fno-math-errno -fno-trapping-math: none of them changes a result, the latter two let loops vectorise.

#include "diffusevae/kernels.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
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

// Elements handled at a time: noise and the lanes' sum stay in L1, and absent operands read one zero block of this size.
constexpr int64_t kChunk = 512;

// Blocks of four normals generated at a time.
constexpr int64_t kBatch = 64;

// A second thread costs tens of microseconds to start; a thread below this many elements would not earn it back.
constexpr int64_t kElementsPerThread = int64_t(1) << 20;

alignas(64) const float kZeros[kChunk] = {};

struct Operands {
    const float *x, *e, *c, *n, *y, *h1, *h2, *h3, *g;
    float *out, *x0_out, *y_out;
};

// A plain row; `weight` is that of the one lane.
DV_CLONES
int plain_chunk(const dv::Row* row_at, float weight, const Operands* at, int64_t n) {
    const dv::Row row = *row_at;
    const Operands o = *at;
    int32_t bad = 0;
    DV_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) {
        const float e = dv::first_lane(weight, o.e[i]);
        const dv::Step s = dv::step_plain(row, o.x[i], e, o.c[i], o.n[i]);
        o.x0_out[i] = s.x0;
        o.out[i] = s.x;
        bad |= dv::not_finite(e);
    }
    return bad;
}

DV_CLONES
int full_chunk(const dv::Row* row_at, float weight, const Operands* at, int64_t n) {
    const dv::Row row = *row_at;
    const Operands o = *at;
    int32_t bad = 0;
    DV_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) {
        const float e = dv::first_lane(weight, o.e[i]);
        const dv::FullStep s = dv::step_full(
            row, dv::Values{o.x[i], e, o.c[i], o.n[i], o.y[i], o.h1[i], o.h2[i], o.h3[i], o.g[i]});
        o.x0_out[i] = s.x0;
        o.out[i] = s.x;
        o.y_out[i] = s.y;
        bad |= dv::not_finite(e);
    }
    return bad;
}

// The noise as a row with s_n reads it; 1 where some v is not finite.
DV_CLONES
int scale_noise_chunk(float s_n, const float* v, const float* noise, int64_t n, float* scaled) {
    int32_t bad = 0;
    DV_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) {
        bad |= dv::not_finite(v[i]);
        scaled[i] = dv::scaled_noise(s_n, v[i], noise[i]);
    }
    return bad;
}

DV_CLONES
void first_lane_chunk(float weight, const float* e, int64_t n, float* sum) {
    for (int64_t i = 0; i < n; ++i) sum[i] = dv::first_lane(weight, e[i]);
}

DV_CLONES
void next_lane_chunk(float weight, const float* e, int64_t n, float* sum) {
    for (int64_t i = 0; i < n; ++i) sum[i] = dv::next_lane(sum[i], weight, e[i]);
}

// combine() of row.h, one lane after the other; `stride` elements lie from lane to lane.
void combine_chunk(const float* weights, int32_t lanes, const float* e, int64_t stride, int64_t n, float* sum) {
    bool begun = false;
    for (int32_t lane = 0; lane < lanes; ++lane) {
        if (weights[lane] == 0.0f) continue;
        (begun ? next_lane_chunk : first_lane_chunk)(weights[lane], e + lane * stride, n, sum);
        begun = true;
    }
    if (!begun) std::fill(sum, sum + n, 0.0f);
}

// kBatch blocks in the making; every array is one column of them.
struct Blocks {
    alignas(64) uint32_t w0[kBatch], w1[kBatch], w2[kBatch], w3[kBatch];
    alignas(64) float z0[kBatch], z1[kBatch], z2[kBatch], z3[kBatch];
};

// philox4x32() round by round over all blocks. Without clones: gcc's 128-bit code for 32 x 32 -> 64 bit products takes
// two thirds of the time of its 256-bit code, which shuffles across the halves of a register.
void philox_batch(uint64_t seed, uint32_t stream, uint32_t step, uint64_t first_block, Blocks* blocks_at) {
    Blocks& l = *blocks_at;
    for (int64_t b = 0; b < kBatch; ++b) {
        const uint64_t block = first_block + uint64_t(b);
        l.w0[b] = uint32_t(block);
        l.w1[b] = uint32_t(block >> 32);
        l.w2[b] = step;
        l.w3[b] = stream;
    }
    uint32_t key0 = uint32_t(seed), key1 = uint32_t(seed >> 32);
    for (int r = 0; r < dv::kPhiloxRounds; ++r, key0 += dv::kWeyl0, key1 += dv::kWeyl1) {
        for (int64_t b = 0; b < kBatch; ++b) {
            const dv::Words w = dv::philox_round(dv::Words{l.w0[b], l.w1[b], l.w2[b], l.w3[b]}, key0, key1);
            l.w0[b] = w.v0;
            l.w1[b] = w.v1;
            l.w2[b] = w.v2;
            l.w3[b] = w.v3;
        }
    }
}

DV_CLONES
void box_muller_batch(Blocks* blocks_at, int64_t blocks, float* out) {
    Blocks& l = *blocks_at;
    for (int64_t b = 0; b < kBatch; ++b) dv::box_muller(l.w0[b], l.w1[b], &l.z0[b], &l.z1[b]);
    for (int64_t b = 0; b < kBatch; ++b) dv::box_muller(l.w2[b], l.w3[b], &l.z2[b], &l.z3[b]);
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
    Blocks blocks;
    for (int64_t done = 0; done < whole; done += kBatch) {
        philox_batch(seed, stream, step, block + uint64_t(done), &blocks);
        box_muller_batch(&blocks, std::min(kBatch, whole - done), out + 4 * done);
    }
    if (n % 4 == 0) return;
    const dv::Normals z = dv::normal4(seed, stream, step, block + uint64_t(whole));
    const float tail[3] = {z.v0, z.v1, z.v2};
    std::copy(tail, tail + n % 4, out + 4 * whole);
}

// What the chunks of one call have in common.
struct Update {
    const dv_update_args& a;
    const dv::Row& row;
    const bool full = dv::is_full(row), sets_y = dv::sets_y(row) && a.y_out;
    const bool draws = !a.noise && a.seeds && dv::reads_n(row), scales = a.v && dv::reads_v(row);
    const bool pushes_e = row.push == dv::kPushE && a.push_out, pushes_x0 = row.push == dv::kPushX0 && a.push_out;
    const float weight = a.weights ? a.weights[0] : 1.0f;
    const bool combines = a.lanes > 1 || weight == 0.0f || pushes_e;
};

// Room of one thread.
struct Scratch {
    alignas(64) float noise[kChunk], e[kChunk], x0[kChunk], y[kChunk];
};

// The operands of n elements from `begin` on of one sample; those that the row does not use read zeros.
Operands operands_of(const Update& u, int64_t sample, int64_t begin, Scratch& scratch) {
    const dv_update_args& a = u.a;
    const int64_t at = sample * a.count + begin;
    const auto read = [at](const float* p, bool used) { return p && used ? p + at : kZeros; };
    const float* noise = a.noise && dv::reads_n(u.row) ? a.noise + sample * a.noise_stride + begin : kZeros;
    return Operands{a.x + at, a.e + at, read(a.c, dv::reads_c(u.row)), noise,
                    read(a.y, dv::reads_y(u.row)), read(a.h1, dv::reads_h1(u.row)), read(a.h2, dv::reads_h2(u.row)),
                    read(a.h3, dv::reads_h3(u.row)), read(a.g, dv::reads_g(u.row)), a.out + at,
                    a.x0_out ? a.x0_out + at : u.pushes_x0 ? a.push_out + at : scratch.x0,
                    u.sets_y ? a.y_out + at : scratch.y};
}

// A value is pushed after the row has read what it may take the place of.
int update_chunk(const Update& u, int64_t sample, int64_t begin, int64_t n, Scratch& scratch) {
    const dv_update_args& a = u.a;
    Operands o = operands_of(u, sample, begin, scratch);
    if (u.draws) {
        normal_range(a.seeds[sample], dv::kStreamStep, a.step, begin, n, scratch.noise);
        o.n = scratch.noise;
    }
    int bad = 0;
    if (u.scales) {
        bad = scale_noise_chunk(u.row.s_n, a.v + sample * a.count + begin, o.n, n, scratch.noise);
        o.n = scratch.noise;
    }
    float weight = u.weight;
    if (u.combines) {
        combine_chunk(a.weights ? a.weights : &u.weight, a.lanes, o.e, a.samples * a.count, n, scratch.e);
        o.e = scratch.e;
        weight = 1.0f;
    }
    bad |= (u.full ? full_chunk : plain_chunk)(&u.row, weight, &o, n);
    const int64_t at = sample * a.count + begin;
    if (u.pushes_e) std::copy(scratch.e, scratch.e + n, a.push_out + at);
    if (u.pushes_x0 && a.x0_out) std::copy(o.x0_out, o.x0_out + n, a.push_out + at);
    return bad;
}

// The chunks first .. last, counted through the samples one after the other.
int update_chunks(const Update& u, int64_t first, int64_t last) {
    Scratch scratch;
    const int64_t per_sample = (u.a.count + kChunk - 1) / kChunk;
    int bad = 0;
    for (int64_t chunk = first; chunk < last; ++chunk) {
        const int64_t sample = chunk / per_sample, begin = chunk % per_sample * kChunk;
        bad |= update_chunk(u, sample, begin, std::min(kChunk, u.a.count - begin), scratch);
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

// Column by column: every row's sum grows from the left, and those of all rows at a time.
DV_CLONES
void mixture_sample(const float* mean, const float* factor, const float* units, int64_t width, float* out) {
    for (int64_t r = 0; r < width; ++r) out[r] = factor[r * width] * units[0];
    for (int64_t c = 1; c < width; ++c) {
        const float unit = units[c];
        DV_INDEPENDENT
        for (int64_t r = 0; r < width; ++r) out[r] += factor[r * width + c] * unit;
    }
    for (int64_t r = 0; r < width; ++r) out[r] += mean[r];
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

// A pixel of an enlarged axis: near x[first] + far x[second].
struct Between {
    int64_t first, second;
    float near, far;
};

std::vector<Between> between(int64_t size, int64_t to_size) {
    std::vector<Between> found;
    for (int64_t i = 0; i < to_size; ++i) {
        const double centre = double((2 * i + 1) * size - to_size) / double(2 * to_size);
        const double at = std::min(std::max(centre, 0.0), double(size - 1));
        const int64_t first = int64_t(at);
        const float far = float(at - double(first));
        found.push_back({first, std::min(first + 1, size - 1), 1.0f - far, far});
    }
    return found;
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
    dv::Row row;
    std::memcpy(&row, a.row, sizeof row);
    const Update u{a, row};
    const int64_t chunks = a.samples * ((a.count + kChunk - 1) / kChunk);
    const int64_t useful = a.samples * a.count / kElementsPerThread;
    const int64_t threads = std::max<int64_t>(1, std::min<int64_t>({a.threads, useful, chunks}));
    const auto work = [&](int64_t first, int64_t last) { return update_chunks(u, first, last); };
    const int bad = threads == 1 ? work(0, chunks) : in_parallel(chunks, threads, work);
    return bad == 0 ? 1 : 0;
}

void dv_normal(const uint64_t* seeds, int64_t samples, uint32_t stream, uint32_t step, int64_t count, float* out) {
    for (int64_t s = 0; s < samples; ++s) normal_range(seeds[s], stream, step, 0, count, out + s * count);
}

void dv_mixture(const uint64_t* seeds, int64_t samples, const uint64_t* thresholds, int64_t components, const float* means,
                const float* factors, int64_t width, const float* units, float* out) {
    for (int64_t s = 0; s < samples; ++s) {
        const uint64_t word =
            dv::philox4x32(dv::Words{0, 0, 0, dv::kStreamPrior}, uint32_t(seeds[s]), uint32_t(seeds[s] >> 32)).v0;
        const int64_t k = std::upper_bound(thresholds, thresholds + components, word) - thresholds;
        mixture_sample(means + k * width, factors + k * width * width, units + s * width, width, out + s * width);
    }
}

void dv_to_uint8(const float* x, int64_t samples, int64_t channels, int64_t pixels, uint8_t* out) {
    const int64_t size = channels * pixels;
    for (int64_t s = 0; s < samples; ++s) to_uint8_sample(x + s * size, channels, pixels, out + s * size);
}

void dv_enlarge(const float* x, int64_t planes, int64_t height, int64_t width, int64_t to_height, int64_t to_width,
                float* out) {
    const std::vector<Between> rows = between(height, to_height), columns = between(width, to_width);
    for (int64_t plane = 0; plane < planes; ++plane, x += height * width)
        for (const Between& row : rows)
            for (const Between& column : columns) {
                const float *const upper = x + row.first * width, *const lower = x + row.second * width;
                const float above = column.near * upper[column.first] + column.far * upper[column.second];
                const float below = column.near * lower[column.first] + column.far * lower[column.second];
                *out++ = row.near * above + row.far * below;
            }
}

void dv_philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
    const dv::Words w = dv::philox4x32(dv::Words{counter[0], counter[1], counter[2], counter[3]}, key[0], key[1]);
    out[0] = w.v0;
    out[1] = w.v1;
    out[2] = w.v2;
    out[3] = w.v3;
}

}  // extern "C"
