//! Matrix product in all transposes: `plan` cuts, `pack` copies, `micro` multiplies.

mod micro;
mod pack;
mod plan;

use crate::scratch;
use crate::simd::{Kernel, Simd};
use crate::team::SharedMut;
use crate::{Beta, Team};
use micro::{Block, Multiply, TileShape};
use pack::Pack;
use plan::{Outer, Plan};
use std::ops::Range;

/// A matrix in a slice, with a stride for rows and one for columns (in elements): transposing swaps them.
#[derive(Clone, Copy, Debug)]
pub struct Mat<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) row_stride: usize,
    pub(crate) col_stride: usize,
}

impl<'a> Mat<'a> {
    /// The row-major matrix `[rows, cols]` in `data`. Panics if `data` has another length.
    #[track_caller]
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols, "Mat::new: {} elements for [{rows}, {cols}]", data.len());
        Mat { data, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// A matrix `[rows, cols]` with any strides, in elements. Panics if an element would lie outside `data`.
    #[track_caller]
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> Self {
        let fits = rows == 0 || cols == 0 || (rows - 1) * row_stride + (cols - 1) * col_stride < data.len();
        assert!(fits, "Mat::strided: [{rows}, {cols}] by ({row_stride}, {col_stride}) in {} elements", data.len());
        Mat { data, rows, cols, row_stride, col_stride }
    }

    /// The transposed view.
    pub fn t(self) -> Self {
        Mat { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    /// Number of rows.
    pub fn rows(self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(self) -> usize {
        self.cols
    }

    /// The part of the given rows and columns. Panics if it reaches beyond the matrix.
    #[track_caller]
    pub fn part(self, rows: Range<usize>, cols: Range<usize>) -> Self {
        let fits = rows.start <= rows.end && rows.end <= self.rows && cols.start <= cols.end && cols.end <= self.cols;
        assert!(fits, "Mat::part: {rows:?} x {cols:?} of [{}, {}]", self.rows, self.cols);
        let start = (rows.start * self.row_stride + cols.start * self.col_stride).min(self.data.len());
        Mat { data: &self.data[start..], rows: rows.len(), cols: cols.len(), ..self }
    }

    /// Element `(i, j)`.
    pub fn at(self, i: usize, j: usize) -> f32 {
        self.data[i * self.row_stride + j * self.col_stride]
    }
}

/// The destination of a product: row-major, with a row stride of its own.
#[derive(Debug)]
pub struct MatMut<'a> {
    pub(crate) data: &'a mut [f32],
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) row_stride: usize,
}

impl<'a> MatMut<'a> {
    /// The row-major matrix `[rows, cols]` in `data`. Panics if `data` has another length.
    #[track_caller]
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols, "MatMut::new: {} elements for [{rows}, {cols}]", data.len());
        MatMut { data, rows, cols, row_stride: cols }
    }

    /// A matrix `[rows, cols]` whose rows begin `row_stride` elements apart. Panics if an element would lie outside `data`.
    #[track_caller]
    pub fn strided(data: &'a mut [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        let fits = rows == 0 || cols == 0 || (rows - 1) * row_stride + cols <= data.len();
        assert!(
            fits && row_stride >= cols,
            "MatMut::strided: [{rows}, {cols}] by {row_stride} in {} elements",
            data.len()
        );
        MatMut { data, rows, cols, row_stride }
    }
}

/// Products below this are not worth the two meetings of threads that a parallel one costs, a few microseconds each.
const SERIAL_FLOP: usize = 1 << 20;

/// `C = A B` or, with [`Beta::One`], `C += A B`.
///
/// Shapes: A `[M, K]`, B `[K, N]`, C `[M, N]`. A and B have any strides, so that [`Mat::t`] gives all the transposes: forward
/// `Y = X W^T` (NT), backward `dX = dY W` (NN) and `dW += dY^T X` (TN). With K = 0 the product is zero.
///
/// Panics if the shapes do not fit. Accuracy: `(K + 4) 2^-24 (|A| |B|)` for each element, in which `|C|` joins with
/// [`Beta::One`]. An element is summed in order of k, in blocks of K: its bits depend on its row of A, its column of B and the
/// level, not on M, N, its place or the number of threads. Cost: 2 M N K flop; B is copied once and A once, or once for each
/// block of columns where M is small. Source: Van Zee and van de Geijn, BLIS, ACM TOMS 41(3), 2015.
#[track_caller]
pub fn gemm(team: &Team, a: Mat, b: Mat, beta: Beta, c: MatMut) {
    check_shapes(a, b, &c);
    let level = team.level();
    if 2 * a.rows * a.cols * b.cols < SERIAL_FLOP {
        return level.dispatch(Serial { a, b, beta, c });
    }
    let Some(product) = Product::new(level.dispatch(TileOf), a, b, beta, c) else { return };
    scratch::with(product.plan.b_len(), |packed| {
        for outer in product.plan.outer() {
            let panels = SharedMut::new(packed);
            team.run(outer.pack_tasks(), |task| {
                let place = outer.pack_task(task).2;
                // SAFETY: the places of different tasks do not meet, and `packed` is not used otherwise until all are done.
                let panels = unsafe { panels.slice(place.start, place.len()) };
                level.dispatch(PackB { product: &product, outer: &outer, task, panels });
            });
            team.run(outer.tasks(), |task| {
                scratch::with(product.plan.a_len(), |a_packed| {
                    level.dispatch(MultiplyTask { product: &product, outer: &outer, task, a_packed, b_packed: packed })
                });
            });
        }
    });
}

