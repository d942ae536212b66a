//! Root-mean-square normalisation, forward and backward.

use crate::Beta;
use crate::elementwise::ELEMENTS_PER_TASK;
use crate::scratch;
use crate::simd::map::{self, spans};
use crate::simd::{Kernel, Level, Simd};
use crate::team::{SharedMut, Team};

/// Rows whose gain gradients are summed by one task. Fixed, because it decides the order of that sum.
const ROWS_PER_GAIN_SUM: usize = 64;

/// Panics if [`rms_norm`] does not take x and y of these lengths for `[N, C]`, on any device.
#[track_caller]
pub fn check([x, y]: [usize; 2], [n, c]: [usize; 2]) {
    assert!(c > 0 && x == n * c && y == n * c, "rms_norm: x {x} and y {y} for [{n}, {c}]");
}

/// Panics if [`rms_norm_backward`] does not take dy, x, dx and d_weight of these lengths for `[N, C]`, on any device.
#[track_caller]
pub fn check_backward([dy, x, dx, d_weight]: [usize; 4], [n, c]: [usize; 2]) {
    assert!(
        c > 0 && [dy, x, dx] == [n * c; 3] && d_weight == c,
        "rms_norm_backward: dy {dy}, x {x}, dx {dx}, d_weight {d_weight} for [{n}, {c}]"
    );
}

/// `y = x * inv_rms * weight` with `inv_rms = 1 / sqrt(mean(x^2) + eps)`, row by row.
///
/// Shapes: x, y `[N, C]`; weight `[C]`; inv_rms `[N]`, kept for [`rms_norm_backward`]. N is the length of `inv_rms`.
///
/// Panics if a length does not fit. Accuracy: `inv_rms` within `(C / 2 + 4) 2^-24` relative, `y` within three roundings
/// more. Cost: x read twice (the second time from cache), y written. Source: Zhang and Sennrich, arXiv 1910.07467, eq. 4.
#[track_caller]
pub fn rms_norm(team: &Team, x: &[f32], weight: &[f32], eps: f32, y: &mut [f32], inv_rms: &mut [f32]) {
    let c = weight.len();
    let n = inv_rms.len();
    check([x.len(), y.len()], [n, c]);
    let level = team.level();
    let inv_rms = SharedMut::new(inv_rms);
    let rows_per_task = (ELEMENTS_PER_TASK / c).max(1);
    team.run_chunks_mut(y, rows_per_task * c, |task, y| {
        let row = task * rows_per_task;
        // SAFETY: task t writes rows t * rows_per_task onwards, as many as its piece of y holds: tasks do not meet.
        let inv_rms = unsafe { inv_rms.slice(row, y.len() / c) };
        level.dispatch(Forward { x: &x[row * c..][..y.len()], weight, eps, y, inv_rms });
    });
}

struct Forward<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    y: &'a mut [f32],
    inv_rms: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let c = self.weight.len();
        let rows = self.x.chunks_exact(c).zip(self.y.chunks_exact_mut(c));
        for ((x, y), inv_rms) in rows.zip(self.inv_rms) {
            let mean_square = map::dot(s, x, x) / c as f32;
            *inv_rms = 1.0 / (mean_square + self.eps).sqrt();
            let scale = s.splat(*inv_rms);
            for at in spans(s, c) {
                at.store(s, s.mul(s.mul(at.load(s, x), scale), at.load(s, self.weight)), y);
            }
        }
    }
}

