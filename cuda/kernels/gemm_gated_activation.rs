//! The FFN's products with its gated activation: what a block has made of g, u or dh goes through psi before it leaves the block.

use super::gated_activation::{Psi, gated_activation, gated_activation_backward};
use super::gemm::{Layout, Mat, TILE};
use super::gemm_bf16::{THREADS, gemm_bf16};
use crate::stream::Launch;
use crate::{Buffer, Error, Kernel, Module, Slice, SliceMut};
use half::bf16;
use kernels::{Activation, Beta};

static MODULE: Module = Module { name: "gemm_gated_activation", ptx: include_str!("gemm_gated_activation.ptx") };

const fn kernel(entry: &'static str) -> Kernel {
    Kernel { module: &MODULE, entry }
}

/// Forward and backward of a psi.
static RELU: [Kernel; 2] = [kernel("gemm_gated_activation_relu"), kernel("gemm_gated_activation_backward_relu")];
static SILU: [Kernel; 2] = [kernel("gemm_gated_activation_silu"), kernel("gemm_gated_activation_backward_silu")];
static STOCHASTIC: [Kernel; 2] =
    [kernel("gemm_gated_activation_stochastic"), kernel("gemm_gated_activation_backward_stochastic")];

/// Those of an activation, if it has kernels of its own.
fn fused(psi: &Psi) -> Option<&'static [Kernel; 2]> {
    match psi {
        Psi::Relu => Some(&RELU),
        Psi::Silu => Some(&SILU),
        Psi::Stochastic(_) => Some(&STOCHASTIC),
        Psi::Any(_) => None,
    }
}

/// `g = x gate_proj^T`, `u = x up_proj^T`, `h = psi(g) * u`: the first half of an FFN in one launch.
///
/// Shapes: x `[N, C]`, gate_proj and up_proj `[F, C]`, as they lie in memory; g, u and h `[N, F]`. g and u are what the backward needs.
///
/// Panics if the shapes do not fit, or if a matrix is transposed.
///
/// Every bit is that of [`gemm_bf16`] into g and u and [`gated_activation`] of these: psi, its draws and the product take g and u as they are
/// written, rounded to bf16. So they run instead where this has no kernel: for a psi other than RELU, SILU and the paper's pair, and for rows that do
/// not begin at multiples of 16 bytes (C or F no multiple of 8).
///
/// Bytes: `2 N C + 4 F C` and `6 N F`, as against 10 N F: h is made from what a block still holds. x is read `F / 64` times and the weights
/// `N / 128` times, mostly from the L2. Operations: `4 N F C`.
#[track_caller]
pub fn gemm_gated_activation(
    act: Activation,
    x: Mat<bf16>,
    gate_proj: Mat<bf16>,
    up_proj: Mat<bf16>,
    mut g: SliceMut<bf16>,
    mut u: SliceMut<bf16>,
    h: SliceMut<bf16>,
) -> Result<(), Error> {
    const OP: &str = "gemm_gated_activation";
    let [n, d_ff, k] = shape(OP, x, gate_proj.t(), Layout::NT, &[g.as_slice(), h.as_slice()]);
    let up_shape = shape(OP, x, up_proj.t(), Layout::NT, &[u.as_slice()]);
    assert!(up_shape == [n, d_ff, k], "{OP}: gate_proj [{d_ff}, {k}], up_proj [{}, {k}]", up_shape[1]);
    let psi = Psi::of(act);
    let aligned = [x, gate_proj, up_proj].iter().all(|mat| mat.aligned())
        && [&g, &u, &h].iter().all(|out| super::rows_aligned(out.as_slice(), d_ff));
    let Some([forward, _]) = fused(&psi).filter(|_| aligned) else {
        gemm_bf16(x, gate_proj.t(), Beta::Zero, g.reborrow())?;
        gemm_bf16(x, up_proj.t(), Beta::Zero, u.reborrow())?;
        return gated_activation(act, g.as_slice(), u.as_slice(), d_ff, h);
    };
    let launch = psi.args(Launch::new(forward, n.div_ceil(TILE) * d_ff.div_ceil(TILE / 2), THREADS));
    let launch = launch.arg(x.data).arg(gate_proj.data).arg(up_proj.data).arg(n).arg(d_ff).arg(k);
    // SAFETY: the parameters are those of the kernels, which read within [N, C] and [F, C] and write within [N, F], where all rows are aligned.
    unsafe { launch.arg(&g).arg(&u).arg(&h).run() }
}

/// `dh = dy down_proj`, and from it the gradients of `h = psi(g) * u` and h again: the second half of an FFN's backward in one launch.
///
/// Shapes: dy `[N, C]` and down_proj `[C, F]`, as they lie in memory; g, u, dg, du and h `[N, F]`. h is for `dW_down += dy^T h`.
///
/// Panics if the shapes do not fit, or if a matrix is transposed.
///
/// Every bit is that of [`gemm_bf16`] into a dh of bf16 and [`gated_activation_backward`] of it, which run instead where
/// [`gemm_gated_activation`] says; then dh takes memory of its own. `l1` is that of [`gated_activation_backward`].
///
/// Bytes: `2 N C + 2 F C` and `10 N F`, as against 14 N F: dh does not leave the block. dy is read `F / 128` times and down_proj `N / 128` times, mostly
/// from the L2. Operations: `2 N F C`.
#[allow(clippy::too_many_arguments)] // the backward of a fused kernel has this many tensors
#[track_caller]
pub fn gemm_gated_activation_backward(
    act: Activation,
    l1: f32,
    dy: Mat<bf16>,
    down_proj: Mat<bf16>,
    g: Slice<bf16>,
    u: Slice<bf16>,
    dg: SliceMut<bf16>,
    du: SliceMut<bf16>,
    h: SliceMut<bf16>,
) -> Result<(), Error> {
    const OP: &str = "gemm_gated_activation_backward";
    let tensors = [g, u, dg.as_slice(), du.as_slice(), h.as_slice()];
    let [n, d_ff, k] = shape(OP, dy, down_proj, Layout::NN, &tensors);
    let psi = Psi::of(act);
    let aligned =
        [dy, down_proj].iter().all(|mat| mat.aligned()) && tensors.iter().all(|&x| super::rows_aligned(x, d_ff));
    let Some([_, backward]) = fused(&psi).filter(|_| aligned) else {
        let mut dh = Buffer::stale(h.device(), h.len())?;
        gemm_bf16(dy, down_proj, Beta::Zero, dh.as_mut())?;
        return gated_activation_backward(act, l1, dh.as_slice(), g, u, d_ff, dg, du, h);
    };
    let launch = psi.args(Launch::new(backward, n.div_ceil(TILE) * d_ff.div_ceil(TILE), THREADS));
    let launch = launch.arg(l1).arg(dy.data).arg(down_proj.data).arg(n).arg(d_ff).arg(k).arg(g).arg(u);
    // SAFETY: as in `gemm_gated_activation`.
    unsafe { launch.arg(&dg).arg(&du).arg(&h).run() }
}

/// N, F and C of a product into tensors `[N, F]`. Panics if the shapes do not fit, or if it is not of this layout.
#[track_caller]
fn shape(op: &str, a: Mat<bf16>, b: Mat<bf16>, expected: Layout, tensors: &[Slice<bf16>]) -> [usize; 3] {
    for tensor in tensors {
        let (layout, _) = Layout::of(op, a, b, tensor.len());
        assert!(layout == expected, "{op}: a matrix is transposed: expected the product {expected:?}, not {layout:?}");
    }
    Layout::of(op, a, b, tensors[0].len()).1
}
