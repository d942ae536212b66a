//! How the rows of a weight matrix are stored. The kernels of decoding are written once for all formats: what differs is in here,
//! and behind it in [`Weight`], [`packed`](mod@crate::packed) and [`quant`](mod@crate::quant).

use crate::gemv::dot_group;
use crate::panel::{self, AXPY_ROWS, LinesAhead, Panel, axpy_tile, dot_block};
use crate::scratch;
use crate::simd::{Kernel, Level, Simd};
use crate::sparse::axpy_group;
use crate::{Team, Weight};
use bytemuck::Pod;
use std::fmt::Debug;

/// Changes with the bytes that a format gives for a row, so that rows on disk of another layout are not read.
pub const LAYOUT_VERSION: u32 = 1;

/// The unit in which the rows of a weight matrix `[rows, cols]` are stored, one after the other: an element for `f32` and
/// [`bf16`](half::bf16) (every [`Weight`]), 64 bytes for [`Quantized`](crate::quant::Quantized) and
/// [`PackedBf16`](crate::packed::PackedBf16) rows. A matrix is a slice of `rows * row_len(cols)` units.
pub trait RowFormat: Loops + Pod + Debug + PartialEq + Send + Sync {
    /// `f32`, `bf16`, `bf16-packed`, `q8`, `q4`, ..., for reports.
    const NAME: &'static str;

    /// Units of a row of `cols` weights.
    fn row_len(cols: usize) -> usize;

    /// Stores the nearest row that there is. Panics if `row` has another length than the [`row_len`](RowFormat::row_len) of `src`, or the
    /// format cannot hold it, which is for [`PackedBf16`](crate::packed::PackedBf16) to say.
    fn round_row(level: Level, src: &[f32], row: &mut [Self]);

    /// The weights of a row; exact. Panics as [`round_row`](RowFormat::round_row).
    fn widen_row(level: Level, row: &[Self], dst: &mut [f32]);
}

/// Rows that a task of [`round_rows`] and [`widen_rows`] takes: some 10 microseconds at 2048 columns.
const ROWS_PER_TASK: usize = 16;

/// [`RowFormat::round_row`] of all rows of the matrix `src` `[rows, cols]`, in parallel. Panics if a length does not fit.
#[track_caller]
pub fn round_rows<W: RowFormat>(team: &Team, src: &[f32], cols: usize, rows: &mut [W]) {
    let row_len = check::<W>("round_rows", src.len(), cols, rows.len());
    team.run_chunks_mut(rows, ROWS_PER_TASK * row_len, |task, rows| {
        let src = src[task * ROWS_PER_TASK * cols..].chunks_exact(cols);
        rows.chunks_exact_mut(row_len).zip(src).for_each(|(row, src)| W::round_row(team.level(), src, row));
    });
}

/// [`RowFormat::widen_row`] of all `rows` into the matrix `dst` `[rows, cols]`, in parallel. Panics if a length does not fit.
#[track_caller]
pub fn widen_rows<W: RowFormat>(team: &Team, rows: &[W], cols: usize, dst: &mut [f32]) {
    let row_len = check::<W>("widen_rows", dst.len(), cols, rows.len());
    team.run_chunks_mut(dst, ROWS_PER_TASK * cols, |task, dst| {
        let rows = rows[task * ROWS_PER_TASK * row_len..].chunks_exact(row_len);
        dst.chunks_exact_mut(cols).zip(rows).for_each(|(dst, row)| W::widen_row(team.level(), row, dst));
    });
}

/// The length of a row in units.
#[track_caller]
fn check<W: RowFormat>(op: &str, elements: usize, cols: usize, units: usize) -> usize {
    let row_len = W::row_len(cols);
    assert!(
        cols > 0 && elements.is_multiple_of(cols) && elements / cols * row_len == units,
        "{op}: {elements} elements in rows of {cols}, and {units} units of {} in rows of {row_len}",
        W::NAME
    );
    row_len
}

/// Rows whose dots round as those of the widened weights do, each product and sum to the nearest f32, and take x as it is: what the proof
/// of the [gate filter](crate::sparse::GateFilter) asks for.
pub trait FloatRows: RowFormat {}

impl<W: Weight> FloatRows for W {}
impl FloatRows for crate::packed::PackedBf16 {}

/// Bytes of a row of `row_len` units.
pub(crate) const fn row_bytes<W>(row_len: usize) -> usize {
    row_len * size_of::<W>()
}

pub(crate) use loops::Loops;

mod loops {
    use super::*;

    /// The inner loops of the kernels of decoding, and the order in which they read x and add up y: a row of a format with an
    /// order of its own is not sorted while it is read, but x is once before, and y once after.
    pub trait Loops: Sized {
        /// Runs a kernel that contains [`dot_group`](Loops::dot_group).
        #[inline(always)]
        fn dispatch<K: Kernel>(level: Level, kernel: K) -> K::Output {
            level.dispatch(kernel)
        }

