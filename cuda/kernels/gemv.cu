// y = W x: kernels/src/gemv.rs. A warp takes a row.
#include "dot.cuh"

constexpr u32 THREADS = 256;

template <class T> DEVICE void rows(const T *w, const float *x, u32 m, u32 k, u32 aligned, float *y) {
    const u32 row = blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP;
    if (row >= m) return;
    const float dot = warp_dot(w + (u64)row * k, x, k, aligned);
    if (threadIdx.x % WARP == 0) y[row] = dot;
}

extern "C" __global__ void __launch_bounds__(THREADS) gemv(const float *w, const float *x, u32 m, u32 k, u32 aligned, float *y) {
    rows(w, x, m, k, aligned, y);
}

extern "C" __global__ void __launch_bounds__(THREADS) gemv_bf16(const bf16 *w, const float *x, u32 m, u32 k, u32 aligned, float *y) {
    rows(w, x, m, k, aligned, y);
}
