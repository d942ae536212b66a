// What the forward and the backward of attention share: shapes, tiles of bf16 for tensor cores, tiles of f32 for plain multiply-adds.
//
// q, out, d_out, dq [B, Tq, H, D]; k, v, dk, dv [B, Tk, K, D]; lse, delta [B, H, Tq]. Query t sees the keys 0 ..= t + Tk - Tq. Kernels are made for DIM 64
// and 128; the columns from D to DIM are zeros in shared memory.
#pragma once
#include "math.cuh"
#include "mma.cuh"

struct Shape {
    u32 q_len, kv_len, n_heads, n_kv_heads, d;

    __device__ __forceinline__ u32 shift() const { return kv_len - q_len; }
    __device__ __forceinline__ u32 group() const { return n_heads / n_kv_heads; }
    __device__ __forceinline__ u64 q_stride() const { return (u64)n_heads * d; }
    __device__ __forceinline__ u64 kv_stride() const { return (u64)n_kv_heads * d; }
    // Where query t of head h, the keys that it sees, and its lse begin.
    __device__ __forceinline__ u64 q_at(u32 b, u32 t, u32 h) const { return (((u64)b * q_len + t) * n_heads + h) * d; }
    __device__ __forceinline__ u64 kv_at(u32 b, u32 s, u32 kv_head) const { return (((u64)b * kv_len + s) * n_kv_heads + kv_head) * d; }
    __device__ __forceinline__ u64 row_at(u32 b, u32 h, u32 t) const { return ((u64)b * n_heads + h) * q_len + t; }
};

// The block of queries (or keys) of a thread block. The long blocks of a head, which see most, come first.
struct Place {
    u32 b, head, first;
};
DEVICE Place place_of_queries(const Shape &s, u32 rows) {
    const u32 blocks = (s.q_len + rows - 1) / rows, head = blockIdx.x / blocks;
    return {head / s.n_heads, head % s.n_heads, (blocks - 1 - blockIdx.x % blocks) * rows};
}
DEVICE Place place_of_keys(const Shape &s, u32 rows) {
    const u32 blocks = (s.kv_len + rows - 1) / rows, head = blockIdx.x / blocks;
    return {head / s.n_kv_heads, head % s.n_kv_heads, blockIdx.x % blocks * rows};
}

DEVICE float infinity() { return __int_as_float(0x7F800000); }

// e^x for x <= 0 or little above: within 0.91 ULP, and 0 below 2^-126.5. It is most of what a softmax on tensor cores waits for, so it goes without the two
// conversions of exp_f32, of which a multiprocessor does few at a time: a sum with 1.5 * 2^23 is rounded to a whole number, which is in its lowest bits.
DEVICE float exp_of_negative(float x) {
    x = x < -88.0f ? -88.0f : x; // for which the power below is 0; NaN passes
    const float shifted = fmaf(x, 1.44269504f, 12582912.0f), n = shifted - 12582912.0f;
    float r = fmaf(n, -0.69314575f, x);
    r = fmaf(n, -1.4286068e-6f, r);
    return exp_mantissa(r) * __int_as_float((__float_as_int(shifted) << 23) + 0x3F800000); // e^r 2^n
}

// ---- bf16: four warps, each of which has 16 of the block's 64 rows.

constexpr u32 ROWS = 64;
constexpr u32 THREADS = ROWS / 16 * WARP;
constexpr u32 PIECE = 8; // elements of 16 bytes

// Place in a tile of rows of DIM: the eight pieces that ldmatrix reads at once, one below the other, lie in different banks.
template <u32 DIM> DEVICE u32 place(u32 row, u32 column) { return row * (DIM * 2) + ((column / PIECE) ^ (row % 8)) * 16; }

