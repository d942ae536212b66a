// AdamW in one pass, and the factor that clips its gradient: kernels/src/adamw.rs. The factors of a step are computed on the host in f64, as there; the
// factor on the gradient is read from memory, so that nobody waits for its norm.
#include "common.cuh"

constexpr u32 THREADS = 256;
constexpr u32 PER_THREAD = 4;

// factor[0] = min(1, max_norm / sqrt(squares[0])), or 1 if max_norm is 0; NaN unless squares[0] and loss[0] are finite.
extern "C" __global__ void __launch_bounds__(WARP) clip_factor(const double *squares, const double *loss, double max_norm, float *factor) {
    const double infinity = __longlong_as_double(0x7FF0000000000000ll);
    const double norm = sqrt(squares[0]);
    const bool finite = norm < infinity && fabs(loss[0]) < infinity;
    const float clipped = max_norm > 0.0 && norm > max_norm ? (float)(max_norm / norm) : 1.0f;
    if (threadIdx.x == 0) factor[0] = finite ? clipped : __int_as_float(0x7FC00000);
}

// With a factor of NaN nothing changes.
extern "C" __global__ void __launch_bounds__(THREADS)
    adamw(const float *grad_scale, float beta1, float one_minus_beta1, float beta2, float one_minus_beta2, float decay, float minus_step_size,
          float root_correction, float eps, u64 n, u32 aligned, float *param, const float *grad, float *m, float *v) {
    const u64 i = ((u64)blockIdx.x * THREADS + threadIdx.x) * PER_THREAD;
    const float scale = grad_scale[0];
    if (i >= n || scale != scale) return;
    const u32 len = n - i < PER_THREAD ? (u32)(n - i) : PER_THREAD;
    Vec<4> p = load_part<4>(param + i, len, aligned), ms = load_part<4>(m + i, len, aligned), vs = load_part<4>(v + i, len, aligned);
    const Vec<4> gs = load_part<4>(grad + i, len, aligned);
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const float g = scale * gs.at[j];
        ms.at[j] = fmaf(beta1, ms.at[j], one_minus_beta1 * g);
        vs.at[j] = fmaf(beta2, vs.at[j], one_minus_beta2 * (g * g));
        const float denominator = fmaf(sqrtf(vs.at[j]), root_correction, eps);
        p.at[j] = fmaf(minus_step_size, ms.at[j] / denominator, decay * p.at[j]);
    }
    store_part<4>(param + i, len, aligned, p);
    store_part<4>(m + i, len, aligned, ms);
    store_part<4>(v + i, len, aligned, vs);
}
