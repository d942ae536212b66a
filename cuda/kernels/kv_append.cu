// New tokens on their way into attention: queries turned by RoPE where they lie, keys turned and values as they are put into a cache, all at positions
// that are read from device memory. A thread takes a pair of a head; little is moved.
#include "common.cuh"

constexpr u32 THREADS = 256;

// q [N, H, D], k, v [N, K, D]; caches [caches, K, capacity, D]; cos, sin [.., D / 2]. A token whose position or cache does not exist is left out: a kernel
// cannot refuse it.
template <class T>
DEVICE void append(const u32 *positions, const u32 *cache, const float *cos, const float *sin, u32 n, u32 n_heads, u32 n_kv_heads, u32 d,
                   u32 capacity, u32 caches, const float *k, const float *v, float *q, T *k_cache, T *v_cache) {
    const u32 half = d / 2, heads = n_heads + 2 * n_kv_heads;
    const u32 pair = blockIdx.x * THREADS + threadIdx.x, i = pair % half, head = pair / half % heads, token = pair / half / heads;
    if (token >= n) return;
    const u32 position = positions[token], to_cache = cache[token];
    if (position >= capacity || to_cache >= caches) return;
    const bool is_q = head < n_heads, is_k = !is_q && head < n_heads + n_kv_heads;
    const u32 kv_head = is_q ? 0 : (head - n_heads) % n_kv_heads;
    const u64 from = is_q ? ((u64)token * n_heads + head) * d : ((u64)token * n_kv_heads + kv_head) * d;
    const float *x = (is_q ? q : is_k ? k : v) + from + i;
    float a = x[0], b = x[half];
    if (is_q || is_k) {
        // As rope.cu.
        const float c = cos[(u64)position * half + i], s = sin[(u64)position * half + i], turned = a * c - b * s;
        b = fmaf(a, s, b * c), a = turned;
    }
    if (is_q) {
        q[from + i] = a, q[from + i + half] = b;
    } else {
        T *to = (is_k ? k_cache : v_cache) + (((u64)to_cache * n_kv_heads + kv_head) * capacity + position) * d + i;
        from_f32(a, to[0]), from_f32(b, to[half]);
    }
}

#define KERNELS(T, SUFFIX)                                                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                                                 \
        kv_append##SUFFIX(const u32 *positions, const u32 *cache, const float *cos, const float *sin, u32 n, u32 n_heads, u32 n_kv_heads, \
                          u32 d, u32 capacity, u32 caches, const float *k, const float *v, float *q, T *k_cache, T *v_cache) {            \
        append(positions, cache, cos, sin, n, n_heads, n_kv_heads, d, capacity, caches, k, v, q, k_cache, v_cache);                       \
    }

KERNELS(float, )
KERNELS(bf16, _bf16)
