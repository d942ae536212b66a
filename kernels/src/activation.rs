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
    assert!(
        d_ff > 0 && h.len().is_multiple_of(d_ff) && g.len() == h.len() && u.len() == h.len(),
        "gated_activation: g {} and u {} elements, h {}; d_ff {d_ff}",
        g.len(),
        u.len(),
        h.len()
    );
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
    let len = h.len();
    assert!(
        d_ff > 0 && len.is_multiple_of(d_ff) && [dh.len(), g.len(), u.len(), dg.len(), du.len()] == [len; 5],
        "gated_activation_backward: dh {}, g {}, u {}, dg {} and du {} elements, h {len}; d_ff {d_ff}",
        dh.len(),
        g.len(),
        u.len(),
        dg.len(),
        du.len()
    );
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
mod tests {
    use super::*;
    use crate::reference;
    use crate::testing::{ROUNDING, assert_within, lengths, teams, uniform};
    use proptest::prelude::*;

    const SITE: MaskSite = MaskSite { seed: 0x0123_4567_89AB_CDEF, first_token: 5, layer: 3, stream: 1, step: 77 };

    const FIXED: [Fixed; 5] = [Fixed::Relu, Fixed::Silu, Fixed::Gelu, Fixed::Relu2, Fixed::Tanh];

    /// Every member of a pair in both places, and both positive sides; none is the paper's pair, which has its own kernel.
    const PAIRS: [([Fixed; 2], Positive); 5] = [
        ([Fixed::Relu, Fixed::Silu], Positive::Silu),
        ([Fixed::Silu, Fixed::Gelu], Positive::Identity),
        ([Fixed::Gelu, Fixed::Relu2], Positive::Silu),
        ([Fixed::Relu2, Fixed::Tanh], Positive::Identity),
        ([Fixed::Tanh, Fixed::Relu], Positive::Silu),
    ];

    fn acts() -> impl Iterator<Item = Activation> {
        let fixed = FIXED.into_iter().map(Activation::from);
        let pairs = PAIRS.into_iter().map(|(negative, positive)| Activation::pair(0.4, negative, positive, SITE));
        fixed.chain([Activation::stochastic(0.3, SITE)]).chain(pairs)
    }

    /// How far psi may be off in roundings of itself, and psi' in units of 2^-24: as `simd::math` states, 1 ULP being at most 2
    /// roundings.
    fn accuracy(act: Activation) -> (f64, f64) {
        match act {
            Activation::Relu => (0.0, 0.0),
            Activation::Relu2 => (1.0, 0.0),
            Activation::Tanh => (4.0, 4.0),
            Activation::Silu => (8.0, 4.0),
            Activation::Gelu => (10.0, 4.0),
            Activation::Stochastic { negative, positive, .. } => {
                let positive = if positive == Positive::Silu { Activation::Silu } else { Activation::Relu };
                let parts = [negative[0].into(), negative[1].into(), positive].map(accuracy);
                parts.into_iter().fold((0.0, 0.0), |a: (f64, f64), b| (a.0.max(b.0), a.1.max(b.1)))
            }
        }
    }

    /// g of both signs and all sizes that matter to a sigmoid, with the special values in front.
    fn gates(seed: u64, len: usize) -> Vec<f32> {
        let special = [0.0, -0.0, 1e-40, -1e-40, 80.0, -80.0, 1e-3];
        let mut g: Vec<f32> = uniform(seed, len).into_iter().map(|x| 8.0 * x).collect();
        g.iter_mut().zip(special).for_each(|(g, s)| *g = s);
        g
    }

    fn forward(team: &Team, act: Activation, g: &[f32], u: &[f32], d_ff: usize) -> Vec<f32> {
        let mut h = vec![f32::NAN; g.len()];
        gated_activation(team, act, g, u, d_ff, &mut h);
        h
    }

    /// `[dg, du, h]`.
    fn backward(team: &Team, act: Activation, dh: &[f32], g: &[f32], u: &[f32], d_ff: usize) -> [Vec<f32>; 3] {
        penalised(team, act, 0.0, dh, g, u, d_ff)
    }

    /// The same with a penalty.
    fn penalised(
        team: &Team,
        act: Activation,
        l1: f32,
        dh: &[f32],
        g: &[f32],
        u: &[f32],
        d_ff: usize,
    ) -> [Vec<f32>; 3] {
        let [mut dg, mut du, mut h] = [(); 3].map(|_| vec![f32::NAN; g.len()]);
        gated_activation_backward(team, act, l1, dh, g, u, d_ff, &mut dg, &mut du, &mut h);
        [dg, du, h]
    }

