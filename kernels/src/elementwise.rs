//! Elementwise arithmetic on equal lengths.
//!
//! One machinery: an operation is a struct that implements `Elementwise`, for vectors; `map` checks lengths, cuts the
//! work into tasks and owns the loop.

use crate::pointwise::{Gelu, Pointwise, Relu, Relu2, Silu, Tanh};
use crate::simd::map::spans;
use crate::simd::{Kernel, Simd, math};
use crate::{Team, Weight};
use half::bf16;

/// Elements a task takes. Six streams of 64 KiB fit L2, and at 40 GB/s a task lasts some microseconds, much longer than it
/// takes to hand out (about 0.1); the activations of one token stay on one thread.
pub(crate) const ELEMENTS_PER_TASK: usize = 16 * 1024;

/// An operation on `N` inputs and the old value of the destination (which costs nothing where it is not used).
trait Elementwise<const N: usize>: Copy + Sync {
    fn apply<S: Simd>(self, s: S, inputs: [S::F32; N], old: S::F32) -> S::F32;
}

/// `dst[i] = op(inputs[..][i], dst[i])`. Panics, naming `name`, if a length differs from that of `dst`.
#[track_caller]
fn map<const N: usize>(team: &Team, name: &str, op: impl Elementwise<N>, inputs: [&[f32]; N], dst: &mut [f32]) {
    for (i, input) in inputs.iter().enumerate() {
        assert_eq!(input.len(), dst.len(), "{name}: input {i} has {} elements, dst {}", input.len(), dst.len());
    }
    let level = team.level();
    team.run_chunks_mut(dst, ELEMENTS_PER_TASK, |task, dst| {
        let inputs = inputs.map(|input| &input[task * ELEMENTS_PER_TASK..][..dst.len()]);
        level.dispatch(Map { op, inputs, dst });
    });
}

struct Map<'a, O, const N: usize> {
    op: O,
    inputs: [&'a [f32]; N],
    dst: &'a mut [f32],
}

impl<O: Elementwise<N>, const N: usize> Kernel for Map<'_, O, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for at in spans(s, self.dst.len()) {
            let mut inputs = [s.splat(0.0); N];
            for (vector, input) in inputs.iter_mut().zip(self.inputs) {
                *vector = at.load(s, input);
            }
            let old = at.load(s, self.dst);
            at.store(s, self.op.apply(s, inputs, old), self.dst);
        }
    }
}

/// `dst = a`, rounded to bf16: to nearest, ties to even; NaN stays NaN. Panics if the lengths differ.
#[track_caller]
pub fn narrow(team: &Team, a: &[f32], dst: &mut [bf16]) {
    convert(team, "narrow", a, dst);
}

/// `dst = a`, exact. Panics if the lengths differ.
#[track_caller]
pub fn widen(team: &Team, a: &[bf16], dst: &mut [f32]) {
    convert(team, "widen", a, dst);
}

#[track_caller]
fn convert<A: Weight, D: Weight>(team: &Team, name: &str, a: &[A], dst: &mut [D]) {
    assert_eq!(a.len(), dst.len(), "{name}: a has {} elements, dst {}", a.len(), dst.len());
    let level = team.level();
    team.run_chunks_mut(dst, ELEMENTS_PER_TASK, |task, dst| {
        let a = &a[task * ELEMENTS_PER_TASK..][..dst.len()];
        level.dispatch(Convert { a, dst });
    });
}

struct Convert<'a, A, D> {
    a: &'a [A],
    dst: &'a mut [D],
}

impl<A: Weight, D: Weight> Kernel for Convert<'_, A, D> {
    type Output = ();

    // Plain code: integer shifts and selects, which the compiler makes into the vectors of the level.
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        self.dst.iter_mut().zip(self.a).for_each(|(dst, a)| *dst = D::round(a.widen()));
    }
}

/// `dst = a + b`, correctly rounded. Panics if a length differs.
#[track_caller]
pub fn add(team: &Team, a: &[f32], b: &[f32], dst: &mut [f32]) {
    #[derive(Clone, Copy)]
    struct Add;
    impl Elementwise<2> for Add {
        #[inline(always)]
        fn apply<S: Simd>(self, s: S, [a, b]: [S::F32; 2], _: S::F32) -> S::F32 {
            s.add(a, b)
        }
    }
    map(team, "add", Add, [a, b], dst);
}

