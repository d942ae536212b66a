// The FFN of up to eight tokens, dense and sparse, with equal bits: kernels/src/sparse/{ffn,batch}.rs. gate, up and down_t are [F, C]: a neuron is one row
// in each.
//
// Neurons are cut into tiles of 64 by their index. Three launches:
//   ffn_gate     a block for each tile: g = gate x, psi(g), and the tile's list of the neurons that any token uses (compacted: no atomics, in order)
//   ffn_up_down  a block for each tile: h_i = psi(g_i) * (up_i . x), then sum_i h_i * down_t_i into the tile's rows of sums, in the order of i
//   ffn_sum      the rows of sums, added in a fixed order
// A neuron that a token leaves out would add a zero to its tile's sum, and a tile that it leaves out a row of zeros: the dense FFN, which lists all
// neurons, has the same bits. So has a token alone: each adds its own neurons alone, in their order.
#include "dot.cuh"
#include "psi.cuh"

constexpr u32 THREADS = 256, WARPS = THREADS / WARP;
constexpr u32 TILE = 64;
constexpr u32 MAX_TILES = 1024;

// An entry of a list: a neuron, and a bit for each token that uses it.
constexpr u32 NEURON_BITS = 24;
DEVICE u32 neuron_of(u32 entry) { return entry & ((1u << NEURON_BITS) - 1); }
DEVICE u32 users_of(u32 entry) { return entry >> NEURON_BITS; }

// What a tile found, in four arrays of `tiles` each: entries of its list; a bit for each token that uses any neuron of it; pairs of a token and a
// neuron whose psi(g) is not 0; neurons whose psi(g) is not 0 for any token.
struct Counts {
    u32 *entries, *users, *active, *any;
    __device__ __forceinline__ Counts(u32 *counts, u32 tiles) : entries(counts), users(counts + tiles), active(counts + 2 * tiles), any(counts + 3 * tiles) {}
};

// The list of a tile begins at number tile * TILE of `neurons`, its psi(g) at N times that of `values`, those of an entry's tokens one beside the other.
// The draws of token t are those of position first_token + positions[t] and of step + samples[t].
template <u32 N, class T>
DEVICE void gate_tile(const Any &psi, const u32 *positions, const u32 *samples, u32 all, const u32 *all_too, const T *gate, const float *x,
                      u32 n, u32 d_ff, u32 c, u32 aligned, u32 *neurons, float *values, u32 *counts) {
    __shared__ float g[N][TILE];
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, first = blockIdx.x * TILE, len = min(TILE, d_ff - first);
    for (u32 i = warp; i < len; i += WARPS) {
        float dots[N];
        warp_dots<N>(gate + (u64)(first + i) * c, x, n, c, aligned, dots);
#pragma unroll
        for (u32 t = 0; t < N; t++)
            if (lane == 0) g[t][i] = dots[t];
    }
    __syncthreads();
    if (warp > 0) return;
    const bool dense = all || all_too[0];
    u32 entries = 0, users = 0, active = 0, any = 0;
#pragma unroll 1
    for (u32 start = 0; start < TILE; start += WARP) {
        const u32 i = start + lane;
        u32 used = 0;
        if (i < len)
            for (u32 t = 0; t < n; t++) {
                // A NaN is in use, so that it reaches the output.
                if (dense || !(g[t][i] <= 0.0f)) used |= 1u << t;
            }
        const u32 listed = __ballot_sync(ALL_LANES, used != 0);
        const u32 place = first + entries + __popc(listed & ((1u << lane) - 1));
        if (used) neurons[place] = (first + i) | used << NEURON_BITS;
        u32 nonzero = 0;
#pragma unroll 1
        for (u32 t = 0; t < n; t++) {
            if (!(used >> t & 1)) continue;
            Any own = psi;
            own.site.first_token += positions[t], own.site.step += samples[t];
            const float value = own.eval(0, first + i, g[t][i]).value;
            values[(u64)place * N + t] = value;
            if (value != 0.0f) nonzero++;
        }
        entries += __popc(listed), users |= used, active += nonzero, any += nonzero > 0;
    }
    active = warp_sum(active), any = warp_sum(any), users = __reduce_or_sync(ALL_LANES, users);
    if (lane > 0) return;
    const Counts to(counts, gridDim.x);
    to.entries[blockIdx.x] = entries, to.users[blockIdx.x] = users, to.active[blockIdx.x] = active, to.any[blockIdx.x] = any;
}

