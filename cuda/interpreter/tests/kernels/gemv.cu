// y = W x with W [rows, columns] in bf16, a warp a row, eight weights a lane and load; columns a multiple of 8.
static __device__ float low(unsigned w) { return __uint_as_float(w << 16); }
static __device__ float high(unsigned w) { return __uint_as_float(w & 0xffff0000u); }

extern "C" __global__ void __launch_bounds__(128) gemv(const uint4* __restrict__ w, const float4* __restrict__ x, float* y,
                                                       unsigned rows, unsigned columns) {
    unsigned row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    const uint4* w_row = w + (size_t)row * (columns / 8);
    float s = 0.0f;
    for (unsigned i = lane; i < columns / 8; i += 32) {
        uint4 eight;
        asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(eight.x), "=r"(eight.y), "=r"(eight.z), "=r"(eight.w) : "l"(w_row + i));
        float4 a = x[2 * i], b = x[2 * i + 1];
        s = fmaf(low(eight.x), a.x, s); s = fmaf(high(eight.x), a.y, s);
        s = fmaf(low(eight.y), a.z, s); s = fmaf(high(eight.y), a.w, s);
        s = fmaf(low(eight.z), b.x, s); s = fmaf(high(eight.z), b.y, s);
        s = fmaf(low(eight.w), b.z, s); s = fmaf(high(eight.w), b.w, s);
    }
    for (int offset = 16; offset > 0; offset >>= 1) s += __shfl_xor_sync(0xffffffffu, s, offset);
    if (lane == 0) y[row] = s;
}
