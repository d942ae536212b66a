// The dot of a row of weights with x by one warp: what gemv and the FFN of a token are made of.
#pragma once
#include "common.cuh"

// 16 bytes of weights that are read once: they do not push x out of the L1.
DEVICE uint4 load_once(const void *p) {
    uint4 q;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(q.x), "=r"(q.y), "=r"(q.z), "=r"(q.w) : "l"(p));
    return q;
}

// Elements of 16 bytes.
template <class T> constexpr u32 PER_LOAD = 16 / sizeof(T);

DEVICE void widen16(uint4 q, float (&to)[4]) {
    to[0] = __uint_as_float(q.x), to[1] = __uint_as_float(q.y), to[2] = __uint_as_float(q.z), to[3] = __uint_as_float(q.w);
}
DEVICE void widen16(uint4 q, float (&to)[8]) { unpack_bf16x8(q, to); }

// Blocks of 256 threads of a multiprocessor that registers are to be left for: without it, some assemblers spill for one more.
template <u32 N> constexpr u32 BLOCKS = N == 1 ? 4 : N == 2 ? 3 : N == 4 ? 2 : 1;

// dots[t] = sum_k w[k] x[t, k] for the first n of N tokens, in every lane; the others have those of the last. Lane l takes the 16 bytes number l, l + 32, ...
// of the row, some of them in flight at once; element j of the 16 bytes goes to sum j. If the rows are not aligned to 16 bytes, it takes the
// elements l, l + 32, .... The bits depend on the row, a token's x and the alignment alone: a token has the same beside others and alone.
template <u32 N, class T> DEVICE void warp_dots(const T *w, const float *x, u32 n, u32 k, bool aligned, float (&dots)[N]) {
    constexpr u32 PER = PER_LOAD<T>, IN_FLIGHT = N <= 2 ? 8 : 4;
    const u32 lane = threadIdx.x % WARP;
    u32 from[N];
#pragma unroll
    for (u32 t = 0; t < N; t++) from[t] = min(t, n - 1) * k;
    if (!aligned) {
        float sums[N] = {};
        for (u32 i = lane; i < k; i += WARP) {
            const float wi = to_f32(w[i]);
#pragma unroll
            for (u32 t = 0; t < N; t++) sums[t] = fmaf(wi, x[from[t] + i], sums[t]);
        }
#pragma unroll
        for (u32 t = 0; t < N; t++) dots[t] = warp_sum(sums[t]);
        return;
    }
    float sums[N][PER] = {};
    const u32 loads = k / PER;
    for (u32 first = lane; first < loads; first += IN_FLIGHT * WARP) {
        uint4 q[IN_FLIGHT];
#pragma unroll
        for (u32 i = 0; i < IN_FLIGHT; i++) {
            const u32 load = first + i * WARP;
            q[i] = load < loads ? load_once(w + (u64)load * PER) : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (u32 i = 0; i < IN_FLIGHT; i++) {
            const u32 load = first + i * WARP;
            if (load >= loads) break;
            float ws[PER];
            widen16(q[i], ws);
#pragma unroll
            for (u32 t = 0; t < N; t++) {
                const Vec<PER> xs = load_vec<PER>(x + from[t] + load * PER);
#pragma unroll
                for (u32 j = 0; j < PER; j++) sums[t][j] = fmaf(ws[j], xs.at[j], sums[t][j]);
            }
        }
    }
#pragma unroll
    for (u32 t = 0; t < N; t++) {
        float sum = (sums[t][0] + sums[t][1]) + (sums[t][2] + sums[t][3]);
        if (PER == 8) sum += (sums[t][4 % PER] + sums[t][5 % PER]) + (sums[t][6 % PER] + sums[t][7 % PER]);
        dots[t] = warp_sum(sum);
    }
}
