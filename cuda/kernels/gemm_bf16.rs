//! Matrix product with bf16 operands, on tensor cores.

use super::Float;
use super::gemm::{Layout, Mat, TILE};
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

/// Threads of a block.
pub(super) const THREADS: u32 = 128;

/// `C = A B` or, with [`Beta::One`], `C += A B`; as [`kernels::gemm::gemm_bf16`].
///
/// Shapes: A `[M, K]`, B `[K, N]`, c `[M, N]` row-major, in f32 or bf16. The transposes are those of a linear layer:
/// forward `Y = X W^T` (NT), backward `dX = dY W` (NN) and `dW += dY^T X` (TN); none is made in memory. With K = 0 the
/// product is zero.
///
/// Panics if the shapes do not fit, or if both operands are transposed, which no layer needs.
///
/// Accuracy: `(K + 4) 2^-23 (|A| |B|)` for each element, in which `|C|` joins with [`Beta::One`], and 2^-8 of the
/// result more if C is bf16: tensor cores cut off where the CPU rounds, so the bound is twice the CPU's. Products of
/// bf16 are exact, sums are f32, in blocks of 16 along K in order: the bits of an element depend on its row of A, its
/// column of B, and the generation of the GPU, whose order within a block is its own.
///
/// Bytes: A is read `N / 128` times and B `M / 128` times, mostly from the L2: blocks that run side by side share them.
/// Any shape and place is taken; rows that do not begin at multiples of 16 bytes (K of X and W no multiple of 8, say)
/// are copied element by element, far slower.
#[track_caller]
pub fn gemm_bf16<C: Float>(a: Mat<bf16>, b: Mat<bf16>, beta: Beta, c: SliceMut<C>) -> Result<(), Error> {
    run("gemm_bf16", a, b, (beta == Beta::One).then_some(c.as_slice()), &c)
}

/// `C = D + A B`: a residual connection in the launch of its product, which reads D and writes C once.
///
/// Shapes: d `[M, N]` row-major and of C's type, the others as in [`gemm_bf16`], as are panics and accuracy, where `|D|` joins: the bits are
/// those of [`gemm_bf16`] with [`Beta::One`] on a copy of D.
#[track_caller]
pub fn gemm_bf16_add<C: Float>(a: Mat<bf16>, b: Mat<bf16>, d: Slice<C>, c: SliceMut<C>) -> Result<(), Error> {
    assert!(d.len() == c.len(), "gemm_bf16_add: D {} elements, C {}", d.len(), c.len());
    run("gemm_bf16_add", a, b, Some(d), &c)
}

#[track_caller]
fn run<C: Float>(op: &str, a: Mat<bf16>, b: Mat<bf16>, addend: Option<Slice<C>>, c: &SliceMut<C>) -> Result<(), Error> {
    let (layout, [m, n, k]) = Layout::of(op, a, b, c.len());
    let kernels = match layout {
        Layout::NN => &NN,
        Layout::NT => &NT,
        Layout::TN => &TN,
    };
    let c_aligned = [addend, Some(c.as_slice())].into_iter().flatten().all(|x| super::rows_aligned(x, n));
    let launch = Launch::new(C::of(kernels), m.div_ceil(TILE) * n.div_ceil(TILE), THREADS).arg(a.data).arg(b.data);
    let launch = launch.arg(m).arg(n).arg(k).arg(a.aligned()).arg(b.aligned()).arg(c_aligned);
    let launch = match addend {
        Some(d) => launch.arg(d),
        None => launch.arg(0u64), // null
    };
    // SAFETY: the parameters are those of the kernels, which read within [M, K], [K, N] and [M, N] and write within [M, N].
    unsafe { launch.arg(c).run() }
}
