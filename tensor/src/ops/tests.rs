//! Every op gives the bits of its kernel on the CPU, for contiguous operands and for views; what the kernels give is tested there.
//! On a GPU, here the interpreter of the kernels' PTX, it gives the CPU's bits where the kernels promise that (see docs/cuda.md), and else
//! is within twice the kernels' bounds of the CPU's result: each is within one of the exact one.

use super::*;
use crate::{Activation, Beta, Device, Element, Fixed, MaskSite, Positive, Shape};
use kernels::attention::{AttentionSaved, AttentionShape};
use kernels::rope::RopeShape;
use kernels::testing::{ROUNDING, assert_within, dot_bound, uniform};
use kernels::{Isa, Level, reference};
use proptest::prelude::*;
use std::sync::OnceLock;

/// A device, and the team whose bits its exact kernels have.
struct On {
    device: Device,
    team: Arc<Team>,
}

/// The CPU, and the interpreter where there is a level with fused multiply-adds to compare it with.
fn everywhere() -> Vec<On> {
    let gpu = Level::new(Isa::Avx2).ok().map(|level| {
        let device = Device::Cuda(cuda_testing::device());
        On { device, team: Arc::new(Team::serial(level)) }
    });
    [On { device: Device::Cpu, team: Team::current() }].into_iter().chain(gpu).collect()
}

/// The same devices for all cases of a property.
fn everywhere_once() -> &'static [On] {
    static ALL: OnceLock<Vec<On>> = OnceLock::new();
    ALL.get_or_init(everywhere)
}

impl On {
    /// A contiguous tensor of these elements.
    fn dense<T: Element>(&self, data: &[T], shape: impl Into<Shape>) -> Tensor {
        Tensor::from_slice(data, shape).to_device(&self.device).unwrap()
    }

    fn zeros(&self, shape: impl Into<Shape>) -> Tensor {
        Tensor::zeros_on(&self.device, shape)
    }

    /// A view of these elements, every second one of its storage; those between are all ones, a NaN.
    fn view<T: Element>(&self, data: &[T], shape: impl Into<Shape>) -> Tensor {
        let shape = shape.into();
        let between: T = bytemuck::pod_read_unaligned(&[u8::MAX; 4][..size_of::<T>()]);
        let spread: Vec<T> = data.iter().flat_map(|&x| [between, x]).collect();
        let mut x = self.dense(&spread, [spread.len()]);
        let mut strides = shape.row_major_strides();
        for axis in 0..shape.rank() {
            strides = strides.with(axis, 2 * strides[axis]);
        }
        (x.shape, x.strides, x.offset) = (shape, strides, 1);
        assert_eq!(x.to_vec::<T>().unwrap().len(), data.len());
        x
    }

    /// The same elements as an op may meet them: contiguous, and as a view.
    fn forms<T: Element>(&self, data: &[T], shape: impl Into<Shape>) -> [Tensor; 2] {
        let shape = shape.into();
        [self.dense(data, shape), self.view(data, shape)]
    }

    /// The bits of the CPU's kernel.
    #[track_caller]
    fn assert_bits(&self, op: &str, x: &Tensor, expected: &[f32], shape: impl Into<Shape>) {
        assert!(x.device() == self.device, "{op}: on {:?}, the operands on {:?}", x.device(), self.device);
        assert_eq!(x.shape(), shape.into(), "{op} on {:?}", self.device);
        let x = x.to_vec::<f32>().unwrap();
        for (i, (x, e)) in x.iter().zip(expected).enumerate() {
            let n = expected.len();
            assert!(
                x.to_bits() == e.to_bits(),
                "{op} on {:?}: element {i} of {n}: {x:e}, the kernel's {e:e}",
                self.device
            );
        }
        assert_eq!(x.len(), expected.len(), "{op}");
    }

