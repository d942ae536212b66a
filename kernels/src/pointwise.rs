//! Activation functions of one number: the parts that [`activation`](crate::activation) and
//! [`elementwise`](crate::elementwise) are made of. A further activation is one struct here.

use crate::activation::{Fixed, Positive};
use crate::simd::{Simd, math};

/// A function of one number and its derivative, for vectors.
///
/// Both come from one method: a kernel that needs the value alone drops the other result and pays nothing (the operations
/// are pure), and the value has the same bits in forward and backward.
pub(crate) trait Pointwise: Copy + Sync {
    /// `(f(x), f'(x))`.
    fn eval<S: Simd>(self, s: S, x: S::F32) -> (S::F32, S::F32);
}

/// `max(x, 0)`; the derivative at 0 is 0. NaN gives NaN twice: `max` returns its second operand for NaN. -0 gives -0.
#[derive(Clone, Copy)]
pub(crate) struct Relu;

impl Pointwise for Relu {
    #[inline(always)]
    fn eval<S: Simd>(self, s: S, x: S::F32) -> (S::F32, S::F32) {
        let value = s.max(s.splat(0.0), x);
        // Where x is not positive the value serves as the derivative: 0, or NaN for NaN.
        (value, s.select(s.lt(s.splat(0.0), x), s.splat(1.0), value))
    }
}

/// `x sigmoid(x)`; accuracy and special values as [`math::silu`].
#[derive(Clone, Copy)]
pub(crate) struct Silu;

impl Pointwise for Silu {
    #[inline(always)]
    fn eval<S: Simd>(self, s: S, x: S::F32) -> (S::F32, S::F32) {
        math::silu(s, x)
    }
}

/// `x Phi(x)`, Phi the normal distribution function; accuracy and special values as [`math::gelu`].
#[derive(Clone, Copy)]
pub(crate) struct Gelu;

impl Pointwise for Gelu {
    #[inline(always)]
    fn eval<S: Simd>(self, s: S, x: S::F32) -> (S::F32, S::F32) {
        math::gelu(s, x)
    }
}

/// `max(x, 0)^2` and `2 max(x, 0)`: correctly rounded, the derivative exact. NaN gives NaN twice, +inf gives +inf twice.
#[derive(Clone, Copy)]
pub(crate) struct Relu2;

impl Pointwise for Relu2 {
    #[inline(always)]
    fn eval<S: Simd>(self, s: S, x: S::F32) -> (S::F32, S::F32) {
        let relu = s.max(s.splat(0.0), x);
        (s.mul(relu, relu), s.add(relu, relu))
    }
}

/// `tanh(x)`; accuracy and special values as [`math::tanh`].
#[derive(Clone, Copy)]
pub(crate) struct Tanh;

impl Pointwise for Tanh {
    #[inline(always)]
    fn eval<S: Simd>(self, s: S, x: S::F32) -> (S::F32, S::F32) {
        math::tanh(s, x)
    }
}

/// Chosen for every vector anew, the same way each time: for the pairs of [`Activation::Stochastic`] that have no kernel
/// compiled for themselves. The bits are those of the struct chosen.
///
/// [`Activation::Stochastic`]: crate::Activation::Stochastic
impl Pointwise for Fixed {
    #[inline(always)]
    fn eval<S: Simd>(self, s: S, x: S::F32) -> (S::F32, S::F32) {
        match self {
            Fixed::Relu => Relu.eval(s, x),
            Fixed::Silu => Silu.eval(s, x),
            Fixed::Gelu => Gelu.eval(s, x),
            Fixed::Relu2 => Relu2.eval(s, x),
            Fixed::Tanh => Tanh.eval(s, x),
        }
    }
}

impl Pointwise for Positive {
    #[inline(always)]
    fn eval<S: Simd>(self, s: S, x: S::F32) -> (S::F32, S::F32) {
        match self {
            // RELU is the identity for what is not negative.
            Positive::Identity => Relu.eval(s, x),
            Positive::Silu => Silu.eval(s, x),
        }
    }
}