/// The gradients of [`rms_norm`], from those of y.
///
/// With `n = x * inv_rms` and `s = sum_c(dy * weight * n) / C`, row by row:
/// `dx (+)= inv_rms * (dy * weight - n * s)` and, summed over rows, `d_weight (+)= sum_rows(dy * n)`.
/// `dx_beta` says whether dx is overwritten or added to (the residual stream); d_weight is always added to.
///
/// Shapes: dy, x, dx `[N, C]`; weight, d_weight `[C]`; inv_rms `[N]`.
///
/// Panics if a length does not fit. The sum over rows runs in blocks of 64 rows, added in order: the same bits for any
/// number of threads.
///
/// Accuracy, in sums of the absolute values of all terms: dx within `(C + 8) 2^-24`, d_weight within `(N + 8) 2^-24` (old values
/// count as terms). Cost: dy and x read (twice, the second time from cache), dx written. Source: as [`rms_norm`],
/// differentiated.
#[allow(clippy::too_many_arguments)] // the backward of a fused kernel has this many tensors
#[track_caller]
pub fn rms_norm_backward(
    team: &Team,
    dy: &[f32],
    x: &[f32],
    weight: &[f32],
    inv_rms: &[f32],
    dx_beta: Beta,
    dx: &mut [f32],
    d_weight: &mut [f32],
) {
    let c = weight.len();
    let n = inv_rms.len();
    check_backward([dy.len(), x.len(), dx.len(), d_weight.len()], [n, c]);
    let level = team.level();
    scratch::with(n.div_ceil(ROWS_PER_GAIN_SUM) * c, |partial| {
        partial.fill(0.0);
        let partials = SharedMut::new(partial);
        team.run_chunks_mut(dx, ROWS_PER_GAIN_SUM * c, |task, dx| {
            let rows = task * ROWS_PER_GAIN_SUM..task * ROWS_PER_GAIN_SUM + dx.len() / c;
            let at = rows.start * c..rows.end * c;
            // SAFETY: one row of partial sums for each task.
            let d_weight = unsafe { partials.slice(task * c, c) };
            let (dy, x, inv_rms) = (&dy[at.clone()], &x[at], &inv_rms[rows]);
            level.dispatch(Backward { dy, x, weight, inv_rms, dx_beta, dx, d_weight });
        });
        add_rows(level, partial, d_weight);
    });
}

struct Backward<'a> {
    dy: &'a [f32],
    x: &'a [f32],
    weight: &'a [f32],
    inv_rms: &'a [f32],
    dx_beta: Beta,
    dx: &'a mut [f32],
    d_weight: &'a mut [f32],
}

impl Kernel for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let c = self.weight.len();
        for (row, &inv_rms) in self.inv_rms.iter().enumerate() {
            let at = row * c..(row + 1) * c;
            let (dy, x, dx) = (&self.dy[at.clone()], &self.x[at.clone()], &mut self.dx[at]);
            let scale = s.splat(inv_rms);

            // Two passes over the row, which stays in L1: the dot first, then both gradients.
            let mut dot = s.splat(0.0);
            for at in spans(s, c) {
                dot = s.mul_add(s.mul(at.load(s, dy), at.load(s, self.weight)), at.load(s, x), dot);
            }
            let mean = s.splat(s.reduce_sum(dot) * inv_rms / c as f32);

            for at in spans(s, c) {
                let (dy, x_hat) = (at.load(s, dy), s.mul(at.load(s, x), scale));
                let dx_at = s.mul(scale, s.sub(s.mul(dy, at.load(s, self.weight)), s.mul(x_hat, mean)));
                let dx_at = if self.dx_beta == Beta::One { s.add(at.load(s, dx), dx_at) } else { dx_at };
                at.store(s, dx_at, dx);
                at.store(s, s.mul_add(dy, x_hat, at.load(s, self.d_weight)), self.d_weight);
            }
        }
    }
}

