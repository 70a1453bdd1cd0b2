// The timestep table's matrices. float32 rows times packed float32 panels of 16 outputs.
#ifndef DIFFUSEVAE_NATIVE_ROWS_H
#define DIFFUSEVAE_NATIVE_ROWS_H

#include "target.h"
#include "vectors.h"

namespace {

using namespace diffusevae::native;

constexpr int kRowsAtOnce = 6;

template <int kRows>
DV_INLINE void linear_block(const Linear& op, const float* in, const float* panel, F16 bias, float* out, int32_t lanes) {
    F16 sum[kRows];
    for (int r = 0; r < kRows; ++r) sum[r] = bias;
    for (int32_t k = 0; k < op.inputs; ++k) {
        const F16 v = load(panel + int64_t(k) * kLanes);
        for (int r = 0; r < kRows; ++r) sum[r] = fma(broadcast(in[int64_t(r) * op.inputs + k]), v, sum[r]);
    }
    for (int r = 0; r < kRows; ++r) {
        float values[kLanes];
        store(values, sum[r]);
        for (int32_t i = 0; i < lanes; ++i) out[int64_t(r) * op.outputs + i] = values[i];
    }
}

void activate_rows(const float* in, int64_t first, int64_t last, float* out) {
    for (int64_t i = first; i < last; i += kLanes) {
        const int32_t some = int32_t(last - i < kLanes ? last - i : kLanes);
        float values[kLanes] = {};
        for (int32_t j = 0; j < some; ++j) values[j] = in[i + j];
        store(values, silu(load(values)));
        for (int32_t j = 0; j < some; ++j) out[i + j] = values[j];
    }
}

// This piece's n-blocks for all rows, whose activation is done.
void linear(const Linear& op, const float* in, int64_t rows, float* out, const Work& w) {
    const Range mine = units_of(w, (op.outputs + kLanes - 1) / kLanes);
    for (int32_t n = int32_t(mine.first); n < mine.last; ++n) {
        const float* panel = op.weights + int64_t(n) * op.inputs * kLanes;
        const F16 bias = op.bias ? load(op.bias + int64_t(n) * kLanes) : zero();
        const int32_t left = op.outputs - n * kLanes, lanes = left < kLanes ? left : kLanes;
        int64_t r = 0;
        for (; rows - r >= kRowsAtOnce; r += kRowsAtOnce)
            linear_block<kRowsAtOnce>(op, in + r * op.inputs, panel, bias, out + r * op.outputs + n * kLanes, lanes);
        for (; r < rows; ++r)
            linear_block<1>(op, in + r * op.inputs, panel, bias, out + r * op.outputs + n * kLanes, lanes);
    }
}

}  // namespace

#endif  // DIFFUSEVAE_NATIVE_ROWS_H
