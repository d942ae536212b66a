// Reductions in a fixed order: kernels/src/reduce.rs. No atomics on floats: partial sums go to memory and are added in order.
#include "common.cuh"

constexpr u32 THREADS = 256;
constexpr u32 PER_THREAD = 32; // summed in f32, by one thread; their sums in f64

struct Plain {
    __device__ __forceinline__ float operator()(float x, float sum) const { return sum + x; }
};
struct Abs {
    __device__ __forceinline__ float operator()(float x, float sum) const { return sum + fabsf(x); }
};
struct Square {
    __device__ __forceinline__ float operator()(float x, float sum) const { return fmaf(x, x, sum); }
};

// partial[b]: of the elements b * THREADS * PER_THREAD onwards.
template <class Term> DEVICE void sum_block(Term term, const float *x, u64 n, u32 aligned, double *partial) {
    __shared__ double scratch[WARP];
    const u64 first = (u64)blockIdx.x * (THREADS * PER_THREAD);
    float sum = 0.0f;
#pragma unroll
    for (u32 i = 0; i < PER_THREAD; i += 4) {
        const u64 at = first + (i * THREADS + threadIdx.x * 4);
        const u32 len = at >= n ? 0 : n - at < 4 ? (u32)(n - at) : 4;
        const Vec<4> v = load_part<4>(x + at, len, aligned);
#pragma unroll
        for (int j = 0; j < 4; j++) sum = term(v.at[j], sum);
    }
    const double total = block_sum((double)sum, scratch);
    if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

#define KERNEL extern "C" __global__ void __launch_bounds__(THREADS)

KERNEL sum(const float *x, u64 n, u32 aligned, double *partial) { sum_block(Plain{}, x, n, aligned, partial); }
KERNEL sum_abs(const float *x, u64 n, u32 aligned, double *partial) { sum_block(Abs{}, x, n, aligned, partial); }
KERNEL sum_squares(const float *x, u64 n, u32 aligned, double *partial) { sum_block(Square{}, x, n, aligned, partial); }

// total[0] = x[0] + x[1] + ... of f64, by one block; `add` says whether to what is there.
KERNEL sum_f64(const double *x, u64 n, u32 add, double *total) {
    __shared__ double scratch[WARP];
    double sum = 0.0;
    for (u64 i = threadIdx.x; i < n; i += THREADS) sum = sum + x[i];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) total[0] = add ? total[0] + sum : sum;
}

// y[0] = scale total[0], rounded to f32.
KERNEL round_total(const double *total, double scale, float *y) {
    if (threadIdx.x == 0) y[0] = (float)(scale * total[0]);
}

constexpr u32 COLUMNS = 32, LANES_OF_ROWS = THREADS / COLUMNS;

// sums[y, c] = (add: old +) sum of x[n, c] over the rows y * rows_per_block onwards: strip blockIdx.x of 32 columns, blockIdx.y of the rows. Row r of
// them goes to lane r % 8, in order, and the lanes are added in order.
KERNEL sum_rows(const float *x, u32 n, u32 c, u32 rows_per_block, u32 add, float *sums) {
    __shared__ float lanes[LANES_OF_ROWS][COLUMNS];
    const u32 column = blockIdx.x * COLUMNS + threadIdx.x % COLUMNS, lane = threadIdx.x / COLUMNS;
    const u32 first = blockIdx.y * rows_per_block, last = min(first + rows_per_block, n);
    float sum = 0.0f;
    if (column < c) {
#pragma unroll 8
        for (u32 row = first + lane; row < last; row += LANES_OF_ROWS) sum += x[(u64)row * c + column];
    }
    lanes[lane][threadIdx.x % COLUMNS] = sum;
    __syncthreads();
    if (lane == 0 && column < c) {
        float *to = sums + (u64)blockIdx.y * c + column;
        float total = add ? *to : 0.0f;
        for (u32 l = 0; l < LANES_OF_ROWS; l++) total += lanes[l][threadIdx.x];
        *to = total;
    }
}

// counts[f] += number of rows with g[n, f] > 0. Integers: the order of the additions does not matter.
KERNEL count_positive(const float *g, u32 n, u32 f, u32 rows_per_block, u32 *counts) {
    const u32 column = blockIdx.x * COLUMNS + threadIdx.x % COLUMNS, lane = threadIdx.x / COLUMNS;
    if (column >= f) return;
    const u32 first = blockIdx.y * rows_per_block, last = min(first + rows_per_block, n);
    u32 count = 0;
#pragma unroll 8
    for (u32 row = first + lane; row < last; row += LANES_OF_ROWS) count += g[(u64)row * f + column] > 0.0f ? 1 : 0;
    if (count > 0) atomicAdd(counts + column, count);
}

// position[0] = the least i for which x[i] is infinite or NaN, if that is less than what is there. Integers: the order does not matter.
KERNEL first_non_finite(const float *x, u64 n, u64 *position) {
    const u64 first = (u64)blockIdx.x * (THREADS * PER_THREAD) + threadIdx.x;
    for (u32 i = 0; i < PER_THREAD; i++) {
        const u64 at = first + i * THREADS;
        if (at >= n) return;
        if (!(fabsf(x[at]) < __int_as_float(0x7F800000))) {
            atomicMin(position, at);
            return;
        }
    }
}
