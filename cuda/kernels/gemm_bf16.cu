// C = A B, C += A B or C = D + A B with bf16 operands and f32 sums: kernels/src/gemm/mod.rs. The tiles: gemm_bf16.cuh.
#include "gemm_bf16.cuh"

// Writes the rows of a tile, a warp one row at a time; what is to be added is loaded for four rows at once.
template <class T> struct Writer {
    static constexpr u32 AT_ONCE = 4, WARPS = PRODUCT_THREADS / WARP;
    u32 row0, column, m, n;
    bool whole; // all four columns exist, at a multiple of what a thread loads and stores at once
    const T *addend;
    T *c;

    __device__ __forceinline__ void expect(u32) {}

    __device__ __forceinline__ void take(u32 first, const float *rows) {
        if (column >= n) return;
        const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
#pragma unroll 1
        for (u32 i = warp; i < C_ROWS; i += AT_ONCE * WARPS) {
            Vec<4> add[AT_ONCE];
#pragma unroll
            for (u32 r = 0; r < AT_ONCE; r++) {
                const u32 row = row0 + first + i + r * WARPS;
                const bool there = addend != nullptr && row < m;
                add[r] = load_four(addend + (u64)row * n + column, there);
            }
#pragma unroll
            for (u32 r = 0; r < AT_ONCE; r++) {
                const u32 row = row0 + first + i + r * WARPS;
                if (row >= m) continue;
                Vec<4> v = load_vec<4>(rows + (i + r * WARPS) * C_STRIDE + 4 * lane);
                T *to = c + (u64)row * n + column;
                if (addend != nullptr) {
#pragma unroll
                    for (u32 e = 0; e < 4; e++) v.at[e] += add[r].at[e];
                }
                if (whole) {
                    store_vec<4>(to, v);
                } else {
#pragma unroll
                    for (u32 e = 0; e < 4; e++)
                        if (e < n - column) from_f32(v.at[e], to[e]);
                }
            }
        }
    }

    __device__ __forceinline__ Vec<4> load_four(const T *p, bool there) const {
        if (there && whole) return load_vec<4>(p);
        Vec<4> v;
#pragma unroll
        for (u32 e = 0; e < 4; e++) v.at[e] = there && e < n - column ? to_f32(p[e]) : 0.0f;
        return v;
    }
};

template <bool A_K_CONTIGUOUS, bool B_K_CONTIGUOUS, bool ALIGNED, class T>
DEVICE void product(const u16 *a_data, const u16 *b_data, u32 m, u32 n, u32 k, u32 c_aligned, const T *addend, T *c) {
    __shared__ Tiles tiles;
    const Place place(blockIdx.x, (m + TILE - 1) / TILE, (n + TILE - 1) / TILE);
    const u32 row0 = place.row * TILE, column0 = place.column * TILE;
    Operand<A_K_CONTIGUOUS, ALIGNED> a(a_data, m, k, row0);
    Operand<B_K_CONTIGUOUS, ALIGNED> b(b_data, n, k, column0);
    const Sums sums(a, b, k, tiles);
    const u32 column = column0 + threadIdx.x % WARP * 4;
    Writer<T> writer = {row0, column, m, n, c_aligned != 0 && column + 4 <= n, addend, c};
    sums.hand_to(writer, tiles);
}

#define KERNEL extern "C" __global__ void __launch_bounds__(PRODUCT_THREADS, 2)

// In the names: whether A and B lie as they are multiplied (n) or transposed (t), and whether rows may begin anywhere. `addend` may be null, or c.
#define PRODUCT(name, a_k_contiguous, b_k_contiguous, aligned, T)                                                                         \
    KERNEL name(const u16 *a, const u16 *b, u32 m, u32 n, u32 k, u32 c_aligned, const T *addend, T *c) {                                  \
        product<a_k_contiguous, b_k_contiguous, aligned>(a, b, m, n, k, c_aligned, addend, c);                                            \
    }
#define PRODUCTS(suffix, T)                                                                                                               \
    PRODUCT(gemm_bf16_nn##suffix, true, false, true, T)                                                                                   \
    PRODUCT(gemm_bf16_nt##suffix, true, true, true, T)                                                                                    \
    PRODUCT(gemm_bf16_tn##suffix, false, false, true, T)                                                                                  \
    PRODUCT(gemm_bf16_nn##suffix##_anywhere, true, false, false, T)                                                                       \
    PRODUCT(gemm_bf16_nt##suffix##_anywhere, true, true, false, T)                                                                        \
    PRODUCT(gemm_bf16_tn##suffix##_anywhere, false, false, false, T)
PRODUCTS(, float)
PRODUCTS(_bf16, bf16)

// A^T B of aligned operands over a part of K for each block along y, without a rounding to C's type: `parts` is [parts, M, N]. part_k is a multiple of TILE_K,
// and no part empty.
KERNEL gemm_bf16_tn_parts(const u16 *a, const u16 *b, u32 m, u32 n, u32 k, u32 part_k, float *parts) {
    const u32 k0 = blockIdx.y * part_k;
    const float *nothing = nullptr;
    product<false, false, true>(a + (u64)k0 * m, b + (u64)k0 * n, m, n, min(part_k, k - k0), 1, nothing, parts + (u64)blockIdx.y * m * n);
}

// Their sum in order, and what is to be added to it: four of M N elements to a thread.
constexpr u32 JOIN_THREADS = 256;

template <class T> DEVICE void join(const float *parts, u32 count, u32 len, bool aligned, const T *addend, T *c) {
    const u64 at = ((u64)blockIdx.x * JOIN_THREADS + threadIdx.x) * 4;
    if (at >= len) return;
    const u32 left = len - (u32)at;
    Vec<4> sum = load_part<4>(parts + at, left, aligned);
#pragma unroll 4
    for (u32 p = 1; p < count; p++) {
        const Vec<4> part = load_part<4>(parts + (u64)p * len + at, left, aligned);
#pragma unroll
        for (u32 e = 0; e < 4; e++) sum.at[e] += part.at[e];
    }
    if (addend != nullptr) {
        const Vec<4> old = load_part<4>(addend + at, left, aligned);
#pragma unroll
        for (u32 e = 0; e < 4; e++) sum.at[e] += old.at[e];
    }
    store_part<4>(c + at, left, aligned, sum);
}

extern "C" __global__ void __launch_bounds__(JOIN_THREADS)
    gemm_bf16_join(const float *parts, u32 count, u32 len, u32 aligned, const float *addend, float *c) {
    join(parts, count, len, aligned != 0, addend, c);
}
extern "C" __global__ void __launch_bounds__(JOIN_THREADS)
    gemm_bf16_join_bf16(const float *parts, u32 count, u32 len, u32 aligned, const bf16 *addend, bf16 *c) {
    join(parts, count, len, aligned != 0, addend, c);
}
