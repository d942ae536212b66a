use super::*;
use crate::reference::{self, AttentionAbs};
use crate::testing::{ROUNDING, assert_within, teams, teams_of, underflow_bound, uniform};
use crate::{Level, Team, Weight};
use half::bf16;
use proptest::prelude::*;

/// Inputs of one case; `size` multiplies q, and so the scores.
struct Case {
    shape: AttentionShape,
    scale: f32,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    d_out: Vec<f32>,
}

impl Case {
    fn new(shape: AttentionShape, size: f32) -> Case {
        let mut q = uniform(1, shape.q_elements());
        q.iter_mut().for_each(|q| *q *= size);
        let scale = 1.0 / (shape.head_dim as f32).sqrt();
        let (k, v) = (uniform(2, shape.kv_elements()), uniform(3, shape.kv_elements()));
        Case { shape, scale, q, k, v, d_out: uniform(4, shape.q_elements()) }
    }

    fn forward(&self, team: &Team) -> (Vec<f32>, Vec<f32>) {
        let Case { shape, scale, q, k, v, .. } = self;
        let (mut out, mut lse) = (vec![f32::NAN; shape.q_elements()], vec![f32::NAN; shape.lse_elements()]);
        attention(team, *shape, *scale, q, k, v, &mut out, &mut lse);
        (out, lse)
    }

    /// From the destinations `old`, or from NaN with [`Beta::Zero`].
    fn backward(&self, team: &Team, out: &[f32], lse: &[f32], old: Option<[&[f32]; 3]>) -> [Vec<f32>; 3] {
        let Case { shape, scale, q, k, v, d_out } = self;
        let (beta, [mut dq, mut dk, mut dv]) = match old {
            Some(old) => (Beta::One, old.map(<[f32]>::to_vec)),
            None => (Beta::Zero, [q, k, v].map(|x| vec![f32::NAN; x.len()])),
        };
        let saved = AttentionSaved { q, k, v, out, lse };
        attention_backward(team, *shape, *scale, saved, d_out, beta, &mut dq, &mut dk, &mut dv);
        [dq, dk, dv]
    }

    fn reference(&self) -> Reference {
        let Case { shape, scale, q, k, v, d_out } = self;
        let (out, lse) = reference::attention(*shape, *scale, q, k, v);
        let (dq, dk, dv) = reference::attention_backward(*shape, *scale, q, k, v, d_out);
        Reference { out, lse, gradients: [dq, dk, dv], abs: reference::attention_abs(*shape, *scale, q, k, v, d_out) }
    }
}

struct Reference {
    out: Vec<f64>,
    lse: Vec<f64>,
    gradients: [Vec<f64>; 3],
    abs: AttentionAbs,
}

/// The largest relative error of a probability, to first order, with u = 2^-24 and S = `abs.score >= |score|`:
///
/// - Each score is off by at most `E = (D + 5) u S`: a dot of D terms, and the rounding of `scale * q`. A softmax moves by
///   no more than `2 E` for it.
/// - Rounding `score - max` (at most 2 S) costs 2 S u, and once more for the sum over the other scores; the steps from one
///   running maximum to the next add up to at most 2 S again, for the sum and for the row: 8 S u in all. In the backward
///   `score - lse` and the rounding of lse (at most S + ln Tk) take less.
/// - Each exp is within 2 ULP, 4 u, and its product with the row's rescaling another u; a row is rescaled
///   `blocks = Tk / 64` times, as is its sum: 10 u a block. The sum of Tk terms costs Tk u, the division 3 u.
fn probability_error(shape: AttentionShape, abs: &AttentionAbs) -> f64 {
    let score_error = (shape.head_dim + 5) as f64 * ROUNDING * abs.score;
    let blocks = shape.kv_len.div_ceil(64) as f64;
    let log_len = (shape.kv_len as f64).ln();
    let first_order =
        2.0 * score_error + (8.0 * abs.score + 2.0 * log_len + 10.0 * blocks + shape.kv_len as f64 + 12.0) * ROUNDING;
    first_order.exp_m1()
}

