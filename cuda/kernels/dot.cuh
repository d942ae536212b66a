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

// sum_k w[k] x[k], in every lane. Lane l takes the 16 bytes number l, l + 32, ... of the row, eight of them in flight at once; element j of the 16
// bytes goes to sum j. If the row is not aligned to 16 bytes, it takes the elements l, l + 32, .... The bits depend on the row, x and the
// alignment alone.
template <class T> DEVICE float warp_dot(const T *w, const float *x, u32 k, bool aligned) {
    constexpr u32 PER = PER_LOAD<T>, IN_FLIGHT = 8;
    const u32 lane = threadIdx.x % WARP;
    if (!aligned) {
        float sum = 0.0f;
        for (u32 i = lane; i < k; i += WARP) sum = fmaf(to_f32(w[i]), x[i], sum);
        return warp_sum(sum);
    }
    float sums[PER] = {};
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
            const Vec<PER> xs = load_vec<PER>(x + load * PER);
#pragma unroll
            for (u32 j = 0; j < PER; j++) sums[j] = fmaf(ws[j], xs.at[j], sums[j]);
        }
    }
    float sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    if (PER == 8) sum += (sums[4 % PER] + sums[5 % PER]) + (sums[6 % PER] + sums[7 % PER]);
    return warp_sum(sum);
}
