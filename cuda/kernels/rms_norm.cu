// y = x * inv_rms * weight, row by row, and its gradients: kernels/src/rms_norm.rs. A block takes a row (forward) or some rows (backward).
#include "common.cuh"

constexpr u32 MAX_THREADS = 512;

// x f32, the residual stream; y f32, or bf16 where a product reads it next.
template <class Y>
DEVICE void forward(const float *x, const float *weight, float eps, u32 c, u32 aligned, Y *y, float *inv_rms) {
    __shared__ float scratch[WARP];
    const u64 row = blockIdx.x;
    x += row * c, y += row * c;
    float sum = 0.0f;
    for (u32 i = threadIdx.x * 4; i < c; i += blockDim.x * 4) {
        const Vec<4> v = load_part<4>(x + i, c - i, aligned);
#pragma unroll
        for (int j = 0; j < 4; j++) sum = fmaf(v.at[j], v.at[j], sum);
    }
    sum = block_sum(sum, scratch);
    const float scale = 1.0f / sqrtf(sum / (float)c + eps);
    if (threadIdx.x == 0) inv_rms[row] = scale;

    // x a second time, from the cache.
    for (u32 i = threadIdx.x * 4; i < c; i += blockDim.x * 4) {
        Vec<4> v = load_part<4>(x + i, c - i, aligned);
        const Vec<4> w = load_part<4>(weight + i, c - i, aligned);
#pragma unroll
        for (int j = 0; j < 4; j++) v.at[j] = v.at[j] * scale * w.at[j];
        store_part<4>(y + i, c - i, aligned, v);
    }
}

// Rows `rows_per_block * blockIdx.x` onwards: dx, and the sum over these rows of dy * n into row blockIdx.x of `partial`. A thread owns the same
// columns of every row, so its sums, in shared memory, are its own.
template <class Y>
DEVICE void backward(const Y *dy, const float *x, const float *weight, const float *inv_rms, u32 add, u32 n, u32 c, u32 rows_per_block,
                     u32 aligned, float *dx, float *partial) {
    extern __shared__ float d_weight[];
    // Two by turns: the one that is written was last read before the barrier in between.
    __shared__ float scratch[2][WARP];
    for (u32 i = threadIdx.x * 4; i < c; i += blockDim.x * 4)
        for (u32 j = i; j < min(i + 4, c); j++) d_weight[j] = 0.0f;

    const u32 first = blockIdx.x * rows_per_block, last = min(first + rows_per_block, n);
    for (u32 row = first; row < last; row++) {
        const u64 start = (u64)row * c;
        float dot = 0.0f;
        for (u32 i = threadIdx.x * 4; i < c; i += blockDim.x * 4) {
            const Vec<4> d = load_part<4>(dy + start + i, c - i, aligned), v = load_part<4>(x + start + i, c - i, aligned),
                         w = load_part<4>(weight + i, c - i, aligned);
#pragma unroll
            for (int j = 0; j < 4; j++) dot = fmaf(d.at[j] * w.at[j], v.at[j], dot);
        }
        dot = block_sum(dot, scratch[row % 2]);
        const float scale = inv_rms[row], mean = dot * scale / (float)c;

        for (u32 i = threadIdx.x * 4; i < c; i += blockDim.x * 4) {
            const Vec<4> d = load_part<4>(dy + start + i, c - i, aligned), v = load_part<4>(x + start + i, c - i, aligned),
                         w = load_part<4>(weight + i, c - i, aligned);
            Vec<4> to = add ? load_part<4>(dx + start + i, c - i, aligned) : Vec<4>{};
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const float x_hat = v.at[j] * scale, gradient = scale * (d.at[j] * w.at[j] - x_hat * mean);
                to.at[j] = add ? to.at[j] + gradient : gradient;
                if (i + j < c) d_weight[i + j] = fmaf(d.at[j], x_hat, d_weight[i + j]);
            }
            store_part<4>(dx + start + i, c - i, aligned, to);
        }
    }
    for (u32 i = threadIdx.x * 4; i < c; i += blockDim.x * 4)
        for (u32 j = i; j < min(i + 4, c); j++) partial[(u64)blockIdx.x * c + j] = d_weight[j];
}

#define KERNEL extern "C" __global__ void __launch_bounds__(MAX_THREADS)

#define KERNELS(T, SUFFIX)                                                                                                                \
    KERNEL rms_norm##SUFFIX(const float *x, const float *weight, float eps, u32 c, u32 aligned, T *y, float *inv_rms) {                   \
        forward(x, weight, eps, c, aligned, y, inv_rms);                                                                                  \
    }                                                                                                                                     \
    KERNEL rms_norm_backward##SUFFIX(const T *dy, const float *x, const float *weight, const float *inv_rms, u32 add, u32 n, u32 c,       \
                                     u32 rows_per_block, u32 aligned, float *dx, float *partial) {                                        \
        backward(dy, x, weight, inv_rms, add, n, c, rows_per_block, aligned, dx, partial);                                                \
    }

KERNELS(float, )
KERNELS(bf16, _bf16)