/// The name that a failure begins with: one query a sequence has a form of its own.
fn forward_name(shape: AttentionShape) -> &'static str {
    if shape.q_len == 1 { "attention_decode" } else { "attention" }
}

fn check_forward(what: &str, case: &Case, expected: &Reference, out: &[f32], lse: &[f32]) {
    let (shape, abs) = (case.shape, &expected.abs);
    let (name, p_error) = (forward_name(shape), probability_error(shape, abs));
    // Each output is a dot of the probabilities with a column of V.
    let out_error = p_error + (shape.kv_len + 4) as f64 * ROUNDING;
    assert_within(&format!("{name} {what} out"), out, &expected.out, |i| {
        out_error * abs.out[i] + underflow_bound(shape.kv_len, 1.0)
    });
    // The logarithm turns the relative error of the sum into an absolute one; ln and the addition round.
    assert_within(&format!("{name} {what} lse"), lse, &expected.lse, |i| {
        p_error + 3.0 * ROUNDING * (expected.lse[i].abs() + abs.score)
    });
}

/// `dS = P (dP - delta)`: to the error of P add the dots of D terms in dP and delta and three roundings; then the sum over
/// keys (dq) or over the queries of all heads of the group (dk, dv). `old` was in the destination: one rounding more.
fn check_backward(what: &str, case: &Case, expected: &Reference, old: Option<[&[f32]; 3]>, actual: &[Vec<f32>; 3]) {
    let (shape, abs) = (case.shape, &expected.abs);
    let ds_error = probability_error(shape, abs) + (shape.head_dim + 12) as f64 * ROUNDING;
    let queries = shape.q_len * shape.n_heads / shape.n_kv_heads;
    let terms = [shape.kv_len, queries, queries];
    // P times |dP - delta| <= 2 D, and that times q or k.
    let largest_q = case.q.iter().fold(1.0f64, |m, &x| m.max(x.abs() as f64));
    let largest = largest_q * (2.0 * shape.head_dim as f64 + 1.0);
    for (i, (name, abs)) in [("dq", &abs.dq), ("dk", &abs.dk), ("dv", &abs.dv)].into_iter().enumerate() {
        let before = |j: usize| old.map_or(0.0, |old| old[i][j] as f64);
        let sum: Vec<f64> = expected.gradients[i].iter().enumerate().map(|(j, g)| g + before(j)).collect();
        assert_within(&format!("attention_backward {what} {name}"), &actual[i], &sum, |j| {
            let rounding = (ds_error + (terms[i] + 8) as f64 * ROUNDING) * abs[j];
            rounding + underflow_bound(terms[i], largest) + ROUNDING * (before(j).abs() + sum[j].abs())
        });
    }
}

/// Forward and backward on every team, both betas; and the teams of a level give the same bits.
fn check_everywhere(shape: AttentionShape, size: f32, teams: &[Team]) {
    let case = Case::new(shape, size);
    let expected = case.reference();
    let old = [uniform(5, case.q.len()), uniform(6, case.k.len()), uniform(7, case.v.len())];
    let old = [&old[0][..], &old[1][..], &old[2][..]];
    let saved: [Vec<f32>; 2] = [&expected.out, &expected.lse].map(|x| x.iter().map(|&x| x as f32).collect());
    let mut serial: Option<(Level, [Vec<f32>; 5])> = None;
    for team in teams {
        let what = format!("{} x{} size={size} {shape:?}", team.level(), team.threads());
        let (out, lse) = case.forward(team);
        check_forward(&what, &case, &expected, &out, &lse);
        let [dq, dk, dv] = case.backward(team, &saved[0], &saved[1], None);
        check_backward(&what, &case, &expected, None, &[dq.clone(), dk.clone(), dv.clone()]);
        check_backward(&what, &case, &expected, Some(old), &case.backward(team, &saved[0], &saved[1], Some(old)));

        let all = [out, lse, dq, dk, dv];
        match &serial {
            Some((level, first)) if *level == team.level() => {
                for (name, (a, b)) in ["out", "lse", "dq", "dk", "dv"].iter().zip(first.iter().zip(&all)) {
                    let same = a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{} {what}: the bits of {name} depend on the threads", forward_name(shape));
                }
            }
            _ => serial = Some((team.level(), all)),
        }
    }
}

