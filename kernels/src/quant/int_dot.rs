//! Dots of quantised rows in integers: a block of x is cut into `D` digits of 8 bits, whose products with the weights are added up
//! exactly by `vpdpbusd`, and a scale. With one digit x is rounded as q8 rounds weights; four keep 30 bits of the block's largest.

use super::exact::hint_scales;
use super::i8_dot::round_block;
use super::{BLOCK, LINE, Quantized, RUNS, block_of, groups};
use crate::panel::LinesAhead;
use crate::simd::{Kernel, Simd};
use bytemuck::{cast_slice, cast_slice_mut};
use half::f16;
use std::hint::black_box;

/// Digits of an x that counts as exact.
pub(super) const EXACT: usize = 4;

/// Words that a block of x takes: its digits, four to a word, its scale, and what the sum of each digit starts at.
pub(super) const fn words(digits: usize) -> usize {
    (RUNS + 1) * digits + 1
}

/// What makes a stored weight an unsigned byte. q4 is one already, of a number 8 too large.
pub(super) const fn offset(bits: u32) -> i32 {
    if bits == 8 { 128 } else { 8 }
}

/// x in `D` digits: `[digits | scales of the blocks | starts]`. Digits lie as `[group][digit][run][block]`, words of four, and starts as
/// `[group][digit][block]`.
pub(super) struct RoundX<'a, const D: usize> {
    pub(super) x: &'a [f32],
    /// The [`offset`] of the weights: the sum of a block starts at minus so many times the sum of x.
    pub(super) offset: i32,
    pub(super) out: &'a mut [f32],
}

impl<const D: usize> Kernel for RoundX<'_, D> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let RoundX { x, offset, out } = self;
        let blocks = out.len() / words(D);
        let (digits, rest) = out.split_at_mut(blocks * RUNS * D);
        let (scales, starts) = rest.split_at_mut(blocks);
        let (digits, starts): (&mut [u32], &mut [i32]) = (cast_slice_mut(digits), cast_slice_mut(starts));
        for (first, n) in groups(blocks) {
            for block in first..first + n {
                let x = block_of(x, block);
                let (q, scale) = if D == 1 {
                    let (q, scale) = round_block(&x);
                    ([q; D], scale)
                } else {
                    cut(&x)
                };
                scales[block] = scale;
                for (d, q) in q.iter().enumerate() {
                    starts[first * D + d * n + block - first] = -offset * q.iter().map(|&q| q as i32).sum::<i32>();
                    for (j, word) in cast_slice::<i8, [u8; 4]>(q).iter().enumerate() {
                        digits[first * RUNS * D + (d * RUNS + j) * n + block - first] = u32::from_le_bytes(*word);
                    }
                }
            }
        }
    }
}

/// A block of x as numbers of four digits, the lowest first, and their scale, a power of two; NaN if one of x is not finite.
///
/// The scale brings the largest magnitude to 2^29 .. 2^30, so that a number is off by 2^-30 of it at most.
#[inline(always)]
fn cut<const D: usize>(x: &[f32; BLOCK]) -> ([[i8; BLOCK]; D], f32) {
    /// Added and taken away again digit by digit, it makes the digits signed.
    const HALVES: u32 = 0x0080_8080;
    assert!(D == EXACT);
    let mut largest = 0;
    x.iter().for_each(|x| largest = largest.max(x.to_bits() & 0x7FFF_FFFF));
    // Below 2^-97 the scale stays where it is, which is 2^-126.
    let exponent = (largest >> 23).max(30);
    let mut q = [[0; BLOCK]; D];
    if exponent == 255 {
        return (q, f32::NAN);
    }
    let (up, scale) = (f32::from_bits((283 - exponent) << 23), f32::from_bits((exponent - 29) << 23));
    let mut bytes = [0u32; BLOCK];
    for (bytes, x) in bytes.iter_mut().zip(x) {
        *bytes = ((x * up).round_ties_even() as i32 as u32).wrapping_add(HALVES) ^ HALVES;
    }
    for (d, q) in q.iter_mut().enumerate() {
        q.iter_mut().zip(bytes).for_each(|(q, bytes)| *q = (bytes >> (8 * d)) as i8);
    }
    (q, scale)
}

/// A row, in words of four bytes, and its scales.
#[derive(Clone, Copy)]
struct Row<'a> {
    quants: &'a [u32],
    scales: &'a [f16],
}

impl<'a> Row<'a> {
    #[inline(always)]
    fn of<const BITS: u32>(row: &'a [Quantized<BITS>], blocks: usize) -> Self {
        assert_eq!(row.len(), Quantized::<BITS>::len_of(blocks), "gemv: a row of another length");
        let (quants, rest) = cast_slice::<_, u8>(row).split_at(Quantized::<BITS>::quant_bytes(blocks));
        Row { quants: cast_slice(quants), scales: &cast_slice(rest)[..blocks] }
    }
}

/// The parts of an x as [`RoundX`] leaves it.
#[derive(Clone, Copy)]
struct X<'a> {
    digits: &'a [u32],
    scales: &'a [f32],
    starts: &'a [u32],
}