/// `dst = a - b`, correctly rounded. Panics if a length differs.
#[track_caller]
pub fn sub(team: &Team, a: &[f32], b: &[f32], dst: &mut [f32]) {
    #[derive(Clone, Copy)]
    struct Sub;
    impl Elementwise<2> for Sub {
        #[inline(always)]
        fn apply<S: Simd>(self, s: S, [a, b]: [S::F32; 2], _: S::F32) -> S::F32 {
            s.sub(a, b)
        }
    }
    map(team, "sub", Sub, [a, b], dst);
}

/// `dst = a * b`, correctly rounded. Panics if a length differs.
#[track_caller]
pub fn mul(team: &Team, a: &[f32], b: &[f32], dst: &mut [f32]) {
    #[derive(Clone, Copy)]
    struct Mul;
    impl Elementwise<2> for Mul {
        #[inline(always)]
        fn apply<S: Simd>(self, s: S, [a, b]: [S::F32; 2], _: S::F32) -> S::F32 {
            s.mul(a, b)
        }
    }
    map(team, "mul", Mul, [a, b], dst);
}

/// `dst = a / b`, correctly rounded. Panics if a length differs.
#[track_caller]
pub fn div(team: &Team, a: &[f32], b: &[f32], dst: &mut [f32]) {
    #[derive(Clone, Copy)]
    struct Div;
    impl Elementwise<2> for Div {
        #[inline(always)]
        fn apply<S: Simd>(self, s: S, [a, b]: [S::F32; 2], _: S::F32) -> S::F32 {
            s.div(a, b)
        }
    }
    map(team, "div", Div, [a, b], dst);
}

/// `dst += factor * a`, rounded once on levels with a fused `mul_add`, else twice. Panics if a length differs.
#[track_caller]
pub fn axpy(team: &Team, factor: f32, a: &[f32], dst: &mut [f32]) {
    #[derive(Clone, Copy)]
    struct Axpy(f32);
    impl Elementwise<1> for Axpy {
        #[inline(always)]
        fn apply<S: Simd>(self, s: S, [a]: [S::F32; 1], old: S::F32) -> S::F32 {
            s.mul_add(s.splat(self.0), a, old)
        }
    }
    map(team, "axpy", Axpy(factor), [a], dst);
}

/// `dst = factor * a`, correctly rounded. Panics if a length differs.
#[track_caller]
pub fn scale(team: &Team, factor: f32, a: &[f32], dst: &mut [f32]) {
    #[derive(Clone, Copy)]
    struct Scale(f32);
    impl Elementwise<1> for Scale {
        #[inline(always)]
        fn apply<S: Simd>(self, s: S, [a]: [S::F32; 1], _: S::F32) -> S::F32 {
            s.mul(s.splat(self.0), a)
        }
    }
    map(team, "scale", Scale(factor), [a], dst);
}

/// `dst = e^a`. Panics if a length differs. Accuracy: [`math::exp`].
#[track_caller]
pub fn exp(team: &Team, a: &[f32], dst: &mut [f32]) {
    #[derive(Clone, Copy)]
    struct Exp;
    impl Elementwise<1> for Exp {
        #[inline(always)]
        fn apply<S: Simd>(self, s: S, [a]: [S::F32; 1], _: S::F32) -> S::F32 {
            math::exp(s, a)
        }
    }
    map(team, "exp", Exp, [a], dst);
}

/// `dst = ln a`, within 0.51 ULP: -inf at 0, NaN below. Panics if a length differs.
///
/// Scalar code at every level, in f64: no step of training and no token of inference takes logarithms of many numbers, so
/// it has not earned a vector form.
#[track_caller]
pub fn log(team: &Team, a: &[f32], dst: &mut [f32]) {
    assert_eq!(a.len(), dst.len(), "log: input 0 has {} elements, dst {}", a.len(), dst.len());
    team.run_chunks_mut(dst, ELEMENTS_PER_TASK, |task, dst| {
        for (dst, &a) in dst.iter_mut().zip(&a[task * ELEMENTS_PER_TASK..]) {
            *dst = (a as f64).ln() as f32;
        }
    });
}

/// `dst = sigmoid(a) = 1 / (1 + e^-a)`. Panics if a length differs. Accuracy: [`math::sigmoid`].
#[track_caller]
pub fn sigmoid(team: &Team, a: &[f32], dst: &mut [f32]) {
    #[derive(Clone, Copy)]
    struct Sigmoid;
    impl Elementwise<1> for Sigmoid {
        #[inline(always)]
        fn apply<S: Simd>(self, s: S, [a]: [S::F32; 1], _: S::F32) -> S::F32 {
            math::sigmoid(s, a)
        }
    }
    map(team, "sigmoid", Sigmoid, [a], dst);
}

