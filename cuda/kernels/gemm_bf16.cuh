// The tile of a product with bf16 operands that a block makes, and how its rows come to the threads that write them.
//
// A tile is 128 x 128 of C, a warp's part of it 64 x 64: what four mma read from shared memory serves eight each way, so that shared memory is not
// what bounds the tensor cores. Tiles of A and B are 32 along K. Three of these are there at a time: while one is multiplied, cp.async fetches
// the next two.
//
// A tile lies in shared memory as its operand does in global memory: 128 rows of 32 along K, or 32 rows (of K) of 128. ldmatrix
// transposes the second kind, so no operand is ever transposed in memory. Rows are cut into pieces of 16 bytes, and piece p of row r lies at place
// p ^ f(r), so that the eight rows that ldmatrix reads at once, and the eight pieces that are written at once, lie in different banks.
#pragma once
#include "mma.cuh"

constexpr u32 TILE = 128;      // of M and N
constexpr u32 WARP_TILE = 64;  // of these, what a warp makes
constexpr u32 TILE_K = 32;
constexpr u32 STAGES = 3;      // 48 KiB: what a block may have without asking
constexpr u32 PRODUCT_THREADS = 128;
constexpr u32 TILE_BYTES = TILE * TILE_K * 2;
constexpr u32 STAGE_BYTES = 2 * TILE_BYTES;
constexpr u32 PIECE = 8;       // elements of 16 bytes
constexpr u32 PIECES = TILE * TILE_K / PIECE;
constexpr u32 OF_THREAD = PIECES / PRODUCT_THREADS;
constexpr u32 GROUP = 16;      // tiles along M whose blocks run side by side: with as many along N, they are what a large GPU holds at a time

struct __align__(128) Tiles {
    u8 bytes[STAGES * STAGE_BYTES];
};

// The tile of C of a block, counted in tiles: those that run side by side share tiles of A and B in the L2.
struct Place {
    u32 row, column;

    __device__ __forceinline__ Place(u32 block, u32 tiles_m, u32 tiles_n) {
        const u32 first = block / (GROUP * tiles_n) * GROUP, in_group = block % (GROUP * tiles_n), rows = min(GROUP, tiles_m - first);
        row = first + in_group % rows;
        column = in_group / rows;
    }
};

// x, in a way that the assembler cannot make it again: it would, each step, from the thread's number, in some twenty instructions more.
DEVICE u32 kept(u32 x) { return __shfl_sync(ALL_LANES, x, threadIdx.x % WARP); }