impl<'a> X<'a> {
    #[inline(always)]
    fn of<const D: usize>(x: &'a [f32]) -> Self {
        let blocks = x.len() / words(D);
        let (digits, rest) = x.split_at(blocks * RUNS * D);
        let (scales, starts) = rest.split_at(blocks);
        X { digits: cast_slice(digits), scales, starts: &cast_slice(starts)[..blocks * D] }
    }
}

/// Hints at a line while one is read.
trait Hint {
    fn line<S: Simd>(&mut self, s: S);
}

/// The lines of a row.
struct RowAhead(*const u8);

impl Hint for RowAhead {
    #[inline(always)]
    fn line<S: Simd>(&mut self, s: S) {
        s.prefetch(self.0.cast());
        self.0 = self.0.wrapping_add(LINE);
    }
}

/// As many as there are rows.
struct BlockAhead<'a, const R: usize>(&'a mut LinesAhead);

impl<const R: usize> Hint for BlockAhead<'_, R> {
    #[inline(always)]
    fn line<S: Simd>(&mut self, s: S) {
        self.0.step(s, R);
    }
}

/// The product of a row with an x of `D` digits.
#[inline(always)]
pub(super) fn dot<S: Simd, const BITS: u32, const D: usize>(
    s: S,
    row: &[Quantized<BITS>],
    hint: *const Quantized<BITS>,
    x: &[f32],
) -> f32 {
    let blocks = x.len() / words(D);
    let mut ahead = RowAhead(hint.cast());
    let [[dot]] = dots::<S, BITS, D, 1, 1>(s, [Row::of(row, blocks)], [X::of::<D>(x)], &mut ahead);
    hint_scales(s, hint, blocks);
    dot
}

/// The dots of rows one after the other with a panel of `tokens` x, one after the other, in tiles of `R` rows and `T` tokens: out
/// `[rows, tokens]`, each as [`dot`] gives it.
#[inline(always)]
pub(super) fn dot_block<S: Simd, const BITS: u32, const D: usize, const R: usize, const T: usize>(
    s: S,
    rows: &[Quantized<BITS>],
    (panel, tokens): (&[f32], usize),
    ahead: &mut LinesAhead,
    out: &mut [f32],
) {
    let x_len = panel.len() / tokens;
    let blocks = x_len / words(D);
    let row_len = Quantized::<BITS>::len_of(blocks);
    let n = rows.len() / row_len;
    let row = |i: usize| Row::of(&rows[i * row_len..][..row_len], blocks);
    let mut first = 0;
    while first < n {
        for token in (0..tokens).step_by(T) {
            let mut x = [X::of::<D>(&panel[token * x_len..][..x_len]); T];
            for (t, x) in x.iter_mut().enumerate().skip(1) {
                *x = X::of::<D>(&panel[(token + t) * x_len..][..x_len]);
            }
            if first + R <= n {
                let mut tile = [row(first); R];
                for (r, tile) in tile.iter_mut().enumerate().skip(1) {
                    *tile = row(first + r);
                }
                let dots = dots::<S, BITS, D, R, T>(s, tile, x, &mut BlockAhead::<R>(ahead));
                for (r, dots) in dots.iter().enumerate() {
                    out[(first + r) * tokens + token..][..T].copy_from_slice(dots);
                }
            } else {
                for i in first..n {
                    let [dots] = dots::<S, BITS, D, 1, T>(s, [row(i)], x, &mut BlockAhead::<1>(ahead));
                    out[i * tokens + token..][..T].copy_from_slice(&dots);
                }
            }
        }
        first += R;
    }
}

#[inline(always)]
fn dots<S: Simd, const BITS: u32, const D: usize, const R: usize, const T: usize>(
    s: S,
    rows: [Row; R],
    x: [X; T],
    ahead: &mut impl Hint,
) -> [[f32; T]; R] {
    let mut totals = [[s.splat(0.0); T]; R];
    let blocks = rows[0].scales.len();
    for row in rows {
        assert!(
            row.scales.len() == blocks && row.quants.len() == blocks * BITS as usize,
            "gemv: a row of another length"
        );
    }
    for x in x {
        let fits = x.digits.len() == blocks * RUNS * D && x.scales.len() == blocks && x.starts.len() == blocks * D;
        assert!(fits, "gemv: an x of another length");
    }
    for (first, n) in groups(blocks) {
        // SAFETY: the group's blocks are in every row and x, by the asserts.
        unsafe {
            // In code of their own, where all places are constants.
            match n {
                16 => group::<S, BITS, D, R, T>(s, (first, 16), &rows, &x, ahead, &mut totals),
                8 => group::<S, BITS, D, R, T>(s, (first, 8), &rows, &x, ahead, &mut totals),
                _ => group::<S, BITS, D, R, T>(s, (first, n), &rows, &x, ahead, &mut totals),
            }
        }
    }
    let mut dots = [[0.0; T]; R];
    for r in 0..R {
        for t in 0..T {
            dots[r][t] = s.reduce_sum(totals[r][t]);
        }
    }
    dots
}

