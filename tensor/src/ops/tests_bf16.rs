//! Ops on bf16, in the interpreter of the GPU's kernels: the bits of the same op on the widened operands in f32, rounded once, where that
//! is what the op computes; products and attention within bounds of the reference.

use super::*;
use crate::{Activation, Beta, DType, Device, Element, Fixed, MaskSite, Positive, Shape};
use half::bf16;
use kernels::attention::AttentionShape;
use kernels::testing::{ROUNDING, assert_within, uniform, uniform_bf16, widened};
use kernels::{Isa, Level, Mat, reference};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Half a unit in the last place of bf16, which has eight bits.
const BF16_ROUNDING: f64 = 1.0 / (1 << 8) as f64;

fn gpu() -> Device {
    Device::Cuda(cuda_testing::device())
}

fn on<T: Element>(device: &Device, data: &[T], shape: impl Into<Shape>) -> Tensor {
    Tensor::from_slice(data, shape).to_device(device).unwrap()
}

/// The same elements in bf16 and, widened, in f32, on a GPU.
fn pair(device: &Device, seed: u64, shape: impl Into<Shape>) -> [Tensor; 2] {
    let shape = shape.into();
    let x = uniform_bf16(seed, shape.elements());
    [on(device, &x, shape), on(device, &widened(&x), shape)]
}

/// The elements in f32.
fn wide(x: &Tensor) -> Vec<f32> {
    match x.dtype() {
        DType::Bf16 => widened(&x.to_vec().unwrap()),
        _ => x.to_vec().unwrap(),
    }
}

/// That `x`, in bf16, is `expected`, in f32, rounded.
#[track_caller]
fn assert_rounded(op: &str, x: &Tensor, expected: &Tensor) {
    assert_eq!((x.dtype(), x.shape()), (DType::Bf16, expected.shape()), "{op}");
    let expected: Vec<bf16> = expected.to_vec::<f32>().unwrap().into_iter().map(bf16::from_f32).collect();
    assert_eq!(x.to_vec::<bf16>().unwrap(), expected, "{op} in bf16, and in f32 rounded");
}

/// What a panic says.
fn message(f: &dyn Fn()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(f)).expect_err("a panic");
    *panic.downcast::<String>().expect("a panic with a sentence")
}

#[test]
fn cast_rounds_to_nearest_and_widens_exactly() {
    for device in [Device::Cpu, gpu()] {
        let mut data = uniform(1, 57);
        data.extend([0x3F80_8000, 0x3F81_8000, 0x7F7F_FFFF].map(f32::from_bits));
        let x = on(&device, &data, [5, 12]);
        let rounded: Vec<bf16> = data.iter().map(|&x| bf16::from_f32(x)).collect();
        let y = cast(&x, DType::Bf16);
        assert_eq!((y.dtype(), y.to_vec::<bf16>().unwrap()), (DType::Bf16, rounded.clone()), "cast on {device:?}");
        assert_eq!(cast(&y, DType::F32).to_vec::<f32>().unwrap(), widened(&rounded), "cast on {device:?}");
        // A view: columns of x.
        let columns = [x.t(), y.t()].map(|x| x.narrow(0, 3, 7));
        let (from_f32, from_bf16) = (cast(&columns[0], DType::Bf16), &columns[1]);
        assert_eq!(from_f32.to_vec::<bf16>().unwrap(), from_bf16.to_vec::<bf16>().unwrap(), "cast of a view");
        assert!(!cast(&x, DType::F32).is_unique(), "cast to the same type copies nothing");
        let tokens = on(&device, &[1u32], [1]);
        assert_eq!(message(&|| drop(cast(&tokens, DType::F32))), "cast: x of shape [1] from u32 to f32");
    }
}

#[test]
fn a_copy_shares_nothing() {
    for device in [Device::Cpu, gpu()] {
        for dtype in [DType::F32, DType::Bf16] {
            if (&device, dtype) == (&Device::Cpu, DType::Bf16) {
                continue; // refused, below
            }
            let x = cast(&on(&device, &uniform(1, 12), [3, 4]), dtype);
            let (same, columns) = (copy(&x), copy(&x.t()));
            assert!(x.is_unique() && columns.is_contiguous() && same.dtype() == dtype);
            assert_eq!((wide(&same), wide(&columns)), (wide(&x), wide(&x.t())), "copy of {dtype} on {device:?}");
        }
    }
}

