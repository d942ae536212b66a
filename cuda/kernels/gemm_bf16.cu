// C = A B, C += A B with bf16 operands and f32 sums: kernels/src/gemm/mod.rs.
//
// A block makes a tile of 128 x 128 of C, a warp 64 x 32 of it, from tiles of A and B of 32 along K in shared memory. Three of these are there at a time:
// while one is multiplied, cp.async fetches the next two.
//
// A tile lies in shared memory as its operand does in global memory: 128 rows of 32 along K, or 32 rows (of K) of 128. ldmatrix
// transposes the second kind, so no operand is ever transposed in memory. Rows are cut into pieces of 16 bytes, and piece p of row r lies at place
// p ^ f(r), so that the eight rows that ldmatrix reads at once, and the eight pieces that are written at once, lie in different banks.
#include "mma.cuh"

constexpr u32 TILE = 128;   // of M and N
constexpr u32 TILE_K = 32;
constexpr u32 STAGES = 3;   // 48 KiB: what a block may have without asking
constexpr u32 THREADS = 256;
constexpr u32 TILE_BYTES = TILE * TILE_K * 2;
constexpr u32 PIECE = 8;    // elements of 16 bytes
constexpr u32 PIECES = TILE * TILE_K / PIECE;
constexpr u32 GROUP = 8;    // tiles along M whose blocks run side by side: they share tiles of B in the L2

// An operand: `extent` rows of K elements each, K contiguous; or K rows of `extent` elements.
template <bool K_CONTIGUOUS> struct Operand {
    const u16 *data;
    u32 extent, k;
    bool aligned; // all rows begin at multiples of 16 bytes

    // Place in a tile of the piece that has row `row` (of M or N) and `at_k`.
    static __device__ __forceinline__ u32 place(u32 row, u32 at_k) {
        if (K_CONTIGUOUS) return row * (TILE_K * 2) + ((at_k / PIECE) ^ (row / 2 % 4)) * 16;
        return at_k * (TILE * 2) + ((row / PIECE) ^ (at_k % 8)) * 16;
    }

    // Begins to fetch the tile at row0, k0. What lies outside of the operand is zero.
    __device__ __forceinline__ void fetch(u32 row0, u32 k0, u32 tile) const {
        if (aligned) {
#pragma unroll
            for (u32 i = threadIdx.x; i < PIECES; i += THREADS) {
                // Whole pieces are inside or outside: rows are multiples of 16 bytes.
                const Piece p = piece(i, row0, k0);
                asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(tile + p.to), "l"(p.from), "r"(p.left > 0 ? 16 : 0));
            }
        } else {
#pragma unroll 1
            for (u32 i = threadIdx.x; i < PIECES; i += THREADS) {
                const Piece p = piece(i, row0, k0);
                u32 words[4];
#pragma unroll
                for (u32 w = 0; w < 4; w++) {
                    const u32 low = 2 * w < p.left ? p.from[2 * w] : 0, high = 2 * w + 1 < p.left ? p.from[2 * w + 1] : 0;
                    words[w] = low | high << 16;
                }
                asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(tile + p.to), "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3]) : "memory");
            }
        }
    }

    // Piece i of a tile: where it goes, where it comes from, and how many elements from there on are inside.
    struct Piece {
        u32 to;
        const u16 *from;
        u32 left;
    };
    __device__ __forceinline__ Piece piece(u32 i, u32 row0, u32 k0) const {
        const u32 row = K_CONTIGUOUS ? i / (TILE_K / PIECE) : i % (TILE / PIECE) * PIECE;
        const u32 at_k = K_CONTIGUOUS ? i % (TILE_K / PIECE) * PIECE : i / (TILE / PIECE);
        const u32 r = row0 + row, c = k0 + at_k;
        const u32 left = r < extent && c < k ? (K_CONTIGUOUS ? k - c : extent - r) : 0;
        const u64 at = K_CONTIGUOUS ? (u64)r * k + c : (u64)c * extent + r;
        return {place(row, at_k), data + (left > 0 ? at : 0), left};
    }

    // Four matrices of 8 x 8 that cover 16 rows from `row` and 16 of K from `at_k`; in the registers, if K_FIRST, those of 8 rows come one after
    // the other along K (what B wants), else those of 8 of K along the rows (A).
    template <bool K_FIRST> static __device__ __forceinline__ void load16x16(u32 tile, u32 row, u32 at_k, u32 (&to)[4]) {
        const u32 lane = threadIdx.x % WARP, inner = lane % 8, second = lane / 8 % 2 * 8, third = lane / 16 * 8;
        const u32 part_row = K_FIRST ? third : second, part_k = K_FIRST ? second : third;
        const u32 from = tile + (K_CONTIGUOUS ? place(row + part_row + inner, at_k + part_k) : place(row + part_row, at_k + part_k + inner));
        if (K_CONTIGUOUS)
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(from));
        else
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(from));
    }
};

constexpr u32 C_ROWS = 64;         // of a tile of C go through shared memory at once
constexpr u32 C_STRIDE = TILE + 8; // floats: threads of a warp that write two each meet no bank twice
static_assert(C_ROWS * C_STRIDE * 4 <= STAGES * 2 * TILE_BYTES, "rows of C take the place of tiles");

DEVICE void store_four(float *to, const Vec<4> &v) { store_vec<4>(to, v); }
DEVICE void store_four(bf16 *to, const Vec<4> &v) {
    *reinterpret_cast<uint2 *>(to) = make_uint2(to_bf16x2(v.at[0], v.at[1]), to_bf16x2(v.at[2], v.at[3]));
}