/// `totals + ` the products of a group.
///
/// # Safety
/// The `n` blocks from `first` on are in all rows and x.
#[inline(always)]
unsafe fn group<S: Simd, const BITS: u32, const D: usize, const R: usize, const T: usize>(
    s: S,
    (first, n): (usize, usize),
    rows: &[Row; R],
    x: &[X; T],
    ahead: &mut impl Hint,
    totals: &mut [[S::F32; T]; R],
) {
    for lane in (0..n).step_by(S::LANES) {
        // SAFETY: the caller's contract; the lane is one of them.
        unsafe {
            if n.is_multiple_of(S::LANES) || S::LANES.is_multiple_of(n) {
                lanes::<S, BITS, D, R, T, false>(s, (first, n, lane), rows, x, ahead, totals);
            } else {
                lanes::<S, BITS, D, R, T, true>(s, (first, n, lane), rows, x, ahead, totals);
            }
        }
    }
}

/// `totals + ` the products of a group in the lanes from `lane` on. A vector has one run of the blocks, or as many as it holds, or with
/// `PART`, where blocks and lanes do not divide each other, a part of one.
///
/// # Safety
/// The `n` blocks from `first` on are in all rows and x; `lane` is a multiple of the lanes, below n.
#[allow(clippy::needless_range_loop)] // sums[d][r][t], as in the formula
#[inline(always)]
unsafe fn lanes<S: Simd, const BITS: u32, const D: usize, const R: usize, const T: usize, const PART: bool>(
    s: S,
    (first, n, lane): (usize, usize, usize),
    rows: &[Row; R],
    x: &[X; T],
    ahead: &mut impl Hint,
    totals: &mut [[S::F32; T]; R],
) {
    let runs = BITS as usize;
    // Blocks in the vector, words of it, and from one to the next.
    let blocks = S::LANES.min(n - lane);
    let (width, step) = if PART { (blocks, n) } else { (S::LANES, n.max(S::LANES)) };
    let mut sums = [[[s.splat_u32(0); T]; R]; D];
    for d in 0..D {
        for t in 0..T {
            let start = s.load_u32_partial(&x[t].starts[first * D + d * n + lane..][..blocks]);
            for r in 0..R {
                sums[d][r][t] = start;
            }
        }
    }
    // Unrolled, all loads of several digits are done first, and most of them spilled: so the length is not told.
    let turns = if D == 1 { runs * n / step } else { black_box(runs * n / step) };
    for at in (0..turns).map(|turn| lane + turn * step) {
        // One half of the bytes of q8, both of q4.
        let mut quants = [[s.splat_u32(0); R]; 2];
        for r in 0..R {
            // SAFETY: `width` words from `at` on are among the group's n * runs, which the row has: the caller's contract.
            let words = s.load_u32_partial(unsafe { part(rows[r].quants, first * runs + at, width) });
            if BITS == 8 {
                // The sign bit flipped is 128 added.
                quants[0][r] = s.xor_u32(words, s.splat_u32(0x8080_8080));
            } else {
                [quants[0][r], quants[1][r]] = s.u4_pair(words);
            }
        }
        for half in 0..if BITS == 8 { 1 } else { 2 } {
            for t in 0..T {
                for d in 0..D {
                    let at = first * RUNS * D + (d * RUNS + half * RUNS / 2) * n + at;
                    // SAFETY: as above: a digit has n * RUNS words of the group, twice as many as a row of q4.
                    let x = s.load_u32_partial(unsafe { part(x[t].digits, at, width) });
                    for r in 0..R {
                        sums[d][r][t] = s.dot_i8(sums[d][r][t], quants[half][r], x);
                    }
                }
            }
        }
        // A run of a group is a line, or a vector of shorter ones.
        if lane == 0 {
            ahead.line(s);
        }
    }
    for r in 0..R {
        let w_scales = &rows[r].scales[first + lane..][..blocks];
        let w_scales = if PART { s.load_f16_partial(w_scales) } else { s.load_f16_cyclic(w_scales) };
        for t in 0..T {
            let x_scales = &x[t].scales[first + lane..][..blocks];
            let x_scales = if PART { s.load_partial(x_scales) } else { s.load_cyclic(x_scales) };
            if D == 1 {
                let sum = s.i32_to_f32(sums[0][r][t]);
                totals[r][t] = s.mul_add(sum, s.mul(w_scales, x_scales), totals[r][t]);
            } else {
                let mut sum = s.i32_to_f32(sums[D - 1][r][t]);
                for d in (0..D - 1).rev() {
                    sum = s.mul_add(sum, s.splat(256.0), s.i32_to_f32(sums[d][r][t]));
                }
                // The product of both scales might be too small for a float.
                totals[r][t] = s.mul_add(s.mul(sum, x_scales), w_scales, totals[r][t]);
            }
        }
    }
}

/// `words[at..at + n]`.
///
/// # Safety
/// They are there.
#[inline(always)]
unsafe fn part(words: &[u32], at: usize, n: usize) -> &[u32] {
    debug_assert!(at + n <= words.len(), "gemv: {at} + {n} of {} words", words.len());
    // SAFETY: the caller's contract.
    unsafe { words.get_unchecked(at..at + n) }
}
