//! The FFN's gated activation, `h = psi(g) * u`, fused with the stochastic draws.

use crate::{Team, reference};

/// Which psi.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `max(x, 0)`.
    Relu,
    /// `x sigmoid(x)`.
    Silu,
    /// For `x < 0`, SILU with probability `threshold / 65536` and else RELU (0); for `x >= 0`, the identity.
    /// The draw of an element is a function of `site`, its row and its column alone (paper, StochA).
    Stochastic {
        /// SILU where the element's 16-bit draw is below this; `0..=65536`. See [`Activation::stochastic`].
        threshold: u32,
        /// Where the draws come from.
        site: MaskSite,
    },
}

impl Activation {
    /// StochA(p): `threshold = round(65536 p)`. Panics unless `0 <= p <= 1`.
    pub fn stochastic(p: f64, site: MaskSite) -> Activation {
        assert!((0.0..=1.0).contains(&p), "Activation::stochastic: p = {p} is not in 0..=1");
        Activation::Stochastic { threshold: (p * 65536.0).round() as u32, site }
    }
}

/// The coordinates of a tensor's draws. Element `(row, column)` takes 16 bits of the Philox4x32 call with counter
/// `[column / 8, first_token + row, layer | stream << 16, step]` and key `seed`: half-word `column % 8`, low half first.
///
/// Logical positions only, so the mask is the same for any thread count, level, device, micro-batch split or resume point,
/// and backward draws it again instead of storing it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaskSite {
    /// The run's seed (the Philox key).
    pub seed: u64,
    /// Training: index of row 0 among the tokens of the optimiser step. Inference: its position.
    pub first_token: u32,
    /// Layer of the model.
    pub layer: u16,
    /// Keeps the draws of different purposes apart.
    pub stream: u16,
    /// Training: the optimiser step. Inference: the sample's number.
    pub step: u32,
}

/// `h = psi(g) * u`. Shapes: g, u, h `[N, F]`, F = `d_ff`.
pub fn gated_activation(_team: &Team, act: Activation, g: &[f32], u: &[f32], d_ff: usize, h: &mut [f32]) {
    assert!(g.len() == h.len() && u.len() == h.len() && h.len().is_multiple_of(d_ff), "gated_activation: lengths");
    h.iter_mut().zip(reference::gated_activation(act, g, u, d_ff)).for_each(|(h, r)| *h = r as f32);
}

/// One pass: `dg = dh * u * psi'(g)`, `du = dh * psi(g)`, and h again, with the draws of the forward pass.
/// Shapes: all `[N, F]`, F = `d_ff`.
#[allow(clippy::too_many_arguments)] // the backward of a fused kernel has this many tensors
pub fn gated_activation_backward(
    _team: &Team,
    act: Activation,
    dh: &[f32],
    g: &[f32],
    u: &[f32],
    d_ff: usize,
    dg: &mut [f32],
    du: &mut [f32],
    h: &mut [f32],
) {
    let (dg_r, du_r, h_r) = reference::gated_activation_backward(act, dh, g, u, d_ff);
    dg.iter_mut().zip(dg_r).for_each(|(d, r)| *d = r as f32);
    du.iter_mut().zip(du_r).for_each(|(d, r)| *d = r as f32);
    h.iter_mut().zip(h_r).for_each(|(d, r)| *d = r as f32);
}
