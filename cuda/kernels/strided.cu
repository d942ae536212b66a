// Copies from windows with strides, and sums into them: what makes a view of a tensor dense, and the transpose of a narrowing.
#include "common.cuh"

constexpr u32 THREADS = 256;

#define KERNEL extern "C" __global__ void __launch_bounds__(THREADS)

// Takes the index along the last of the remaining axes off `rest`. Most axes are 1 long, for all threads alike: no division for them.
DEVICE void take_axis(u32 extent, u32 stride, u32 &rest, u64 &from) {
    if (extent == 1) return;
    from += (u64)(rest % extent) * stride;
    rest = rest / extent;
}

// dst[i] = src[sum of index * stride], the indices being those of i in [.., e1, e2, e3, e4].
template <class T>
DEVICE void copy_window(const T *src, u32 n, u32 e1, u32 e2, u32 e3, u32 e4, u32 s0, u32 s1, u32 s2, u32 s3, u32 s4, T *dst) {
    const u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    u32 rest = (u32)i;
    u64 from = 0;
    take_axis(e4, s4, rest, from);
    take_axis(e3, s3, rest, from);
    take_axis(e2, s2, rest, from);
    take_axis(e1, s1, rest, from);
    dst[i] = src[from + (u64)rest * s0];
}

// Elements of any type of four bytes.
KERNEL gather(const u32 *src, u32 n, u32 e1, u32 e2, u32 e3, u32 e4, u32 s0, u32 s1, u32 s2, u32 s3, u32 s4, u32 *dst) {
    copy_window(src, n, e1, e2, e3, e4, s0, s1, s2, s3, s4, dst);
}

// Of two bytes.
KERNEL gather_16(const u16 *src, u32 n, u32 e1, u32 e2, u32 e3, u32 e4, u32 s0, u32 s1, u32 s2, u32 s3, u32 s4, u16 *dst) {
    copy_window(src, n, e1, e2, e3, e4, s0, s1, s2, s3, s4, dst);
}

// dst[row * stride + j] += x[row * len + j] for j < len.
KERNEL add_to_range(const float *x, u32 n, u32 len, u32 stride, float *dst) {
    const u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    float *to = dst + (u64)((u32)i / len) * stride + (u32)i % len;
    *to = *to + x[i];
}
