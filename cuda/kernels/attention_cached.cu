// Attention of tokens over a cache each, GQA: kernels/src/attention/decode.rs. Keys are cut into parts of 128 by their position: a block for each part
// of each key-value head of each token, then a block for each query head that puts the parts together, in order. Which cache, and how many keys
// there are, is read from device memory, so that a recorded launch serves every position; blocks beyond them have nothing to do.
//
// K, V [caches, K, capacity, D]; q, out [N, H, D], out f32; parts [N, part, H, D] of sums, and [N, part, H] of maxima and of sums of exponentials.
#include "math.cuh"

constexpr u32 THREADS = 256, WARPS = THREADS / WARP;
constexpr u32 KEYS = 128;
constexpr u32 MAX_GROUP = 16;  // query heads of a key-value head
constexpr u32 AT_ONCE = 4;     // query heads that a pass over V serves
constexpr u32 PER_KEY = 8;     // lanes that share a key's dot

template <class T>
DEVICE void part(const float *q, const T *k, const T *v, const u32 *kv_len, const u32 *cache, float scale, u32 n_kv_heads, u32 group, u32 d,
                 u32 capacity, u32 caches, u32 aligned, float *sums, float *maxima, float *totals) {
    // At most 16 KiB of queries (D at most 256), of which the 32 KiB of sums over V take the place; 8 KiB of probabilities.
    __shared__ __align__(16) float shared[THREADS * 8 * AT_ONCE];
    __shared__ float p[MAX_GROUP][KEYS];
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, kv_head = blockIdx.y, first = blockIdx.x * KEYS, token = blockIdx.z,
              all = min(kv_len[token], capacity);
    if (first >= all) return;
    const u32 len = min(KEYS, all - first), n_heads = n_kv_heads * group, groups = (d + 7) / 8, padded = groups * 8;
    const u64 row0 = ((u64)min(cache[token], caches - 1) * n_kv_heads + kv_head) * capacity + first, part0 = token * gridDim.x + blockIdx.x;
    k += row0 * d, v += row0 * d, q += (u64)token * n_heads * d;

    for (u32 i = threadIdx.x; i < group * padded; i += THREADS) {
        const u32 h = i / padded, j = i % padded;
        shared[i] = j < d ? q[(u64)(kv_head * group + h) * d + j] * scale : 0.0f;
    }
    __syncthreads();

    // Scores: eight lanes share a key, four keys to a warp. All lanes go round together, for the shuffles.
    for (u32 start = warp * (WARP / PER_KEY); start < KEYS; start += WARPS * (WARP / PER_KEY)) {
        const u32 key = start + lane / PER_KEY, at = lane % PER_KEY;
        float dots[MAX_GROUP];
        if (start >= len) break;
        const T *row = k + (u64)min(key, len - 1) * d;
#pragma unroll
        for (u32 h = 0; h < MAX_GROUP; h++) dots[h] = 0.0f;
        for (u32 j = at * 8; j < d; j += PER_KEY * 8) {
            const Vec<8> ks = load_part<8>(row + j, d - j, aligned);
#pragma unroll
            for (u32 h = 0; h < MAX_GROUP; h++) {
                if (h >= group) break;
                const Vec<8> qs = load_vec<8>(shared + h * padded + j);
#pragma unroll
                for (int e = 0; e < 8; e++) dots[h] = fmaf(qs.at[e], ks.at[e], dots[h]);
            }
        }
#pragma unroll
        for (u32 h = 0; h < MAX_GROUP; h++) {
            if (h >= group) break;
#pragma unroll
            for (u32 lanes = PER_KEY / 2; lanes > 0; lanes /= 2) dots[h] += __shfl_xor_sync(ALL_LANES, dots[h], lanes);
            if (at == 0 && key < len) p[h][key] = dots[h];
        }
    }
    __syncthreads();

    // Probabilities, as far as this part can know: a warp for each query head.
    for (u32 h = warp; h < group; h += WARPS) {
        float most = -__int_as_float(0x7F800000);
        for (u32 key = lane; key < len; key += WARP) most = fmaxf(most, p[h][key]);
        most = warp_max(most);
        float total = 0.0f;
        for (u32 key = lane; key < len; key += WARP) {
            const float e = exp_f32(p[h][key] - most);
            p[h][key] = e;
            total += e;
        }
        total = warp_sum(total);
        if (lane == 0) {
            const u64 at = part0 * n_heads + kv_head * group + h;
            maxima[at] = most;
            totals[at] = total;
        }
    }
    __syncthreads();

    // Sums over V: a thread takes eight columns of every lanes-th key; then the lanes are added in order.
    const u32 lanes = THREADS / groups, column = threadIdx.x % groups * 8, of_keys = threadIdx.x / groups;
    for (u32 h0 = 0; h0 < group; h0 += AT_ONCE) {
        float acc[AT_ONCE][8] = {};
        if (of_keys < lanes) {
            for (u32 key = of_keys; key < len; key += lanes) {
                const Vec<8> vs = load_part<8>(v + (u64)key * d + column, d - column, aligned);
#pragma unroll
                for (u32 h = 0; h < AT_ONCE; h++) {
                    const float weight = p[min(h0 + h, group - 1)][key];
#pragma unroll
                    for (int e = 0; e < 8; e++) acc[h][e] = fmaf(weight, vs.at[e], acc[h][e]);
                }
            }
#pragma unroll
            for (u32 h = 0; h < AT_ONCE; h++)
#pragma unroll
                for (int e = 0; e < 8; e++) shared[(of_keys * AT_ONCE + h) * padded + column + e] = acc[h][e];
        }
        __syncthreads();
        for (u32 i = threadIdx.x; i < AT_ONCE * padded; i += THREADS) {
            const u32 h = h0 + i / padded, j = i % padded;
            if (h >= group || j >= d) continue;
            float sum = 0.0f;
            for (u32 l = 0; l < lanes; l++) sum += shared[l * AT_ONCE * padded + i];
            sums[(part0 * n_heads + kv_head * group + h) * d + j] = sum;
        }
        __syncthreads();
    }
}