fn shape(batch: usize, q_len: usize, kv_len: usize, heads: [usize; 2], head_dim: usize) -> AttentionShape {
    AttentionShape { batch, q_len, kv_len, n_heads: heads[0], n_kv_heads: heads[1], head_dim }
}

#[test]
fn attention_matches_reference_for_every_length() {
    let teams = teams_of(&[1, 2, 3]);
    for t in [1usize, 2, 15, 16, 17, 63, 64, 65, 130] {
        for (q_len, kv_len) in [(t, t), (t, t + 1), (t, t + 37), (t, t + 64), (1, t), (t.div_ceil(3), t)] {
            check_everywhere(shape(1, q_len, kv_len, [2, 1], 20), 1.0, &teams);
        }
    }
}

#[test]
fn attention_matches_reference_for_every_head_dim_and_grouping() {
    let teams = teams_of(&[1, 2, 3]);
    for head_dim in [2, 4, 8, 20, 32, 64, 80, 128] {
        for heads in [[1, 1], [4, 4], [4, 2], [6, 1]] {
            check_everywhere(shape(2, 19, 23, heads, head_dim), 1.0, &teams);
            check_everywhere(shape(2, 1, 71, heads, head_dim), 1.0, &teams);
        }
        check_everywhere(shape(1, 70, 70, [2, 1], head_dim), 1.0, &teams);
    }
}

/// Scores of +-80 and more: without the running maximum their exponentials would overflow.
#[test]
fn attention_is_stable_for_large_scores() {
    let teams = teams_of(&[1, 2, 3]);
    for (q_len, kv_len) in [(70, 70), (65, 140), (1, 140)] {
        let shape = shape(1, q_len, kv_len, [2, 1], 8);
        let size = 150.0;
        let case = Case::new(shape, size);
        let largest = case.reference().lse.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        assert!(largest > 80.0, "the case is too tame: lse up to {largest}");
        check_everywhere(shape, size, &teams);
    }
}

/// A NaN in a query reaches that query's output and no other, at every level.
#[test]
fn attention_does_not_hide_nan() {
    for team in teams() {
        for q_len in [1, 70] {
            let mut case = Case::new(shape(1, q_len, 70, [1, 1], 8), 1.0);
            let t = q_len / 2;
            case.q[t * 8 + 3] = f32::NAN;
            let (out, lse) = case.forward(&team);
            let nan = |x: &[f32]| x.iter().map(|x| x.is_nan()).collect::<Vec<_>>();
            let what = format!("{} {} q_len={q_len}", forward_name(case.shape), team.level());
            assert_eq!(nan(&out), (0..q_len * 8).map(|i| i / 8 == t).collect::<Vec<_>>(), "{what} out");
            assert_eq!(nan(&lse), (0..q_len).map(|i| i == t).collect::<Vec<_>>(), "{what} lse");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn attention_matches_reference_for_any_shape(
        batch in 1usize..3, q_len in 1usize..100, cached in 0usize..100, n_kv_heads in 1usize..3, group in 1usize..4,
        head_dim in 1usize..40, size in 0.1f32..20.0,
    ) {
        let shape = shape(batch, q_len, q_len + cached, [n_kv_heads * group, n_kv_heads], head_dim);
        check_everywhere(shape, size, &teams_of(&[1, 2, 3]));
    }
}

#[test]
fn attention_names_both_shapes() {
    let message = |shape: AttentionShape, q_len: usize| {
        let case = Case::new(AttentionShape { n_heads: 4, n_kv_heads: 2, kv_len: 9, ..shape }, 1.0);
        let (mut out, mut lse) = (vec![0.0; q_len], vec![0.0; shape.lse_elements()]);
        let team = Team::serial(Level::SCALAR);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            attention(&team, shape, 1.0, &case.q, &case.k, &case.v, &mut out, &mut lse)
        }));
        *result.expect_err("no panic").downcast::<String>().expect("a message")
    };
    let good = shape(1, 3, 9, [4, 2], 2);
    let text = message(AttentionShape { n_kv_heads: 3, ..good }, 24);
    assert!(text.contains("attention: 4 query heads of 2 cannot share 3 key-value heads"), "{text}");
    let text = message(AttentionShape { kv_len: 2, ..good }, 24);
    assert!(text.contains("attention: 3 queries for 2 keys"), "{text}");
    let text = message(good, 23);
    assert!(text.contains("attention: out has 23 elements for [1, 3, 4, 2]"), "{text}");
}