    /// On the CPU the bits of its kernel, elsewhere within twice `bound` of them.
    #[track_caller]
    fn assert_close(
        &self,
        op: &str,
        x: &Tensor,
        expected: &[f32],
        shape: impl Into<Shape>,
        bound: impl Fn(usize) -> f64,
    ) {
        let shape = shape.into();
        if let Device::Cpu = self.device {
            return self.assert_bits(op, x, expected, shape);
        }
        assert!(
            x.device() == self.device && x.shape() == shape,
            "{op}: {x:?}, expected shape {shape} on {:?}",
            self.device
        );
        let expected: Vec<f64> = expected.iter().map(|&e| e as f64).collect();
        assert_within(op, &x.to_vec::<f32>().unwrap(), &expected, |i| 2.0 * bound(i));
    }

    /// The same for a number in f64.
    #[track_caller]
    fn assert_number(&self, op: &str, x: f64, expected: f64, bound: f64) {
        match self.device {
            Device::Cpu => assert_eq!(x.to_bits(), expected.to_bits(), "{op}"),
            Device::Cuda(_) => {
                assert!((x - expected).abs() <= 2.0 * bound, "{op}: {x} on a GPU, {expected} on the CPU")
            }
        }
    }
}

/// What a kernel writes into a destination of `len` elements.
fn written(len: usize, kernel: impl FnOnce(&mut [f32])) -> Vec<f32> {
    let mut dst = vec![f32::NAN; len];
    kernel(&mut dst);
    dst
}

#[test]
fn elementwise_ops_are_their_kernels() {
    for on in everywhere() {
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
            let expected = written(60, |dst| kernel(&on.team, &a, &b, dst));
            for (a, b) in on.forms(&a, [3, 4, 5]).iter().zip(&on.forms(&b, [3, 4, 5])) {
                on.assert_bits(name, &op(a, b), &expected, [3, 4, 5]);
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
            // Below 0 a logarithm is NaN everywhere, and no number to be near to.
            let a: Vec<f32> = a.iter().map(|&a| if name == "log" { a.abs() } else { a }).collect();
            let expected = written(60, |dst| kernel(&on.team, &a, dst));
            for a in &on.forms(&a, [12, 5]) {
                // ln is computed in f64 on both, not by the same steps: either may be the float that the exact value is nearest to.
                let of_log = |i: usize| f64::from(name == "log") * 1.02 * ROUNDING * expected[i].abs() as f64;
                on.assert_close(name, &op(a), &expected, [12, 5], of_log);
            }
        }
        let scaled = written(60, |dst| kernel::scale(&on.team, 0.3, &a, dst));
        let mut sums = b.clone();
        kernel::axpy(&on.team, 0.3, &a, &mut sums);
        for a in &on.forms(&a, [12, 5]) {
            on.assert_bits("scale", &scale(0.3, a), &scaled, [12, 5]);
            let mut dst = on.dense(&b, [12, 5]);
            axpy(0.3, a, &mut dst);
            on.assert_bits("axpy", &dst, &sums, [12, 5]);
        }
    }
}

#[test]
fn extents_of_zero_are_shapes_like_others() {
    for on in everywhere() {
        for (m, k, n) in [(0, 3, 2), (2, 0, 3), (2, 3, 0), (0, 0, 0)] {
            let c = matmul(&on.zeros([m, k]), &on.zeros([n, k]).t());
            on.assert_bits("matmul", &c, &vec![0.0; m * n], [m, n]); // a sum of no products is 0
        }
        let nothing = on.zeros([0, 4]);
        let (y, inv_rms) = super::rms_norm(&nothing, &Tensor::full_on(&on.device, 1.0, [4]), 1e-5);
        assert_eq!((y.shape(), inv_rms.shape()), ([0, 4].into(), [0].into()));
        let no_tokens = on.dense::<u32>(&[], [0]);
        assert_eq!(super::embedding(&on.zeros([3, 4]), &no_tokens).shape(), [0, 4].into());
        assert_eq!(super::lm_head_loss(&nothing, &on.zeros([3, 4]), &no_tokens).value(), 0.0);
        assert_eq!(super::gated_activation(Activation::Relu, &nothing, &nothing).shape(), [0, 4].into());
        let mut total = Total::zero(&on.device);
        sum_abs(&nothing, &mut total);
        sum_squares(&nothing, &mut total);
        assert_eq!((sum(&nothing).item(), total.value()), (0.0, 0.0));
        let (exp_of_nothing, mut dst) = (exp(&nothing), on.zeros([0, 4]));
        axpy(1.0, &exp_of_nothing, &mut dst);
        let mut counts = on.dense(&[2u32; 4], [4]);
        count_positive(&nothing, &mut counts);
        assert_eq!(counts.to_vec::<u32>().unwrap(), [2; 4]);
    }
}

