// Elementwise arithmetic on equal lengths: kernels/src/elementwise.rs; and conversions between f32 and bf16.
#include "math.cuh"

constexpr u32 THREADS = 256;
constexpr u32 PER_THREAD = 8;

// dst[i] = op(a[i], b[i], dst[i]); an operation reads what it names.
template <class Op, bool READS_B, bool READS_DST>
DEVICE void map(Op op, const float *a, const float *b, u64 n, u32 aligned, float *dst) {
    const u64 i = ((u64)blockIdx.x * THREADS + threadIdx.x) * PER_THREAD;
    if (i >= n) return;
    const u32 len = n - i < PER_THREAD ? (u32)(n - i) : PER_THREAD;
    const Vec<8> as = load_part<8>(a + i, len, aligned);
    const Vec<8> bs = READS_B ? load_part<8>(b + i, len, aligned) : Vec<8>{};
    Vec<8> to = READS_DST ? load_part<8>(dst + i, len, aligned) : Vec<8>{};
#pragma unroll
    for (int j = 0; j < 8; j++) to.at[j] = op(as.at[j], bs.at[j], to.at[j]);
    store_part<8>(dst + i, len, aligned, to);
}

#define KERNEL extern "C" __global__ void __launch_bounds__(THREADS)

#define BINARY(NAME, EXPRESSION)                                                                                                          \
    struct NAME##_op {                                                                                                                    \
        __device__ __forceinline__ float operator()(float a, float b, float) const { return EXPRESSION; }                                 \
    };                                                                                                                                    \
    KERNEL NAME##_f32(const float *a, const float *b, u64 n, u32 aligned, float *dst) {                                                         \
        map<NAME##_op, true, false>({}, a, b, n, aligned, dst);                                                                           \
    }

BINARY(add, a + b)
BINARY(sub, a - b)
BINARY(mul, a *b)
BINARY(div, a / b)
// a is dy, b is x.
BINARY(relu_backward, a *relu(b).slope)
BINARY(silu_backward, a *silu(b).slope)
BINARY(gelu_backward, a *gelu(b).slope)
BINARY(relu2_backward, a *relu2(b).slope)
BINARY(tanh_backward, a *tanh_f32(b).slope)

#define UNARY(NAME, EXPRESSION)                                                                                                           \
    struct NAME##_op {                                                                                                                    \
        __device__ __forceinline__ float operator()(float a, float, float) const { return EXPRESSION; }                                   \
    };                                                                                                                                    \
    KERNEL NAME##_f32(const float *a, u64 n, u32 aligned, float *dst) {                                                                         \
        map<NAME##_op, false, false>({}, a, nullptr, n, aligned, dst);                                                                    \
    }

UNARY(relu, relu(a).value)
UNARY(silu, silu(a).value)
UNARY(gelu, gelu(a).value)
UNARY(relu2, relu2(a).value)
UNARY(tanh, tanh_f32(a).value)
UNARY(exp, exp_f32(a))

struct Axpy {
    float factor;
    __device__ __forceinline__ float operator()(float a, float, float old) const { return fmaf(factor, a, old); }
};

KERNEL axpy_f32(float factor, const float *a, u64 n, u32 aligned, float *dst) {
    map<Axpy, false, true>({factor}, a, nullptr, n, aligned, dst);
}

struct Scale {
    float factor;
    __device__ __forceinline__ float operator()(float a, float, float) const { return factor * a; }
};

KERNEL scale_f32(float factor, const float *a, u64 n, u32 aligned, float *dst) {
    map<Scale, false, false>({factor}, a, nullptr, n, aligned, dst);
}

template <class From, class To> DEVICE void cast(const From *a, u64 n, u32 aligned, To *dst) {
    const u64 i = ((u64)blockIdx.x * THREADS + threadIdx.x) * PER_THREAD;
    if (i >= n) return;
    const u32 len = n - i < PER_THREAD ? (u32)(n - i) : PER_THREAD;
    store_part<8>(dst + i, len, aligned, load_part<8>(a + i, len, aligned));
}

KERNEL narrow(const float *a, u64 n, u32 aligned, bf16 *dst) { cast(a, n, aligned, dst); }
KERNEL widen(const bf16 *a, u64 n, u32 aligned, float *dst) { cast(a, n, aligned, dst); }