// Begins to fetch COUNT rows at `stride`, of which `rows` exist, of d columns. What does not exist is zero.
template <u32 COUNT, u32 DIM> DEVICE void fetch(const bf16 *from, u64 stride, u32 rows, u32 d, bool aligned, u32 tile) {
    constexpr u32 PIECES = DIM / PIECE, AT_ONCE = THREADS / PIECES; // rows that all threads fetch at once
    static_assert(COUNT % AT_ONCE == 0 && AT_ONCE % 8 == 0, "every thread has as many, and they lie alike in their rows");
    if (aligned) {
        const u32 row = threadIdx.x / PIECES, column = threadIdx.x % PIECES * PIECE, to = tile + place<DIM>(row, column);
        const bf16 *piece = from + row * stride + column;
#pragma unroll
        for (u32 i = 0; i < COUNT / AT_ONCE; i++) {
            // Whole pieces are inside or outside: rows are multiples of 16 bytes.
            const u32 bytes = row + i * AT_ONCE < rows && column < d ? 16 : 0;
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to + i * AT_ONCE * DIM * 2), "l"(piece), "r"(bytes) : "memory");
            piece += AT_ONCE * stride;
        }
    } else {
#pragma unroll 1
        for (u32 i = threadIdx.x; i < COUNT * PIECES; i += THREADS) {
            const u32 row = i / PIECES, column = i % PIECES * PIECE;
            const bf16 *piece = from + (row < rows ? row * stride : 0);
            u32 words[4];
#pragma unroll
            for (u32 w = 0; w < 4; w++) {
                const u32 at = column + 2 * w;
                const u32 low = row < rows && at < d ? piece[at].bits : 0, high = row < rows && at + 1 < d ? piece[at + 1].bits : 0;
                words[w] = low | high << 16;
            }
            asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(tile + place<DIM>(row, column)), "r"(words[0]), "r"(words[1]), "r"(words[2]),
                         "r"(words[3])
                         : "memory");
        }
    }
}

DEVICE void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// What was fetched is there for all threads; and all are done with what they read before.
DEVICE void arrive() {
    asm volatile("cp.async.wait_group 0;" ::: "memory");
    __syncthreads();
}

DEVICE void load_matrices(u32 from, u32 (&to)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(from) : "memory");
}

// Left operand: rows from `row`, the sum runs along columns.
template <u32 DIM> DEVICE void load_left(u32 tile, u32 row, u32 column, u32 (&to)[4]) {
    const u32 lane = threadIdx.x % WARP;
    load_matrices(tile + place<DIM>(row + lane % 16, column + lane / 16 * 8), to);
}

// Right operand, transposed: its columns are 16 rows of the tile, the sum runs along columns. Two halves of 8, each two registers.
template <u32 DIM> DEVICE void load_right_t(u32 tile, u32 row, u32 column, u32 (&to)[4]) {
    const u32 lane = threadIdx.x % WARP;
    load_matrices(tile + place<DIM>(row + lane % 8 + lane / 16 * 8, column + lane / 8 % 2 * 8), to);
}

// Right operand as it lies: its columns are 16 columns of the tile, the sum runs along rows.
template <u32 DIM> DEVICE void load_right(u32 tile, u32 row, u32 column, u32 (&to)[4]) {
    const u32 lane = threadIdx.x % WARP, from = tile + place<DIM>(row + lane % 16, column + lane / 16 * 8);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from)
                 : "memory");
}

// d += a b for 16 columns of b.
DEVICE void mma_pair(float (&d0)[4], float (&d1)[4], const u32 (&a)[4], const u32 (&b)[4]) {
    mma(d0, a, b[0], b[1]);
    mma(d1, a, b[2], b[3]);
}

// Sixteen columns of a result, rounded, as a left operand.
DEVICE void as_left(const float (&d0)[4], const float (&d1)[4], u32 (&a)[4]) {
    a[0] = to_bf16x2(d0[0], d0[1]), a[1] = to_bf16x2(d0[2], d0[3]);
    a[2] = to_bf16x2(d1[0], d1[1]), a[3] = to_bf16x2(d1[2], d1[3]);
}

// Writes 16 rows of results, of which `rows` exist: those of a warp. `factor` is that of a row and of the one 8 below.
template <u32 TILES>
DEVICE void write_rows(const float (&sums)[TILES][4], const float (&factor)[2], u32 rows, u32 d, u64 stride, bool aligned, bool add, bf16 *to) {
    const u32 lane = threadIdx.x % WARP;
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        const u32 row = lane / 4 + 8 * half;
        if (row >= rows) continue;
#pragma unroll
        for (u32 j = 0; j < TILES; j++) {
            const u32 column = 8 * j + lane % 4 * 2;
            bf16 *at = to + row * stride + column;
            float low = sums[j][2 * half] * factor[half], high = sums[j][2 * half + 1] * factor[half];
            if (column >= d) continue;
            if (add) {
                low += to_f32(at[0]);
                if (column + 1 < d) high += to_f32(at[1]);
            }
            if (aligned) {
                *reinterpret_cast<u32 *>(at) = to_bf16x2(low, high);
            } else {
                at[0] = to_bf16(low);
                if (column + 1 < d) at[1] = to_bf16(high);
            }
        }
    }
}

