// g = x gate_proj^T, u = x up_proj^T and h = psi(g) * u in one launch, and the gradients of psi(g) * u in the launch that makes dh = dy down_proj:
// gemm_bf16.cu and gated_activation.cu without what goes through memory between them. Nothing is computed otherwise, so every bit is theirs. All
// rows begin at multiples of 16 bytes.
#include "gated.cuh"
#include "gemm_bf16.cuh"

// A thread's eight columns of a row, those of one Philox call, in turn: PER_ROW threads beside each other have a row of the block's tile.
template <u32 COLUMNS> struct Turns {
    static constexpr u32 PER_ROW = COLUMNS / DRAWS_PER_CALL, ROWS = PRODUCT_THREADS / PER_ROW, COUNT = C_ROWS / ROWS;
    u32 row0, column0, n, d_ff;

    __device__ __forceinline__ u32 in_tile(u32 turn) const { return threadIdx.x / PER_ROW + turn * ROWS; }
    __device__ __forceinline__ u32 offset() const { return threadIdx.x % PER_ROW * DRAWS_PER_CALL; }
    __device__ __forceinline__ u32 row(u32 first, u32 turn) const { return row0 + first + in_tile(turn); }
    __device__ __forceinline__ u32 column() const { return column0 + offset(); }
    // d_ff is a multiple of eight.
    __device__ __forceinline__ bool exists(u32 first, u32 turn) const { return row(first, turn) < n && column() < d_ff; }
    __device__ __forceinline__ u64 at(u32 first, u32 turn) const { return (u64)row(first, turn) * d_ff + column(); }
};

DEVICE void store_eight(bf16 *to, const u32 (&pairs)[4]) { *reinterpret_cast<uint4 *>(to) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]); }

// What bf16 keeps of eight floats.
DEVICE Vec<8> rounded(const Vec<8> &v, u32 (&pairs)[4]) {
    Vec<8> kept;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        pairs[i] = to_bf16x2(v.at[2 * i], v.at[2 * i + 1]);
        kept.at[2 * i] = __uint_as_float(pairs[i] << 16);
        kept.at[2 * i + 1] = __uint_as_float(pairs[i] & 0xFFFF0000u);
    }
    return kept;
}

// Writes g, u and h, of which the tile has 64 columns: those of g lie in its lower half, those of u in the upper. psi sees what is written, rounded.
template <class Psi> struct Forward {
    Psi psi;
    Turns<TILE / 2> turns;
    bf16 *g, *u, *h;

    __device__ __forceinline__ void expect(u32) {}

    __device__ __forceinline__ void take(u32 first, const float *rows) {
#pragma unroll 1
        for (u32 turn = 0; turn < turns.COUNT; turn++) {
            if (!turns.exists(first, turn)) continue;
            const u64 at = turns.at(first, turn);
            const float *from = rows + turns.in_tile(turn) * C_STRIDE + turns.offset();
            u32 pairs[4];
            const Vec<8> gs = rounded(load_shared(from), pairs);
            store_eight(g + at, pairs);
            const Vec<8> us = rounded(load_shared(from + TILE / 2), pairs);
            store_eight(u + at, pairs);
            const Draws draws = psi.draw(turns.row(first, turn), turns.column() / DRAWS_PER_CALL);
            Vec<8> hs;
#pragma unroll
            for (int i = 0; i < 8; i++) hs.at[i] = psi.eval(draws.at(i), gs.at[i]).value * us.at[i];
            store_vec<8>(h + at, hs);
        }
    }
};