#[test]
fn add_to_range_adds_where_narrow_reads() {
    for on in everywhere() {
        let (x, old) = (uniform(1, 3 * 2 * 5), uniform(2, 3 * 4 * 5));
        for (axis, start, shape, range) in
            [(1, 1, [3, 2, 5], [3, 4, 5]), (0, 0, [3, 2, 5], [6, 2, 5]), (2, 1, [3, 5, 2], [3, 5, 4])]
        {
            for x in &on.forms(&x, shape) {
                let mut dst = on.dense(&old, range);
                add_to_range(x, axis, start, &mut dst);
                let before = on.dense(&old, range);
                let expected = add(&before.narrow(axis, start, x.dim(axis)), x);
                on.assert_bits(
                    "add_to_range",
                    &dst.narrow(axis, start, x.dim(axis)),
                    &expected.to_vec().unwrap(),
                    shape,
                );
                // Outside the range nothing changes.
                for (outside, len) in [(0, start), (start + x.dim(axis), range[axis] - start - x.dim(axis))] {
                    let (now, then) = (dst.narrow(axis, outside, len), before.narrow(axis, outside, len));
                    on.assert_bits("add_to_range", &now, &then.to_vec().unwrap(), then.shape());
                }
            }
        }
    }
}

#[test]
fn binary_ops_broadcast_both_operands() {
    for on in everywhere() {
        let (a, b) = (uniform(1, 3 * 5), uniform(2, 4 * 5));
        let quotient = |i: usize| a[i / 20 * 5 + i % 5] / b[i % 20];
        let expected: Vec<f32> = (0..60).map(quotient).collect();
        for (a, b) in on.forms(&a, [3, 1, 5]).iter().zip(&on.forms(&b, [4, 5])) {
            on.assert_bits("div", &div(a, b), &expected, [3, 4, 5]);
        }
        let scaled: Vec<f32> = a.iter().map(|x| x - 2.0).collect();
        on.assert_bits("sub", &sub(&on.dense(&a, [15]), &Tensor::full_on(&on.device, 2.0, [])), &scaled, [15]);
        assert_eq!(add(&on.zeros([0, 3]), &on.zeros([1])).shape(), [0, 3].into());
    }
}

#[test]
fn matmul_is_the_product_for_all_strides() {
    for on in everywhere() {
        let (m, k, n) = (7, 13, 5);
        let (a, b) = (uniform(1, m * k), uniform(2, k * n));
        let transposed = |x: &[f32], rows: usize, cols: usize| -> Vec<f32> {
            (0..rows * cols).map(|i| x[i % rows * cols + i / rows]).collect()
        };
        let a_t = transposed(&a, m, k);
        let b_t = transposed(&b, k, n);
        let (product, abs) = reference::gemm(kernels::Mat::new(&a, m, k), kernels::Mat::new(&b, k, n));
        let [a1, a2] = on.forms(&a, [m, k]);
        let [b1, b2] = on.forms(&b, [k, n]);
        let [a3, b3] = [on.dense(&a_t, [k, m]).t(), on.dense(&b_t, [n, k]).t()];
        for (i, a) in [&a1, &a2, &a3].into_iter().enumerate() {
            for (j, b) in [&b1, &b2, &b3].into_iter().enumerate() {
                let c = matmul(a, b);
                assert_eq!(c.shape(), [m, n].into());
                let what = format!("matmul of forms {i} and {j} on {:?}", on.device);
                assert_within(&what, &c.to_vec::<f32>().unwrap(), &product, |e| dot_bound(k, abs[e]));
                // Into a destination whose rows are two axes, over old values.
                let old = uniform(3, m * n);
                let mut c = on.dense(&old, [1, m, n]);
                matmul_into(a, b, Beta::One, &mut c);
                let sums: Vec<f64> = product.iter().zip(&old).map(|(p, &o)| p + o as f64).collect();
                assert_within(&what, &c.to_vec::<f32>().unwrap(), &sums, |e| {
                    dot_bound(k + 1, abs[e] + old[e].abs() as f64)
                });
                matmul_into(a, b, Beta::Zero, &mut c);
                assert_within(&what, &c.to_vec::<f32>().unwrap(), &product, |e| dot_bound(k, abs[e]));
            }
        }
    }
}

