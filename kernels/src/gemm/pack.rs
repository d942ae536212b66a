//! Copies of A and B in the order in which the tiles read them.
//!
//! A panel holds `width` rows of A (`width = mr`), or `width` columns of B (`width = nr`), for the `kc` values of k of one
//! block, k by k:
//!
//! ```text
//!          A, rows i .. i + mr                     panel
//!          k=0  k=1  k=2 ...
//!   i      a00  a01  a02                 a00 a10 a20 a30 | a01 a11 a21 a31 | a02 ...
//!   i+1    a10  a11  a12        =>       '---- mr -----'
//!   i+2    a20  a21  a22                 '------------------- kc * mr ------------------ ...
//!   i+3    a30  a31  a32
//! ```
//!
//! B is the same picture for its transpose: `nr` columns side by side, k by k. The last panel is filled up with zeros. So the
//! micro-kernel reads both operands from one end to the other, whatever the strides of the matrices were, and no transpose
//! is ever made in memory.
//!
//! Packed for the dot product of bf16, an element is the pair of two neighbouring k: `a00 a01` in 4 bytes where the picture has
//! `a00`, and half as many k.

use super::Mat;
use super::operands::Operands;
use crate::Weight;
use crate::simd::{Kernel, Simd};

/// Packs `m`, `width` of its rows a panel and its columns as k, into `panels`, which begin `len` elements apart.
///
/// For A, `m` is the block of A; for B, the transpose of the block of B.
pub(super) struct Pack<'a, W, O> {
    pub(super) operands: O,
    pub(super) m: Mat<'a, W>,
    pub(super) width: usize,
    pub(super) len: usize,
    pub(super) panels: &'a mut [f32],
}

impl<W: Weight, O: Operands> Kernel for Pack<'_, W, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Pack { operands, m, width, len, panels } = self;
        assert!(panels.len() >= m.rows.div_ceil(width) * len, "pack: no room for {} rows of {}", m.rows, m.cols);
        if m.col_stride == 1 {
            for (i, panel) in (0..m.rows).step_by(width).zip(panels.chunks_exact_mut(len)) {
                pack_transposing(s, operands, m, i, width, panel);
            }
        } else if m.row_stride == 1 {
            pack_copying(s, operands, m, width, len, panels);
        } else {
            for (i, panel) in (0..m.rows).step_by(width).zip(panels.chunks_exact_mut(len)) {
                pack_elements(operands, m, i, width, panel);
            }
        }
    }
}

/// Rows contiguous in memory (A of NN and NT, B of NT): blocks of `LANES x LANES` elements are transposed in registers.
#[inline(always)]
fn pack_transposing<S: Simd, W: Weight, O: Operands>(
    s: S,
    operands: O,
    m: Mat<W>,
    i: usize,
    width: usize,
    panel: &mut [f32],
) {
    /// Blocks ahead that a row is hinted at: one cache line of each, in rows that are so many streams that the prefetchers lose them.
    /// 256 rows of bf16 x 2048 from memory, one thread of a Zen 5: 76 % of the peak without, 82 % with.
    const AHEAD: usize = 4;
    let step = O::VALUES * S::LANES;
    for k in (0..m.cols).step_by(step) {
        let cols = step.min(m.cols - k);
        for r in (0..width).step_by(S::LANES) {
            let rows = S::LANES.min(width - r).min(m.rows.saturating_sub(i + r));
            let src = if rows == 0 { &[] } else { &m.data[(i + r) * m.row_stride + k..] };
            for row in 0..rows {
                s.prefetch(src.as_ptr().wrapping_add(row * m.row_stride + AHEAD * step).cast());
            }
            operands.transpose(s, src, m.row_stride, rows, cols, &mut panel[k / O::VALUES * width + r..], width);
        }
    }
}

/// Columns contiguous in memory (A of TN, B of NN): for a few k at a time, whose rows are read from one end to the other,
/// every panel gets its share.
#[inline(always)]
fn pack_copying<S: Simd, W: Weight, O: Operands>(
    s: S,
    operands: O,
    m: Mat<W>,
    width: usize,
    len: usize,
    panels: &mut [f32],
) {
    /// Values of k at a time: as many rows of the source are read side by side.
    const STEP: usize = 8;
    for first in (0..m.cols).step_by(STEP) {
        for (i, panel) in (0..m.rows).step_by(width).zip(panels.chunks_exact_mut(len)) {
            for k in (first..m.cols.min(first + STEP)).step_by(O::VALUES) {
                let mut src = [&m.data[..0]; 2];
                for (k, src) in (k..m.cols.min(k + O::VALUES)).zip(&mut src) {
                    // The rows lie far apart: without a hint every one is a new stream for the prefetchers.
                    s.prefetch(m.data.as_ptr().wrapping_add((k + 2 * STEP) * m.col_stride + i + 15).cast());
                    *src = &m.data[k * m.col_stride..][i..m.rows];
                }
                for r in (0..width).step_by(S::LANES) {
                    // A vector may reach beyond the panel into rows of the next, and is stored beyond the column into the
                    // place of the next k, which is written after it, or at the end of the panel, which is there for that.
                    let v = operands.column(s, src, r);
                    s.store(v, &mut panel[k / O::VALUES * width + r..]);
                }
            }
        }
    }
}

/// Any strides, element by element.
fn pack_elements<W: Weight, O: Operands>(operands: O, m: Mat<W>, i: usize, width: usize, panel: &mut [f32]) {
    for (k, column) in (0..m.cols).step_by(O::VALUES).zip(panel.chunks_exact_mut(width)) {
        for (r, dst) in column.iter_mut().enumerate() {
            let value = |k: usize| if i + r < m.rows && k < m.cols { m.at(i + r, k) } else { 0.0 };
            *dst = operands.element([value(k), value(k + 1)]);
        }
    }
}
