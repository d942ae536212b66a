// C = A B, C += A B in f32: kernels/src/gemm/mod.rs.
//
// A block makes a tile of 128 x 128 of C, a thread 8 x 8 of it: 4 x 4 in each quarter. Tiles of A and B of 8 along K lie in shared memory with K as
// rows, whichever way their operand lies in global memory; four are there at a time, so that cp.async fetches three steps ahead. An element
// of C is one chain of fused multiply-adds in the order of k.
#include "common.cuh"

constexpr u32 TILE = 128;
constexpr u32 TILE_K = 8;
constexpr u32 STAGES = 4;
constexpr u32 THREADS = 256;
constexpr u32 STRIDE = TILE + 4; // floats of a row: rows of 16 bytes, and threads that write a column meet few banks twice
constexpr u32 GROUP = 8;         // tiles along M whose blocks run side by side: they share tiles of B in the L2

// Begins to fetch the tile at row0, k0 of `extent` rows of K (K_CONTIGUOUS), or of K rows of `extent`. What lies outside is zero.
template <bool K_CONTIGUOUS> DEVICE void fetch(const float *data, u32 extent, u32 k, u32 row0, u32 k0, float *tile) {
#pragma unroll 2 // all four at once take more registers than there are
    for (u32 i = threadIdx.x; i < TILE * TILE_K; i += THREADS) {
        const u32 row = K_CONTIGUOUS ? i / TILE_K : i % TILE, at_k = K_CONTIGUOUS ? i % TILE_K : i / TILE;
        const u32 r = row0 + row, c = k0 + at_k;
        const bool inside = r < extent && c < k;
        const float *from = data + (inside ? (K_CONTIGUOUS ? (u64)r * k + c : (u64)c * extent + r) : 0);
        const u32 to = (u32)__cvta_generic_to_shared(tile + at_k * STRIDE + row);
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(inside ? 4 : 0));
    }
}

template <bool A_K_CONTIGUOUS, bool B_K_CONTIGUOUS>
DEVICE void product(const float *a, const float *b, u32 m, u32 n, u32 k, u32 c_aligned, u32 add, float *c) {
    __shared__ __align__(16) float tiles[STAGES][2][TILE_K * STRIDE];

    const u32 tiles_m = (m + TILE - 1) / TILE, tiles_n = (n + TILE - 1) / TILE;
    const u32 first_m = blockIdx.x / (GROUP * tiles_n) * GROUP, in_group = blockIdx.x % (GROUP * tiles_n);
    const u32 group_m = min(GROUP, tiles_m - first_m);
    const u32 row0 = (first_m + in_group % group_m) * TILE, column0 = in_group / group_m * TILE;
    const u32 steps = (k + TILE_K - 1) / TILE_K;

    // Rows 4 y .. and 64 + 4 y .., columns 4 x .. and 64 + 4 x ...
    const u32 x = threadIdx.x % 16, y = threadIdx.x / 16;
    float sums[8][8] = {};
    for (u32 at = 0; at < steps + STAGES - 1; at++) {
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
        // What is multiplied now is there for all threads, and all are done with the step before, whose place is fetched into.
        __syncthreads();
        if (at < steps) {
            fetch<A_K_CONTIGUOUS>(a, m, k, row0, at * TILE_K, tiles[at % STAGES][0]);
            fetch<B_K_CONTIGUOUS>(b, n, k, column0, at * TILE_K, tiles[at % STAGES][1]);
        }
        // A group for each step, empty ones at the end, so that the wait counts alike for all.
        asm volatile("cp.async.commit_group;" ::: "memory");
        if (at < STAGES - 1) continue;
        const float(*stage)[TILE_K * STRIDE] = tiles[(at + 1) % STAGES]; // that of step at - (STAGES - 1)
#pragma unroll
        for (u32 at_k = 0; at_k < TILE_K; at_k++) {
            const float *a_row = stage[0] + at_k * STRIDE + 4 * y, *b_row = stage[1] + at_k * STRIDE + 4 * x;
            const Vec<4> a_part[2] = {load_vec<4>(a_row), load_vec<4>(a_row + 64)}, b_part[2] = {load_vec<4>(b_row), load_vec<4>(b_row + 64)};
#pragma unroll
            for (u32 i = 0; i < 8; i++)
#pragma unroll
                for (u32 j = 0; j < 8; j++) sums[i][j] = fmaf(a_part[i / 4].at[i % 4], b_part[j / 4].at[j % 4], sums[i][j]);
        }
    }

#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        const u32 row = row0 + i / 4 * 64 + 4 * y + i % 4;
        if (row >= m) continue;
#pragma unroll
        for (u32 j = 0; j < 8; j += 4) {
            const u32 column = column0 + j / 4 * 64 + 4 * x;
            if (column >= n) continue;
            float *to = c + (u64)row * n + column;
            Vec<4> v = {sums[i][j], sums[i][j + 1], sums[i][j + 2], sums[i][j + 3]};
            if (add) {
                const Vec<4> old = load_part<4>(to, n - column, c_aligned);
#pragma unroll
                for (u32 e = 0; e < 4; e++) v.at[e] += old.at[e];
            }
            store_part(to, n - column, c_aligned, v);
        }
    }
}

// In the names: whether A and B lie as they are multiplied (n) or transposed (t).
#define PRODUCT(name, a_k_contiguous, b_k_contiguous)                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) name(                                                                      \
        const float *a, const float *b, u32 m, u32 n, u32 k, u32 c_aligned, u32 add, float *c) {                                        \
        product<a_k_contiguous, b_k_contiguous>(a, b, m, n, k, c_aligned, add, c);                                                      \
    }
PRODUCT(gemm_nn, true, false)
PRODUCT(gemm_nt, true, true)
PRODUCT(gemm_tn, false, false)
