// The FFN of one token, dense and sparse, with equal bits: kernels/src/sparse/ffn.rs. gate, up and down_t are [F, C]: a neuron is one row in each.
//
// Neurons are cut into tiles of 64 by their index. Three launches:
//   ffn_gate     a block for each tile: g = gate x, psi(g), and the tile's list of the neurons in use (compacted: no atomics, in order)
//   ffn_up_down  a block for each tile: h_i = psi(g_i) * (up_i . x), then sum_i h_i * down_t_i into the tile's row of sums, in the order of i
//   ffn_sum      the rows of sums, added in a fixed order
// A neuron that is left out would add a zero to its tile's sum, and a tile that is left out a row of zeros: the dense FFN, which lists all
// neurons, has the same bits.
#include "dot.cuh"
#include "psi.cuh"

constexpr u32 THREADS = 256, WARPS = THREADS / WARP;
constexpr u32 TILE = 64;
constexpr u32 MAX_TILES = 1024;

// The neurons in use of a tile begin at number tile * TILE of `neurons` and of `values`, psi(g); counts[tile] says how many they are.
template <class T>
DEVICE void gate_tile(const Any &psi, u32 all, const T *gate, const float *x, u32 d_ff, u32 c, u32 aligned, u32 *neurons, float *values,
                      u32 *counts) {
    __shared__ float g[TILE];
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, first = blockIdx.x * TILE, len = min(TILE, d_ff - first);
    for (u32 i = warp; i < len; i += WARPS) {
        const float dot = warp_dot(gate + (u64)(first + i) * c, x, c, aligned);
        if (lane == 0) g[i] = dot;
    }
    __syncthreads();
    if (warp > 0) return;
    u32 count = 0;
    for (u32 start = 0; start < TILE; start += WARP) {
        const u32 i = start + lane;
        const float gi = i < len ? g[i] : 0.0f;
        // A NaN is in use, so that it reaches the output.
        const bool used = i < len && (all || !(gi <= 0.0f));
        const u32 mask = __ballot_sync(ALL_LANES, used);
        if (used) {
            const u32 place = first + count + __popc(mask & ((1u << lane) - 1));
            neurons[place] = first + i;
            values[place] = psi.eval(0, first + i, gi).value;
        }
        count += __popc(mask);
    }
    if (lane == 0) counts[blockIdx.x] = count;
}

template <class T>
DEVICE void up_down_tile(const T *up, const T *down_t, const float *x, u32 c, u32 aligned, const u32 *neurons, const float *values,
                         const u32 *counts, float *sums) {
    __shared__ float h[TILE];
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, first = blockIdx.x * TILE, count = counts[blockIdx.x];
    if (count == 0) return;
    // The rows of down_t are known too: they come into the L2 while those of up are summed.
    constexpr u32 LINE = 128 / sizeof(T);
    for (u32 i = warp; i < count; i += WARPS) {
        const T *row = down_t + (u64)neurons[first + i] * c;
        for (u32 k = lane * LINE; k < c; k += WARP * LINE) asm volatile("prefetch.global.L2 [%0];" ::"l"(row + k));
    }
    for (u32 i = warp; i < count; i += WARPS) {
        const float u = warp_dot(up + (u64)neurons[first + i] * c, x, c, aligned);
        if (lane == 0) h[i] = values[first + i] * u;
    }
    __syncthreads();

    // Eight columns a thread; four rows at a time in flight, added in order.
    constexpr u32 ROWS = 4;
    for (u32 column = threadIdx.x * 8; column < c; column += THREADS * 8) {
        const u32 n = c - column;
        Vec<8> sum = {};
        u32 i = 0;
        for (; i + ROWS <= count; i += ROWS) {
            Vec<8> rows[ROWS];
#pragma unroll
            for (u32 r = 0; r < ROWS; r++) rows[r] = load_part<8>(down_t + (u64)neurons[first + i + r] * c + column, n, aligned);
#pragma unroll
            for (u32 r = 0; r < ROWS; r++)
#pragma unroll
                for (int j = 0; j < 8; j++) sum.at[j] = fmaf(h[i + r], rows[r].at[j], sum.at[j]);
        }
        for (; i < count; i++) {
            const Vec<8> row = load_part<8>(down_t + (u64)neurons[first + i] * c + column, n, aligned);
#pragma unroll
            for (int j = 0; j < 8; j++) sum.at[j] = fmaf(h[i], row.at[j], sum.at[j]);
        }
        store_part<8>(sums + (u64)blockIdx.x * c + column, n, aligned, sum);
    }
}

#define KERNEL extern "C" __global__ void __launch_bounds__(THREADS)

#define KERNELS(T, SUFFIX)                                                                                                                \
    KERNEL ffn_gate##SUFFIX(u32 key0, u32 key1, u32 first_token, u32 layer_and_stream, u32 step, u32 threshold, u32 negative0,            \
                            u32 negative1, u32 positive, u32 all, const T *gate, const float *x, u32 d_ff, u32 c, u32 aligned,            \
                            u32 *neurons, float *values, u32 *counts) {                                                                   \
        const Any psi{{key0, key1, first_token, layer_and_stream, step}, threshold, negative0, negative1, positive};                      \
        gate_tile(psi, all, gate, x, d_ff, c, aligned, neurons, values, counts);                                                          \
    }                                                                                                                                     \
    KERNEL ffn_up_down##SUFFIX(const T *up, const T *down_t, const float *x, u32 c, u32 aligned, const u32 *neurons,                      \
                               const float *values, const u32 *counts, float *sums) {                                                     \
        up_down_tile(up, down_t, x, c, aligned, neurons, values, counts, sums);                                                           \
    }

KERNELS(float, )
KERNELS(bf16, _bf16)

constexpr u32 COLUMNS = 32, LANES_OF_TILES = THREADS / COLUMNS;

// y = (add: old y +) the sum of the rows of sums [tiles, C] whose tiles have neurons in use: tile t goes to lane t % 8, in order, and the lanes are added
// in order.
KERNEL ffn_sum(const float *sums, const u32 *counts, u32 tiles, u32 c, u32 add, float *y) {
    __shared__ u32 used[MAX_TILES];
    __shared__ float lanes[LANES_OF_TILES][COLUMNS];
    const u32 column = blockIdx.x * COLUMNS + threadIdx.x % COLUMNS, lane = threadIdx.x / COLUMNS;
    for (u32 t = threadIdx.x; t < tiles; t += THREADS) used[t] = counts[t];
    __syncthreads();
    float sum = 0.0f;
    if (column < c) {
#pragma unroll 8
        for (u32 t = lane; t < tiles; t += LANES_OF_TILES)
            if (used[t] > 0) sum += sums[(u64)t * c + column];
    }
    lanes[lane][threadIdx.x % COLUMNS] = sum;
    __syncthreads();
    if (lane == 0 && column < c) {
        float total = 0.0f;
        for (u32 l = 0; l < LANES_OF_TILES; l++) total += lanes[l][threadIdx.x];
        y[column] = add ? y[column] + total : total;
    }
}
