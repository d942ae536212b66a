//! Shapes that do not fit are refused before anything is launched, by the line of the caller, with the op and the shapes.

use cuda::Buffer;
use cuda::ops::attention::attention;
use cuda::ops::elementwise::add;
use cuda::ops::gemm::Mat;
use cuda::ops::gemm_bf16::gemm_bf16;
use cuda::ops::gemm_gated_activation::{gemm_gated_activation, gemm_gated_activation_backward};
use cuda::ops::strided::gather;
use cuda_testing::{device, on, stale};
use half::bf16;
use kernels::attention::AttentionShape;
use kernels::testing::uniform_bf16;
use kernels::{Activation, Beta};

#[test]
#[should_panic(expected = "add: input 1 has 3 elements, dst 4")]
fn lengths_of_elementwise_operands_must_agree() {
    let device = device();
    let (a, b, mut dst) = (on(&device, &[0.0; 4]), on(&device, &[0.0; 3]), stale(&device, 4));
    let _ = add(a.as_slice(), b.as_slice(), dst.as_mut());
}

#[test]
#[should_panic(expected = "gather: extents [2, 3] with strides [3, 1] of 5 elements")]
fn gather_stays_inside() {
    let device = device();
    let _ = gather(on(&device, &[0u32; 5]).as_slice(), &[2, 3], &[3, 1], stale(&device, 6).as_mut());
}

#[test]
#[should_panic(
    expected = "gemm_bf16: A [2, 3] x B [4, 5] into C of 10 elements: A's columns must be B's rows, and C [2, 5]"
)]
fn shapes_of_gemm_must_fit() {
    let device = device();
    let (a, b) = (on(&device, &uniform_bf16(1, 6)), on(&device, &uniform_bf16(1, 20)));
    let mut c: Buffer<f32> = stale(&device, 10);
    let _ = gemm_bf16(Mat::new(a.as_slice(), 2, 3), Mat::new(b.as_slice(), 4, 5), Beta::Zero, c.as_mut());
}

#[test]
#[should_panic(expected = "gemm_gated_activation: gate_proj [4, 8], up_proj [2, 8]")]
fn projections_of_gemm_gated_activation_have_one_shape() {
    let device = device();
    let [x, gate, up] = [2, 4, 2].map(|rows| on(&device, &uniform_bf16(1, rows * 8)));
    let [mut g, mut u, mut h] = [8, 4, 8].map(|len| stale::<bf16>(&device, len));
    let (x, gate, up) = (Mat::new(x.as_slice(), 2, 8), Mat::new(gate.as_slice(), 4, 8), Mat::new(up.as_slice(), 2, 8));
    let outputs = (g.as_mut(), u.as_mut(), h.as_mut());
    let _ = gemm_gated_activation(Activation::Relu, x, gate, up, outputs.0, outputs.1, outputs.2);
}

#[test]
#[should_panic(expected = "gemm_gated_activation_backward: a matrix is transposed: expected the product NN, not NT")]
fn matrices_of_fused_products_are_as_they_lie_in_memory() {
    let device = device();
    let [dy, down, g] = [(); 3].map(|_| on(&device, &uniform_bf16(1, 64)));
    let [mut dg, mut du, mut h] = [(); 3].map(|_| stale::<bf16>(&device, 64));
    let (dy, down) = (Mat::new(dy.as_slice(), 8, 8), Mat::new(down.as_slice(), 8, 8).t());
    let (outputs, g) = ((dg.as_mut(), du.as_mut(), h.as_mut()), g.as_slice());
    let _ = gemm_gated_activation_backward(Activation::Relu, 0.0, dy, down, g, g, outputs.0, outputs.1, outputs.2);
}

fn heads(q_len: usize, head_dim: usize) -> AttentionShape {
    AttentionShape { batch: 1, q_len, kv_len: q_len, n_heads: 1, n_kv_heads: 1, head_dim }
}

#[test]
#[should_panic(expected = "attention: out has 15 elements for [1, 2, 1, 8]")]
fn shapes_of_attention_must_fit() {
    let device = device();
    let (x, mut out, mut lse) = (on(&device, &[0.0f32; 16]), stale(&device, 15), stale(&device, 2));
    let (x, lse) = (x.as_slice(), lse.as_mut());
    let _ = attention(heads(2, 8), 1.0, x, x, x, out.as_mut(), lse);
}

#[test]
#[should_panic(expected = "attention: heads of 136, at most 128 on a GPU")]
fn attention_heads_beyond_128_are_refused() {
    let device = device();
    let (x, mut out, mut lse) = (on(&device, &[0.0f32; 136]), stale(&device, 136), stale(&device, 1));
    let (x, lse) = (x.as_slice(), lse.as_mut());
    let _ = attention(heads(1, 136), 1.0, x, x, x, out.as_mut(), lse);
}
