//! Dots of quantised rows with an x that is rounded as q8 rounds weights: integers within a block, floats between blocks.

use super::exact::hint_scales;
use super::{BLOCK, GROUP_BLOCKS, LINE, Quantized, RUNS, blocks_of, groups};
use crate::RowFormat;
use crate::panel::{AXPY_ROWS, LinesAhead, Panel};
use crate::row_format::Loops;
use crate::simd::{Kernel, Level, Simd};
use bytemuck::{Pod, Zeroable, cast, cast_slice, cast_slice_mut};
use half::f16;

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

/// Words that a block of x takes: its numbers, its scale, and what its sums start at.
const WORDS: usize = BLOCK / 4 + 2;

/// A rounded x: `[numbers of all blocks, in the layout's order | scales | starts]`.
struct RoundX<'a> {
    x: &'a [f32],
    /// What is added to a weight to make it an unsigned byte: the sum of a block starts at minus so many times the sum of x.
    offset: i32,
    out: &'a mut [f32],
}

impl Kernel for RoundX<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let RoundX { x, offset, out } = self;
        let blocks = out.len() / WORDS;
        let (quants, rest) = out.split_at_mut(blocks * RUNS);
        let (scales, starts) = rest.split_at_mut(blocks);
        let (quants, starts): (&mut [u32], &mut [i32]) = (cast_slice_mut(quants), cast_slice_mut(starts));
        for (first, n) in groups(blocks) {
            for block in first..first + n {
                let of_block = &x[(block * BLOCK).min(x.len())..((block + 1) * BLOCK).min(x.len())];
                let mut x = [0.0; BLOCK];
                match <&[f32; BLOCK]>::try_from(of_block) {
                    Ok(whole) => x = *whole,
                    Err(_) => x[..of_block.len()].copy_from_slice(of_block),
                }
                let (q, scale) = round_block(&x);
                scales[block] = scale;
                starts[block] = -offset * q.iter().map(|&q| q as i32).sum::<i32>();
                let words: [u32; RUNS] = cast(q);
                for (j, word) in words.into_iter().enumerate() {
                    quants[first * RUNS + j * n + block - first] = word;
                }
            }
        }
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

impl<const BITS: u32> I8Dot<BITS> {
    /// What makes a stored weight an unsigned byte. q4 is one already, of a number 8 too large.
    pub(super) const OFFSET: i32 = if BITS == 8 { 128 } else { 8 };

    #[inline(always)]
    fn dot<S: Simd>(s: S, row: &[Self], hint: *const Self, x: &[f32]) -> f32 {
        assert_eq!(row.len(), Self::row_len_for(x), "gemv: a row of another length");
        let blocks = x.len() / WORDS;
        let (quants, scales) = {
            let (quants, rest) = cast_slice::<Self, u8>(row).split_at(Quantized::<BITS>::quant_bytes(blocks));
            (cast_slice::<u8, u32>(quants), &cast_slice::<u8, f16>(rest)[..blocks])
        };
        let (x_quants, rest) = x.split_at(blocks * RUNS);
        let (x_scales, x_starts) = rest.split_at(blocks);
        let mut total = s.splat(0.0);
        for (first, n) in groups(blocks) {
            let group = Group {
                quants: &quants[first * BITS as usize..][..n * BITS as usize],
                scales: &scales[first..][..n],
                hint: hint.cast::<u8>().wrapping_add(Quantized::<BITS>::quant_bytes(first)),
                x_quants: &cast_slice(x_quants)[first * RUNS..][..n * RUNS],
                x_scales: &x_scales[first..][..n],
                x_starts: &cast_slice(x_starts)[first..][..n],
            };
            // A whole group in code of its own, where all places are constants.
            total = if n == GROUP_BLOCKS {
                group.dot::<S, BITS>(s, GROUP_BLOCKS, total)
            } else {
                group.dot::<S, BITS>(s, n, total)
            };
        }
        hint_scales::<S, BITS>(s, hint.cast(), blocks);
        s.reduce_sum(total)
    }
}

