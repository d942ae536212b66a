//! Weights of 8 and 4 bits: quantised rows, for decoding.
//!
//! A row is cut into blocks of 32 weights, which share a scale in f16; a weight is a small integer times the scale:
//!
//! | format | weight                  | scale of a block                          | error of a weight                        | bytes a weight |
//! |--------|-------------------------|-------------------------------------------|------------------------------------------|------|
//! | q8     | `q s`, q in -127 ..= 127 | `max abs w / 127`                         | `s / 2`                                   | 1.06 |
//! | q4     | `(q - 8) s`, q in 0 ..= 15 | the w of the largest magnitude, over `-8` | `abs s / 2`, and `abs s` at the end that has no -8 | 0.56 |
//!
//! Both round to nearest, and both scales are rounded to f16 before the weights are divided by them, so that the f16 costs
//! little: a scale is off by 2^-11 of itself, which moves the largest weight by 127 x 2^-11 = 0.06 s (q8), 8 x 2^-11 s (q4), and only
//! the end of the range can be clipped by that. Scales below 2^-14 lose bits: then the error may reach 127 x 2^-25 = 3.8e-6 (q8). A
//! block with a NaN or an infinity becomes NaN. Widening is exact: q has 8 bits, the scale 11, a float 24.
//!
//! # Layout
//!
//! A row that is not a multiple of 128 weights is filled up with zeros to one, so that a group below has 4, 8, 12 or 16 blocks and no
//! kernel has a tail. Sixteen blocks are a group; the last group of a row may have fewer. Within a group the blocks lie side by
//! side in the lanes of a vector, four weights of each at a time ("lane layout"):
//!
//! ```text
//!          lane 0       lane 1            lane 15
//!          block 0      block 1           block 15
//! run 0    w0 .. w3     w0 .. w3    ...   w0 .. w3        64 bytes of q8: a vector, a cache line
//! run 1    w4 .. w7     w4 .. w7    ...   w4 .. w7
//! ...
//! run 7    w28 .. w31   w28 .. w31  ...   w28 .. w31
//!
//! row      group 0 | group 1 | ... | scales of all blocks | up to a multiple of 64 bytes
//! ```
//!
//! In q4 a byte holds two weights and a group has four runs: those of run 0 and 4 of the drawing lie in the low and the high halves of
//! its first run, those of run 1 and 5 in its second, and so on. So the instruction that multiplies four bytes with four bytes and adds
//! them to a lane (`vpdpbusd`) sums a block within its lane, and a group costs one multiplication by scales and no horizontal
//! sum. Vectors of x and y are brought into the same order: `[group][run][block][4]`.
//!
//! The dots of a row with x come in two kinds: [`Quantized`] keeps x, in f32 or with VNNI in four digits of 8 bits, [`I8Dot`] rounds x to
//! one digit, as q8 rounds weights.

mod exact;
mod gemm;
mod i8_dot;
mod int_dot;

pub use gemm::{I8Product, gemm_i8, gemm_i8_each};
pub use i8_dot::{I8Dot, exact_dot, i8_dot};
use int_dot::{EXACT, RoundX, words};

use crate::RowFormat;
use crate::panel::{AXPY_ROWS, LinesAhead, Panel};
use crate::row_format::Loops;
use crate::scratch;
use crate::simd::{Kernel, Level, Simd};
use bytemuck::{Pod, Zeroable, cast_slice, cast_slice_mut};
use half::f16;

/// Weights that share a scale.
pub const BLOCK: usize = 32;

/// Blocks side by side: the lanes of the widest level.
const GROUP_BLOCKS: usize = 16;

/// Weights of a group.
pub const GROUP: usize = BLOCK * GROUP_BLOCKS;

/// Runs of a group: a run has four weights of each block.
const RUNS: usize = BLOCK / 4;

/// 64 bytes of a row of weights of `BITS` bits, 8 or 4. See the [module](self) for the layout, [`RowFormat`] for its use.
///
/// Dots keep x. Accuracy: as for the widened weights, `(K + 4) 2^-24 sum_k |w_k x_k|`. At levels with VNNI a block of 32 x is cut into
/// fixed-point numbers of 30 bits and a power of two, their products with the weights are summed up exactly, and `1.02 x 2^-29 max |x|
/// sum_k |w_k|` of each block comes on top; a block below 2^-97 counts as that large.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quantized<const BITS: u32>([u8; LINE]);

