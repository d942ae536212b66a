//! The LM head fused with the cross-entropy: logits exist for a chunk of rows at a time, never all of them.
//!
//! ```text
//! for rows n .. n + R                       R from V alone: chunk_rows
//!     Z = X W^T              [R, V]         gemm
//!     loss += logsumexp(z) - z[target]      row by row
//!     Z = scale (softmax(Z) - onehot)       in place, backward only, as are the last two
//!     dX = Z W               [R, C]         gemm
//!     dW (+)= Z^T X          [V, C]         gemm
//! ```

use crate::elementwise::ELEMENTS_PER_TASK;
use crate::gemm::gemm;
use crate::simd::math::exp;
use crate::simd::{Kernel, Simd};
use crate::team::SharedMut;
use crate::{Beta, Mat, MatMut, Team, scratch};

/// Most logits of a chunk, if that leaves [`MIN_ROWS`]: 32 MiB, the L3 of the machine it was tuned on. A row is small enough for
/// L2, where the passes of its softmax find it; but each chunk copies all of W twice, which many rows must pay for. Measured
/// for V = 32000, C = 512, backward, one thread of a busy Zen 5, best of 8: 43, 62, 79, 91, 97 GFLOP/s at 4, 8, 16, 32, 64 MiB.
const CHUNK_LEN: usize = 8 << 20;

/// Least rows of a chunk. Each chunk reads W twice and dW once, and writes dW once: 16 V C bytes for 6 R V C flop. At 32 rows
/// that is 12 flop a byte, what two Zen 5 cores do (500 GFLOP/s) on what their memory gives (45 GB/s).
const MIN_ROWS: usize = 32;

/// Most rows of a chunk: at small V (bytes: 257) more would not make the products faster, and 1 MiB of logits stays in L2.
const MAX_ROWS: usize = 1024;

/// Rows of logits begin at whole vectors of every level, so that no row has a tail.
const ALIGN: usize = 16;

/// Values of a row that the loss is made of: the largest logit, the sum of exponentials, the target's logit.
const STATS: usize = 3;

/// Rows of a chunk: depends on the shape only. Chunks are equal, so that the last is not a rest of a few rows.
fn chunk_rows(n: usize, v: usize) -> usize {
    let most = (CHUNK_LEN / v.next_multiple_of(ALIGN).max(ALIGN)).clamp(MIN_ROWS, MAX_ROWS);
    n.div_ceil(n.div_ceil(most).max(1))
}

/// The sum over rows of `logsumexp(z) - z[target]` with `z = W x` (natural logarithm; divide by N for the mean).
///
/// Shapes: x `[N, C]`; w `[V, C]`, C = `d_model`; targets `[N]`, each below V. For evaluation: no gradients.
///
/// Panics if a length does not fit or a target is not below V. Accuracy: with `E = (C + 4) 2^-24 sum |w x|`, the bound of a
/// logit, each row is off by at most `2 E + (2 max |z| + V + 4) 2^-24`; rows are added in `f64` in their order. The largest
/// logit is subtracted before the exponential, so finite logits of any size are safe; a NaN among them makes the loss NaN.
///
/// Cost: one product of `2 N V C` flop, three passes over the logits in cache, and scratch for at most 8 Mi logits (32 MiB;
/// 32 rows of them where V is above 262144).
#[track_caller]
pub fn lm_head_loss(team: &Team, x: &[f32], w: &[f32], targets: &[u32], d_model: usize) -> f64 {
    check("lm_head_loss", x, w, targets, d_model);
    by_chunks(team, x, w, targets, d_model, None)
}

