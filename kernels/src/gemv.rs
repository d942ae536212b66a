//! Matrix times vector, for decoding; and the dot of several rows with one vector, which the sparse kernels share.

use crate::simd::map::spans;
use crate::simd::{Kernel, Simd};
use crate::{Team, Weight};

/// Elements of W that a task reads: 128 KiB, some 3 microseconds from memory, against 50 ns for taking a task.
const ELEMENTS_PER_TASK: usize = 1 << 15;

/// `y = W x`: `y[i] = dot(W[i, :], x)`.
///
/// Shapes: w `[M, K]`, x `[K]`, y `[M]`.
///
/// Panics if w has another length. Accuracy: `(K + 4) 2^-24 sum_k |w_ik x_k|`. The bits of an element depend on its row, x and
/// the level alone, and are those of [`rows_dot`](crate::sparse::rows_dot). Cost: W is read once, 4 M K bytes (bf16: 2 M K): memory-bound.
#[track_caller]
pub fn gemv<W: Weight>(team: &Team, w: &[W], x: &[f32], y: &mut [f32]) {
    let k = x.len();
    assert_eq!(w.len(), y.len() * k, "gemv: w has {} elements for [{}, {k}]", w.len(), y.len());
    if k == 0 {
        return y.fill(0.0);
    }
    let rows = rows_per_task(k);
    team.run_chunks_mut(y, rows, |task, y| {
        let w = &w[task * rows * k..][..y.len() * k];
        team.level().dispatch(Dots { w, x, y });
    });
}

/// Rows of `k` elements in a task.
pub(crate) fn rows_per_task(k: usize) -> usize {
    (ELEMENTS_PER_TASK / k).max(1).next_multiple_of(8)
}

/// `y = W x`.
pub(crate) struct Dots<'a, W> {
    pub(crate) w: &'a [W],
    pub(crate) x: &'a [f32],
    pub(crate) y: &'a mut [f32],
}

impl<W: Weight> Kernel for Dots<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        dots(s, self.w, RowsFrom(0), self.x, self.y);
    }
}

/// Which rows of a matrix a kernel takes, by number. Beyond the last one, `at` names a row that is hinted at and not read.
pub(crate) trait Rows {
    /// Whether there are gaps, so that the hardware does not see where the next row begins.
    const SCATTERED: bool;
    /// The row with number `i`.
    fn at(&self, i: usize) -> usize;
}

/// Row `i` and those after it.
pub(crate) struct RowsFrom(pub(crate) usize);

impl Rows for RowsFrom {
    const SCATTERED: bool = false;
    #[inline(always)]
    fn at(&self, i: usize) -> usize {
        self.0 + i
    }
}

/// The rows of a list; the last one stands in for those beyond it.
impl Rows for &[u32] {
    const SCATTERED: bool = true;
    #[inline(always)]
    fn at(&self, i: usize) -> usize {
        self[i.min(self.len() - 1)] as usize
    }
}

/// `out[i] = dot(w[rows.at(i), :], x)`. Panics if a row lies outside w.
///
/// [Long](SHORT_ROW) rows without gaps go one after the other, so that memory is read as one stream. Scattered ones go two at a time,
/// so that one goes on where the other begins, and short ones in groups, so that their last, horizontal sums overlap. While a row is
/// summed, one [some way on](rows_ahead) is hinted at. A row's bits do not depend on its group.
#[inline(always)]
pub(crate) fn dots<S: Simd, W: Weight, R: Rows>(s: S, w: &[W], rows: R, x: &[f32], out: &mut [f32]) {
    match S::LANES {
        16 if is_short::<W>(x.len()) => dots_in_groups::<S, W, R, 4>(s, w, rows, x, out),
        16 if !R::SCATTERED => dots_in_groups::<S, W, R, 1>(s, w, rows, x, out),
        _ => dots_in_groups::<S, W, R, 2>(s, w, rows, x, out),
    }
}

/// Rows of fewer bytes are short: from a page on, rows side by side are streams in as many pages. On one thread of a Zen 5, one row at
/// a time against four: 35.2 to 33.5 GB/s of f32 and 32.8 to 29.3 of bf16 at 2048 columns from memory; but 6450 to 7180 tokens/s in
/// sparse decoding of a model of 256 columns in the caches.
const SHORT_ROW: usize = 4096;

/// Whether rows of `k` elements are short.
pub(crate) fn is_short<W>(k: usize) -> bool {
    k * size_of::<W>() < SHORT_ROW
}

/// How many long rows of `k` elements lie between the one in use and the one hinted at, which is in 8 KiB or the next: a sixth of L1,
/// and 200 ns at 40 GB/s, twice what memory takes to answer.
pub(crate) fn rows_ahead<W>(k: usize) -> usize {
    const AHEAD: usize = 8192;
    (AHEAD / (k * size_of::<W>())).max(1)
}

