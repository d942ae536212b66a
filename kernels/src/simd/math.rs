//! Vectorised exponential and sigmoid, generic over the level. Accuracy is stated in ULP and tested on every level.

use super::Simd;

/// `e^x`.
///
/// Method: `x = n ln 2 + r` with `|r| <= ln 2 / 2` (Cody and Waite, `ln 2` split in two so that `n * LN2_HIGH` is exact),
/// a polynomial for `e^r`, then a scaling by `2^n` in two steps, which reaches into the subnormals and up to the overflow.
/// Special values: `exp(-inf) = 0`, `exp(+inf) = +inf`, `exp(NaN) = NaN`, `exp(0) = 1`.
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::F32) -> S::F32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // The high part has 15 significant bits: times |n| <= 150 (8 bits) it is exact in 24.
    const LN2_HIGH: f32 = 0.693_145_75;
    const LN2_LOW: f32 = 1.428_606_8e-6;
    // Below EXP_MIN the result rounds to 0, above EXP_MAX it overflows; clamping keeps n in the range of the two steps.
    const EXP_MIN: f32 = -104.0;
    const EXP_MAX: f32 = 89.0;

    // `min` and `max` return their second operand for NaN, so a NaN passes through.
    let clamped = s.min(s.splat(EXP_MAX), s.max(s.splat(EXP_MIN), x));
    let n = s.round(s.mul(clamped, s.splat(LOG2_E)));
    let r = s.mul_add(n, s.splat(-LN2_HIGH), clamped);
    let r = s.mul_add(n, s.splat(-LN2_LOW), r);

    // Taylor coefficients up to r^7 / 7!: the first term left out is below 2^-29 at |r| = ln 2 / 2.
    let mut p = s.splat(1.0 / 5040.0);
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = s.mul_add(p, r, s.splat(c));
    }

    // 2^n = 2^(n - half) * 2^half, both halves well inside the normal range.
    let half = s.round(s.mul(n, s.splat(0.5)));
    s.mul(s.mul(p, s.exp2_int(half)), s.exp2_int(s.sub(n, half)))
}

/// `sigmoid(x) = 1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let one = s.splat(1.0);
    s.div(one, s.add(one, exp(s, s.sub(s.splat(0.0), x))))
}
