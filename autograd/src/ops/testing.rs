//! What the gradient checks of several ops share.

use kernels::{Mat, reference};
use tensor::{Activation, Device, Fixed, MaskSite, Positive};

/// The CPU, and a GPU: the interpreter of its kernels.
pub fn devices() -> [Device; 2] {
    [Device::Cpu, gpu()]
}

/// A GPU alone: what takes bf16.
pub fn gpu() -> Device {
    Device::Cuda(cuda_testing::device())
}

/// Pairs of shapes that broadcast: equal, to more axes, both ways at once, scalars.
pub fn broadcast_shapes() -> impl Iterator<Item = (&'static [usize], &'static [usize])> {
    let pairs: [(&[usize], &[usize]); 8] = [
        (&[5], &[5]),
        (&[2, 3], &[3]),
        (&[2, 3], &[2, 1]),
        (&[1], &[2, 7]),
        (&[2, 1, 3], &[4, 1]),
        (&[], &[2, 3]),
        (&[3, 1], &[1, 5]),
        (&[2, 3, 4], &[1]),
    ];
    pairs.into_iter()
}

/// `f(a, b)` over the shape that both broadcast to, by NumPy's rule.
pub fn broadcast(a: (&[f32], &[usize]), b: (&[f32], &[usize]), f: impl Fn(f64, f64) -> f64) -> Vec<f64> {
    let rank = a.1.len().max(b.1.len());
    let extent = |shape: &[usize], axis: usize| (axis + shape.len()).checked_sub(rank).map_or(1, |i| shape[i]);
    let shape: Vec<usize> = (0..rank).map(|axis| extent(a.1, axis).max(extent(b.1, axis))).collect();
    let at = |(data, own): (&[f32], &[usize]), mut element: usize| {
        let (mut index, mut stride) = (0, 1);
        for axis in (0..rank).rev() {
            let position = element % shape[axis];
            element /= shape[axis];
            index += if extent(own, axis) == 1 { 0 } else { position * stride };
            stride *= extent(own, axis);
        }
        data[index] as f64
    };
    (0..shape.iter().product()).map(|i| f(at(a, i), at(b, i))).collect()
}

/// For `C = A B` and the gradient r of C: `|r| |B|^T` and `|A|^T |r|`, row-major like A and B.
pub fn product_sizes(a: Mat, b: Mat, r: &[f32]) -> Vec<Vec<f64>> {
    let r = Mat::new(r, a.rows(), b.cols());
    vec![reference::gemm(r, b.t()).1, reference::gemm(a.t(), r).1]
}

/// All activations; of the paper's pair p = 0.5 and the ends, and two other pairs.
pub fn activations() -> impl Iterator<Item = Activation> {
    let site = MaskSite { seed: 42, first_token: 1000, layer: 3, stream: 0, step: 7 };
    let stochastic = [0.0, 0.5, 1.0].map(|p| Activation::stochastic(p, site));
    let pairs = [
        Activation::pair(0.5, [Fixed::Relu, Fixed::Gelu], Positive::Silu, site),
        Activation::pair(0.3, [Fixed::Tanh, Fixed::Relu2], Positive::Identity, site),
    ];
    let fixed = [Fixed::Relu, Fixed::Silu, Fixed::Gelu, Fixed::Relu2, Fixed::Tanh].map(Activation::from);
    fixed.into_iter().chain(stochastic).chain(pairs)
}
