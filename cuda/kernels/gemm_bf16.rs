//! Matrix product with bf16 operands, on tensor cores.

use super::Float;
use crate::stream::Launch;
use crate::{Error, Kernel, Module, Slice, SliceMut};
use half::bf16;
use kernels::Beta;

static MODULE: Module = Module { name: "gemm_bf16", ptx: include_str!("gemm_bf16.ptx") };
/// For C of f32 and of bf16.
static NN: [Kernel; 2] =
    [Kernel { module: &MODULE, entry: "gemm_bf16_nn" }, Kernel { module: &MODULE, entry: "gemm_bf16_nn_bf16" }];
static NT: [Kernel; 2] =
    [Kernel { module: &MODULE, entry: "gemm_bf16_nt" }, Kernel { module: &MODULE, entry: "gemm_bf16_nt_bf16" }];
static TN: [Kernel; 2] =
    [Kernel { module: &MODULE, entry: "gemm_bf16_tn" }, Kernel { module: &MODULE, entry: "gemm_bf16_tn_bf16" }];

/// Rows and columns of C that a block makes.
const TILE: usize = 128;
const THREADS: u32 = 256;

/// A matrix in device memory, row-major or, after [`Mat::t`], column-major.
#[derive(Clone, Copy, Debug)]
pub struct Mat<'a> {
    data: Slice<'a, bf16>,
    rows: usize,
    cols: usize,
    transposed: bool,
}

impl<'a> Mat<'a> {
    /// The row-major matrix `[rows, cols]` in `data`. Panics if `data` has another length.
    #[track_caller]
    pub fn new(data: Slice<'a, bf16>, rows: usize, cols: usize) -> Mat<'a> {
        assert!(rows.checked_mul(cols) == Some(data.len()), "Mat::new: {} elements for [{rows}, {cols}]", data.len());
        Mat { data, rows, cols, transposed: false }
    }

    /// The transposed view.
    pub fn t(self) -> Mat<'a> {
        Mat { rows: self.cols, cols: self.rows, transposed: !self.transposed, ..self }
    }

    /// Whether each row of it, as it lies in memory, begins at a multiple of 16 bytes.
    fn aligned(self) -> bool {
        super::rows_aligned(self.data, if self.transposed { self.rows } else { self.cols })
    }
}

/// `C = A B` or, with [`Beta::One`], `C += A B`; as [`kernels::gemm::gemm_bf16`].
///
/// Shapes: A `[M, K]`, B `[K, N]`, c `[M, N]` row-major, in f32 or bf16. The transposes are those of a linear layer: forward `Y = X W^T` (NT),
/// backward `dX = dY W` (NN) and `dW += dY^T X` (TN); none is made in memory. With K = 0 the product is zero.
///
/// Panics if the shapes do not fit, or if both operands are transposed, which no layer needs.
///
/// Accuracy: `(K + 4) 2^-23 (|A| |B|)` for each element, in which `|C|` joins with [`Beta::One`], and 2^-8 of the result more if C is bf16: tensor
/// cores cut off where the CPU rounds, so the bound is twice the CPU's. Products of bf16 are exact, sums are f32, in blocks of 16 along K in order:
/// the bits of an element depend on its row of A, its column of B, and the generation of the GPU, whose order within a block is its own.
///
/// Bytes: A is read `N / 128` times and B `M / 128` times, mostly from the L2: blocks that run side by side share them. Any shape and place is
/// taken; rows that do not begin at multiples of 16 bytes (K of X and W no multiple of 8, say) are copied element by element, far slower.
#[track_caller]
pub fn gemm_bf16<C: Float>(a: Mat, b: Mat, beta: Beta, c: SliceMut<C>) -> Result<(), Error> {
    let (m, k, n) = (a.rows, a.cols, b.cols);
    assert!(
        b.rows == k && m.checked_mul(n) == Some(c.len()),
        "gemm_bf16: A [{m}, {k}] x B [{}, {n}] into C of {} elements: A's columns must be B's rows, and C [{m}, {n}]",
        b.rows,
        c.len()
    );
    let kernels = match (a.transposed, b.transposed) {
        (false, false) => &NN,
        (false, true) => &NT,
        (true, false) => &TN,
        (true, true) => panic!("gemm_bf16: A^T [{m}, {k}] x B^T [{k}, {n}]: one of them may be transposed"),
    };
    let c_aligned = super::rows_aligned(c.as_slice(), n);
    let launch = Launch::new(C::of(kernels), m.div_ceil(TILE) * n.div_ceil(TILE), THREADS).arg(a.data).arg(b.data);
    let launch = launch.arg(m).arg(n).arg(k).arg(a.aligned()).arg(b.aligned()).arg(c_aligned);
    // SAFETY: the parameters are those of the kernels, which read within [M, K] and [K, N] and write within [M, N].
    unsafe { launch.arg(beta == Beta::One).arg(&c).run() }
}
