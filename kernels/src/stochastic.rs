//! Activations that draw: how the elements of a tensor come by their Philox draws, and what a draw decides.

use crate::activation::MaskSite;
use crate::philox::{DRAWS_PER_CALL, ROUNDS, key, philox4x32_lanes};
use crate::pointwise::Pointwise;
use crate::simd::Simd;

/// Lanes of the widest level.
const MAX_LANES: usize = 16;

/// The draws of a block. One more vector than the widest block holds lets the last, short span read a whole vector.
pub(crate) struct Draws([u16; (DRAWS_PER_CALL + 1) * MAX_LANES]);

impl Draws {
    #[inline(always)]
    pub(crate) fn new() -> Draws {
        Draws([0; _])
    }

    /// The draws from element `i` of the block's Philox calls on.
    #[inline(always)]
    pub(crate) fn at(&self, i: usize) -> &[u16] {
        &self.0[i..]
    }
}

/// Part of one row, at most as long as `LANES` Philox calls have draws.
pub(crate) struct Block {
    row: usize,
    /// Column of the first draw of the first call: a multiple of 8.
    column: usize,
    /// Draws of the first call that belong to columns before the block: not 0 only where a task starts inside a call.
    pub(crate) phase: usize,
    /// First element, counted from that of the task.
    start: usize,
    len: usize,
}

impl Block {
    #[inline(always)]
    pub(crate) fn range(&self) -> std::ops::Range<usize> {
        self.start..self.start + self.len
    }
}

/// The blocks, in order, of the `len` elements from number `first` on of a matrix with rows of `d_ff`.
#[inline(always)]
pub(crate) fn blocks<S: Simd>(first: usize, d_ff: usize, len: usize) -> impl Iterator<Item = Block> {
    let (mut row, mut column, mut start) = (first / d_ff, first % d_ff, 0);
    std::iter::from_fn(move || {
        if start == len {
            return None;
        }
        let phase = column % DRAWS_PER_CALL;
        let block_len = (DRAWS_PER_CALL * S::LANES - phase).min(d_ff - column).min(len - start);
        let block = Block { row, column: column - phase, phase, start, len: block_len };
        (start, column) = (start + block_len, column + block_len);
        if column == d_ff {
            (row, column) = (row + 1, 0);
        }
        Some(block)
    })
}

/// psi as the kernels see it: perhaps drawn, then evaluated.
pub(crate) trait Psi: Copy + Sync {
    /// Makes the draws that [`eval`](Psi::eval) needs for `block`.
    fn draw<S: Simd>(self, s: S, block: &Block, draws: &mut Draws);
    /// `(psi(x), psi'(x))`, lane i under draw i.
    fn eval<S: Simd>(self, s: S, draws: &[u16], x: S::F32) -> (S::F32, S::F32);
}

impl<P: Pointwise> Psi for P {
    #[inline(always)]
    fn draw<S: Simd>(self, _: S, _: &Block, _: &mut Draws) {}
    #[inline(always)]
    fn eval<S: Simd>(self, s: S, _: &[u16], x: S::F32) -> (S::F32, S::F32) {
        Pointwise::eval(self, s, x)
    }
}

/// For `x < 0`, `negative.1` where the draw is below `threshold` and else `negative.0`; otherwise, NaN included, `positive`.
#[derive(Clone, Copy)]
pub(crate) struct Stochastic<A, B, C> {
    pub(crate) negative: (A, B),
    pub(crate) positive: C,
    pub(crate) threshold: u32,
    pub(crate) site: MaskSite,
}

impl<A: Pointwise, B: Pointwise, C: Pointwise> Psi for Stochastic<A, B, C> {
    #[inline(always)]
    fn draw<S: Simd>(self, s: S, block: &Block, draws: &mut Draws) {
        let MaskSite { seed, first_token, layer, stream, step } = self.site;
        let first = [
            (block.column / DRAWS_PER_CALL) as u32,
            first_token.wrapping_add(block.row as u32),
            layer as u32 | (stream as u32) << 16,
            step,
        ];
        s.store_interleaved4_u16(philox4x32_lanes(s, ROUNDS, first, key(seed)), &mut draws.0);
    }

    #[inline(always)]
    fn eval<S: Simd>(self, s: S, draws: &[u16], x: S::F32) -> (S::F32, S::F32) {
        let second = s.lt_u32(s.load_u16_as_u32(draws), s.splat_u32(self.threshold));
        let negative = s.lt(x, s.splat(0.0));
        let (value, derivative) = self.positive.eval(s, x);
        let (value_0, derivative_0) = self.negative.0.eval(s, x);
        let (value_1, derivative_1) = self.negative.1.eval(s, x);
        (
            s.select(negative, s.select(second, value_1, value_0), value),
            s.select(negative, s.select(second, derivative_1, derivative_0), derivative),
        )
    }
}
