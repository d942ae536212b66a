//! The arithmetic: one tile of C in registers, and the loops over tiles that share packed panels.

use super::operands::Operands;
use crate::simd::map::spans;
use crate::simd::{Isa, Kernel, Simd};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

/// The tile of C that stays in registers, `mr x nr` elements, and the lanes of a vector.
///
/// An FMA of `avx512` takes 4 cycles on two pipes, so at least 8 independent accumulators are needed to keep both busy. Each k
/// costs `nv` loads of B and `mr` broadcasts of A for `mr * nv` FMAs: the larger the tile, the less the loads count.
///
/// | level      | mr x nv | reason                                                                                   |
/// |------------|---------|------------------------------------------------------------------------------------------|
/// | `avx512`   | 14 x 2  | 28 accumulators + 2 of B + 1 broadcast = 31 of 32 registers; 16 loads for 28 FMAs, and the |
/// |            |         | core does as many loads as FMAs. 8 x 3 has that ratio too, but 48 divides few widths of models |
/// | `avx2`     | 6 x 2   | 12 accumulators + 2 of B + 1 broadcast = 15 of 16 registers; 8 loads for 12 FMAs           |
/// | `portable` | 4 x 1   | a vector is two xmm: 8 accumulators + 2 of B + 2 broadcast + 2 products = 14 of 16; at 512^3 |
/// |            |         | 42 GFLOP/s, 6 x 1 has 43, 2 x 2 has 41 (busy machine): the smaller edge decides          |
/// | `scalar`   | 4 x 4   | for debugging: 16 accumulators, as the vectors above have                                |
#[derive(Clone, Copy, Debug)]
pub(super) struct TileShape {
    pub(super) mr: usize,
    pub(super) nr: usize,
    lanes: usize,
}

/// Elements of the largest tile.
const MAX_TILE: usize = 14 * 32;

impl TileShape {
    /// The tile of a level.
    #[inline(always)]
    pub(super) fn of<S: Simd>(_: S) -> TileShape {
        let (mr, nv) = match S::ISA {
            Isa::Avx512 => (14, 2),
            Isa::Avx2 => (6, 2),
            Isa::Portable => (4, 1),
            Isa::Scalar => (4, 4),
        };
        TileShape { mr, nr: nv * S::LANES, lanes: S::LANES }
    }

    /// Elements from one packed panel of A to the next.
    #[inline(always)]
    pub(super) fn a_panel(self, kc: usize) -> usize {
        self.panel(self.mr, kc)
    }

    /// Elements from one packed panel of B to the next.
    #[inline(always)]
    pub(super) fn b_panel(self, kc: usize) -> usize {
        self.panel(self.nr, kc)
    }

    /// `kc * width`, and where `width` is not a number of whole vectors, one vector more for the last store to reach into;
    /// up to whole cache lines.
    #[inline(always)]
    fn panel(self, width: usize, kc: usize) -> usize {
        let reach = if width.is_multiple_of(self.lanes) { 0 } else { self.lanes };
        (kc * width + reach).next_multiple_of(16)
    }
}

/// A part of C that one task owns: other tasks own other columns of the same rows, which no slice can say.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    ptr: *mut f32,
    rows: usize,
    cols: usize,
    row_stride: usize,
    _data: PhantomData<&'a mut [f32]>,
}

// SAFETY: the tasks that share a block write to parts of it that do not meet (contract of `part`).
unsafe impl Sync for Block<'_> {}
// SAFETY: as above; f32 has no tie to a thread.
unsafe impl Send for Block<'_> {}

impl<'a> Block<'a> {
    /// All of a matrix of `rows x cols` in `data`. Panics if it does not fit.
    pub(super) fn new(data: &'a mut [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(rows == 0 || (rows - 1) * row_stride + cols <= data.len(), "gemm: C beyond its data");
        assert!(rows <= 1 || cols <= row_stride, "gemm: rows of C overlap");
        Block { ptr: data.as_mut_ptr(), rows, cols, row_stride, _data: PhantomData }
    }