// An operand: `extent` rows of K elements each, K contiguous; or K rows of `extent` elements.
// ALIGNED: all rows begin at multiples of 16 bytes, and are copied in pieces of as many; else element by element.
template <bool K_CONTIGUOUS, bool ALIGNED = true> struct Operand {
    const u16 *data;
    u32 extent, k, row0;
    // Where the pieces of this thread come from in the next tile, and where they go within it, one after the other.
    const u16 *from[OF_THREAD];
    u32 at_k, to;

    static constexpr u32 NEXT_K = K_CONTIGUOUS ? 0 : PRODUCT_THREADS / (TILE / PIECE); // along K, from a piece of a thread to its next
    static constexpr u32 NEXT_TO = PRODUCT_THREADS * PIECE * 2;

    // The upper half of the tile's rows are those of another matrix of this shape, `upper`, from `row0` on, if there is one.
    __device__ __forceinline__ Operand(const u16 *data, u32 extent, u32 k, u32 row0, const u16 *upper = nullptr)
        : data(data), extent(extent), k(k), row0(row0) {
        if (!ALIGNED) return;
        const u32 row = row_of(threadIdx.x);
        at_k = k_of(threadIdx.x);
        to = kept(place(row, at_k));
#pragma unroll
        for (u32 j = 0; j < OF_THREAD; j++) {
            const u32 in_tile = row_of(threadIdx.x + j * PRODUCT_THREADS);
            const bool in_upper = upper != nullptr && in_tile >= TILE / 2;
            // Rows outside of the operand make rows or columns of C that nobody writes: they may be anything that can be read.
            const u32 r = min(row0 + in_tile - (in_upper ? TILE / 2 : 0), extent - (K_CONTIGUOUS ? 1 : PIECE)), c = at_k + j * NEXT_K;
            from[j] = (in_upper ? upper : data) + (K_CONTIGUOUS ? (u64)r * k + c : (u64)c * extent + r);
        }
    }

    // Row (of M or N) and place along K in a tile of piece i.
    static __device__ __forceinline__ u32 row_of(u32 i) { return K_CONTIGUOUS ? i / (TILE_K / PIECE) : i % (TILE / PIECE) * PIECE; }
    static __device__ __forceinline__ u32 k_of(u32 i) { return K_CONTIGUOUS ? i % (TILE_K / PIECE) * PIECE : i / (TILE / PIECE); }

    // Place in a tile of the piece that has row `row` (of M or N) and `at_k`.
    static __device__ __forceinline__ u32 place(u32 row, u32 at_k) {
        if (K_CONTIGUOUS) return row * (TILE_K * 2) + ((at_k / PIECE) ^ (row / 2 % 4)) * 16;
        return at_k * (TILE * 2) + ((row / PIECE) ^ (at_k % 8)) * 16;
    }

    // Begins to fetch the next tile, which begins at k0. What lies beyond K is zero.
    __device__ __forceinline__ void fetch(u32 k0, u32 tile) {
        if (ALIGNED) {
#pragma unroll
            for (u32 j = 0; j < OF_THREAD; j++) {
                // Whole pieces are inside or outside: rows are multiples of 16 bytes.
                const u32 bytes = k0 + at_k + j * NEXT_K < k ? 16 : 0;
                asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(tile + to + j * NEXT_TO), "l"(from[j]), "r"(bytes));
                from[j] += K_CONTIGUOUS ? TILE_K : (u64)TILE_K * extent;
            }
        } else {
#pragma unroll 1
            for (u32 i = threadIdx.x; i < PIECES; i += PRODUCT_THREADS) {
                const u32 r = row0 + row_of(i), c = k0 + k_of(i);
                const u32 left = r < extent && c < k ? (K_CONTIGUOUS ? k - c : extent - r) : 0;
                const u16 *elements = data + (left > 0 ? (K_CONTIGUOUS ? (u64)r * k + c : (u64)c * extent + r) : 0);
                u32 words[4];
#pragma unroll
                for (u32 w = 0; w < 4; w++) {
                    const u32 low = 2 * w < left ? elements[2 * w] : 0, high = 2 * w + 1 < left ? elements[2 * w + 1] : 0;
                    words[w] = low | high << 16;
                }
                asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(tile + place(row_of(i), k_of(i))), "r"(words[0]), "r"(words[1]),
                             "r"(words[2]), "r"(words[3])
                             : "memory");
            }
        }
    }
};

// What a warp multiplies of an operand: 64 rows of a tile from `row` on. If K_FIRST, the matrices of 8 x 8 that ldmatrix puts into registers come in the order of
// K first, as the right operand of mma wants them, else in that of the rows.
template <bool K_CONTIGUOUS, bool K_FIRST> struct Part {
    // Where the lane's row of a matrix lies in a tile: for each 16 along K, or for each 16 rows; what lies further on is a constant away.
    u32 at[K_CONTIGUOUS ? TILE_K / 16 : WARP_TILE / 16];

    __device__ __forceinline__ Part(u32 row) {
        const u32 lane = threadIdx.x % WARP, inner = lane % 8, second = lane / 8 % 2 * 8, third = lane / 16 * 8;
        const u32 part_row = K_FIRST ? third : second, part_k = K_FIRST ? second : third;
#pragma unroll
        for (u32 i = 0; i < sizeof(at) / sizeof(*at); i++)
            at[i] = kept(K_CONTIGUOUS ? Operand<true>::place(row + part_row + inner, 16 * i + part_k)
                                      : Operand<false>::place(row + 16 * i + part_row, part_k + inner));
    }

    // Four matrices that cover the rows from 16 i on, and 16 of K from 16 k on.
    __device__ __forceinline__ void load(u32 tile, u32 i, u32 k, u32 (&to)[4]) const {
        if (K_CONTIGUOUS)
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                         : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                         : "r"(tile + at[k] + i * 16 * TILE_K * 2));
        else
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                         : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                         : "r"(tile + at[i] + k * 16 * TILE * 2));
    }
};

constexpr u32 C_ROWS = 64;         // of a tile of C go through shared memory at once
constexpr u32 C_STRIDE = TILE + 8; // floats: threads of a warp that write two each meet no bank twice
static_assert(C_ROWS * C_STRIDE * 4 <= STAGES * STAGE_BYTES, "rows of C take the place of tiles");

