//! The FFN's gated activation, `h = psi(g) * u`, fused with the stochastic draws.
//!
//! A psi that draws nothing is a `Pointwise` struct, one that draws a `Stochastic` of three of them. A further activation is
//! such a struct, and an arm of [`Fixed`], of [`Activation`] and of the matches on them; the kernels do not change.

use crate::elementwise::ELEMENTS_PER_TASK;
use crate::pointwise::{Gelu, Relu, Relu2, Silu, Tanh};
use crate::simd::map::spans;
use crate::simd::{Kernel, Level, Simd};
use crate::stochastic::{Draws, Psi, Stochastic, blocks};
use crate::team::{SharedMut, Team};

/// Which psi.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `max(x, 0)`. The derivative at 0 is 0.
    Relu,
    /// `x sigmoid(x)`.
    Silu,
    /// `x Phi(x)`, Phi the normal distribution function: the exact form, Hugging Face's `gelu` (arXiv 1606.08415).
    Gelu,
    /// `max(x, 0)^2` (arXiv 2109.08668).
    Relu2,
    /// `tanh(x)`.
    Tanh,
    /// For `x < 0`, `negative[1]` with probability `threshold / 65536` and else `negative[0]`; for `x >= 0`, `positive`.
    /// The draw of an element is a function of `site`, its row and its column alone (StochA, arXiv 2509.22358).
    Stochastic {
        /// The pair; the paper's is RELU and SILU.
        negative: [Fixed; 2],
        /// What is not negative goes through this.
        positive: Positive,
        /// The second of the pair where the element's 16-bit draw is below this; `0..=65536`. See [`Activation::pair`].
        threshold: u32,
        /// Where the draws come from.
        site: MaskSite,
    },
}

/// An activation that draws nothing: what a stochastic one chooses from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fixed {
    /// [`Activation::Relu`].
    Relu,
    /// [`Activation::Silu`].
    Silu,
    /// [`Activation::Gelu`].
    Gelu,
    /// [`Activation::Relu2`].
    Relu2,
    /// [`Activation::Tanh`].
    Tanh,
}

/// What a stochastic activation does with `x >= 0`, where it draws nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Positive {
    /// x itself, with RELU's derivative at 0, so that with RELU as the first of the pair, `threshold` 0 is RELU in every bit.
    Identity,
    /// `x sigmoid(x)`.
    Silu,
}

impl From<Fixed> for Activation {
    fn from(fixed: Fixed) -> Activation {
        match fixed {
            Fixed::Relu => Activation::Relu,
            Fixed::Silu => Activation::Silu,
            Fixed::Gelu => Activation::Gelu,
            Fixed::Relu2 => Activation::Relu2,
            Fixed::Tanh => Activation::Tanh,
        }
    }
}

impl Activation {
    /// The paper's StochA(p): for negative x SILU with probability p and else RELU, for others the identity. Panics unless
    /// `0 <= p <= 1`.
    #[track_caller]
    pub fn stochastic(p: f64, site: MaskSite) -> Activation {
        Activation::pair(p, [Fixed::Relu, Fixed::Silu], Positive::Identity, site)
    }

    /// For negative x the second of the pair with probability p and else the first: `threshold = round(65536 p)`. Panics
    /// unless `0 <= p <= 1`.
    #[track_caller]
    pub fn pair(p: f64, negative: [Fixed; 2], positive: Positive, site: MaskSite) -> Activation {
        assert!((0.0..=1.0).contains(&p), "Activation::pair: p = {p} is not in 0..=1");
        Activation::Stochastic { negative, positive, threshold: (p * 65536.0).round() as u32, site }
    }

    /// Runs `kernel` with this psi. The paper's pair is compiled for itself, and so is what draws nothing; all other pairs
    /// share one kernel, which chooses for every vector: 25 pairs with two positive sides would be 50 kernels a level.
    fn run(self, kernel: impl PsiKernel) {
        match self {
            Activation::Relu => kernel.run(Relu),
            Activation::Silu => kernel.run(Silu),
            Activation::Gelu => kernel.run(Gelu),
            Activation::Relu2 => kernel.run(Relu2),
            Activation::Tanh => kernel.run(Tanh),
            Activation::Stochastic {
                negative: [Fixed::Relu, Fixed::Silu],
                positive: Positive::Identity,
                threshold,
                site,
            } => kernel.run(Stochastic { negative: (Relu, Silu), positive: Relu, threshold, site }),
            Activation::Stochastic { negative: [first, second], positive, threshold, site } => {
                kernel.run(Stochastic { negative: (first, second), positive, threshold, site })
            }
        }
    }
}

