//! Dots and sums of quantised rows with x, h and y in f32. Weights are widened in register and multiplied by their scale once a
//! block: before the sum over the row in `dot`, with h in `axpy`.

use super::{BLOCK, GROUP_BLOCKS, LINE, Quantized, RUNS, block_bytes, groups};
use crate::RowFormat;
use crate::simd::Simd;
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
        // SAFETY: the row has `blocks` blocks, by the assert, and x as many; the group is within both.
        let group = unsafe { Group::of(row, hint, blocks, first) };
        let x = &x[first * BLOCK..][..n * BLOCK];
        // A whole group in code of its own, where all places are constants.
        // SAFETY: the group has n blocks, and x is as long.
        total = unsafe {
            if n == GROUP_BLOCKS {
                group.dot(s, GROUP_BLOCKS, x.as_ptr(), total)
            } else {
                group.dot(s, n, x.as_ptr(), total)
            }
        };
    }
    hint_scales(s, hint, blocks);
    s.reduce_sum(total)
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
    let row_len = Quantized::<BITS>::len_of(blocks);
    let mut ahead = Ahead { rows: hints, row: 0, line: 0, bytes: 0 };
    for (first, n) in groups(blocks) {
        // SAFETY: the rows have `blocks` blocks, by the assert, and the group is among them.
        let mut group = [unsafe { Group::of(rows[0], hints[0], blocks, first) }; R];
        for (r, group) in group.iter_mut().enumerate().skip(1) {
            // SAFETY: as above.
            *group = unsafe { Group::of(rows[r], hints[r], blocks, first) };
        }
        let sum = &mut sum[first * BLOCK..][..n * BLOCK];
        // SAFETY: the groups have n blocks, and the sum is as long.
        unsafe {
            if n == GROUP_BLOCKS {
                Group::axpy(s, GROUP_BLOCKS, group, &mut ahead, row_len, h, sum.as_mut_ptr())
            } else {
                Group::axpy(s, n, group, &mut ahead, row_len, h, sum.as_mut_ptr())
            }
        }
    }
    while ahead.row < R {
        ahead.hint(s, row_len);
    }
}

/// Hints at lines of the next rows, as many as are read of these: one row after the other from its start to its end, so that memory sees
/// one stream, although the rows in use are read side by side. At 2048 columns from memory (Zen 5, one thread, reading at 38.5 GB/s), four
/// rows in this way: q8 32 GB/s and q4 21; with hints in the order of use 23 and 16; one row at a time 29 and 18.
struct Ahead<const BITS: u32, const R: usize> {
    rows: [*const Quantized<BITS>; R],
    row: usize,
    line: usize,
    /// Read, and not hinted for yet.
    bytes: usize,
}

impl<const BITS: u32, const R: usize> Ahead<BITS, R> {
    #[inline(always)]
    fn hint<S: Simd>(&mut self, s: S, row_len: usize) {
        s.prefetch(self.rows[self.row].wrapping_add(self.line).cast());
        self.line += 1;
        if self.line == row_len {
            (self.row, self.line) = (self.row + 1, 0);
        }
    }

    /// For a vector of each row that is read: never more lines than the rows have, because their scales are not counted.
    #[inline(always)]
    fn read<S: Simd>(&mut self, s: S, row_len: usize) {
        self.bytes += R * S::LANES;
        if self.bytes >= LINE {
            self.bytes -= LINE;
            self.hint(s, row_len);
        }
    }
}

/// A group of a row: its weights and scales, and the place where another row has the same weights.
#[derive(Clone, Copy)]
struct Group<const BITS: u32> {
    quants: *const u8,
    scales: *const f16,
    hint: *const u8,
}

impl<const BITS: u32> Group<BITS> {
    /// # Safety
    /// The row has `blocks` blocks, and block `first` among them.
    #[inline(always)]
    unsafe fn of(row: &[Quantized<BITS>], hint: *const Quantized<BITS>, blocks: usize, first: usize) -> Self {
        let (quants, at) = (row.as_ptr().cast::<u8>(), first * block_bytes(BITS));
        // SAFETY: the caller's contract: weights and scales of the block are in the row.
        unsafe {
            Group {
                quants: quants.add(at),
                scales: quants.add(Quantized::<BITS>::quant_bytes(blocks)).cast::<f16>().add(first),
                hint: hint.cast::<u8>().wrapping_add(at),
            }
        }
    }

    /// `total + ` the products of the group.
    ///
    /// # Safety
    /// The group has `n` blocks, and `x` is valid for reading as many.
    #[inline(always)]
    unsafe fn dot<S: Simd>(self, s: S, n: usize, x: *const f32, mut total: S::F32) -> S::F32 {
        let run = 4 * n;
        for v in (0..run).step_by(S::LANES) {
            // Two sums for q4: of the runs in the low halves of bytes, and of those in the high halves.
            let mut sum = [s.splat(0.0); 2];
            // SAFETY: a run has 4 n bytes and elements of x, a multiple of the lanes (n is one of 4); q8 has 8 of them, q4 4 of bytes
            // and 8 of x: the caller's contract. The scales of the blocks in lanes v .. v + LANES are those of the group.
            unsafe {
                for j in 0..block_bytes(BITS) / 4 {
                    let quants = self.quants.add(j * run + v);
                    if v == 0 {
                        s.prefetch(self.hint.wrapping_add(j * run).cast());
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
                total = s.mul_add(sum, s.load_f16_by_4_ptr(self.scales, v), total);
            }
        }
        total
    }

    /// `sum[..] += h[r] * group[r]`.
    ///
    /// # Safety
    /// The groups have `n` blocks, and `sum` is valid for reading and writing as many.
    #[inline(always)]
    unsafe fn axpy<S: Simd, const R: usize>(
        s: S,
        n: usize,
        group: [Self; R],
        ahead: &mut Ahead<BITS, R>,
        row_len: usize,
        h: &[f32],
        sum: *mut f32,
    ) {
        let run = 4 * n;
        for v in (0..run).step_by(S::LANES) {
            let mut factors = [s.splat(0.0); R];
            for r in 0..R {
                // SAFETY: as in `dot`.
                factors[r] = s.mul(s.splat(h[r]), unsafe { s.load_f16_by_4_ptr(group[r].scales, v) });
            }
            for j in 0..block_bytes(BITS) / 4 {
                ahead.read(s, row_len);
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
