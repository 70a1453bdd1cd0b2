// Which families make up a target without tiles? Everything over vectors.
#ifndef DIFFUSEVAE_NATIVE_TARGET_VECTOR_H
#define DIFFUSEVAE_NATIVE_TARGET_VECTOR_H

#include "attention.h"
#include "pixels.h"
#include "prepare.h"
#include "products_vector.h"
#include "rows.h"

namespace {

using namespace diffusevae::native;

void nothing() {}

// Weights fill the first half of the operands, pixels lie in the second: the steps of one block of a convolution.
double f32_steps(const uint8_t* operands, int64_t half, int64_t steps) {
    F16 sum[kPixelsF32][kWide];
    clear(sum);
    const uint8_t *w[kWide], *a[kPixelsF32];
    for (int g = 0; g < kWide; ++g) w[g] = operands + g * steps * kStepBytes;
    for (int p = 0; p < kPixelsF32; ++p) a[p] = operands + half + p * kPixelBytesF32;
    for (int64_t step = 0; step < steps; ++step) {
        step_f32<kPixelsF32, kWide>(sum, a, step * kPixelBytesF32, w);
        for (int g = 0; g < kWide; ++g) w[g] += kStepBytes;
    }
    alignas(64) float sink[kWide][kPixelsF32 * kLanes];
    keep(sum, sink);
    asm volatile("" : : "r"(sink) : "memory");
    return 2.0 * kPixelsF32 * kWide * kLanes * kBlock * double(steps);
}

double int8_steps(const uint8_t* operands, int64_t half, int64_t steps) {
    Sum8 sum[kPixelsInt8][kWide];
    for (auto& pixel : sum)
        for (Sum8& s : pixel) s = no_sum();
    const uint8_t* w[kWide];
    uint32_t origin[kPixelsInt8];
    for (int g = 0; g < kWide; ++g) w[g] = operands + g * steps * kStepBytes;
    for (int p = 0; p < kPixelsInt8; ++p) origin[p] = uint32_t(p * kPixelBytesInt8);
    Segment segment{};
    segment.block_bytes = kPixelBytesInt8;
    segment.blocks = int32_t(steps);
    segment.taps = 1;
    segment.origin = origin;
    sum_int8<kPixelsInt8, kWide>(sum, segment, 0, operands + half, 0, w);
    alignas(64) int32_t sink[kPixelsInt8 * kLanes];
    for (int p = 0; p < kPixelsInt8; ++p) put_sum(sink + p * kLanes, sum[p][0]);
    asm volatile("" : : "r"(sink) : "memory");
    return 2.0 * kPixelsInt8 * kWide * kLanes * 2 * kBlock * double(steps);
}

double ceiling(int32_t what, const uint8_t* operands, int64_t bytes, int64_t rounds) {
    const int64_t half = bytes / 2, steps = half / kStepBytes / kWide;
    double operations = 0.0;
    for (int64_t round = 0; round < rounds; ++round)
        operations += what == kCeilingInt8 ? int8_steps(operands, half, steps) : f32_steps(operands, half, steps);
    return operations;
}

constexpr Kernels make_kernels(const char* name) {
    return Kernels{name,    kPixelBytesF32, kPixelBytesInt8, false, nothing,  nothing, input,
                   prepare, product,        attention,       pool,  upsample, linear,  ceiling};
}

}  // namespace

#endif  // DIFFUSEVAE_NATIVE_TARGET_VECTOR_H
