//! Dots and sums of quantised rows with x, h and y in f32. Weights are widened in register and multiplied by their scale once a
//! block: before the sum over the row in `dot`, with h in `axpy`.

use super::{BLOCK, GROUP_BLOCKS, LINE, Quantized, RUNS, block_bytes, groups};
use crate::RowFormat;
use crate::panel::{self, AXPY_ROWS, LinesAhead, Panel};
use crate::simd::Simd;
use bytemuck::cast_slice;
use half::f16;

/// Hints at what lies behind the weights of the groups: the scales.
#[inline(always)]
pub(super) fn hint_scales<S: Simd, const BITS: u32>(s: S, hint: *const Quantized<BITS>, blocks: usize) {
    let lines = Quantized::<BITS>::quant_bytes(blocks) / LINE..Quantized::<BITS>::len_of(blocks);
    lines.for_each(|line| s.prefetch(hint.wrapping_add(line).cast()));
}

/// The sorted `x` times the row.
#[inline(always)]
pub(super) fn dot<S: Simd, const BITS: u32>(
    s: S,
    row: &[Quantized<BITS>],
    hint: *const Quantized<BITS>,
    x: &[f32],
) -> f32 {
    assert_eq!(row.len(), Quantized::<BITS>::row_len(x.len()), "gemv: a row of another length");
    let blocks = x.len() / BLOCK;
    let mut total = s.splat(0.0);
    for (first, n) in groups(blocks) {
        let group = Group::of(s, row, blocks, (first, n), 1.0);
        let hint = hint.cast::<u8>().wrapping_add(first * block_bytes(BITS));
        let x = &x[first * BLOCK..][..n * BLOCK];
        // A whole group in code of its own, where all places are constants.
        // SAFETY: the group has n blocks, and x is as long.
        total = unsafe {
            if n == GROUP_BLOCKS {
                group.dot(s, GROUP_BLOCKS, hint, x.as_ptr(), total)
            } else {
                group.dot(s, n, hint, x.as_ptr(), total)
            }
        };
    }
    hint_scales(s, hint, blocks);
    s.reduce_sum(total)
}

/// The dots of rows one after the other with a panel of `T` tokens, `R` rows at a time; each in the order of [`dot`]. Panel:
/// `[vector, token, lane]`. The rows meet a group of the panel, which is in L1 meanwhile, before the next.
#[inline(always)]
pub(super) fn dot_block<S: Simd, const BITS: u32, const R: usize, const T: usize>(
    s: S,
    rows: &[Quantized<BITS>],
    panel: Panel,
    ahead: &mut LinesAhead,
    out: &mut [f32],
) {
    let (blocks, row_len) = (panel.x.len() / (T * BLOCK), panel.row_len);
    let n_rows = rows.len() / row_len;
    assert!(
        row_len == Quantized::<BITS>::len_of(blocks) && panel.x.len() == blocks * BLOCK * T,
        "gemv_batch: a panel of another size"
    );
    let mut totals = [[s.splat(0.0); T]; panel::BLOCK];
    for (first, n) in groups(blocks) {
        let x = &panel.x[first * BLOCK * T..][..n * BLOCK * T];
        let mut row = 0;
        while row < n_rows {
            let size = if row + R <= n_rows { R } else { 1 };
            let (rows, totals) = (&rows[row * row_len..][..size * row_len], &mut totals[row..row + size]);
            // SAFETY: the rows have `blocks` blocks, by the assert, and x the T tokens of the group's n.
            unsafe {
                match (size == R, n == GROUP_BLOCKS) {
                    (true, true) => tile_of_group::<S, BITS, R, T>(
                        s,
                        GROUP_BLOCKS,
                        rows,
                        (blocks, first),
                        x.as_ptr(),
                        ahead,
                        totals,
                    ),
                    (true, false) => {
                        tile_of_group::<S, BITS, R, T>(s, n, rows, (blocks, first), x.as_ptr(), ahead, totals)
                    }
                    _ => tile_of_group::<S, BITS, 1, T>(s, n, rows, (blocks, first), x.as_ptr(), ahead, totals),
                }
            }
            row += size;
        }
    }
    for (total, out) in totals[..n_rows].iter().flatten().zip(out) {
        *out = s.reduce_sum(*total);
    }
}

