// The psi that training is made of, compiled for themselves, and the gated activation's gradients: kernels/src/activation.
#pragma once
#include "psi.cuh"

struct Relu {
    __device__ __forceinline__ Draws draw(u32, u32) const { return Draws{}; }
    __device__ __forceinline__ ValueAndSlope eval(u32, float x) const { return relu(x); }
};

struct Silu {
    __device__ __forceinline__ Draws draw(u32, u32) const { return Draws{}; }
    __device__ __forceinline__ ValueAndSlope eval(u32, float x) const { return silu(x); }
};

// The paper's pair: for x < 0 SILU where the draw is below the threshold and else RELU; otherwise, NaN included, the identity.
struct Stochastic {
    MaskSite site;
    u32 threshold;

    __device__ __forceinline__ Draws draw(u32 row, u32 call) const { return philox4x32(site, row, call); }
    __device__ __forceinline__ ValueAndSlope eval(u32 draw, float x) const {
        const ValueAndSlope first = relu(x), second = silu(x);
        return x < 0.0f && draw < threshold ? second : first;
    }
};

struct Gradients {
    float dg, du, h;
};

// dh' = dh + l1 sign(h); dg = dh' u psi'(g), du = dh' psi(g). The order of the products is the CPU's.
DEVICE Gradients gradients(float dh, float u, ValueAndSlope psi, float l1) {
    const float h = psi.value * u;
    if (l1 != 0.0f) dh = h > 0.0f ? dh + l1 : h < 0.0f ? dh - l1 : dh;
    return {dh * u * psi.slope, dh * psi.value, h};
}

// A site and its threshold as parameters of a kernel, and as what begins Stochastic and Any.
#define SITE u32 key0, u32 key1, u32 first_token, u32 layer_and_stream, u32 step, u32 threshold
#define THE_SITE {key0, key1, first_token, layer_and_stream, step}, threshold
