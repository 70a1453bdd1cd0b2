// The families that make up a target without tiles: everything over vectors.
#ifndef DIFFUSEVAE_NATIVE_TARGET_VECTOR_H
#define DIFFUSEVAE_NATIVE_TARGET_VECTOR_H

#include "attention.h"
#include "classify.h"
#include "codes.h"
#include "gradients.h"
#include "norms.h"
#include "pixels.h"
#include "prepare.h"
#include "rows.h"
#include "winograd.h"

namespace {

using namespace diffusevae::native;

void nothing() {}

// Weights fill the first half of the operands, pixels lie in the second: the K steps of one block of a convolution.
template <class Sum, class Number, int kPixels, int kGroups>
double block_steps(const uint8_t* operands, int64_t half, int64_t steps, int64_t pixel_bytes) {
    Sum sum[kPixels][kGroups];
    clear(sum);
    const uint8_t *w[kGroups], *a[kPixels];
    for (int g = 0; g < kGroups; ++g) w[g] = operands + g * steps * kStepBytes;
    for (int p = 0; p < kPixels; ++p) a[p] = operands + half + p * pixel_bytes;
    for (int64_t done = 0; done < steps; ++done) {
        step(sum, a, done * pixel_bytes, w);
        for (int g = 0; g < kGroups; ++g) w[g] += kStepBytes;
    }
    alignas(64) Number kept[kGroups][kPixels * kLanes];
    keep(sum, kept);
    asm volatile("" : : "r"(kept) : "memory");  // every sum is wanted
    return 2.0 * kPixels * kGroups * kLanes * double(steps);
}

double bf16_steps(const uint8_t* operands, int64_t half, int64_t steps) {
    return kBlock * block_steps<F16, float, kPixelsBf16, kWide>(operands, half, steps, kPixelBytesBf16);
}

double int8_steps(const uint8_t* operands, int64_t half, int64_t steps) {
    return 2 * kBlock * block_steps<Sum8, int32_t, kPixelsInt8, kWide>(operands, half, steps, kPixelBytesInt8);
}

double ceiling(int32_t what, const uint8_t* operands, int64_t bytes, int64_t rounds) {
#if defined(__AVX512BF16__)
    if (what == kCeilingF32) return 0.0;  // no product of this target is done in float32
#endif
    const int64_t half = bytes / 2, steps = half / kStepBytes / kWide;
    double operations = 0.0;
    for (int64_t round = 0; round < rounds; ++round)
        operations += what == kCeilingInt8 ? int8_steps(operands, half, steps) : bf16_steps(operands, half, steps);
    return operations;
}

constexpr Kernels make_kernels(const char* name) {
    return Kernels{name,      kPixelBytesBf16, kPixelBytesInt8,    kTogether, kKeys,  false,         nothing,
                   nothing,   input,           prepare,            product,   pack,   attention,     pool,
                   upsample,  norm,            embed,              nearest_codes, norm_gradient, attention_gradient,
                   classify,  activate_rows,   linear,             ceiling,   transform_weights};
}

}  // namespace

#endif  // DIFFUSEVAE_NATIVE_TARGET_VECTOR_H
