use super::{Place, place, with_float};
use crate::check::{expect_shape, reads, reads_float, rows_and_cols, writes};
use crate::{Beta, DType, Tensor};

/// `y = x / sqrt(mean(x^2) + eps) * weight` over the last axis; returns `(y, inv_rms)`, the second for the backward.
/// Shapes: x, y `[.., C]`; weight `[C]`; inv_rms `[N]`, N the number of rows.
#[track_caller]
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> (Tensor, Tensor) {
    rms_norm_as(DType::F32, x, weight, eps)
}

/// [`rms_norm`] with y of the element type `dtype`: rounded once to bf16, on a GPU, where products read it next.
#[track_caller]
pub fn rms_norm_as(dtype: DType, x: &Tensor, weight: &Tensor, eps: f32) -> (Tensor, Tensor) {
    let (n, c) = rows_and_cols("rms_norm", "x", x);
    expect_shape("rms_norm", "weight", weight, &[c]);
    let place = place("rms_norm", &[reads("x", x), reads("weight", weight)]);
    let mut y = place.stale(x.shape, dtype);
    let mut inv_rms = place.stale([n], DType::F32);
    let (x, weight) = (x.contiguous(), weight.contiguous());
    match place {
        Place::Cpu(team) => {
            assert!(dtype == DType::F32, "rms_norm: a result of {dtype} on the cpu, which makes f32 alone");
            kernels::rms_norm::rms_norm(&team, x.slice(), weight.slice(), eps, y.slice_mut(), inv_rms.slice_mut())
        }
        Place::Cuda(gpu) => with_float!(dtype, T => {
            let (y, inv_rms) = (y.cuda_slice_mut::<T>(), inv_rms.cuda_slice_mut());
            gpu.done(cuda::ops::rms_norm::rms_norm(x.cuda_slice(), weight.cuda_slice(), eps, y, inv_rms));
        }),
    }
    (y, inv_rms)
}

/// The gradients of [`rms_norm`]: dx is overwritten or added to as `dx_beta` says, d_weight is added to.
/// Shapes: float dy, and x, dx `[.., C]`; weight, d_weight `[C]`; inv_rms `[N]`.
#[track_caller]
pub fn rms_norm_backward(
    dy: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    inv_rms: &Tensor,
    dx_beta: Beta,
    dx: &mut Tensor,
    d_weight: &mut Tensor,
) {
    let op = "rms_norm_backward";
    let (n, c) = rows_and_cols(op, "x", x);
    expect_shape(op, "dy", dy, &x.shape);
    expect_shape(op, "dx", dx, &x.shape);
    expect_shape(op, "weight", weight, &[c]);
    expect_shape(op, "d_weight", d_weight, &[c]);
    expect_shape(op, "inv_rms", inv_rms, &[n]);
    let operands = [
        reads_float("dy", dy),
        reads("x", x),
        reads("weight", weight),
        reads("inv_rms", inv_rms),
        writes("dx", dx),
        writes("d_weight", d_weight),
    ];
    let place = place(op, &operands);
    let [dy, x, weight, inv_rms] = [dy, x, weight, inv_rms].map(Tensor::contiguous);
    match place {
        Place::Cpu(team) => {
            let (dy, x, weight, inv_rms) = (dy.slice(), x.slice(), weight.slice(), inv_rms.slice());
            let (dx, d_weight) = (dx.slice_mut(), d_weight.slice_mut());
            kernels::rms_norm::rms_norm_backward(&team, dy, x, weight, inv_rms, dx_beta, dx, d_weight);
        }
        Place::Cuda(gpu) => with_float!(dy.dtype, T => {
            use cuda::ops::rms_norm::rms_norm_backward;
            let (dy, x) = (dy.cuda_slice::<T>(), x.cuda_slice());
            let (weight, inv_rms) = (weight.cuda_slice(), inv_rms.cuda_slice());
            let (dx, d_weight) = (dx.cuda_slice_mut(), d_weight.cuda_slice_mut());
            gpu.done(rms_norm_backward(dy, x, weight, inv_rms, dx_beta, dx, d_weight));
        }),
    }
}
