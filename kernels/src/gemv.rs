//! Matrix times vector, for decoding; and the dot of several rows with one vector, which the sparse kernels share.

use crate::row_format::row_bytes;
use crate::simd::map::spans;
use crate::simd::{Kernel, Simd};
use crate::team::SharedMut;
use crate::{RowFormat, Team, Weight};

/// Elements of W that a task reads: 128 KiB of f32, some 3 microseconds from memory, against 50 ns for taking a task; but
/// [`LEAST_PER_TASK`] bytes.
const ELEMENTS_PER_TASK: usize = 1 << 15;

/// 1.5 microseconds.
const LEAST_PER_TASK: usize = 1 << 16;

/// `y = W x`: `y[i] = dot(W[i, :], x)`.
///
/// Shapes: w `[M, K]` in any [`RowFormat`], x `[K]`, y `[M]`.
///
/// Panics if w has another length. Accuracy: `(K + 4) 2^-24 sum_k |w_ik x_k|`, and for rows of [`quant`](mod@crate::quant) what is said
/// there. The bits of an element depend on its row, x and the level alone, and are those of
/// [`rows_dot`](crate::sparse::rows_dot). Cost: W is read once, 4 M K bytes (bf16: 2 M K, q8: 1.06 M K, q4: 0.56 M K): memory-bound.
#[track_caller]
pub fn gemv<W: RowFormat>(team: &Team, w: &[W], x: &[f32], y: &mut [f32]) {
    gemv_each(team, [w], x, [y]);
}

/// [`gemv`] of several matrices with one x: `y_i = W_i x`, in one run of the team, whose threads wait for each other once.
///
/// Shapes, panics, accuracy and bits of each as there.
#[track_caller]
pub fn gemv_each<W: RowFormat, const N: usize>(team: &Team, w: [&[W]; N], x: &[f32], y: [&mut [f32]; N]) {
    let (k, row_len) = (x.len(), W::row_len(x.len()));
    let lens = y.each_ref().map(|y| y.len());
    for (w, m) in w.iter().zip(lens) {
        assert_eq!(w.len(), m * row_len, "gemv: w has {} units of {} for [{m}, {k}]", w.len(), W::NAME);
    }
    if k == 0 {
        return y.into_iter().for_each(|y| y.fill(0.0));
    }
    let rows = rows_per_task::<W>(k);
    let tasks = lens.map(|m| m.div_ceil(rows));
    let y = y.map(SharedMut::new);
    W::with_x(team.level(), x, |x| {
        team.run(tasks.iter().sum(), |mut task| {
            let mut i = 0;
            while task >= tasks[i] {
                task -= tasks[i];
                i += 1;
            }
            let first = task * rows;
            // SAFETY: every task has rows of its own, of one matrix.
            let y = unsafe { y[i].slice(first, rows.min(lens[i] - first)) };
            let rows = &w[i][first * row_len..][..y.len() * row_len];
            let then = if task + 1 == tasks[i] && i + 1 < N { w[i + 1].as_ptr() } else { rows.as_ptr_range().end };
            W::dispatch(team.level(), Dots { w: rows, then, x, y });
        });
    });
}

/// Rows of `k` weights in a task.
pub(crate) fn rows_per_task<W: RowFormat>(k: usize) -> usize {
    let bytes = row_bytes::<W>(W::row_len(k));
    (ELEMENTS_PER_TASK / k).max(LEAST_PER_TASK / bytes).max(1).next_multiple_of(8)
}

/// `y = W x`, for x as [`Loops::with_x`](crate::row_format::Loops::with_x) gives it.
pub(crate) struct Dots<'a, W> {
    pub(crate) w: &'a [W],
    /// The rows that are read after these begin here: to be hinted at.
    pub(crate) then: *const W,
    pub(crate) x: &'a [f32],
    pub(crate) y: &'a mut [f32],
}

impl<W: RowFormat> Kernel for Dots<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Dots { w, then, x, y } = self;
        let row_len = W::row_len_for(x);
        dots_then(s, w, &RowsFrom(0), |i| then.wrapping_add(i * row_len), x, y);
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

/// The rows of a list; the last one stands in for those beyond it, and row 0 for those of none.
impl Rows for &[u32] {
    const SCATTERED: bool = true;
    #[inline(always)]
    fn at(&self, i: usize) -> usize {
        self.get(i).or(self.last()).map_or(0, |&row| row as usize)
    }
}

