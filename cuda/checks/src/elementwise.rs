//! Elementwise kernels, conversions and AdamW, against the CPU's and the references.

use crate::Run;
use cuda::ops::adamw::{adamw, clip_factor};
use cuda::ops::elementwise as gpu;
use cuda::{Error, Slice, SliceMut};
use half::bf16;
use kernels::adamw::AdamW;
use kernels::testing::{ROUNDING, uniform};
use kernels::{Isa, Level, Team, elementwise as cpu, reference};

/// Around the eight elements of a thread and the 2048 of a block.
const LENGTHS: [usize; 10] = [0, 1, 7, 8, 9, 100, 2047, 2048, 2049, 4500];
/// More blocks than any card runs at once.
const OF_A_CARD: [usize; 1] = [3_000_001];

type Unary = fn(Slice<f32>, SliceMut<f32>) -> Result<(), Error>;
type Binary = fn(Slice<f32>, Slice<f32>, SliceMut<f32>) -> Result<(), Error>;
type CpuUnary = fn(&Team, &[f32], &mut [f32]);
type CpuBinary = fn(&Team, &[f32], &[f32], &mut [f32]);

/// The CPU with fused multiply-adds, whose bits the kernels have.
fn cpu_team() -> Option<Team> {
    Level::new(Isa::Avx2).ok().map(Team::serial)
}

/// Numbers of both signs and all sizes, with the special values in front.
fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let special = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e-40, -1e-40, 88.8, -104.0, -14.6, 13.9];
    let mut x: Vec<f32> = uniform(seed, len).into_iter().map(|x| 20.0 * x * x * x).collect();
    x.iter_mut().rev().zip(special).for_each(|(x, s)| *x = s);
    x
}

pub fn unary_operations_match_reference(run: &mut Run) -> Result<(), Error> {
    type Reference = fn(f64) -> f64;
    // Bounds in roundings of the result, those of the CPU kernels.
    let cases: [(&str, Unary, CpuUnary, Reference, f64); 7] = [
        ("relu", gpu::relu, cpu::relu, |x| reference::relu(x).0, 0.0),
        ("exp", gpu::exp, cpu::exp, f64::exp, 2.0 * 1.18),
        ("sigmoid", gpu::sigmoid, cpu::sigmoid, |x| 1.0 / (1.0 + (-x).exp()), 2.0 * 3.0),
        ("silu", gpu::silu, cpu::silu, |x| reference::silu(x).0, 2.0 * 4.0),
        ("relu2", gpu::relu2, cpu::relu2, |x| reference::relu2(x).0, 1.0),
        ("tanh", gpu::tanh, cpu::tanh, |x| reference::tanh(x).0, 2.0 * 2.0),
        ("gelu", gpu::gelu, cpu::gelu, |x| reference::gelu(x).0, 2.0 * 5.0),
    ];
    for len in run.sizes(&LENGTHS, &OF_A_CARD) {
        for shift in [0, 1] {
            for (name, gpu, cpu, reference, roundings) in cases {
                let what = format!("{name} len={len} shift={shift}");
                let x: Vec<f32> = uniform(1, len + shift).into_iter().map(|x| 12.0 * x).collect();
                let (a, mut dst) = (run.on(&x)?, run.stale(len + shift)?);
                gpu(a.as_slice().part(shift..len + shift), dst.as_mut().part(shift..len + shift))?;
                let actual = dst.as_slice().part(shift..len + shift).to_vec()?;
                let expected: Vec<f64> = x[shift..].iter().map(|&x| reference(x as f64)).collect();
                run.within(&what, &actual, &expected, |i| roundings * ROUNDING * expected[i].abs() + 1e-44);

                let Some(team) = cpu_team() else { continue };
                let (x, mut expected) = (numbers(2, len), vec![0.0; len]);
                cpu(&team, &x, &mut expected);
                let (a, mut dst) = (run.on(&x)?, run.stale(len)?);
                gpu(a.as_slice(), dst.as_mut())?;
                run.same_bits(&format!("{what}: not the bits of the CPU"), &dst.to_vec()?, &expected);
            }
        }
    }
    Ok(())
}

