// The row formula: what one step does to one element. Every solver of engine/solver/ is a table of such rows.
//
//     e   = w_0 e_0 + w_1 e_1 + ...                                           lanes of the network
//     x0  = limit(p_x x + p_e e + p_c c  [+ p_y y + p_h1 h1 + p_h2 h2 + p_h3 h3])
//     n   = exp(s_n v) noise, where s_n is not 0; otherwise the noise itself
//     x'  = k_x0 x0 + k_x x + k_e e + k_c c + k_n n  [+ k_y y + k_h1 h1 + k_h2 h2 + k_h3 h3 + k_g g]
//     y'  = the same sum with q, where any q is not 0; otherwise y is kept
//
// x is the state, y the base that a two-stage step returns to, h1 .. h3 the history (h1 the newest), c the centre, g a
// guide's gradient, v the network's second output, which says how much noise each element gets. The bracketed terms and v
// belong to full rows (is_full): those add all of the brackets; plain rows, which are most of them, neither read nor add
// them. After a row, `push` puts e or x0 in front of the history.
//
// Sums run left to right in float32; an operand that a solver does not have counts as 0. The only C++ definition in
// the project, for CPU and CUDA: compile without contraction (-ffp-contract=off; nvcc --fmad=false) for equal bits.
#ifndef DIFFUSEVAE_ROW_H
#define DIFFUSEVAE_ROW_H

#include "diffusevae/philox.h"