/// `sum[c] += rows[0][c] + rows[1][c] + ...`, in that order.
fn add_rows(level: Level, rows: &[f32], sum: &mut [f32]) {
    struct AddRows<'a>(&'a [f32], &'a mut [f32]);
    impl Kernel for AddRows<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for row in self.0.chunks_exact(self.1.len()) {
                for at in spans(s, row.len()) {
                    at.store(s, s.add(at.load(s, self.1), at.load(s, row)), self.1);
                }
            }
        }
    }
    level.dispatch(AddRows(rows, sum));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;
    use crate::testing::{ROUNDING, assert_within, lengths, teams, uniform};

    #[test]
    fn rms_norm_matches_reference() {
        for team in teams() {
            for c in lengths().skip(1) {
                let n = if c < 100 { 37 } else { 3 };
                let (x, weight) = (uniform(1, n * c), uniform(2, c));
                let (mut y, mut inv_rms) = (vec![f32::NAN; n * c], vec![f32::NAN; n]);
                rms_norm(&team, &x, &weight, 1e-5, &mut y, &mut inv_rms);
                let (y_ref, inv_rms_ref) = reference::rms_norm(&x, &weight, 1e-5);
                let relative = (c as f64 / 2.0 + 4.0) * ROUNDING;
                let what = format!("rms_norm {} c={c}", team.level());
                assert_within(&format!("{what} inv_rms"), &inv_rms, &inv_rms_ref, |i| relative * inv_rms_ref[i]);
                assert_within(&format!("{what} y"), &y, &y_ref, |i| (relative + 3.0 * ROUNDING) * y_ref[i].abs());
            }
        }
    }

    #[test]
    fn rms_norm_backward_matches_reference() {
        for team in teams() {
            for c in lengths().skip(1) {
                let n = if c < 100 { 131 } else { 3 };
                let (x, weight, dy) = (uniform(1, n * c), uniform(2, c), uniform(3, n * c));
                let (_, inv_rms) = reference::rms_norm(&x, &weight, 1e-5);
                let inv_rms: Vec<f32> = inv_rms.iter().map(|&r| r as f32).collect();
                for beta in [Beta::Zero, Beta::One] {
                    let old = uniform(4, n * c);
                    let mut dx = if beta == Beta::One { old.clone() } else { vec![f32::NAN; n * c] };
                    let old_gain = uniform(5, c);
                    let mut d_weight = old_gain.clone();
                    rms_norm_backward(&team, &dy, &x, &weight, &inv_rms, beta, &mut dx, &mut d_weight);
                    let (mut dx_ref, mut d_weight_ref, abs) = reference::rms_norm_backward(&dy, &x, &weight, &inv_rms);
                    if beta == Beta::One {
                        dx_ref.iter_mut().zip(&old).for_each(|(d, &o)| *d += o as f64);
                    }
                    d_weight_ref.iter_mut().zip(&old_gain).for_each(|(d, &o)| *d += o as f64);
                    let what = format!("rms_norm_backward {} c={c} {beta:?}", team.level());
                    // The dot of C terms, and six roundings around it; an old value is one more term.
                    assert_within(&format!("{what} dx"), &dx, &dx_ref, |i| {
                        (c + 8) as f64 * ROUNDING * (abs.dx[i] + f64::from(beta == Beta::One) * old[i].abs() as f64)
                    });
                    assert_within(&format!("{what} d_weight"), &d_weight, &d_weight_ref, |i| {
                        (n + 8) as f64 * ROUNDING * (abs.d_weight[i] + old_gain[i].abs() as f64)
                    });
                }
            }
        }
    }

    #[test]
    fn bits_do_not_depend_on_threads() {
        let (n, c) = (403, 129);
        let (x, weight, dy) = (uniform(1, n * c), uniform(2, c), uniform(3, n * c));
        for level in Level::available() {
            let bits = |threads| {
                let team = Team::new(level, threads);
                let [mut y, mut dx] = [(); 2].map(|_| vec![0.0; n * c]);
                let (mut inv_rms, mut d_weight) = (vec![0.0; n], vec![0.0; c]);
                rms_norm(&team, &x, &weight, 1e-5, &mut y, &mut inv_rms);
                rms_norm_backward(&team, &dy, &x, &weight, &inv_rms, Beta::Zero, &mut dx, &mut d_weight);
                [y, inv_rms, dx, d_weight].concat().into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            assert!(bits(1) == bits(2) && bits(1) == bits(3), "rms_norm {level}: bits differ between thread counts");
        }
    }
}