pub fn log_matches_reference(run: &mut Run) -> Result<(), Error> {
    let log = |run: &Run, x: &[f32]| {
        let (a, mut dst) = (run.on(x)?, run.stale(x.len())?);
        gpu::log(a.as_slice(), dst.as_mut())?;
        dst.to_vec()
    };
    let len = run.sizes(&[4500], &OF_A_CARD).iter().sum();
    let mut x: Vec<f32> = uniform(1, len).into_iter().map(|x| (80.0 * x).exp()).collect();
    x.extend((0..1000).map(|i| 0.99 + i as f32 * 2e-5)); // around 1, where ln is small
    x.extend([1e-45, 1e-40, f32::MIN_POSITIVE, f32::MAX, 1.0]);
    let expected: Vec<f64> = x.iter().map(|&x| (x as f64).ln()).collect();
    let actual = log(run, &x)?;
    run.within("log", &actual, &expected, |i| 2.0 * 0.51 * ROUNDING * expected[i].abs());
    let (minus, nan) = (f32::NEG_INFINITY, f32::NAN);
    let special = log(run, &[0.0, -0.0, f32::INFINITY, -1.0, nan, minus, -1e-45])?;
    run.same_bits("log of special values", &special, &[minus, minus, f32::INFINITY, nan, nan, nan, nan]);
    Ok(())
}

pub fn binary_operations_match_reference(run: &mut Run) -> Result<(), Error> {
    type Reference = fn(f64, f64) -> f64;
    // Bounds in roundings of the result and of a, those of the CPU kernels.
    let cases: [(&str, Binary, CpuBinary, Reference, [f64; 2]); 9] = [
        ("add", gpu::add, cpu::add, |a, b| a + b, [1.0, 0.0]),
        ("sub", gpu::sub, cpu::sub, |a, b| a - b, [1.0, 0.0]),
        ("mul", gpu::mul, cpu::mul, |a, b| a * b, [1.0, 0.0]),
        ("div", gpu::div, cpu::div, |a, b| a / b, [1.0, 0.0]),
        ("relu_backward", gpu::relu_backward, cpu::relu_backward, |a, b| a * reference::relu(b).1, [0.0, 0.0]),
        ("silu_backward", gpu::silu_backward, cpu::silu_backward, |a, b| a * reference::silu(b).1, [1.0, 4.0]),
        ("gelu_backward", gpu::gelu_backward, cpu::gelu_backward, |a, b| a * reference::gelu(b).1, [1.0, 4.0]),
        ("relu2_backward", gpu::relu2_backward, cpu::relu2_backward, |a, b| a * reference::relu2(b).1, [1.0, 0.0]),
        ("tanh_backward", gpu::tanh_backward, cpu::tanh_backward, |a, b| a * reference::tanh(b).1, [1.0, 4.0]),
    ];
    for len in run.sizes(&LENGTHS, &OF_A_CARD) {
        for shift in [0, 1] {
            for (name, gpu, cpu, reference, [of_result, of_a]) in cases {
                let what = format!("{name} len={len} shift={shift}");
                let (x, y) = (uniform(1, len + shift), uniform(2, len));
                let (a, b, mut dst) = (run.on(&x)?, run.on(&y)?, run.stale(len)?);
                gpu(a.as_slice().part(shift..len + shift), b.as_slice(), dst.as_mut())?;
                let expected: Vec<f64> =
                    x[shift..].iter().zip(&y).map(|(&a, &b)| reference(a as f64, b as f64)).collect();
                run.within(&what, &dst.to_vec()?, &expected, |i| {
                    ROUNDING * (of_result * expected[i].abs() + of_a * x[shift + i].abs() as f64) + of_result * 1e-45
                });

                let Some(team) = cpu_team() else { continue };
                let (x, y, mut expected) = (numbers(3, len), numbers(4, len), vec![0.0; len]);
                cpu(&team, &x, &y, &mut expected);
                let (a, b, mut dst) = (run.on(&x)?, run.on(&y)?, run.stale(len)?);
                gpu(a.as_slice(), b.as_slice(), dst.as_mut())?;
                run.same_bits(&format!("{what}: not the bits of the CPU"), &dst.to_vec()?, &expected);
            }
        }
    }
    Ok(())
}