/// `out[i] = dot(w[rows.at(i), :], x)`. Panics if a row lies outside w.
///
/// Rows go in groups of as many as the [format](crate::row_format::Loops::dots_at_once) likes. While a row is summed, one
/// [some way on](rows_ahead) is hinted at. A row's bits do not depend on its group.
#[inline(always)]
pub(crate) fn dots<S: Simd, W: RowFormat, R: Rows>(s: S, w: &[W], rows: R, x: &[f32], out: &mut [f32]) {
    let (row_len, n) = (W::row_len_for(x), out.len());
    dots_then(s, w, &rows, |i| w.as_ptr().wrapping_add(rows.at(n + i) * row_len), x, out);
}

/// [`dots`], and hints at what is read after them: `then(i)` is where row number i behind the last begins.
#[inline(always)]
pub(crate) fn dots_then<S: Simd, W: RowFormat, R: Rows>(
    s: S,
    w: &[W],
    rows: &R,
    then: impl Fn(usize) -> *const W,
    x: &[f32],
    out: &mut [f32],
) {
    match W::dots_at_once::<S>(W::row_len_for(x), R::SCATTERED) {
        4 => dots_in_groups::<S, W, R, 4>(s, w, rows, then, x, out),
        2 => dots_in_groups::<S, W, R, 2>(s, w, rows, then, x, out),
        _ => dots_in_groups::<S, W, R, 1>(s, w, rows, then, x, out),
    }
}

/// How many rows of `row_len` units lie between those in use and those hinted at, where rows go in groups of `group`: whole groups, and
/// some 8 KiB, a sixth of L1, and 200 ns at 40 GB/s, twice what memory takes to answer.
pub(crate) fn rows_ahead<W>(row_len: usize, group: usize) -> usize {
    const AHEAD: usize = 8192;
    AHEAD.div_ceil(group * row_bytes::<W>(row_len)) * group
}

/// Hints at the beginning of the row [`ROWS`](touch) behind row number `i`, if there are gaps between rows: the hardware follows a
/// stream to the end of a page at most, and is slow to begin with the next one. On one thread of a Zen 5 (bf16, 2048 columns, gaps) 3 %.
#[inline(always)]
pub(crate) fn touch<S: Simd, W: RowFormat, R: Rows>(s: S, w: &[W], rows: &R, i: usize, row_len: usize) {
    const ROWS: usize = 8;
    const LINES: usize = 4;
    const PAGE: usize = 4096;
    /// Shorter rows are in the hints of [`rows_ahead`] as a whole by then.
    const FROM: usize = 2048;
    if R::SCATTERED && row_bytes::<W>(row_len) >= FROM {
        let row = w.as_ptr().wrapping_add(rows.at(i + ROWS) * row_len);
        (0..LINES).for_each(|line| s.prefetch(row.wrapping_byte_add(line * LINE).cast()));
        let to_page = row.addr().wrapping_neg() % PAGE;
        if (1..row_bytes::<W>(row_len)).contains(&to_page) {
            (0..LINES).for_each(|line| s.prefetch(row.wrapping_byte_add(to_page + line * LINE).cast()));
        }
    }
}

#[inline(always)]
fn dots_in_groups<S: Simd, W: RowFormat, R: Rows, const G: usize>(
    s: S,
    w: &[W],
    rows: &R,
    then: impl Fn(usize) -> *const W,
    x: &[f32],
    out: &mut [f32],
) {
    let (row_len, n) = (W::row_len_for(x), out.len());
    let ahead = rows_ahead::<W>(row_len, G);
    let now = |i: usize| &w[rows.at(i) * row_len..][..row_len];
    let hint = |i: usize| match i + ahead {
        i if i < n => w.as_ptr().wrapping_add(rows.at(i) * row_len),
        i => then(i - n),
    };
    let mut i = 0;
    while i + G <= n {
        let (mut group, mut hints) = ([&w[..0]; G], [w.as_ptr(); G]);
        for r in 0..G {
            (group[r], hints[r]) = (now(i + r), hint(i + r));
            touch(s, w, rows, i + r, row_len);
        }
        out[i..i + G].copy_from_slice(&W::dot_group(s, group, hints, x));
        i += G;
    }
    while i < n {
        [out[i]] = W::dot_group(s, [now(i)], [hint(i)], x);
        i += 1;
    }
}

