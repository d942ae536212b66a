use super::{Place, expect_shape, place, rows_and_cols};
use crate::{Beta, DType, Tensor};

/// `y = x / sqrt(mean(x^2) + eps) * weight` over the last axis; returns `(y, inv_rms)`, the second for the backward.
/// Shapes: x, y `[.., C]`; weight `[C]`; inv_rms `[N]`, N the number of rows.
#[track_caller]
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> (Tensor, Tensor) {
    let (n, c) = rows_and_cols("rms_norm", "x", x);
    expect_shape("rms_norm", "weight", weight, &[c]);
    match place("rms_norm", &[x, weight]) {
        Place::Cpu(team) => {
            let mut y = Tensor::stale(x.shape, DType::F32);
            let mut inv_rms = Tensor::stale([n], DType::F32);
            let x = x.contiguous();
            kernels::rms_norm::rms_norm(
                &team,
                x.slice(),
                weight.contiguous().slice(),
                eps,
                y.slice_mut(),
                inv_rms.slice_mut(),
            );
            (y, inv_rms)
        }
    }
}

/// The gradients of [`rms_norm`]: dx is overwritten or added to as `dx_beta` says, d_weight is added to.
/// Shapes: dy, x, dx `[.., C]`; weight, d_weight `[C]`; inv_rms `[N]`.
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
    let (n, c) = rows_and_cols("rms_norm_backward", "x", x);
    expect_shape("rms_norm_backward", "dy", dy, &x.shape);
    expect_shape("rms_norm_backward", "dx", dx, &x.shape);
    expect_shape("rms_norm_backward", "weight", weight, &[c]);
    expect_shape("rms_norm_backward", "d_weight", d_weight, &[c]);
    expect_shape("rms_norm_backward", "inv_rms", inv_rms, &[n]);
    match place("rms_norm_backward", &[dy, x, weight, inv_rms, dx, d_weight]) {
        Place::Cpu(team) => kernels::rms_norm::rms_norm_backward(
            &team,
            dy.contiguous().slice(),
            x.contiguous().slice(),
            weight.contiguous().slice(),
            inv_rms.slice(),
            dx_beta,
            dx.slice_mut(),
            d_weight.slice_mut(),
        ),
    }
}