#[test]
fn bf16_goes_to_a_gpu_and_back_and_views_of_it_are_gathered() {
    let gpu = gpu();
    let data = uniform_bf16(1, 3 * 5 * 2);
    let x = Tensor::from_slice(&data, [3, 5, 2]);
    let there = x.to_device(&gpu).unwrap();
    for view in [|x: &Tensor| x.transpose(0, 1), |x: &Tensor| x.narrow(1, 1, 3), |x: &Tensor| x.narrow(2, 1, 1)] {
        let (here, there) = (view(&x), view(&there));
        assert_eq!(here.to_vec::<bf16>().unwrap(), there.to_vec::<bf16>().unwrap());
        assert_eq!(there.to_device(&Device::Cpu).unwrap().to_vec::<bf16>().unwrap(), here.to_vec::<bf16>().unwrap());
        assert_eq!(there.contiguous().elements(), here.elements());
    }
    assert_eq!(there.narrow(0, 1, 1).to_vec::<bf16>().unwrap(), data[10..20]);
    assert!(Tensor::stale([3], DType::Bf16).to_vec::<bf16>().unwrap().iter().all(|x| x.is_nan()), "not poisoned");
}

#[test]
fn the_cpu_refuses_bf16_by_name() {
    let x = Tensor::from_slice(&uniform_bf16(1, 6), [2, 3]);
    let only_gpu =
        |op: &str, name: &str| format!("{op}: {name} of shape [2, 3] is of bf16, which this op takes on a GPU alone");
    assert_eq!(message(&|| drop(matmul(&x, &x.t()))), only_gpu("matmul", "a"));
    assert_eq!(message(&|| drop(add(&x, &x))), only_gpu("add", "a"));
    assert_eq!(message(&|| drop(add(&Tensor::zeros([2, 3]), &x))), only_gpu("add", "b"));
    assert_eq!(message(&|| drop(super::gated_activation(Activation::Relu, &x, &x))), only_gpu("gated_activation", "g"));
    assert_eq!(message(&|| drop(mul(&x, &x))), "mul: a of shape [2, 3] is of bf16, expected f32");
    let y = Tensor::zeros([2, 3]);
    let gain = Tensor::full(1.0, [3]);
    let said = message(&|| drop(rms_norm_as(DType::Bf16, &y, &gain, 1e-5)));
    assert_eq!(said, "rms_norm: a result of bf16 on the cpu, which makes f32 alone");
    let gpu = gpu();
    let (x, y) = (x.to_device(&gpu).unwrap(), Tensor::zeros_on(&gpu, [3, 2]));
    assert_eq!(message(&|| drop(matmul(&x, &y))), "matmul: b of shape [3, 2] is of f32, expected bf16");
    let tokens = on(&gpu, &[0u32; 6], [2, 3]);
    assert_eq!(message(&|| drop(matmul(&tokens, &y))), "matmul: a of shape [2, 3] is of u32, expected f32 or bf16");
}