/// [`lm_head_loss`] and, from the same logits, the gradients of `scale` times it: `dx = scale dz W`, `dw (+)= scale dz^T x`
/// with `dz = softmax(z) - onehot(target)`. dx is overwritten; `dw_beta` says whether dw is.
///
/// Shapes: dx like x, dw like w. Panics as [`lm_head_loss`] does. The loss has the same bits as there. Accuracy: a
/// probability is within `2 E + (4 max |z| + V + 12) 2^-24` relative; dx and dw add the bound of a dot of V and N terms.
/// Cost: three products, `6 N V C` flop.
#[allow(clippy::too_many_arguments)] // the tensors of the formula
#[track_caller]
pub fn lm_head_loss_backward(
    team: &Team,
    x: &[f32],
    w: &[f32],
    targets: &[u32],
    d_model: usize,
    scale: f32,
    dx: &mut [f32],
    dw_beta: Beta,
    dw: &mut [f32],
) -> f64 {
    check("lm_head_loss_backward", x, w, targets, d_model);
    check_gradients([dx.len(), dw.len()], [x.len(), w.len()]);
    if targets.is_empty() && dw_beta == Beta::Zero {
        dw.fill(0.0);
    }
    by_chunks(team, x, w, targets, d_model, Some(Gradients { scale, dx, dw_beta, dw }))
}

/// V. Panics if [`lm_head_loss`] or its backward, `op`, does not take x and w of these lengths with n targets, on any
/// device.
#[track_caller]
pub fn check_lengths(op: &str, [x, w]: [usize; 2], n: usize, d_model: usize) -> usize {
    assert!(d_model > 0 && w.is_multiple_of(d_model), "{op}: w has {w} elements, not [V, {d_model}]");
    assert!(x == n * d_model, "{op}: x has {x} elements for [{n}, {d_model}]");
    w / d_model
}

/// Panics if [`lm_head_loss_backward`] does not take dx and dw of these lengths with x and w of those, on any device.
#[track_caller]
pub fn check_gradients([dx, dw]: [usize; 2], [x, w]: [usize; 2]) {
    assert!(dx == x && dw == w, "lm_head_loss_backward: dx {dx} for x {x}, dw {dw} for w {w} elements");
}

#[track_caller]
fn check(op: &str, x: &[f32], w: &[f32], targets: &[u32], d_model: usize) {
    let v = check_lengths(op, [x.len(), w.len()], targets.len(), d_model);
    if let Some((row, target)) = targets.iter().enumerate().find(|&(_, &target)| target as usize >= v) {
        panic!("{op}: the target of row {row} is {target}, but the vocabulary has V = {v} tokens");
    }
}

struct Gradients<'a> {
    scale: f32,
    dx: &'a mut [f32],
    dw_beta: Beta,
    dw: &'a mut [f32],
}

fn by_chunks(team: &Team, x: &[f32], w: &[f32], targets: &[u32], c: usize, mut gradients: Option<Gradients>) -> f64 {
    let (n, v) = (targets.len(), w.len() / c);
    let stride = v.next_multiple_of(ALIGN);
    let most_rows = chunk_rows(n, v);
    let w = Mat::new(w, v, c);
    let mut loss = 0.0;
    scratch::with(most_rows * (stride + STATS), |scratch| {
        let (logits, stats) = scratch.split_at_mut(most_rows * stride);
        for first in (0..n).step_by(most_rows.max(1)) {
            let rows = most_rows.min(n - first);
            let x_at = first * c..(first + rows) * c;
            let (logits, stats) = (&mut logits[..rows * stride], &mut stats[..rows * STATS]);
            let x = Mat::new(&x[x_at.clone()], rows, c);
            gemm(team, x, w.t(), Beta::Zero, MatMut::strided(logits, rows, v, stride));

            let scale = gradients.as_ref().map(|g| g.scale);
            softmax_rows(team, logits, &targets[first..first + rows], v, scale, stats);
            for row in stats.chunks_exact(STATS) {
                let [max, sum, target] = [row[0] as f64, row[1] as f64, row[2] as f64];
                loss += max + sum.ln() - target;
            }

            if let Some(Gradients { dx, dw_beta, dw, .. }) = &mut gradients {
                let dz = Mat::strided(logits, rows, v, stride, 1);
                gemm(team, dz, w, Beta::Zero, MatMut::new(&mut dx[x_at], rows, c));
                gemm(team, dz.t(), x, *dw_beta, MatMut::new(dw, v, c));
                *dw_beta = Beta::One;
            }
        }
    });
    loss
}

