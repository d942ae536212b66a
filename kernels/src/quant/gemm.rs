//! Products of several tokens with quantised rows: integers within a block, floats between blocks.

use super::i8_dot::round_block;
use super::{I8Dot, Quantized, RUNS, block_of, blocks_of, groups};
use crate::row_format::Loops;
use crate::simd::map::spans;
use crate::simd::{Kernel, Simd};
use crate::team::SharedMut;
use crate::{Beta, RowFormat, Team, scratch};
use bytemuck::{cast, cast_slice, cast_slice_mut};
use half::f16;

/// Tokens of a tile. With [`VECTORS`] of rows these are 12 sums of integers and 12 of floats in 24 of 32 registers, and 8 loads for 12
/// multiplications of the two a cycle that the core does of either.
const TOKENS: usize = 6;

/// Vectors of rows of W in a tile.
const VECTORS: usize = 2;

/// Lanes of the widest level.
const MAX_LANES: usize = 16;

/// Words of a block of x for the tokens of a tile: `[run][token]` four bytes each, then what the sums start at and the scales.
const X_BLOCK: usize = (RUNS + 2) * TOKENS;

/// Panels of W that a task packs for itself, of [`VECTORS`] vectors of rows each: its rows of Y are then 256 bytes long in `avx512`, and a
/// panel of 2048 columns is 72 KiB, which L2 holds while all tokens pass by it.
const PANELS: usize = 2;

/// `Y = X W^T` or, with [`Beta::One`], `Y += X W^T`, with x rounded to 8 bits as [`gemv`](crate::gemv::gemv) rounds it for [`I8Dot`]: for
/// prompts.
///
/// `y[n, m] = sum over the blocks of (s_w s_x) sum_k q_wk q_xk`, the inner sum exact. Shapes: x `[N, K]`, w `[M, K]` in rows of `I8Dot`, y
/// `[N, M]`.
///
/// Panics if a length does not fit. Accuracy: of the product with the rounded x, `(K + 4) 2^-24 sum_k |w_k x_k|`, in which `|y|` joins
/// with `Beta::One`; what rounding x does is said at [`I8Dot`]. Blocks are added in order: the bits of an element depend on its token,
/// its row and the level alone. Cost: 2 N M K operations of the [dot product of bytes](crate::limits::Dot), and three instructions more
/// for every eight of those; W and x are read and copied once.
#[track_caller]
pub fn gemm_i8<const BITS: u32>(team: &Team, x: &[f32], w: &[I8Dot<BITS>], k: usize, beta: Beta, y: &mut [f32]) {
    gemm_i8_each(team, x, k, &mut [I8Product { w, beta, y }]);
}

/// What [`gemm_i8`] computes from an x: w `[M, K]`, y `[N, M]`.
#[derive(Debug)]
pub struct I8Product<'a, const BITS: u32> {
    /// The rows.
    pub w: &'a [I8Dot<BITS>],
    /// Whether y is added to.
    pub beta: Beta,
    /// The result.
    pub y: &'a mut [f32],
}

/// [`gemm_i8`] of one x `[N, K]` with several W, each with a Y of its own, bit for bit: x is rounded once.
#[track_caller]
pub fn gemm_i8_each<const BITS: u32>(team: &Team, x: &[f32], k: usize, products: &mut [I8Product<BITS>]) {
    let row_len = I8Dot::<BITS>::row_len(k);
    let n = x.len() / k.max(1);
    for I8Product { w, y, .. } in &*products {
        let fits = k > 0 && x.len().is_multiple_of(k) && w.len().is_multiple_of(row_len);
        assert!(
            fits && y.len() == n * (w.len() / row_len),
            "gemm_i8: x has {} elements, w {} units of {} in rows of {row_len}, y {} for [N, {k}], [M, {k}] and [N, M]",
            x.len(),
            w.len(),
            I8Dot::<BITS>::NAME,
            y.len()
        );
    }
    if n == 0 {
        return;
    }
    let (level, blocks) = (team.level(), blocks_of(k));
    let width = VECTORS * level.dispatch(Lanes);
    scratch::with(n.div_ceil(TOKENS) * blocks * X_BLOCK, |packed| {
        team.run_chunks_mut(packed, blocks * X_BLOCK, |tile, panel| {
            let x = &x[tile * TOKENS * k..n.min((tile + 1) * TOKENS) * k];
            level.dispatch(PackX { x, k, offset: super::int_dot::offset(BITS), panel });
        });
        for I8Product { w, beta, y } in products {
            let (packed, m, beta, y) = (&*packed, w.len() / row_len, *beta, SharedMut::new(y));
            team.run(m.div_ceil(PANELS * width), |task| {
                let first = task * PANELS * width;
                let w = &w[first * row_len..m.min(first + PANELS * width) * row_len];
                scratch::with(PANELS * blocks * w_block(width), |panels| {
                    I8Dot::<BITS>::dispatch(level, Columns { x: packed, w, row_len, panels, n, m, first, beta, y: &y });
                });
            });
        }
    });
}

