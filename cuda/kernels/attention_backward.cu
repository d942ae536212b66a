// The gradients of attention: kernels/src/attention/backward.rs. With P = exp(S - lse), computed again block by block, and delta = rowsum(dO * O):
// dV = P^T dO, dS = P * (dO V^T - delta), dQ = scale dS K, dK = scale dS^T Q.
//
// Three kernels: delta; dk and dv, whose blocks take keys and go over the queries of all heads that read them; dq, whose blocks take queries and go over
// keys. So each sum is made by one block in a fixed order. S is computed twice for it.
#include "attention.cuh"

// delta[b, h, t] = sum_d dO O: a warp takes a row of D at most 128.
template <class T> DEVICE void row_dots(const T *out, const T *d_out, const Shape &s, u32 batch, bool aligned, float *delta) {
    const u32 lane = threadIdx.x % WARP;
    const u64 row = (u64)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, token = row / s.n_heads;
    if (token >= (u64)batch * s.q_len) return;
    float sum = 0.0f;
    if (4 * lane < s.d) {
        const u64 at = row * s.d + 4 * lane;
        const Vec<4> o = load_part<4>(out + at, s.d - 4 * lane, aligned), g = load_part<4>(d_out + at, s.d - 4 * lane, aligned);
#pragma unroll
        for (u32 e = 0; e < 4; e++) sum = fmaf(o.at[e], g.at[e], sum);
    }
    sum = warp_sum(sum);
    if (lane == 0) delta[s.row_at(token / s.q_len, row % s.n_heads, token % s.q_len)] = sum;
}

// P and dS of one element from its score, less lse, and its dP. lse is infinite for queries that do not exist: P is 0. (A condition after the
// exponential would be a branch for each element.)
struct Element {
    float p, ds;
};
template <float (*EXP)(float)> DEVICE Element element(bool visible, float score, float dp, float delta) {
    const float p = EXP(visible ? score : -infinity());
    return {p, p * (dp - delta)};
}

// ---- bf16, on tensor cores. Tiles are what 48 KiB hold, which every block may have.