pub fn axpy_and_scale_match_reference(run: &mut Run) -> Result<(), Error> {
    for len in run.sizes(&LENGTHS, &OF_A_CARD) {
        let (x, old, factor) = (uniform(1, len), uniform(2, len), -0.7f32);
        let (a, mut sum, mut scaled) = (run.on(&x)?, run.on(&old)?, run.stale(len)?);
        gpu::axpy(factor, a.as_slice(), sum.as_mut())?;
        gpu::scale(factor, a.as_slice(), scaled.as_mut())?;
        let expected: Vec<f32> = x.iter().zip(&old).map(|(&x, &old)| factor.mul_add(x, old)).collect();
        run.same_bits(&format!("axpy len={len}"), &sum.to_vec()?, &expected);
        let expected: Vec<f32> = x.iter().map(|&x| factor * x).collect();
        run.same_bits(&format!("scale len={len}"), &scaled.to_vec()?, &expected);
    }
    Ok(())
}

pub fn narrow_and_widen_round_as_the_cpu_does(run: &mut Run) -> Result<(), Error> {
    // Ties, subnormals, the largest numbers, and every shape of NaN that matters; then all of bf16.
    let mut x = numbers(5, 3001);
    x.extend(
        [0x3F80_8000, 0x3F81_8000, 0x3F80_8001, 0x7F7F_FFFF, 0x0000_8000, 0x7F80_0001, 0xFFC0_0000].map(f32::from_bits),
    );
    x.extend((0..=u16::MAX).map(|bits| bf16::from_bits(bits).to_f32()));
    let (a, mut rounded, mut back) = (run.on(&x)?, run.stale::<bf16>(x.len())?, run.stale::<f32>(x.len())?);
    gpu::narrow(a.as_slice(), rounded.as_mut())?;
    gpu::widen(rounded.as_slice(), back.as_mut())?;
    let expected: Vec<f32> = x.iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
    run.same_bits("narrow, widen", &back.to_vec()?, &expected);
    Ok(())
}

pub fn sums_with_bf16_are_rounded_once(run: &mut Run) -> Result<(), Error> {
    for len in run.sizes(&LENGTHS, &OF_A_CARD) {
        for shift in [0, 1] {
            let a: Vec<bf16> = numbers(6, len + shift).into_iter().map(bf16::from_f32).collect();
            let b: Vec<bf16> = numbers(7, len).into_iter().rev().map(bf16::from_f32).collect();
            let wide = numbers(8, len + shift);
            let (a_on, b_on, wide_on) = (run.on(&a)?, run.on(&b)?, run.on(&wide)?);
            let from = shift..len + shift;
            let (mut sum, mut wide_sum) = (run.stale::<bf16>(len)?, run.stale::<f32>(len)?);
            gpu::add_bf16(a_on.as_slice().part(from.clone()), b_on.as_slice(), sum.as_mut())?;
            gpu::add_f32_bf16(wide_on.as_slice().part(from), b_on.as_slice(), wide_sum.as_mut())?;
            let expected: Vec<f32> =
                a[shift..].iter().zip(&b).map(|(a, b)| bf16::from_f32(a.to_f32() + b.to_f32()).to_f32()).collect();
            let sum: Vec<f32> = sum.to_vec()?.into_iter().map(bf16::to_f32).collect();
            run.same_bits(&format!("add_bf16 len={len} shift={shift}"), &sum, &expected);
            let expected: Vec<f32> = wide[shift..].iter().zip(&b).map(|(a, b)| a + b.to_f32()).collect();
            run.same_bits(&format!("add_f32_bf16 len={len} shift={shift}"), &wide_sum.to_vec()?, &expected);
        }
    }
    Ok(())
}