// ---- f32: a block of 16 x 16 threads. Thread (x, y) has the rows y + 16 i of results, and the columns x + 16 j of scores or 4 x + 64 c .. of sums.

constexpr u32 F32_THREADS = 256;
// Rows of 16 bytes; and those of eight threads that read 16 bytes each, one below the other, lie in different banks.
template <u32 DIM> constexpr u32 STRIDE = DIM + 4;

// Copies COUNT rows, of which `rows` exist, of d columns. What does not exist is zero.
template <u32 COUNT, u32 DIM> DEVICE void copy_rows(const float *from, u64 stride, u32 rows, u32 d, bool aligned, float *to) {
    for (u32 i = threadIdx.x; i < COUNT * DIM / 4; i += F32_THREADS) {
        const u32 row = i / (DIM / 4), column = i % (DIM / 4) * 4;
        Vec<4> x = {};
        if (row < rows && column < d) x = load_part<4>(from + row * stride + column, d - column, aligned);
        store_vec<4>(to + row * STRIDE<DIM> + column, x);
    }
}

// Dots of the rows of `a` with the rows of `b`.
template <u32 R, u32 DIM> DEVICE void dots(const float *a, const float *b, float (&sums)[R][R]) {
    const u32 x = threadIdx.x % 16, y = threadIdx.x / 16;
#pragma unroll
    for (u32 i = 0; i < R; i++)
#pragma unroll
        for (u32 j = 0; j < R; j++) sums[i][j] = 0.0f;
#pragma unroll 2
    for (u32 c = 0; c < DIM; c += 4) {
        Vec<4> as[R], bs[R];
#pragma unroll
        for (u32 i = 0; i < R; i++) {
            as[i] = load_vec<4>(a + (y + 16 * i) * STRIDE<DIM> + c);
            bs[i] = load_vec<4>(b + (x + 16 * i) * STRIDE<DIM> + c);
        }
#pragma unroll
        for (u32 i = 0; i < R; i++)
#pragma unroll
            for (u32 j = 0; j < R; j++)
#pragma unroll
                for (u32 e = 0; e < 4; e++) sums[i][j] = fmaf(as[i].at[e], bs[j].at[e], sums[i][j]);
    }
}

// sums += weights b: weights [16 R, 16 R + 1], b [16 R, DIM].
template <u32 R, u32 DIM> DEVICE void add_rows(const float *weights, const float *b, float (&sums)[R][DIM / 16]) {
    const u32 x = threadIdx.x % 16, y = threadIdx.x / 16;
#pragma unroll 2
    for (u32 row = 0; row < 16 * R; row++) {
#pragma unroll
        for (u32 c = 0; c < DIM / 64; c++) {
            const Vec<4> bs = load_vec<4>(b + row * STRIDE<DIM> + 64 * c + 4 * x);
#pragma unroll
            for (u32 i = 0; i < R; i++)
#pragma unroll
                for (u32 e = 0; e < 4; e++)
                    sums[i][4 * c + e] = fmaf(weights[(y + 16 * i) * (16 * R + 1) + row], bs.at[e], sums[i][4 * c + e]);
        }
    }
}

// Writes the rows of a block, of which `rows` exist.
template <u32 R, u32 DIM>
DEVICE void write_rows(const float (&sums)[R][DIM / 16], float factor, u32 rows, u32 d, u64 stride, bool aligned, bool add, float *to) {
    const u32 x = threadIdx.x % 16, y = threadIdx.x / 16;
#pragma unroll
    for (u32 i = 0; i < R; i++) {
        if (y + 16 * i >= rows) continue;
#pragma unroll
        for (u32 c = 0; c < DIM / 64; c++) {
            const u32 column = 64 * c + 4 * x;
            if (column >= d) continue;
            float *at = to + (y + 16 * i) * stride + column;
            Vec<4> v;
            const Vec<4> old = add ? load_part<4>(at, d - column, aligned) : Vec<4>{};
#pragma unroll
            for (u32 e = 0; e < 4; e++) v.at[e] = sums[i][4 * c + e] * factor + old.at[e];
            store_part(at, d - column, aligned, v);
        }
    }
}