namespace diffusevae {

// One row of a step table; the order of fields is the order in memory (engine.kernels.ROW_FIELDS).
struct Row {
    float p_x, p_e, p_c, p_y, p_h1, p_h2, p_h3;                       // x0
    float k_x0, k_x, k_e, k_c, k_n, k_y, k_h1, k_h2, k_h3, k_g;       // x'
    float q_x0, q_x, q_e, q_c, q_n, q_y, q_h1, q_h2, q_h3, q_g;       // y'
    float clip;                                                       // x0 is limited to [-clip, clip]; infinity = no limit
    float s_n;                                                        // the noise is scaled by exp(s_n v)
    float c_in;                                                       // the network is given c_in x
    float push;                                                       // kPushNothing, kPushE or kPushX0
};

constexpr int kRowFields = 31;
static_assert(sizeof(Row) == kRowFields * sizeof(float), "a row is an array of floats");

constexpr float kPushNothing = 0.0f, kPushE = 1.0f, kPushX0 = 2.0f;

// The operands of one element; those that a row does not use are 0.
struct Values {
    float x, e, c, n, y, h1, h2, h3, g;
};

struct Step {
    float x0, x;     // x is x'
};

struct FullStep {
    float x0, x, y;  // y is y'; worth storing where sets_y(row)
};

// Whether a row gives y a new value.
DV_HOST_DEVICE bool sets_y(const Row& r) {
    return r.q_x0 != 0.0f || r.q_x != 0.0f || r.q_e != 0.0f || r.q_c != 0.0f || r.q_n != 0.0f || r.q_y != 0.0f
           || r.q_h1 != 0.0f || r.q_h2 != 0.0f || r.q_h3 != 0.0f || r.q_g != 0.0f;
}

DV_HOST_DEVICE bool reads_c(const Row& r) { return r.p_c != 0.0f || r.k_c != 0.0f || r.q_c != 0.0f; }
DV_HOST_DEVICE bool reads_n(const Row& r) { return r.k_n != 0.0f || r.q_n != 0.0f; }
DV_HOST_DEVICE bool reads_y(const Row& r) { return r.p_y != 0.0f || r.k_y != 0.0f || r.q_y != 0.0f; }
DV_HOST_DEVICE bool reads_h1(const Row& r) { return r.p_h1 != 0.0f || r.k_h1 != 0.0f || r.q_h1 != 0.0f; }
DV_HOST_DEVICE bool reads_h2(const Row& r) { return r.p_h2 != 0.0f || r.k_h2 != 0.0f || r.q_h2 != 0.0f; }
DV_HOST_DEVICE bool reads_h3(const Row& r) { return r.p_h3 != 0.0f || r.k_h3 != 0.0f || r.q_h3 != 0.0f; }
DV_HOST_DEVICE bool reads_g(const Row& r) { return r.k_g != 0.0f || r.q_g != 0.0f; }
DV_HOST_DEVICE bool reads_v(const Row& r) { return r.s_n != 0.0f; }

// Whether a row reads or writes more than x, e, c and n.
DV_HOST_DEVICE bool is_full(const Row& r) {
    return sets_y(r) || reads_y(r) || reads_h1(r) || reads_h2(r) || reads_h3(r) || reads_g(r) || reads_v(r);
}

// The lanes' sum, begun with first_lane and continued with next_lane: lanes of weight 0 are left out, so that one lane
// of weight 1 is e_0 to the bit.
DV_HOST_DEVICE float first_lane(float weight, float e) { return weight * e; }
DV_HOST_DEVICE float next_lane(float sum, float weight, float e) { return sum + weight * e; }

// The whole sum at one element; read(lane) gives e of a lane and is called only where its weight is not 0.
template <class Read>
DV_HOST_DEVICE float combine(const float* weights, int32_t lanes, const Read& read) {
    float sum = 0.0f;
    bool begun = false;
    for (int32_t lane = 0; lane < lanes; ++lane) {
        const float weight = weights[lane];
        if (weight == 0.0f) continue;
        sum = begun ? next_lane(sum, weight, read(lane)) : first_lane(weight, read(lane));
        begun = true;
    }
    return sum;
}

// Both comparisons are false for NaN, which therefore passes through and is seen.
DV_HOST_DEVICE float limit(float value, float bound) {
    value = value < -bound ? -bound : value;
    return value > bound ? bound : value;
}

// 1 for NaN and infinity, 0 otherwise; a 32-bit integer because loops that sum up bools do not vectorise.
DV_HOST_DEVICE int32_t not_finite(float value) {
    return (float_bits(value) & 0x7F800000u) == 0x7F800000u ? 1 : 0;
}

// exp(z) with a relative error below 1e-7, for z within [-87, 88]; beyond, that of the nearer end, so that nothing
// overflows. e^z = 2^k e^r with |r| <= ln 2 / 2; e^r = 1 + r + r^2 P(r), P a minimax fit with relative error 3e-9. Adding
// 1.5 * 2^23 rounds z / ln 2 to k, which then stands in the sum's lowest bits.
DV_HOST_DEVICE float exponential(float z) {
    z = z < -87.0f ? -87.0f : z;
    z = z > 88.0f ? 88.0f : z;
    const float shifted = z * 1.44269504f + 12582912.0f;
    const float k = shifted - 12582912.0f;
    float r = z - k * 0.693359375f;  // ln 2 in two parts, as in philox.h
    r = r - k * -2.12194442e-4f;
    float p = 0.00138145592f;
    p = p * r + 0.0083687352f;
    p = p * r + 0.041668389f;
    p = p * r + 0.166665211f;
    p = p * r + 0.49999994f;
    float e = (r * r) * p + r;
    e = e + 1.0f;
    return e * bits_float((float_bits(shifted) - (0x4B400000u - 127u)) << 23);
}

// n of a row that reads v.
DV_HOST_DEVICE float scaled_noise(float s_n, float v, float noise) { return exponential(s_n * v) * noise; }

// A plain row.
DV_HOST_DEVICE Step step_plain(const Row& r, float x, float e, float c, float n) {
    const float x0 = limit(r.p_x * x + r.p_e * e + r.p_c * c, r.clip);
    const float next = r.k_x0 * x0 + r.k_x * x + r.k_e * e + r.k_c * c + r.k_n * n;
    return Step{x0, next};
}

// A full row: every term of the brackets is added, also those whose coefficient is 0. v.n is the scaled noise already.
DV_HOST_DEVICE FullStep step_full(const Row& r, const Values& v) {
    const float x0 = limit(r.p_x * v.x + r.p_e * v.e + r.p_c * v.c + r.p_y * v.y + r.p_h1 * v.h1 + r.p_h2 * v.h2
                               + r.p_h3 * v.h3,
                           r.clip);
    const float next = r.k_x0 * x0 + r.k_x * v.x + r.k_e * v.e + r.k_c * v.c + r.k_n * v.n + r.k_y * v.y + r.k_h1 * v.h1
                       + r.k_h2 * v.h2 + r.k_h3 * v.h3 + r.k_g * v.g;
    const float base = r.q_x0 * x0 + r.q_x * v.x + r.q_e * v.e + r.q_c * v.c + r.q_n * v.n + r.q_y * v.y + r.q_h1 * v.h1
                       + r.q_h2 * v.h2 + r.q_h3 * v.h3 + r.q_g * v.g;
    return FullStep{x0, next, base};
}

// [-1, 1] to 0..255, rounding half up; NaN becomes 0.
DV_HOST_DEVICE uint8_t to_uint8(float x) {
    x = x > -1.0f ? x : -1.0f;
    x = x < 1.0f ? x : 1.0f;
    return uint8_t(int32_t((x + 1.0f) * 127.5f + 0.5f));  // never negative: truncation is floor
}

}  // namespace diffusevae

#endif  // DIFFUSEVAE_ROW_H