pub fn adamw_matches_reference(run: &mut Run) -> Result<(), Error> {
    let args = AdamW { lr: 3e-4, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step: 7 };
    let cases = [
        (args, 0.6),
        (AdamW { step: 1, weight_decay: 0.0, ..args }, 1.0),
        (AdamW { step: 100_000, beta2: 0.999, eps: 1e-3, ..args }, 0.6),
    ];
    for len in run.sizes(&LENGTHS, &OF_A_CARD) {
        for &(ref args, grad_scale) in &cases {
            let scale_on = run.on(&[grad_scale])?;
            let (param, grad, m) = (uniform(1, len), uniform(2, len), uniform(3, len));
            let v: Vec<f32> = uniform(4, len).iter().map(|x| x.abs()).collect();
            let [mut p, g, mut m_new, mut v_new] = run.all_on([&param, &grad, &m, &v])?;
            adamw(args, scale_on.as_slice(), p.as_mut(), g.as_slice(), m_new.as_mut(), v_new.as_mut())?;
            let actual = [p.to_vec()?, m_new.to_vec()?, v_new.to_vec()?];

            // The bounds are those of the CPU kernel's test, which explains them.
            let (param_ref, m_ref, v_ref) = reference::adamw(args, grad_scale, &param, &grad, &m, &v);
            let what = format!("adamw len={len} step={}", args.step);
            let m_bound = |i: usize| {
                let (old, new) = (m[i] as f64 * args.beta1 as f64, grad[i] as f64 * (1.0 - args.beta1 as f64));
                4.0 * ROUNDING * (old.abs() + new.abs())
            };
            run.within(&format!("{what} m"), &actual[1], &m_ref, m_bound);
            run.within(&format!("{what} v"), &actual[2], &v_ref, |i| 6.0 * ROUNDING * v_ref[i]);
            run.within(&format!("{what} param"), &actual[0], &param_ref, |i| {
                let correction = |beta: f32| 1.0 - (beta as f64).powf(args.step as f64);
                let denominator = (v_ref[i] / correction(args.beta2)).sqrt() + args.eps as f64;
                let factor = args.lr as f64 / correction(args.beta1) / denominator;
                12.0 * ROUNDING * factor * m_ref[i].abs() + factor * m_bound(i) + 4.0 * ROUNDING * param[i].abs() as f64
            });

            let Some(team) = cpu_team() else { continue };
            let [mut p, mut m, mut v] = [param, m, v];
            kernels::adamw::adamw(&team, args, grad_scale, &mut p, &grad, &mut m, &mut v);
            for (actual, expected) in actual.iter().zip([&p, &m, &v]) {
                run.same_bits(&format!("{what}: not the bits of the CPU"), actual, expected);
            }
        }
    }
    Ok(())
}

pub fn clip_factor_is_that_of_the_cpu_and_nan_changes_nothing(run: &mut Run) -> Result<(), Error> {
    let cases = [(4.0, 1.0), (4.0, 2.0), (3.0, 0.7), (1e300, 1e-3), (2.0, 0.0), (0.0, 1.0)];
    let finite = cases.map(|(squares, max_norm)| (squares, 5.5, max_norm));
    let bad = [(f64::INFINITY, 1.0), (f64::NAN, 1.0), (1.0, f64::NAN), (1.0, f64::INFINITY)].map(|(s, l)| (s, l, 1.0));
    for (squares, loss, max_norm) in finite.into_iter().chain(bad) {
        let what = format!("clip_factor({squares}, {loss}, {max_norm})");
        let ([squares_on, loss_on], mut factor) = (run.all_on([&[squares], &[loss]])?, run.on(&[0.0f32])?);
        clip_factor(squares_on.as_slice(), loss_on.as_slice(), max_norm, factor.as_mut())?;
        let expected = kernels::adamw::clip_factor(squares, loss, max_norm);
        run.same_bits(&what, &factor.to_vec()?, &[expected]);
        if !expected.is_nan() {
            continue;
        }
        let args = AdamW { lr: 0.1, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step: 1 };
        let before = uniform(1, 5);
        let [mut p, mut m, mut v, g] = run.all_on([&before, &before, &before, &before])?;
        adamw(&args, factor.as_slice(), p.as_mut(), g.as_slice(), m.as_mut(), v.as_mut())?;
        for after in [p, m, v] {
            run.same_bits(&format!("adamw with {what}"), &after.to_vec()?, &before);
        }
    }
    Ok(())
}
