//! The FFN's products with their activation in one launch: the bits of the product, rounded, and of the activation after it.

use crate::Run;
use cuda::ops::gated_activation::{gated_activation, gated_activation_backward};
use cuda::ops::gemm::Mat;
use cuda::ops::gemm_bf16::gemm_bf16;
use cuda::ops::gemm_gated_activation::{gemm_gated_activation, gemm_gated_activation_backward};
use cuda::{Buffer, Error};
use half::bf16;
use kernels::testing::{uniform, uniform_bf16};
use kernels::{Activation, Beta, Fixed, MaskSite, Positive};

const SITE: MaskSite = MaskSite { seed: 0x0123_4567_89AB_CDEF, first_token: 5, layer: 3, stream: 1, step: 77 };

/// N, C and F around the sizes of tiles, of parts of a tile, and of pieces of 16 bytes; the rows of the last two begin anywhere.
const SMALL: [[usize; 3]; 8] =
    [[1, 8, 8], [128, 32, 64], [3, 0, 24], [70, 40, 136], [129, 72, 72], [257, 16, 8], [5, 12, 16], [9, 16, 13]];
const OF_A_CARD: [[usize; 3]; 3] = [[4096, 768, 2048], [2200, 1032, 5640], [1027, 4096, 1416]];

/// Those with a kernel, and one of those without.
fn acts() -> [Activation; 4] {
    let other = Activation::pair(0.4, [Fixed::Gelu, Fixed::Silu], Positive::Silu, SITE);
    [Activation::Relu, Activation::Silu, Activation::stochastic(0.3, SITE), other]
}

/// From -4 to 4: both branches of psi, and sums that are not near 0.
fn wide(seed: u64, len: usize) -> Vec<bf16> {
    uniform(seed, len).iter().map(|x| bf16::from_f32(4.0 * x)).collect()
}

fn same(run: &mut Run, what: &str, fused: [(&str, Buffer<bf16>); 3], apart: [&Buffer<bf16>; 3]) -> Result<(), Error> {
    let bits = |x: &Buffer<bf16>| Ok::<Vec<u16>, Error>(x.to_vec()?.iter().map(|x| x.to_bits()).collect());
    for ((name, fused), apart) in fused.iter().zip(apart) {
        run.same(&format!("{what}: the bits of {name}"), &bits(fused)?, &bits(apart)?);
    }
    Ok(())
}

pub fn gemm_gated_activation_has_the_bits_of_both_kernels(run: &mut Run) -> Result<(), Error> {
    for [n, c, f] in run.sizes(&SMALL, &OF_A_CARD) {
        let [mut x, gate, up] = [wide(1, n * c), uniform_bf16(2, f * c), uniform_bf16(3, f * c)];
        // The last rows of g and u are NaN, whose bits are the same too.
        x.iter_mut().rev().take(1).for_each(|x| *x = bf16::NAN);
        let [x, gate, up] = run.all_on([&x, &gate, &up])?;
        let x = Mat::new(x.as_slice(), n, c);
        let [gate, up] = [&gate, &up].map(|w| Mat::new(w.as_slice(), f, c));
        let [mut g, mut u] = run.all_stale(n * f)?;
        gemm_bf16(x, gate.t(), Beta::Zero, g.as_mut())?;
        gemm_bf16(x, up.t(), Beta::Zero, u.as_mut())?;
        for act in acts() {
            let [mut fused_g, mut fused_u, mut fused_h, mut h] = run.all_stale(n * f)?;
            gemm_gated_activation(act, x, gate, up, fused_g.as_mut(), fused_u.as_mut(), fused_h.as_mut())?;
            gated_activation(act, g.as_slice(), u.as_slice(), f, h.as_mut())?;
            let what = format!("gemm_gated_activation [{n}, {c}, {f}] {act:?}");
            let fused = [("g", fused_g), ("u", fused_u), ("h", fused_h)];
            same(run, &what, fused, [&g, &u, &h])?;
        }
    }
    Ok(())
}

pub fn gemm_gated_activation_backward_has_the_bits_of_both_kernels(run: &mut Run) -> Result<(), Error> {
    for [n, c, f] in run.sizes(&SMALL, &OF_A_CARD) {
        let [dy, down] = run.all_on([&wide(1, n * c), &uniform_bf16(2, c * f)])?;
        let (dy, down) = (Mat::new(dy.as_slice(), n, c), Mat::new(down.as_slice(), c, f));
        let [g, u] = run.all_on([&wide(3, n * f), &uniform_bf16(4, n * f)])?;
        let (g, u) = (g.as_slice(), u.as_slice());
        let mut dh = run.stale(n * f)?;
        gemm_bf16(dy, down, Beta::Zero, dh.as_mut())?;
        for (act, l1) in acts().into_iter().zip([0.0, 0.02, 0.03, 0.01]) {
            let [mut fused_dg, mut fused_du, mut fused_h] = run.all_stale(n * f)?;
            let outputs = (fused_dg.as_mut(), fused_du.as_mut(), fused_h.as_mut());
            gemm_gated_activation_backward(act, l1, dy, down, g, u, outputs.0, outputs.1, outputs.2)?;
            let [mut dg, mut du, mut h] = run.all_stale(n * f)?;
            let outputs = (dg.as_mut(), du.as_mut(), h.as_mut());
            gated_activation_backward(act, l1, dh.as_slice(), g, u, f, outputs.0, outputs.1, outputs.2)?;
            let what = format!("gemm_gated_activation_backward [{n}, {c}, {f}] {act:?} l1={l1}");
            let fused = [("dg", fused_dg), ("du", fused_du), ("h", fused_h)];
            same(run, &what, fused, [&dg, &du, &h])?;
        }
    }
    Ok(())
}