/// Bytes of a unit, a cache line.
const LINE: usize = 64;

/// Weights of 8 bits.
pub type Q8 = Quantized<8>;
/// Weights of 4 bits.
pub type Q4 = Quantized<4>;

// SAFETY: 64 bytes, of which zeros are a valid value; aligned to 64, so there is no padding.
unsafe impl<const BITS: u32> Zeroable for Quantized<BITS> {}
// SAFETY: as above; any bytes are a valid value, and there is neither a pointer nor a lifetime in them.
unsafe impl<const BITS: u32> Pod for Quantized<BITS> {}

/// Blocks of a row of `cols` weights.
const fn blocks_of(cols: usize) -> usize {
    cols.div_ceil(4 * BLOCK) * 4
}

/// Bytes of the weights of a block; the scales of the row lie behind those of all its blocks.
const fn block_bytes(bits: u32) -> usize {
    BLOCK * bits as usize / 8
}

/// First block and number of blocks of each group.
#[inline(always)]
fn groups(blocks: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..blocks).step_by(GROUP_BLOCKS).map(move |first| (first, GROUP_BLOCKS.min(blocks - first)))
}

/// The place, in elements, of the four weights from `4 j` on of a block, where x and sums are in the order of the layout.
#[inline(always)]
fn place((first, n): (usize, usize), block: usize, j: usize) -> usize {
    BLOCK * first + 4 * (j * n + block - first)
}

/// Block number `block` of x, filled up with zeros.
#[inline(always)]
fn block_of(x: &[f32], block: usize) -> [f32; BLOCK] {
    let of_block = &x[(block * BLOCK).min(x.len())..((block + 1) * BLOCK).min(x.len())];
    <[f32; BLOCK]>::try_from(of_block).unwrap_or_else(|_| {
        let mut part = [0.0; BLOCK];
        part[..of_block.len()].copy_from_slice(of_block);
        part
    })
}

/// x in the order of the layout, filled up with zeros.
fn sort_x(x: &[f32], sorted: &mut [f32]) {
    for group in groups(sorted.len() / BLOCK) {
        for block in group.0..group.0 + group.1 {
            let of_block = &x[(block * BLOCK).min(x.len())..((block + 1) * BLOCK).min(x.len())];
            if let Ok(whole) = <&[f32; BLOCK]>::try_from(of_block) {
                for (j, four) in whole.chunks_exact(4).enumerate() {
                    sorted[place(group, block, j)..][..4].copy_from_slice(four);
                }
            } else {
                for j in 0..RUNS {
                    let four = &mut sorted[place(group, block, j)..][..4];
                    four.iter_mut().enumerate().for_each(|(k, x)| *x = of_block.get(4 * j + k).copied().unwrap_or(0.0));
                }
            }
        }
    }
}

impl<const BITS: u32> Quantized<BITS> {
    /// Bytes of the weights of a row with so many blocks.
    const fn quant_bytes(blocks: usize) -> usize {
        blocks * block_bytes(BITS)
    }

    const fn len_of(blocks: usize) -> usize {
        (Self::quant_bytes(blocks) + blocks * size_of::<f16>()).div_ceil(LINE)
    }
}

impl<const BITS: u32> RowFormat for Quantized<BITS> {
    const NAME: &'static str = match BITS {
        8 => "q8",
        4 => "q4",
        _ => panic!("Quantized: weights have 8 or 4 bits"),
    };

    #[inline(always)]
    fn row_len(cols: usize) -> usize {
        Self::len_of(blocks_of(cols))
    }

    fn round_row(level: Level, src: &[f32], row: &mut [Self]) {
        assert_eq!(row.len(), Self::row_len(src.len()), "round_row {}: a row of {}", Self::NAME, src.len());
        level.dispatch(RoundRow { src, row });
    }

    fn widen_row(level: Level, row: &[Self], dst: &mut [f32]) {
        assert_eq!(row.len(), Self::row_len(dst.len()), "widen_row {}: a row of {}", Self::NAME, dst.len());
        scratch::with(Self::sum_len(dst.len()), |sum| level.dispatch(WidenRow { row, sum, dst }));
    }
}

