//! The FFN's gated activation, `h = psi(g) * u`, fused with the stochastic draws.
//!
//! A deterministic psi is a `Pointwise` struct, a stochastic one a `Stochastic` of three of them. A further activation
//! or pair is an arm of [`Activation`] and of the matches below; the kernels do not change.

use crate::elementwise::ELEMENTS_PER_TASK;
use crate::pointwise::{Relu, Silu};
use crate::simd::map::spans;
use crate::simd::{Kernel, Simd};
use crate::stochastic::{Draws, Psi, Stochastic, blocks};
use crate::team::{SharedMut, Team};

/// Which psi.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `max(x, 0)`. The derivative at 0 is 0.
    Relu,
    /// `x sigmoid(x)`.
    Silu,
    /// For `x < 0`, SILU with probability `threshold / 65536` and else RELU (0); for `x >= 0`, the identity (with RELU's
    /// derivative at 0, so that `threshold` 0 is RELU in every bit).
    /// The draw of an element is a function of `site`, its row and its column alone (StochA, arXiv 2509.22358).
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

/// `h = psi(g) * u`.
///
/// Shapes: g, u, h `[N, F]`, F = `d_ff`; rows and columns are the coordinates of the draws.
///
/// A NaN in g gives NaN, under RELU too: it is not hidden as 0. Panics if a length differs or is no multiple of `d_ff`.
///
/// Accuracy: relu exact but for the rounding of the product; silu as [`math::silu`](crate::simd::math::silu) and that rounding.
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
    match act {
        Activation::Relu => forward(team, Relu, g, u, d_ff, h),
        Activation::Silu => forward(team, Silu, g, u, d_ff, h),
        Activation::Stochastic { threshold, site } => {
            forward(team, Stochastic::relu_silu(threshold, site), g, u, d_ff, h)
        }
    }
}

