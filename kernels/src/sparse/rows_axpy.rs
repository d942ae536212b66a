use super::chunk_len;
use crate::gemv::{LINE, Rows, rows_ahead, touch};
use crate::quant::GROUP;
use crate::simd::map::spans;
use crate::simd::{Kernel, Simd};
use crate::{RowFormat, Team, Weight};

/// `y = sum_j h[j] * w[rows[j], :]`: the active rows of the transposed down_proj (BLIS's axpyf, with gaps between the rows).
///
/// Shapes: w `[F, C]` in any [`RowFormat`], y `[C]`; rows, ascending, and h of one length. `partial` is working memory, kept from call to call.
///
/// Panics if a length does not fit, a row lies outside w, or rows descend. The sum runs within fixed chunks of rows of w, and
/// the chunk sums are added in order: an element's bits depend on F and the level, not on the threads, and adding rows
/// with h = 0 changes none. Accuracy: `(n + 4) 2^-24 sum_j |h_j w_j|` for n rows. Cost: the rows are read once, 4 C bytes each (bf16: 2 C,
/// q8: 1.06 C, q4: 0.56 C).
#[track_caller]
pub fn rows_axpy<W: RowFormat>(team: &Team, w: &[W], rows: &[u32], h: &[f32], y: &mut [f32], partial: &mut Vec<f32>) {
    let c = y.len();
    assert!(
        c > 0 && w.len().is_multiple_of(W::row_len(c)) && rows.len() == h.len() && rows.is_sorted(),
        "rows_axpy: {} rows (ascending: {}) and {} h of w with {} units of {} into y {c}",
        rows.len(),
        rows.is_sorted(),
        h.len(),
        w.len(),
        W::NAME
    );
    let d_ff = w.len() / W::row_len(c);
    let last = rows.last().copied();
    assert!(last.is_none_or(|row| (row as usize) < d_ff), "rows_axpy: row {last:?} of w with {d_ff}");
    let chunk = chunk_len(d_ff);
    sum_chunks::<W>(team, d_ff, 1, y, partial, |task, sum| {
        let before = |row: usize| rows.partition_point(|&r| (r as usize) < row);
        let last = if (task + 1) * chunk >= d_ff { rows.len() } else { before((task + 1) * chunk) };
        let part = before(task * chunk)..last;
        team.level().dispatch(RowsAxpy { w, rows: &rows[part.clone()], h: &h[part], sum });
    });
}

/// Calls `f(task, sums)` for every chunk of neurons, in parallel; `f` writes the chunk's sum for each of `n` tokens, in the order of the
/// format, which may be stale before. Then `y = +0 + sum of chunk 0 + sum of chunk 1 ...` for each row of y `[n, C]`.
pub(super) fn sum_chunks<W: RowFormat>(
    team: &Team,
    d_ff: usize,
    n: usize,
    y: &mut [f32],
    partial: &mut Vec<f32>,
    f: impl Fn(usize, &mut [f32]) + Sync,
) {
    sum_runs::<W>(team, d_ff, (n, 1), y, partial, f);
}

/// [`sum_chunks`] with `chunks` of them in a task: `f` writes the sums of all of them, one chunk after the other.
pub(super) fn sum_runs<W: RowFormat>(
    team: &Team,
    d_ff: usize,
    (n, chunks): (usize, usize),
    y: &mut [f32],
    partial: &mut Vec<f32>,
    f: impl Fn(usize, &mut [f32]) + Sync,
) {
    let c = y.len() / n;
    let sum_len = W::sum_len(c);
    let stride = n * sum_len;
    partial.resize(d_ff.div_ceil(chunk_len(d_ff)) * stride, 0.0);
    team.run_chunks_mut(partial, chunks * stride, f);
    // A row for each task, but a part of it if there is one row.
    let per_task = if n == 1 { GROUP } else { c };
    team.run_chunks_mut(y, per_task, |task, y| {
        for (i, y) in y.chunks_mut(GROUP).enumerate() {
            let (token, column) = if n == 1 { (0, task * GROUP) } else { (task, i * GROUP) };
            let mut sum = [0.0; GROUP];
            let sum = &mut sum[..GROUP.min(sum_len - column)];
            team.level().dispatch(AddChunks { partial, stride, first: token * sum_len + column, sum });
            W::sort_sum(sum, y);
        }
    });
}

