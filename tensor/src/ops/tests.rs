//! Every op gives the bits of its kernel, for contiguous operands and for views; what the kernels give is tested there.

use super::*;
use crate::{Activation, Beta, DType, Element, Fixed, MaskSite, Positive, Shape, Storage, Tensor};
use kernels::attention::{AttentionSaved, AttentionShape};
use kernels::rope::RopeShape;
use kernels::testing::{assert_within, dot_bound, uniform};
use kernels::{Team, reference};
use proptest::prelude::*;
use std::sync::Arc;

/// A view of these elements, every second one of its storage; those between are all ones, a NaN.
fn view<T: Element>(data: &[T], shape: impl Into<Shape>) -> Tensor {
    let shape = shape.into();
    let between: T = bytemuck::cast(u32::MAX);
    let spread: Vec<T> = data.iter().flat_map(|&x| [between, x]).collect();
    let mut x = Tensor::from_slice(&spread, [spread.len()]);
    let mut strides = shape.row_major_strides();
    for axis in 0..shape.rank() {
        strides = strides.with(axis, 2 * strides[axis]);
    }
    (x.shape, x.strides, x.offset) = (shape, strides, 1);
    assert_eq!(x.to_vec::<T>().unwrap().len(), data.len());
    x
}

/// The same elements as an op may meet them: contiguous, and as a view.
fn forms<T: Element>(data: &[T], shape: impl Into<Shape>) -> [Tensor; 2] {
    let shape = shape.into();
    [Tensor::from_slice(data, shape), view(data, shape)]
}

#[track_caller]
fn assert_bits(op: &str, x: &Tensor, expected: &[f32], shape: impl Into<Shape>) {
    assert_eq!(x.shape(), shape.into(), "{op}");
    let x = x.to_vec::<f32>().unwrap();
    for (i, (x, e)) in x.iter().zip(expected).enumerate() {
        assert!(x.to_bits() == e.to_bits(), "{op}: element {i} of {} is {x:e}, the kernel's is {e:e}", expected.len());
    }
    assert_eq!(x.len(), expected.len(), "{op}");
}

/// What a kernel writes into a destination of `len` elements.
fn written(len: usize, kernel: impl FnOnce(&mut [f32])) -> Vec<f32> {
    let mut dst = vec![f32::NAN; len];
    kernel(&mut dst);
    dst
}

fn team() -> Arc<Team> {
    Team::current()
}