/// `totals + ` the products of the group of `n` blocks from `first` on.
///
/// # Safety
/// There are `R` rows of `blocks` blocks, this group among them, and `x` is valid for reading the group's elements of `T` tokens.
#[allow(clippy::needless_range_loop)] // sums[half][r][t], as in the formula
#[inline(always)]
unsafe fn tile_of_group<S: Simd, const BITS: u32, const R: usize, const T: usize>(
    s: S,
    n: usize,
    rows: &[Quantized<BITS>],
    (blocks, first): (usize, usize),
    x: *const f32,
    ahead: &mut LinesAhead,
    totals: &mut [[S::F32; T]],
) {
    let (run, row_len) = (4 * n, rows.len() / R);
    let mut group = [Group::of(s, &rows[..row_len], blocks, (first, n), 1.0); R];
    for (r, group) in group.iter_mut().enumerate().skip(1) {
        *group = Group::of(s, &rows[r * row_len..][..row_len], blocks, (first, n), 1.0);
    }
    for v in (0..run).step_by(S::LANES) {
        // As in `Group::dot`.
        let mut sums = [[[s.splat(0.0); T]; R]; 2];
        for j in 0..block_bytes(BITS) / 4 {
            // SAFETY: as in `Group::dot`; x has T vectors where a row has one.
            unsafe {
                let mut quants = [[s.splat(0.0); R]; 2];
                for r in 0..R {
                    let at = group[r].quants.add(j * run + v);
                    if BITS == 8 {
                        quants[0][r] = s.load_i8_ptr(at.cast());
                    } else {
                        [quants[0][r], quants[1][r]] = s.load_u4_pair_ptr(at);
                    }
                }
                for half in 0..if BITS == 8 { 1 } else { 2 } {
                    let x = x.add(((j + half * RUNS / 2) * run + v) * T);
                    for t in 0..T {
                        let x = s.load_ptr(x.add(t * S::LANES));
                        for r in 0..R {
                            sums[half][r][t] = s.mul_add(quants[half][r], x, sums[half][r][t]);
                        }
                    }
                }
            }
            if (j * S::LANES).is_multiple_of(LINE) {
                ahead.step(s, R);
            }
        }
        for r in 0..R {
            // SAFETY: as in `Group::dot`.
            let scales = unsafe { s.load_by_4_ptr(group[r].factors.as_ptr(), v) };
            for t in 0..T {
                let sum = if BITS == 8 { sums[0][r][t] } else { s.add(sums[0][r][t], sums[1][r][t]) };
                totals[r][t] = s.mul_add(sum, scales, totals[r][t]);
            }
        }
    }
}

/// `sum += h[r] * rows[r]`, in the sum's sorted order.
#[inline(always)]
pub(super) fn axpy<S: Simd, const BITS: u32, const R: usize>(
    s: S,
    rows: [&[Quantized<BITS>]; R],
    hints: [*const Quantized<BITS>; R],
    h: &[f32],
    sum: &mut [f32],
) {
    for row in rows {
        assert_eq!(row.len(), Quantized::<BITS>::row_len(sum.len()), "rows_axpy: a row of another length");
    }
    let blocks = sum.len() / BLOCK;
    // The scales are wanted first.
    hints.iter().for_each(|&hint| hint_scales(s, hint, blocks));
    let mut ahead = Ahead { rows: hints, lines: Quantized::<BITS>::quant_bytes(blocks) / LINE, row: 0, line: 0 };
    for (first, n) in groups(blocks) {
        let mut group = [Group::of(s, rows[0], blocks, (first, n), h[0]); R];
        for r in 1..R {
            group[r] = Group::of(s, rows[r], blocks, (first, n), h[r]);
        }
        let sum = &mut sum[first * BLOCK..][..n * BLOCK];
        // SAFETY: the groups have n blocks, and the sum is as long.
        unsafe {
            match n {
                GROUP_BLOCKS => Group::axpy(s, GROUP_BLOCKS, &group, &mut ahead, sum.as_mut_ptr()),
                n => Group::axpy(s, n, &group, &mut ahead, sum.as_mut_ptr()),
            }
        }
    }
}