/// Columns `first ..` of the chunk sums, added in order. Called for [`GROUP`] of them at a time: 2 KiB a chunk.
struct AddChunks<'a> {
    partial: &'a [f32],
    stride: usize,
    first: usize,
    sum: &'a mut [f32],
}

impl Kernel for AddChunks<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for at in spans(s, self.sum.len()) {
            let mut sum = s.splat(0.0);
            for chunk in self.partial.chunks_exact(self.stride) {
                sum = s.add(sum, at.load(s, &chunk[self.first..]));
            }
            at.store(s, sum, self.sum);
        }
    }
}

struct RowsAxpy<'a, W> {
    w: &'a [W],
    rows: &'a [u32],
    h: &'a [f32],
    sum: &'a mut [f32],
}

impl<W: RowFormat> Kernel for RowsAxpy<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let RowsAxpy { w, rows, h, sum } = self;
        let last = w.as_ptr().wrapping_add(rows.at(rows.len()) * W::row_len(sum.len()));
        axpy_then(s, w, &rows, |_| last, h, sum);
    }
}

/// `sum = sum_j h[j] * w[rows.at(j), :]` from +0 on, row by row, in the order of the format; grouping changes the traffic and no bit.
///
/// Rows go in groups of as many as the [format](crate::row_format::Loops::axpys_at_once) likes, and hint as in
/// [`dots_then`](crate::gemv::dots_then).
#[inline(always)]
pub(super) fn axpy_then<S: Simd, W: RowFormat, R: Rows>(
    s: S,
    w: &[W],
    rows: &R,
    then: impl Fn(usize) -> *const W,
    h: &[f32],
    sum: &mut [f32],
) {
    match W::axpys_at_once(W::row_len(sum.len()), R::SCATTERED) {
        8 => axpy_in_groups::<S, W, R, 8>(s, w, rows, then, h, sum),
        4 => axpy_in_groups::<S, W, R, 4>(s, w, rows, then, h, sum),
        _ => axpy_in_groups::<S, W, R, 1>(s, w, rows, then, h, sum),
    }
}

#[inline(always)]
fn axpy_in_groups<S: Simd, W: RowFormat, R: Rows, const G: usize>(
    s: S,
    w: &[W],
    rows: &R,
    then: impl Fn(usize) -> *const W,
    h: &[f32],
    sum: &mut [f32],
) {
    // A sum is as long as a row that is filled up.
    let (row_len, n) = (W::row_len(sum.len()), h.len());
    sum.fill(0.0);
    let ahead = rows_ahead::<W>(row_len, G);
    let now = |j: usize| &w[rows.at(j) * row_len..][..row_len];
    let hint = |j: usize| match j + ahead {
        j if j < n => w.as_ptr().wrapping_add(rows.at(j) * row_len),
        j => then(j - n),
    };
    let mut j = 0;
    while j + G <= n {
        let (mut group, mut hints) = ([&w[..0]; G], [w.as_ptr(); G]);
        for r in 0..G {
            (group[r], hints[r]) = (now(j + r), hint(j + r));
            touch(s, w, rows, j + r, row_len);
        }
        W::axpy_group(s, group, hints, &h[j..j + G], sum);
        j += G;
    }
    while j < n {
        W::axpy_group(s, [now(j)], [hint(j)], &h[j..=j], sum);
        j += 1;
    }
}