        /// Whether `dot_group` takes x as it is: then [`x_len`](Loops::x_len) and [`sort_x`](Loops::sort_x) are those given here.
        const X_AS_IT_IS: bool = false;

        /// Elements of an x of `cols` elements as `dot_group` takes it.
        #[inline(always)]
        fn x_len(cols: usize) -> usize {
            cols
        }

        /// Brings x into the order of `dot_group`. `out` has [`x_len`](Loops::x_len) places.
        #[inline(always)]
        fn sort_x(_: Level, x: &[f32], out: &mut [f32]) {
            out.copy_from_slice(x);
        }

        /// Calls `f` with x as `dot_group` takes it.
        #[inline(always)]
        fn with_x<R>(level: Level, x: &[f32], f: impl FnOnce(&[f32]) -> R) -> R {
            if Self::X_AS_IT_IS {
                return f(x);
            }
            scratch::with(Self::x_len(x.len()), |out| {
                Self::sort_x(level, x, out);
                f(out)
            })
        }

        /// Units of a row that belongs to such an x.
        fn row_len_for(x: &[f32]) -> usize;

        /// The most tokens of a [panel](crate::panel::Panel) of x: 4 or 8.
        const PANEL_TOKENS: usize = crate::panel::MOST_TOKENS;

        /// How many rows `dot_group` takes at once: 1, 2 or 4. `scattered`: whether there are gaps between them.
        fn dots_at_once<S: Simd>(row_len: usize, scattered: bool) -> usize;

        /// The dots of `R` rows with x, whose bits do not depend on `R`. The lines of `hints` are prefetched: they may point
        /// anywhere. Panics if a row has another length than [`row_len_for`](Loops::row_len_for) says.
        fn dot_group<S: Simd, const R: usize>(s: S, rows: [&[Self]; R], hints: [*const Self; R], x: &[f32])
        -> [f32; R];

        /// Elements that a sorted x of `x_len` elements takes in a panel.
        fn panel_len(x_len: usize) -> usize;

        /// Puts a sorted x into the panel of `tokens` tokens, as number `token`.
        fn to_panel<S: Simd>(s: S, x: &[f32], token: usize, tokens: usize, panel: &mut [f32]);

        /// The dots of rows that lie one after the other with a panel: out `[rows, tokens]`. Each has the bits of `dot_group`.
        fn dot_block<S: Simd>(s: S, rows: &[Self], panel: Panel, ahead: &mut LinesAhead, out: &mut [f32]);

        /// Elements of a sum of rows of `cols` weights.
        fn sum_len(cols: usize) -> usize;

        /// How many rows `axpy_group` takes at once: 1, 4 or 8.
        fn axpys_at_once(row_len: usize, scattered: bool) -> usize;

        /// `sum += h[r] * rows[r]` for one row after the other: the bits do not depend on `R`. Hints and panics as in `dot_group`.
        fn axpy_group<S: Simd, const R: usize>(
            s: S,
            rows: [&[Self]; R],
            hints: [*const Self; R],
            h: &[f32],
            sum: &mut [f32],
        );

        /// `sums[t, :] += sum_r h[t][r] * rows[r, :]` for 2, 4 or 8 tokens, with the bits of `axpy_group`. Rows, like sums, lie one after the
        /// other. Panics if there are not [`AXPY_ROWS`] rows of the sums' length.
        fn axpy_tile<S: Simd, const T: usize>(
            s: S,
            rows: &[Self],
            h: [[f32; AXPY_ROWS]; T],
            sums: &mut [f32],
            ahead: &mut LinesAhead,
        );

        /// A sum in the order of the elements. Also for a part that begins at a multiple of
        /// [`GROUP`](crate::quant::GROUP) elements and ends at one or with the sum.
        fn sort_sum(sum: &[f32], y: &mut [f32]);
    }
}

impl<W: Weight> RowFormat for W {
    const NAME: &'static str = W::NAME;

    #[inline(always)]
    fn row_len(cols: usize) -> usize {
        cols
    }
    fn round_row(_: Level, src: &[f32], row: &mut [W]) {
        assert_eq!(src.len(), row.len(), "round_row: lengths differ");
        row.iter_mut().zip(src).for_each(|(w, &x)| *w = W::round(x));
    }
    fn widen_row(_: Level, row: &[W], dst: &mut [f32]) {
        assert_eq!(row.len(), dst.len(), "widen_row: lengths differ");
        dst.iter_mut().zip(row).for_each(|(x, w)| *x = w.widen());
    }
}

/// Rows of fewer bytes are short. Rows side by side are streams in several places, and memory likes one: on one thread of a Zen 5, the
/// dense FFN at 768 columns from memory reads at 92 % of a plain pass in bf16 and 94 % in f32 one row at a time, at 78 and 86 % in groups
/// of four and eight. But a horizontal sum is the cost of a row that is in the caches: 6450 tokens/s one by one, 7180 in groups, in sparse
/// decoding of a model of 256 columns.
pub(crate) const SHORT_ROW: usize = 1536;

