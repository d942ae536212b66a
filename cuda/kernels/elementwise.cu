// Elementwise arithmetic on equal lengths: kernels/src/elementwise.rs; and conversions between f32 and bf16.
#include "math.cuh"

constexpr u32 THREADS = 256;
constexpr u32 PER_THREAD = 8, AT_ONCE = 4;

// The elements of a thread: four, and four others THREADS * 4 further on.
struct Place {
    u64 at;
    u32 len;

    __device__ __forceinline__ Place(u32 part, u64 n) {
        at = (u64)blockIdx.x * (THREADS * PER_THREAD) + (part * THREADS + threadIdx.x) * AT_ONCE;
        len = at >= n ? 0 : n - at < AT_ONCE ? (u32)(n - at) : AT_ONCE;
    }
};

// dst[i] = op(a[i], b[i], dst[i]); an operation reads what it names.
template <class Op, bool READS_B, bool READS_DST>
DEVICE void map(Op op, const float *a, const float *b, u64 n, u32 aligned, float *dst) {
    Vec<4> as[2], bs[2], to[2];
#pragma unroll
    for (u32 part = 0; part < 2; part++) {
        const Place p(part, n);
        as[part] = load_part<4>(a + p.at, p.len, aligned);
        bs[part] = READS_B ? load_part<4>(b + p.at, p.len, aligned) : Vec<4>{};
        to[part] = READS_DST ? load_part<4>(dst + p.at, p.len, aligned) : Vec<4>{};
    }
#pragma unroll
    for (u32 part = 0; part < 2; part++) {
        const Place p(part, n);
#pragma unroll
        for (int j = 0; j < 4; j++) to[part].at[j] = op(as[part].at[j], bs[part].at[j], to[part].at[j]);
        store_part<4>(dst + p.at, p.len, aligned, to[part]);
    }
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

// As in silu of math.cuh.
DEVICE float sigmoid_of(float x) {
    const float minus_abs = x < 0.0f - x ? x : 0.0f - x;
    const float e = exp_f32(minus_abs);
    const float large = 1.0f / (1.0f + e);
    return x < 0.0f ? e * large : large;
}

// ln x, rounded from f64: -inf at 0, NaN below. Subnormal numbers are scaled into the range of log_f64.
DEVICE float log_of(float x) {
    if (x == 0.0f) return __int_as_float(0xFF800000);
    if (x < 0.0f) return __int_as_float(0x7FC00000);
    const bool tiny = x < 1.17549435e-38f;
    const double log = log_f64(tiny ? x * 16777216.0f : x);
    return (float)(tiny ? log - 24.0 * 0.69314718055994531 : log);
}

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
UNARY(log, log_of(a))
UNARY(sigmoid, sigmoid_of(a))

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

// dst = a + b of other types than f32, computed in f32 and rounded once.
template <class A, class B, class D> DEVICE void add_mixed(const A *a, const B *b, u64 n, u32 aligned, D *dst) {
    Vec<4> as[2], bs[2];
#pragma unroll
    for (u32 part = 0; part < 2; part++) {
        const Place p(part, n);
        as[part] = load_part<4>(a + p.at, p.len, aligned);
        bs[part] = load_part<4>(b + p.at, p.len, aligned);
    }
#pragma unroll
    for (u32 part = 0; part < 2; part++) {
        const Place p(part, n);
#pragma unroll
        for (int j = 0; j < 4; j++) as[part].at[j] += bs[part].at[j];
        store_part<4>(dst + p.at, p.len, aligned, as[part]);
    }
}

KERNEL add_bf16(const bf16 *a, const bf16 *b, u64 n, u32 aligned, bf16 *dst) { add_mixed(a, b, n, aligned, dst); }
KERNEL add_f32_bf16(const float *a, const bf16 *b, u64 n, u32 aligned, float *dst) { add_mixed(a, b, n, aligned, dst); }

template <class From, class To> DEVICE void cast(const From *a, u64 n, u32 aligned, To *dst) {
    Vec<4> as[2];
#pragma unroll
    for (u32 part = 0; part < 2; part++) {
        const Place p(part, n);
        as[part] = load_part<4>(a + p.at, p.len, aligned);
    }
#pragma unroll
    for (u32 part = 0; part < 2; part++) {
        const Place p(part, n);
        store_part<4>(dst + p.at, p.len, aligned, as[part]);
    }
}

KERNEL narrow(const float *a, u64 n, u32 aligned, bf16 *dst) { cast(a, n, aligned, dst); }
KERNEL widen(const bf16 *a, u64 n, u32 aligned, float *dst) { cast(a, n, aligned, dst); }