/// `sum += h[r] * rows[r]`, row by row.
#[inline(always)]
pub(crate) fn axpy_group<S: Simd, W: Weight, const R: usize>(
    s: S,
    rows: [&[W]; R],
    hints: [*const W; R],
    h: &[f32],
    sum: &mut [f32],
) {
    let mut factors = [s.splat(0.0); R];
    for r in 0..R {
        assert_eq!(rows[r].len(), sum.len(), "rows_axpy: a row of another length");
        factors[r] = s.splat(h[r]);
    }
    let line = LINE / size_of::<W>();
    let whole = sum.len() / line * line;
    for first in (0..whole).step_by(line) {
        for v in 0..line / S::LANES {
            let at = first + v * S::LANES;
            // SAFETY: at + LANES <= whole (LANES divide a line), at most the length of the sum and, by the assert, of every row.
            unsafe {
                let dst = sum.as_mut_ptr().add(at);
                let mut acc = s.load_ptr(dst);
                for r in 0..R {
                    acc = s.mul_add(factors[r], W::load_ptr(s, rows[r].as_ptr().add(at)), acc);
                    if v == 0 {
                        s.prefetch(hints[r].wrapping_add(at).cast());
                    }
                }
                s.store_ptr(acc, dst);
            }
        }
    }
    let rest = &mut sum[whole..];
    for at in spans(s, rest.len()) {
        let mut acc = at.load(s, rest);
        for r in 0..R {
            acc = s.mul_add(factors[r], at.load(s, &rows[r][whole..]), acc);
        }
        at.store(s, acc, rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Level;
    use crate::testing::{assert_within, dot_bound, lengths, teams, uniform, uniform_bf16, widened};

    #[test]
    fn rows_axpy_matches_reference() {
        for team in teams() {
            let mut partial = Vec::new();
            for c in lengths().skip(1) {
                for (f, step) in [(1, 1), (40, 3), (300, 1), (700, 9)] {
                    let w = uniform(1, f * c);
                    let rows: Vec<u32> = (0..f as u32).step_by(step).collect();
                    let h = uniform(2, rows.len());
                    let mut y = vec![f32::NAN; c];
                    partial.fill(f32::NAN);
                    rows_axpy(&team, &w, &rows, &h, &mut y, &mut partial);
                    let (mut y_ref, mut abs) = (vec![0.0; c], vec![0.0; c]);
                    for (&h, &row) in h.iter().zip(&rows) {
                        for i in 0..c {
                            let term = h as f64 * w[row as usize * c + i] as f64;
                            y_ref[i] += term;
                            abs[i] += term.abs();
                        }
                    }
                    let what = format!("rows_axpy {} {}t [{f}, {c}] every {step}", team.level(), team.threads());
                    assert_within(&what, &y, &y_ref, |i| dot_bound(rows.len(), abs[i]));
                }
            }
        }
    }

    #[test]
    fn rows_axpy_of_bf16_has_the_bits_of_the_widened_matrix() {
        for team in teams() {
            let mut partial = Vec::new();
            for c in lengths().skip(1) {
                for (f, step) in [(1, 1), (40, 3), (300, 1), (700, 9)] {
                    let w = uniform_bf16(1, f * c);
                    let rows: Vec<u32> = (0..f as u32).step_by(step).collect();
                    let h = uniform(2, rows.len());
                    let (mut y, mut expected) = (vec![f32::NAN; c], vec![f32::NAN; c]);
                    rows_axpy(&team, &w, &rows, &h, &mut y, &mut partial);
                    rows_axpy(&team, &widened(&w), &rows, &h, &mut expected, &mut partial);
                    assert_eq!(y, expected, "rows_axpy bf16 {} {}t [{f}, {c}]", team.level(), team.threads());
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "rows_axpy: row Some(0) of w with 0")]
    fn rows_axpy_names_a_row_of_an_empty_matrix() {
        rows_axpy::<f32>(&Team::serial(Level::SCALAR), &[], &[0], &[1.0], &mut [0.0; 3], &mut Vec::new());
    }

    /// Rows with h = 0, of either sign, and other groupings leave every bit.
    #[test]
    fn zeros_add_nothing() {
        for level in Level::available() {
            for (f, c) in [(64, 5), (500, 33), (4000, 16)] {
                let w = uniform(1, f * c);
                let sparse: Vec<u32> = (0..f as u32).filter(|i| i * i % 11 < 3).collect();
                let h = uniform(2, sparse.len());
                let (mut y, mut partial) = (vec![0.0; c], Vec::new());
                rows_axpy(&Team::serial(level), &w, &sparse, &h, &mut y, &mut partial);
                let all: Vec<u32> = (0..f as u32).collect();
                let mut h_all: Vec<f32> = all.iter().map(|i| if i % 2 == 0 { 0.0 } else { -0.0 }).collect();
                sparse.iter().zip(&h).for_each(|(&i, &h)| h_all[i as usize] = h);
                for threads in 1..=3 {
                    let mut y_all = vec![0.0; c];
                    rows_axpy(&Team::new(level, threads), &w, &all, &h_all, &mut y_all, &mut partial);
                    let bits = |y: &[f32]| y.iter().map(|y| y.to_bits()).collect::<Vec<_>>();
                    assert_eq!(bits(&y), bits(&y_all), "rows_axpy {level} [{f}, {c}] {threads} threads");
                }
            }
        }
    }
}