/// A kernel over any psi.
trait PsiKernel {
    fn run(self, psi: impl Psi);
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

/// `h = psi(g) * u`.
///
/// Shapes: g, u, h `[N, F]`, F = `d_ff`; rows and columns are the coordinates of the draws.
///
/// A NaN in g gives NaN, under RELU too: it is not hidden as 0. Panics if a length differs or is no multiple of `d_ff`.
///
/// Accuracy: that of psi ([`math::silu`](crate::simd::math::silu), [`math::gelu`](crate::simd::math::gelu) and
/// [`math::tanh`](crate::simd::math::tanh) within 5 ULP, relu2 one rounding, relu none) and the rounding of the product.
/// Draws equal to `reference::draw16` in every bit. Cost: 12 bytes an element moved (8 read, 4 written).
/// Source: arXiv 2509.22358.
#[track_caller]
pub fn gated_activation(team: &Team, act: Activation, g: &[f32], u: &[f32], d_ff: usize, h: &mut [f32]) {
    check([g.len(), u.len(), h.len()], d_ff);
    team.run_chunks_mut(h, ELEMENTS_PER_TASK, |task, h| {
        let first = task * ELEMENTS_PER_TASK;
        gated_activation_from(team.level(), act, first, d_ff, &g[first..][..h.len()], &u[first..][..h.len()], h);
    });
}

/// [`gated_activation`] of the elements from number `first` on, counted from the beginning of row 0: g, u and h of one length.
pub(crate) fn gated_activation_from(
    level: Level,
    act: Activation,
    first: usize,
    d_ff: usize,
    g: &[f32],
    u: &[f32],
    h: &mut [f32],
) {
    act.run(GatedActivation { level, first, d_ff, g, u, h });
}

struct GatedActivation<'a> {
    level: Level,
    first: usize,
    d_ff: usize,
    g: &'a [f32],
    u: &'a [f32],
    h: &'a mut [f32],
}

impl PsiKernel for GatedActivation<'_> {
    fn run(self, psi: impl Psi) {
        let GatedActivation { level, first, d_ff, g, u, h } = self;
        level.dispatch(Forward { psi, first, d_ff, g, u, h });
    }
}

struct Forward<'a, P> {
    psi: P,
    first: usize,
    d_ff: usize,
    g: &'a [f32],
    u: &'a [f32],
    h: &'a mut [f32],
}

impl<P: Psi> Kernel for Forward<'_, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut draws = Draws::new();
        for block in blocks::<S>(self.first, self.d_ff, self.h.len()) {
            self.psi.draw(s, &block, &mut draws);
            let (g, u, h) = (&self.g[block.range()], &self.u[block.range()], &mut self.h[block.range()]);
            for at in spans(s, h.len()) {
                let (value, _) = self.psi.eval(s, draws.at(block.phase + at.start()), at.load(s, g));
                at.store(s, s.mul(value, at.load(s, u)), h);
            }
        }
    }
}

/// Panics if [`gated_activation`] does not take g, u and h of these lengths, on any device.
#[track_caller]
pub fn check([g, u, h]: [usize; 3], d_ff: usize) {
    assert!(
        d_ff > 0 && h.is_multiple_of(d_ff) && g == h && u == h,
        "gated_activation: g {g} and u {u} elements, h {h}; d_ff {d_ff}"
    );
}

/// Panics if [`gated_activation_backward`] does not take dh, g, u, dg, du and h of these lengths, on any device.
#[track_caller]
pub fn check_backward([dh, g, u, dg, du, h]: [usize; 6], d_ff: usize) {
    assert!(
        d_ff > 0 && h.is_multiple_of(d_ff) && [dh, g, u, dg, du] == [h; 5],
        "gated_activation_backward: dh {dh}, g {g}, u {u}, dg {dg} and du {du} elements, h {h}; d_ff {d_ff}"
    );
}

