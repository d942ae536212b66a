use super::{Place, cuda_mat, matmul, place, with_float};
use crate::check::{expect_matrix, expect_shape, reads_float, reads_like, rows_and_cols};
use crate::{Activation, DType, Tensor};
use cuda::ops::gemm_gated_activation as on_gpu;
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

/// The result of [`gemm_gated_activation`].
pub struct Gated {
    /// `x gate_proj^T`.
    pub g: Tensor,
    /// `x up_proj^T`.
    pub u: Tensor,
    /// `psi(g) * u`.
    pub h: Tensor,
}

/// The FFN up to its hidden layer: two products and [`gated_activation`], with the bits of these. In bf16 they are one launch, which makes h
/// from what its blocks hold.
///
/// Shapes: float x `[.., C]`; gate_proj, up_proj `[F, C]`; g, u, h `[.., F]`.
#[track_caller]
pub fn gemm_gated_activation(act: Activation, x: &Tensor, gate_proj: &Tensor, up_proj: &Tensor) -> Gated {
    let op = "gemm_gated_activation";
    let (n, c) = rows_and_cols(op, "x", x);
    let [d_ff, _] = expect_matrix(op, "gate_proj", gate_proj);
    expect_shape(op, "gate_proj", gate_proj, &[d_ff, c]);
    expect_shape(op, "up_proj", up_proj, &[d_ff, c]);
    let like_x = |name, weight| reads_like(name, weight, x.dtype);
    let place = place(op, &[reads_float("x", x), like_x("gate_proj", gate_proj), like_x("up_proj", up_proj)]);
    let shape = x.shape.with(x.shape.rank() - 1, d_ff);
    let x = x.reshape([n, c]);
    let (Place::Cuda(gpu), DType::Bf16) = (&place, x.dtype) else {
        let [g, u] = [gate_proj, up_proj].map(|weight| matmul(&x, &weight.t()).reshape(shape));
        let h = gated_activation(act, &g, &u);
        return Gated { g, u, h };
    };
    let [mut g, mut u, mut h] = [(); 3].map(|_| place.stale(shape, DType::Bf16));
    let (gate_proj, up_proj) = (gate_proj.contiguous(), up_proj.contiguous());
    let factors = (cuda_mat(&x), cuda_mat(&gate_proj), cuda_mat(&up_proj));
    let to = (g.cuda_slice_mut(), u.cuda_slice_mut(), h.cuda_slice_mut());
    gpu.done(on_gpu::gemm_gated_activation(act, factors.0, factors.1, factors.2, to.0, to.1, to.2));
    Gated { g, u, h }
}

/// The FFN's backward from its result to its gates: `dh = dy down_proj`, and [`gated_activation_backward`] of that, with the bits of these. In
/// bf16 they are one launch, whose dh leaves no block.
///
/// Shapes: float dy `[N, C]`; down_proj `[C, F]`; g, u and the results `[.., F]`, of N rows.
#[track_caller]
pub fn gemm_gated_activation_backward(
    act: Activation,
    l1: f32,
    dy: &Tensor,
    down_proj: &Tensor,
    g: &Tensor,
    u: &Tensor,
) -> GatedGradients {
    let op = "gemm_gated_activation_backward";
    let (n, d_ff) = rows_and_cols(op, "g", g);
    let [_, c] = expect_matrix(op, "dy", dy);
    expect_shape(op, "dy", dy, &[n, c]);
    expect_shape(op, "down_proj", down_proj, &[c, d_ff]);
    expect_shape(op, "u", u, &g.shape);
    let like_g = |name, x| reads_like(name, x, g.dtype);
    let operands = [reads_float("g", g), like_g("u", u), like_g("dy", dy), like_g("down_proj", down_proj)];
    let place = place(op, &operands);
    let (Place::Cuda(gpu), DType::Bf16) = (&place, g.dtype) else {
        let dh = matmul(dy, down_proj).reshape(g.shape);
        return gated_activation_backward(act, l1, &dh, g, u);
    };
    let [mut dg, mut du, mut h] = [(); 3].map(|_| place.stale(g.shape, DType::Bf16));
    let [dy, down_proj, g, u] = [dy, down_proj, g, u].map(Tensor::contiguous);
    let (factors, gates) = ((cuda_mat(&dy), cuda_mat(&down_proj)), (g.cuda_slice(), u.cuda_slice()));
    let to = (dg.cuda_slice_mut(), du.cuda_slice_mut(), h.cuda_slice_mut());
    let backward = on_gpu::gemm_gated_activation_backward;
    gpu.done(backward(act, l1, factors.0, factors.1, gates.0, gates.1, to.0, to.1, to.2));
    GatedGradients { dg, du, h }
}
