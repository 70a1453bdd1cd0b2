// The end of a product: bias, row, skip and residual are added, sums for the next norm gathered, bf16 stored.
#ifndef DIFFUSEVAE_NATIVE_EPILOGUE_H
#define DIFFUSEVAE_NATIVE_EPILOGUE_H

#include "target.h"
#include "vectors.h"

namespace {

using namespace diffusevae::native;

// Up to 16 floats, zeros behind them: a row of the timestep table ends with its last real channel.
DV_INLINE F16 load_some(const float* p, int32_t count) {
    if (count >= kLanes) return load(p);
    float some[kLanes] = {};
    for (int32_t i = 0; i < count; ++i) some[i] = p[i];
    return load(some);
}

// One n-block of one sample's output, ready to take pixels in any block size: sums run pixel by pixel in order, so the
// bits do not depend on how the products were blocked.
struct Epilogue {
    const Conv* conv;
    F16 bias, multiplier, residual_scale;
    uint16_t* map;                  // bf16 of pixel 0, or null
    const uint16_t* residual;       // or null
    float* port;                    // floats of the n-block's first channel at pixel 0, or null
    float* sums;                    // of stripe 0 of this phase, or null
    int32_t sums_width, lanes;      // lanes: real channels
    int32_t phase;

    Epilogue(const Conv& c, const Work& w, int32_t image, int32_t phase_, int32_t n) : conv(&c), phase(phase_) {
        const int32_t channel = n * kLanes, pixels = c.output.pixels();
        const int64_t at = int64_t(phase_) * c.n_blocks * kLanes + channel;
        lanes = c.outputs - channel < 0 ? 0 : c.outputs - channel < kLanes ? c.outputs - channel : kLanes;
        bias = c.bias ? load(c.bias + at) : zero();
        if (c.bias_row >= 0 && lanes > 0) bias = add(bias, load_some(w.row_of(image) + c.bias_row + channel, lanes));
        multiplier = c.int8 ? load(c.multiplier + at) : zero();
        residual_scale = broadcast(c.residual_scale);
        const int64_t inside = int64_t(n / 2) * pixels * kBlock + (n % 2) * kLanes;
        map = c.to_port ? nullptr : reinterpret_cast<uint16_t*>(w.at(image, c.output)) + inside;
        residual = c.has_residual ? reinterpret_cast<const uint16_t*>(w.at(image, c.residual)) + inside : nullptr;
        port = c.to_port ? static_cast<float*>(w.ports[c.port]) + (w.sample + image) * c.outputs * int64_t(pixels)
                               + channel * int64_t(c.to_tokens ? 1 : pixels) : nullptr;
        sums = nullptr;
        sums_width = c.output.blocks * kBlock;
        if (!c.to_port && c.output.sums >= 0)
            sums = w.sums(image, c.output) + int64_t(phase_) * c.stripes * 2 * sums_width + channel;
    }

    // Pixels first .. first + count of the phase, all in one stripe; `product` and `skip` (may be null) hold 16 values a pixel.
    template <bool kInt8>
    DV_INLINE void take(int32_t first, int32_t count, const void* product, const float* skip) const {
        const Conv& c = *conv;
        float* slot = sums ? sums + int64_t(first / c.stripe) * 2 * sums_width : nullptr;
        const bool begins = first % c.stripe == 0;
        F16 s = slot && !begins ? load(slot) : zero(), q = slot && !begins ? load(slot + sums_width) : zero();
        const int32_t shift = c.phase_place[phase];
        for (int32_t i = 0; i < count; ++i) {
            F16 v;
            if constexpr (kInt8) {
                v = mul(from_int(static_cast<const int32_t*>(product) + i * kLanes), multiplier);
            } else {
                v = load(static_cast<const float*>(product) + i * kLanes);
            }
            if (skip) v = add(v, load(skip + i * kLanes));
            v = add(v, bias);
            const int64_t pixel = c.place[first + i] + uint32_t(shift);
            if (residual) v = fma(load_bf16(residual + pixel * kBlock), residual_scale, v);
            if (port) {
                put_in_port(pixel, v);
                continue;
            }
            s = add(s, v);
            q = fma(v, v, q);
            store_bf16(map + pixel * kBlock, v);
        }
        if (!slot) return;
        store(slot, s);
        store(slot + sums_width, q);
    }

    void put_in_port(int64_t pixel, F16 v) const {
        if (conv->output_activation != DV_NATIVE_IDENTITY) v = sigmoid(v);
        if (conv->output_activation == DV_NATIVE_SIGNED_SIGMOID) v = sub(mul(v, broadcast(2.0f)), broadcast(1.0f));
        float values[kLanes];
        store(values, v);
        const int64_t apart = conv->to_tokens ? 1 : conv->output.pixels(), first = pixel * (conv->to_tokens ? conv->outputs : 1);
        for (int32_t c = 0; c < lanes; ++c) port[first + c * apart] = values[c];
    }
};

}  // namespace

#endif  // DIFFUSEVAE_NATIVE_EPILOGUE_H