/// A batch so large that the number of elements wraps to that of one sequence.
#[test]
#[should_panic(expected = "attention: q has 64 elements")]
fn attention_refuses_a_shape_whose_size_wraps() {
    let mut shape = shape(1, 2, 2, [1, 1], 32);
    shape.batch = (1 << (usize::BITS - 6)) + 1;
    let q = [0.0; 64];
    let (mut out, mut lse) = ([0.0; 64], vec![0.0; 2]);
    attention(&Team::serial(Level::SCALAR), shape, 1.0, &q, &q, &q, &mut out, &mut lse);
}

/// `[Tk, K, D]` as a cache with room for more holds it, NaN where nothing is held.
fn cached<W: Weight>(shape: AttentionShape, capacity: usize, x: &[f32]) -> Vec<W> {
    let (heads, d) = (shape.n_kv_heads, shape.head_dim);
    let mut cache = vec![W::round(f32::NAN); heads * capacity * d];
    for (i, &x) in x.iter().enumerate() {
        let (position, head, at) = (i / d / heads, i / d % heads, i % d);
        cache[(head * capacity + position) * d + at] = W::round(x);
    }
    cache
}

/// Over a cache, of f32 or bf16, the bits are those over the same keys and values in f32, in both forms.
#[test]
fn attention_over_a_cache_has_the_bits_of_attention() {
    fn check<W: Weight>(team: &Team, case: &Case, capacity: usize) {
        let shape = case.shape;
        let [k, v] = [&case.k, &case.v].map(|x| cached::<W>(shape, capacity, x));
        let (mut out, mut lse) = (vec![f32::NAN; shape.q_elements()], vec![f32::NAN; shape.lse_elements()]);
        let cache = CachedKv { k: &k, v: &v, capacity };
        attention_cached(team, shape, case.scale, &case.q, cache, &mut out, &mut lse);
        let (expected_out, expected_lse) = case.forward(team);
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let what = format!(
            "{} of {} {capacity}, {} x{} {shape:?}",
            forward_name(shape),
            W::NAME,
            team.level(),
            team.threads()
        );
        assert!(bits(&out) == bits(&expected_out), "{what}: out");
        assert!(bits(&lse) == bits(&expected_lse), "{what}: lse");
    }
    for (q_len, kv_len) in [(1, 1), (1, 64), (1, 131), (7, 7), (5, 70), (66, 130)] {
        for (n_heads, n_kv_heads, head_dim) in [(4, 2, 16), (3, 1, 5), (2, 2, 40), (6, 2, 64)] {
            let shape = AttentionShape { batch: 1, q_len, kv_len, n_heads, n_kv_heads, head_dim };
            let mut case = Case::new(shape, 3.0);
            [case.k, case.v] = [&case.k, &case.v].map(|x| x.iter().map(|&x| bf16::round(x).widen()).collect());
            for team in teams() {
                for capacity in [kv_len, kv_len + 29] {
                    check::<f32>(&team, &case, capacity);
                    check::<bf16>(&team, &case, capacity);
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "attention_cached: batch 1, 3 positions of 2")]
fn attention_over_a_cache_needs_the_positions() {
    let shape = AttentionShape { batch: 1, q_len: 1, kv_len: 3, n_heads: 1, n_kv_heads: 1, head_dim: 2 };
    let cache = CachedKv { k: &[0.0f32; 4], v: &[0.0; 4], capacity: 2 };
    attention_cached(&Team::serial(Level::SCALAR), shape, 1.0, &[0.0; 2], cache, &mut [0.0; 2], &mut [0.0]);
}
