// Table look-up and its transpose: kernels/src/embedding.rs.
#include "common.cuh"

constexpr u32 THREADS = 256;

// out[n, :] = table[tokens[n], :]. A block takes a row. A kernel cannot refuse a token that the table does not have: its row becomes NaN.
template <class T> DEVICE void look_up(const T *table, const u32 *tokens, u32 vocab, u32 c, u32 aligned, float *out) {
    const u64 n = blockIdx.x;
    const u32 token = tokens[n];
    const bool known = token < vocab;
    const T *row = table + (u64)(known ? token : 0) * c;
    for (u32 i = threadIdx.x * 4; i < c; i += THREADS * 4) {
        Vec<4> v = load_part<4>(row + i, c - i, aligned);
        if (!known) {
#pragma unroll
            for (int j = 0; j < 4; j++) v.at[j] = __int_as_float(0x7FC00000);
        }
        store_part<4>(out + n * c + i, c - i, aligned, v);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    embedding(const float *table, const u32 *tokens, u32 vocab, u32 c, u32 aligned, float *out) {
    look_up(table, tokens, vocab, c, aligned, out);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    embedding_bf16(const bf16 *table, const u32 *tokens, u32 vocab, u32 c, u32 aligned, float *out) {
    look_up(table, tokens, vocab, c, aligned, out);
}

// d_table[tokens[n], :] += d_out[n, :], rows in order. The block at the first place of a token owns its row: it looks through the later places,
// 256 at a time, and adds their gradients in order; the blocks at those places see that they are not the first, and leave. No atomics, and
// the order of the sum is that of the rows. Each block takes 4 columns a thread, 1024 in all (blockIdx.y).
extern "C" __global__ void __launch_bounds__(THREADS)
    embedding_backward(const float *d_out, const u32 *tokens, u32 n, u32 vocab, u32 c, u32 aligned, float *d_table) {
    __shared__ u32 matches[THREADS / WARP];
    const u32 place = blockIdx.x, token = tokens[place], lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    if (token >= vocab) return;
    for (u32 i = 0; i < place; i += THREADS) {
        const u32 other = i + threadIdx.x;
        if (__syncthreads_or(other < place && tokens[other] == token)) return;
    }

    const u32 column = (blockIdx.y * THREADS + threadIdx.x) * 4, len = column < c ? c - column : 0;
    float *sum_at = d_table + (u64)token * c + column;
    Vec<4> sum = load_part<4>(sum_at, len, aligned);
    for (u32 i = place / THREADS * THREADS; i < n; i += THREADS) {
        const u32 other = i + threadIdx.x;
        const u32 found = __ballot_sync(ALL_LANES, other < n && tokens[other] == token);
        if (lane == 0) matches[warp] = found;
        __syncthreads();
        for (u32 w = 0; w < THREADS / WARP; w++) {
            for (u32 left = matches[w]; left != 0; left &= left - 1) {
                const u64 row = i + w * WARP + (__ffs(left) - 1);
                const Vec<4> d = load_part<4>(d_out + row * c + column, len, aligned);
#pragma unroll
                for (int j = 0; j < 4; j++) sum.at[j] += d.at[j];
            }
        }
        __syncthreads();
    }
    store_part<4>(sum_at, len, aligned, sum);
}
