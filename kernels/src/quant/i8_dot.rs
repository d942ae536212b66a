//! Dots of quantised rows with an x that is rounded as q8 rounds weights: integers within a block, floats between blocks.

use super::int_dot::{self, RoundX, words};
use super::{BLOCK, Quantized, blocks_of};
use crate::RowFormat;
use crate::panel::{AXPY_ROWS, LinesAhead, Panel};
use crate::row_format::Loops;
use crate::simd::{Kernel, Level, Simd};
use bytemuck::{Pod, Zeroable, cast_slice, cast_slice_mut};

/// [`Quantized`] rows whose dots take x in blocks of 32 numbers of 8 bits: `x = q s` with q in -127 ..= 127 and `s = max |x| / 127` in
/// f32. With the instruction of AVX-512 VNNI where the CPU has it, and with the same integers elsewhere.
///
/// `dot = sum over the blocks of (s_w s_x) sum_k q_wk q_xk`, the inner sum exact.
///
/// Accuracy: of the dot with the rounded x, `(K + 4) 2^-24 sum_k |w_k x_k|`. An x is off by half its scale, `max |x| / 254` of its block:
/// that makes `sum over the blocks of max |x| / 254 sum_k |w_k|`. A block of x with no magnitude above 2^-100 counts as zeros.
/// Sums of rows (down_proj) are those of [`Quantized`]: h is not rounded.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct I8Dot<const BITS: u32>(Quantized<BITS>);

// SAFETY: transparent around a type of which zeros are a valid value.
unsafe impl<const BITS: u32> Zeroable for I8Dot<BITS> {}
// SAFETY: transparent around a plain-old-data type.
unsafe impl<const BITS: u32> Pod for I8Dot<BITS> {}

/// The same rows, to be multiplied with rounded x.
pub fn i8_dot<const BITS: u32>(rows: &[Quantized<BITS>]) -> &[I8Dot<BITS>] {
    cast_slice(rows)
}

/// The same rows, to be multiplied with x as it is.
pub fn exact_dot<const BITS: u32>(rows: &[I8Dot<BITS>]) -> &[Quantized<BITS>] {
    cast_slice(rows)
}

impl<const BITS: u32> RowFormat for I8Dot<BITS> {
    const NAME: &'static str = if BITS == 8 { "q8 x i8" } else { "q4 x i8" };

    #[inline(always)]
    fn row_len(cols: usize) -> usize {
        Quantized::<BITS>::row_len(cols)
    }
    fn round_row(level: Level, src: &[f32], row: &mut [Self]) {
        Quantized::round_row(level, src, cast_slice_mut::<_, Quantized<BITS>>(row));
    }
    fn widen_row(level: Level, row: &[Self], dst: &mut [f32]) {
        Quantized::widen_row(level, cast_slice::<_, Quantized<BITS>>(row), dst);
    }
}

/// Numbers of a block of x, and their scale; NaN or infinite if one of x is.
#[inline(always)]
pub(super) fn round_block(x: &[f32; BLOCK]) -> ([i8; BLOCK], f32) {
    /// 2^-100: far above the subnormal numbers, where quotients lose bits, and far below any x that matters.
    const LEAST: f32 = f32::from_bits((127 - 100) << 23);
    /// Adding it leaves the nearest integer, ties to even, in the low bits: for magnitudes below 2^22.
    const MAGIC: f32 = 12_582_912.0;
    let mut largest = 0;
    // As integers, magnitudes are ordered like numbers, and NaN is above all.
    x.iter().for_each(|x| largest = largest.max(x.to_bits() & 0x7FFF_FFFF));
    let largest = f32::from_bits(largest);
    if largest < LEAST {
        return ([0; BLOCK], 0.0);
    }
    let (scale, inverse) = (largest / 127.0, 127.0 / largest);
    let mut q = [0; BLOCK];
    for (q, x) in q.iter_mut().zip(x) {
        *q = (x * inverse + MAGIC).to_bits() as i8;
    }
    (q, scale)
}

impl<const BITS: u32> Loops for I8Dot<BITS> {
    #[inline(always)]
    fn dispatch<K: Kernel>(level: Level, kernel: K) -> K::Output {
        level.dispatch_dot_i8(kernel)
    }
    #[inline(always)]
    fn x_len(cols: usize) -> usize {
        blocks_of(cols) * words(1)
    }
    #[inline(always)]
    fn sort_x(level: Level, x: &[f32], out: &mut [f32]) {
        level.dispatch(RoundX::<1> { x, offset: int_dot::offset(BITS), out });
    }
    #[inline(always)]
    fn row_len_for(x: &[f32]) -> usize {
        Quantized::<BITS>::len_of(x.len() / words(1))
    }
    #[inline(always)]
    fn dots_at_once<S: Simd>(row_len: usize, scattered: bool) -> usize {
        Quantized::<BITS>::dots_at_once::<S>(row_len, scattered)
    }
    #[inline(always)]
    fn dot_group<S: Simd, const R: usize>(s: S, rows: [&[Self]; R], hints: [*const Self; R], x: &[f32]) -> [f32; R] {
        let mut dots = [0.0; R];
        for r in 0..R {
            dots[r] = int_dot::dot::<S, BITS, 1>(s, cast_slice(rows[r]), hints[r].cast(), x);
        }
        dots
    }
    #[inline(always)]
    fn panel_len(x_len: usize) -> usize {
        x_len
    }
    #[inline(always)]
    fn to_panel<S: Simd>(_: S, x: &[f32], token: usize, _: usize, panel: &mut [f32]) {
        panel[token * x.len()..][..x.len()].copy_from_slice(x);
    }
    #[inline(always)]
    fn dot_block<S: Simd>(s: S, rows: &[Self], panel: Panel, ahead: &mut LinesAhead, out: &mut [f32]) {
        let (rows, x) = (cast_slice(rows), (panel.x, panel.tokens));
        match panel.tokens {
            8 => int_dot::dot_block::<S, BITS, 1, 2, 8>(s, rows, x, ahead, out),
            4 => int_dot::dot_block::<S, BITS, 1, 4, 4>(s, rows, x, ahead, out),
            _ => int_dot::dot_block::<S, BITS, 1, 4, 2>(s, rows, x, ahead, out),
        }
    }
    #[inline(always)]
    fn sum_len(cols: usize) -> usize {
        Quantized::<BITS>::sum_len(cols)
    }
    #[inline(always)]
    fn axpys_at_once(row_len: usize, scattered: bool) -> usize {
        Quantized::<BITS>::axpys_at_once(row_len, scattered)
    }
    #[inline(always)]
    fn axpy_group<S: Simd, const R: usize>(
        s: S,
        rows: [&[Self]; R],
        hints: [*const Self; R],
        h: &[f32],
        sum: &mut [f32],
    ) {
        let mut quantized: [&[Quantized<BITS>]; R] = [&[]; R];
        for r in 0..R {
            quantized[r] = cast_slice(rows[r]);
        }
        Quantized::axpy_group(s, quantized, hints.map(|hint| hint.cast()), h, sum);
    }
    #[inline(always)]
    fn axpy_tile<S: Simd, const T: usize>(
        s: S,
        rows: &[Self],
        h: [[f32; AXPY_ROWS]; T],
        sums: &mut [f32],
        ahead: &mut LinesAhead,
    ) {
        Quantized::axpy_tile(s, cast_slice::<_, Quantized<BITS>>(rows), h, sums, ahead);
    }
    #[inline(always)]
    fn sort_sum(sum: &[f32], y: &mut [f32]) {
        Quantized::<BITS>::sort_sum(sum, y);
    }
}