/// In all forms of the operands, into bf16 and into f32, over old values and not.
#[test]
fn products_of_bf16_sum_in_f32() {
    let gpu = gpu();
    let (m, k, n) = (7, 21, 5);
    let (a, b) = (uniform_bf16(1, m * k), uniform_bf16(2, k * n));
    let transposed = |x: &[bf16], rows: usize, cols: usize| -> Vec<bf16> {
        (0..rows * cols).map(|i| x[i % rows * cols + i / rows]).collect()
    };
    let forms = |x: &[bf16], [rows, cols]: [usize; 2]| {
        let wider: Vec<bf16> = (0..rows * (cols + 3))
            .map(|i| if i % (cols + 3) < cols { x[i / (cols + 3) * cols + i % (cols + 3)] } else { bf16::NAN })
            .collect();
        [
            on(&gpu, x, [rows, cols]),
            on(&gpu, &transposed(x, rows, cols), [cols, rows]).t(),
            on(&gpu, &wider, [rows, cols + 3]).narrow(1, 0, cols),
        ]
    };
    let (a_wide, b_wide) = (widened(&a), widened(&b));
    let (product, abs) = reference::gemm(Mat::new(&a_wide, m, k), Mat::new(&b_wide, k, n));
    let bound = |abs: f64| (k + 4) as f64 * 2.0 * ROUNDING * abs;
    for (i, a) in forms(&a, [m, k]).iter().enumerate() {
        for (j, b) in forms(&b, [k, n]).iter().enumerate() {
            let what = format!("matmul of bf16, forms {i} and {j}");
            let c = matmul(a, b);
            assert_eq!((c.dtype(), c.shape()), (DType::Bf16, [m, n].into()), "{what}");
            let rounded = |exact: f64, error: f64| error + BF16_ROUNDING * (exact.abs() + error);
            assert_within(&what, &wide(&c), &product, |e| rounded(product[e], bound(abs[e])));
            let old = uniform_bf16(3, m * n);
            let sums: Vec<f64> = product.iter().zip(&old).map(|(p, o)| p + o.to_f64()).collect();
            let sum_bound = |e: usize| bound(abs[e] + old[e].to_f64().abs());
            let [mut narrow, mut c] = [on(&gpu, &old, [1, m, n]), on(&gpu, &widened(&old), [1, m, n])];
            matmul_into(a, b, Beta::One, &mut c);
            assert_within(&what, &wide(&c), &sums, sum_bound);
            matmul_into(a, b, Beta::One, &mut narrow);
            assert_within(&what, &wide(&narrow), &sums, |e| rounded(sums[e], sum_bound(e)));
            matmul_into(a, b, Beta::Zero, &mut c);
            assert_within(&what, &wide(&c), &product, |e| bound(abs[e]));
        }
    }
}

#[test]
fn sums_of_bf16_and_f32_are_f32() {
    let gpu = gpu();
    let ([a, a_wide], [b, b_wide]) = (pair(&gpu, 1, [3, 1, 5]), pair(&gpu, 2, [4, 5]));
    assert_rounded("add", &add(&a, &b), &add(&a_wide, &b_wide));
    let x = on(&gpu, &uniform(3, 60), [3, 4, 5]);
    let expected = wide(&add(&x, &b_wide));
    for sum in [add(&x, &b), add(&b, &x)] {
        assert_eq!((sum.dtype(), wide(&sum)), (DType::F32, expected.clone()), "add of f32 and bf16");
    }
}

#[test]
fn rms_norm_rounds_its_result_once() {
    let gpu = gpu();
    for c in [10, 16] {
        let (x, weight) = (on(&gpu, &uniform(1, 6 * c), [2, 3, c]), on(&gpu, &uniform(2, c), [c]));
        let (wide_y, wide_inv) = super::rms_norm(&x, &weight, 1e-5);
        let (y, inv_rms) = rms_norm_as(DType::Bf16, &x, &weight, 1e-5);
        assert_rounded("rms_norm", &y, &wide_y);
        assert_eq!(wide(&inv_rms), wide(&wide_inv), "rms_norm");
        let [dy, dy_wide] = pair(&gpu, 3, [2, 3, c]);
        let gradients = |dy: &Tensor| {
            let (mut dx, mut dw) = (on(&gpu, &uniform(4, 6 * c), [2, 3, c]), Tensor::full_on(&gpu, 0.5, [c]));
            super::rms_norm_backward(dy, &x, &weight, &inv_rms, Beta::One, &mut dx, &mut dw);
            (wide(&dx), wide(&dw))
        };
        assert!(gradients(&dy) == gradients(&dy_wide), "rms_norm_backward: dy in bf16, and widened");
    }
}