#[test]
fn rms_norm_is_its_kernel() {
    for on in everywhere() {
        let (n, c, eps) = (6, 10, 1e-5);
        let (x, weight, dy, old) = (uniform(1, n * c), uniform(2, c), uniform(3, n * c), uniform(4, n * c));
        let (mut y, mut inv_rms) = (vec![0.0; n * c], vec![0.0; n]);
        kernels::rms_norm::rms_norm(&on.team, &x, &weight, eps, &mut y, &mut inv_rms);
        let (_, _, abs) = reference::rms_norm_backward(&dy, &x, &weight, &inv_rms);
        let (mut dx, mut d_weight) = (old.clone(), vec![0.5; c]);
        let (dx_s, dw_s) = (&mut dx, &mut d_weight);
        kernels::rms_norm::rms_norm_backward(&on.team, &dy, &x, &weight, &inv_rms, Beta::One, dx_s, dw_s);
        for i in 0..2 {
            let shape = [2, 3, c];
            let [x, dy] = [&x, &dy].map(|data| on.forms(data, shape)[i].clone());
            let weight = &on.forms(&weight, [c])[i];
            let (y_op, inv_rms_op) = super::rms_norm(&x, weight, eps);
            let relative = (c as f64 / 2.0 + 4.0) * ROUNDING;
            on.assert_close("rms_norm", &y_op, &y, shape, |i| (relative + 3.0 * ROUNDING) * y[i].abs() as f64);
            on.assert_close("rms_norm", &inv_rms_op, &inv_rms, [n], |i| relative * inv_rms[i] as f64);
            let (mut dx_op, mut dw_op) = (on.dense(&old, shape), Tensor::full_on(&on.device, 0.5, [c]));
            let inv_rms = &on.forms(&inv_rms, [n])[i];
            super::rms_norm_backward(&dy, &x, weight, inv_rms, Beta::One, &mut dx_op, &mut dw_op);
            let of_dx = |i: usize| (c + 8) as f64 * ROUNDING * (abs.dx[i] + old[i].abs() as f64);
            let of_dw = |i: usize| (n + 8) as f64 * ROUNDING * (abs.d_weight[i] + 0.5);
            on.assert_close("rms_norm_backward", &dx_op, &dx, shape, of_dx);
            on.assert_close("rms_norm_backward", &dw_op, &d_weight, [c], of_dw);
        }
    }
}

#[test]
fn rope_is_its_kernel() {
    for on in everywhere() {
        let (x, cos, sin) = (uniform(1, 2 * 3 * 4 * 6), uniform(2, 9 * 3), uniform(3, 9 * 3));
        let shape = RopeShape { n_heads: 4, head_dim: 6, seq_len: 3, first_position: 5 };
        for rotation in [Rotation::Forward, Rotation::Backward] {
            let expected = written(x.len(), |y| kernels::rope::rope(&on.team, &x, &cos, &sin, shape, rotation, y));
            for i in 0..2 {
                let (cos, sin) = (&on.forms(&cos, [9, 3])[i], &on.forms(&sin, [9, 3])[i]);
                let y = super::rope(&on.forms(&x, [2, 3, 4, 6])[i], cos, sin, 5, rotation);
                on.assert_bits("rope", &y, &expected, [2, 3, 4, 6]);
            }
        }
    }
}

