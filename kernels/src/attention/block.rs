//! What forward and backward share: a block of queries against a block of keys, and how blocks are brought into scratch.
//!
//! Scores are held transposed, `S^T [keys, queries]`: a key is a row and the queries lie along the lanes. So the maximum
//! and the sum of a softmax are vectors and need no sum across lanes; K (and V, for `dP^T = V dO^T`) are left operands, read
//! where they are; and `P^T` read by columns is the left operand of `P V` in the order in which a packed GEMM would want it.

use super::tile::Product;
use crate::simd::Simd;
use crate::simd::map::spans;
use crate::{Beta, Mat, MatMut, Weight};
use std::ops::Range;

/// Queries in a block, and keys in a block. At D = 64 one operand of a product and a block of scores are 16 KiB each, so
/// that the two that are read again and again stay in an L1 of 32 to 48 KiB, and all that a step of the backward touches
/// (ten such arrays) in an L2 of 256 KiB or more. 64 queries are four AVX-512 vectors: one panel of the product.
pub(super) const BLOCK: usize = 64;

/// Blocks on the diagonal are computed in cells of 16 by 16, and only the cells that hold a visible score: 16 is the
/// widest vector, the least that can be skipped along the lanes. It also is the padding of D and of the queries.
pub(super) const STRIP: usize = 16;

/// A block of queries against a block of keys: query i of the block sees the keys `0 ..= i + shift` of the block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair {
    /// Queries, rounded up to [`STRIP`].
    pub queries: usize,
    /// Keys, at most [`BLOCK`].
    pub keys: usize,
    /// Position of the first query less that of the first key.
    pub shift: isize,
}

impl Pair {
    /// Whether every query sees every key.
    #[inline(always)]
    fn is_full(self) -> bool {
        self.shift + 1 >= self.keys as isize
    }

    /// Strips of keys, each with the queries (whole strips) of which at least one sees one of its keys.
    #[inline(always)]
    pub fn key_strips(self) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
        let step = if self.is_full() { BLOCK } else { STRIP };
        (0..self.keys).step_by(step).map(move |key| {
            let first = (key as isize - self.shift).max(0) as usize / STRIP * STRIP;
            (key..self.keys.min(key + step), first.min(self.queries)..self.queries)
        })
    }

    /// Strips of queries, each with the keys (whole strips, or up to the last key) of which at least one is seen: the same
    /// cells as [`key_strips`](Pair::key_strips), by columns.
    #[inline(always)]
    pub fn query_strips(self) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
        let step = if self.is_full() { self.queries } else { STRIP };
        (0..self.queries).step_by(step).map(move |query| {
            let end = (query + step) as isize + self.shift;
            (query..query + step, 0..self.keys.min((end.max(0) as usize).next_multiple_of(STRIP)))
        })
    }

    /// `S^T = K Q^T` in the cells that hold a visible score; hidden scores in them become minus infinity.
    ///
    /// Shapes: k `[keys, D]`; q_t `[D, BLOCK]`; s_t `[keys, BLOCK]`.
    #[inline(always)]
    pub fn masked_scores<S: Simd>(self, s: S, k: Mat, q_t: &[f32], s_t: &mut [f32]) {
        self.products(s, k, q_t, s_t);
        if self.is_full() {
            return;
        }
        for (queries, keys) in self.query_strips() {
            for query in queries {
                let seen = (query as isize + 1 + self.shift).max(0) as usize;
                for key in seen.min(keys.end)..keys.end {
                    s_t[key * BLOCK + query] = f32::NEG_INFINITY;
                }
            }
        }
    }

    /// `A B` in the cells that hold a visible score. Shapes: a `[keys, D]`; b `[D, BLOCK]`; c `[keys, BLOCK]`.
    #[inline(always)]
    pub fn products<S: Simd>(self, s: S, a: Mat, b: &[f32], c: &mut [f32]) {
        for (keys, queries) in self.key_strips() {
            if queries.is_empty() {
                continue;
            }
            let a = Mat::strided(&a.data[keys.start * a.row_stride..], keys.len(), a.cols, a.row_stride, 1);
            let b = Mat::strided(&b[queries.start..], a.cols, queries.len(), BLOCK, 1);
            let c = &mut c[keys.start * BLOCK + queries.start..];
            let c = MatMut::strided(c, keys.len(), queries.len(), BLOCK);
            s.call(Product { a, b, beta: Beta::Zero, c });
        }
    }

    /// `C (+)= P^T B`, a sum over queries: P^T `[keys, BLOCK]`, b `[queries, N]`, c `[keys, N]`.
    #[inline(always)]
    pub fn add_over_queries<S: Simd>(self, s: S, p_t: &[f32], b: &[f32], n: usize, c: &mut [f32]) {
        for (keys, queries) in self.key_strips() {
            let a = Mat::strided(&p_t[keys.start * BLOCK + queries.start..], keys.len(), queries.len(), BLOCK, 1);
            let b = Mat::new(&b[queries.start * n..queries.end * n], queries.len(), n);
            let c = MatMut::new(&mut c[keys.start * n..keys.end * n], keys.len(), n);
            s.call(Product { a, b, beta: Beta::One, c });
        }
    }

    /// `C (+)= P B`, a sum over keys: P^T `[keys, BLOCK]`, b `[keys, N]`, c `[queries, N]`.
    #[inline(always)]
    pub fn add_over_keys<S: Simd>(self, s: S, p_t: &[f32], b: &[f32], n: usize, beta: Beta, c: &mut [f32]) {
        for (queries, keys) in self.query_strips() {
            let a = Mat::strided(&p_t[queries.start..], queries.len(), keys.len(), 1, BLOCK);
            let b = Mat::new(&b[..keys.len() * n], keys.len(), n);
            let c = MatMut::new(&mut c[queries.start * n..queries.end * n], queries.len(), n);
            s.call(Product { a, b, beta, c });
        }
    }
}

