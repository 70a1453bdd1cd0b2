// What runs on a GPU between two calls of a network: one launch a row, over the formulas of row.h and philox.h.
//
// README.md has arguments, launch shapes and the control block. The arithmetic is in the headers, the same for the CPU:
// compile with --fmad=false and without fast-math for the same bits. Every loop strides over the grid, so any launch
// shape is right, and an element is read and written by one thread only, so working in place is.

#include "access.h"
#include "control.h"

namespace dv = diffusevae;

// 128 threads: a 32x32 image of a batch of one still spreads over six multiprocessors. `blocks` of them at once on each
// bound the registers.
#define DV_KERNEL(blocks) extern "C" __global__ void __launch_bounds__(128, blocks)

namespace {

__device__ __forceinline__ int32_t any_not_finite(const dv::Four& four) {
    int32_t bad = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) bad |= dv::not_finite(four.v[j]);
    return bad;
}

// The row of embeddings that the next network call is given; the copy is spread over the whole grid.
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
    if (bad) dv::report(control, dv::kBadRows);
}

__device__ __forceinline__ dv::Four normals(uint64_t seed, uint32_t stream, uint32_t step, int64_t block) {
    const dv::Normals z = dv::normal4(seed, stream, step, uint64_t(block));
    return dv::Four{{z.v0, z.v1, z.v2, z.v3}};
}

template <class T>
__device__ __forceinline__ T* at(T* p, int64_t offset, bool used = true) {
    return p == nullptr || !used ? nullptr : p + offset;
}

// `copies` arrays of c_in x, `stride` elements apart, are the network's input: one for each lane that does not read x itself.
template <bool kWide>
__device__ __forceinline__ void store_inputs(float* x_in, int copies, int64_t stride, float c_in, int64_t i, int n,
                                             const dv::Four& x) {
    if (x_in == nullptr) return;
    dv::Four scaled;
#pragma unroll
    for (int j = 0; j < 4; ++j) scaled.v[j] = c_in * x.v[j];
#pragma unroll 1
    for (; copies > 0; --copies, x_in += stride) dv::store<kWide>(x_in, i, n, scaled);
}

// One sample's arrays in one row of the table; those that the row does not use are null. Lanes of e and copies of x lie
// `stride` elements apart.
struct Sample {
    const float *e, *weights, *c, *noise, *y, *h1, *h2, *h3, *g, *v;
    float *x, *x_in, *x0, *y_out, *pushed;
    int64_t stride;
    int lanes, copies;
    float c_in;
    uint64_t seed;
    bool draws;  // noise from the seed

    __device__ __forceinline__ bool wide() const {
        return dv::is_wide(e) && (stride % 4 == 0 || (lanes < 2 && copies < 2)) && dv::is_wide(c) && dv::is_wide(noise)
               && dv::is_wide(y) && dv::is_wide(h1) && dv::is_wide(h2) && dv::is_wide(h3) && dv::is_wide(g) && dv::is_wide(v)
               && dv::is_wide(x) && dv::is_wide(x_in) && dv::is_wide(x0) && dv::is_wide(y_out) && dv::is_wide(pushed);
    }

    // The lanes' sum (combine in row.h); a lane of weight 0 is not read.
    template <bool kWide>
    __device__ __forceinline__ dv::Four guided(int64_t i, int n) const {
        dv::Four sum = {};
        bool begun = false;
        const float* from = e;
#pragma unroll 1
        for (int lane = 0; lane < lanes; ++lane, from += stride) {
            const float weight = weights[lane];
            if (weight == 0.0f) continue;
            const dv::Four one = dv::load<kWide>(from, i, n);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const float first = dv::first_lane(weight, one.v[j]), next = dv::next_lane(sum.v[j], weight, one.v[j]);
                sum.v[j] = begun ? next : first;
            }
            begun = true;
        }
        return sum;
    }
};