impl<const BITS: u32> I8Dot<BITS> {
    /// The dots of `R` rows, one after the other, with `T` tokens: out `[R, T]`; each in the order of [`dot`](I8Dot::dot). A panel is
    /// `T` rounded x, which stay in L1, one after the other.
    #[allow(clippy::needless_range_loop)] // sums[half][r][t], as in the formula
    #[inline(always)]
    fn dot_tile<S: Simd, const R: usize, const T: usize>(
        s: S,
        rows: &[Self],
        panel: &[f32],
        ahead: &mut LinesAhead,
        out: &mut [f32],
    ) {
        let x_len = panel.len() / T;
        let blocks = x_len / WORDS;
        let quant_bytes = Quantized::<BITS>::quant_bytes(blocks);
        let row_bytes = rows.len() / R * LINE;
        let rows: &[u8] = cast_slice(rows);
        let mut totals = [[s.splat(0.0); T]; R];
        for (first, n) in groups(blocks) {
            for lane in (0..n).step_by(S::LANES) {
                let lanes = n.min(lane + S::LANES) - lane;
                let run = |j: usize| j * n + lane..j * n + lane + lanes;
                let x_of = |t: usize| &panel[t * x_len..][..x_len];
                let x_quants = |t: usize| -> &[u32] { cast_slice(&x_of(t)[first * RUNS..][..n * RUNS]) };
                let mut sums = [[s.splat_u32(0); T]; R];
                for t in 0..T {
                    let starts: &[u32] = cast_slice(&x_of(t)[blocks * (RUNS + 1) + first + lane..][..lanes]);
                    let start = s.load_u32_partial(starts);
                    for r in 0..R {
                        sums[r][t] = start;
                    }
                }
                for j in 0..BITS as usize {
                    // One half of the bytes of q8, both of q4.
                    let mut quants = [[s.splat_u32(0); R]; 2];
                    for r in 0..R {
                        let of_group = &rows[r * row_bytes + first * BITS as usize * 4..][..n * BITS as usize * 4];
                        let words = s.load_u32_partial(&cast_slice::<u8, u32>(of_group)[run(j)]);
                        if BITS == 8 {
                            quants[0][r] = s.xor_u32(words, s.splat_u32(0x8080_8080));
                        } else {
                            [quants[0][r], quants[1][r]] = s.u4_pair(words);
                        }
                    }
                    for half in 0..if BITS == 8 { 1 } else { 2 } {
                        for t in 0..T {
                            let x = s.load_u32_partial(&x_quants(t)[run(j + half * RUNS / 2)]);
                            for r in 0..R {
                                sums[r][t] = s.dot_i8(sums[r][t], quants[half][r], x);
                            }
                        }
                    }
                    // A run of a group is a line.
                    if lane == 0 {
                        ahead.step(s, R);
                    }
                }
                for r in 0..R {
                    let scales: &[f16] = cast_slice(&rows[r * row_bytes + quant_bytes..][..2 * blocks]);
                    let w_scale = s.load_f16_partial(&scales[first + lane..][..lanes]);
                    for t in 0..T {
                        let x_scale = s.load_partial(&x_of(t)[blocks * RUNS + first + lane..][..lanes]);
                        totals[r][t] = s.mul_add(s.i32_to_f32(sums[r][t]), s.mul(w_scale, x_scale), totals[r][t]);
                    }
                }
            }
        }
        for (total, out) in totals.iter().flatten().zip(out) {
            *out = s.reduce_sum(*total);
        }
    }

    #[inline(always)]
    fn dot_tiles<S: Simd, const R: usize, const T: usize>(
        s: S,
        rows: &[Self],
        panel: Panel,
        ahead: &mut LinesAhead,
        out: &mut [f32],
    ) {
        let mut tiles = rows.chunks_exact(R * panel.row_len);
        let mut outs = out.chunks_exact_mut(R * T);
        for (rows, out) in (&mut tiles).zip(&mut outs) {
            Self::dot_tile::<S, R, T>(s, rows, panel.x, ahead, out);
        }
        let rest = tiles.remainder().chunks_exact(panel.row_len);
        for (row, out) in rest.zip(outs.into_remainder().chunks_exact_mut(T)) {
            Self::dot_tile::<S, 1, T>(s, row, panel.x, ahead, out);
        }
    }
}

