//! Matrix product.

use crate::stream::Launch;
use crate::{Error, Kernel, Module, Slice, SliceMut};
use bytemuck::Pod;
use kernels::Beta;

static MODULE: Module = Module { name: "gemm", ptx: include_str!("gemm.ptx") };
static NN: Kernel = Kernel { module: &MODULE, entry: "gemm_nn" };
static NT: Kernel = Kernel { module: &MODULE, entry: "gemm_nt" };
static TN: Kernel = Kernel { module: &MODULE, entry: "gemm_tn" };

/// Rows and columns of C that a block makes.
pub(super) const TILE: usize = 128;
const THREADS: u32 = 256;

/// A matrix in device memory, row-major or, after [`Mat::t`], column-major.
#[derive(Debug)]
pub struct Mat<'a, T: Pod> {
    pub(super) data: Slice<'a, T>,
    rows: usize,
    cols: usize,
    transposed: bool,
}

impl<'a, T: Pod> Mat<'a, T> {
    /// The row-major matrix `[rows, cols]` in `data`. Panics if `data` has another length.
    #[track_caller]
    pub fn new(data: Slice<'a, T>, rows: usize, cols: usize) -> Mat<'a, T> {
        assert!(rows.checked_mul(cols) == Some(data.len()), "Mat::new: {} elements for [{rows}, {cols}]", data.len());
        Mat { data, rows, cols, transposed: false }
    }

    /// The transposed view.
    pub fn t(self) -> Mat<'a, T> {
        Mat { rows: self.cols, cols: self.rows, transposed: !self.transposed, ..self }
    }

    /// Whether each row of it, as it lies in memory, begins at a multiple of 16 bytes.
    pub(super) fn aligned(self) -> bool {
        super::rows_aligned(self.data, if self.transposed { self.rows } else { self.cols })
    }
}

impl<T: Pod> Clone for Mat<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: Pod> Copy for Mat<'_, T> {}

/// The transposes that a linear layer needs: forward `Y = X W^T`, backward `dX = dY W` and `dW += dY^T X`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Layout {
    NN,
    NT,
    TN,
}

impl Layout {
    /// That of a product, and its M, N, K. Panics if the shapes do not fit, or if both are transposed.
    #[track_caller]
    pub(super) fn of<T: Pod>(op: &str, a: Mat<T>, b: Mat<T>, c_len: usize) -> (Layout, [usize; 3]) {
        let (m, k, n) = (a.rows, a.cols, b.cols);
        assert!(
            b.rows == k && m.checked_mul(n) == Some(c_len),
            "{op}: A [{m}, {k}] x B [{}, {n}] into C of {c_len} elements: A's columns must be B's rows, and C [{m}, {n}]",
            b.rows
        );
        let layout = match (a.transposed, b.transposed) {
            (false, false) => Layout::NN,
            (false, true) => Layout::NT,
            (true, false) => Layout::TN,
            (true, true) => panic!("{op}: A^T [{m}, {k}] x B^T [{k}, {n}]: one of them may be transposed"),
        };
        (layout, [m, n, k])
    }
}

/// `C = A B` or, with [`Beta::One`], `C += A B`, in f32; as [`kernels::gemm::gemm`].
///
/// Shapes: A `[M, K]`, B `[K, N]`, c `[M, N]` row-major. The transposes are those of a linear layer (NT, NN, TN); none
/// is made in memory. With K = 0 the product is zero.
///
/// Panics if the shapes do not fit, or if both operands are transposed, which no layer needs.
///
/// Accuracy: `(K + 4) 2^-24 (|A| |B|)` for each element, in which `|C|` joins with [`Beta::One`]. An element is one
/// chain of fused multiply-adds in order of k: its bits depend on its row of A and its column of B alone. Bytes: A is
/// read `N / 128` times and B `M / 128` times, mostly from the L2. For exactness, not speed: tensor cores do not take
/// f32; [`gemm_bf16`](super::gemm_bf16::gemm_bf16) is many times faster.
#[track_caller]
pub fn gemm(a: Mat<f32>, b: Mat<f32>, beta: Beta, c: SliceMut<f32>) -> Result<(), Error> {
    let (layout, [m, n, k]) = Layout::of("gemm", a, b, c.len());
    let kernel = match layout {
        Layout::NN => &NN,
        Layout::NT => &NT,
        Layout::TN => &TN,
    };
    let c_aligned = super::rows_aligned(c.as_slice(), n);
    let launch = Launch::new(kernel, m.div_ceil(TILE) * n.div_ceil(TILE), THREADS).arg(a.data).arg(b.data);
    // SAFETY: the parameters are those of the kernels, which read within [M, K] and [K, N] and write within [M, N].
    unsafe { launch.arg(m).arg(n).arg(k).arg(c_aligned).arg(beta == Beta::One).arg(&c).run() }
}