// A warp has 16 of 64 keys and keeps scores transposed, [keys, queries]: as they come from one product they are the left operand of the next.
template <u32 DIM>
DEVICE void backward_kv(const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *d_out, const float *lse, const float *delta, const Shape &s, float scale,
                        bool aligned, bool add, bf16 *dk, bf16 *dv) {
    constexpr u32 QUERIES = 32, STAGES = DIM == 64 ? 2 : 1; // 64 queries take more registers than there are
    __shared__ __align__(128) u8 kv_tiles[2][ROWS * DIM * 2], q_tiles[STAGES][2][QUERIES * DIM * 2];
    const u32 keys = (u32)__cvta_generic_to_shared(kv_tiles[0]), values = (u32)__cvta_generic_to_shared(kv_tiles[1]);
    const u32 stages = (u32)__cvta_generic_to_shared(q_tiles);
    const Place at = place_of_keys(s, ROWS);
    const u32 lane = threadIdx.x % WARP, warp_row = threadIdx.x / WARP * 16, rows = min(ROWS, s.kv_len - at.first);
    const u64 kv_at = s.kv_at(at.b, at.first, at.head);
    fetch<ROWS, DIM>(k + kv_at, s.kv_stride(), rows, s.d, aligned, keys);
    fetch<ROWS, DIM>(v + kv_at, s.kv_stride(), rows, s.d, aligned, values);

    // Blocks of queries from the first that sees one of the keys on, head by head.
    const u32 first_block = (at.first > s.shift() ? at.first - s.shift() : 0) / QUERIES, blocks = (s.q_len + QUERIES - 1) / QUERIES - first_block;
    const u32 steps = s.group() * blocks;
    auto head_of = [&](u32 step) { return at.head * s.group() + step / blocks; };
    auto query_of = [&](u32 step) { return (first_block + step % blocks) * QUERIES; };
    auto fetch_queries = [&](u32 step) {
        const u32 t = query_of(step), left = min(QUERIES, s.q_len - t), stage = stages + step % STAGES * (4 * QUERIES * DIM);
        const u64 q_at = s.q_at(at.b, t, head_of(step));
        fetch<QUERIES, DIM>(q + q_at, s.q_stride(), left, s.d, aligned, stage);
        fetch<QUERIES, DIM>(d_out + q_at, s.q_stride(), left, s.d, aligned, stage + 2 * QUERIES * DIM);
    };
    if (STAGES == 2 && steps > 0) fetch_queries(0);
    commit();

    float dk_sums[DIM / 8][4] = {}, dv_sums[DIM / 8][4] = {};
#pragma unroll 1
    for (u32 step = 0; step < steps; step++) {
        if (STAGES == 1) {
            __syncthreads();
            fetch_queries(step);
            commit();
        }
        const u32 t0 = query_of(step), queries = stages + step % STAGES * (4 * QUERIES * DIM), d_outs = queries + 2 * QUERIES * DIM;
        const u64 row_at = s.row_at(at.b, head_of(step), t0) + lane % 4 * 2;
        const float *lses = lse + row_at, *deltas = delta + row_at;
        arrive();
        if (STAGES == 2 && step + 1 < steps) {
            fetch_queries(step + 1);
            commit();
        }

        float p[QUERIES / 8][4] = {}, ds[QUERIES / 8][4] = {};
#pragma unroll
        for (u32 c = 0; c < DIM / 16; c++) {
            u32 left[4], right[4];
            load_left<DIM>(keys, warp_row, 16 * c, left);
#pragma unroll
            for (u32 j = 0; j < QUERIES / 16; j++) {
                load_right_t<DIM>(queries, 16 * j, 16 * c, right);
                mma_pair(p[2 * j], p[2 * j + 1], left, right);
            }
            load_left<DIM>(values, warp_row, 16 * c, left);
#pragma unroll
            for (u32 j = 0; j < QUERIES / 16; j++) {
                load_right_t<DIM>(d_outs, 16 * j, 16 * c, right);
                mma_pair(ds[2 * j], ds[2 * j + 1], left, right);
            }
        }
#pragma unroll
        for (u32 j = 0; j < QUERIES / 8; j++)
#pragma unroll
            for (u32 e = 0; e < 2; e++) {
                const u32 t = t0 + 8 * j + lane % 4 * 2 + e;
                const bool exists = t < s.q_len;
                const float lse_t = exists ? lses[8 * j + e] : infinity(), delta_t = exists ? deltas[8 * j + e] : 0.0f;
#pragma unroll
                for (u32 half = 0; half < 2; half++) {
                    const u32 key = at.first + warp_row + lane / 4 + 8 * half, i = 2 * half + e;
                    const Element x = element<exp_of_negative>(key <= t + s.shift(), p[j][i] * scale - lse_t, ds[j][i], delta_t);
                    p[j][i] = x.p, ds[j][i] = x.ds;
                }
            }
#pragma unroll
        for (u32 i = 0; i < QUERIES / 16; i++) {
            u32 left[4], right[4];
            as_left(p[2 * i], p[2 * i + 1], left);
#pragma unroll
            for (u32 c = 0; c < DIM / 16; c++) {
                load_right<DIM>(d_outs, 16 * i, 16 * c, right);
                mma_pair(dv_sums[2 * c], dv_sums[2 * c + 1], left, right);
            }
            as_left(ds[2 * i], ds[2 * i + 1], left);
#pragma unroll
            for (u32 c = 0; c < DIM / 16; c++) {
                load_right<DIM>(queries, 16 * i, 16 * c, right);
                mma_pair(dk_sums[2 * c], dk_sums[2 * c + 1], left, right);
            }
        }
    }

    if (warp_row >= rows) return;
    const u64 to = kv_at + warp_row * s.kv_stride();
    const float scales[2] = {scale, scale}, ones[2] = {1.0f, 1.0f};
    write_rows(dk_sums, scales, rows - warp_row, s.d, s.kv_stride(), aligned, add, dk + to);
    write_rows(dv_sums, ones, rows - warp_row, s.d, s.kv_stride(), aligned, add, dv + to);
}