// A thread's part of a tile of C.
struct Sums {
    float at[4][8][4]; // by 16 rows, by 8 columns

    static __device__ __forceinline__ u32 row() { return threadIdx.x / WARP % 2 * WARP_TILE; }
    static __device__ __forceinline__ u32 column() { return threadIdx.x / WARP / 2 * WARP_TILE; }

    // The product of two operands over K.
    template <bool A_K_CONTIGUOUS, bool B_K_CONTIGUOUS, bool ALIGNED>
    __device__ __forceinline__ Sums(Operand<A_K_CONTIGUOUS, ALIGNED> &a, Operand<B_K_CONTIGUOUS, ALIGNED> &b, u32 k, Tiles &tiles) : at{} {
        const u32 base = (u32)__cvta_generic_to_shared(tiles.bytes), end = base + STAGES * STAGE_BYTES, steps = (k + TILE_K - 1) / TILE_K;
        const Part<A_K_CONTIGUOUS, false> a_part(row());
        const Part<B_K_CONTIGUOUS, true> b_part(column());
        u32 to = base, from = base;
        for (u32 step = 0; step < steps + STAGES - 1; step++) {
            asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
            // What is multiplied now is there for all threads, and all are done with the step before, whose place is fetched into.
            __syncthreads();
            if (step < steps) {
                a.fetch(step * TILE_K, to);
                b.fetch(step * TILE_K, to + TILE_BYTES);
                to = to + STAGE_BYTES == end ? base : to + STAGE_BYTES;
            }
            // A group for each step, empty ones at the end, so that the wait above counts alike for all.
            asm volatile("cp.async.commit_group;" ::: "memory");
            if (step < STAGES - 1) continue;
#pragma unroll
            for (u32 part_k = 0; part_k < TILE_K / 16; part_k++) {
                u32 as[4][4], bs[4][4];
#pragma unroll
                for (u32 i = 0; i < 4; i++) a_part.load(from, i, part_k, as[i]);
#pragma unroll
                for (u32 j = 0; j < 4; j++) b_part.load(from + TILE_BYTES, j, part_k, bs[j]);
#pragma unroll
                for (u32 i = 0; i < 4; i++)
#pragma unroll
                    for (u32 j = 0; j < 8; j++) mma(at[i][j], as[i], bs[j / 2][j % 2 * 2], bs[j / 2][j % 2 * 2 + 1]);
            }
            from = from + STAGE_BYTES == end ? base : from + STAGE_BYTES;
        }
    }

    // Gives the tile to `rows` by halves, through shared memory, so that a warp can write whole rows: rows.expect(first) before the rows from `first` on
    // are there, for what it may load in the meantime, then rows.take(first, C), which has C_ROWS rows of C_STRIDE floats.
    template <class Rows> __device__ __forceinline__ void hand_to(Rows &rows, Tiles &tiles) const {
        float *c = reinterpret_cast<float *>(tiles.bytes);
        const u32 lane = threadIdx.x % WARP;
#pragma unroll 1
        for (u32 first = 0; first < TILE; first += C_ROWS) {
            rows.expect(first);
            __syncthreads();
            if (row() == first) {
                float *to = c + lane / 4 * C_STRIDE + column() + lane % 4 * 2;
#pragma unroll
                for (u32 i = 0; i < 4; i++)
#pragma unroll
                    for (u32 j = 0; j < 8; j++)
#pragma unroll
                        for (u32 half = 0; half < 2; half++)
                            *reinterpret_cast<float2 *>(to + (16 * i + 8 * half) * C_STRIDE + 8 * j) = make_float2(at[i][j][2 * half], at[i][j][2 * half + 1]);
            }
            __syncthreads();
            rows.take(first, c);
        }
    }
};

// Eight floats that begin at a multiple of 32 bytes of shared memory. Every second four lanes read their upper half first: eight lanes at once, one
// beside the other, meet each bank once.
DEVICE Vec<8> load_shared(const float *p) {
    const bool upper_first = threadIdx.x % 8 >= 4;
    const Vec<4> first = load_vec<4>(p + (upper_first ? 4 : 0)), second = load_vec<4>(p + (upper_first ? 0 : 4));
    Vec<8> v;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        v.at[i] = upper_first ? second.at[i] : first.at[i];
        v.at[4 + i] = upper_first ? first.at[i] : second.at[i];
    }
    return v;
}
