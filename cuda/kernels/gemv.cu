// y = W x of up to eight tokens at once, and of up to three matrices: kernels/src/gemv.rs, kernels/src/gemv_batch.rs. A warp takes a row.
#include "dot.cuh"

constexpr u32 THREADS = 256;

// A matrix and where its product goes, [n, rows].
template <class T> struct Product {
    const T *w;
    float *y;
    u32 rows;
};

template <u32 N, class T>
DEVICE void rows(Product<T> a, const Product<T> &b, const Product<T> &c, const float *x, u32 n, u32 k, u32 aligned, u32 add) {
    u32 row = blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP;
    // The rows of the matrices, one after the other.
    if (row >= a.rows) {
        row -= a.rows, a = b;
        if (row >= a.rows) row -= a.rows, a = c;
        if (row >= a.rows) return;
    }
    float dots[N];
    warp_dots<N>(a.w + (u64)row * k, x, n, k, aligned, dots);
    if (threadIdx.x % WARP > 0) return;
#pragma unroll
    for (u32 t = 0; t < N; t++) {
        if (t >= n) break;
        float *y = a.y + (u64)t * a.rows + row;
        *y = add ? *y + dots[t] : dots[t];
    }
}

#define KERNEL(T, N, NAME)                                                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS<N>) NAME(const T *w0, const T *w1, const T *w2, const float *x, u32 m0, u32 m1,     \
                                                               u32 m2, u32 n, u32 k, u32 aligned, u32 add, float *y0, float *y1,          \
                                                               float *y2) {                                                               \
        rows<N, T>({w0, y0, m0}, {w1, y1, m1}, {w2, y2, m2}, x, n, k, aligned, add);                                                      \
    }

// In the names: for how many tokens at most.
KERNEL(float, 1, gemv_1)
KERNEL(float, 2, gemv_2)
KERNEL(float, 4, gemv_4)
KERNEL(float, 8, gemv_8)
KERNEL(bf16, 1, gemv_bf16_1)
KERNEL(bf16, 2, gemv_bf16_2)
KERNEL(bf16, 4, gemv_bf16_4)
KERNEL(bf16, 8, gemv_bf16_8)