template <bool A_K_CONTIGUOUS, bool B_K_CONTIGUOUS, class T>
DEVICE void product(const u16 *a_data, const u16 *b_data, u32 m, u32 n, u32 k, u32 a_aligned, u32 b_aligned, u32 c_aligned, u32 add, T *c) {
    __shared__ __align__(128) u8 tiles[STAGES][2][TILE_BYTES];
    const u32 base = (u32)__cvta_generic_to_shared(tiles);
    const Operand<A_K_CONTIGUOUS> a = {a_data, m, k, a_aligned != 0};
    const Operand<B_K_CONTIGUOUS> b = {b_data, n, k, b_aligned != 0};

    const u32 tiles_m = (m + TILE - 1) / TILE, tiles_n = (n + TILE - 1) / TILE;
    const u32 first_m = blockIdx.x / (GROUP * tiles_n) * GROUP, in_group = blockIdx.x % (GROUP * tiles_n);
    const u32 group_m = min(GROUP, tiles_m - first_m);
    const u32 row0 = (first_m + in_group % group_m) * TILE, column0 = in_group / group_m * TILE;

    const u32 warp = threadIdx.x / WARP, warp_row = warp % 2 * 64, warp_column = warp / 2 * 32;
    const u32 steps = (k + TILE_K - 1) / TILE_K;
    auto fetch = [&](u32 step) {
        if (step < steps) {
            const u32 stage = base + step % STAGES * (2 * TILE_BYTES);
            a.fetch(row0, step * TILE_K, stage);
            b.fetch(column0, step * TILE_K, stage + TILE_BYTES);
        }
        // A group for each step, empty ones at the end, so that the wait below counts alike for all.
        asm volatile("cp.async.commit_group;" ::: "memory");
    };

    float sums[4][4][4] = {}; // by 16 rows, by 8 columns
    for (u32 at = 0; at < steps + STAGES - 1; at++) {
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
        // What is multiplied now is there for all threads, and all are done with the step before, whose place is fetched into.
        __syncthreads();
        fetch(at);
        if (at < STAGES - 1) continue;
        const u32 stage = base + (at + 1) % STAGES * (2 * TILE_BYTES); // that of step at - (STAGES - 1)
#pragma unroll
        for (u32 at_k = 0; at_k < TILE_K; at_k += 16) {
            u32 a_part[4][4], b_part[2][4];
#pragma unroll
            for (u32 i = 0; i < 4; i++) a.template load16x16<false>(stage, warp_row + 16 * i, at_k, a_part[i]);
#pragma unroll
            for (u32 j = 0; j < 2; j++) b.template load16x16<true>(stage + TILE_BYTES, warp_column + 16 * j, at_k, b_part[j]);
#pragma unroll
            for (u32 i = 0; i < 4; i++)
#pragma unroll
                for (u32 j = 0; j < 4; j++) mma(sums[i][j], a_part[i], b_part[j / 2][j % 2 * 2], b_part[j / 2][j % 2 * 2 + 1]);
        }
    }

    // Through shared memory, so that a warp writes whole rows of a tile: first the rows of the even warps, then those of the odd ones.
    float *rows = reinterpret_cast<float *>(tiles);
    const u32 lane = threadIdx.x % WARP;
#pragma unroll 1
    for (u32 first = 0; first < TILE; first += C_ROWS) {
        __syncthreads();
        if (warp_row == first) {
#pragma unroll
            for (u32 i = 0; i < 4; i++)
#pragma unroll
                for (u32 j = 0; j < 4; j++)
#pragma unroll
                    for (u32 half = 0; half < 2; half++) {
                        float *to = rows + (16 * i + 8 * half + lane / 4) * C_STRIDE + warp_column + 8 * j + lane % 4 * 2;
                        *reinterpret_cast<float2 *>(to) = make_float2(sums[i][j][2 * half], sums[i][j][2 * half + 1]);
                    }
        }
        __syncthreads();
#pragma unroll 1
        for (u32 i = warp; i < C_ROWS; i += THREADS / WARP) {
            const u32 row = row0 + first + i, column = column0 + 4 * lane;
            if (row >= m || column >= n) continue;
            Vec<4> v = load_vec<4>(rows + i * C_STRIDE + 4 * lane);
            T *to = c + (u64)row * n + column;
            const u32 left = n - column;
#pragma unroll
            for (u32 e = 0; e < 4; e++)
                if (add && e < left) v.at[e] += to_f32(to[e]);
            if (c_aligned && left >= 4) {
                store_four(to, v);
            } else {
#pragma unroll
                for (u32 e = 0; e < 4; e++)
                    if (e < left) from_f32(v.at[e], to[e]);
            }
        }
    }
}

// In the names: whether A and B lie as they are multiplied (n) or transposed (t).
#define PRODUCT(name, a_k_contiguous, b_k_contiguous, T)                                                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) name(const u16 *a, const u16 *b, u32 m, u32 n, u32 k, u32 a_aligned,             \
                                                                  u32 b_aligned, u32 c_aligned, u32 add, T *c) {                                  \
        product<a_k_contiguous, b_k_contiguous>(a, b, m, n, k, a_aligned, b_aligned, c_aligned, add, c);                                          \
    }
PRODUCT(gemm_bf16_nn, true, false, float)
PRODUCT(gemm_bf16_nt, true, true, float)
PRODUCT(gemm_bf16_tn, false, false, float)
PRODUCT(gemm_bf16_nn_bf16, true, false, bf16)
PRODUCT(gemm_bf16_nt_bf16, true, true, bf16)
PRODUCT(gemm_bf16_tn_bf16, false, false, bf16)
