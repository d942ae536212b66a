use super::{Place, place, with_float};
use crate::check::{expect_matrix, expect_shape, reads_float, reads_like, reads_u32, rows_and_cols, writes};
use crate::total::{At, Total};
use crate::{Beta, Tensor};
use kernels::lm_head_loss as kernel;

#[track_caller]
fn check(op: &str, x: &Tensor, weight: &Tensor, targets: &Tensor) -> usize {
    let (n, c) = rows_and_cols(op, "x", x);
    let [_, c_w] = expect_matrix(op, "weight", weight);
    assert!(c_w == c, "{op}: x {} and weight {}: axis 1 of the weight is {c_w}, not {c}", x.shape, weight.shape);
    let n_t = targets.elements();
    assert!(n_t == n, "{op}: x {} has {n} rows, targets {} has {n_t} elements", x.shape, targets.shape);
    c
}

/// The sum over rows of `logsumexp(z) - z[target]`, `z = W x`, in nats. No logits beyond a chunk of rows are ever in memory.
/// Shapes: float x `[.., C]`; weight `[V, C]` like it; targets: u32, one for each row, each below V. A target that is not below V panics
/// on the CPU; on a GPU, where targets are not looked at, it makes the loss NaN. Nothing waits for it there.
#[track_caller]
pub fn lm_head_loss(x: &Tensor, weight: &Tensor, targets: &Tensor) -> Total {
    let c = check("lm_head_loss", x, weight, targets);
    let place = place(
        "lm_head_loss",
        &[reads_float("x", x), reads_like("weight", weight, x.dtype), reads_u32("targets", targets)],
    );
    let (x, weight, targets) = (x.contiguous(), weight.contiguous(), targets.contiguous());
    match place {
        Place::Cpu(team) => Total(At::Cpu(kernel::lm_head_loss(&team, x.slice(), weight.slice(), targets.slice(), c))),
        Place::Cuda(gpu) => with_float!(x.dtype, T => {
            let (x, w, t) = (x.cuda_slice::<T>(), weight.cuda_slice(), targets.cuda_slice());
            gpu.total(|loss| cuda::ops::lm_head_loss::lm_head_loss(x, w, t, c, loss))
        }),
    }
}

/// The result of [`lm_head_loss_backward`].
pub struct LossGradients {
    /// The loss, summed over rows, unscaled.
    pub loss: Total,
    /// The gradient of `scale * loss` for x.
    pub dx: Tensor,
}

/// [`lm_head_loss`] and the gradients of `scale` times it, from the same logits; that of the weight is overwritten or added
/// to as `beta` says. Shapes as in [`lm_head_loss`]; d_weight `[V, C]` of f32; dx has the type of x.
#[track_caller]
pub fn lm_head_loss_backward(
    x: &Tensor,
    weight: &Tensor,
    targets: &Tensor,
    scale: f32,
    beta: Beta,
    d_weight: &mut Tensor,
) -> LossGradients {
    let op = "lm_head_loss_backward";
    let c = check(op, x, weight, targets);
    expect_shape(op, "d_weight", d_weight, &weight.shape);
    let operands = [
        reads_float("x", x),
        reads_like("weight", weight, x.dtype),
        reads_u32("targets", targets),
        writes("d_weight", d_weight),
    ];
    let place = place(op, &operands);
    let mut dx = place.stale(x.shape, x.dtype);
    let (x, w, t) = (x.contiguous(), weight.contiguous(), targets.contiguous());
    let loss = match place {
        Place::Cpu(team) => {
            let (dx_s, dw_s) = (dx.slice_mut(), d_weight.slice_mut());
            let (x, w, t) = (x.slice(), w.slice(), t.slice());
            Total(At::Cpu(kernel::lm_head_loss_backward(&team, x, w, t, c, scale, dx_s, beta, dw_s)))
        }
        Place::Cuda(gpu) => with_float!(x.dtype, T => {
            use cuda::ops::lm_head_loss::lm_head_loss_backward;
            let (x, w, t) = (x.cuda_slice::<T>(), w.cuda_slice(), t.cuda_slice());
            let (dx, dw) = (dx.cuda_slice_mut(), d_weight.cuda_slice_mut());
            gpu.total(|loss| lm_head_loss_backward(x, w, t, c, scale, dx, beta, dw, loss))
        }),
    };
    LossGradients { loss, dx }
}