/// The value of a [`Pointwise`] function.
#[derive(Clone, Copy)]
struct Value<P>(P);

impl<P: Pointwise> Elementwise<1> for Value<P> {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, [x]: [S::F32; 1], _: S::F32) -> S::F32 {
        self.0.eval(s, x).0
    }
}

/// The backward of a [`Pointwise`] function: `dy * f'(x)`.
#[derive(Clone, Copy)]
struct Chain<P>(P);

impl<P: Pointwise> Elementwise<2> for Chain<P> {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, [dy, x]: [S::F32; 2], _: S::F32) -> S::F32 {
        s.mul(dy, self.0.eval(s, x).1)
    }
}

/// `dst = max(a, 0)`, exact; NaN stays NaN and -0 stays -0. Panics if a length differs.
#[track_caller]
pub fn relu(team: &Team, a: &[f32], dst: &mut [f32]) {
    map(team, "relu", Value(Relu), [a], dst);
}

/// `dx = dy` where `x > 0`, `dy * 0` where `x <= 0` (the derivative at 0 is 0), NaN where x is NaN. Exact.
/// Panics if a length differs.
#[track_caller]
pub fn relu_backward(team: &Team, dy: &[f32], x: &[f32], dx: &mut [f32]) {
    map(team, "relu_backward", Chain(Relu), [dy, x], dx);
}

/// `dst = a sigmoid(a)`. Panics if a length differs. Accuracy: [`math::silu`].
#[track_caller]
pub fn silu(team: &Team, a: &[f32], dst: &mut [f32]) {
    map(team, "silu", Value(Silu), [a], dst);
}

/// `dx = dy * silu'(x)`, with `silu'(x) = sigmoid(x) (1 + x (1 - sigmoid(x)))`. Panics if a length differs.
/// Accuracy: [`math::silu`] and one rounding.
#[track_caller]
pub fn silu_backward(team: &Team, dy: &[f32], x: &[f32], dx: &mut [f32]) {
    map(team, "silu_backward", Chain(Silu), [dy, x], dx);
}

/// `dst = a Phi(a)`, Phi being the normal distribution function. Panics if a length differs. Accuracy: [`math::gelu`].
#[track_caller]
pub fn gelu(team: &Team, a: &[f32], dst: &mut [f32]) {
    map(team, "gelu", Value(Gelu), [a], dst);
}

/// `dx = dy * gelu'(x)`, with `gelu'(x) = Phi(x) + x e^(-x^2 / 2) / sqrt(2 pi)`. Panics if a length differs.
/// Accuracy: [`math::gelu`] and one rounding.
#[track_caller]
pub fn gelu_backward(team: &Team, dy: &[f32], x: &[f32], dx: &mut [f32]) {
    map(team, "gelu_backward", Chain(Gelu), [dy, x], dx);
}

/// `dst = max(a, 0)^2`, correctly rounded; NaN stays NaN. Panics if a length differs. Source: So et al., arXiv 2109.08668.
#[track_caller]
pub fn relu2(team: &Team, a: &[f32], dst: &mut [f32]) {
    map(team, "relu2", Value(Relu2), [a], dst);
}

/// `dx = dy * 2 max(x, 0)`, correctly rounded; NaN where x is NaN. Panics if a length differs.
#[track_caller]
pub fn relu2_backward(team: &Team, dy: &[f32], x: &[f32], dx: &mut [f32]) {
    map(team, "relu2_backward", Chain(Relu2), [dy, x], dx);
}

/// `dst = tanh(a)`. Panics if a length differs. Accuracy: [`math::tanh`].
#[track_caller]
pub fn tanh(team: &Team, a: &[f32], dst: &mut [f32]) {
    map(team, "tanh", Value(Tanh), [a], dst);
}

