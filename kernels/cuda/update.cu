// What runs on a GPU between two calls of a network? One launch a step, over the formulas of row.h and philox.h.
//
// README.md has arguments, launch shapes and the control block. The arithmetic is in the headers, the same for the CPU:
// compile with --fmad=false and without fast-math for the same bits. Every loop strides over the grid, so any launch
// shape is right, and an element is read and written by one thread only, so working in place is.

#include "access.h"
#include "control.h"

namespace dv = diffusevae;

// 128 threads: a 32x32 image of a batch of one still spreads over six multiprocessors.
#define DV_KERNEL extern "C" __global__ void __launch_bounds__(128)

namespace {

__device__ __forceinline__ int32_t any_not_finite(const dv::Four& four) {
    int32_t bad = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) bad |= dv::not_finite(four.v[j]);
    return bad;
}

// The row's number moves with control->step; the copy is spread over the whole grid.
__device__ void copy_table_row(dv::Control* control, const float* table, float* to, int64_t width, uint32_t index) {
    if (table == nullptr || to == nullptr || index >= control->steps) return;
    const float* from = table + int64_t(index) * width;
    const bool wide = dv::is_wide(from) && dv::is_wide(to);
    const int64_t begin = int64_t(blockIdx.y) * dv::stride_x() + dv::first_x(), stride = dv::stride_x() * gridDim.y;
    int32_t bad = 0;
    dv::for_blocks(begin, stride, width, wide, [&](auto whole, int64_t b, int n) {
        const dv::Four four = dv::load<whole.value>(from, 4 * b, n);
        dv::store<whole.value>(to, 4 * b, n, four);
        bad |= any_not_finite(four);
    });
    if (bad) dv::report(control, dv::kBadTable);
}

__device__ __forceinline__ dv::Four normals(uint64_t seed, uint32_t stream, uint32_t step, int64_t block) {
    const dv::Normals z = dv::normal4(seed, stream, step, uint64_t(block));
    return dv::Four{{z.v0, z.v1, z.v2, z.v3}};
}

// One sample's arrays in one step; those that the step's row does not use are null.
template <class Eps>
struct Sample {
    const Eps *eps, *eps_uncond;
    const float *cond, *x0_prev, *noise;
    float *x, *x_copy, *x0;
    uint64_t seed;
    bool draws;  // noise from the seed
};

template <bool kWide, class Eps>
__device__ __forceinline__ int32_t update_block(const Sample<Eps>& o, const dv::Row& row, float w, uint32_t step, int64_t b,
                                                int n) {
    const int64_t i = 4 * b;
    const dv::Four x = dv::load<kWide>(o.x, i, n), eps = dv::load<kWide>(o.eps, i, n);
    const dv::Four eps_u = o.eps_uncond == nullptr ? eps : dv::load<kWide>(o.eps_uncond, i, n);
    const dv::Four cond = dv::load<kWide>(o.cond, i, n), x0_prev = dv::load<kWide>(o.x0_prev, i, n);
    const dv::Four noise = o.draws ? normals(o.seed, dv::kStreamStep, step, b) : dv::load<kWide>(o.noise, i, n);
    dv::Four next, x0;
    int32_t bad = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        const dv::Step s = dv::step(row, w, x.v[j], eps.v[j], eps_u.v[j], cond.v[j], x0_prev.v[j], noise.v[j]);
        next.v[j] = s.x;
        x0.v[j] = s.x0;
        bad |= dv::not_finite(s.eps);
    }
    dv::store<kWide>(o.x, i, n, next);
    dv::store<kWide>(o.x_copy, i, n, next);
    dv::store<kWide>(o.x0, i, n, x0);
    return bad;
}

template <class T>
__device__ __forceinline__ T* at(T* p, int64_t offset, bool used = true) {
    return p == nullptr || !used ? nullptr : p + offset;
}

