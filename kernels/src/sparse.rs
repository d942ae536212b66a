//! The FFN of one token, dense and sparse, with equal bits.
//!
//! All three matrices are `[F, C]` (`down_t` is down_proj transposed), so that a neuron is one contiguous row in each:
//! `g = gate x`, then for each neuron i in use `h_i = psi(g_i) * (up_i . x)` and `y += h_i * down_t_i`.
//! A neuron with `psi(g_i) = 0` adds nothing; leaving it out changes no bit of y.

use crate::{Activation, Team, reference};

/// The weights of an FFN, laid out for decoding.
#[derive(Clone, Copy, Debug)]
pub struct FfnWeights<'a> {
    /// gate_proj `[F, C]` (the paper's W1).
    pub gate: &'a [f32],
    /// up_proj `[F, C]` (W3).
    pub up: &'a [f32],
    /// down_proj transposed, `[F, C]` (W2^T).
    pub down_t: &'a [f32],
}

/// Memory that a call needs and leaves behind: kept by the caller from token to token.
#[derive(Clone, Debug, Default)]
pub struct FfnScratch {
    /// `g = gate x`, `[F]`.
    pub g: Vec<f32>,
    /// Active neurons, ascending.
    pub active: Vec<u32>,
    /// `h` of the active neurons.
    pub h: Vec<f32>,
    /// Partial sums of y, one row a chunk of neurons.
    pub partial: Vec<f32>,
}

/// The indices of the positive elements of `g`, ascending, into `active` (cleared first).
pub fn select_active(_team: &Team, g: &[f32], active: &mut Vec<u32>) {
    active.clear();
    active.extend(reference::select_active(g));
}

/// `out[j] = w[rows[j], :] . x`. Shapes: w `[F, C]`, x `[C]`, rows and out of one length.
pub fn rows_dot(_team: &Team, w: &[f32], rows: &[u32], x: &[f32], out: &mut [f32]) {
    for (out, &row) in out.iter_mut().zip(rows) {
        *out = w[row as usize * x.len()..][..x.len()].iter().zip(x).map(|(w, x)| w * x).sum();
    }
}

/// `y = sum_j h[j] * w[rows[j], :]`, summed within fixed chunks of rows of w, the chunk sums added in order.
pub fn rows_axpy(_team: &Team, w: &[f32], rows: &[u32], h: &[f32], y: &mut [f32], _partial: &mut Vec<f32>) {
    y.fill(0.0);
    for (&h, &row) in h.iter().zip(rows) {
        let w = &w[row as usize * y.len()..][..y.len()];
        y.iter_mut().zip(w).for_each(|(y, w)| *y += h * w);
    }
}

/// The FFN of one token under RELU from the active neurons alone; returns how many they were.
/// Equal, bit for bit, to [`ffn_dense`] with [`Activation::Relu`].
pub fn ffn_sparse(team: &Team, weights: FfnWeights, x: &[f32], scratch: &mut FfnScratch, y: &mut [f32]) -> usize {
    ffn_dense(team, weights, Activation::Relu, x, scratch, y);
    scratch.active.len()
}

/// The FFN of one token over all neurons, under any activation (row 0 of the [`MaskSite`](crate::MaskSite)).
pub fn ffn_dense(
    team: &Team,
    weights: FfnWeights,
    act: Activation,
    x: &[f32],
    scratch: &mut FfnScratch,
    y: &mut [f32],
) {
    let f = weights.gate.len() / x.len();
    scratch.g.resize(f, 0.0);
    crate::gemv::gemv(team, weights.gate, x, &mut scratch.g);
    let mut u = vec![0.0; f];
    crate::gemv::gemv(team, weights.up, x, &mut u);
    scratch.h.resize(f, 0.0);
    crate::activation::gated_activation(team, act, &scratch.g, &u, f, &mut scratch.h);
    select_active(team, &scratch.g, &mut scratch.active);
    let all: Vec<u32> = (0..f as u32).collect();
    rows_axpy(team, weights.down_t, &all, &scratch.h, y, &mut scratch.partial);
}