#[test]
fn rope_of_bf16_is_rounded_once() {
    let gpu = gpu();
    for d in [6, 16] {
        let [cos, sin] = [2, 3].map(|seed| on(&gpu, &uniform(seed, 9 * d / 2), [9, d / 2]));
        let [x, x_wide] = pair(&gpu, 1, [2, 3, 4, d]);
        for rotation in [Rotation::Forward, Rotation::Backward] {
            let [y, y_wide] = [&x, &x_wide].map(|x| super::rope(x, &cos, &sin, 5, rotation));
            assert_rounded("rope", &y, &y_wide);
        }
    }
}

/// And with it the mask, which is that of the CPU: the f32 op has the CPU's bits.
#[test]
fn gated_activation_of_bf16_draws_the_same_and_rounds_once() {
    let gpu = gpu();
    let site = MaskSite { seed: 7, first_token: 3, layer: 1, stream: 0, step: 9 };
    let odd_pair = Activation::pair(0.4, [Fixed::Gelu, Fixed::Tanh], Positive::Silu, site);
    for d_ff in [20, 24] {
        let shape = [2, 3, d_ff];
        let [[g, g_wide], [u, u_wide], [dh, dh_wide]] = [1, 2, 3].map(|seed| pair(&gpu, seed, shape));
        let acts = [Activation::Relu, Activation::Silu, Activation::stochastic(0.4, site), odd_pair];
        for (act, l1) in acts.into_iter().zip([0.0, 0.5, 0.25, 0.0]) {
            let h_wide = super::gated_activation(act, &g_wide, &u_wide);
            assert_rounded("gated_activation", &super::gated_activation(act, &g, &u), &h_wide);
            if let Ok(level) = Level::new(Isa::Avx2) {
                let mut h = vec![0.0; 6 * d_ff];
                let (g, u) = (wide(&g), wide(&u));
                kernels::activation::gated_activation(&kernels::Team::serial(level), act, &g, &u, d_ff, &mut h);
                assert_eq!(wide(&h_wide), h, "gated_activation: the draws and bits of the cpu");
            }
            let made = super::gated_activation_backward(act, l1, &dh, &g, &u);
            let expected = super::gated_activation_backward(act, l1, &dh_wide, &g_wide, &u_wide);
            for (made, expected) in [(&made.dg, &expected.dg), (&made.du, &expected.du), (&made.h, &expected.h)] {
                assert_rounded("gated_activation_backward", made, expected);
            }
        }
    }
}

#[test]
fn embedding_widens_its_rows() {
    let gpu = gpu();
    let ([table, table_wide], tokens) = (pair(&gpu, 1, [7, 4]), on(&gpu, &[6u32, 0, 3], [3]));
    let out = super::embedding(&table, &tokens);
    assert_eq!((out.dtype(), wide(&out)), (DType::F32, wide(&super::embedding(&table_wide, &tokens))), "embedding");
}

