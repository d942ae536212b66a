use super::{Place, place};
use crate::check::{expect_shape, reads, rows_and_cols, writes};
use crate::{Beta, DType, Tensor};

/// `y = x / sqrt(mean(x^2) + eps) * weight` over the last axis; returns `(y, inv_rms)`, the second for the backward.
/// Shapes: x, y `[.., C]`; weight `[C]`; inv_rms `[N]`, N the number of rows.
#[track_caller]
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> (Tensor, Tensor) {
    let (n, c) = rows_and_cols("rms_norm", "x", x);
    expect_shape("rms_norm", "weight", weight, &[c]);
    match place("rms_norm", &[reads("x", x), reads("weight", weight)]) {
        Place::Cpu(team) => {
            let mut y = Tensor::stale(x.shape, DType::F32);
            let mut inv_rms = Tensor::stale([n], DType::F32);
            let (x, weight) = (x.contiguous(), weight.contiguous());
            kernels::rms_norm::rms_norm(&team, x.slice(), weight.slice(), eps, y.slice_mut(), inv_rms.slice_mut());
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
    let op = "rms_norm_backward";
    let (n, c) = rows_and_cols(op, "x", x);
    expect_shape(op, "dy", dy, &x.shape);
    expect_shape(op, "dx", dx, &x.shape);
    expect_shape(op, "weight", weight, &[c]);
    expect_shape(op, "d_weight", d_weight, &[c]);
    expect_shape(op, "inv_rms", inv_rms, &[n]);
    let operands = [
        reads("dy", dy),
        reads("x", x),
        reads("weight", weight),
        reads("inv_rms", inv_rms),
        writes("dx", dx),
        writes("d_weight", d_weight),
    ];
    match place(op, &operands) {
        Place::Cpu(team) => kernels::rms_norm::rms_norm_backward(
            &team,
            dy.contiguous().slice(),
            x.contiguous().slice(),
            weight.contiguous().slice(),
            inv_rms.contiguous().slice(),
            dx_beta,
            dx.slice_mut(),
            d_weight.slice_mut(),
        ),
    }
}