/// D as it is held in scratch: whole vectors of every level, so that no product has a tail.
pub(super) fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(STRIP)
}

/// `dst = scale * src`, with the columns beyond those of `src` set to 0. Shapes: src `[rows, D]` (adjacent columns),
/// dst `[>= rows, padded(D)]`; rows of dst beyond those of src become 0.
#[inline(always)]
pub(super) fn copy_rows<S: Simd, W: Weight>(s: S, src: Mat<W>, scale: f32, dst: &mut [f32]) {
    let scale = s.splat(scale);
    let (used, beyond) = dst.split_at_mut(src.rows * padded(src.cols));
    for (row, dst) in used.chunks_exact_mut(padded(src.cols)).enumerate() {
        let src_row = &src.data[row * src.row_stride..][..src.cols];
        for at in spans(s, src.cols) {
            at.store(s, s.mul(at.load(s, src_row), scale), dst);
        }
        dst[src.cols..].fill(0.0);
    }
    beyond.fill(0.0);
}

/// `dst = scale * src^T`, with the columns beyond the rows of `src` set to 0. Shapes: src `[rows, D]`; dst `[D, BLOCK]`.
#[inline(always)]
pub(super) fn copy_transposed<S: Simd>(s: S, src: Mat, scale: f32, dst: &mut [f32]) {
    for d in (0..src.cols).step_by(S::LANES) {
        let cols = S::LANES.min(src.cols - d);
        for row in (0..BLOCK).step_by(S::LANES) {
            let rows = S::LANES.min(src.rows.saturating_sub(row));
            let block = if rows == 0 { &[] } else { &src.data[row * src.row_stride + d..] };
            s.transpose(block, src.row_stride, rows, cols, &mut dst[d * BLOCK + row..], BLOCK);
        }
    }
    for at in spans(s, dst.len()) {
        at.store(s, s.mul(at.load(s, dst), s.splat(scale)), dst);
    }
}
