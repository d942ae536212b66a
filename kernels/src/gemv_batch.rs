//! A matrix times several vectors, for a few tokens at once: the weights are read once, straight, and not packed.

use crate::gemv::{gemv, rows_per_task};
use crate::panel::{BLOCK, Panels, dots_of_batch, with_panels};
use crate::simd::{Kernel, Simd};
use crate::team::SharedMut;
use crate::{Beta, RowFormat, Team, scratch};

/// `Y = X W^T` or, with [`Beta::One`], `Y += X W^T`: `y[n, i] (+)= dot(W[i, :], x[n, :])`.
///
/// Shapes: w `[M, K]` in any [`RowFormat`], x `[N, K]`, y `[N, M]`, N and K not 0.
///
/// Panics if a length does not fit. Accuracy and bits: each row of Y is, or is added, that of [`gemv`]. Cost: W is read
/// once from memory, and from the L2 cache again for every eight rows of X; 2 M N K flop.
#[track_caller]
pub fn gemv_batch<W: RowFormat>(team: &Team, w: &[W], x: &[f32], n: usize, beta: Beta, y: &mut [f32]) {
    assert!(n > 0 && x.len() >= n, "gemv_batch: {n} rows in x of {} elements", x.len());
    let (m, k) = (y.len() / n, x.len() / n);
    let row_len = W::row_len(k);
    assert!(
        w.len() == m * row_len && x.len() == n * k && y.len() == n * m,
        "gemv_batch: w has {} units of {}, x {} and y {} elements for [M, K], [{n}, K] and [{n}, M]",
        w.len(),
        W::NAME,
        x.len(),
        y.len()
    );
    if n == 1 {
        return match beta {
            Beta::Zero => gemv(team, w, x, y),
            Beta::One => scratch::with(m, |product| {
                gemv(team, w, x, product);
                y.iter_mut().zip(product).for_each(|(y, product)| *y += *product);
            }),
        };
    }
    let rows = rows_per_task::<W>(k).next_multiple_of(2 * BLOCK);
    let y = SharedMut::new(y);
    with_panels::<W, _>(team, x, n, |panels| {
        team.run(m.div_ceil(rows), |task| {
            let first = task * rows;
            let w = &w[first * row_len..m.min(first + rows) * row_len];
            W::dispatch(team.level(), Product { w, panels, beta, y: &y, first, m });
        });
    });
}

/// The columns of Y from `first` on, one for each row of `w`.
struct Product<'a, W> {
    w: &'a [W],
    panels: Panels<'a>,
    beta: Beta,
    y: &'a SharedMut<'a, f32>,
    first: usize,
    m: usize,
}

impl<W: RowFormat> Kernel for Product<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        dots_of_batch(s, self.w, self.panels, |row, token, dot| {
            // SAFETY: a task writes the columns of its own rows of W, which no other task has.
            let y = unsafe { &mut self.y.slice(token * self.m + self.first + row, 1)[0] };
            *y = if self.beta == Beta::One { *y + dot } else { dot };
        });
    }
}

/// Rows of X up to which [`gemv_batch`] is faster than [`gemm`](crate::gemm::gemm). On one thread of a (busy) Zen 5, W `[5632, 2048]`
/// from memory, milliseconds of `gemv_batch` and `gemm`: bf16, 2 rows 0.85 and 2.8, 4 rows 1.2 and 2.7, 6 rows 1.8 and 2.8, 12 rows 3.6
/// and 3.4; f32, 2 rows 1.6 and 4.0, 4 rows 3.1 and 3.8, 6 rows 3.8 and 3.4. In a whole prompt of the model 125m, six rows gained nothing. (Before
/// the tiles of 24 accumulators, which are faster: not measured since.)
pub const FEW_ROWS: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packed::PackedBf16;
    use crate::quant::{Q4, Q8, i8_dot};
    use crate::testing::{lengths, rounded_rows, teams, uniform, uniform_bf16};

    #[track_caller]
    fn check<W: RowFormat>(team: &Team, w: &[W], (m, n, k): (usize, usize, usize)) {
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
                W::NAME
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
                    check(&team, &rounded_rows::<PackedBf16>(&uniform(1, m * k), k), (m, n, k));
                }
                for (m, n) in [(1, 2), (9, 1), (7, 5), (37, 13)] {
                    let w = uniform(1, m * k);
                    let (q8, q4) = (rounded_rows::<Q8>(&w, k), rounded_rows::<Q4>(&w, k));
                    check(&team, &q8, (m, n, k));
                    check(&team, &q4, (m, n, k));
                    check(&team, i8_dot(&q8), (m, n, k));
                    check(&team, i8_dot(&q4), (m, n, k));
                }
            }
            // More than one task, in rows that are hinted at far ahead and near.
            check(&team, &uniform(1, 200 * 1500), (200, 8, 1500));
            check(&team, &uniform_bf16(1, 20 * 5000), (20, 3, 5000));
            check(&team, &rounded_rows::<PackedBf16>(&uniform(1, 20 * 5000), 5000), (20, 7, 5000));
        }
    }

    #[test]
    #[should_panic(expected = "gemv_batch: w has 7 units of f32, x 4 and y 6 elements for [M, K], [2, K] and [2, M]")]
    fn gemv_batch_names_the_lengths_that_do_not_fit() {
        gemv_batch(&Team::serial(crate::Level::SCALAR), &[0f32; 7], &[0.0; 4], 2, Beta::Zero, &mut [0.0; 6]);
    }
}