/// The bounds of cuda/tests/attention.rs, where the kernel is tested at length: a probability off by `p`, rounded to bf16; sums of
/// products that tensor cores cut off; results rounded.
#[test]
fn attention_of_bf16_is_near_the_reference() {
    let gpu = gpu();
    let shape = AttentionShape { batch: 2, q_len: 3, kv_len: 5, n_heads: 4, n_kv_heads: 2, head_dim: 8 };
    let (q_dims, kv_dims, scale) = ([2, 3, 4, 8], [2, 5, 2, 8], 0.35);
    let [[q, q_wide], [d_out, d_out_wide]] = [1, 4].map(|seed| pair(&gpu, seed, q_dims));
    let [[k, k_wide], [v, v_wide]] = [2, 3].map(|seed| pair(&gpu, seed, kv_dims));
    let [q_wide, k_wide, v_wide, d_out_wide] = [q_wide, k_wide, v_wide, d_out_wide].map(|x| wide(&x));
    let (out, lse) = reference::attention(shape, scale, &q_wide, &k_wide, &v_wide);
    let (dq, dk, dv) = reference::attention_backward(shape, scale, &q_wide, &k_wide, &v_wide, &d_out_wide);
    let abs = reference::attention_abs(shape, scale, &q_wide, &k_wide, &v_wide, &d_out_wide);
    let (sum, unit, kv_len) = (2.0 * ROUNDING, BF16_ROUNDING, shape.kv_len as f64);
    let of_score = (shape.head_dim + 5) as f64 * sum * abs.score;
    let p = (2.0 * of_score + (8.0 * abs.score + 2.0 * kv_len.ln() + 10.0 + kv_len + 12.0) * ROUNDING).exp_m1();
    let with_sum = |error: f64, terms: usize| (1.0 + error) * (1.0 + (terms + 8) as f64 * sum) - 1.0;
    let rounded = |exact: f64, error: f64| error + unit * (exact.abs() + error);

    let forward = super::attention(&q, &k, &v, scale);
    assert_eq!((forward.out.dtype(), forward.lse.dtype()), (DType::Bf16, DType::F32));
    let p_rounded = (1.0 + p) * (1.0 + unit) - 1.0;
    assert_within("attention of bf16", &wide(&forward.out), &out, |i| {
        rounded(out[i], with_sum(p_rounded, shape.kv_len) * abs.out[i])
    });
    assert_within("attention of bf16: lse", &wide(&forward.lse), &lse, |i| {
        p + 3.0 * ROUNDING * (lse[i].abs() + abs.score)
    });
    // Of the forward's own results: out is off by its rounding, and by the error above, which delta takes over.
    let (dq_op, dk_op, dv_op) = super::attention_backward(&d_out, &q, &k, &v, &forward, scale);
    let of_out = with_sum(p_rounded, shape.kv_len) + unit;
    let ds = (1.0 + p + (shape.head_dim + 12) as f64 * sum + of_out) * (1.0 + unit) - 1.0;
    let queries = shape.q_len * shape.n_heads / shape.n_kv_heads;
    let all = [
        (dq_op, dq, abs.dq, ds, shape.kv_len),
        (dk_op, dk, abs.dk, ds, queries),
        (dv_op, dv, abs.dv, p_rounded, queries),
    ];
    for (i, (op, exact, abs, error, terms)) in all.into_iter().enumerate() {
        assert_eq!(op.dtype(), DType::Bf16);
        let what = format!("attention_backward of bf16: gradient {i}");
        assert_within(&what, &wide(&op), &exact, |i| rounded(exact[i], with_sum(error, terms) * abs[i]));
    }
}

#[test]
fn lm_head_loss_of_bf16_has_f32_logits() {
    let gpu = gpu();
    let (c, v, scale) = (8, 24, 0.25);
    let targets = [0u32, 23, 3, 3, 1, 5];
    let ([x, x_wide], [w, w_wide]) = (pair(&gpu, 1, [2, 3, c]), pair(&gpu, 2, [v, c]));
    let (x_wide, w_wide) = (wide(&x_wide), wide(&w_wide));
    let (exact, dx, dw) = reference::lm_head_loss(&x_wide, &w_wide, &targets, c, scale);
    let abs = reference::lm_head_loss_abs(&x_wide, &w_wide, &targets, c, scale);
    // As for f32 (see `lm_head_loss_is_its_kernel`), but that the sums of products are cut off.
    let of_logit = (c + 4) as f64 * 2.0 * ROUNDING * abs.logit;
    let of_loss = 6.0 * (2.0 * of_logit + (2.0 * abs.logit + v as f64 + 4.0) * ROUNDING);
    // Then the gradient of a logit is rounded to bf16.
    let relative = 2.0 * of_logit + (4.0 * abs.logit + v as f64 + 12.0) * ROUNDING;
    let of_dz = (1.0 + relative) * (1.0 + BF16_ROUNDING) - 1.0;
    let targets = on(&gpu, &targets, [2, 3]);
    let loss = super::lm_head_loss(&x, &w, &targets).value();
    assert!((loss - exact).abs() <= of_loss, "lm_head_loss of bf16: {loss}, expected {exact} +- {of_loss:e}");
    let old = uniform(3, v * c);
    let mut dw_op = on(&gpu, &old, [v, c]);
    let made = super::lm_head_loss_backward(&x, &w, &targets, scale, Beta::One, &mut dw_op);
    assert_eq!((made.loss.value(), made.dx.dtype()), (loss, DType::Bf16), "lm_head_loss_backward of bf16");
    let sum = |terms: usize| (terms + 4) as f64 * 2.0 * ROUNDING;
    assert_within("lm_head_loss_backward of bf16: dx", &wide(&made.dx), &dx, |i| {
        let error = abs.dx[i] * ((1.0 + of_dz) * (1.0 + sum(v)) - 1.0);
        error + BF16_ROUNDING * (dx[i].abs() + error)
    });
    let dw: Vec<f64> = dw.iter().zip(&old).map(|(dw, &old)| dw + old as f64).collect();
    assert_within("lm_head_loss_backward of bf16: dw", &wide(&dw_op), &dw, |i| {
        abs.dw[i] * ((1.0 + of_dz) * (1.0 + sum(6)) - 1.0) + sum(7) * old[i].abs() as f64
    });
}