#[test]
fn attention_is_its_kernel() {
    for on in everywhere() {
        use kernels::attention as kernel;
        let shape = AttentionShape { batch: 2, q_len: 3, kv_len: 5, n_heads: 4, n_kv_heads: 2, head_dim: 8 };
        let (q_dims, kv_dims) = ([2, 3, 4, 8], [2, 5, 2, 8]);
        let (n_q, n_kv) = (shape.q_elements(), shape.kv_elements());
        let (q, k, v, d_out) = (uniform(1, n_q), uniform(2, n_kv), uniform(3, n_kv), uniform(4, n_q));
        let (mut out, mut lse) = (vec![0.0; n_q], vec![0.0; shape.lse_elements()]);
        kernel::attention(&on.team, shape, 0.35, &q, &k, &v, &mut out, &mut lse);
        let saved = AttentionSaved { q: &q, k: &k, v: &v, out: &out, lse: &lse };
        let [mut dq, mut dk, mut dv] = [vec![0.0; n_q], vec![0.0; n_kv], vec![0.0; n_kv]];
        kernel::attention_backward(&on.team, shape, 0.35, saved, &d_out, Beta::Zero, &mut dq, &mut dk, &mut dv);
        // As in the kernels' tests: a probability; then products of it and of dS, with delta and dP in dS.
        let abs = reference::attention_abs(shape, 0.35, &q, &k, &v, &d_out);
        let (score, kv_len) = (abs.score, shape.kv_len as f64);
        let of_score = 2.0 * (shape.head_dim + 5) as f64 * score;
        let p = ((of_score + 8.0 * score + 2.0 * kv_len.ln() + 10.0 + kv_len + 12.0) * ROUNDING).exp_m1();
        let with_sum = |error: f64, terms: usize| (1.0 + error) * (1.0 + (terms + 8) as f64 * ROUNDING) - 1.0;
        let ds = p + (shape.head_dim + 12) as f64 * ROUNDING;
        let queries = shape.q_len * shape.n_heads / shape.n_kv_heads;
        for i in 0..2 {
            let [q, d_out] = [&q, &d_out].map(|data| on.forms(data, q_dims)[i].clone());
            let [k, v] = [&k, &v].map(|data| on.forms(data, kv_dims)[i].clone());
            let forward = super::attention(&q, &k, &v, 0.35);
            on.assert_close("attention", &forward.out, &out, q_dims, |i| with_sum(p, shape.kv_len) * abs.out[i]);
            let of_lse = |i: usize| p + 3.0 * ROUNDING * (lse[i].abs() as f64 + score);
            on.assert_close("attention", &forward.lse, &lse, [2, 4, 3], of_lse);
            let forward =
                Attention { out: on.forms(&out, q_dims)[i].clone(), lse: on.forms(&lse, [2, 4, 3])[i].clone() };
            let (dq_op, dk_op, dv_op) = super::attention_backward(&d_out, &q, &k, &v, &forward, 0.35);
            let of_dq = |i: usize| with_sum(ds, shape.kv_len) * abs.dq[i];
            on.assert_close("attention_backward", &dq_op, &dq, q_dims, of_dq);
            on.assert_close("attention_backward", &dk_op, &dk, kv_dims, |i| with_sum(ds, queries) * abs.dk[i]);
            on.assert_close("attention_backward", &dv_op, &dv, kv_dims, |i| with_sum(p, queries) * abs.dv[i]);
        }
    }
}

