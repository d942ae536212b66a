// Causal attention of many queries with an online softmax, GQA: kernels/src/attention/mod.rs. A block takes 64 queries (bf16) or 32 (f32) of a head and goes
// over the keys that they see, with a running maximum and sum of each query. Layouts and the pieces of which it is made: attention.cuh.
#include "attention.cuh"

// bf16, on tensor cores. A warp has 16 queries; K is fetched while the block before is weighted and summed, V while the scores are computed.
template <u32 DIM>
DEVICE void forward(const bf16 *q, const bf16 *k, const bf16 *v, const Shape &s, float scale, bool aligned, bf16 *out, float *lse) {
    constexpr u32 KEYS = 64;
    __shared__ __align__(128) u8 tiles[2][KEYS * DIM * 2];
    const u32 keys = (u32)__cvta_generic_to_shared(tiles[0]), values = (u32)__cvta_generic_to_shared(tiles[1]);
    const Place at = place_of_queries(s, ROWS);
    const u32 lane = threadIdx.x % WARP, warp_row = threadIdx.x / WARP * 16, rows = min(ROWS, s.q_len - at.first);
    const u64 kv_at = s.kv_at(at.b, 0, at.head / s.group());
    k += kv_at, v += kv_at;

    // The queries stay in registers; the keys take their place.
    u32 q_part[DIM / 16][4];
    fetch<ROWS, DIM>(q + s.q_at(at.b, at.first, at.head), s.q_stride(), rows, s.d, aligned, keys);
    commit();
    arrive();
#pragma unroll
    for (u32 c = 0; c < DIM / 16; c++) load_left<DIM>(keys, warp_row, 16 * c, q_part[c]);
    __syncthreads();

    const u32 visible = at.first + rows + s.shift(); // keys that the last query sees
    auto fetch_rows = [&](const bf16 *x, u32 first, u32 tile) {
        fetch<KEYS, DIM>(x + first * s.kv_stride(), s.kv_stride(), min(KEYS, s.kv_len - first), s.d, aligned, tile);
        commit();
    };
    fetch_rows(k, 0, keys);
    float sums[DIM / 8][4] = {}, most[2] = {-infinity(), -infinity()}, total[2] = {0.0f, 0.0f};
#pragma unroll 1
    for (u32 first = 0; first < visible; first += KEYS) {
        arrive();
        fetch_rows(v, first, values);
        float p[KEYS / 8][4] = {};
#pragma unroll
        for (u32 c = 0; c < DIM / 16; c++)
#pragma unroll
            for (u32 j = 0; j < KEYS / 16; j++) {
                u32 k_part[4];
                load_right_t<DIM>(keys, 16 * j, 16 * c, k_part);
                mma_pair(p[2 * j], p[2 * j + 1], q_part[c], k_part);
            }
        arrive();
        if (first + KEYS < visible) fetch_rows(k, first + KEYS, keys);

#pragma unroll
        for (u32 j = 0; j < KEYS / 8; j++)
#pragma unroll
            for (u32 e = 0; e < 4; e++) p[j][e] *= scale;
        // Only where the warp's first query does not see the block's last key.
        if (first + KEYS - 1 > at.first + warp_row + s.shift()) {
#pragma unroll
            for (u32 j = 0; j < KEYS / 8; j++)
#pragma unroll
                for (u32 e = 0; e < 4; e++) {
                    // The last key that this query sees; those beyond the last query see nothing that matters.
                    const u32 key = first + 8 * j + lane % 4 * 2 + e % 2, last = at.first + warp_row + lane / 4 + e / 2 * 8 + s.shift();
                    if (key > last) p[j][e] = -infinity();
                }
        }

#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            float top = most[half];
#pragma unroll
            for (u32 j = 0; j < KEYS / 8; j++)
#pragma unroll
                for (u32 e = 0; e < 2; e++) top = fmaxf(top, p[j][2 * half + e]);
            // Four lanes share a query.
            top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 1));
            top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 2));
            const float factor = exp_of_negative(most[half] - top);
            most[half] = top;
            float sum = 0.0f;
#pragma unroll
            for (u32 j = 0; j < KEYS / 8; j++)
#pragma unroll
                for (u32 e = 0; e < 2; e++) {
                    float &score = p[j][2 * half + e];
                    score = exp_of_negative(score - top);
                    sum += score;
                }
            total[half] = fmaf(total[half], factor, sum);
#pragma unroll
            for (u32 j = 0; j < DIM / 8; j++) sums[j][2 * half] *= factor, sums[j][2 * half + 1] *= factor;
        }

