//! A matrix times several vectors, for a few tokens at once: the weights are read once, straight, and not packed.

use crate::gemv::{LINE, rows_per_task};
use crate::simd::map::spans;
use crate::simd::{Kernel, Simd};
use crate::team::SharedMut;
use crate::{Beta, Team, Weight};
use std::ops::Range;

/// `Y = X W^T` or, with [`Beta::One`], `Y += X W^T`: `y[n, i] (+)= dot(W[i, :], x[n, :])`.
///
/// Shapes: w `[M, K]`, x `[N, K]`, y `[N, M]`, N and K not 0.
///
/// Panics if a length does not fit. Accuracy and bits: each row of Y is, or is added, that of [`gemv`](crate::gemv::gemv). Cost: W is read
/// once from memory and again from the L2 cache for every three rows of X; 2 M N K flop. So a few rows cost little more than one, and up to
/// [`FEW_ROWS`] less than [`gemm`](crate::gemm::gemm), which copies W.
#[track_caller]
pub fn gemv_batch<W: Weight>(team: &Team, w: &[W], x: &[f32], n: usize, beta: Beta, y: &mut [f32]) {
    assert!(n > 0 && x.len() >= n, "gemv_batch: {n} rows in x of {} elements", x.len());
    let (m, k) = (y.len() / n, x.len() / n);
    assert!(
        w.len() == m * k && x.len() == n * k && y.len() == n * m,
        "gemv_batch: w has {}, x {} and y {} elements for [M, K], [{n}, K] and [{n}, M]",
        w.len(),
        x.len(),
        y.len()
    );
    let rows = rows_per_task::<W>(k);
    let y = SharedMut::new(y);
    team.run(m.div_ceil(rows), |task| {
        let first = task * rows;
        let w = &w[first * k..m.min(first + rows) * k];
        team.level().dispatch(Dots { w, x, k, beta, y: &y, first, m });
    });
}

/// Rows of X up to which [`gemv_batch`] is faster than [`gemm`](crate::gemm::gemm). On one thread of a (busy) Zen 5, W `[5632, 2048]`
/// from memory, milliseconds of `gemv_batch` and `gemm`: bf16, 2 rows 0.85 and 2.8, 4 rows 1.2 and 2.7, 6 rows 1.8 and 2.8, 12 rows 3.6
/// and 3.4; f32, 2 rows 1.6 and 4.0, 4 rows 3.1 and 3.8, 6 rows 3.8 and 3.4. In a whole prompt of the model 125m, six rows gained nothing.
pub const FEW_ROWS: usize = 4;

/// The columns of Y from `first` on, one for each row of `w`.
struct Dots<'a, W> {
    w: &'a [W],
    x: &'a [f32],
    k: usize,
    beta: Beta,
    y: &'a SharedMut<'a, f32>,
    first: usize,
    m: usize,
}

impl<W: Weight> Kernel for Dots<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let rows = self.w.len() / self.k;
        for first in (0..rows).step_by(BLOCK) {
            let block = first..rows.min(first + BLOCK);
            let mut token = 0;
            // Four accumulators for each row and token: 24 of 32 registers, or 8 of 16. The first tokens hint at the next block.
            while self.tokens() - token >= 3 && S::LANES == 16 {
                self.block::<S, 2, 3>(s, block.clone(), token);
                token += 3;
            }
            while self.tokens() - token >= 2 && S::LANES == 16 {
                self.block::<S, 2, 2>(s, block.clone(), token);
                token += 2;
            }
            for token in token..self.tokens() {
                self.block::<S, 2, 1>(s, block.clone(), token);
            }
        }
    }
}

/// Rows that all tokens meet before the next ones: they stay in L2, and the group of tokens that meets them, in L1.
const BLOCK: usize = 8;

impl<W: Weight> Dots<'_, W> {
    fn tokens(&self) -> usize {
        self.x.len() / self.k
    }

    /// A block of rows, `R` at a time, with the `T` tokens from `token` on.
    #[inline(always)]
    fn block<S: Simd, const R: usize, const T: usize>(&self, s: S, block: Range<usize>, token: usize) {
        let k = self.k;
        let x = &self.x[token * k..][..T * k];
        let mut i = block.start;
        while i + R <= block.end {
            let hint = (token == 0).then(|| self.w.as_ptr().wrapping_add((i + BLOCK) * k));
            let sums: [[f32; T]; R] = dots(s, &self.w[i * k..][..R * k], x, k, hint);
            sums.iter().enumerate().for_each(|(r, sums)| self.put(i + r, token, sums));
            i += R;
        }
        while i < block.end {
            let hint = (token == 0).then(|| self.w.as_ptr().wrapping_add((i + BLOCK) * k));
            let [sums]: [[f32; T]; 1] = dots(s, &self.w[i * k..][..k], x, k, hint);
            self.put(i, token, &sums);
            i += 1;
        }
    }

    #[inline(always)]
    fn put(&self, i: usize, token: usize, sums: &[f32]) {
        for (t, sum) in sums.iter().enumerate() {
            // SAFETY: a task writes the columns of its own rows of W, which no other task has.
            let y = unsafe { &mut self.y.slice((token + t) * self.m + self.first + i, 1)[0] };
            *y = if self.beta == Beta::One { *y + sum } else { *sum };
        }
    }
}

