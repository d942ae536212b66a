// Rotary position embedding in the half-rotation form: kernels/src/rope.rs. A thread turns PAIRS neighbouring pairs of a head.
#include "common.cuh"

constexpr u32 THREADS = 256;
constexpr u32 PAIRS = 4;

// x, y [N, H, D], row n at position first_position + n % seq_len of the tables cos, sin [.., D / 2]; sign -1 turns back.
template <class T>
DEVICE void turn(const T *x, const float *cos, const float *sin, u32 n_heads, u32 head_dim, u32 seq_len, u32 first_position, float sign,
                 u32 groups, u32 aligned, T *y) {
    const u32 group = blockIdx.x * THREADS + threadIdx.x;
    if (group >= groups) return;
    const u32 half = head_dim / 2, per_head = (half + PAIRS - 1) / PAIRS;
    const u32 head = group / per_head, i = group % per_head * PAIRS, n = half - i;
    const u64 position = first_position + head / n_heads % seq_len;
    const u64 at = (u64)head * head_dim + i, angle = position * half + i;
    const Vec<4> a = load_part<4>(x + at, n, aligned), b = load_part<4>(x + at + half, n, aligned),
                 c = load_part<4>(cos + angle, n, aligned), s = load_part<4>(sin + angle, n, aligned);
    Vec<4> ya, yb;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const float sine = sign * s.at[j];
        ya.at[j] = a.at[j] * c.at[j] - b.at[j] * sine;
        yb.at[j] = fmaf(a.at[j], sine, b.at[j] * c.at[j]);
    }
    store_part<4>(y + at, n, aligned, ya);
    store_part<4>(y + at + half, n, aligned, yb);
}

#define KERNELS(T, SUFFIX)                                                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                                                 \
        rope##SUFFIX(const T *x, const float *cos, const float *sin, u32 n_heads, u32 head_dim, u32 seq_len, u32 first_position,          \
                     float sign, u32 groups, u32 aligned, T *y) {                                                                         \
        turn(x, cos, sin, n_heads, head_dim, seq_len, first_position, sign, groups, aligned, y);                                          \
    }

KERNELS(float, )
KERNELS(bf16, _bf16)