// A warp has 16 of 64 queries, and keeps them and their dO in registers.
template <u32 DIM>
DEVICE void backward_q(const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *d_out, const float *lse, const float *delta, const Shape &s, float scale,
                       bool aligned, bool add, bf16 *dq) {
    constexpr u32 KEYS = 4096 / DIM, STAGE = 4 * KEYS * DIM; // bytes of a tile of keys and one of values; 64 rows of queries are no more
    __shared__ __align__(128) u8 tiles[2][STAGE];
    const u32 stages = (u32)__cvta_generic_to_shared(tiles);
    const Place at = place_of_queries(s, ROWS);
    const u32 lane = threadIdx.x % WARP, warp_row = threadIdx.x / WARP * 16, rows = min(ROWS, s.q_len - at.first);
    const u64 kv_at = s.kv_at(at.b, 0, at.head / s.group()), q_at = s.q_at(at.b, at.first, at.head);
    k += kv_at, v += kv_at;

    u32 q_part[DIM / 16][4], d_out_part[DIM / 16][4];
    fetch<ROWS, DIM>(q + q_at, s.q_stride(), rows, s.d, aligned, stages);
    fetch<ROWS, DIM>(d_out + q_at, s.q_stride(), rows, s.d, aligned, stages + STAGE);
    commit();
    arrive();
#pragma unroll
    for (u32 c = 0; c < DIM / 16; c++) {
        load_left<DIM>(stages, warp_row, 16 * c, q_part[c]);
        load_left<DIM>(stages + STAGE, warp_row, 16 * c, d_out_part[c]);
    }
    __syncthreads();

    float lse_of[2], delta_of[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        const u32 row = warp_row + lane / 4 + 8 * half;
        const u64 row_at = s.row_at(at.b, at.head, at.first + row);
        lse_of[half] = row < rows ? lse[row_at] : infinity(), delta_of[half] = row < rows ? delta[row_at] : 0.0f;
    }

    const u32 visible = at.first + rows + s.shift();
    auto fetch_keys = [&](u32 first) {
        const u32 left = min(KEYS, s.kv_len - first), stage = stages + first / KEYS % 2 * STAGE;
        fetch<KEYS, DIM>(k + first * s.kv_stride(), s.kv_stride(), left, s.d, aligned, stage);
        fetch<KEYS, DIM>(v + first * s.kv_stride(), s.kv_stride(), left, s.d, aligned, stage + STAGE / 2);
        commit();
    };
    fetch_keys(0);
    float sums[DIM / 8][4] = {};
#pragma unroll 1
    for (u32 first = 0; first < visible; first += KEYS) {
        const u32 keys = stages + first / KEYS % 2 * STAGE, values = keys + STAGE / 2;
        arrive();
        if (first + KEYS < visible) fetch_keys(first + KEYS);
        float p[KEYS / 8][4] = {}, ds[KEYS / 8][4] = {};
#pragma unroll
        for (u32 c = 0; c < DIM / 16; c++)
#pragma unroll
            for (u32 j = 0; j < KEYS / 16; j++) {
                u32 right[4];
                load_right_t<DIM>(keys, 16 * j, 16 * c, right);
                mma_pair(p[2 * j], p[2 * j + 1], q_part[c], right);
                load_right_t<DIM>(values, 16 * j, 16 * c, right);
                mma_pair(ds[2 * j], ds[2 * j + 1], d_out_part[c], right);
            }
#pragma unroll
        for (u32 j = 0; j < KEYS / 8; j++)
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                const u32 key = first + 8 * j + lane % 4 * 2 + i % 2, last = at.first + warp_row + lane / 4 + i / 2 * 8 + s.shift();
                ds[j][i] = element<exp_of_negative>(key <= last, p[j][i] * scale - lse_of[i / 2], ds[j][i], delta_of[i / 2]).ds;
            }
#pragma unroll
        for (u32 i = 0; i < KEYS / 16; i++) {
            u32 left[4], right[4];
            as_left(ds[2 * i], ds[2 * i + 1], left);
#pragma unroll
            for (u32 c = 0; c < DIM / 16; c++) {
                load_right<DIM>(keys, 16 * i, 16 * c, right);
                mma_pair(sums[2 * c], sums[2 * c + 1], left, right);
            }
        }
    }
    if (warp_row >= rows) return;
    const float scales[2] = {scale, scale};
    write_rows(sums, scales, rows - warp_row, s.d, s.q_stride(), aligned, add, dq + q_at + warp_row * s.q_stride());
}