#[test]
fn gated_activation_is_its_kernel() {
    for on in everywhere() {
        use kernels::activation as kernel;
        let site = MaskSite { seed: 7, first_token: 3, layer: 1, stream: 0, step: 9 };
        let d_ff = 20;
        let (g, u, dh) = (uniform(1, 6 * d_ff), uniform(2, 6 * d_ff), uniform(3, 6 * d_ff));
        let pair = Activation::pair(0.4, [Fixed::Gelu, Fixed::Tanh], Positive::Silu, site);
        let acts = [Activation::Relu, Activation::Silu, Activation::Relu2, Activation::stochastic(0.4, site), pair];
        for (act, l1) in acts.into_iter().zip([0.0, 0.5, 0.0, 0.25, 0.0]) {
            let h = written(g.len(), |h| kernel::gated_activation(&on.team, act, &g, &u, d_ff, h));
            let [mut dg, mut du, mut h_again] = [(); 3].map(|_| vec![0.0; g.len()]);
            let (dg_s, du_s, h_s) = (&mut dg, &mut du, &mut h_again);
            kernel::gated_activation_backward(&on.team, act, l1, &dh, &g, &u, d_ff, dg_s, du_s, h_s);
            for i in 0..2 {
                let shape = [2, 3, d_ff];
                let [g, u, dh] = [&g, &u, &dh].map(|data| on.forms(data, shape)[i].clone());
                on.assert_bits("gated_activation", &super::gated_activation(act, &g, &u), &h, shape);
                let GatedGradients { dg: dg_op, du: du_op, h: h_op } =
                    super::gated_activation_backward(act, l1, &dh, &g, &u);
                on.assert_bits("gated_activation_backward", &dg_op, &dg, shape);
                on.assert_bits("gated_activation_backward", &du_op, &du, shape);
                on.assert_bits("gated_activation_backward", &h_op, &h_again, shape);
            }
        }
    }
}

#[test]
fn embedding_is_its_kernel() {
    for on in everywhere() {
        use kernels::embedding as kernel;
        let (table, tokens, d_out) = (uniform(1, 7 * 4), [6u32, 0, 3, 3, 1, 6], uniform(2, 6 * 4));
        let out = written(24, |out| kernel::embedding(&on.team, &table, &tokens, 4, out));
        let mut d_table = uniform(3, 7 * 4);
        kernel::embedding_backward(&on.team, &d_out, &tokens, 4, &mut d_table);
        for i in 0..2 {
            let tokens = &on.forms(&tokens, [2, 3])[i];
            on.assert_bits("embedding", &super::embedding(&on.forms(&table, [7, 4])[i], tokens), &out, [2, 3, 4]);
            let mut d_table_op = on.dense(&uniform(3, 7 * 4), [7, 4]);
            super::embedding_backward(&on.forms(&d_out, [2, 3, 4])[i], tokens, &mut d_table_op);
            on.assert_bits("embedding_backward", &d_table_op, &d_table, [7, 4]);
        }
    }
}

#[test]
fn lm_head_loss_is_its_kernel() {
    for on in everywhere() {
        use kernels::lm_head_loss as kernel;
        let (c, scale) = (4, 0.25);
        let (x, w, targets) = (uniform(1, 6 * c), uniform(2, 9 * c), [0u32, 8, 3, 3, 1, 5]);
        let loss = kernel::lm_head_loss(&on.team, &x, &w, &targets, c);
        // The bounds of the kernel's documentation, with V = 9.
        let (abs, old) = (reference::lm_head_loss_abs(&x, &w, &targets, c, scale), uniform(3, w.len()));
        let of_logit = (c + 4) as f64 * ROUNDING * abs.logit;
        let of_loss = 6.0 * (2.0 * of_logit + (2.0 * abs.logit + 9.0 + 4.0) * ROUNDING);
        let relative = 2.0 * of_logit + (4.0 * abs.logit + 9.0 + 12.0) * ROUNDING;
        let (mut dx, mut dw) = (vec![0.0; x.len()], uniform(3, w.len()));
        let loss_again =
            kernel::lm_head_loss_backward(&on.team, &x, &w, &targets, c, scale, &mut dx, Beta::One, &mut dw);
        for i in 0..2 {
            let [x, w, targets] =
                [&on.forms(&x, [2, 3, c])[i], &on.forms(&w, [9, c])[i], &on.forms(&targets, [2, 3])[i]];
            on.assert_number("lm_head_loss", super::lm_head_loss(x, w, targets).value(), loss, of_loss);
            let mut dw_op = on.dense(&uniform(3, 9 * c), [9, c]);
            let op = super::lm_head_loss_backward(x, w, targets, scale, Beta::One, &mut dw_op);
            on.assert_number("lm_head_loss_backward", op.loss.value(), loss_again, of_loss);
            // A probability, the product by W of V terms, that by X of 6 and the old value.
            let of_dx = |i: usize| abs.dx[i] * (relative + 13.0 * ROUNDING);
            let of_dw = |i: usize| abs.dw[i] * (relative + 11.0 * ROUNDING) + 11.0 * ROUNDING * old[i].abs() as f64;
            on.assert_close("lm_head_loss_backward", &op.dx, &dx, [2, 3, c], of_dx);
            on.assert_close("lm_head_loss_backward", &dw_op, &dw, [9, c], of_dw);
        }
    }
}