#define KERNEL extern "C" __global__ void __launch_bounds__(THREADS)

KERNEL attention_part(const float *q, const float *k, const float *v, const u32 *kv_len, const u32 *cache, float scale, u32 n_kv_heads,
                      u32 group, u32 d, u32 capacity, u32 caches, u32 aligned, float *sums, float *maxima, float *totals) {
    part(q, k, v, kv_len, cache, scale, n_kv_heads, group, d, capacity, caches, aligned, sums, maxima, totals);
}

KERNEL attention_part_bf16(const float *q, const bf16 *k, const bf16 *v, const u32 *kv_len, const u32 *cache, float scale, u32 n_kv_heads,
                           u32 group, u32 d, u32 capacity, u32 caches, u32 aligned, float *sums, float *maxima, float *totals) {
    part(q, k, v, kv_len, cache, scale, n_kv_heads, group, d, capacity, caches, aligned, sums, maxima, totals);
}

// out[t, h, :] = the sums of all parts, each scaled to the largest maximum, over the sum of all exponentials; lse[t, h] its logarithm and that maximum.
KERNEL attention_join(const float *sums, const float *maxima, const float *totals, const u32 *kv_len, u32 capacity, u32 d, float *out,
                      float *lse) {
    const u32 h = blockIdx.x, n_heads = gridDim.x, token = blockIdx.y, parts = (min(kv_len[token], capacity) + KEYS - 1) / KEYS;
    const u64 first = (u64)token * ((capacity + KEYS - 1) / KEYS), row = (u64)token * n_heads + h;
    float most = -__int_as_float(0x7F800000);
    for (u32 part = 0; part < parts; part++) most = fmaxf(most, maxima[(first + part) * n_heads + h]);
    float total = 0.0f;
    for (u32 part = 0; part < parts; part++) {
        const u64 at = (first + part) * n_heads + h;
        total = fmaf(totals[at], exp_f32(maxima[at] - most), total);
    }
    for (u32 j = threadIdx.x; j < d; j += THREADS) {
        float sum = 0.0f;
        for (u32 part = 0; part < parts; part++) {
            const u64 at = (first + part) * n_heads + h;
            sum = fmaf(sums[at * d + j], exp_f32(maxima[at] - most), sum);
        }
        out[row * d + j] = sum / total;
    }
    if (threadIdx.x == 0) lse[row] = (float)((double)most + log_f64(total));
}