/// `sums[t, :] += sum_r h[t][r] * rows[r, :]`, row by row, in the sums' sorted order.
#[inline(always)]
pub(super) fn axpy_tile<S: Simd, const BITS: u32, const T: usize>(
    s: S,
    rows: &[Quantized<BITS>],
    h: [[f32; AXPY_ROWS]; T],
    sums: &mut [f32],
    ahead: &mut LinesAhead,
) {
    let (sum_len, row_len) = (sums.len() / T, rows.len() / AXPY_ROWS);
    let blocks = sum_len / BLOCK;
    assert!(
        row_len == Quantized::<BITS>::len_of(blocks) && rows.len() == AXPY_ROWS * row_len && sums.len() == T * sum_len,
        "axpys_of_batch: a tile of another size"
    );
    for (first, n) in groups(blocks) {
        let mut groups = [[Group { quants: rows.as_ptr().cast(), factors: [0.0; GROUP_BLOCKS] }; AXPY_ROWS]; T];
        for (groups, h) in groups.iter_mut().zip(h) {
            for (r, group) in groups.iter_mut().enumerate() {
                *group = Group::of(s, &rows[r * row_len..][..row_len], blocks, (first, n), h[r]);
            }
        }
        // SAFETY: the groups have n blocks, and the sums as many from `first` on.
        unsafe {
            let sums = sums.as_mut_ptr().add(first * BLOCK);
            match n {
                GROUP_BLOCKS => tile_of_sums(s, GROUP_BLOCKS, &groups, sums, sum_len, ahead),
                n => tile_of_sums(s, n, &groups, sums, sum_len, ahead),
            }
        }
    }
}

/// `sums[t, ..] += groups[t][r]`, times its factors, row by row: a weight is widened once for all tokens.
///
/// # Safety
/// The groups have `n` blocks, and each of the `T` sums, `sum_len` apart, is valid for reading and writing as many.
#[allow(clippy::needless_range_loop)] // acc[t][half], as in the formula
#[inline(always)]
unsafe fn tile_of_sums<S: Simd, const BITS: u32, const T: usize>(
    s: S,
    n: usize,
    groups: &[[Group<BITS>; AXPY_ROWS]; T],
    sums: *mut f32,
    sum_len: usize,
    ahead: &mut LinesAhead,
) {
    let run = 4 * n;
    let runs = block_bytes(BITS) / 4;
    for v in (0..run).step_by(S::LANES) {
        let mut factors = [[s.splat(0.0); T]; AXPY_ROWS];
        for r in 0..AXPY_ROWS {
            for t in 0..T {
                // SAFETY: as in `Group::axpy`.
                factors[r][t] = unsafe { s.load_by_4_ptr(groups[t][r].factors.as_ptr(), v) };
            }
        }
        // Two places of each sum: two runs of q8, both halves of one of q4.
        for j in (0..runs).step_by(if BITS == 8 { 2 } else { 1 }) {
            // SAFETY: as in `Group::axpy`; q8 has an even number of runs.
            unsafe {
                let second = if BITS == 8 { run } else { RUNS / 2 * run };
                let dst = |t: usize, half: usize| sums.add(t * sum_len + j * run + v + half * second);
                let mut acc = [[s.splat(0.0); 2]; T];
                for t in 0..T {
                    acc[t] = [s.load_ptr(dst(t, 0)), s.load_ptr(dst(t, 1))];
                }
                for r in 0..AXPY_ROWS {
                    let quants = groups[0][r].quants.add(j * run + v);
                    let w = if BITS == 8 {
                        [s.load_i8_ptr(quants.cast()), s.load_i8_ptr(quants.add(run).cast())]
                    } else {
                        s.load_u4_pair_ptr(quants)
                    };
                    for t in 0..T {
                        for half in 0..2 {
                            acc[t][half] = s.mul_add(factors[r][t], w[half], acc[t][half]);
                        }
                    }
                }
                for t in 0..T {
                    s.store_ptr(acc[t][0], dst(t, 0));
                    s.store_ptr(acc[t][1], dst(t, 1));
                }
            }
            // As many lines as were read.
            ahead.step(s, (AXPY_ROWS * S::LANES * if BITS == 8 { 2 } else { 1 } / LINE).max(1));
        }
    }
}