#[test]
fn elementwise_ops_are_their_kernels() {
    use kernels::elementwise as kernel;
    let (a, b) = (uniform(1, 60), uniform(2, 60));
    type Binary = (&'static str, fn(&Tensor, &Tensor) -> Tensor, fn(&Team, &[f32], &[f32], &mut [f32]));
    let binaries: [Binary; 9] = [
        ("add", add, kernel::add),
        ("sub", sub, kernel::sub),
        ("mul", mul, kernel::mul),
        ("div", div, kernel::div),
        ("relu_backward", relu_backward, kernel::relu_backward),
        ("silu_backward", silu_backward, kernel::silu_backward),
        ("gelu_backward", gelu_backward, kernel::gelu_backward),
        ("relu2_backward", relu2_backward, kernel::relu2_backward),
        ("tanh_backward", tanh_backward, kernel::tanh_backward),
    ];
    for (name, op, kernel) in binaries {
        let expected = written(60, |dst| kernel(&team(), &a, &b, dst));
        for (a, b) in forms(&a, [3, 4, 5]).iter().zip(&forms(&b, [3, 4, 5])) {
            assert_bits(name, &op(a, b), &expected, [3, 4, 5]);
        }
    }
    type Unary = (&'static str, fn(&Tensor) -> Tensor, fn(&Team, &[f32], &mut [f32]));
    let unaries: [Unary; 8] = [
        ("exp", exp, kernel::exp),
        ("log", log, kernel::log),
        ("sigmoid", sigmoid, kernel::sigmoid),
        ("relu", relu, kernel::relu),
        ("silu", silu, kernel::silu),
        ("gelu", gelu, kernel::gelu),
        ("relu2", relu2, kernel::relu2),
        ("tanh", tanh, kernel::tanh),
    ];
    for (name, op, kernel) in unaries {
        let expected = written(60, |dst| kernel(&team(), &a, dst));
        for a in &forms(&a, [12, 5]) {
            assert_bits(name, &op(a), &expected, [12, 5]);
        }
    }
    let scaled = written(60, |dst| kernel::scale(&team(), 0.3, &a, dst));
    let mut sums = b.clone();
    kernel::axpy(&team(), 0.3, &a, &mut sums);
    for a in &forms(&a, [12, 5]) {
        assert_bits("scale", &scale(0.3, a), &scaled, [12, 5]);
        let mut dst = Tensor::from_slice(&b, [12, 5]);
        axpy(0.3, a, &mut dst);
        assert_bits("axpy", &dst, &sums, [12, 5]);
    }
}

#[test]
fn extents_of_zero_are_shapes_like_others() {
    for (m, k, n) in [(0, 3, 2), (2, 0, 3), (2, 3, 0), (0, 0, 0)] {
        let c = matmul(&Tensor::zeros([m, k]), &Tensor::zeros([n, k]).t());
        assert_bits("matmul", &c, &vec![0.0; m * n], [m, n]); // a sum of no products is 0
    }
    let nothing = Tensor::zeros([0, 4]);
    let (y, inv_rms) = super::rms_norm(&nothing, &Tensor::full(1.0, [4]), 1e-5);
    assert_eq!((y.shape(), inv_rms.shape()), ([0, 4].into(), [0].into()));
    let no_tokens = Tensor::from_slice::<u32>(&[], [0]);
    assert_eq!(super::embedding(&Tensor::zeros([3, 4]), &no_tokens).shape(), [0, 4].into());
    assert_eq!(super::lm_head_loss(&nothing, &Tensor::zeros([3, 4]), &no_tokens), 0.0);
    assert_eq!(super::gated_activation(Activation::Relu, &nothing, &nothing).shape(), [0, 4].into());
    assert_eq!((sum(&nothing).item(), sum_abs(&nothing), sum_squares(&nothing)), (0.0, 0.0, 0.0));
    let (exp_of_nothing, mut dst) = (exp(&nothing), Tensor::zeros([0, 4]));
    axpy(1.0, &exp_of_nothing, &mut dst);
    let mut counts = Tensor::from_slice(&[2u32; 4], [4]);
    count_positive(&nothing, &mut counts);
    assert_eq!(counts.to_vec::<u32>().unwrap(), [2; 4]);
}

#[test]
fn add_to_range_adds_where_narrow_reads() {
    let (x, old) = (uniform(1, 3 * 2 * 5), uniform(2, 3 * 4 * 5));
    for (axis, start, shape, range) in
        [(1, 1, [3, 2, 5], [3, 4, 5]), (0, 0, [3, 2, 5], [6, 2, 5]), (2, 1, [3, 5, 2], [3, 5, 4])]
    {
        for x in &forms(&x, shape) {
            let mut dst = Tensor::from_slice(&old, range);
            add_to_range(x, axis, start, &mut dst);
            let before = Tensor::from_slice(&old, range);
            let expected = add(&before.narrow(axis, start, x.dim(axis)), x);
            assert_bits("add_to_range", &dst.narrow(axis, start, x.dim(axis)), &expected.to_vec().unwrap(), shape);
            // Outside the range nothing changes.
            for (outside, len) in [(0, start), (start + x.dim(axis), range[axis] - start - x.dim(axis))] {
                let (now, then) = (dst.narrow(axis, outside, len), before.narrow(axis, outside, len));
                assert_bits("add_to_range", &now, &then.to_vec().unwrap(), then.shape());
            }
        }
    }
}

#[test]
fn binary_ops_broadcast_both_operands() {
    let (a, b) = (uniform(1, 3 * 5), uniform(2, 4 * 5));
    let quotient = |i: usize| a[i / 20 * 5 + i % 5] / b[i % 20];
    let expected: Vec<f32> = (0..60).map(quotient).collect();
    for (a, b) in forms(&a, [3, 1, 5]).iter().zip(&forms(&b, [4, 5])) {
        assert_bits("div", &div(a, b), &expected, [3, 4, 5]);
    }
    let scaled: Vec<f32> = a.iter().map(|x| x - 2.0).collect();
    assert_bits("sub", &sub(&Tensor::from_slice(&a, [15]), &Tensor::scalar(2.0)), &scaled, [15]);
    assert_eq!(add(&Tensor::zeros([0, 3]), &Tensor::zeros([1])).shape(), [0, 3].into());
}

#[test]
fn matmul_is_the_product_for_all_strides() {
    let (m, k, n) = (7, 13, 5);
    let (a, b) = (uniform(1, m * k), uniform(2, k * n));
    let transposed = |x: &[f32], rows: usize, cols: usize| -> Vec<f32> {
        (0..rows * cols).map(|i| x[i % rows * cols + i / rows]).collect()
    };
    let a_t = transposed(&a, m, k);
    let b_t = transposed(&b, k, n);
    let (product, abs) = reference::gemm(kernels::Mat::new(&a, m, k), kernels::Mat::new(&b, k, n));
    let [a1, a2] = forms(&a, [m, k]);
    let [b1, b2] = forms(&b, [k, n]);
    let [a3, b3] = [Tensor::from_slice(&a_t, [k, m]).t(), Tensor::from_slice(&b_t, [n, k]).t()];
    for (i, a) in [&a1, &a2, &a3].into_iter().enumerate() {
        for (j, b) in [&b1, &b2, &b3].into_iter().enumerate() {
            let c = matmul(a, b);
            assert_eq!(c.shape(), [m, n].into());
            let what = format!("matmul of forms {i} and {j}");
            assert_within(&what, c.slice(), &product, |e| dot_bound(k, abs[e]));
            // Into a destination whose rows are two axes, over old values.
            let old = uniform(3, m * n);
            let mut c = Tensor::from_slice(&old, [1, m, n]);
            matmul_into(a, b, Beta::One, &mut c);
            let sums: Vec<f64> = product.iter().zip(&old).map(|(p, &o)| p + o as f64).collect();
            assert_within(&what, c.slice(), &sums, |e| dot_bound(k + 1, abs[e] + old[e].abs() as f64));
            matmul_into(a, b, Beta::Zero, &mut c);
            assert_within(&what, c.slice(), &product, |e| dot_bound(k, abs[e]));
        }
    }
}

#[test]
fn rms_norm_is_its_kernel() {
    let (n, c, eps) = (6, 10, 1e-5);
    let (x, weight, dy, old) = (uniform(1, n * c), uniform(2, c), uniform(3, n * c), uniform(4, n * c));
    let (mut y, mut inv_rms) = (vec![0.0; n * c], vec![0.0; n]);
    kernels::rms_norm::rms_norm(&team(), &x, &weight, eps, &mut y, &mut inv_rms);
    let (mut dx, mut d_weight) = (old.clone(), vec![0.5; c]);
    let (dx_s, dw_s) = (&mut dx, &mut d_weight);
    kernels::rms_norm::rms_norm_backward(&team(), &dy, &x, &weight, &inv_rms, Beta::One, dx_s, dw_s);
    for i in 0..2 {
        let shape = [2, 3, c];
        let [x, dy] = [&x, &dy].map(|data| forms(data, shape)[i].clone());
        let weight = &forms(&weight, [c])[i];
        let (y_op, inv_rms_op) = super::rms_norm(&x, weight, eps);
        assert_bits("rms_norm", &y_op, &y, shape);
        assert_bits("rms_norm", &inv_rms_op, &inv_rms, [n]);
        let (mut dx_op, mut dw_op) = (Tensor::from_slice(&old, shape), Tensor::full(0.5, [c]));
        let inv_rms = &forms(&inv_rms, [n])[i];
        super::rms_norm_backward(&dy, &x, weight, inv_rms, Beta::One, &mut dx_op, &mut dw_op);
        assert_bits("rms_norm_backward", &dx_op, &dx, shape);
        assert_bits("rms_norm_backward", &dw_op, &d_weight, [c]);
    }
}

#[test]
fn rope_is_its_kernel() {
    let (x, cos, sin) = (uniform(1, 2 * 3 * 4 * 6), uniform(2, 9 * 3), uniform(3, 9 * 3));
    let shape = RopeShape { n_heads: 4, head_dim: 6, seq_len: 3, first_position: 5 };
    for rotation in [Rotation::Forward, Rotation::Backward] {
        let expected = written(x.len(), |y| kernels::rope::rope(&team(), &x, &cos, &sin, shape, rotation, y));
        for i in 0..2 {
            let (cos, sin) = (&forms(&cos, [9, 3])[i], &forms(&sin, [9, 3])[i]);
            let y = super::rope(&forms(&x, [2, 3, 4, 6])[i], cos, sin, 5, rotation);
            assert_bits("rope", &y, &expected, [2, 3, 4, 6]);
        }
    }
}

#[test]
fn attention_is_its_kernel() {
    use kernels::attention as kernel;
    let shape = AttentionShape { batch: 2, q_len: 3, kv_len: 5, n_heads: 4, n_kv_heads: 2, head_dim: 8 };
    let (q_dims, kv_dims) = ([2, 3, 4, 8], [2, 5, 2, 8]);
    let (n_q, n_kv) = (shape.q_elements(), shape.kv_elements());
    let (q, k, v, d_out) = (uniform(1, n_q), uniform(2, n_kv), uniform(3, n_kv), uniform(4, n_q));
    let (mut out, mut lse) = (vec![0.0; n_q], vec![0.0; shape.lse_elements()]);
    kernel::attention(&team(), shape, 0.35, &q, &k, &v, &mut out, &mut lse);
    let saved = AttentionSaved { q: &q, k: &k, v: &v, out: &out, lse: &lse };
    let [mut dq, mut dk, mut dv] = [vec![0.0; n_q], vec![0.0; n_kv], vec![0.0; n_kv]];
    kernel::attention_backward(&team(), shape, 0.35, saved, &d_out, Beta::Zero, &mut dq, &mut dk, &mut dv);
    for i in 0..2 {
        let [q, d_out] = [&q, &d_out].map(|data| forms(data, q_dims)[i].clone());
        let [k, v] = [&k, &v].map(|data| forms(data, kv_dims)[i].clone());
        let forward = super::attention(&q, &k, &v, 0.35);
        assert_bits("attention", &forward.out, &out, q_dims);
        assert_bits("attention", &forward.lse, &lse, [2, 4, 3]);
        let forward = Attention { out: forms(&out, q_dims)[i].clone(), lse: forms(&lse, [2, 4, 3])[i].clone() };
        let (dq_op, dk_op, dv_op) = super::attention_backward(&d_out, &q, &k, &v, &forward, 0.35);
        assert_bits("attention_backward", &dq_op, &dq, q_dims);
        assert_bits("attention_backward", &dk_op, &dk, kv_dims);
        assert_bits("attention_backward", &dv_op, &dv, kv_dims);
    }
}

#[test]
fn gated_activation_is_its_kernel() {
    use kernels::activation as kernel;
    let site = MaskSite { seed: 7, first_token: 3, layer: 1, stream: 0, step: 9 };
    let d_ff = 20;
    let (g, u, dh) = (uniform(1, 6 * d_ff), uniform(2, 6 * d_ff), uniform(3, 6 * d_ff));
    let pair = Activation::pair(0.4, [Fixed::Gelu, Fixed::Tanh], Positive::Silu, site);
    let acts = [Activation::Relu, Activation::Silu, Activation::Relu2, Activation::stochastic(0.4, site), pair];
    for (act, l1) in acts.into_iter().zip([0.0, 0.5, 0.0, 0.25, 0.0]) {
        let h = written(g.len(), |h| kernel::gated_activation(&team(), act, &g, &u, d_ff, h));
        let [mut dg, mut du, mut h_again] = [(); 3].map(|_| vec![0.0; g.len()]);
        let (dg_s, du_s, h_s) = (&mut dg, &mut du, &mut h_again);
        kernel::gated_activation_backward(&team(), act, l1, &dh, &g, &u, d_ff, dg_s, du_s, h_s);
        for i in 0..2 {
            let shape = [2, 3, d_ff];
            let [g, u, dh] = [&g, &u, &dh].map(|data| forms(data, shape)[i].clone());
            assert_bits("gated_activation", &super::gated_activation(act, &g, &u), &h, shape);
            let GatedGradients { dg: dg_op, du: du_op, h: h_op } =
                super::gated_activation_backward(act, l1, &dh, &g, &u);
            assert_bits("gated_activation_backward", &dg_op, &dg, shape);
            assert_bits("gated_activation_backward", &du_op, &du, shape);
            assert_bits("gated_activation_backward", &h_op, &h_again, shape);
        }
    }
}

#[test]
fn embedding_is_its_kernel() {
    use kernels::embedding as kernel;
    let (table, tokens, d_out) = (uniform(1, 7 * 4), [6u32, 0, 3, 3, 1, 6], uniform(2, 6 * 4));
    let out = written(24, |out| kernel::embedding(&team(), &table, &tokens, 4, out));
    let mut d_table = uniform(3, 7 * 4);
    kernel::embedding_backward(&team(), &d_out, &tokens, 4, &mut d_table);
    for i in 0..2 {
        let tokens = &forms(&tokens, [2, 3])[i];
        assert_bits("embedding", &super::embedding(&forms(&table, [7, 4])[i], tokens), &out, [2, 3, 4]);
        let mut d_table_op = Tensor::from_slice(&uniform(3, 7 * 4), [7, 4]);
        super::embedding_backward(&forms(&d_out, [2, 3, 4])[i], tokens, &mut d_table_op);
        assert_bits("embedding_backward", &d_table_op, &d_table, [7, 4]);
    }
}

#[test]
fn lm_head_loss_is_its_kernel() {
    use kernels::lm_head_loss as kernel;
    let (c, scale) = (4, 0.25);
    let (x, w, targets) = (uniform(1, 6 * c), uniform(2, 9 * c), [0u32, 8, 3, 3, 1, 5]);
    let loss = kernel::lm_head_loss(&team(), &x, &w, &targets, c);
    let (mut dx, mut dw) = (vec![0.0; x.len()], uniform(3, w.len()));
    let loss_again = kernel::lm_head_loss_backward(&team(), &x, &w, &targets, c, scale, &mut dx, Beta::One, &mut dw);
    for i in 0..2 {
        let [x, w, targets] = [&forms(&x, [2, 3, c])[i], &forms(&w, [9, c])[i], &forms(&targets, [2, 3])[i]];
        assert_eq!(super::lm_head_loss(x, w, targets).to_bits(), loss.to_bits(), "lm_head_loss");
        let mut dw_op = Tensor::from_slice(&uniform(3, 9 * c), [9, c]);
        let op = super::lm_head_loss_backward(x, w, targets, scale, Beta::One, &mut dw_op);
        assert_eq!(op.loss.to_bits(), loss_again.to_bits(), "lm_head_loss_backward");
        assert_bits("lm_head_loss_backward", &op.dx, &dx, [2, 3, c]);
        assert_bits("lm_head_loss_backward", &dw_op, &dw, [9, c]);
    }
}

#[test]
fn adamw_is_its_kernel() {
    let step = AdamW { lr: 0.01, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step: 3, grad_scale: 0.5 };
    let (param, grad, m) = (uniform(1, 12), uniform(2, 12), uniform(3, 12));
    let v: Vec<f32> = uniform(4, 12).iter().map(|x| x.abs()).collect();
    let (mut param_k, mut m_k, mut v_k) = (param.clone(), m.clone(), v.clone());
    kernels::adamw::adamw(&team(), &step, &mut param_k, &grad, &mut m_k, &mut v_k);
    for grad in &forms(&grad, [3, 4]) {
        let [mut param, mut m, mut v] = [&param, &m, &v].map(|data| Tensor::from_slice(data, [3, 4]));
        super::adamw(&step, &mut param, grad, &mut m, &mut v);
        assert_bits("adamw", &param, &param_k, [3, 4]);
        assert_bits("adamw", &m, &m_k, [3, 4]);
        assert_bits("adamw", &v, &v_k, [3, 4]);
    }
}

#[test]
fn reductions_are_their_kernels() {
    use kernels::reduce as kernel;
    let x = uniform(1, 60);
    let mut counts = vec![3u32; 5];
    kernel::count_positive(&team(), &x, &mut counts);
    for x_op in &forms(&x, [3, 4, 5]) {
        assert_bits("sum", &sum(x_op), &[kernel::sum(&team(), &x) as f32], []);
        assert_eq!(sum_squares(x_op).to_bits(), kernel::sum_squares(&team(), &x).to_bits(), "sum_squares");
        assert_eq!(sum_abs(x_op).to_bits(), kernel::sum_abs(&team(), &x).to_bits(), "sum_abs");
        let mut counts_op = Tensor::from_slice(&[3u32; 5], [5]);
        count_positive(x_op, &mut counts_op);
        assert_eq!(counts_op.to_vec::<u32>().unwrap(), counts, "count_positive");
        assert_eq!(first_non_finite(x_op), None);
    }
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = x.clone();
        (x[17], x[40]) = (bad, f32::NAN);
        for x in &forms(&x, [3, 4, 5]) {
            assert_eq!(first_non_finite(x), Some(17), "first_non_finite: {bad}");
        }
    }
    assert_eq!(first_non_finite(&Tensor::zeros([0, 3])), None);
}

proptest! {
    /// `<broadcast_to(x), y> = <x, sum_to(y)>`, and each sum is over the elements that broadcasting repeats. Small integers:
    /// exact in f32.
    #[test]
    fn sum_to_is_the_transpose_of_broadcast_to(
        dims in proptest::collection::vec(0usize..4, 0..=5),
        lead in 0usize..6,
        ones in any::<u8>(),
        seed in 0u64..1000,
        as_view in any::<bool>(),
    ) {
        let small: Vec<usize> = dims.iter().enumerate().skip(lead.min(dims.len()))
            .map(|(axis, &n)| if ones >> axis & 1 == 1 { 1 } else { n }).collect();
        let integers = |seed, n| -> Vec<f32> { uniform(seed, n).iter().map(|x| (x * 8.0).round()).collect() };
        let (x, y) = (integers(seed, small.iter().product()), integers(seed + 1, dims.iter().product()));
        let (x_t, y_t) = (Tensor::from_slice(&x, &small[..]), &forms(&y, &dims[..])[as_view as usize]);
        let repeated = x_t.broadcast_to(&dims[..]).to_vec::<f32>().unwrap();
        let sums = sum_to(y_t, &small[..]);
        prop_assert_eq!(&*sums.shape(), &small[..]);
        let dot = |a: &[f32], b: &[f32]| -> f32 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
        prop_assert_eq!(dot(&repeated, &y), dot(&x, &sums.to_vec::<f32>().unwrap()));

        // Which element of x each element of the larger shape repeats, from the op itself: the sums one by one.
        let places = Tensor::from_slice(&(0..x.len() as u32).collect::<Vec<_>>(), &small[..]).broadcast_to(&dims[..]);
        let mut expected = vec![0.0; x.len()];
        places.to_vec::<u32>().unwrap().iter().zip(&y).for_each(|(&at, y)| expected[at as usize] += y);
        prop_assert_eq!(sums.to_vec::<f32>().unwrap(), expected);
    }
}

#[test]
fn a_stale_tensor_shows_as_nan_and_a_result_does_not() {
    assert!(Tensor::stale([3, 5], DType::F32).to_vec::<f32>().unwrap().iter().all(|x| x.is_nan()));
    assert_eq!(first_non_finite(&add(&Tensor::zeros([3, 5]), &Tensor::full(1.0, [5]))), None);
}

#[test]
fn a_tensor_goes_to_a_gpu_and_back_or_the_probe_says_why_there_is_none() {
    match cuda::Device::new(0) {
        Err(error) => {
            // Without a GPU there is no `Device::Cuda` to be had, and so no tensor on one.
            assert_eq!(error, cuda::probe().unwrap_err());
            assert!(error.to_string().contains("NVIDIA driver"), "{error}");
        }
        Ok(gpu) => {
            let (gpu, data) = (crate::Device::Cuda(gpu), uniform(1, 12));
            for x in &forms(&data, [3, 4]) {
                let there = x.to_device(&gpu).unwrap();
                assert!(there.device() == gpu && matches!(there.storage(), Storage::Cuda(_)));
                assert_eq!(there.to_vec::<f32>().unwrap(), data);
                assert_eq!(
                    there.narrow(0, 1, 2).t().to_vec::<f32>().unwrap(),
                    x.narrow(0, 1, 2).t().to_vec::<f32>().unwrap()
                );
            }
        }
    }
    let x = Tensor::zeros([2]);
    assert_eq!(x.to_device(&crate::Device::Cpu).unwrap().to_vec::<f32>().unwrap(), [0.0; 2]);
}