/// A block of weights as integers, and their scale. q4 as they are meant, `-8 ..= 7`.
#[inline(always)]
fn round_block<const BITS: u32>(w: &[f32; BLOCK]) -> ([i8; BLOCK], f16) {
    // As integers, magnitudes are ordered like numbers, and NaN is above all.
    let magnitude = |w: f32| w.to_bits() & 0x7FFF_FFFF;
    let mut largest = 0;
    w.iter().for_each(|&w| largest = largest.max(magnitude(w)));
    let scale = if BITS == 8 {
        f32::from_bits(largest) / 127.0
    } else {
        // The first of that magnitude.
        w.iter().find(|&&w| magnitude(w) == largest).expect("the largest is one of them") / -8.0
    };
    let (scale, (least, most)) = (f16::from_f32(scale), if BITS == 8 { (-127.0, 127.0) } else { (-8.0, 7.0) });
    let mut quants = [0; BLOCK];
    // A scale that rounds to 0 makes all 0. NaN becomes 0 here, and NaN again by its scale.
    let s = scale.to_f32();
    let s = if s == 0.0 { f32::INFINITY } else { s };
    for (q, w) in quants.iter_mut().zip(w) {
        *q = (w / s).round_ties_even().clamp(least, most) as i8;
    }
    (quants, scale)
}

struct RoundRow<'a, const BITS: u32> {
    src: &'a [f32],
    row: &'a mut [Quantized<BITS>],
}

impl<const BITS: u32> Kernel for RoundRow<'_, BITS> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let RoundRow { src, row } = self;
        let blocks = blocks_of(src.len());
        let bytes: &mut [u8] = cast_slice_mut(row);
        bytes.fill(0);
        let (quants, rest) = bytes.split_at_mut(Quantized::<BITS>::quant_bytes(blocks));
        let scales: &mut [f16] = cast_slice_mut(&mut rest[..blocks * size_of::<f16>()]);
        for group in groups(blocks) {
            for block in group.0..group.0 + group.1 {
                let (q, scale) = round_block::<BITS>(&block_of(src, block));
                scales[block] = scale;
                if BITS == 8 {
                    for (j, four) in cast_slice::<i8, u8>(&q).chunks_exact(4).enumerate() {
                        quants[place(group, block, j)..][..4].copy_from_slice(four);
                    }
                } else {
                    let start = group.0 * block_bytes(BITS);
                    for j in 0..RUNS / 2 {
                        let four = &mut quants[start + 4 * (j * group.1 + block - group.0)..][..4];
                        for (k, byte) in four.iter_mut().enumerate() {
                            let [low, high] = [q[4 * j + k], q[BLOCK / 2 + 4 * j + k]].map(|q| (q + 8) as u8);
                            *byte = low | high << 4;
                        }
                    }
                }
            }
        }
    }
}

struct WidenRow<'a, const BITS: u32> {
    row: &'a [Quantized<BITS>],
    /// [`sum_len`](Loops::sum_len) places.
    sum: &'a mut [f32],
    dst: &'a mut [f32],
}

impl<const BITS: u32> Kernel for WidenRow<'_, BITS> {
    type Output = ();

    /// A row times 1, added to zeros: both exact.
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let WidenRow { row, sum, dst } = self;
        sum.fill(0.0);
        Quantized::axpy_group(s, [row], [row.as_ptr()], &[1.0], sum);
        Quantized::<BITS>::sort_sum(sum, dst);
    }
}

impl<const BITS: u32> Loops for Quantized<BITS> {
    /// The digits of eight tokens are too many for the registers. The dense FFN of 8 tokens, 2048 x 5632, q8, one thread of a Zen 5: 10.1 ms
    /// in one panel, 6.0 in two.
    const PANEL_TOKENS: usize = 4;