/// [`gemm`] on one thread, for kernels that need a product inside a task of their own. The same bits as [`gemm`].
#[allow(dead_code)] // until attention uses it
#[inline(always)]
pub(crate) fn gemm_serial<S: Simd>(s: S, a: Mat, b: Mat, beta: Beta, c: MatMut) {
    check_shapes(a, b, &c);
    s.call(Serial { a, b, beta, c });
}

#[track_caller]
fn check_shapes(a: Mat, b: Mat, c: &MatMut) {
    assert!(
        a.cols == b.rows && a.rows == c.rows && b.cols == c.cols,
        "gemm: A [{}, {}] x B [{}, {}] into C [{}, {}]: A's columns must be B's rows, and C as many rows as A, columns as B",
        a.rows,
        a.cols,
        b.rows,
        b.cols,
        c.rows,
        c.cols
    );
}

/// A product that has something to multiply, and its plan.
struct Product<'a> {
    plan: Plan,
    a: Mat<'a>,
    b: Mat<'a>,
    beta: Beta,
    c: Block<'a>,
}

impl<'a> Product<'a> {
    /// `None` if an extent is 0; then all is done.
    fn new(tile: TileShape, a: Mat<'a>, b: Mat<'a>, beta: Beta, c: MatMut<'a>) -> Option<Self> {
        if c.rows == 0 || c.cols == 0 {
            return None;
        }
        if a.cols == 0 {
            if beta == Beta::Zero {
                c.data.chunks_mut(c.row_stride).take(c.rows).for_each(|row| row[..c.cols].fill(0.0));
            }
            return None;
        }
        let plan = Plan::new(tile, a.rows, b.cols, a.cols);
        Some(Product { plan, a, b, beta, c: Block::new(c.data, c.rows, c.cols, c.row_stride) })
    }
}

struct TileOf;

impl Kernel for TileOf {
    type Output = TileShape;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> TileShape {
        TileShape::of(s)
    }
}

/// Packs the panels of B of one pack task.
struct PackB<'a> {
    product: &'a Product<'a>,
    outer: &'a Outer,
    task: usize,
    panels: &'a mut [f32],
}

impl Kernel for PackB<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (k, n, _) = self.outer.pack_task(self.task);
        let (width, len) = (self.product.plan.tile.nr, self.product.plan.tile.b_panel(k.len()));
        s.call(Pack { m: self.product.b.part(k, n).t(), width, len, panels: self.panels });
    }
}

/// Computes the block of C of one task: packs its rows of A, block of k by block of k, and multiplies them by the packed B.
struct MultiplyTask<'a> {
    product: &'a Product<'a>,
    outer: &'a Outer,
    task: usize,
    a_packed: &'a mut [f32],
    b_packed: &'a [f32],
}

impl Kernel for MultiplyTask<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Product { plan, a, beta, c, .. } = *self.product;
        let (rows, cols) = self.outer.task(self.task);
        // SAFETY: the parts of different tasks do not meet.
        let c = unsafe { c.part(rows.clone(), cols.clone()) };
        for k in self.outer.k_blocks() {
            let a = a.part(rows.clone(), k.clone());
            s.call(Pack { m: a, width: plan.tile.mr, len: plan.tile.a_panel(k.len()), panels: self.a_packed });
            let b = &self.b_packed[self.outer.panels(&k, &cols)];
            let accumulate = beta == Beta::One || k.start > 0;
            s.call(Multiply { a: self.a_packed, b, kc: k.len(), c, accumulate });
        }
    }
}

/// All tasks of a product, one after the other.
struct Serial<'a> {
    a: Mat<'a>,
    b: Mat<'a>,
    beta: Beta,
    c: MatMut<'a>,
}

impl Kernel for Serial<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Some(product) = &Product::new(TileShape::of(s), self.a, self.b, self.beta, self.c) else { return };
        let (a_len, b_len) = (product.plan.a_len(), product.plan.b_len());
        scratch::with(a_len + b_len, |packed| {
            let (b_packed, a_packed) = packed.split_at_mut(b_len);
            for outer in &mut product.plan.outer() {
                for task in 0..outer.pack_tasks() {
                    let panels = &mut b_packed[outer.pack_task(task).2];
                    s.call(PackB { product, outer: &outer, task, panels });
                }
                for task in 0..outer.tasks() {
                    s.call(MultiplyTask { product, outer: &outer, task, a_packed, b_packed });
                }
            }
        });
    }
}

#[cfg(test)]
mod tests;