template <class Eps>
__device__ __forceinline__ void update(dv::Control* control, const dv::Row* rows, const uint64_t* seeds, const float* noise,
                                       int64_t noise_step, int64_t noise_sample, const Eps* eps, const Eps* eps_uncond,
                                       const float* cond, float* x, float* x_copy, float* x0, const float* table,
                                       float* table_row, int64_t width, int64_t samples, int64_t count) {
    const uint32_t step = control->step;
    if (step >= control->steps) {
        dv::report(control, dv::kOverrun);
        return;
    }
    const dv::Row row = rows[step];
    const float w = control->guidance;
    int32_t bad = 0;
    for (int64_t s = blockIdx.y; s < samples; s += gridDim.y) {
        const int64_t offset = s * count;
        Sample<Eps> o;
        o.eps = eps + offset;
        o.eps_uncond = at(eps_uncond, offset, w != 0.0f);
        o.cond = at(cond, offset, row.p_cond != 0.0f || row.k_cond != 0.0f);
        o.x0_prev = at<const float>(x0, offset, row.k_prev != 0.0f);
        o.noise = at(noise, int64_t(step) * noise_step + s * noise_sample, row.sigma != 0.0f);
        o.x = x + offset;
        o.x_copy = at(x_copy, offset);
        o.x0 = at(x0, offset);
        o.draws = noise == nullptr && seeds != nullptr && row.sigma != 0.0f;
        o.seed = o.draws ? seeds[s] : 0;
        const bool wide = dv::is_wide(o.eps) && dv::is_wide(o.eps_uncond) && dv::is_wide(o.cond) && dv::is_wide(o.noise)
                          && dv::is_wide(o.x) && dv::is_wide(o.x_copy) && dv::is_wide(o.x0);
        dv::for_blocks(dv::first_x(), dv::stride_x(), count, wide, [&](auto whole, int64_t b, int n) {
            bad |= update_block<whole.value>(o, row, w, step, b, n);
        });
    }
    if (bad) dv::report(control, step + 1);
    copy_table_row(control, table, table_row, width, step + 1);
    dv::advance(control);
}

}  // namespace

DV_KERNEL dv_update_f32(dv::Control* control, const dv::Row* rows, const uint64_t* seeds, const float* noise,
                        int64_t noise_step_stride, int64_t noise_sample_stride, const float* eps, const float* eps_uncond,
                        const float* cond, float* x, float* x_copy, float* x0, const float* table, float* table_row,
                        int64_t width, int64_t samples, int64_t count) {
    update(control, rows, seeds, noise, noise_step_stride, noise_sample_stride, eps, eps_uncond, cond, x, x_copy, x0, table,
           table_row, width, samples, count);
}

DV_KERNEL dv_update_f16(dv::Control* control, const dv::Row* rows, const uint64_t* seeds, const float* noise,
                        int64_t noise_step_stride, int64_t noise_sample_stride, const dv::Half* eps,
                        const dv::Half* eps_uncond, const float* cond, float* x, float* x_copy, float* x0,
                        const float* table, float* table_row, int64_t width, int64_t samples, int64_t count) {
    update(control, rows, seeds, noise, noise_step_stride, noise_sample_stride, eps, eps_uncond, cond, x, x_copy, x0, table,
           table_row, width, samples, count);
}

// x = k_noise x_T + k_image image + k_cond cond; terms whose coefficient is 0 are left out.
DV_KERNEL dv_start(dv::Control* control, const uint64_t* seeds, const float* x_T, int64_t x_T_stride, const float* image,
                   const float* cond, float* x, float* x_copy, const float* table, float* table_row, int64_t width,
                   int64_t samples, int64_t count) {
    const float k_noise = control->k_noise, k_image = control->k_image, k_cond = control->k_cond;
    for (int64_t s = blockIdx.y; s < samples; s += gridDim.y) {
        const float* given = at(x_T, s * x_T_stride);
        const float* from_image = at(image, s * count, k_image != 0.0f);
        const float* from_cond = at(cond, s * count, k_cond != 0.0f);
        float *to = x + s * count, *copy = at(x_copy, s * count);
        const bool draws = given == nullptr && seeds != nullptr;
        const uint64_t seed = draws ? seeds[s] : 0;
        const bool wide = dv::is_wide(given) && dv::is_wide(from_image) && dv::is_wide(from_cond) && dv::is_wide(to)
                          && dv::is_wide(copy);
        dv::for_blocks(dv::first_x(), dv::stride_x(), count, wide, [&](auto whole, int64_t b, int n) {
            constexpr bool kWide = whole.value;
            dv::Four sum = draws ? normals(seed, dv::kStreamXT, 0, b) : dv::load<kWide>(given, 4 * b, n);
            const dv::Four i = dv::load<kWide>(from_image, 4 * b, n), c = dv::load<kWide>(from_cond, 4 * b, n);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                sum.v[j] = sum.v[j] * k_noise;
                if (from_image != nullptr) sum.v[j] = sum.v[j] + k_image * i.v[j];
                if (from_cond != nullptr) sum.v[j] = sum.v[j] + k_cond * c.v[j];
            }
            dv::store<kWide>(to, 4 * b, n, sum);
            dv::store<kWide>(copy, 4 * b, n, sum);
        });
    }
    copy_table_row(control, table, table_row, width, 0);
}