    /// Rows and columns of this block. Panics if they reach beyond it.
    ///
    /// # Safety
    /// Parts that are written at the same time do not meet.
    #[inline(always)]
    pub(super) unsafe fn part(self, rows: Range<usize>, cols: Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.rows && cols.start <= cols.end && cols.end <= self.cols);
        // Wrapping: an empty range of rows may begin beyond the data, where rows lie apart.
        let ptr = self.ptr.wrapping_add(rows.start.wrapping_mul(self.row_stride).wrapping_add(cols.start));
        Block { ptr, rows: rows.len(), cols: cols.len(), ..self }
    }
}

/// `C (+)= A B` for a block of C, from packed A and B of the same `kc`: BLIS's macro-kernel.
///
/// The panel of B stays close (L1, or L2 for the longest) while the panels of A, which come from L2, pass by it.
pub(super) struct Multiply<'a, O> {
    pub(super) operands: O,
    /// Panels of A, `[ceil(rows / mr)][kc][mr]`; kc counts elements of a panel.
    pub(super) a: &'a [f32],
    /// Panels of B, `[ceil(cols / nr)][kc][nr]`.
    pub(super) b: &'a [f32],
    pub(super) kc: usize,
    pub(super) c: Block<'a>,
    /// Whether C is added to; otherwise it is not read.
    pub(super) accumulate: bool,
}

impl<O: Operands> Kernel for Multiply<'_, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Multiply { operands, a, b, kc, c, accumulate } = self;
        let shape = TileShape::of(s);
        let (mr, nr) = (shape.mr, shape.nr);
        let (a_len, b_len) = (shape.a_panel(kc), shape.b_panel(kc));
        for (j, b) in (0..c.cols).step_by(nr).zip(b.chunks_exact(b_len)) {
            for (i, a) in (0..c.rows).step_by(mr).zip(a.chunks_exact(a_len)) {
                // SAFETY: tiles are computed one after the other, so none is written at the same time as another.
                let c = unsafe { c.part(i..c.rows.min(i + mr), j..c.cols.min(j + nr)) };
                tile_of_size(s, operands, kc, (a, b), c, accumulate);
            }
        }
    }
}

/// The tile of `c`'s size, or the next larger one there is code for: the packed panels are padded with zeros, and what lies
/// beyond `c` is computed and dropped. Heights in steps of two waste at most one row; a single vector of columns has
/// its own code, for heads and rests of 16 columns.
#[inline(always)]
fn tile_of_size<S: Simd, O: Operands>(
    s: S,
    operands: O,
    kc: usize,
    (a, b): (&[f32], &[f32]),
    c: Block,
    accumulate: bool,
) {
    match S::ISA {
        Isa::Avx512 => match (c.rows.div_ceil(2), c.cols > 16) {
            (7, true) => tile::<S, O, 14, 2>(s, operands, kc, (a, 14), (b, 32), c, accumulate),
            (6, true) => tile::<S, O, 12, 2>(s, operands, kc, (a, 14), (b, 32), c, accumulate),
            (5, true) => tile::<S, O, 10, 2>(s, operands, kc, (a, 14), (b, 32), c, accumulate),
            (4, true) => tile::<S, O, 8, 2>(s, operands, kc, (a, 14), (b, 32), c, accumulate),
            (3, true) => tile::<S, O, 6, 2>(s, operands, kc, (a, 14), (b, 32), c, accumulate),
            (2, true) => tile::<S, O, 4, 2>(s, operands, kc, (a, 14), (b, 32), c, accumulate),
            (_, true) => tile::<S, O, 2, 2>(s, operands, kc, (a, 14), (b, 32), c, accumulate),
            (5.., false) => tile::<S, O, 14, 1>(s, operands, kc, (a, 14), (b, 32), c, accumulate),
            (3..5, false) => tile::<S, O, 8, 1>(s, operands, kc, (a, 14), (b, 32), c, accumulate),
            (_, false) => tile::<S, O, 4, 1>(s, operands, kc, (a, 14), (b, 32), c, accumulate),
        },
        Isa::Avx2 => match (c.rows.div_ceil(2), c.cols > 8) {
            (3, true) => tile::<S, O, 6, 2>(s, operands, kc, (a, 6), (b, 16), c, accumulate),
            (2, true) => tile::<S, O, 4, 2>(s, operands, kc, (a, 6), (b, 16), c, accumulate),
            (_, true) => tile::<S, O, 2, 2>(s, operands, kc, (a, 6), (b, 16), c, accumulate),
            (_, false) => tile::<S, O, 6, 1>(s, operands, kc, (a, 6), (b, 16), c, accumulate),
        },
        Isa::Portable => tile::<S, O, 4, 1>(s, operands, kc, (a, 4), (b, 8), c, accumulate),
        Isa::Scalar => tile::<S, O, 4, 4>(s, operands, kc, (a, 4), (b, 4), c, accumulate),
    }
}