struct Lanes;

impl Kernel for Lanes {
    type Output = usize;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        S::LANES
    }
}

/// Words of a block of W for a panel of `width` rows: `[run][row]` four bytes each, then the scales.
const fn w_block(width: usize) -> usize {
    (RUNS + 1) * width
}

/// Rounds and packs the tokens of a tile; beyond the last one they are zeros.
struct PackX<'a> {
    x: &'a [f32],
    k: usize,
    offset: i32,
    panel: &'a mut [f32],
}

impl Kernel for PackX<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let PackX { x, k, offset, panel } = self;
        for (block, panel) in panel.chunks_exact_mut(X_BLOCK).enumerate() {
            let (bytes, rest) = panel.split_at_mut(RUNS * TOKENS);
            let (starts, scales) = rest.split_at_mut(TOKENS);
            let (bytes, starts): (&mut [u32], &mut [i32]) = (cast_slice_mut(bytes), cast_slice_mut(starts));
            for token in 0..TOKENS {
                let row = x.get(token * k..(token + 1) * k).unwrap_or(&[]);
                let (q, scale) = round_block(&block_of(row, block));
                scales[token] = scale;
                starts[token] = -offset * q.iter().map(|&q| q as i32).sum::<i32>();
                let words: [u32; RUNS] = cast(q);
                words.into_iter().enumerate().for_each(|(run, word)| bytes[run * TOKENS + token] = word);
            }
        }
    }
}

/// Some columns of Y: packs their rows of W, and multiplies all tokens with them.
struct Columns<'a, const BITS: u32> {
    x: &'a [f32],
    w: &'a [I8Dot<BITS>],
    row_len: usize,
    panels: &'a mut [f32],
    n: usize,
    m: usize,
    /// The first of the columns.
    first: usize,
    beta: Beta,
    y: &'a SharedMut<'a, f32>,
}

impl<const BITS: u32> Kernel for Columns<'_, BITS> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Columns { x, w, row_len, panels, n, m, first, beta, y } = self;
        let width = VECTORS * S::LANES;
        let blocks = panels.len() / PANELS / w_block(width);
        let rows = w.len() / row_len;
        for (i, panel) in (0..rows).step_by(width).zip(panels.chunks_exact_mut(blocks * w_block(width))) {
            pack_rows(s, &w[i * row_len..rows.min(i + width) * row_len], row_len, panel);
        }
        for (token, x) in (0..n).step_by(TOKENS).zip(x.chunks_exact(blocks * X_BLOCK)) {
            for (i, panel) in (0..rows).step_by(width).zip(panels.chunks_exact(blocks * w_block(width))) {
                let sums = tile(s, x, panel);
                for (t, sums) in sums.iter().enumerate().take(n - token) {
                    // SAFETY: a task writes the columns of its own rows of W, which no other task has.
                    let y = unsafe { y.slice((token + t) * m + first + i, width.min(rows - i)) };
                    for (at, &sum) in spans(s, y.len()).zip(sums) {
                        at.store(s, if beta == Beta::One { s.add(at.load(s, y), sum) } else { sum }, y);
                    }
                }
            }
        }
    }
}