/// Bytes of a cache line: rows are hinted at once a line.
pub(crate) const LINE: usize = 64;

/// Accumulators of a row, taking turns: one FMA a cycle at a latency of 4, 64 bytes of L1 where memory gives 10.
pub(crate) const A: usize = 4;

/// The dots of `R` rows with x. Each row has accumulators of its own and the order of [`dot_group`] with `R = 1`, so its
/// bits do not depend on its neighbours.
#[inline(always)]
pub(crate) fn dot_group<S: Simd, W: Weight, const R: usize>(
    s: S,
    rows: [&[W]; R],
    hints: [*const W; R],
    x: &[f32],
) -> [f32; R] {
    for row in rows {
        assert_eq!(row.len(), x.len(), "gemv: a row of another length");
    }
    let mut acc = [[s.splat(0.0); R]; A];
    let block = A * S::LANES;
    let whole = x.len() / block * block;
    // Two rows at once are scattered ones. Those to come are hinted at from the beginning and from the middle by turns, for the hardware
    // to follow both: 2 % at bf16 rows of 4 KiB.
    let half = row_bytes::<W>(whole) / 2 / LINE * LINE;
    let hinted = |at: usize| match row_bytes::<W>(at) / LINE {
        line if R == 2 => line / 2 * LINE + line % 2 * half,
        line => line * LINE,
    };
    for k in (0..whole).step_by(block) {
        for (a, acc) in acc.iter_mut().enumerate() {
            let at = k + a * S::LANES;
            // SAFETY: at + LANES <= whole, at most the length of x and, by the assert, of every row.
            unsafe {
                let x = s.load_ptr(x.as_ptr().add(at));
                for r in 0..R {
                    acc[r] = s.mul_add(W::load_ptr(s, rows[r].as_ptr().add(at)), x, acc[r]);
                    if (a * S::LANES * size_of::<W>()).is_multiple_of(LINE) {
                        s.prefetch(hints[r].wrapping_byte_add(hinted(at)).cast());
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
    use crate::packed::PackedBf16;
    use crate::quant::{Q4, Q8};
    use crate::reference;
    use crate::row_format::round_rows;
    use crate::testing::{assert_within, dot_bound, lengths, teams, uniform, uniform_bf16, widened};
    use crate::{Level, Mat};
    use half::bf16;

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
    fn gemv_each_has_the_bits_of_gemv() {
        fn check<W: RowFormat>(team: &Team) {
            for (k, sizes) in [(700, [300, 0, 517]), (96, [1, 40, 700]), (0, [2, 0, 3])] {
                let x = uniform(9, k);
                let w: Vec<Vec<W>> = (0..3)
                    .map(|i| {
                        let mut w = vec![W::zeroed(); sizes[i] * W::row_len(k)];
                        if k > 0 {
                            round_rows(team, &uniform(i as u64, sizes[i] * k), k, &mut w);
                        }
                        w
                    })
                    .collect();
                let [mut a, mut b, mut c] = sizes.map(|m| vec![f32::NAN; m]);
                gemv_each(team, [&w[0], &w[1], &w[2]], &x, [&mut a, &mut b, &mut c]);
                for (i, y) in [a, b, c].into_iter().enumerate() {
                    let mut expected = vec![f32::NAN; sizes[i]];
                    gemv(team, &w[i], &x, &mut expected);
                    assert_eq!(
                        y,
                        expected,
                        "gemv_each {} {} {}t k={k} matrix {i}",
                        W::NAME,
                        team.level(),
                        team.threads()
                    );
                }
            }
        }
        for team in teams() {
            check::<f32>(&team);
            check::<bf16>(&team);
            check::<PackedBf16>(&team);
            check::<Q8>(&team);
            check::<Q4>(&team);
        }
    }

    #[test]
    #[should_panic(expected = "gemv: w has 6 units of f32 for [3, 3]")]
    fn gemv_each_names_a_wrong_shape() {
        let w = [0.0f32; 9];
        gemv_each(&Team::serial(Level::SCALAR), [&w[..3], &w[..6]], &[0.0; 3], [&mut [0.0; 1], &mut [0.0; 3]]);
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
