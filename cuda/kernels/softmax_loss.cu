// The cross-entropy of a chunk of logits, and its gradient: the part of kernels/src/lm_head_loss.rs between the products. A block takes a row.
#include "math.cuh"

constexpr u32 MAX_THREADS = 512;

// Row n of z [N, V] at `stride`: losses[n] = logsumexp(z) - z[target]; if `gradient` is set, dz = scale (softmax(z) - onehot(target)). dz may be z.
// A target that is not below V makes the loss NaN.
template <class D>
DEVICE void softmax_row(const float *z, u32 stride, u32 v, const u32 *targets, float scale, u32 gradient, u32 aligned, D *dz,
                        double *losses) {
    __shared__ float scratch[2][WARP];
    const u64 row = blockIdx.x;
    z += row * stride, dz += row * stride;
    const u32 target = targets[row];
    const float infinity = __int_as_float(0x7F800000);
    const float at_target = target < v ? z[target] : __int_as_float(0x7FC00000);

    float most = -infinity;
    for (u32 i = threadIdx.x * 4; i < v; i += blockDim.x * 4) {
        const Vec<4> logits = load_part<4>(z + i, v - i, aligned, -infinity);
#pragma unroll
        for (int j = 0; j < 4; j++) most = fmaxf(most, logits.at[j]);
    }
    most = block_max(most, scratch[0]);

    // A NaN that the maximum passed over is caught here: its exponential is NaN, and so is the sum.
    float sum = 0.0f;
    for (u32 i = threadIdx.x * 4; i < v; i += blockDim.x * 4) {
        const Vec<4> logits = load_part<4>(z + i, v - i, aligned, -infinity);
#pragma unroll
        for (int j = 0; j < 4; j++) sum += exp_f32(logits.at[j] - most);
    }
    // Behind this barrier all threads have read z[target], and may write.
    sum = block_sum(sum, scratch[1]);
    if (threadIdx.x == 0) losses[row] = (double)most + log_f64(sum) - (double)at_target;
    if (!gradient) return;

    const float share = 1.0f / sum;
    for (u32 i = threadIdx.x * 4; i < v; i += blockDim.x * 4) {
        Vec<4> logits = load_part<4>(z + i, v - i, aligned);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float p = exp_f32(logits.at[j] - most) * share;
            logits.at[j] = scale * (i + j == target ? p - 1.0f : p);
        }
        store_part<4>(dz + i, v - i, aligned, logits);
    }
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS)
    softmax_loss(const float *z, u32 stride, u32 v, const u32 *targets, float scale, u32 gradient, u32 aligned, float *dz,
                 double *losses) {
    softmax_row(z, stride, v, targets, scale, gradient, aligned, dz, losses);
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS)
    softmax_loss_bf16(const float *z, u32 stride, u32 v, const u32 *targets, float scale, u32 gradient, u32 aligned, bf16 *dz,
                      double *losses) {
    softmax_row(z, stride, v, targets, scale, gradient, aligned, dz, losses);
}