#[test]
fn adamw_is_its_kernel() {
    for on in everywhere() {
        let step = AdamW { lr: 0.01, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step: 3 };
        let (param, grad, m) = (uniform(1, 12), uniform(2, 12), uniform(3, 12));
        let v: Vec<f32> = uniform(4, 12).iter().map(|x| x.abs()).collect();
        let (mut param_k, mut m_k, mut v_k) = (param.clone(), m.clone(), v.clone());
        kernels::adamw::adamw(&on.team, &step, 0.5, &mut param_k, &grad, &mut m_k, &mut v_k);
        for grad in &on.forms(&grad, [3, 4]) {
            let [mut param, mut m, mut v] = [&param, &m, &v].map(|data| on.dense(data, [3, 4]));
            let (mut squares, loss) = (Total::zero(&on.device), Total::zero(&on.device));
            sum_squares(&on.dense(&[2.0f32], [1]), &mut squares);
            let half = clip_factor(&squares, &loss, 1.0);
            super::adamw(&step, &half, &mut param, grad, &mut m, &mut v);
            on.assert_bits("adamw", &param, &param_k, [3, 4]);
            on.assert_bits("adamw", &m, &m_k, [3, 4]);
            on.assert_bits("adamw", &v, &v_k, [3, 4]);
        }
    }
}