    fn bits(x: &[f32]) -> Vec<u32> {
        x.iter().map(|x| x.to_bits()).collect()
    }

    #[test]
    fn gated_activation_matches_reference() {
        for team in teams() {
            for d_ff in lengths().skip(1).chain([16_400]) {
                let len = d_ff * if d_ff < 100 { 7 } else { 2 };
                let (g, u, dh) = (gates(1, len), uniform(2, len), uniform(3, len));
                for act in acts() {
                    let what = format!("{} d_ff={d_ff} {act:?}", team.level());
                    let h = forward(&team, act, &g, &u, d_ff);
                    let (value, derivative) = accuracy(act);
                    for l1 in [0.0, 0.03] {
                        let [dg, du, h_again] = penalised(&team, act, l1, &dh, &g, &u, d_ff);
                        let what = format!("{what} l1={l1}");
                        assert_eq!(bits(&h), bits(&h_again), "gated_activation_backward h {what}");
                        let (dg_ref, du_ref, h_ref) = reference::gated_activation_backward(act, l1, &dh, &g, &u, d_ff);
                        // Of psi, of the product, and of dh' if there is a penalty. 2^-149: products may be subnormal.
                        let penalty = f64::from(l1 != 0.0);
                        let relative = |x: f64, k: f64| k * ROUNDING * x.abs() + f64::powi(2.0, -149);
                        assert_within(&format!("gated_activation {what}"), &h, &h_ref, |i| {
                            relative(h_ref[i], value + 1.0)
                        });
                        assert_within(&format!("gated_activation_backward du {what}"), &du, &du_ref, |i| {
                            relative(du_ref[i], value + 1.0 + penalty)
                        });
                        // psi', three roundings of the products, and that of dh'.
                        let factor = |i: usize| (dh[i].abs() + l1) as f64 * u[i].abs() as f64;
                        assert_within(&format!("gated_activation_backward dg {what}"), &dg, &dg_ref, |i| {
                            relative(factor(i), derivative) + relative(dg_ref[i], 3.0 + penalty)
                        });
                    }
                }
            }
        }
    }

    /// Under RELU nothing is approximate: the bits are those of one product.
    #[test]
    fn relu_is_exact_and_keeps_nan() {
        let g = [1.5, -1.5, 0.0, -0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-45, -1e-45];
        let h = [1.5, 0.0, 0.0, -0.0, f32::NAN, f32::INFINITY, 0.0, 1e-45, 0.0];
        let dg = [1.0, 0.0, 0.0, -0.0, f32::NAN, 1.0, 0.0, 1.0, 0.0];
        for team in teams() {
            // p = 0 is RELU in every bit, forward and backward.
            let pairs = FIXED.map(|second| Activation::pair(0.0, [Fixed::Relu, second], Positive::Identity, SITE));
            for act in [Activation::Relu].into_iter().chain(pairs) {
                let what = format!("gated_activation {} {act:?}", team.level());
                let ones = [1.0; 9];
                let actual = backward(&team, act, &ones, &g, &ones, 9);
                for (x, y) in actual.iter().zip([&dg, &h, &h]) {
                    for i in 0..g.len() {
                        let same = x[i].to_bits() == y[i].to_bits() || x[i].is_nan() && y[i].is_nan();
                        assert!(same, "{what}: {:e} for g = {:e}, expected {:e}", x[i], g[i], y[i]);
                    }
                }
            }
        }
    }

