// What the kernels share. Nothing of the toolkit's headers is used: bf16 is 16 bits here, and a conversion is one instruction.
//
// All arithmetic is IEEE: no approximate instruction, and a fused multiply-add only where fmaf is written (compile.py says -fmad=false).
// So a result does not depend on the GPU, and is the one that the PTX interpreter of the tests computes.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

static_assert(sizeof(u64) == 8 && sizeof(u32) == 4 && sizeof(u16) == 2, "sizes");

#define DEVICE static __device__ __forceinline__

constexpr u32 WARP = 32;
constexpr u32 ALL_LANES = 0xFFFFFFFFu;

// bf16: the upper half of an f32.
struct bf16 {
    u16 bits;
};

DEVICE float to_f32(float x) { return x; }
DEVICE float to_f32(bf16 x) { return __uint_as_float((u32)x.bits << 16); }

// To nearest, ties to even; NaN stays NaN.
DEVICE bf16 to_bf16(float x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}

// Two at once: `low` goes to the lower half.
DEVICE u32 to_bf16x2(float low, float high) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

DEVICE void from_f32(float x, float &y) { y = x; }
DEVICE void from_f32(float x, bf16 &y) { y = to_bf16(x); }

// N elements in f32, N a multiple of 4. The address must be a multiple of 16 bytes, or of 8 for four bf16. A warp whose lanes take 16 bytes each (8 of
// bf16), one beside the other, touches whole sectors of 32 bytes with each instruction: so f32 goes by four, and where bf16 goes by eight, f32 by
// eight takes two instructions for each sector.
template <int N> struct Vec {
    float at[N];
};

template <int N> DEVICE Vec<N> load_vec(const float *p) {
    Vec<N> v;
#pragma unroll
    for (int i = 0; i < N; i += 4) {
        float4 q = *reinterpret_cast<const float4 *>(p + i);
        v.at[i] = q.x, v.at[i + 1] = q.y, v.at[i + 2] = q.z, v.at[i + 3] = q.w;
    }
    return v;
}

DEVICE void unpack_bf16x8(uint4 q, float *to) {
    const u32 words[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
    for (int w = 0; w < 4; w++) {
        to[2 * w] = __uint_as_float(words[w] << 16);
        to[2 * w + 1] = __uint_as_float(words[w] & 0xFFFF0000u);
    }
}

template <int N> DEVICE Vec<N> load_vec(const bf16 *p) {
    Vec<N> v;
    if (N % 8 == 0) {
#pragma unroll
        for (int i = 0; i < N; i += 8) unpack_bf16x8(*reinterpret_cast<const uint4 *>(p + i), v.at + i);
    } else {
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            const uint2 q = *reinterpret_cast<const uint2 *>(p + i);
            v.at[i] = __uint_as_float(q.x << 16), v.at[i + 1] = __uint_as_float(q.x & 0xFFFF0000u);
            v.at[i + 2] = __uint_as_float(q.y << 16), v.at[i + 3] = __uint_as_float(q.y & 0xFFFF0000u);
        }
    }
    return v;
}

template <int N> DEVICE void store_vec(float *p, const Vec<N> &v) {
#pragma unroll
    for (int i = 0; i < N; i += 4)
        *reinterpret_cast<float4 *>(p + i) = make_float4(v.at[i], v.at[i + 1], v.at[i + 2], v.at[i + 3]);
}

template <int N> DEVICE void store_vec(bf16 *p, const Vec<N> &v) {
    u32 pairs[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; i++) pairs[i] = to_bf16x2(v.at[2 * i], v.at[2 * i + 1]);
    if (N % 8 == 0) {
#pragma unroll
        for (int i = 0; i < N / 2; i += 4)
            *reinterpret_cast<uint4 *>(p + 2 * i) = make_uint4(pairs[i], pairs[i + 1], pairs[(i + 2) % (N / 2)], pairs[(i + 3) % (N / 2)]);
    } else {
#pragma unroll
        for (int i = 0; i < N / 2; i += 2) *reinterpret_cast<uint2 *>(p + 2 * i) = make_uint2(pairs[i], pairs[i + 1]);
    }
}

// The first `n` of N elements, and `fill` for the others. `aligned` (the same for all threads) says that p is a multiple of 16 bytes.
template <int N, class T> DEVICE Vec<N> load_part(const T *p, u32 n, bool aligned, float fill = 0.0f) {
    if (aligned && n >= N) return load_vec<N>(p);
    Vec<N> v;
#pragma unroll
    for (int i = 0; i < N; i++) v.at[i] = i < n ? to_f32(p[i]) : fill;
    return v;
}

template <int N, class T> DEVICE void store_part(T *p, u32 n, bool aligned, const Vec<N> &v) {
    if (aligned && n >= N) {
        store_vec<N>(p, v);
    } else {
#pragma unroll
        for (int i = 0; i < N; i++)
            if (i < n) from_f32(v.at[i], p[i]);
    }
}

// Sums and maxima over a warp, the same bits in every lane: partners add the same two numbers.
template <class T> DEVICE T warp_sum(T x) {
#pragma unroll
    for (u32 lanes = WARP / 2; lanes > 0; lanes /= 2) x = x + __shfl_xor_sync(ALL_LANES, x, lanes);
    return x;
}

// NaN is passed over.
DEVICE float warp_max(float x) {
#pragma unroll
    for (u32 lanes = WARP / 2; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, lanes));
    return x;
}

// Sum over a block of whole warps, in every thread; `scratch` is shared memory of one T for each warp (at most 32). Ends with no thread
// still reading scratch only after the next barrier: callers that go around a loop use two, or a barrier of their own.
template <class T> DEVICE T block_sum(T x, T *scratch) {
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    x = warp_sum(x);
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    return warp_sum(lane < warps ? scratch[lane] : T(0));
}

DEVICE float block_max(float x, float *scratch) {
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    x = warp_max(x);
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    return warp_max(lane < warps ? scratch[lane] : -__int_as_float(0x7F800000));
}