// Four elements of a row. A full row knows y, the history, a guide and v besides; a push may follow either kind.
template <bool kFull, bool kWide>
__device__ __forceinline__ int32_t row_block(const Sample& o, const dv::Row& row, uint32_t step, int64_t b, int n) {
    const int64_t i = 4 * b;
    const dv::Four e = o.guided<kWide>(i, n);
    const dv::Four x = dv::load<kWide>(o.x, i, n), c = dv::load<kWide>(o.c, i, n);
    dv::Four noise = o.draws ? normals(o.seed, dv::kStreamStep, step, b) : dv::load<kWide>(o.noise, i, n);
    dv::Four next, x0;
    int32_t bad = 0;
    if constexpr (kFull) {
        if (o.v != nullptr) {
            const dv::Four v = dv::load<kWide>(o.v, i, n);
            bad = any_not_finite(v);
#pragma unroll
            for (int j = 0; j < 4; ++j) noise.v[j] = dv::scaled_noise(row.s_n, v.v[j], noise.v[j]);
        }
        const dv::Four y = dv::load<kWide>(o.y, i, n), h1 = dv::load<kWide>(o.h1, i, n), h2 = dv::load<kWide>(o.h2, i, n);
        const dv::Four h3 = dv::load<kWide>(o.h3, i, n), g = dv::load<kWide>(o.g, i, n);
        dv::Four base;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const dv::Values values = {x.v[j],  e.v[j],  c.v[j],  noise.v[j], y.v[j],
                                       h1.v[j], h2.v[j], h3.v[j], g.v[j]};
            const dv::FullStep s = dv::step_full(row, values);
            next.v[j] = s.x;
            x0.v[j] = s.x0;
            base.v[j] = s.y;
        }
        dv::store<kWide>(o.y_out, i, n, base);
    } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const dv::Step s = dv::step_plain(row, x.v[j], e.v[j], c.v[j], noise.v[j]);
            next.v[j] = s.x;
            x0.v[j] = s.x0;
        }
    }
    dv::store<kWide>(o.x, i, n, next);
    dv::store<kWide>(o.x0, i, n, x0);
    store_inputs<kWide>(o.x_in, o.copies, o.stride, o.c_in, i, n, next);
    if (o.pushed != nullptr) {
        dv::Four value;
#pragma unroll
        for (int j = 0; j < 4; ++j) value.v[j] = row.push == dv::kPushE ? e.v[j] : x0.v[j];
        dv::store<kWide>(o.pushed, i, n, value);
    }
    return bad | any_not_finite(e);
}

// The arguments of an update, as README.md lists them.
struct Update {
    dv::Control* control;
    const dv::Row* rows;
    const float* weights;
    int64_t lanes;
    const uint64_t* seeds;
    const float* noise;
    int64_t noise_row, noise_sample;
    const float *e, *c, *g, *v;
    float *x, *x_in;
    int64_t copies;
    float *x0, *y, *h;
    const float* table;
    float* table_row;
    int64_t width, samples, count;

    template <bool kFull>
    __device__ __forceinline__ int32_t samples_of(const dv::Row& row, uint32_t step, uint32_t pushes) const {
        const int64_t size = samples * count;
        const float c_in = step + 1 < control->steps ? rows[step + 1].c_in : 1.0f;
        const bool reads_n = dv::reads_n(row), draws = noise == nullptr && seeds != nullptr && reads_n;
        int32_t bad = 0;
        for (int64_t s = blockIdx.y; s < samples; s += gridDim.y) {
            const int64_t offset = s * count;
            const auto past = [&](uint32_t age) { return int64_t(dv::slot_of(pushes, age)) * size + offset; };
            Sample o = {};
            o.e = e + offset;
            o.weights = weights + int64_t(step) * lanes;
            o.lanes = int(lanes);
            o.copies = int(copies);
            o.stride = size;
            o.c = at(c, offset, dv::reads_c(row));
            o.noise = at(noise, int64_t(step) * noise_row + s * noise_sample, reads_n);
            if constexpr (kFull) {
                o.y = at<const float>(y, offset, dv::reads_y(row));
                o.h1 = at<const float>(h, past(1), dv::reads_h1(row));
                o.h2 = at<const float>(h, past(2), dv::reads_h2(row));
                o.h3 = at<const float>(h, past(3), dv::reads_h3(row));
                o.g = at(g, offset, dv::reads_g(row));
                o.v = at(v, offset, dv::reads_v(row));
                o.y_out = at(y, offset, dv::sets_y(row));
            }
            o.x = x + offset;
            o.x0 = at(x0, offset);
            o.pushed = at(h, past(3), row.push != dv::kPushNothing);
            o.x_in = at(x_in, offset);
            o.c_in = c_in;
            o.draws = draws;
            o.seed = draws ? seeds[s] : 0;
            dv::for_blocks(dv::first_x(), dv::stride_x(), count, o.wide(), [&](auto whole, int64_t b, int n) {
                bad |= row_block<kFull, whole.value>(o, row, step, b, n);
            });
        }
        return bad;
    }

    template <bool kFull>
    __device__ __forceinline__ void run() const {
        const uint32_t step = control->step, pushes = control->pushes;
        if (step >= control->steps) {
            dv::report(control, dv::kOverrun);
            return;
        }
        const dv::Row row = rows[step];
        const bool full = dv::is_full(row);
        if (full && !kFull) {
            dv::report(control, dv::kFullRow);
            return;
        }
        int32_t bad;
        if constexpr (kFull)
            bad = full ? samples_of<true>(row, step, pushes) : samples_of<false>(row, step, pushes);
        else
            bad = samples_of<false>(row, step, pushes);
        if (bad) dv::report(control, step + 1);
        copy_table_row(control, table, table_row, width, step + 1);
        dv::advance(control, row.push != dv::kPushNothing);
    }
};

}  // namespace