/// For each row of logits its [`STATS`] and, if `scale` is given, `scale * (softmax - onehot(target))` in its place.
fn softmax_rows(team: &Team, logits: &mut [f32], targets: &[u32], v: usize, scale: Option<f32>, stats: &mut [f32]) {
    let stride = v.next_multiple_of(ALIGN);
    let rows_per_task = (ELEMENTS_PER_TASK / stride).max(1);
    let stats = SharedMut::new(stats);
    let level = team.level();
    team.run_chunks_mut(logits, rows_per_task * stride, |task, logits| {
        let (first, rows) = (task * rows_per_task, logits.len() / stride);
        // SAFETY: the rows of different tasks do not meet.
        let stats = unsafe { stats.slice(first * STATS, rows * STATS) };
        level.dispatch(SoftmaxRows { logits, stride, v, targets: &targets[first..first + rows], scale, stats });
    });
}

struct SoftmaxRows<'a> {
    logits: &'a mut [f32],
    stride: usize,
    v: usize,
    targets: &'a [u32],
    scale: Option<f32>,
    stats: &'a mut [f32],
}

/// Vectors that the passes over a row take together: their chains of maxima and sums overlap.
const CHAINS: usize = 4;

impl Kernel for SoftmaxRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let block = CHAINS * S::LANES;
        let rows = self.logits.chunks_exact_mut(self.stride).zip(self.targets).zip(self.stats.chunks_exact_mut(STATS));
        for ((row, &target), stats) in rows {
            let target = target as usize;
            row[self.v..].fill(f32::NEG_INFINITY); // the padding: e^-inf = 0
            let target_logit = row[target];

            let mut acc = [s.splat(f32::NEG_INFINITY); CHAINS];
            for z in row.chunks(block) {
                for (acc, z) in acc.iter_mut().zip(z.chunks_exact(S::LANES)) {
                    *acc = s.max(*acc, s.load(z));
                }
            }
            let [a, b, c, d] = acc;
            let max = s.reduce_max(s.max(s.max(a, b), s.max(c, d)));

            // A NaN that the maximum passed over is caught here: its exponential is NaN, and so is the sum.
            let max_v = s.splat(max);
            let mut acc = [s.splat(0.0); CHAINS];
            for z in row.chunks_mut(block) {
                for (acc, z) in acc.iter_mut().zip(z.chunks_exact_mut(S::LANES)) {
                    let e = exp(s, s.sub(s.load(z), max_v));
                    *acc = s.add(*acc, e);
                    if self.scale.is_some() {
                        s.store(e, z);
                    }
                }
            }
            let [a, b, c, d] = acc;
            let sum = s.reduce_sum(s.add(s.add(a, b), s.add(c, d)));
            stats.copy_from_slice(&[max, sum, target_logit]);

            if let Some(scale) = self.scale {
                let factor = s.splat(scale / sum);
                for e in row.chunks_exact_mut(S::LANES) {
                    s.store(s.mul(s.load(e), factor), e);
                }
                row[target] -= scale;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Level;
    use crate::reference;
    use crate::testing::{ROUNDING, assert_within, teams, teams_of, underflow_bound, uniform};

    struct Case {
        x: Vec<f32>,
        w: Vec<f32>,
        targets: Vec<u32>,
        c: usize,
    }

    impl Case {
        /// `size` multiplies x, and so the logits.
        fn new(n: usize, v: usize, c: usize, size: f32) -> Case {
            let mut x = uniform(1, n * c);
            x.iter_mut().for_each(|x| *x *= size);
            let targets = (0..n as u32).map(|i| i.wrapping_mul(2654435761) % v as u32).collect();
            Case { x, w: uniform(2, v * c), targets, c }
        }

        /// The loss, dx and dw; dw from `old`, or from NaN with [`Beta::Zero`].
        fn backward(&self, team: &Team, scale: f32, old: Option<&[f32]>) -> (f64, Vec<f32>, Vec<f32>) {
            let Case { x, w, targets, c } = self;
            let mut dx = vec![f32::NAN; x.len()];
            let mut dw = old.map_or_else(|| vec![f32::NAN; w.len()], <[f32]>::to_vec);
            let beta = if old.is_some() { Beta::One } else { Beta::Zero };
            let loss = lm_head_loss_backward(team, x, w, targets, *c, scale, &mut dx, beta, &mut dw);
            (loss, dx, dw)
        }
    }

    /// The bounds, to first order in u = 2^-24, with Z = `abs.logit >= |z|` and `E = (C + 4) u Z` that of a logit. A change of
    /// E in every logit moves logsumexp by E at most and a probability by a factor `1 +- 2 E`. Rounding `z - max` costs
    /// 2 Z u in an exponential, and as much in their sum; an exp is within 2 ULP, 4 u, the sum of V of them V u more.
    fn check_case(case: &Case, teams: &[Team]) {
        let Case { x, w, targets, c } = case;
        let (n, v) = (targets.len(), w.len() / c);
        let scale = 0.37;
        let (loss_ref, dx_ref, dw_ref) = reference::lm_head_loss(x, w, targets, *c, scale);
        let abs = reference::lm_head_loss_abs(x, w, targets, *c, scale);
        let z_error = (c + 4) as f64 * ROUNDING * abs.logit;
        let loss_error = n as f64 * (2.0 * z_error + (2.0 * abs.logit + v as f64 + 4.0) * ROUNDING).exp_m1();
        // Two exponentials, and two roundings for scale / sum and the product with it.
        let p_error = (2.0 * z_error + (4.0 * abs.logit + v as f64 + 12.0) * ROUNDING).exp_m1();
        let old = uniform(3, w.len());
        let largest_x = x.iter().fold(0.0f64, |m, &x| m.max(x.abs() as f64));
        let chunks = n.div_ceil(chunk_rows(n, v)) as f64;
        let mut serial: Option<(Level, f64, Vec<f32>, Vec<f32>)> = None;
        for team in teams {
            let what = format!("{} x{} N={n} V={v} C={c}", team.level(), team.threads());
            let loss = lm_head_loss(team, x, w, targets, *c);
            let error = (loss - loss_ref).abs();
            assert!(
                error <= loss_error,
                "lm_head_loss {what}: {loss}, expected {loss_ref}: off by {error:e}, bound {loss_error:e}"
            );
            for old in [None, Some(&old[..])] {
                let (loss_too, dx, dw) = case.backward(team, scale, old);
                assert_eq!(loss.to_bits(), loss_too.to_bits(), "lm_head_loss_backward {what}: another loss");
                assert_within(&format!("lm_head_loss_backward {what} dx"), &dx, &dx_ref, |i| {
                    (p_error + (v + 8) as f64 * ROUNDING) * abs.dx[i] + underflow_bound(v, 1.0)
                });
                // Old values are rounded once for each chunk that is added to them.
                let before = |i: usize| old.map_or(0.0, |old| old[i] as f64);
                let sum: Vec<f64> = dw_ref.iter().enumerate().map(|(i, d)| d + before(i)).collect();
                assert_within(&format!("lm_head_loss_backward {what} dw"), &dw, &sum, |i| {
                    let rounding =
                        (p_error + (n + 8) as f64 * ROUNDING) * abs.dw[i] + chunks * ROUNDING * before(i).abs();
                    rounding + underflow_bound(n, largest_x)
                });
                if old.is_some() {
                    continue;
                }
                match &serial {
                    Some((level, loss_1, dx_1, dw_1)) if *level == team.level() => {
                        let same = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
                        let same = loss.to_bits() == loss_1.to_bits() && same(&dx, dx_1) && same(&dw, dw_1);
                        assert!(same, "lm_head_loss_backward {what}: bits depend on the number of threads");
                    }
                    _ => serial = Some((team.level(), loss, dx, dw)),
                }
            }
        }
    }

    #[test]
    fn lm_head_loss_matches_reference() {
        let teams = teams_of(&[1, 2, 3]);
        for v in [1, 2, 15, 16, 17, 64, 257, 1000] {
            for (n, c) in [(1, 1), (3, 7), (37, 64), (130, 20)] {
                check_case(&Case::new(n, v, c, 1.0), &teams);
            }
        }
    }

    #[test]
    fn lm_head_loss_matches_reference_at_the_edges_of_chunks() {
        let teams = teams_of(&[1, 2, 3]);
        for n in [MAX_ROWS - 1, MAX_ROWS, MAX_ROWS + 1, 2 * MAX_ROWS + 1] {
            check_case(&Case::new(n, 5, 3, 1.0), &teams);
        }
        // A vocabulary for which the length and not the number of rows sets the chunk: 209 rows of 40,000.
        check_case(&Case::new(211, 40_000, 2, 1.0), &teams);
    }

    #[test]
    fn lm_head_loss_is_stable_for_large_logits() {
        let case = Case::new(40, 100, 4, 1e4);
        let largest = reference::lm_head_loss_abs(&case.x, &case.w, &case.targets, 4, 1.0).logit;
        assert!(largest > 1e4, "the case is too tame: logits up to {largest}");
        check_case(&case, &teams_of(&[1, 2, 3]));
    }

    /// By construction a chunk is all the logits there are; it never holds more than 8 Mi of them, or 32 rows.
    #[test]
    fn lm_head_loss_never_holds_all_logits() {
        for v in [1, 257, 32_000, 128_256, 1_000_000] {
            for n in [1, 31, 4096, 1 << 20] {
                let rows = chunk_rows(n, v);
                let len = rows * v.next_multiple_of(ALIGN);
                assert!(rows >= 1 && (len <= CHUNK_LEN || rows <= MIN_ROWS), "lm_head_loss N={n} V={v}: {rows} rows");
            }
        }
        assert_eq!(chunk_rows(0, 257), 0);
    }

    #[test]
    fn lm_head_loss_of_no_rows_is_zero() {
        let team = Team::serial(Level::best());
        let case = Case { x: vec![], w: uniform(1, 6), targets: vec![], c: 2 };
        assert_eq!(lm_head_loss(&team, &case.x, &case.w, &case.targets, 2), 0.0);
        assert_eq!(case.backward(&team, 1.0, None), (0.0, vec![], vec![0.0; 6]));
        assert_eq!(case.backward(&team, 1.0, Some(&[1.0; 6])), (0.0, vec![], vec![1.0; 6]));
    }

    #[test]
    fn lm_head_loss_does_not_hide_nan() {
        for team in teams() {
            for v in [1, 5, 257] {
                for bad in [f32::NAN, f32::INFINITY] {
                    for row in [0, v / 2, v - 1] {
                        let mut case = Case::new(7, v, 4, 1.0);
                        case.w[row * 4 + 1] = bad;
                        let what = format!("{} V={v}, {bad} in row {row} of w", team.level());
                        let loss = lm_head_loss(&team, &case.x, &case.w, &case.targets, 4);
                        assert!(!loss.is_finite(), "lm_head_loss {what}: {loss}");
                        let (loss, dx, _) = case.backward(&team, 1.0, None);
                        assert!(!loss.is_finite(), "lm_head_loss_backward {what}: {loss}");
                        assert!(dx.iter().any(|x| x.is_nan()), "lm_head_loss_backward {what}: dx hides it");
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "lm_head_loss: the target of row 1 is 3, but the vocabulary has V = 3 tokens")]
    fn lm_head_loss_names_a_target_out_of_range() {
        lm_head_loss(&Team::serial(Level::SCALAR), &[0.0; 4], &[0.0; 6], &[2, 3], 2);
    }

    #[test]
    #[should_panic(expected = "lm_head_loss: x has 5 elements for [2, 2]")]
    fn lm_head_loss_names_both_shapes() {
        lm_head_loss(&Team::serial(Level::SCALAR), &[0.0; 5], &[0.0; 6], &[0, 1], 2);
    }
}
