// What does one step do to one element? The row formula that every solver of engine/steps.py is a table of.
//
//     eps = eps_c + w (eps_c - eps_u)                                guidance
//     x0  = clip(p_x x + p_eps eps + p_cond cond)
//     x'  = k_x0 x0 + k_prev x0_prev + k_x x + k_eps eps + k_cond cond + sigma noise
//
// Sums run left to right in float32; an operand that a solver does not have counts as 0. The only C++ definition in
// the project, for CPU and CUDA: compile without contraction (-ffp-contract=off; nvcc --fmad=false) for equal bits.
#ifndef DIFFUSEVAE_ROW_H
#define DIFFUSEVAE_ROW_H

#include "diffusevae/philox.h"

namespace diffusevae {

// One row of a step table; the order of fields is the order in memory (kernels.ROW_FIELDS).
struct Row {
    float p_x, p_eps, p_cond;                 // x0 from x, eps and the condition
    float k_x0, k_prev, k_x, k_eps, k_cond;   // x' from x0, the previous step's x0, x, eps and the condition
    float sigma;                              // standard deviation of the step's noise
    float clip;                               // x0 is limited to [-clip, clip]; infinity = no limit
};

struct Step {
    float x0, x, eps;  // x': x; the guided eps goes along for the NaN guard
};

DV_HOST_DEVICE float guide(float eps_c, float eps_u, float w) { return eps_c + w * (eps_c - eps_u); }

// Both comparisons are false for NaN, which therefore passes through and is seen.
DV_HOST_DEVICE float limit(float value, float bound) {
    value = value < -bound ? -bound : value;
    return value > bound ? bound : value;
}

// 1 for NaN and infinity, 0 otherwise; a 32-bit integer because loops that sum up bools do not vectorise.
DV_HOST_DEVICE int32_t not_finite(float value) {
    return (float_bits(value) & 0x7F800000u) == 0x7F800000u ? 1 : 0;
}

DV_HOST_DEVICE Step step(const Row& row, float w, float x, float eps_c, float eps_u, float cond, float x0_prev,
                         float noise) {
    const float eps = guide(eps_c, eps_u, w);
    const float x0 = limit(row.p_x * x + row.p_eps * eps + row.p_cond * cond, row.clip);
    const float next = row.k_x0 * x0 + row.k_prev * x0_prev + row.k_x * x + row.k_eps * eps + row.k_cond * cond
                       + row.sigma * noise;
    return Step{x0, next, eps};
}

// [-1, 1] to 0..255, rounding half up; NaN becomes 0.
DV_HOST_DEVICE uint8_t to_uint8(float x) {
    x = x > -1.0f ? x : -1.0f;
    x = x < 1.0f ? x : 1.0f;
    return uint8_t(int32_t((x + 1.0f) * 127.5f + 0.5f));  // never negative: truncation is floor
}

}  // namespace diffusevae

#endif  // DIFFUSEVAE_ROW_H