impl<W: Weight> Loops for W {
    const X_AS_IT_IS: bool = true;

    #[inline(always)]
    fn row_len_for(x: &[f32]) -> usize {
        x.len()
    }
    /// Long rows without gaps go one after the other, so that memory is read as one stream. Scattered ones go two at a time, so that
    /// one goes on where the other begins, and short ones in groups, so that their last, horizontal sums overlap.
    #[inline(always)]
    fn dots_at_once<S: Simd>(row_len: usize, scattered: bool) -> usize {
        match S::LANES {
            16 if row_bytes::<W>(row_len) < SHORT_ROW => 4,
            16 if !scattered => 1,
            _ => 2,
        }
    }
    #[inline(always)]
    fn dot_group<S: Simd, const R: usize>(s: S, rows: [&[W]; R], hints: [*const W; R], x: &[f32]) -> [f32; R] {
        dot_group(s, rows, hints, x)
    }
    #[inline(always)]
    fn panel_len(x_len: usize) -> usize {
        panel::panel_len(x_len)
    }
    #[inline(always)]
    fn to_panel<S: Simd>(s: S, x: &[f32], token: usize, tokens: usize, panel: &mut [f32]) {
        panel::to_panel(s, x, token, tokens, panel);
    }
    #[inline(always)]
    fn dot_block<S: Simd>(s: S, rows: &[W], panel: Panel, ahead: &mut LinesAhead, out: &mut [f32]) {
        // 16 accumulators in 32 registers, or 8 in 16. With 24 some went to the stack, once a step.
        match (panel.tokens, S::LANES) {
            (8, 16) => dot_block::<S, W, 2, 8>(s, rows, panel, ahead, out),
            (8, _) => dot_block::<S, W, 1, 8>(s, rows, panel, ahead, out),
            (4, 16) => dot_block::<S, W, 4, 4>(s, rows, panel, ahead, out),
            (4, _) => dot_block::<S, W, 2, 4>(s, rows, panel, ahead, out),
            (_, 16) => dot_block::<S, W, 6, 2>(s, rows, panel, ahead, out),
            _ => dot_block::<S, W, 4, 2>(s, rows, panel, ahead, out),
        }
    }
    #[inline(always)]
    fn sum_len(cols: usize) -> usize {
        cols
    }
    /// Long rows without gaps go one after the other and scattered ones four at a time. Of short ones eight go in one pass over the
    /// sum, which then moves to and from L1 once for all of them.
    #[inline(always)]
    fn axpys_at_once(row_len: usize, scattered: bool) -> usize {
        match scattered {
            _ if row_bytes::<W>(row_len) < SHORT_ROW => 8,
            true => 4,
            false => 1,
        }
    }
    #[inline(always)]
    fn axpy_group<S: Simd, const R: usize>(s: S, rows: [&[W]; R], hints: [*const W; R], h: &[f32], sum: &mut [f32]) {
        axpy_group(s, rows, hints, h, sum);
    }
    #[inline(always)]
    fn axpy_tile<S: Simd, const T: usize>(
        s: S,
        rows: &[W],
        h: [[f32; AXPY_ROWS]; T],
        sums: &mut [f32],
        ahead: &mut LinesAhead,
    ) {
        axpy_tile(s, rows, h, sums, ahead);
    }
    #[inline(always)]
    fn sort_sum(sum: &[f32], y: &mut [f32]) {
        y.copy_from_slice(sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packed::PackedBf16;
    use crate::quant::{Q4, Q8};
    use crate::testing::uniform;
    use half::bf16;

    /// FNV-1a of the rows of a matrix.
    fn layout<W: RowFormat>() -> (&'static str, u64) {
        let (rows, cols) = (3, 700);
        let mut stored = vec![W::zeroed(); rows * W::row_len(cols)];
        round_rows(&Team::new(Level::best(), 1), &uniform(1, rows * cols), cols, &mut stored);
        let bytes: &[u8] = bytemuck::cast_slice(&stored);
        (W::NAME, bytes.iter().fold(0xcbf29ce484222325, |hash, &byte| (hash ^ byte as u64).wrapping_mul(0x100000001b3)))
    }

    #[test]
    fn rows_have_the_layout_that_layout_version_names() {
        let found = [layout::<f32>(), layout::<bf16>(), layout::<Q8>(), layout::<Q4>(), layout::<PackedBf16>()];
        let version_1 = [
            ("f32", 5357773969493804715),
            ("bf16", 15837164314476780219),
            ("q8", 12605308250276357859),
            ("q4", 2139135482402317999),
            ("bf16-packed", 3311404959138226775),
        ];
        assert_eq!(found, version_1, "rows are stored otherwise: raise LAYOUT_VERSION, and name their hashes here");
        assert_eq!(LAYOUT_VERSION, 1);
    }
}
