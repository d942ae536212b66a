//! Matrix product in all transposes: `plan` cuts, `pack` copies, `micro` multiplies.

mod micro;
mod operands;
mod pack;
mod plan;

use crate::scratch;
use crate::simd::{Kernel, Simd};
use crate::team::SharedMut;
use crate::{Beta, Level, Team, Weight};
use micro::{Block, Multiply, TileShape};
use operands::{Exact, Operands, Pairs};
use pack::Pack;
use plan::{Outer, Packing, Plan};
use std::ops::Range;

/// A matrix in a slice, with a stride for rows and one for columns (in elements): transposing swaps them. Elements are `f32`
/// unless said otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Mat<'a, W = f32> {
    pub(crate) data: &'a [W],
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) row_stride: usize,
    pub(crate) col_stride: usize,
}

impl<'a, W: Weight> Mat<'a, W> {
    /// The row-major matrix `[rows, cols]` in `data`. Panics if `data` has another length.
    #[track_caller]
    pub fn new(data: &'a [W], rows: usize, cols: usize) -> Self {
        assert!(rows.checked_mul(cols) == Some(data.len()), "Mat::new: {} elements for [{rows}, {cols}]", data.len());
        Mat { data, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// A matrix `[rows, cols]` with any strides, in elements. Panics if an element would lie outside `data`.
    #[track_caller]
    pub fn strided(data: &'a [W], rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> Self {
        let fits = elements_fit(data.len(), (rows, cols), (row_stride, col_stride));
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

    /// Element `(i, j)`, as `f32`.
    pub fn at(self, i: usize, j: usize) -> f32 {
        self.data[i * self.row_stride + j * self.col_stride].widen()
    }
}

/// Whether all elements of a matrix lie in a slice of `len`. A product that wraps does not fit: the kernels go by pointers,
/// which are in bounds by what is asserted here.
fn elements_fit(len: usize, (rows, cols): (usize, usize), (row_stride, col_stride): (usize, usize)) -> bool {
    let last = |count: usize, stride: usize| (count - 1).checked_mul(stride);
    rows == 0
        || cols == 0
        || last(rows, row_stride)
            .zip(last(cols, col_stride))
            .and_then(|(i, j)| i.checked_add(j))
            .is_some_and(|at| at < len)
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
        let fits = rows.checked_mul(cols) == Some(data.len());
        assert!(fits, "MatMut::new: {} elements for [{rows}, {cols}]", data.len());
        MatMut { data, rows, cols, row_stride: cols }
    }

    /// A matrix `[rows, cols]` whose rows begin `row_stride` elements apart. Panics if an element would lie outside `data`.
    #[track_caller]
    pub fn strided(data: &'a mut [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        let fits = elements_fit(data.len(), (rows, cols), (row_stride, 1));
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
/// Shapes: A `[M, K]`, B `[K, N]`, C `[M, N]`. Either may be bf16, which is widened while it is packed: the bits are
/// those of the widened matrix.
/// A and B have any strides, so that [`Mat::t`] gives all the transposes: forward
/// `Y = X W^T` (NT), backward `dX = dY W` (NN) and `dW += dY^T X` (TN). With K = 0 the product is zero.
///
/// Panics if the shapes do not fit. Accuracy: `(K + 4) 2^-24 (|A| |B|)` for each element, in which `|C|` joins with
/// [`Beta::One`]. An element is summed in order of k, in blocks of K: its bits depend on its row of A, its column of B and the
/// level, not on M, N, its place or the number of threads. Cost: 2 M N K flop; A and B are
/// copied once. Source: Van Zee and van de Geijn, BLIS, ACM TOMS 41(3), 2015.
#[track_caller]
pub fn gemm<A: Weight, B: Weight>(team: &Team, a: Mat<A>, b: Mat<B>, beta: Beta, c: MatMut) {
    check_shapes("gemm", a, b, &c);
    multiply(team, Exact, a, b, beta, c);
}

/// [`gemm`] whose operands may be rounded to bf16, for twice the speed: sums are f32, and so is C.
///
/// On a level that [has a dot product of bf16](crate::Level::has_dot_bf16), values of A and B that are f32 are rounded to the nearest
/// bf16 (ties to even) while they are packed, and subnormal numbers, in operands and sums, are taken for 0. Any other level rounds
/// nothing: there this is [`gemm`].
///
/// Shapes, panics, strides and what the bits depend on: as for [`gemm`]. Accuracy: that of `gemm` with the rounded operands, and
/// 2^-126 for each term. Against the operands as they were, the rounding, 2^-8 of a value at most, adds `2^-8 (|A| |B|)` for each
/// operand that is f32; and numbers below 2^-126, taken for 0, add 2^-126 times the sizes that they meet. Cost: 2 M N K operations
/// of the [dot product](crate::limits::Dot::Bf16); A and B are copied once.
#[track_caller]
pub fn gemm_bf16<A: Weight, B: Weight>(team: &Team, a: Mat<A>, b: Mat<B>, beta: Beta, c: MatMut) {
    check_shapes("gemm_bf16", a, b, &c);
    if team.level().has_dot_bf16() {
        multiply(team, Pairs, a, b, beta, c);
    } else {
        multiply(team, Exact, a, b, beta, c);
    }
}

/// Values of k that [`gemm`], or with `bf16` [`gemm_bf16`], sums up before it adds them to C, where K is `k`, not 0. A product in parts of so
/// many, the first with the caller's [`Beta`] and the others added in order, has the bits of the whole.
pub fn k_block(level: Level, bf16: bool, k: usize) -> usize {
    let values = if bf16 && level.has_dot_bf16() { Pairs::VALUES } else { Exact::VALUES };
    plan::k_block(k.div_ceil(values)) * values
}

fn multiply<A: Weight, B: Weight, O: Operands>(team: &Team, operands: O, a: Mat<A>, b: Mat<B>, beta: Beta, c: MatMut) {
    let level = team.level();
    if a.rows.saturating_mul(a.cols).saturating_mul(b.cols) < SERIAL_FLOP / 2 {
        return operands.dispatch(level, Serial { operands, a, b, beta, c });
    }
    let plan = |m, n, k| Plan::parallel(level.dispatch(TileOf), m, n, k);
    let Some(product) = Product::new(operands, a, b, beta, c, plan) else { return };
    scratch::with(product.plan.shared_len(), |shared| {
        for outer in product.plan.outer() {
            let panels = SharedMut::new(shared);
            team.run(outer.pack_tasks(), |task| {
                let packing = outer.pack_task(task);
                let place = packing.place();
                // SAFETY: the places of different tasks do not meet, and `shared` is not used otherwise until all are done.
                let panels = unsafe { panels.slice(place.start, place.len()) };
                operands.dispatch(level, PackTask { product: &product, packing, panels });
            });
            team.run(outer.tasks(), |task| {
                scratch::with(product.plan.task_len(), |own| {
                    operands.dispatch(level, MultiplyTask { product: &product, outer: &outer, task, shared, own })
                });
            });
        }
    });
}

#[track_caller]
fn check_shapes<A: Weight, B: Weight>(name: &str, a: Mat<A>, b: Mat<B>, c: &MatMut) {
    assert!(
        a.cols == b.rows && a.rows == c.rows && b.cols == c.cols,
        "{name}: A [{}, {}] x B [{}, {}] into C [{}, {}]: A's columns must be B's rows, and C as many rows as A, columns as B",
        a.rows,
        a.cols,
        b.rows,
        b.cols,
        c.rows,
        c.cols
    );
}

/// A product that has something to multiply, and its plan, in which an element of K is one of a panel: [`Operands::VALUES`] values.
struct Product<'a, A, B, O> {
    operands: O,
    plan: Plan,
    a: Mat<'a, A>,
    b: Mat<'a, B>,
    beta: Beta,
    c: Block<'a>,
}

impl<'a, A: Weight, B: Weight, O: Operands> Product<'a, A, B, O> {
    /// `None` if an extent is 0; then all is done.
    #[inline(always)]
    fn new(
        operands: O,
        a: Mat<'a, A>,
        b: Mat<'a, B>,
        beta: Beta,
        c: MatMut<'a>,
        plan: impl FnOnce(usize, usize, usize) -> Plan,
    ) -> Option<Self> {
        if c.rows == 0 || c.cols == 0 {
            return None;
        }
        if a.cols == 0 {
            if beta == Beta::Zero {
                c.data.chunks_mut(c.row_stride).take(c.rows).for_each(|row| row[..c.cols].fill(0.0));
            }
            return None;
        }
        let plan = plan(a.rows, b.cols, a.cols.div_ceil(O::VALUES));
        Some(Product { operands, plan, a, b, beta, c: Block::new(c.data, c.rows, c.cols, c.row_stride) })
    }

    /// The values of k that these elements of the panels hold.
    #[inline(always)]
    fn values(&self, k: &Range<usize>) -> Range<usize> {
        k.start * O::VALUES..self.a.cols.min(k.end * O::VALUES)
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

/// Packs the shared panels of one pack task.
struct PackTask<'a, A, B, O> {
    product: &'a Product<'a, A, B, O>,
    packing: Packing,
    panels: &'a mut [f32],
}

impl<A: Weight, B: Weight, O: Operands> Kernel for PackTask<'_, A, B, O> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let tile = TileShape::of(s);
        let PackTask { product, packing, panels } = self;
        let &Product { operands, a, b, .. } = product;
        match packing {
            Packing::A { k, rows, .. } => {
                let m = a.part(rows, product.values(&k));
                s.call(Pack { operands, m, width: tile.mr, len: tile.a_panel(k.len()), panels })
            }
            Packing::B { k, cols, .. } => {
                let m = b.part(product.values(&k), cols).t();
                s.call(Pack { operands, m, width: tile.nr, len: tile.b_panel(k.len()), panels })
            }
        }
    }
}

/// Computes the block of C of one task, block of k by block of k, from packed B and its rows of A.
struct MultiplyTask<'a, A, B, O> {
    product: &'a Product<'a, A, B, O>,
    outer: &'a Outer,
    task: usize,
    /// Panels that all tasks read.
    shared: &'a [f32],
    /// Room for the task's own panels of A, if those are not shared.
    own: &'a mut [f32],
}

impl<A: Weight, B: Weight, O: Operands> Kernel for MultiplyTask<'_, A, B, O> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Product { operands, plan, a, beta, c, .. } = *self.product;
        let tile = TileShape::of(s);
        let (rows, cols) = self.outer.task(self.task);
        // SAFETY: the parts of different tasks do not meet.
        let c = unsafe { c.part(rows.clone(), cols.clone()) };
        for k in self.outer.k_blocks() {
            let a = if plan.shared_a {
                &self.shared[self.outer.a_place(&k, &rows)]
            } else {
                let m = a.part(rows.clone(), self.product.values(&k));
                s.call(Pack { operands, m, width: tile.mr, len: tile.a_panel(k.len()), panels: self.own });
                &*self.own
            };
            let b = &self.shared[self.outer.b_place(&k, &cols)];
            s.call(Multiply { operands, a, b, kc: k.len(), c, accumulate: beta == Beta::One || k.start > 0 });
        }
    }
}

/// All tasks of a product, one after the other.
struct Serial<'a, A, B, O> {
    operands: O,
    a: Mat<'a, A>,
    b: Mat<'a, B>,
    beta: Beta,
    c: MatMut<'a>,
}

impl<A: Weight, B: Weight, O: Operands> Kernel for Serial<'_, A, B, O> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Serial { operands, a, b, beta, c } = self;
        let plan = |m, n, k| Plan::serial(TileShape::of(s), m, n, k);
        let Some(product) = &Product::new(operands, a, b, beta, c, plan) else { return };
        let (shared_len, own_len) = (product.plan.shared_len(), product.plan.task_len());
        scratch::with(shared_len + own_len, |memory| {
            let (shared, own) = memory.split_at_mut(shared_len);
            for outer in &mut product.plan.outer() {
                for task in 0..outer.pack_tasks() {
                    let packing = outer.pack_task(task);
                    let panels = &mut shared[packing.place()];
                    s.call(PackTask { product, packing, panels });
                }
                for task in 0..outer.tasks() {
                    s.call(MultiplyTask { product, outer: &outer, task, shared, own });
                }
            }
        });
    }
}

#[cfg(test)]
mod tests;