// ---- f32. Blocks of 32 at DIM 64 and of 16 at 128: four tiles of vectors and two of scores in 48 KiB.

template <u32 DIM> constexpr u32 PER_THREAD = 128 / DIM; // rows of a thread

template <u32 DIM>
DEVICE void backward_kv(const float *q, const float *k, const float *v, const float *d_out, const float *lse, const float *delta, const Shape &s,
                        float scale, bool aligned, bool add, float *dk, float *dv) {
    constexpr u32 R = PER_THREAD<DIM>, BLOCK = 16 * R, TILE = BLOCK * STRIDE<DIM>;
    __shared__ __align__(16) float keys[TILE], values[TILE], queries[TILE], d_outs[TILE];
    __shared__ float ps[BLOCK * (BLOCK + 1)], dss[BLOCK * (BLOCK + 1)]; // [keys, queries]
    const Place at = place_of_keys(s, BLOCK);
    const u32 x = threadIdx.x % 16, y = threadIdx.x / 16, rows = min(BLOCK, s.kv_len - at.first);
    const u64 kv_at = s.kv_at(at.b, at.first, at.head);
    copy_rows<BLOCK, DIM>(k + kv_at, s.kv_stride(), rows, s.d, aligned, keys);
    copy_rows<BLOCK, DIM>(v + kv_at, s.kv_stride(), rows, s.d, aligned, values);

    const u32 first_query = (at.first > s.shift() ? at.first - s.shift() : 0) / BLOCK * BLOCK;
    float dk_sums[R][DIM / 16] = {}, dv_sums[R][DIM / 16] = {};
#pragma unroll 1
    for (u32 h = at.head * s.group(); h < (at.head + 1) * s.group(); h++) {
#pragma unroll 1
        for (u32 t0 = first_query; t0 < s.q_len; t0 += BLOCK) {
            const u32 left = min(BLOCK, s.q_len - t0);
            const u64 q_at = s.q_at(at.b, t0, h), row_at = s.row_at(at.b, h, 0);
            __syncthreads();
            copy_rows<BLOCK, DIM>(q + q_at, s.q_stride(), left, s.d, aligned, queries);
            copy_rows<BLOCK, DIM>(d_out + q_at, s.q_stride(), left, s.d, aligned, d_outs);
            __syncthreads();
            float p[R][R], dp[R][R];
            dots<R, DIM>(keys, queries, p);
            dots<R, DIM>(values, d_outs, dp);
#pragma unroll
            for (u32 j = 0; j < R; j++) {
                const u32 t = t0 + x + 16 * j;
                const bool exists = t < s.q_len;
                const float lse_t = exists ? lse[row_at + t] : infinity(), delta_t = exists ? delta[row_at + t] : 0.0f;
#pragma unroll
                for (u32 i = 0; i < R; i++) {
                    const Element e = element<exp_f32>(at.first + y + 16 * i <= t + s.shift(), p[i][j] * scale - lse_t, dp[i][j], delta_t);
                    ps[(y + 16 * i) * (BLOCK + 1) + x + 16 * j] = e.p;
                    dss[(y + 16 * i) * (BLOCK + 1) + x + 16 * j] = e.ds;
                }
            }
            __syncthreads();
            add_rows<R, DIM>(ps, d_outs, dv_sums);
            add_rows<R, DIM>(dss, queries, dk_sums);
        }
    }
    write_rows<R, DIM>(dk_sums, scale, rows, s.d, s.kv_stride(), aligned, add, dk + kv_at);
    write_rows<R, DIM>(dv_sums, 1.0f, rows, s.d, s.kv_stride(), aligned, add, dv + kv_at);
}

