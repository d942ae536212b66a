//! The inner loops over packed rows. Each makes the additions of the loop of the same name over bf16 rows, in their order.

use super::{BLOCK_GROUPS, GROUP, GROUP_LINES, HALF, PackedBf16, Row, Table, head_len};
use crate::RowFormat;
use crate::gemv::A;
use crate::panel::{AXPY_ROWS, LinesAhead, Panel};
use crate::row_format::{Loops, SHORT_ROW, row_bytes};
use crate::simd::Simd;
use crate::simd::map::spans;

impl Loops for PackedBf16 {
    /// What a row is unpacked to once; the accumulators of eight would not fit.
    const PANEL_TOKENS: usize = 4;

    const X_AS_IT_IS: bool = true;

    #[inline(always)]
    fn row_len_for(x: &[f32]) -> usize {
        Self::row_len(x.len())
    }
    /// As of long bf16 rows. Short ones too: unpacking four rows at once needs more registers than there are. One thread, 125m (768 columns), whole tokens:
    /// 147 a second four at a time, 226 one by one.
    #[inline(always)]
    fn dots_at_once<S: Simd>(_: usize, scattered: bool) -> usize {
        match S::LANES {
            16 if !scattered => 1,
            _ => 2,
        }
    }
    #[inline(always)]
    fn dot_group<S: Simd, const R: usize>(s: S, rows: [&[Self]; R], hints: [*const Self; R], x: &[f32]) -> [f32; R] {
        dot_group(s, rows.map(|row| Row::of("gemv", row, x.len())), Hints::new(s, hints, x.len()), x)
    }
    /// Nothing is filled up, so that the length says how many columns there are.
    #[inline(always)]
    fn panel_len(x_len: usize) -> usize {
        x_len
    }
    #[inline(always)]
    fn to_panel<S: Simd>(s: S, x: &[f32], token: usize, tokens: usize, panel: &mut [f32]) {
        let (whole, rest) = x.as_chunks::<GROUP>();
        let (whole_panel, rest_panel) = panel.split_at_mut(whole.len() * GROUP * tokens);
        for (v, x) in whole.as_flattened().chunks_exact(S::LANES).enumerate() {
            s.store(s.load(x), &mut whole_panel[(v * tokens + token) * S::LANES..]);
        }
        rest_panel[token * rest.len()..][..rest.len()].copy_from_slice(rest);
    }
    #[inline(always)]
    fn dot_block<S: Simd>(s: S, rows: &[Self], panel: Panel, ahead: &mut LinesAhead, out: &mut [f32]) {
        // 16 accumulators in 32 registers, or 8 in 16.
        match (panel.tokens, S::LANES) {
            (4, 16) => dot_block::<S, 4, 4>(s, rows, panel, 0, ahead, out),
            (4, _) => {
                dot_block::<S, 4, 2>(s, rows, panel, 0, ahead, out);
                dot_block::<S, 4, 2>(s, rows, panel, 2, &mut LinesAhead::part(rows, 0, 0, 0, 1), out);
            }
            _ => dot_block::<S, 2, 2>(s, rows, panel, 0, ahead, out),
        }
    }
    #[inline(always)]
    fn sum_len(cols: usize) -> usize {
        cols
    }
    /// As of bf16 rows, but never eight, whose tables alone are 16 vectors.
    #[inline(always)]
    fn axpys_at_once(row_len: usize, scattered: bool) -> usize {
        if scattered || row_bytes::<Self>(row_len) < SHORT_ROW { 4 } else { 1 }
    }
    #[inline(always)]
    fn axpy_group<S: Simd, const R: usize>(
        s: S,
        rows: [&[Self]; R],
        hints: [*const Self; R],
        h: &[f32],
        sum: &mut [f32],
    ) {
        let cols = sum.len();
        axpy_group(s, rows.map(|row| Row::of("rows_axpy", row, cols)), Hints::new(s, hints, cols), h, sum);
    }
    #[inline(always)]
    fn axpy_tile<S: Simd, const T: usize>(
        s: S,
        rows: &[Self],
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

/// Rows that are hinted at, a group for each that is read.
struct Hints<const R: usize> {
    groups: [*const PackedBf16; R],
    /// Groups of half of a row.
    half: usize,
}

impl<const R: usize> Hints<R> {
    /// Hints at the tables, which are wanted first.
    #[inline(always)]
    fn new<S: Simd>(s: S, rows: [*const PackedBf16; R], cols: usize) -> Hints<R> {
        for row in rows {
            (0..head_len(cols)).for_each(|line| s.prefetch(row.wrapping_add(line).cast()));
        }
        Hints { groups: rows.map(|row| row.wrapping_add(head_len(cols))), half: cols.div_ceil(GROUP).div_ceil(2) }
    }

    /// Two rows at once are scattered ones, and are hinted at as such ones of bf16 are: from the beginning and from the middle by turns.
    #[inline(always)]
    fn step<S: Simd>(&self, s: S, row: usize, at: usize) {
        let at = if R == 2 { at / 2 + at % 2 * self.half } else { at };
        let group = self.groups[row].wrapping_add(at * GROUP_LINES);
        (0..GROUP_LINES).for_each(|line| s.prefetch(group.wrapping_add(line).cast()));
    }
}

/// The tables of a block of each row.
#[inline(always)]
fn tables<S: Simd, const R: usize>(s: S, rows: &[Row; R], block: usize) -> [Table<S>; R] {
    let mut tables = [rows[0].table(s, block * BLOCK_GROUPS); R];
    for r in 1..R {
        tables[r] = rows[r].table(s, block * BLOCK_GROUPS);
    }
    tables
}

/// `acc[a][r] += weights x`, accumulator by accumulator in turn.
#[inline(always)]
fn multiply<S: Simd, const R: usize>(
    s: S,
    weights: S::Unpacked,
    x: &[f32; HALF],
    r: usize,
    acc: &mut [[S::F32; R]; A],
) {
    for first in (0..HALF / S::LANES).step_by(A) {
        for (a, acc) in acc.iter_mut().enumerate() {
            let v = first + a;
            acc[r] = s.mul_add(weights.as_ref()[v], s.load(&x[v * S::LANES..]), acc[r]);
        }
    }
}

/// [`gemv::dot_group`](crate::gemv::dot_group).
#[inline(always)]
fn dot_group<S: Simd, const R: usize>(s: S, rows: [Row; R], hints: Hints<R>, x: &[f32]) -> [f32; R] {
    let (whole, rest) = x.as_chunks::<GROUP>();
    let mut acc = [[s.splat(0.0); R]; A];
    for (block, x) in whole.chunks(BLOCK_GROUPS).enumerate() {
        let tables = tables(s, &rows, block);
        for (g, x) in x.iter().enumerate() {
            let at = block * BLOCK_GROUPS + g;
            let [first, second] = halves(x);
            for r in 0..R {
                hints.step(s, r, at);
                multiply(s, rows[r].half::<S, false>(s, at, tables[r]), first, r, &mut acc);
                multiply(s, rows[r].half::<S, true>(s, at, tables[r]), second, r, &mut acc);
            }
        }
    }
    let mut sums = [0.0; R];
    for r in 0..R {
        if !rest.is_empty() {
            let mut weights = [0.0; GROUP];
            hints.step(s, r, whole.len());
            rows[r].group(s, whole.len(), &mut weights);
            for (v, at) in spans(s, rest.len()).enumerate() {
                acc[v % A][r] = s.mul_add(at.load(s, &weights[..]), at.load(s, rest), acc[v % A][r]);
            }
        }
        sums[r] = s.reduce_sum(s.add(s.add(acc[0][r], acc[1][r]), s.add(acc[2][r], acc[3][r])));
    }
    sums
}

#[inline(always)]
fn halves(x: &[f32; GROUP]) -> [&[f32; HALF]; 2] {
    let (halves, _) = x.as_chunks();
    [&halves[0], &halves[1]]
}

/// Of `P` tokens in a panel the dots of `T`, from `first` on, one row after the other: each row is unpacked once for all of them.
#[allow(clippy::needless_range_loop)] // acc[a][t], as in the formula
#[inline(always)]
fn dot_block<S: Simd, const P: usize, const T: usize>(
    s: S,
    rows: &[PackedBf16],
    panel: Panel,
    first: usize,
    ahead: &mut LinesAhead,
    out: &mut [f32],
) {
    let cols = panel.x.len() / P;
    let (groups, rest) = (cols / GROUP, cols % GROUP);
    assert!(panel.tokens == P && panel.x.len() == P * cols && first + T <= P, "gemv_batch: x of another length");
    for (row, out) in rows.chunks_exact(panel.row_len).zip(out.chunks_exact_mut(P)) {
        let row = Row::of("gemv_batch", row, cols);
        let mut acc = [[s.splat(0.0); T]; A];
        for at in 0..groups {
            let table = row.table(s, at);
            let weights = [row.half::<S, false>(s, at, table), row.half::<S, true>(s, at, table)];
            for v in 0..GROUP / S::LANES {
                let w = weights[v * S::LANES / HALF].as_ref()[v % (HALF / S::LANES)];
                for t in 0..T {
                    // SAFETY: the panel has a vector for each of its P tokens, of which first + t is one, for each vector of the
                    // `groups` groups, which are within its columns.
                    let x = unsafe {
                        let vector = (at * GROUP / S::LANES + v) * P + first + t;
                        s.load_ptr(panel.x.as_ptr().add(vector * S::LANES))
                    };
                    acc[v % A][t] = s.mul_add(w, x, acc[v % A][t]);
                }
            }
            ahead.step(s, GROUP_LINES);
        }
        if rest > 0 {
            let mut weights = [0.0; GROUP];
            row.group(s, groups, &mut weights);
            for t in 0..T {
                let x = &panel.x[groups * GROUP * P + (first + t) * rest..][..rest];
                for (v, at) in spans(s, rest).enumerate() {
                    acc[v % A][t] = s.mul_add(at.load(s, &weights[..]), at.load(s, x), acc[v % A][t]);
                }
            }
            ahead.step(s, GROUP_LINES);
        }
        for t in 0..T {
            out[first + t] = s.reduce_sum(s.add(s.add(acc[0][t], acc[1][t]), s.add(acc[2][t], acc[3][t])));
        }
    }
}

/// [`sparse::axpy_group`](crate::sparse::axpy_group).
#[inline(always)]
fn axpy_group<S: Simd, const R: usize>(s: S, rows: [Row; R], hints: Hints<R>, h: &[f32], sum: &mut [f32]) {
    let mut factors = [s.splat(0.0); R];
    factors.iter_mut().zip(h).for_each(|(factor, &h)| *factor = s.splat(h));
    let (whole, rest) = sum.as_chunks_mut::<GROUP>();
    for (block, sums) in whole.chunks_mut(BLOCK_GROUPS).enumerate() {
        let tables = tables(s, &rows, block);
        for (g, sum) in sums.iter_mut().enumerate() {
            let at = block * BLOCK_GROUPS + g;
            (0..R).for_each(|r| hints.step(s, r, at));
            let (first, second) = sum.split_at_mut(HALF);
            add::<S, false, R>(s, &rows, at, tables, factors, first);
            add::<S, true, R>(s, &rows, at, tables, factors, second);
        }
    }
    if !rest.is_empty() {
        for r in 0..R {
            let mut weights = [0.0; GROUP];
            hints.step(s, r, whole.len());
            rows[r].group(s, whole.len(), &mut weights);
            for at in spans(s, rest.len()) {
                at.store(s, s.mul_add(factors[r], at.load(s, &weights[..]), at.load(s, rest)), rest);
            }
        }
    }
}

/// `sum += factors[r] * rows[r]`, row by row, for one half of group number `at`.
#[inline(always)]
fn add<S: Simd, const SECOND: bool, const R: usize>(
    s: S,
    rows: &[Row; R],
    at: usize,
    tables: [Table<S>; R],
    factors: [S::F32; R],
    sum: &mut [f32],
) {
    let weights = rows[0].half::<S, SECOND>(s, at, tables[0]);
    let mut acc = weights;
    for (v, acc) in acc.as_mut().iter_mut().enumerate() {
        *acc = s.mul_add(factors[0], weights.as_ref()[v], s.load(&sum[v * S::LANES..]));
    }
    for r in 1..R {
        let weights = rows[r].half::<S, SECOND>(s, at, tables[r]);
        for (acc, &w) in acc.as_mut().iter_mut().zip(weights.as_ref()) {
            *acc = s.mul_add(factors[r], w, *acc);
        }
    }
    for (v, &acc) in acc.as_ref().iter().enumerate() {
        s.store(acc, &mut sum[v * S::LANES..]);
    }
}

/// [`panel::axpy_tile`](crate::panel::axpy_tile): a group of each row is unpacked into L1, 8 KiB in all, and from there added for all tokens.
#[allow(clippy::needless_range_loop)] // acc[t][v], as in the formula
#[inline(always)]
fn axpy_tile<S: Simd, const T: usize>(
    s: S,
    rows: &[PackedBf16],
    h: [[f32; AXPY_ROWS]; T],
    sums: &mut [f32],
    ahead: &mut LinesAhead,
) {
    /// Vectors of each sum at a time: with T = 8 they take 16 registers, and hide the latency of an FMA.
    const V: usize = 2;
    let cols = sums.len() / T;
    let row_len = PackedBf16::row_len(cols);
    assert!(rows.len() == AXPY_ROWS * row_len && sums.len() == T * cols, "axpys_of_batch: a tile of another size");
    let mut weights = [[0.0; GROUP]; AXPY_ROWS];
    for at in 0..cols.div_ceil(GROUP) {
        for (row, weights) in rows.chunks_exact(row_len).zip(&mut weights) {
            Row::of("axpys_of_batch", row, cols).group(s, at, weights);
            ahead.step(s, GROUP_LINES);
        }
        let first = at * GROUP;
        if first + GROUP > cols {
            for (t, sum) in sums.chunks_exact_mut(cols).enumerate() {
                let rest = &mut sum[first..];
                for at in spans(s, rest.len()) {
                    let mut acc = at.load(s, rest);
                    for r in 0..AXPY_ROWS {
                        acc = s.mul_add(s.splat(h[t][r]), at.load(s, &weights[r][..]), acc);
                    }
                    at.store(s, acc, rest);
                }
            }
            continue;
        }
        for start in (0..GROUP).step_by(V * S::LANES) {
            let mut acc = [[s.splat(0.0); V]; T];
            for t in 0..T {
                for v in 0..V {
                    acc[t][v] = s.load(&sums[t * cols + first + start + v * S::LANES..]);
                }
            }
            for r in 0..AXPY_ROWS {
                let mut w = [s.splat(0.0); V];
                for v in 0..V {
                    w[v] = s.load(&weights[r][start + v * S::LANES..]);
                }
                for t in 0..T {
                    let factor = s.splat(h[t][r]);
                    for v in 0..V {
                        acc[t][v] = s.mul_add(factor, w[v], acc[t][v]);
                    }
                }
            }
            for t in 0..T {
                for v in 0..V {
                    s.store(acc[t][v], &mut sums[t * cols + first + start + v * S::LANES..]);
                }
            }
        }
    }
}