/// `dx = dy * (1 - tanh(x)^2)`. Panics if a length differs. Accuracy: [`math::tanh`] and one rounding.
#[track_caller]
pub fn tanh_backward(team: &Team, dy: &[f32], x: &[f32], dx: &mut [f32]) {
    map(team, "tanh_backward", Chain(Tanh), [dy, x], dx);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;
    use crate::simd::Level;
    use crate::testing::{ROUNDING, assert_within, lengths, teams, uniform};

    type Binary = fn(&Team, &[f32], &[f32], &mut [f32]);
    type Unary = fn(&Team, &[f32], &mut [f32]);

    fn long_lengths() -> impl Iterator<Item = usize> {
        lengths().chain([ELEMENTS_PER_TASK, 2 * ELEMENTS_PER_TASK + 17])
    }

    /// Round to nearest, ties to even, as integers; the reference shares nothing with the kernel. NaN needs a fraction bit that stays.
    #[test]
    fn narrow_rounds_to_nearest_and_widen_is_exact() {
        let mut x: Vec<f32> = uniform(1, 2 * ELEMENTS_PER_TASK).into_iter().map(|x| 8.0 * x * x * x).collect();
        let special = [0x0000_8000, 0x3F80_8000, 0x3F81_8000, 0x3F80_8001, 0x7F7F_FFFF, 0x7F80_0000, 0xFF80_0000, 1];
        x.extend(special.map(f32::from_bits));
        x.extend([0.0, -0.0, f32::NAN, f32::from_bits(0x7F80_0001), f32::from_bits(0xFFC0_0000)]);
        let nearest = |x: f32| ((x.to_bits() + 0x7FFF + (x.to_bits() >> 16 & 1)) >> 16) as u16;
        for team in teams() {
            for len in (0..70).chain([x.len()]) {
                let x = &x[x.len() - len..];
                let (mut narrow_x, mut wide) = (vec![bf16::ONE; len], vec![1.0; len]);
                narrow(&team, x, &mut narrow_x);
                widen(&team, &narrow_x, &mut wide);
                for i in 0..len {
                    let expected = if x[i].is_nan() { narrow_x[i].to_bits() | 0x7FC0 } else { nearest(x[i]) };
                    assert_eq!(narrow_x[i].to_bits(), expected, "narrow {} len={len}: of {:e}", team.level(), x[i]);
                    assert_eq!(wide[i].to_bits(), u32::from(expected) << 16, "widen {} len={len}", team.level());
                }
            }
        }
    }

    /// Every operation of two inputs, at every length and at shifted starts, with its error bound in roundings of the
    /// result and of `size`, a sum of absolute values.
    #[test]
    fn operations_on_two_inputs_match_reference() {
        type Reference = fn(f64, f64) -> f64;
        let cases: [(&str, Binary, Reference, [f64; 2]); 9] = [
            ("add", add, |a, b| a + b, [1.0, 0.0]),
            ("sub", sub, |a, b| a - b, [1.0, 0.0]),
            ("mul", mul, |a, b| a * b, [1.0, 0.0]),
            ("div", div, |a, b| a / b, [1.0, 0.0]),
            ("relu_backward", relu_backward, |a, b| a * reference::relu(b).1, [0.0, 0.0]),
            // The derivative within 4 roundings of 1, and the product.
            ("silu_backward", silu_backward, |a, b| a * reference::silu(b).1, [1.0, 4.0]),
            ("gelu_backward", gelu_backward, |a, b| a * reference::gelu(b).1, [1.0, 4.0]),
            ("relu2_backward", relu2_backward, |a, b| a * reference::relu2(b).1, [1.0, 0.0]),
            ("tanh_backward", tanh_backward, |a, b| a * reference::tanh(b).1, [1.0, 4.0]),
        ];
        for team in teams() {
            for len in long_lengths() {
                for (name, f, reference, [of_result, of_a]) in cases {
                    let shift = len % 5;
                    let (a, b) = (uniform(1, len + shift), uniform(2, len + shift));
                    let (a, b) = (&a[shift..], &b[shift..]);
                    let mut dst = vec![f32::NAN; len + shift];
                    f(&team, a, b, &mut dst[shift..]);
                    let expected: Vec<f64> = a.iter().zip(b).map(|(&a, &b)| reference(a as f64, b as f64)).collect();
                    assert_within(&format!("{name} {} len={len}", team.level()), &dst[shift..], &expected, |i| {
                        // 2^-149: a product may be subnormal.
                        ROUNDING * (of_result * expected[i].abs() + of_a * a[i].abs() as f64) + of_result * 1e-45
                    });
                }
            }
        }
    }

    #[test]
    fn operations_on_one_input_match_reference() {
        type Reference = fn(f64) -> f64;
        // Bounds in roundings of the result; 1 ULP is at most 2 of them.
        let cases: [(&str, Unary, Reference, f64); 7] = [
            ("relu", relu, |x| reference::relu(x).0, 0.0),
            ("exp", exp, f64::exp, 2.0 * 1.18),
            ("sigmoid", sigmoid, reference::sigmoid, 2.0 * 3.0),
            ("silu", silu, |x| reference::silu(x).0, 2.0 * 4.0),
            ("relu2", relu2, |x| reference::relu2(x).0, 1.0),
            ("tanh", tanh, |x| reference::tanh(x).0, 2.0 * 2.0),
            ("gelu", gelu, |x| reference::gelu(x).0, 2.0 * 5.0),
        ];
        for team in teams() {
            for len in long_lengths() {
                for (name, f, reference, roundings) in cases {
                    let x: Vec<f32> = uniform(1, len).into_iter().map(|x| 20.0 * x).collect();
                    let mut dst = vec![f32::NAN; len];
                    f(&team, &x, &mut dst);
                    let expected: Vec<f64> = x.iter().map(|&x| reference(x as f64)).collect();
                    assert_within(&format!("{name} {} len={len}", team.level()), &dst, &expected, |i| {
                        // Below -13 gelu has a subnormal factor.
                        let subnormal =
                            if name == "gelu" { 3.0 * x[i].abs() as f64 * f64::powi(2.0, -149) } else { 0.0 };
                        roundings * ROUNDING * expected[i].abs() + subnormal
                    });
                }
            }
        }
    }

    #[test]
    fn log_matches_reference() {
        for team in teams() {
            for len in long_lengths() {
                let x: Vec<f32> = uniform(1, len).into_iter().map(|x| (40.0 * x).exp()).collect();
                let mut dst = vec![f32::NAN; len];
                log(&team, &x, &mut dst);
                let expected: Vec<f64> = x.iter().map(|&x| (x as f64).ln()).collect();
                let bound = |i: usize| 2.0 * 0.51 * ROUNDING * expected[i].abs();
                assert_within(&format!("log {} len={len}", team.level()), &dst, &expected, bound);
            }
            let special = [0.0, -0.0, f32::INFINITY, 1.0, 1e-45, -1.0, f32::NAN];
            let mut dst = [7.0; 7];
            log(&team, &special, &mut dst);
            assert_eq!(dst[..4], [f32::NEG_INFINITY, f32::NEG_INFINITY, f32::INFINITY, 0.0], "log {}", team.level());
            assert!(dst[4] == -103.278_93 && dst[5].is_nan() && dst[6].is_nan(), "log {}: {dst:?}", team.level());
        }
    }

    #[test]
    fn axpy_and_scale_match_reference() {
        for team in teams() {
            for len in long_lengths() {
                let (a, old, factor) = (uniform(1, len), uniform(2, len), -0.7f32);
                let (mut sum, mut scaled) = (old.clone(), vec![f32::NAN; len]);
                axpy(&team, factor, &a, &mut sum);
                scale(&team, factor, &a, &mut scaled);
                let product = |i: usize| factor as f64 * a[i] as f64;
                let expected: Vec<f64> = (0..len).map(|i| old[i] as f64 + product(i)).collect();
                assert_within(&format!("axpy {} len={len}", team.level()), &sum, &expected, |i| {
                    ROUNDING * (product(i).abs() + expected[i].abs() + ROUNDING)
                });
                let expected: Vec<f64> = (0..len).map(product).collect();
                assert_within(&format!("scale {} len={len}", team.level()), &scaled, &expected, |i| {
                    ROUNDING * expected[i].abs()
                });
            }
        }
    }

    #[test]
    fn bits_do_not_depend_on_threads() {
        let len = 3 * ELEMENTS_PER_TASK + 5;
        let x = uniform(1, len);
        for level in Level::available() {
            let bits = |threads| {
                let mut dst = vec![0.0; len];
                silu(&Team::new(level, threads), &x, &mut dst);
                dst.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            assert!(bits(1) == bits(2) && bits(1) == bits(3), "silu {level}: bits differ between thread counts");
        }
    }

    #[test]
    #[should_panic(expected = "mul: input 1 has 3 elements, dst 4")]
    fn lengths_must_agree() {
        mul(&Team::serial(Level::SCALAR), &[0.0; 4], &[0.0; 3], &mut [0.0; 4]);
    }
}
