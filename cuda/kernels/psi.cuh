// Any activation: what the CPU's Activation says in full.
#pragma once
#include "math.cuh"
#include "philox.cuh"

// kernels::Fixed, in its order.
enum Kind : u32 { RELU, SILU, GELU, RELU2, TANH };

DEVICE ValueAndSlope eval_kind(u32 kind, float x) {
    switch (kind) {
    case RELU: return relu(x);
    case SILU: return silu(x);
    case GELU: return gelu(x);
    case RELU2: return relu2(x);
    default: return tanh_f32(x);
    }
}

// Any psi: x < 0 goes through negative1 where the draw is below the threshold and else through negative0, other x through positive.
struct Any {
    MaskSite site;
    u32 threshold, negative0, negative1, positive;

    __device__ __forceinline__ ValueAndSlope eval(u32 row, u32 column, float x) const {
        u32 kind = positive;
        if (x < 0.0f) {
            const Draws draws = philox4x32(site, row, column / DRAWS_PER_CALL);
            kind = draws.pick(column % DRAWS_PER_CALL) < threshold ? negative1 : negative0;
        }
        return eval_kind(kind, x);
    }
};
