use super::{Place, place, with_float};
use crate::check::{expect_shape, reads_float, reads_like, rows_and_cols};
use crate::{Activation, Tensor};
use kernels::activation as kernel;

/// `h = psi(g) * u` (arXiv 2509.22358). Shapes: float g, u, h `[.., F]`; a row is a token of the mask site.
/// In bf16 it is computed in f32 and rounded once.
#[track_caller]
pub fn gated_activation(act: Activation, g: &Tensor, u: &Tensor) -> Tensor {
    let (_, d_ff) = rows_and_cols("gated_activation", "g", g);
    expect_shape("gated_activation", "u", u, &g.shape);
    let place = place("gated_activation", &[reads_float("g", g), reads_like("u", u, g.dtype)]);
    let mut h = place.stale(g.shape, g.dtype);
    let (g, u) = (g.contiguous(), u.contiguous());
    match place {
        Place::Cpu(team) => kernel::gated_activation(&team, act, g.slice(), u.slice(), d_ff, h.slice_mut()),
        Place::Cuda(gpu) => with_float!(g.dtype, T => {
            let (g, u) = (g.cuda_slice::<T>(), u.cuda_slice());
            gpu.done(cuda::ops::gated_activation::gated_activation(act, g, u, d_ff, h.cuda_slice_mut()));
        }),
    }
    h
}

/// The result of [`gated_activation_backward`].
pub struct GatedGradients {
    /// `(dh + l1 sign(h)) * u * psi'(g)`.
    pub dg: Tensor,
    /// `(dh + l1 sign(h)) * psi(g)`.
    pub du: Tensor,
    /// The forward's result again, for the gradient of down_proj.
    pub h: Tensor,
}

/// The gradients of [`gated_activation`] and its result once more, in one pass; the draws of the forward are drawn again.
/// With `dh + l1 sign(h)` for dh: the gradient of `l1 sum |h|` as well. At `l1` 0 nothing is added. Shapes: all `[.., F]`, of one
/// float type.
#[track_caller]
pub fn gated_activation_backward(act: Activation, l1: f32, dh: &Tensor, g: &Tensor, u: &Tensor) -> GatedGradients {
    let op = "gated_activation_backward";
    let (_, d_ff) = rows_and_cols(op, "g", g);
    expect_shape(op, "u", u, &g.shape);
    expect_shape(op, "dh", dh, &g.shape);
    let place = place(op, &[reads_float("g", g), reads_like("u", u, g.dtype), reads_like("dh", dh, g.dtype)]);
    let [mut dg, mut du, mut h] = [(); 3].map(|_| place.stale(g.shape, g.dtype));
    let (dh, g, u) = (dh.contiguous(), g.contiguous(), u.contiguous());
    match place {
        Place::Cpu(team) => {
            let (dg_s, du_s, h_s) = (dg.slice_mut(), du.slice_mut(), h.slice_mut());
            kernel::gated_activation_backward(&team, act, l1, dh.slice(), g.slice(), u.slice(), d_ff, dg_s, du_s, h_s);
        }
        Place::Cuda(gpu) => with_float!(g.dtype, T => {
            use cuda::ops::gated_activation::gated_activation_backward;
            let (dh, g, u) = (dh.cuda_slice::<T>(), g.cuda_slice(), u.cuda_slice());
            let (dg, du, h) = (dg.cuda_slice_mut(), du.cuda_slice_mut(), h.cuda_slice_mut());
            gpu.done(gated_activation_backward(act, l1, dh, g, u, d_ff, dg, du, h));
        }),
    }
    GatedGradients { dg, du, h }
}
