//! Activation functions of one number: the parts that [`activation`](crate::activation) and
//! [`elementwise`](crate::elementwise) are made of. A further activation is one struct here.

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