#[inline(always)]
fn dots_in_groups<S: Simd, W: Weight, R: Rows, const G: usize>(s: S, w: &[W], rows: R, x: &[f32], out: &mut [f32]) {
    let (k, n) = (x.len(), out.len());
    let ahead = if G == 1 { rows_ahead::<W>(k) } else { G };
    let now = |i: usize| &w[rows.at(i) * k..][..k];
    let hint = |i: usize| w.as_ptr().wrapping_add(rows.at(i + ahead) * k);
    let mut i = 0;
    while i + G <= n {
        let (mut group, mut hints) = ([&w[..0]; G], [w.as_ptr(); G]);
        for r in 0..G {
            (group[r], hints[r]) = (now(i + r), hint(i + r));
        }
        out[i..i + G].copy_from_slice(&dot_group(s, group, hints, x));
        i += G;
    }
    while i < n {
        [out[i]] = dot_group(s, [now(i)], [hint(i)], x);
        i += 1;
    }
}

/// Bytes of a cache line: rows are hinted at once a line.
pub(crate) const LINE: usize = 64;

/// The dots of `R` rows with x. Each row has accumulators of its own and the order of [`dot_group`] with `R = 1`, so its
/// bits do not depend on its neighbours.
#[inline(always)]
fn dot_group<S: Simd, W: Weight, const R: usize>(s: S, rows: [&[W]; R], hints: [*const W; R], x: &[f32]) -> [f32; R] {
    /// Accumulators of a row, taking turns: one FMA a cycle at a latency of 4, 64 bytes of L1 where memory gives 10.
    const A: usize = 4;
    for row in rows {
        assert_eq!(row.len(), x.len(), "gemv: a row of another length");
    }
    let mut acc = [[s.splat(0.0); R]; A];
    let block = A * S::LANES;
    let whole = x.len() / block * block;
    for k in (0..whole).step_by(block) {
        for (a, acc) in acc.iter_mut().enumerate() {
            let at = k + a * S::LANES;
            // SAFETY: at + LANES <= whole, at most the length of x and, by the assert, of every row.
            unsafe {
                let x = s.load_ptr(x.as_ptr().add(at));
                for r in 0..R {
                    acc[r] = s.mul_add(W::load_ptr(s, rows[r].as_ptr().add(at)), x, acc[r]);
                    if (a * S::LANES * size_of::<W>()).is_multiple_of(LINE) {
                        s.prefetch(hints[r].wrapping_add(at).cast());
                    }
                }
            }
        }
    }
    let x = &x[whole..];
    let mut sums = [0.0; R];
    for r in 0..R {
        let row = &rows[r][whole..];
        for (acc, at) in acc.iter_mut().zip(spans(s, x.len())) {
            acc[r] = s.mul_add(at.load(s, row), at.load(s, x), acc[r]);
        }
        sums[r] = s.reduce_sum(s.add(s.add(acc[0][r], acc[1][r]), s.add(acc[2][r], acc[3][r])));
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;
    use crate::testing::{assert_within, dot_bound, lengths, teams, uniform, uniform_bf16, widened};
    use crate::{Level, Mat};

    #[test]
    fn gemv_matches_reference() {
        for team in teams() {
            for k in lengths() {
                for m in [0, 1, 2, 3, 5, 8, 9, 37, if k == 1000 { 300 } else { 64 }] {
                    let (w, x) = (uniform(1, m * k), uniform(2, k));
                    let mut y = vec![f32::NAN; m];
                    gemv(&team, &w, &x, &mut y);
                    let (y_ref, abs) = reference::gemm(Mat::new(&w, m, k), Mat::new(&x, k, 1));
                    let what = format!("gemv {} {}t [{m}, {k}]", team.level(), team.threads());
                    assert_within(&what, &y, &y_ref, |i| dot_bound(k, abs[i]));
                }
            }
        }
    }

    #[test]
    fn gemv_of_bf16_has_the_bits_of_the_widened_matrix() {
        for team in teams() {
            for k in lengths() {
                for m in [0, 1, 3, 4, 9, if k == 1000 { 300 } else { 37 }] {
                    let (w, x) = (uniform_bf16(1, m * k), uniform(2, k));
                    let (mut y, mut expected) = (vec![f32::NAN; m], vec![f32::NAN; m]);
                    gemv(&team, &w, &x, &mut y);
                    gemv(&team, &widened(&w), &x, &mut expected);
                    assert_eq!(y, expected, "gemv bf16 {} {}t [{m}, {k}]", team.level(), team.threads());
                }
            }
        }
    }

    #[test]
    fn bits_of_a_row_depend_on_nothing_else() {
        for level in Level::available() {
            let (m, k) = (517, 333);
            let (w, x) = (uniform(1, m * k), uniform(2, k));
            let mut alone = vec![0.0; m];
            for (w, y) in w.chunks(k).zip(alone.chunks_mut(1)) {
                gemv(&Team::serial(level), w, &x, y);
            }
            for threads in 1..=3 {
                let mut y = vec![0.0; m];
                gemv(&Team::new(level, threads), &w, &x, &mut y);
                assert_eq!(y, alone, "gemv {level} {threads} threads");
            }
        }
    }
}