/// A group of a row and of x. A word has four numbers of a block.
struct Group<'a> {
    quants: &'a [u32],
    scales: &'a [f16],
    hint: *const u8,
    x_quants: &'a [u32],
    x_scales: &'a [f32],
    x_starts: &'a [u32],
}

impl Group<'_> {
    /// `total + ` the products of the group's `n` blocks.
    #[inline(always)]
    fn dot<S: Simd, const BITS: u32>(self, s: S, n: usize, mut total: S::F32) -> S::F32 {
        let Group { quants, scales, hint, x_quants, x_scales, x_starts } = self;
        let runs = BITS as usize;
        assert!(quants.len() == n * runs && x_quants.len() == n * RUNS, "gemv: a group of another length");
        assert!(scales.len() == n && x_scales.len() == n && x_starts.len() == n, "gemv: a group of another length");
        for first in (0..n).step_by(S::LANES) {
            let lanes = first..n.min(first + S::LANES);
            let run = |j: usize| j * n + lanes.start..j * n + lanes.end;
            let mut sum = s.load_u32_partial(&x_starts[lanes.clone()]);
            for j in 0..runs {
                let words = s.load_u32_partial(&quants[run(j)]);
                if first == 0 {
                    s.prefetch(hint.wrapping_add(4 * j * n).cast());
                }
                if BITS == 8 {
                    // The sign bit flipped is 128 added.
                    let bytes = s.xor_u32(words, s.splat_u32(0x8080_8080));
                    sum = s.dot_i8(sum, bytes, s.load_u32_partial(&x_quants[run(j)]));
                } else {
                    let [low, high] = s.u4_pair(words);
                    sum = s.dot_i8(sum, low, s.load_u32_partial(&x_quants[run(j)]));
                    sum = s.dot_i8(sum, high, s.load_u32_partial(&x_quants[run(j + RUNS / 2)]));
                }
            }
            let scale = s.mul(s.load_f16_partial(&scales[lanes.clone()]), s.load_partial(&x_scales[lanes]));
            total = s.mul_add(s.i32_to_f32(sum), scale, total);
        }
        total
    }
}

impl<const BITS: u32> Loops for I8Dot<BITS> {
    #[inline(always)]
    fn dispatch<K: Kernel>(level: Level, kernel: K) -> K::Output {
        level.dispatch_dot_i8(kernel)
    }
    #[inline(always)]
    fn x_len(cols: usize) -> usize {
        blocks_of(cols) * WORDS
    }
    #[inline(always)]
    fn sort_x(level: Level, x: &[f32], out: &mut [f32]) {
        level.dispatch(RoundX { x, offset: Self::OFFSET, out });
    }
    #[inline(always)]
    fn row_len_for(x: &[f32]) -> usize {
        Quantized::<BITS>::len_of(x.len() / WORDS)
    }
    #[inline(always)]
    fn dots_at_once<S: Simd>(row_len: usize, scattered: bool) -> usize {
        Quantized::<BITS>::dots_at_once::<S>(row_len, scattered)
    }
    #[inline(always)]
    fn dot_group<S: Simd, const R: usize>(s: S, rows: [&[Self]; R], hints: [*const Self; R], x: &[f32]) -> [f32; R] {
        let mut dots = [0.0; R];
        for r in 0..R {
            dots[r] = Self::dot(s, rows[r], hints[r], x);
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
        match panel.tokens {
            8 => Self::dot_tiles::<S, 2, 8>(s, rows, panel, ahead, out),
            4 => Self::dot_tiles::<S, 4, 4>(s, rows, panel, ahead, out),
            _ => Self::dot_tiles::<S, 4, 2>(s, rows, panel, ahead, out),
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