/// Packs rows of W as a panel: bytes with the offset added, blocks turned from lanes into columns. Beyond the last row the scales are 0.
#[inline(always)]
fn pack_rows<S: Simd, const BITS: u32>(s: S, w: &[I8Dot<BITS>], row_len: usize, panel: &mut [f32]) {
    let width = VECTORS * S::LANES;
    let (block_len, rows) = (w_block(width), w.len() / row_len);
    let blocks = panel.len() / block_len;
    // Four of a run of all blocks of a group, for the rows of a vector, in L1.
    let mut words = [[0.0; MAX_LANES * MAX_LANES]; 2];
    for r in (0..width).step_by(S::LANES) {
        let here = S::LANES.min(rows.saturating_sub(r));
        let bytes = |row: usize| cast_slice::<I8Dot<BITS>, u8>(&w[(r + row) * row_len..][..row_len]);
        for (first, n) in groups(blocks) {
            for part in (0..n).step_by(S::LANES) {
                let lanes = S::LANES.min(n - part);
                let at = |block: usize, run: usize| (first + part + block) * block_len + run * width + r;
                for j in 0..BITS as usize {
                    for row in 0..here {
                        let from = 4 * (first * BITS as usize + j * n + part);
                        let src = cast_slice::<u8, u32>(&bytes(row)[from..from + 4 * lanes]);
                        let [low, high] = &mut words;
                        let (low, high) = (&mut low[row * MAX_LANES..][..lanes], &mut high[row * MAX_LANES..][..lanes]);
                        for ((low, high), &word) in low.iter_mut().zip(high).zip(src) {
                            if BITS == 8 {
                                *low = f32::from_bits(word ^ 0x8080_8080);
                            } else {
                                *low = f32::from_bits(word & 0x0F0F_0F0F);
                                *high = f32::from_bits(word >> 4 & 0x0F0F_0F0F);
                            }
                        }
                    }
                    s.transpose(&words[0], MAX_LANES, here, lanes, &mut panel[at(0, j)..], block_len);
                    if BITS == 4 {
                        s.transpose(&words[1], MAX_LANES, here, lanes, &mut panel[at(0, j + RUNS / 2)..], block_len);
                    }
                }
                for row in 0..here {
                    let from = Quantized::<BITS>::quant_bytes(blocks) + 2 * (first + part);
                    let scales = cast_slice::<u8, f16>(&bytes(row)[from..from + 2 * lanes]);
                    s.store_partial(s.load_f16_partial(scales), &mut words[0][row * MAX_LANES..][..lanes]);
                }
                s.transpose(&words[0], MAX_LANES, here, lanes, &mut panel[at(0, RUNS)..], block_len);
            }
        }
    }
}

/// The products of the tokens of a tile with the rows of a panel.
#[inline(always)]
fn tile<S: Simd>(s: S, x: &[f32], w: &[f32]) -> [[S::F32; VECTORS]; TOKENS] {
    let width = VECTORS * S::LANES;
    let mut total = [[s.splat(0.0); VECTORS]; TOKENS];
    for (x, w) in x.chunks_exact(X_BLOCK).zip(w.chunks_exact(w_block(width))) {
        let (bytes, rest) = x.split_at(RUNS * TOKENS);
        let (starts, scales) = rest.split_at(TOKENS);
        let (bytes, starts): (&[u32], &[u32]) = (cast_slice(bytes), cast_slice(starts));
        let (rows, row_scales) = w.split_at(RUNS * width);
        let rows: &[u32] = cast_slice(rows);
        let mut sums = [[s.splat_u32(0); VECTORS]; TOKENS];
        for t in 0..TOKENS {
            sums[t] = [s.splat_u32(starts[t]); VECTORS];
        }
        for run in 0..RUNS {
            let mut row = [s.splat_u32(0); VECTORS];
            for (v, row) in row.iter_mut().enumerate() {
                *row = s.load_u32_partial(&rows[run * width + v * S::LANES..][..S::LANES]);
            }
            for (t, sums) in sums.iter_mut().enumerate() {
                let x = s.splat_u32(bytes[run * TOKENS + t]);
                for (sum, &row) in sums.iter_mut().zip(&row) {
                    *sum = s.dot_i8(*sum, row, x);
                }
            }
        }
        for v in 0..VECTORS {
            let row_scale = s.load(&row_scales[v * S::LANES..]);
            for t in 0..TOKENS {
                let scale = s.mul(row_scale, s.splat(scales[t]));
                total[t][v] = s.mul_add(s.i32_to_f32(sums[t][v]), scale, total[t][v]);
            }
        }
    }
    total
}