template <u32 DIM>
DEVICE void backward_q(const float *q, const float *k, const float *v, const float *d_out, const float *lse, const float *delta, const Shape &s,
                       float scale, bool aligned, bool add, float *dq) {
    constexpr u32 R = PER_THREAD<DIM>, BLOCK = 16 * R, TILE = BLOCK * STRIDE<DIM>;
    __shared__ __align__(16) float keys[TILE], values[TILE], queries[TILE], d_outs[TILE];
    __shared__ float dss[BLOCK * (BLOCK + 1)]; // [queries, keys]
    const Place at = place_of_queries(s, BLOCK);
    const u32 x = threadIdx.x % 16, y = threadIdx.x / 16, rows = min(BLOCK, s.q_len - at.first);
    const u64 kv_at = s.kv_at(at.b, 0, at.head / s.group()), q_at = s.q_at(at.b, at.first, at.head);
    copy_rows<BLOCK, DIM>(q + q_at, s.q_stride(), rows, s.d, aligned, queries);
    copy_rows<BLOCK, DIM>(d_out + q_at, s.q_stride(), rows, s.d, aligned, d_outs);

    const u32 visible = at.first + rows + s.shift();
    float sums[R][DIM / 16] = {};
#pragma unroll 1
    for (u32 first = 0; first < visible; first += BLOCK) {
        const u32 left = min(BLOCK, s.kv_len - first);
        const u64 from = kv_at + first * s.kv_stride();
        __syncthreads();
        copy_rows<BLOCK, DIM>(k + from, s.kv_stride(), left, s.d, aligned, keys);
        copy_rows<BLOCK, DIM>(v + from, s.kv_stride(), left, s.d, aligned, values);
        __syncthreads();
        float p[R][R], dp[R][R];
        dots<R, DIM>(queries, keys, p);
        dots<R, DIM>(d_outs, values, dp);
#pragma unroll
        for (u32 i = 0; i < R; i++) {
            const u32 row = y + 16 * i;
            const u64 row_at = s.row_at(at.b, at.head, at.first + row);
            const float lse_of = row < rows ? lse[row_at] : infinity(), delta_of = row < rows ? delta[row_at] : 0.0f;
#pragma unroll
            for (u32 j = 0; j < R; j++) {
                const u32 key = first + x + 16 * j;
                dss[row * (BLOCK + 1) + x + 16 * j] = element<exp_f32>(key <= at.first + row + s.shift(), p[i][j] * scale - lse_of, dp[i][j], delta_of).ds;
            }
        }
        __syncthreads();
        add_rows<R, DIM>(dss, keys, sums);
    }
    write_rows<R, DIM>(sums, scale, rows, s.d, s.q_stride(), aligned, add, dq + q_at);
}

// One block for a multiprocessor is enough to ask for: left to itself, ptxas for sm_120 saves registers for more, and spills.
#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads, 1)
#define SHAPE u32 q_len, u32 kv_len, u32 n_heads, u32 n_kv_heads, u32 d

#define DELTA(name, T)                                                                                                                          \
    KERNEL(256) name(const T *out, const T *d_out, SHAPE, u32 batch, u32 aligned, float *delta) {                                               \
        row_dots(out, d_out, Shape{q_len, kv_len, n_heads, n_kv_heads, d}, batch, aligned, delta);                                              \
    }
DELTA(attention_delta, float)
DELTA(attention_delta_bf16, bf16)

#define BACKWARD(name, T, dim, threads)                                                                                                         \
    KERNEL(threads)                                                                                                                             \
    attention_backward_kv_##name(const T *q, const T *k, const T *v, const T *d_out, const float *lse, const float *delta, SHAPE, float scale,  \
                                 u32 aligned, u32 add, T *dk, T *dv) {                                                                          \
        const Shape s = {q_len, kv_len, n_heads, n_kv_heads, d};                                                                                \
        backward_kv<dim>(q, k, v, d_out, lse, delta, s, scale, aligned, add, dk, dv);                                                           \
    }                                                                                                                                           \
    KERNEL(threads)                                                                                                                             \
    attention_backward_q_##name(const T *q, const T *k, const T *v, const T *d_out, const float *lse, const float *delta, SHAPE, float scale,   \
                                u32 aligned, u32 add, T *dq) {                                                                                  \
        const Shape s = {q_len, kv_len, n_heads, n_kv_heads, d};                                                                                \
        backward_q<dim>(q, k, v, d_out, lse, delta, s, scale, aligned, add, dq);                                                                \
    }
BACKWARD(64, float, 64, F32_THREADS)
BACKWARD(128, float, 128, F32_THREADS)
BACKWARD(bf16_64, bf16, 64, THREADS)
BACKWARD(bf16_128, bf16, 128, THREADS)