#pragma unroll
        for (u32 i = 0; i < KEYS / 16; i++) {
            u32 p_part[4];
            as_left(p[2 * i], p[2 * i + 1], p_part);
#pragma unroll
            for (u32 c = 0; c < DIM / 16; c++) {
                u32 v_part[4];
                load_right<DIM>(values, 16 * i, 16 * c, v_part);
                mma_pair(sums[2 * c], sums[2 * c + 1], p_part, v_part);
            }
        }
    }

    if (warp_row >= rows) return;
    float share[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        const u32 row = warp_row + lane / 4 + 8 * half;
        total[half] += __shfl_xor_sync(ALL_LANES, total[half], 1);
        total[half] += __shfl_xor_sync(ALL_LANES, total[half], 2);
        share[half] = 1.0f / total[half];
        if (lane % 4 == 0 && row < rows) lse[s.row_at(at.b, at.head, at.first + row)] = (float)((double)most[half] + log_f64(total[half]));
    }
    write_rows(sums, share, rows - warp_row, s.d, s.q_stride(), aligned, false, out + s.q_at(at.b, at.first + warp_row, at.head));
}

// f32. Keys and values take turns in one tile.
template <u32 DIM>
DEVICE void forward(const float *q, const float *k, const float *v, const Shape &s, float scale, bool aligned, float *out, float *lse) {
    constexpr u32 R = 2, BLOCK = 16 * R;
    __shared__ __align__(16) float queries[BLOCK * STRIDE<DIM>], tile[BLOCK * STRIDE<DIM>];
    __shared__ float weights[BLOCK * (BLOCK + 1)];
    const Place at = place_of_queries(s, BLOCK);
    const u32 x = threadIdx.x % 16, y = threadIdx.x / 16, rows = min(BLOCK, s.q_len - at.first);
    const u64 kv_at = s.kv_at(at.b, 0, at.head / s.group());
    k += kv_at, v += kv_at;
    copy_rows<BLOCK, DIM>(q + s.q_at(at.b, at.first, at.head), s.q_stride(), rows, s.d, aligned, queries);

    const u32 visible = at.first + rows + s.shift();
    float sums[R][DIM / 16] = {}, most[R], total[R];
#pragma unroll
    for (u32 i = 0; i < R; i++) most[i] = -infinity(), total[i] = 0.0f;
#pragma unroll 1
    for (u32 first = 0; first < visible; first += BLOCK) {
        const u32 left = min(BLOCK, s.kv_len - first);
        __syncthreads();
        copy_rows<BLOCK, DIM>(k + first * s.kv_stride(), s.kv_stride(), left, s.d, aligned, tile);
        __syncthreads();
        float p[R][R];
        dots<R, DIM>(queries, tile, p);
#pragma unroll
        for (u32 i = 0; i < R; i++) {
            const u32 last = at.first + y + 16 * i + s.shift();
            float top = most[i];
#pragma unroll
            for (u32 j = 0; j < R; j++) {
                p[i][j] = first + x + 16 * j <= last ? p[i][j] * scale : -infinity();
                top = fmaxf(top, p[i][j]);
            }
            // Sixteen lanes share a query.
#pragma unroll
            for (u32 lanes = 8; lanes > 0; lanes /= 2) top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, lanes));
            const float factor = exp_f32(most[i] - top);
            most[i] = top;
            float sum = 0.0f;
#pragma unroll
            for (u32 j = 0; j < R; j++) {
                const float e = exp_f32(p[i][j] - top);
                weights[(y + 16 * i) * (BLOCK + 1) + x + 16 * j] = e;
                sum += e;
            }
            total[i] = fmaf(total[i], factor, sum);
#pragma unroll
            for (u32 c = 0; c < DIM / 16; c++) sums[i][c] *= factor;
        }
        __syncthreads();
        copy_rows<BLOCK, DIM>(v + first * s.kv_stride(), s.kv_stride(), left, s.d, aligned, tile);
        __syncthreads();
        add_rows<R, DIM>(weights, tile, sums);
    }

#pragma unroll
    for (u32 i = 0; i < R; i++) {
        const u32 row = y + 16 * i;
#pragma unroll
        for (u32 lanes = 8; lanes > 0; lanes /= 2) total[i] += __shfl_xor_sync(ALL_LANES, total[i], lanes);
        if (x == 0 && row < rows) lse[s.row_at(at.b, at.head, at.first + row)] = (float)((double)most[i] + log_f64(total[i]));
#pragma unroll
        for (u32 c = 0; c < DIM / 16; c++) sums[i][c] = sums[i][c] / total[i];
    }
    write_rows<R, DIM>(sums, 1.0f, rows, s.d, s.q_stride(), aligned, false, out + s.q_at(at.b, at.first, at.head));
}

#define FORWARD(name, T, dim, threads)                                                                                                          \
    extern "C" __global__ void __launch_bounds__(threads) name(const T *q, const T *k, const T *v, u32 q_len, u32 kv_len, u32 n_heads,          \
                                                               u32 n_kv_heads, u32 d, float scale, u32 aligned, T *out, float *lse) {            \
        forward<dim>(q, k, v, Shape{q_len, kv_len, n_heads, n_kv_heads, d}, scale, aligned, out, lse);                                           \
    }
FORWARD(attention_64, float, 64, F32_THREADS)
FORWARD(attention_128, float, 128, F32_THREADS)
FORWARD(attention_bf16_64, bf16, 64, THREADS)
FORWARD(attention_bf16_128, bf16, 128, THREADS)