// Rows of plain tables, within fewer registers; a full row is reported and changes nothing.
DV_KERNEL(8) dv_update_plain(dv::Control* control, const dv::Row* rows, const float* weights, int64_t lanes,
                          const uint64_t* seeds, const float* noise, int64_t noise_row_stride, int64_t noise_sample_stride,
                          const float* e, const float* c, float* x, float* x_in, int64_t copies, float* x0, float* h,
                          const float* table, float* table_row, int64_t width, int64_t samples, int64_t count) {
    const Update update = {control, rows, weights, lanes, seeds, noise, noise_row_stride, noise_sample_stride,
                           e, c, nullptr, nullptr, x, x_in, copies, x0, nullptr, h, table, table_row, width, samples, count};
    update.run<false>();
}

// Rows of any table.
DV_KERNEL(4) dv_update_full(dv::Control* control, const dv::Row* rows, const float* weights, int64_t lanes,
                         const uint64_t* seeds, const float* noise, int64_t noise_row_stride, int64_t noise_sample_stride,
                         const float* e, const float* c, float* x, float* x_in, int64_t copies, float* x0, float* h,
                         const float* table, float* table_row, int64_t width, int64_t samples, int64_t count, float* y,
                         const float* g, const float* v) {
    const Update update = {control, rows, weights, lanes, seeds, noise, noise_row_stride, noise_sample_stride,
                           e, c, g, v, x, x_in, copies, x0, y, h, table, table_row, width, samples, count};
    update.run<true>();
}

// x = k_noise x_T + k_start start + k_centre centre; terms whose coefficient is 0 are left out.
DV_KERNEL(8) dv_start(dv::Control* control, const dv::Row* rows, const uint64_t* seeds, const float* x_T, int64_t x_T_stride,
                   const float* start, const float* centre, float* x, float* x_in, int64_t copies, const float* table,
                   float* table_row, int64_t width, int64_t samples, int64_t count) {
    const float k_noise = control->k_noise, k_start = control->k_start, k_centre = control->k_centre;
    const float c_in = rows[0].c_in;
    const int64_t size = samples * count;
    for (int64_t s = blockIdx.y; s < samples; s += gridDim.y) {
        const float* given = at(x_T, s * x_T_stride);
        const float* from_start = at(start, s * count, k_start != 0.0f);
        const float* from_centre = at(centre, s * count, k_centre != 0.0f);
        float* to = x + s * count;
        float* inputs = at(x_in, s * count);
        const bool draws = given == nullptr && seeds != nullptr;
        const uint64_t seed = draws ? seeds[s] : 0;
        const bool wide = dv::is_wide(given) && dv::is_wide(from_start) && dv::is_wide(from_centre) && dv::is_wide(to)
                          && dv::is_wide(inputs) && (copies < 2 || size % 4 == 0);
        dv::for_blocks(dv::first_x(), dv::stride_x(), count, wide, [&](auto whole, int64_t b, int n) {
            constexpr bool kWide = whole.value;
            dv::Four sum = draws ? normals(seed, dv::kStreamXT, 0, b) : dv::load<kWide>(given, 4 * b, n);
            const dv::Four i = dv::load<kWide>(from_start, 4 * b, n), c = dv::load<kWide>(from_centre, 4 * b, n);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                sum.v[j] = sum.v[j] * k_noise;
                if (from_start != nullptr) sum.v[j] = sum.v[j] + k_start * i.v[j];
                if (from_centre != nullptr) sum.v[j] = sum.v[j] + k_centre * c.v[j];
            }
            dv::store<kWide>(to, 4 * b, n, sum);
            store_inputs<kWide>(inputs, int(copies), size, c_in, 4 * b, n, sum);
        });
    }
    copy_table_row(control, table, table_row, width, 0);
}

// The NaN guard over an array that a graph outside the loop has made; `code` says which.
DV_KERNEL(8) dv_finite(dv::Control* control, const float* values, int64_t total, int64_t code) {
    int32_t bad = 0;
    dv::for_blocks(dv::first_x(), dv::stride_x(), total, dv::is_wide(values), [&](auto whole, int64_t b, int n) {
        bad |= any_not_finite(dv::load<whole.value>(values, 4 * b, n));
    });
    if (bad) dv::report(control, uint32_t(code));
}

// Four pixels of three channels, 12 bytes in the image.
struct alignas(4) FourPixels {
    uint8_t v[12];
};

// [samples, channels, pixels] to [samples, pixels, channels] in 0..255.
DV_KERNEL(8) dv_to_uint8(const float* x, uint8_t* out, int64_t samples, int64_t channels, int64_t pixels) {
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