template <u32 N, class T>
DEVICE void up_down_tile(const T *up, const T *down_t, const float *x, u32 n, u32 c, u32 aligned, const u32 *neurons, const float *values,
                         u32 *counts, float *sums) {
    __shared__ float h[TILE][N];
    __shared__ u32 list[TILE];
    const Counts of(counts, gridDim.x);
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, first = blockIdx.x * TILE, count = of.entries[blockIdx.x];
    if (count == 0) return;
    for (u32 i = threadIdx.x; i < count; i += THREADS) list[i] = neurons[first + i];
    __syncthreads();
    // The rows of down_t are known too: they come into the L2 while those of up are summed.
    constexpr u32 LINE = 128 / sizeof(T);
    for (u32 i = warp; i < count; i += WARPS) {
        const T *row = down_t + (u64)neuron_of(list[i]) * c;
        for (u32 k = lane * LINE; k < c; k += WARP * LINE) asm volatile("prefetch.global.L2 [%0];" ::"l"(row + k));
    }
    for (u32 i = warp; i < count; i += WARPS) {
        float u[N];
        warp_dots<N>(up + (u64)neuron_of(list[i]) * c, x, n, c, aligned, u);
#pragma unroll
        for (u32 t = 0; t < N; t++)
            if (lane == 0 && (users_of(list[i]) >> t & 1)) h[i][t] = values[(u64)(first + i) * N + t] * u[t];
    }
    __syncthreads();

    // Eight columns a thread; some rows at a time in flight, added in order, each for the tokens that use it.
    constexpr u32 ROWS = N <= 4 ? 4 : 2;
    const u32 users = of.users[blockIdx.x];
    for (u32 column = threadIdx.x * 8; column < c; column += THREADS * 8) {
        const u32 left = c - column;
        Vec<8> sum[N] = {};
        auto add = [&](u32 i, const Vec<8> &row) {
#pragma unroll
            for (u32 t = 0; t < N; t++) {
                if (N > 1 && !(users_of(list[i]) >> t & 1)) continue;
#pragma unroll
                for (int j = 0; j < 8; j++) sum[t].at[j] = fmaf(h[i][t], row.at[j], sum[t].at[j]);
            }
        };
        u32 i = 0;
        for (; i + ROWS <= count; i += ROWS) {
            Vec<8> rows[ROWS];
#pragma unroll
            for (u32 r = 0; r < ROWS; r++) rows[r] = load_part<8>(down_t + (u64)neuron_of(list[i + r]) * c + column, left, aligned);
#pragma unroll
            for (u32 r = 0; r < ROWS; r++) add(i + r, rows[r]);
        }
        for (; i < count; i++) add(i, load_part<8>(down_t + (u64)neuron_of(list[i]) * c + column, left, aligned));
#pragma unroll
        for (u32 t = 0; t < N; t++)
            if (users >> t & 1) store_part<8>(sums + ((u64)blockIdx.x * n + t) * c + column, left, aligned, sum[t]);
    }
}

#define KERNEL extern "C" __global__ void

#define KERNELS(T, N, SUFFIX)                                                                                                             \
    KERNEL __launch_bounds__(THREADS, BLOCKS<N>) ffn_gate##SUFFIX(u32 key0, u32 key1, u32 first_token, u32 layer_and_stream, u32 step, u32 threshold, u32 negative0,            \
                            u32 negative1, u32 positive, const u32 *positions, const u32 *samples, u32 all, const u32 *all_too,           \
                            const T *gate, const float *x, u32 n, u32 d_ff, u32 c, u32 aligned, u32 *neurons, float *values,              \
                            u32 *counts) {                                                                                                \
        const Any psi{{key0, key1, first_token, layer_and_stream, step}, threshold, negative0, negative1, positive};                      \
        gate_tile<N>(psi, positions, samples, all, all_too, gate, x, n, d_ff, c, aligned, neurons, values, counts);                       \
    }                                                                                                                                     \
    KERNEL __launch_bounds__(THREADS, BLOCKS<N>) ffn_up_down##SUFFIX(const T *up, const T *down_t, const float *x, u32 n, u32 c, u32 aligned, const u32 *neurons,               \
                               const float *values, u32 *counts, float *sums) {                                                           \
        up_down_tile<N>(up, down_t, x, n, c, aligned, neurons, values, counts, sums);                                                     \
    }

// In the names: for how many tokens at most.
KERNELS(float, 1, _1)
KERNELS(float, 2, _2)
KERNELS(float, 4, _4)
KERNELS(float, 8, _8)
KERNELS(bf16, 1, _bf16_1)
KERNELS(bf16, 2, _bf16_2)
KERNELS(bf16, 4, _bf16_4)
KERNELS(bf16, 8, _bf16_8)

constexpr u32 COLUMNS = 32, LANES_OF_TILES = THREADS / COLUMNS;

// y[t] = (add: old y[t] +) the sum of token t's rows of sums [tiles, n, C], of the tiles of which it uses neurons: tile i goes to lane i % 8, in order, and the
// lanes are added in order. t is blockIdx.y. totals: active pairs, and neurons that are active for any token, over all tiles.
KERNEL __launch_bounds__(THREADS) ffn_sum(const float *sums, u32 *counts, u32 tiles, u32 c, u32 add, float *y, u32 *totals) {
    __shared__ bool used[MAX_TILES];
    __shared__ float lanes[LANES_OF_TILES][COLUMNS];
    __shared__ u32 scratch[2][WARP];
    const Counts of(counts, tiles);
    const u32 column = blockIdx.x * COLUMNS + threadIdx.x % COLUMNS, lane = threadIdx.x / COLUMNS, n = gridDim.y, token = blockIdx.y;
    for (u32 t = threadIdx.x; t < tiles; t += THREADS) used[t] = of.users[t] >> token & 1;
    __syncthreads();
    float sum = 0.0f;
    if (column < c) {
#pragma unroll 8
        for (u32 t = lane; t < tiles; t += LANES_OF_TILES)
            if (used[t]) sum += sums[((u64)t * n + token) * c + column];
    }
    lanes[lane][threadIdx.x % COLUMNS] = sum;
    __syncthreads();
    if (lane == 0 && column < c) {
        float total = 0.0f;
        for (u32 l = 0; l < LANES_OF_TILES; l++) total += lanes[l][threadIdx.x];
        float *to = y + (u64)token * c + column;
        *to = add ? *to + total : total;
    }
    if (blockIdx.x > 0 || token > 0) return;
    u32 active = 0, any = 0;
    for (u32 t = threadIdx.x; t < tiles; t += THREADS) active += of.active[t], any += of.any[t];
    active = block_sum(active, scratch[0]), any = block_sum(any, scratch[1]);
    if (threadIdx.x == 0) totals[0] = active, totals[1] = any;
}