/// Hints at lines of the next rows, as many as are read of these: one row after the other from its start to its end, so that memory sees
/// one stream, although the rows in use are read side by side. At 2048 columns from memory (Zen 5, one thread, reading at 38.5 GB/s), four
/// rows in this way: q8 32 GB/s and q4 21; with hints in the order of use 23 and 16; one row at a time 29 and 18.
struct Ahead<const BITS: u32, const R: usize> {
    rows: [*const Quantized<BITS>; R],
    /// Of the weights of a row.
    lines: usize,
    /// The place that is next.
    row: usize,
    line: usize,
}

/// A few lines of [`Ahead`]: line i is the one at `first + i` for the first `n`, at `then + i` for the others.
struct Lines<const BITS: u32> {
    first: *const Quantized<BITS>,
    n: usize,
    then: *const Quantized<BITS>,
}

impl<const BITS: u32> Lines<BITS> {
    #[inline(always)]
    fn hint<S: Simd>(&self, s: S, i: usize) {
        s.prefetch(if i < self.n { self.first } else { self.then }.wrapping_add(i).cast());
    }
}

impl<const BITS: u32, const R: usize> Ahead<BITS, R> {
    /// The next `lines`. Behind the last row it is that row again.
    #[inline(always)]
    fn take(&mut self, lines: usize) -> Lines<BITS> {
        let (first, n) = (self.rows[self.row].wrapping_add(self.line), self.lines - self.line);
        let next = (self.row + 1).min(R - 1);
        let then = self.rows[next].wrapping_sub(n);
        if lines < n {
            self.line += lines;
        } else {
            (self.row, self.line) = (next, (lines - n).min(self.lines - 1));
        }
        Lines { first, n, then }
    }
}

/// A group of a row: its weights, and its scales times a factor.
#[derive(Clone, Copy)]
struct Group<const BITS: u32> {
    quants: *const u8,
    factors: [f32; GROUP_BLOCKS],
}

impl<const BITS: u32> Group<BITS> {
    /// The `n` blocks from `first` on of a row of `blocks`.
    #[inline(always)]
    fn of<S: Simd>(s: S, row: &[Quantized<BITS>], blocks: usize, (first, n): (usize, usize), factor: f32) -> Self {
        let (quants, rest) = cast_slice::<_, u8>(row).split_at(Quantized::<BITS>::quant_bytes(blocks));
        let scales = &cast_slice::<u8, f16>(rest)[first..first + n];
        let mut factors = [0.0; GROUP_BLOCKS];
        for (scales, factors) in scales.chunks(S::LANES).zip(factors.chunks_mut(S::LANES)) {
            s.store_partial(s.mul(s.splat(factor), s.load_f16_partial(scales)), factors);
        }
        Group { quants: quants[first * block_bytes(BITS)..][..n * block_bytes(BITS)].as_ptr(), factors }
    }