#[test]
fn reductions_are_their_kernels() {
    for on in everywhere() {
        use kernels::reduce as kernel;
        let x = uniform(1, 60);
        let mut counts = vec![3u32; 5];
        kernel::count_positive(&on.team, &x, &mut counts);
        for x_op in &on.forms(&x, [3, 4, 5]) {
            let of_sum = |term: fn(f32) -> f32| 32.0 * ROUNDING * x.iter().map(|&x| term(x) as f64).sum::<f64>();
            let of_total = of_sum(f32::abs);
            let total = kernel::sum(&on.team, &x);
            on.assert_close("sum", &sum(x_op), &[total as f32], [], |_| of_total + ROUNDING * total.abs());
            let [mut squares, mut of_abs] = [(); 2].map(|()| Total::zero(&on.device));
            sum_squares(x_op, &mut squares);
            sum_abs(x_op, &mut of_abs);
            on.assert_number("sum_squares", squares.value(), kernel::sum_squares(&on.team, &x), of_sum(|x| x * x));
            on.assert_number("sum_abs", of_abs.value(), kernel::sum_abs(&on.team, &x), of_total);
            let mut counts_op = on.dense(&[3u32; 5], [5]);
            count_positive(x_op, &mut counts_op);
            assert_eq!(counts_op.to_vec::<u32>().unwrap(), counts, "count_positive");
            assert_eq!(first_non_finite(x_op), None);
        }
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = x.clone();
            (x[17], x[40]) = (bad, f32::NAN);
            for x in &on.forms(&x, [3, 4, 5]) {
                assert_eq!(first_non_finite(x), Some(17), "first_non_finite: {bad}");
            }
        }
        assert_eq!(first_non_finite(&on.zeros([0, 3])), None);
    }
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
        on_a_gpu in any::<bool>(),
    ) {
        let small: Vec<usize> = dims.iter().enumerate().skip(lead.min(dims.len()))
            .map(|(axis, &n)| if ones >> axis & 1 == 1 { 1 } else { n }).collect();
        let integers = |seed, n| -> Vec<f32> { uniform(seed, n).iter().map(|x| (x * 8.0).round()).collect() };
        let (x, y) = (integers(seed, small.iter().product()), integers(seed + 1, dims.iter().product()));
        let on = &everywhere_once()[on_a_gpu as usize % everywhere_once().len()];
        let (x_t, y_t) = (on.dense(&x, &small[..]), &on.forms(&y, &dims[..])[as_view as usize]);
        let repeated = x_t.broadcast_to(&dims[..]).to_vec::<f32>().unwrap();
        let sums = sum_to(y_t, &small[..]);
        prop_assert_eq!(&*sums.shape(), &small[..]);
        let dot = |a: &[f32], b: &[f32]| -> f32 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
        prop_assert_eq!(dot(&repeated, &y), dot(&x, &sums.to_vec::<f32>().unwrap()));

        // Which element of x each element of the larger shape repeats, from the op itself: the sums one by one.
        let places = on.dense(&(0..x.len() as u32).collect::<Vec<_>>(), &small[..]).broadcast_to(&dims[..]);
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
fn a_tensor_goes_to_a_gpu_and_back() {
    for on in everywhere() {
        let data = uniform(1, 12);
        for x in &everywhere()[0].forms(&data, [3, 4]) {
            let there = x.to_device(&on.device).unwrap();
            assert!(there.device() == on.device);
            assert_eq!(there.to_vec::<f32>().unwrap(), data);
            let part = there.narrow(0, 1, 2).t();
            let back = part.to_device(&Device::Cpu).unwrap();
            assert!(back.device() == Device::Cpu && back.shape() == [4, 2].into());
            let expected = x.narrow(0, 1, 2).t().to_vec::<f32>().unwrap();
            assert_eq!([&part, &back].map(|x| x.to_vec::<f32>().unwrap()), [&expected; 2].map(Vec::clone));
        }
        let tokens = on.view(&[7u32, u32::MAX, 0], [3]).to_device(&Device::Cpu).unwrap();
        assert_eq!(tokens.to_vec::<u32>().unwrap(), [7, u32::MAX, 0]);
    }
    // From one GPU to another, by way of the CPU.
    let gpus = [(); 2].map(|_| Device::Cuda(cuda_testing::Interpreter::default().device()));
    let x = Tensor::full_on(&gpus[0], 0.5, [3]).to_device(&gpus[1]).unwrap();
    assert!(x.device() == gpus[1] && x.to_vec::<f32>().unwrap() == [0.5; 3]);
}

#[test]
fn the_mask_of_a_stochastic_activation_is_the_same_on_every_device() {
    // Where psi is RELU a negative gate gives 0, where it is SILU less: h shows the draws.
    let (n, d_ff) = (70, 33);
    let site = MaskSite { seed: 0x1234_5678_9ABC, first_token: u32::MAX - 60, layer: 3, stream: 2, step: 77 };
    let h: Vec<Vec<f32>> = everywhere()
        .iter()
        .map(|on| {
            let [g, u] = [-1.0, 1.0].map(|x| Tensor::full_on(&on.device, x, [n, d_ff]));
            super::gated_activation(Activation::stochastic(0.3, site), &g, &u).to_vec().unwrap()
        })
        .collect();
    let zeros = h[0].iter().filter(|&&h| h == 0.0).count();
    assert!((1..n * d_ff).contains(&zeros), "{zeros} of {} draws are RELU", n * d_ff);
    for other in &h[1..] {
        assert_eq!(other, &h[0], "gated_activation: the draws of a GPU and of the CPU");
    }
}
