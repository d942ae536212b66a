// Exponential, sigmoid, SILU, GELU and tanh: kernels/src/simd/math.rs operation for operation, with the accuracies stated there. The bits are
// those of the CPU's levels with fused multiply-adds. What the constants are and where they come from is said there.
#pragma once
#include "common.cuh"

struct ValueAndSlope {
    float value, slope;
};

// v 2^n for -150 <= n <= 128, rounded once: both factors are normal numbers, and the first product is exact.
DEVICE float mul_pow2(float v, float n) {
    const int whole = (int)n, half = whole / 2;
    return v * __int_as_float((half + 127) << 23) * __int_as_float((whole - half + 127) << 23);
}

// x = n ln 2 + r.
DEVICE void reduce_exp(float x, float &n, float &r) {
    n = rintf(x * 1.44269504f);
    r = fmaf(n, -0.69314575f, x);
    r = fmaf(n, -1.4286068e-6f, r);
}

// e^r for |r| <= ln 2 / 2 and a little more.
DEVICE float exp_mantissa(float r) {
    float p = 1.3814608e-3f;
    p = fmaf(p, r, 8.368717e-3f);
    p = fmaf(p, r, 4.166839e-2f);
    p = fmaf(p, r, 1.6666521e-1f);
    p = fmaf(p, r, 4.9999993e-1f);
    p = fmaf(p, r, 1.0f);
    return fmaf(p, r, 1.0f);
}

// 2^n e^r.
DEVICE float exp_reduced(float n, float r) { return mul_pow2(exp_mantissa(r), n); }

// e^x within 0.91 ULP. NaN passes through the comparisons.
DEVICE float exp_f32(float x) {
    x = x < -104.0f ? -104.0f : x;
    x = x > 89.0f ? 89.0f : x;
    float n, r;
    reduce_exp(x, n, r);
    return exp_reduced(n, r);
}

// RELU and the identity, which are one for x >= 0. NaN gives NaN twice, -0 gives -0.
DEVICE ValueAndSlope relu(float x) {
    const float value = 0.0f > x ? 0.0f : x;
    return {value, x > 0.0f ? 1.0f : value};
}

DEVICE ValueAndSlope relu2(float x) {
    const float value = 0.0f > x ? 0.0f : x;
    return {value * value, value + value};
}

DEVICE ValueAndSlope silu(float x) {
    const float minus_abs = x < 0.0f - x ? x : 0.0f - x;
    const float e = exp_f32(minus_abs);
    const float large = 1.0f / (1.0f + e), small = e * large;
    const float sigmoid = x < 0.0f ? small : large, complement = x < 0.0f ? large : small;
    const float value = x * sigmoid;
    return {value, fmaf(value, complement, sigmoid)};
}

DEVICE ValueAndSlope gelu(float x) {
    const float above = -14.5f > x ? -14.5f : x;
    const float near = 14.5f < above ? 14.5f : above;
    const float z = near > 0.0f - near ? near : 0.0f - near;
    const float inverse = 1.0f / (z + 3.5f);
    const float t = (z - 3.5f) * inverse;
    const float P[10] = {9.4445255e-5f, 4.0619247e-4f,  -4.733481e-4f, -3.1556087e-3f, 6.4835777e-3f,
                         1.7398942e-2f, -1.1605137e-1f, 3.1542593e-1f, -5.6556183e-1f, 7.4441606e-1f};
    float p = P[0];
#pragma unroll
    for (int i = 1; i < 10; i++) p = fmaf(p, t, P[i]);

    const float coarse = rintf(z * 256.0f) * (1.0f / 256.0f);
    const float fine = z - coarse, sum = z + coarse;
    float n, r;
    reduce_exp(coarse * coarse * -0.5f, n, r);
    const float e = exp_reduced(n, r + fine * sum * -0.5f);

    const float small = e * (p * inverse);
    const float tail = x < 0.0f ? small : 1.0f - small;
    const float square = near * near;
    const float S[6] = {-7.654222e-6f, 1.1348641e-4f, -1.18633e-3f, 9.973323e-3f, -6.649036e-2f, 3.989423e-1f};
    float q = S[0];
#pragma unroll
    for (int i = 1; i < 6; i++) q = fmaf(q, square, S[i]);
    const float phi = z < 1.0f ? fmaf(near, q, 0.5f) : tail;
    const float left = e * (p * fmaf(t, -0.5f, -0.5f));
    const float value = above < -1.0f ? left : above * phi;
    return {value, fmaf(near, e * 0.3989423f, phi)};
}

DEVICE ValueAndSlope tanh_f32(float x) {
    const float minus_abs = x < 0.0f - x ? x : 0.0f - x;
    const float e = exp_f32(minus_abs + minus_abs);
    const float inverse = 1.0f / (1.0f + e), share = e * inverse;
    float large = fmaf(-2.0f, share, 1.0f);
    large = x < 0.0f ? 0.0f - large : large;
    const float square = x * x;
    float p = -6.2742317e-3f;
    p = fmaf(p, square, 2.1071674e-2f);
    p = fmaf(p, square, -5.385231e-2f);
    p = fmaf(p, square, 1.3332586e-1f);
    p = fmaf(p, square, -3.3333316e-1f);
    const float small = fmaf(x * square, p, x);
    return {-0.55f < minus_abs ? small : large, 4.0f * (share * inverse)};
}

// ln x of a positive f32, in f64 to some 1e-15: x = 2^e m with m in sqrt(1/2) .. sqrt(2), ln m = 2 artanh((m - 1) / (m + 1)), whose series is
// cut where its terms are below 2^-55. NaN and infinity give themselves.
DEVICE double log_f64(float x) {
    if (!(x < __int_as_float(0x7F800000))) return x;
    const u32 bits = __float_as_uint(x);
    int e = (int)(bits >> 23) - 127;
    double m = __uint_as_float((bits & 0x7FFFFFu) | 0x3F800000u);
    if (m > 1.4142135623730951) {
        m = m * 0.5;
        e = e + 1;
    }
    const double s = (m - 1.0) / (m + 1.0), square = s * s;
    double sum = 1.0 / 19.0;
#pragma unroll
    for (int k = 17; k >= 1; k -= 2) sum = fma(sum, square, 1.0 / k);
    return fma((double)e, 0.69314718055994531, 2.0 * s * sum);
}
