// Sum of squares of a row: grid-stride loads, warp shuffles, one value a warp through shared memory.
extern "C" __global__ void __launch_bounds__(256) row_sum_squares(const float* x, float* sum, unsigned columns) {
    __shared__ float partial[32];
    const float* row = x + (size_t)blockIdx.x * columns;
    float s = 0.0f;
    for (unsigned c = threadIdx.x; c < columns; c += blockDim.x) s = fmaf(row[c], row[c], s);
    for (int offset = 16; offset > 0; offset >>= 1) s += __shfl_xor_sync(0xffffffffu, s, offset);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = s;
    __syncthreads();
    if (threadIdx.x < 32) {
        s = threadIdx.x < blockDim.x / 32 ? partial[threadIdx.x] : 0.0f;
        for (int offset = 16; offset > 0; offset >>= 1) s += __shfl_xor_sync(0xffffffffu, s, offset);
        if (threadIdx.x == 0) sum[blockIdx.x] = s;
    }
}

// The same with the barrier forgotten: the interpreter's random order must find it.
extern "C" __global__ void __launch_bounds__(256) row_sum_squares_without_barrier(const float* x, float* sum, unsigned columns) {
    __shared__ float partial[32];
    const float* row = x + (size_t)blockIdx.x * columns;
    float s = 0.0f;
    for (unsigned c = threadIdx.x; c < columns; c += blockDim.x) s = fmaf(row[c], row[c], s);
    for (int offset = 16; offset > 0; offset >>= 1) s += __shfl_xor_sync(0xffffffffu, s, offset);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = s;
    if (threadIdx.x < 32) {
        s = threadIdx.x < blockDim.x / 32 ? partial[threadIdx.x] : 0.0f;
        for (int offset = 16; offset > 0; offset >>= 1) s += __shfl_xor_sync(0xffffffffu, s, offset);
        if (threadIdx.x == 0) sum[blockIdx.x] = s;
    }
}