    /// NaN, the infinities and the ends of the range: (g, psi, psi').
    #[test]
    fn special_values_of_each_activation() {
        const INF: f32 = f32::INFINITY;
        const NAN: f32 = f32::NAN;
        let silu = [(INF, INF, NAN), (-INF, NAN, NAN), (NAN, NAN, NAN), (0.0, 0.0, 0.5)];
        let gelu =
            [(INF, INF, 1.0), (-INF, -0.0, 0.0), (NAN, NAN, NAN), (-f32::MAX, -0.0, 0.0), (f32::MAX, f32::MAX, 1.0)];
        let relu2 = [(INF, INF, INF), (-INF, 0.0, 0.0), (NAN, NAN, NAN), (f32::MAX, INF, INF), (-1.0, 0.0, 0.0)];
        let tanh = [(INF, 1.0, 0.0), (-INF, -1.0, 0.0), (NAN, NAN, NAN), (0.0, 0.0, 1.0), (f32::MAX, 1.0, 0.0)];
        type Values<'a> = &'a [(f32, f32, f32)];
        let cases: [(Activation, Values); 4] = [
            (Activation::Silu, &silu),
            (Activation::Gelu, &gelu),
            (Activation::Relu2, &relu2),
            (Activation::Tanh, &tanh),
        ];
        for team in teams() {
            for (act, values) in cases {
                for &(g, psi, derivative) in values {
                    let [dg, du, h] = backward(&team, act, &[1.0], &[g], &[1.0], 1);
                    for (actual, expected) in [(dg[0], derivative), (du[0], psi), (h[0], psi)] {
                        let same = actual.to_bits() == expected.to_bits() || actual.is_nan() && expected.is_nan();
                        assert!(
                            same,
                            "gated_activation {} {act:?} at {g:e}: {actual:e}, not {expected:e}",
                            team.level()
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn p_0_and_1_are_the_members_of_the_pair() {
        for team in teams() {
            let (len, d_ff) = (6 * 1003, 1003);
            let (g, u, dh) = (gates(1, len), uniform(2, len), uniform(3, len));
            let run = |act| backward(&team, act, &dh, &g, &u, d_ff);
            let paper = ([Fixed::Relu, Fixed::Silu], Positive::Identity);
            for (negative, positive) in PAIRS.into_iter().chain([paper]) {
                let above = run(if positive == Positive::Silu { Activation::Silu } else { Activation::Relu });
                for (p, member) in [0.0, 1.0].into_iter().zip(negative) {
                    let act = Activation::pair(p, negative, positive, SITE);
                    let (actual, below) = (run(act), run(member.into()));
                    for i in 0..len {
                        let expected = if g[i] < 0.0 { &below } else { &above };
                        for k in 0..3 {
                            let (a, e) = (actual[k][i], expected[k][i]);
                            assert_eq!(
                                a.to_bits(),
                                e.to_bits(),
                                "gated_activation {} {act:?}: g = {:e}",
                                team.level(),
                                g[i]
                            );
                        }
                    }
                    let h = forward(&team, act, &g, &u, d_ff);
                    assert_eq!(bits(&h), bits(&actual[2]), "gated_activation {} {act:?}", team.level());
                }
            }
        }
    }

    /// A penalty moves dh where h is not 0, by the sign of h, and nothing else.
    #[test]
    fn l1_adds_the_sign_of_h_to_dh() {
        let (len, d_ff, l1) = (3 * 701, 701, 0.25);
        let (g, u, dh) = (gates(1, len), uniform(2, len), uniform(3, len));
        for team in teams() {
            for act in acts() {
                let h = forward(&team, act, &g, &u, d_ff);
                let sign = |h: f32| if h == 0.0 { 0.0 } else { h.signum() };
                let moved: Vec<f32> =
                    dh.iter().zip(&h).map(|(&dh, &h)| if h == 0.0 { dh } else { dh + l1 * sign(h) }).collect();
                let expected = backward(&team, act, &moved, &g, &u, d_ff);
                let actual = penalised(&team, act, l1, &dh, &g, &u, d_ff);
                let what = format!("gated_activation_backward {} {act:?}: the penalty", team.level());
                assert!(actual.map(|x| bits(&x)) == expected.map(|x| bits(&x)), "{what}");
            }
        }
    }

    /// A million elements, d_ff no multiple of anything: the second of the pair exactly where the specification's draw is
    /// below the threshold.
    #[test]
    fn the_mask_is_that_of_the_reference() {
        let (rows, d_ff) = (1003, 997);
        let len = rows * d_ff;
        let draws: Vec<u32> = (0..len).map(|i| reference::draw16(SITE, i / d_ff, i % d_ff)).collect();
        let (g, ones) = (vec![-1.0; len], vec![1.0; len]);
        let paper = [0.0, 1e-5, 0.3, 0.5, 1.0].map(|p| Activation::stochastic(p, SITE));
        let pairs = PAIRS.map(|(negative, positive)| Activation::pair(0.3, negative, positive, SITE));
        for team in teams() {
            let one = |act: Fixed| backward(&team, act.into(), &[1.0], &[-1.0], &[1.0], 1).map(|x| x[0]);
            for act in paper.into_iter().chain(pairs) {
                let Activation::Stochastic { negative, threshold, .. } = act else { unreachable!() };
                let what = format!("gated_activation {} {act:?}", team.level());
                let [dg, du, h] = backward(&team, act, &ones, &g, &ones, d_ff);
                assert_eq!(
                    bits(&forward(&team, act, &g, &ones, d_ff)),
                    bits(&h),
                    "{what}: forward and backward differ"
                );
                let members = negative.map(one);
                assert_ne!(members[0], members[1], "{what}: a mask that does not show");
                for i in 0..len {
                    let expected = members[usize::from(draws[i] < threshold)];
                    assert_eq!([dg[i], du[i], h[i]], expected, "{what}: row {} column {}", i / d_ff, i % d_ff);
                }
            }
        }
    }

    /// The share of SILU is p, in the whole and in each of the eight half-words, within five standard deviations of the
    /// binomial distribution.
    #[test]
    fn the_rate_of_silu_is_p() {
        let (rows, d_ff) = (1000, 1000);
        let ones = vec![1.0; rows * d_ff];
        let team = Team::serial(Level::best());
        for p in [0.01, 0.3, 0.7] {
            let h = forward(&team, Activation::stochastic(p, SITE), &vec![-1.0; rows * d_ff], &ones, d_ff);
            let check = |what: String, count: usize, n: usize| {
                let (mean, deviation) = (p * n as f64, (n as f64 * p * (1.0 - p)).sqrt());
                let off = (count as f64 - mean) / deviation;
                assert!(
                    off.abs() < 5.0,
                    "gated_activation p={p} {what}: {count} of {n}, {off:.1} standard deviations off"
                );
            };
            let count = |keep: &dyn Fn(usize) -> bool| (0..h.len()).filter(|&i| keep(i) && h[i] != 0.0).count();
            check("all".into(), count(&|_| true), h.len());
            for half in 0..8 {
                check(format!("half-word {half}"), count(&|i| i % d_ff % 8 == half), h.len() / 8);
            }
        }
    }

    /// Several tasks, cut inside rows and inside Philox calls (16384 = 3 * 5003 + 1375, and 1375 is odd).
    #[test]
    fn bits_do_not_depend_on_threads_or_alignment() {
        let (rows, d_ff) = (11, 5003);
        let len = rows * d_ff;
        let (g, u, dh) = (gates(1, len + 20), uniform(2, len + 20), uniform(3, len + 20));
        for level in Level::available() {
            for act in acts() {
                for shift in [0, 1, 7, 16] {
                    let [g, u, dh] = [&g, &u, &dh].map(|x| x[..len].to_vec());
                    let one = backward(&Team::serial(level), act, &dh, &g, &u, d_ff).map(|x| bits(&x));
                    // The same values at other addresses.
                    let moved = [&g, &u, &dh].map(|x| [&vec![0.0; shift][..], x].concat());
                    let [g, u, dh] = [0, 1, 2].map(|i| &moved[i][shift..]);
                    for threads in 1..=3 {
                        let team = Team::new(level, threads);
                        let many = backward(&team, act, dh, g, u, d_ff).map(|x| bits(&x));
                        assert!(one == many, "gated_activation {level} {act:?}: {threads} threads, shift {shift}");
                    }
                }
            }
        }
    }

    proptest! {
        /// A batch and its two halves, the second with the number of its first token, draw the same mask: what makes
        /// gradient accumulation independent of the micro-batch size.
        #[test]
        fn a_split_batch_draws_the_same_mask(
            rows in 1usize..20, split in 0usize..20, d_ff in 1usize..300, p in 0.0..=1.0, seed: u64, first_token: u32,
            pair in 0..PAIRS.len(),
        ) {
            let split = split.min(rows) * d_ff;
            let site = |first_token| MaskSite { seed, first_token, ..SITE };
            let (g, u) = (gates(seed >> 33, rows * d_ff), uniform(2, rows * d_ff));
            let second = site(first_token.wrapping_add((split / d_ff) as u32));
            let (negative, positive) = PAIRS[pair];
            for (level, own) in Level::available().flat_map(|level| [(level, true), (level, false)]) {
                let team = Team::serial(level);
                let act = |site| match own {
                    true => Activation::stochastic(p, site),
                    false => Activation::pair(p, negative, positive, site),
                };
                let whole = forward(&team, act(site(first_token)), &g, &u, d_ff);
                let mut halves = forward(&team, act(site(first_token)), &g[..split], &u[..split], d_ff);
                halves.extend(forward(&team, act(second), &g[split..], &u[split..], d_ff));
                prop_assert_eq!(bits(&whole), bits(&halves), "gated_activation {}", level);
            }
        }
    }

    #[test]
    #[should_panic(expected = "gated_activation: g 12 and u 11 elements, h 12; d_ff 4")]
    fn lengths_must_agree() {
        gated_activation(&Team::serial(Level::SCALAR), Activation::Relu, &[0.0; 12], &[0.0; 11], 4, &mut [0.0; 12]);
    }
}