#[test]
fn what_is_counted_now_and_then_takes_bf16() {
    for device in [Device::Cpu, gpu()] {
        let data = uniform_bf16(1, 60);
        let x = on(&device, &data, [12, 5]);
        let x_wide = cast(&x, DType::F32);
        let counts = |x: &Tensor| {
            let mut counts = on(&device, &[0u32; 5], [5]);
            count_positive(x, &mut counts);
            counts.to_vec::<u32>().unwrap()
        };
        assert_eq!(counts(&x), counts(&x_wide), "count_positive");
        let abs = |x: &Tensor| {
            let mut total = Total::zero(&device);
            sum_abs(x, &mut total);
            total.value()
        };
        assert_eq!(abs(&x), abs(&x_wide), "sum_abs");
        assert_eq!(first_non_finite(&x), None);
        let mut bad = data;
        bad[17] = bf16::INFINITY;
        assert_eq!(first_non_finite(&on(&device, &bad, [12, 5])), Some(17), "first_non_finite");
    }
}

/// Whatever is fused has the bits of what it is made of, for rows that begin at multiples of 16 bytes and others, in f32 and bf16.
#[test]
fn fused_products_of_the_ffn_are_their_parts() {
    let gpu = gpu();
    let site = MaskSite { seed: 7, first_token: 3, layer: 1, stream: 0, step: 9 };
    let odd_pair = Activation::pair(0.4, [Fixed::Gelu, Fixed::Tanh], Positive::Silu, site);
    for (c, d_ff) in [(8, 24), (5, 11)] {
        for (device, dtype) in [(&gpu, DType::Bf16), (&gpu, DType::F32), (&Device::Cpu, DType::F32)] {
            let of = |seed, shape: &[usize]| {
                let elements = Shape::new(shape).elements();
                cast(&on(device, &uniform(seed, elements), shape), dtype)
            };
            let (x, dy) = (of(1, &[2, 3, c]), of(2, &[6, c]));
            let (gate, up, down) = (of(3, &[d_ff, c]), of(4, &[d_ff, c]), of(5, &[c, d_ff]));
            // A weight that is a view is copied first.
            let view = of(6, &[c, d_ff]).t();
            for (gate, act) in
                [(&gate, Activation::stochastic(0.4, site)), (&gate, odd_pair), (&view, Activation::Relu)]
            {
                let what = format!("C {c} F {d_ff} {dtype} on {device:?} {act:?}");
                let same = |a: &Tensor, b: &Tensor| assert!(a.shape() == b.shape() && wide(a) == wide(b), "{what}");
                let made = super::gemm_gated_activation(act, &x, gate, &up);
                let [g, u] = [gate, &up].map(|w| matmul(&x.reshape([6, c]), &w.t()).reshape([2, 3, d_ff]));
                same(&made.g, &g);
                same(&made.u, &u);
                same(&made.h, &super::gated_activation(act, &g, &u));
                let made = super::gemm_gated_activation_backward(act, 0.25, &dy, &down, &g, &u);
                let dh = matmul(&dy, &down).reshape([2, 3, d_ff]);
                let parts = super::gated_activation_backward(act, 0.25, &dh, &g, &u);
                same(&made.dg, &parts.dg);
                same(&made.du, &parts.du);
                same(&made.h, &parts.h);
            }
        }
    }
}