    /// `total + ` the products of the group.
    ///
    /// # Safety
    /// The group has `n` blocks, and `x` is valid for reading as many.
    #[inline(always)]
    unsafe fn dot<S: Simd>(&self, s: S, n: usize, hint: *const u8, x: *const f32, mut total: S::F32) -> S::F32 {
        let run = 4 * n;
        for v in (0..run).step_by(S::LANES) {
            // Two sums for q4: of the runs in the low halves of bytes, and of those in the high halves.
            let mut sum = [s.splat(0.0); 2];
            // SAFETY: a run has 4 n bytes and elements of x, a multiple of the lanes (n is one of 4); q8 has 8 of them, q4 4 of bytes
            // and 8 of x: the caller's contract. The lanes v .. v + LANES belong to blocks of the group.
            unsafe {
                for j in 0..block_bytes(BITS) / 4 {
                    let quants = self.quants.add(j * run + v);
                    if v == 0 {
                        s.prefetch(hint.wrapping_add(j * run).cast());
                    }
                    if BITS == 8 {
                        sum[0] = s.mul_add(s.load_i8_ptr(quants.cast()), s.load_ptr(x.add(j * run + v)), sum[0]);
                    } else {
                        let [low, high] = s.load_u4_pair_ptr(quants);
                        sum[0] = s.mul_add(low, s.load_ptr(x.add(j * run + v)), sum[0]);
                        sum[1] = s.mul_add(high, s.load_ptr(x.add((j + RUNS / 2) * run + v)), sum[1]);
                    }
                }
                let sum = if BITS == 8 { sum[0] } else { s.add(sum[0], sum[1]) };
                total = s.mul_add(sum, s.load_by_4_ptr(self.factors.as_ptr(), v), total);
            }
        }
        total
    }

    /// `sum[..] += group[r]`, times its factors.
    ///
    /// # Safety
    /// The groups have `n` blocks, and `sum` is valid for reading and writing as many.
    #[inline(always)]
    unsafe fn axpy<S: Simd, const R: usize>(
        s: S,
        n: usize,
        group: &[Self; R],
        ahead: &mut Ahead<BITS, R>,
        sum: *mut f32,
    ) {
        let run = 4 * n;
        let runs = block_bytes(BITS) / 4;
        // Lines of R rows that are read in one turn; less than one counts as one.
        let lines = (runs * R * S::LANES / LINE).max(1);
        for v in (0..run).step_by(S::LANES) {
            let mut factors = [s.splat(0.0); R];
            for r in 0..R {
                // SAFETY: as in `dot`.
                factors[r] = unsafe { s.load_by_4_ptr(group[r].factors.as_ptr(), v) };
            }
            let hints = ahead.take(lines);
            for j in 0..runs {
                (j * lines / runs..(j + 1) * lines / runs).for_each(|line| hints.hint(s, line));
                // SAFETY: as in `dot`, with the sum for x.
                unsafe {
                    let low_dst = sum.add(j * run + v);
                    // Of q4 only.
                    let high_dst = low_dst.wrapping_add(RUNS / 2 * run);
                    let mut low_sum = s.load_ptr(low_dst);
                    let mut high_sum = if BITS == 8 { low_sum } else { s.load_ptr(high_dst) };
                    for r in 0..R {
                        let quants = group[r].quants.add(j * run + v);
                        if BITS == 8 {
                            low_sum = s.mul_add(factors[r], s.load_i8_ptr(quants.cast()), low_sum);
                        } else {
                            let [low, high] = s.load_u4_pair_ptr(quants);
                            low_sum = s.mul_add(factors[r], low, low_sum);
                            high_sum = s.mul_add(factors[r], high, high_sum);
                        }
                    }
                    s.store_ptr(low_sum, low_dst);
                    if BITS == 4 {
                        s.store_ptr(high_sum, high_dst);
                    }
                }
            }
        }
    }
}