/// The gradients of [`gated_activation`] in one pass: `dg = dh' * u * psi'(g)`, `du = dh' * psi(g)` with
/// `dh' = dh + l1 * sign(h)`, and h again (the saved tensors are g and u; the gradient of down_proj needs h), with the draws and
/// the bits of the forward pass.
///
/// `l1` adds the gradient of the penalty `l1 * sum |h|` (sign(0) is 0). At `l1` 0 nothing is added: the bits are those of dh.
///
/// Shapes: all `[N, F]`, F = `d_ff`. The old contents of dg, du and h are not read.
///
/// A NaN in g gives NaN in all three. Panics if a length differs or is no multiple of `d_ff`.
///
/// Accuracy: `dg` within `|dh' u| (4 + 3) 2^-24`, where psi' is within `4 2^-24` (relu2: exact, and three roundings); du and h as
/// the forward pass; with l1 a rounding more. Cost: 24 bytes an element moved (12 read, 12 written).
/// Source: arXiv 2509.22358; the penalty is that of arXiv 2603.23198.
#[allow(clippy::too_many_arguments)] // the backward of a fused kernel has this many tensors
#[track_caller]
pub fn gated_activation_backward(
    team: &Team,
    act: Activation,
    l1: f32,
    dh: &[f32],
    g: &[f32],
    u: &[f32],
    d_ff: usize,
    dg: &mut [f32],
    du: &mut [f32],
    h: &mut [f32],
) {
    check_backward([dh.len(), g.len(), u.len(), dg.len(), du.len(), h.len()], d_ff);
    act.run(GatedActivationBackward { team, l1, inputs: [dh, g, u], d_ff, outputs: [dg, du, h] });
}

struct GatedActivationBackward<'a> {
    team: &'a Team,
    l1: f32,
    /// dh, g, u.
    inputs: [&'a [f32]; 3],
    d_ff: usize,
    /// dg, du, h.
    outputs: [&'a mut [f32]; 3],
}

impl PsiKernel for GatedActivationBackward<'_> {
    fn run(self, psi: impl Psi) {
        let GatedActivationBackward { team, l1, inputs, d_ff, outputs: [dg, du, h] } = self;
        let level = team.level();
        let (du, h) = (SharedMut::new(du), SharedMut::new(h));
        team.run_chunks_mut(dg, ELEMENTS_PER_TASK, |task, dg| {
            let (first, len) = (task * ELEMENTS_PER_TASK, dg.len());
            let [dh, g, u] = inputs.map(|input| &input[first..][..len]);
            // SAFETY: task t alone touches the elements of its own piece, the same in du and h as in dg.
            let (du, h) = unsafe { (du.slice(first, len), h.slice(first, len)) };
            level.dispatch(Backward { psi, l1, first, d_ff, dh, g, u, dg, du, h });
        });
    }
}

struct Backward<'a, P> {
    psi: P,
    l1: f32,
    first: usize,
    d_ff: usize,
    dh: &'a [f32],
    g: &'a [f32],
    u: &'a [f32],
    dg: &'a mut [f32],
    du: &'a mut [f32],
    h: &'a mut [f32],
}

impl<P: Psi> Kernel for Backward<'_, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut draws = Draws::new();
        for block in blocks::<S>(self.first, self.d_ff, self.h.len()) {
            self.psi.draw(s, &block, &mut draws);
            let (dh, g, u) = (&self.dh[block.range()], &self.g[block.range()], &self.u[block.range()]);
            let (dg, du, h) = (&mut self.dg[block.range()], &mut self.du[block.range()], &mut self.h[block.range()]);
            for at in spans(s, h.len()) {
                let (mut dh, u) = (at.load(s, dh), at.load(s, u));
                let (value, derivative) = self.psi.eval(s, draws.at(block.phase + at.start()), at.load(s, g));
                let latent = s.mul(value, u);
                // The same way for every vector: a branch that costs nothing beside the memory.
                if self.l1 != 0.0 {
                    let (zero, l1) = (s.splat(0.0), s.splat(self.l1));
                    dh = s.select(s.lt(zero, latent), s.add(dh, l1), dh);
                    dh = s.select(s.lt(latent, zero), s.sub(dh, l1), dh);
                }
                at.store(s, s.mul(s.mul(dh, u), derivative), dg);
                at.store(s, s.mul(dh, value), du);
                at.store(s, latent, h);
            }
        }
    }
}

#[cfg(test)]
mod tests;