    #[inline(always)]
    fn dispatch<K: Kernel>(level: Level, kernel: K) -> K::Output {
        level.dispatch_dot_i8(kernel)
    }
    /// Enough for both ways of multiplying: in integers and in floats.
    #[inline(always)]
    fn x_len(cols: usize) -> usize {
        blocks_of(cols) * words(EXACT)
    }
    #[inline(always)]
    fn sort_x(level: Level, x: &[f32], out: &mut [f32]) {
        if level.has_vnni() {
            level.dispatch(RoundX::<EXACT> { x, offset: int_dot::offset(BITS), out });
        } else {
            sort_x(x, &mut out[..blocks_of(x.len()) * BLOCK]);
        }
    }
    #[inline(always)]
    fn row_len_for(x: &[f32]) -> usize {
        Self::len_of(x.len() / words(EXACT))
    }
    /// A row has no horizontal sum but its last.
    #[inline(always)]
    fn dots_at_once<S: Simd>(_: usize, _: bool) -> usize {
        1
    }
    #[inline(always)]
    fn dot_group<S: Simd, const R: usize>(s: S, rows: [&[Self]; R], hints: [*const Self; R], x: &[f32]) -> [f32; R] {
        let mut dots = [0.0; R];
        for r in 0..R {
            dots[r] = if S::HAS_DOT_I8 {
                int_dot::dot::<S, BITS, EXACT>(s, rows[r], hints[r], x)
            } else {
                exact::dot(s, rows[r], hints[r], &x[..x.len() / words(EXACT) * BLOCK])
            };
        }
        dots
    }
    #[inline(always)]
    fn panel_len(x_len: usize) -> usize {
        x_len
    }
    #[inline(always)]
    fn to_panel<S: Simd>(s: S, x: &[f32], token: usize, tokens: usize, panel: &mut [f32]) {
        if S::HAS_DOT_I8 {
            return panel[token * x.len()..][..x.len()].copy_from_slice(x);
        }
        for (i, x) in x[..x.len() / words(EXACT) * BLOCK].chunks_exact(S::LANES).enumerate() {
            s.store(s.load(x), &mut panel[(i * tokens + token) * S::LANES..]);
        }
    }
    #[inline(always)]
    fn dot_block<S: Simd>(s: S, rows: &[Self], panel: Panel, ahead: &mut LinesAhead, out: &mut [f32]) {
        if S::HAS_DOT_I8 {
            let x = (panel.x, panel.tokens);
            return match panel.tokens {
                2 => int_dot::dot_block::<S, BITS, EXACT, 2, 2>(s, rows, x, ahead, out),
                _ => int_dot::dot_block::<S, BITS, EXACT, 1, 4>(s, rows, x, ahead, out),
            };
        }
        let panel = Panel { x: &panel.x[..panel.x.len() / words(EXACT) * BLOCK], ..panel };
        // Sums of q4 are two each.
        match (panel.tokens, BITS) {
            (8, 8) => exact::dot_block::<S, BITS, 2, 8>(s, rows, panel, ahead, out),
            (8, _) => exact::dot_block::<S, BITS, 1, 8>(s, rows, panel, ahead, out),
            (4, 8) => exact::dot_block::<S, BITS, 4, 4>(s, rows, panel, ahead, out),
            (4, _) => exact::dot_block::<S, BITS, 2, 4>(s, rows, panel, ahead, out),
            _ => exact::dot_block::<S, BITS, 4, 2>(s, rows, panel, ahead, out),
        }
    }
    #[inline(always)]
    fn sum_len(cols: usize) -> usize {
        blocks_of(cols) * BLOCK
    }
    /// The sum, four or eight times as long as a row, moves to and from L1 once for all of them.
    #[inline(always)]
    fn axpys_at_once(_: usize, _: bool) -> usize {
        4
    }
    #[inline(always)]
    fn axpy_group<S: Simd, const R: usize>(
        s: S,
        rows: [&[Self]; R],
        hints: [*const Self; R],
        h: &[f32],
        sum: &mut [f32],
    ) {
        exact::axpy(s, rows, hints, h, sum);
    }
    #[inline(always)]
    fn axpy_tile<S: Simd, const T: usize>(
        s: S,
        rows: &[Self],
        h: [[f32; AXPY_ROWS]; T],
        sums: &mut [f32],
        ahead: &mut LinesAhead,
    ) {
        exact::axpy_tile(s, rows, h, sums, ahead);
    }
    #[inline(always)]
    fn sort_sum(sum: &[f32], y: &mut [f32]) {
        for group in groups(sum.len() / BLOCK) {
            for block in group.0..group.0 + group.1 {
                let of_block = (block * BLOCK).min(y.len())..((block + 1) * BLOCK).min(y.len());
                for (j, four) in y[of_block].chunks_mut(4).enumerate() {
                    four.copy_from_slice(&sum[place(group, block, j)..][..four.len()]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