// Standard normals [steps, samples, count] of the samples' own streams.
DV_KERNEL dv_normal(const uint64_t* seeds, int64_t stream, int64_t first_step, int64_t steps, int64_t samples, int64_t count,
                    float* out) {
    for (int64_t k = blockIdx.z; k < steps; k += gridDim.z)
        for (int64_t s = blockIdx.y; s < samples; s += gridDim.y) {
            float* to = out + (k * samples + s) * count;
            const uint64_t seed = seeds[s];
            dv::for_blocks(dv::first_x(), dv::stride_x(), count, dv::is_wide(to), [&](auto whole, int64_t b, int n) {
                dv::store<whole.value>(to, 4 * b, n, normals(seed, uint32_t(stream), uint32_t(first_step + k), b));
            });
        }
}

// The VAE decoder's image in [0, 1] to the condition in [-1, 1], behind the NaN guard.
DV_KERNEL dv_cond(dv::Control* control, const float* image, float* cond, int64_t total) {
    const bool wide = dv::is_wide(image) && dv::is_wide(cond);
    int32_t bad = 0;
    dv::for_blocks(dv::first_x(), dv::stride_x(), total, wide, [&](auto whole, int64_t b, int n) {
        dv::Four four = dv::load<whole.value>(image, 4 * b, n);
        bad |= any_not_finite(four);
#pragma unroll
        for (int j = 0; j < 4; ++j) four.v[j] = four.v[j] * 2.0f - 1.0f;
        dv::store<whole.value>(cond, 4 * b, n, four);
    });
    if (bad) dv::report(control, dv::kBadImage);
}

// Four pixels of three channels, 12 bytes in the image.
struct alignas(4) FourPixels {
    uint8_t v[12];
};

// [samples, channels, pixels] to [samples, pixels, channels] in 0..255.
DV_KERNEL dv_to_uint8(const float* x, uint8_t* out, int64_t samples, int64_t channels, int64_t pixels) {
    for (int64_t s = blockIdx.y; s < samples; s += gridDim.y) {
        const float* from = x + s * channels * pixels;
        uint8_t* to = out + s * channels * pixels;
        // Where a sample and a channel's length are multiples of 16 bytes, every channel begins at one.
        const bool wide = channels == 3 && pixels % 4 == 0 && dv::is_wide(from)
                          && reinterpret_cast<uintptr_t>(to) % alignof(FourPixels) == 0;
        dv::for_blocks(dv::first_x(), dv::stride_x(), pixels, wide, [&](auto whole, int64_t b, int n) {
            if constexpr (whole.value) {
                FourPixels four;
#pragma unroll
                for (int c = 0; c < 3; ++c) {
                    const dv::Four row = dv::load<true>(from + c * pixels, 4 * b, 4);
#pragma unroll
                    for (int j = 0; j < 4; ++j) four.v[3 * j + c] = dv::to_uint8(row.v[j]);
                }
                *reinterpret_cast<FourPixels*>(to + 12 * b) = four;
            } else {
                for (int64_t c = 0; c < channels; ++c)
                    for (int64_t p = 4 * b; p < 4 * b + n; ++p) to[p * channels + c] = dv::to_uint8(from[c * pixels + p]);
            }
        });
    }
}