fn forward(team: &Team, psi: impl Psi, g: &[f32], u: &[f32], d_ff: usize, h: &mut [f32]) {
    let level = team.level();
    team.run_chunks_mut(h, ELEMENTS_PER_TASK, |task, h| {
        let first = task * ELEMENTS_PER_TASK;
        let (g, u) = (&g[first..][..h.len()], &u[first..][..h.len()]);
        level.dispatch(Forward { psi, first, d_ff, g, u, h });
    });
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

/// The gradients of [`gated_activation`] in one pass: `dg = dh * u * psi'(g)`, `du = dh * psi(g)`, and h again (the saved
/// tensors are g and u; the gradient of down_proj needs h), with the draws and the bits of the forward pass.
///
/// Shapes: all `[N, F]`, F = `d_ff`. The old contents of dg, du and h are not read.
///
/// A NaN in g gives NaN in all three. Panics if a length differs or is no multiple of `d_ff`.
///
/// Accuracy: `dg` within `|dh u| (4 + 3) 2^-24` (psi' and three roundings), `du` and h as the forward pass.
/// Cost: 24 bytes an element moved (12 read, 12 written).
#[allow(clippy::too_many_arguments)] // the backward of a fused kernel has this many tensors
#[track_caller]
pub fn gated_activation_backward(
    team: &Team,
    act: Activation,
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
    let (inputs, outputs) = ([dh, g, u], [dg, du, h]);
    match act {
        Activation::Relu => backward(team, Relu, inputs, d_ff, outputs),
        Activation::Silu => backward(team, Silu, inputs, d_ff, outputs),
        Activation::Stochastic { threshold, site } => {
            backward(team, Stochastic::relu_silu(threshold, site), inputs, d_ff, outputs)
        }
    }
}

fn backward(team: &Team, psi: impl Psi, inputs: [&[f32]; 3], d_ff: usize, [dg, du, h]: [&mut [f32]; 3]) {
    let level = team.level();
    let (du, h) = (SharedMut::new(du), SharedMut::new(h));
    team.run_chunks_mut(dg, ELEMENTS_PER_TASK, |task, dg| {
        let (first, len) = (task * ELEMENTS_PER_TASK, dg.len());
        let [dh, g, u] = inputs.map(|input| &input[first..][..len]);
        // SAFETY: task t alone touches the elements of its own piece, the same in du and h as in dg.
        let (du, h) = unsafe { (du.slice(first, len), h.slice(first, len)) };
        level.dispatch(Backward { psi, first, d_ff, dh, g, u, dg, du, h });
    });
}

struct Backward<'a, P> {
    psi: P,
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
                let (dh, u) = (at.load(s, dh), at.load(s, u));
                let (value, derivative) = self.psi.eval(s, draws.at(block.phase + at.start()), at.load(s, g));
                at.store(s, s.mul(s.mul(dh, u), derivative), dg);
                at.store(s, s.mul(dh, value), du);
                at.store(s, s.mul(value, u), h);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;
    use crate::simd::Level;
    use crate::testing::{ROUNDING, assert_within, lengths, teams, uniform};
    use proptest::prelude::*;

    const SITE: MaskSite = MaskSite { seed: 0x0123_4567_89AB_CDEF, first_token: 5, layer: 3, stream: 1, step: 77 };

    fn acts() -> [Activation; 3] {
        [Activation::Relu, Activation::Silu, Activation::stochastic(0.3, SITE)]
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
        let [mut dg, mut du, mut h] = [(); 3].map(|_| vec![f32::NAN; g.len()]);
        gated_activation_backward(team, act, dh, g, u, d_ff, &mut dg, &mut du, &mut h);
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
                    let [dg, du, h_again] = backward(&team, act, &dh, &g, &u, d_ff);
                    assert_eq!(bits(&h), bits(&h_again), "gated_activation_backward h {what}");
                    let (dg_ref, du_ref, h_ref) = reference::gated_activation_backward(act, &dh, &g, &u, d_ff);
                    // 4 ULP of silu are at most 8 roundings; the product is one more. 2^-149: products may be subnormal.
                    let relative = |x: f64| 9.0 * ROUNDING * x.abs() + f64::powi(2.0, -149);
                    assert_within(&format!("gated_activation {what}"), &h, &h_ref, |i| relative(h_ref[i]));
                    assert_within(&format!("gated_activation_backward du {what}"), &du, &du_ref, |i| {
                        relative(du_ref[i])
                    });
                    assert_within(&format!("gated_activation_backward dg {what}"), &dg, &dg_ref, |i| {
                        7.0 * ROUNDING * (dh[i] as f64 * u[i] as f64).abs()
                    });
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
            for act in [Activation::Relu, Activation::stochastic(0.0, SITE)] {
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

    #[test]
    fn p_1_is_silu_below_0_and_the_identity_above() {
        for team in teams() {
            let (len, d_ff) = (6 * 1003, 1003);
            let (g, u, dh) = (gates(1, len), uniform(2, len), uniform(3, len));
            let actual = backward(&team, Activation::stochastic(1.0, SITE), &dh, &g, &u, d_ff);
            let silu = backward(&team, Activation::Silu, &dh, &g, &u, d_ff);
            let relu = backward(&team, Activation::Relu, &dh, &g, &u, d_ff);
            for i in 0..len {
                let expected = if g[i] < 0.0 { &silu } else { &relu };
                for k in 0..3 {
                    let (a, e) = (actual[k][i], expected[k][i]);
                    assert_eq!(a.to_bits(), e.to_bits(), "gated_activation {} p=1: g = {:e}", team.level(), g[i]);
                }
            }
            let h = forward(&team, Activation::stochastic(1.0, SITE), &g, &u, d_ff);
            assert_eq!(bits(&h), bits(&actual[2]), "gated_activation {} p=1", team.level());
        }
    }

    /// A million elements, d_ff no multiple of anything: SILU exactly where the specification's draw is below the threshold.
    #[test]
    fn the_mask_is_that_of_the_reference() {
        let (rows, d_ff) = (1003, 997);
        let len = rows * d_ff;
        let draws: Vec<u32> = (0..len).map(|i| reference::draw16(SITE, i / d_ff, i % d_ff)).collect();
        let (g, ones) = (vec![-1.0; len], vec![1.0; len]);
        for team in teams() {
            for p in [0.0, 1e-5, 0.3, 0.5, 1.0] {
                let act = Activation::stochastic(p, SITE);
                let Activation::Stochastic { threshold, .. } = act else { unreachable!() };
                let what = format!("gated_activation {} p={p}", team.level());
                let [dg, du, h] = backward(&team, act, &ones, &g, &ones, d_ff);
                assert_eq!(
                    bits(&forward(&team, act, &g, &ones, d_ff)),
                    bits(&h),
                    "{what}: forward and backward differ"
                );
                for i in 0..len {
                    let drawn = draws[i] < threshold;
                    let is = (h[i] != 0.0, du[i] != 0.0, dg[i] != 0.0);
                    assert_eq!(is, (drawn, drawn, drawn), "{what}: row {} column {}", i / d_ff, i % d_ff);
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
        ) {
            let split = split.min(rows) * d_ff;
            let site = |first_token| MaskSite { seed, first_token, ..SITE };
            let (g, u) = (gates(seed >> 33, rows * d_ff), uniform(2, rows * d_ff));
            for level in Level::available() {
                let team = Team::serial(level);
                let whole = forward(&team, Activation::stochastic(p, site(first_token)), &g, &u, d_ff);
                let second = site(first_token.wrapping_add((split / d_ff) as u32));
                let mut halves =
                    forward(&team, Activation::stochastic(p, site(first_token)), &g[..split], &u[..split], d_ff);
                halves.extend(forward(&team, Activation::stochastic(p, second), &g[split..], &u[split..], d_ff));
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