/// The dots of `R` rows with `T` tokens, each in the order of [`gemv`](crate::gemv::gemv). `hint`: rows that come later.
#[inline(always)]
fn dots<S: Simd, W: Weight, const R: usize, const T: usize>(
    s: S,
    rows: &[W],
    x: &[f32],
    k: usize,
    hint: Option<*const W>,
) -> [[f32; T]; R] {
    /// Accumulators of a row and a token, as those of a row in gemv.
    const A: usize = 4;
    assert!(rows.len() == R * k && x.len() == T * k, "gemv_batch: rows or tokens of another length");
    let mut acc = [[[s.splat(0.0); T]; R]; A];
    let block = A * S::LANES;
    let whole = k / block * block;
    for from in (0..whole).step_by(block) {
        for (a, acc) in acc.iter_mut().enumerate() {
            let at = from + a * S::LANES;
            // SAFETY: at + LANES <= whole <= k, the length of each of the rows and of the tokens.
            unsafe {
                let mut v = [s.splat(0.0); T];
                for (t, v) in v.iter_mut().enumerate() {
                    *v = s.load_ptr(x.as_ptr().add(t * k + at));
                }
                for (r, acc) in acc.iter_mut().enumerate() {
                    let w = W::load_ptr(s, rows.as_ptr().add(r * k + at));
                    for (acc, &v) in acc.iter_mut().zip(&v) {
                        *acc = s.mul_add(w, v, *acc);
                    }
                }
            }
            if let Some(hint) = hint
                && (a * S::LANES * size_of::<W>()).is_multiple_of(LINE)
            {
                for r in 0..R {
                    s.prefetch(hint.wrapping_add(r * k + at).cast());
                }
            }
        }
    }
    let mut sums = [[0.0; T]; R];
    for (r, sums) in sums.iter_mut().enumerate() {
        let row = &rows[r * k + whole..(r + 1) * k];
        for (t, sum) in sums.iter_mut().enumerate() {
            let x = &x[t * k + whole..(t + 1) * k];
            for (acc, at) in acc.iter_mut().zip(spans(s, x.len())) {
                acc[r][t] = s.mul_add(at.load(s, row), at.load(s, x), acc[r][t]);
            }
            *sum = s.reduce_sum(s.add(s.add(acc[0][r][t], acc[1][r][t]), s.add(acc[2][r][t], acc[3][r][t])));
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemv::gemv;
    use crate::testing::{lengths, teams, uniform, uniform_bf16};

    #[track_caller]
    fn check<W: Weight>(team: &Team, w: &[W], (m, n, k): (usize, usize, usize)) {
        let x = uniform(2, n * k);
        for beta in [Beta::Zero, Beta::One] {
            let before = if beta == Beta::One { uniform(3, n * m) } else { vec![f32::NAN; n * m] };
            let (mut y, mut expected) = (before.clone(), vec![f32::NAN; n * m]);
            gemv_batch(team, w, &x, n, beta, &mut y);
            for (x, expected) in x.chunks(k).zip(expected.chunks_mut(m.max(1))) {
                gemv(team, w, x, expected);
            }
            if beta == Beta::One {
                expected.iter_mut().zip(&before).for_each(|(e, b)| *e += b);
            }
            let bits = |y: &[f32]| y.iter().map(|y| y.to_bits()).collect::<Vec<_>>();
            let (level, threads) = (team.level(), team.threads());
            assert!(
                bits(&y) == bits(&expected),
                "gemv_batch {} {level} {threads}t [{m}, {k}], {n} tokens, {beta:?}",
                <W as Weight>::NAME
            );
        }
    }

    #[test]
    fn gemv_batch_has_the_bits_of_gemv_for_each_token() {
        for team in teams() {
            for k in lengths().filter(|&k| k > 0) {
                for (m, n) in [(0, 3), (1, 1), (9, 2), (3, 5), (7, 6), (2, 7), (4, 16), (37, 13)] {
                    check(&team, &uniform(1, m * k), (m, n, k));
                    check(&team, &uniform_bf16(1, m * k), (m, n, k));
                }
            }
            // More than one task, in rows that are hinted at far ahead and near.
            check(&team, &uniform(1, 100 * 1500), (100, 8, 1500));
            check(&team, &uniform_bf16(1, 20 * 5000), (20, 3, 5000));
        }
    }

    #[test]
    #[should_panic(expected = "gemv_batch: w has 7, x 4 and y 6 elements for [M, K], [2, K] and [2, M]")]
    fn gemv_batch_names_the_lengths_that_do_not_fit() {
        gemv_batch(&Team::serial(crate::Level::SCALAR), &[0f32; 7], &[0.0; 4], 2, Beta::Zero, &mut [0.0; 6]);
    }
}