// Writes dg, du and h; the tile is dh, rounded to bf16 as if it had been written. g and u are loaded for four turns at once, the first four while dh goes
// through shared memory.
template <class Psi> struct Backward {
    static constexpr u32 AT_ONCE = 4;
    Psi psi;
    float l1;
    Turns<TILE> turns;
    const bf16 *g, *u;
    bf16 *dg, *du, *h;
    uint4 gs[AT_ONCE], us[AT_ONCE];

    __device__ __forceinline__ void load(u32 first, u32 turn) {
#pragma unroll
        for (u32 i = 0; i < AT_ONCE; i++)
            if (turns.exists(first, turn + i)) {
                const u64 at = turns.at(first, turn + i);
                gs[i] = *reinterpret_cast<const uint4 *>(g + at);
                us[i] = *reinterpret_cast<const uint4 *>(u + at);
            }
    }

    __device__ __forceinline__ void expect(u32 first) { load(first, 0); }

    __device__ __forceinline__ void take(u32 first, const float *rows) {
#pragma unroll 1
        for (u32 turn = 0; turn < turns.COUNT; turn += AT_ONCE) {
            if (turn > 0) load(first, turn);
#pragma unroll
            for (u32 i = 0; i < AT_ONCE; i++) {
                if (!turns.exists(first, turn + i)) continue;
                const u64 at = turns.at(first, turn + i);
                u32 pairs[4];
                const Vec<8> dhs = rounded(load_shared(rows + turns.in_tile(turn + i) * C_STRIDE + turns.offset()), pairs);
                Vec<8> old_g, old_u, dgs, dus, hs;
                unpack_bf16x8(gs[i], old_g.at);
                unpack_bf16x8(us[i], old_u.at);
                const Draws draws = psi.draw(turns.row(first, turn + i), turns.column() / DRAWS_PER_CALL);
#pragma unroll
                for (int e = 0; e < 8; e++) {
                    const Gradients d = gradients(dhs.at[e], old_u.at[e], psi.eval(draws.at(e), old_g.at[e]), l1);
                    dgs.at[e] = d.dg, dus.at[e] = d.du, hs.at[e] = d.h;
                }
                store_vec<8>(dg + at, dgs);
                store_vec<8>(du + at, dus);
                store_vec<8>(h + at, hs);
            }
        }
    }
};

template <class Psi>
DEVICE void forward(const Psi &psi, const u16 *x, const u16 *gate, const u16 *up, u32 n, u32 d_ff, u32 k, bf16 *g, bf16 *u, bf16 *h) {
    __shared__ Tiles tiles;
    const Place place(blockIdx.x, (n + TILE - 1) / TILE, (d_ff + TILE / 2 - 1) / (TILE / 2));
    const u32 row0 = place.row * TILE, column0 = place.column * (TILE / 2);
    Operand<true> a(x, n, k, row0), b(gate, d_ff, k, column0, up);
    const Sums sums(a, b, k, tiles);
    Forward<Psi> rows = {psi, {row0, column0, n, d_ff}, g, u, h};
    sums.hand_to(rows, tiles);
}

template <class Psi>
DEVICE void backward(const Psi &psi, float l1, const u16 *dy, const u16 *down, u32 n, u32 d_ff, u32 k, const bf16 *g, const bf16 *u, bf16 *dg, bf16 *du,
                     bf16 *h) {
    __shared__ Tiles tiles;
    const Place place(blockIdx.x, (n + TILE - 1) / TILE, (d_ff + TILE - 1) / TILE);
    const u32 row0 = place.row * TILE, column0 = place.column * TILE;
    Operand<true> a(dy, n, k, row0);
    Operand<false> b(down, d_ff, k, column0);
    const Sums sums(a, b, k, tiles);
    Backward<Psi> rows = {psi, l1, {row0, column0, n, d_ff}, g, u, dg, du, h};
    sums.hand_to(rows, tiles);
}

#define KERNEL extern "C" __global__ void __launch_bounds__(PRODUCT_THREADS, 2)
#define FORWARD const u16 *x, const u16 *gate, const u16 *up, u32 n, u32 d_ff, u32 k, bf16 *g, bf16 *u, bf16 *h
#define BACKWARD                                                                                                                          \
    float l1, const u16 *dy, const u16 *down, u32 n, u32 d_ff, u32 k, const bf16 *g, const bf16 *u, bf16 *dg, bf16 *du, bf16 *h

KERNEL gemm_gated_activation_relu(FORWARD) { forward(Relu{}, x, gate, up, n, d_ff, k, g, u, h); }
KERNEL gemm_gated_activation_silu(FORWARD) { forward(Silu{}, x, gate, up, n, d_ff, k, g, u, h); }
KERNEL gemm_gated_activation_stochastic(SITE, FORWARD) { forward(Stochastic{THE_SITE}, x, gate, up, n, d_ff, k, g, u, h); }
KERNEL gemm_gated_activation_backward_relu(BACKWARD) { backward(Relu{}, l1, dy, down, n, d_ff, k, g, u, dg, du, h); }
KERNEL gemm_gated_activation_backward_silu(BACKWARD) { backward(Silu{}, l1, dy, down, n, d_ff, k, g, u, dg, du, h); }
KERNEL gemm_gated_activation_backward_stochastic(SITE, BACKWARD) {
    backward(Stochastic{THE_SITE}, l1, dy, down, n, d_ff, k, g, u, dg, du, h);
}
