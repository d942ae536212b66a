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
fn penalised(team: &Team, act: Activation, l1: f32, dh: &[f32], g: &[f32], u: &[f32], d_ff: usize) -> [Vec<f32>; 3] {
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
                    assert_within(&format!("gated_activation {what}"), &h, &h_ref, |i| relative(h_ref[i], value + 1.0));
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
    let gelu = [(INF, INF, 1.0), (-INF, -0.0, 0.0), (NAN, NAN, NAN), (-f32::MAX, -0.0, 0.0), (f32::MAX, f32::MAX, 1.0)];
    let relu2 = [(INF, INF, INF), (-INF, 0.0, 0.0), (NAN, NAN, NAN), (f32::MAX, INF, INF), (-1.0, 0.0, 0.0)];
    let tanh = [(INF, 1.0, 0.0), (-INF, -1.0, 0.0), (NAN, NAN, NAN), (0.0, 0.0, 1.0), (f32::MAX, 1.0, 0.0)];
    type Values<'a> = &'a [(f32, f32, f32)];
    let cases: [(Activation, Values); 4] =
        [(Activation::Silu, &silu), (Activation::Gelu, &gelu), (Activation::Relu2, &relu2), (Activation::Tanh, &tanh)];
    for team in teams() {
        for (act, values) in cases {
            for &(g, psi, derivative) in values {
                let [dg, du, h] = backward(&team, act, &[1.0], &[g], &[1.0], 1);
                for (actual, expected) in [(dg[0], derivative), (du[0], psi), (h[0], psi)] {
                    let same = actual.to_bits() == expected.to_bits() || actual.is_nan() && expected.is_nan();
                    assert!(same, "gated_activation {} {act:?} at {g:e}: {actual:e}, not {expected:e}", team.level());
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
            assert_eq!(bits(&forward(&team, act, &g, &ones, d_ff)), bits(&h), "{what}: forward and backward differ");
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
            assert!(off.abs() < 5.0, "gated_activation p={p} {what}: {count} of {n}, {off:.1} standard deviations off");
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
