//! The LM head fused with the cross-entropy: logits exist for a chunk of rows at a time, never all of them.

use crate::{Beta, Team, reference};

/// The sum over rows of `logsumexp(z) - z[target]` with `z = W x` (natural logarithm; divide by N for the mean).
///
/// Shapes: x `[N, C]`; w `[V, C]`, C = `d_model`; targets `[N]`, each below V. For evaluation: no gradients.
pub fn lm_head_loss(_team: &Team, x: &[f32], w: &[f32], targets: &[u32], d_model: usize) -> f64 {
    reference::lm_head_loss(x, w, targets, d_model, 1.0).0
}

/// [`lm_head_loss`] and, from the same logits, the gradients of `scale` times it: `dx = scale dz W`, `dw (+)= scale dz^T x`
/// with `dz = softmax(z) - onehot(target)`. dx is overwritten; `dw_beta` says whether dw is.
#[allow(clippy::too_many_arguments)] // the tensors of the formula
pub fn lm_head_loss_backward(
    _team: &Team,
    x: &[f32],
    w: &[f32],
    targets: &[u32],
    d_model: usize,
    scale: f32,
    dx: &mut [f32],
    dw_beta: Beta,
    dw: &mut [f32],
) -> f64 {
    let (loss, dx_r, dw_r) = reference::lm_head_loss(x, w, targets, d_model, scale);
    dx.iter_mut().zip(dx_r).for_each(|(d, r)| *d = r as f32);
    dw.iter_mut().zip(dw_r).for_each(|(d, r)| *d = r as f32 + if dw_beta == Beta::One { *d } else { 0.0 });
    loss
}