/// `C (+)= A B` for up to `MR x (NV * LANES)` elements of C: for each k, one column of the panel of A times one row of the
/// panel of B, into `MR * NV` accumulators. `a` and `b` are panels with the widths they were packed with.
///
/// Every element is one chain of [`mul_add`](Operands::mul_add) over k, added to C at the end: its bits do not depend on where in a tile it
/// lies, nor on the height of the tile.
#[inline(always)]
fn tile<S: Simd, O: Operands, const MR: usize, const NV: usize>(
    s: S,
    operands: O,
    kc: usize,
    (a, a_width): (&[f32], usize),
    (b, b_width): (&[f32], usize),
    c: Block,
    accumulate: bool,
) {
    const { assert!(MR * NV * S::LANES <= MAX_TILE) };
    assert!(MR <= a_width && kc * a_width <= a.len() && NV * S::LANES <= b_width && kc * b_width <= b.len());
    debug_assert!(c.rows <= MR && c.cols <= NV * S::LANES);
    let (mut a, mut b) = (a.as_ptr(), b.as_ptr());
    for i in 0..MR {
        // C is not touched for the next kc * MR * NV / 2 cycles: time enough to bring it in.
        s.prefetch(c.ptr.wrapping_add(i.min(c.rows - 1) * c.row_stride));
    }
    let mut acc = [[s.splat(0.0); NV]; MR];
    for _ in 0..kc {
        let mut row = [s.splat(0.0); NV];
        // SAFETY: the assert proves kc columns of a_width >= MR and kc rows of b_width >= NV * LANES.
        unsafe {
            for (j, row) in row.iter_mut().enumerate() {
                *row = s.load_ptr(b.add(j * S::LANES));
            }
            for (i, acc) in acc.iter_mut().enumerate() {
                let a = s.splat(*a.add(i));
                for (j, acc) in acc.iter_mut().enumerate() {
                    *acc = operands.mul_add(s, a, row[j], *acc);
                }
            }
            a = a.add(a_width);
            b = b.add(b_width);
        }
    }
    // A whole tile goes straight to C; any other by way of the stack, so that the unrolled stores below have no branches.
    let whole = c.rows == MR && c.cols == NV * S::LANES;
    let mut rest = MaybeUninit::<[f32; MAX_TILE]>::uninit();
    let (dst, stride) = if whole { (c.ptr, c.row_stride) } else { (rest.as_mut_ptr().cast(), NV * S::LANES) };
    for (i, acc) in acc.iter().enumerate() {
        for (j, &acc) in acc.iter().enumerate() {
            // SAFETY: the block owns MR rows of NV vectors if `whole`; else `rest` has room for as many.
            unsafe {
                let dst = dst.add(i * stride + j * S::LANES);
                s.store_ptr(if whole && accumulate { s.add(s.load_ptr(dst), acc) } else { acc }, dst);
            }
        }
    }
    if !whole {
        // SAFETY: the loop above wrote MR rows of NV vectors.
        let rest = unsafe { std::slice::from_raw_parts(rest.as_ptr().cast::<f32>(), MR * NV * S::LANES) };
        for (i, row) in rest.chunks_exact(NV * S::LANES).take(c.rows).enumerate() {
            // SAFETY: the block owns `cols` elements of each of its rows.
            let dst = unsafe { std::slice::from_raw_parts_mut(c.ptr.add(i * c.row_stride), c.cols) };
            for at in spans(s, dst.len()) {
                let acc = at.load(s, row);
                at.store(s, if accumulate { s.add(at.load(s, dst), acc) } else { acc }, dst);
            }
        }
    }
}
