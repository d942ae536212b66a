//! Vectorised exponential, sigmoid and SILU, generic over the level. The tests hold every level to the ULP stated here.

use super::Simd;

/// `e^x`, within 0.91 ULP with fused `mul_add` and 1.18 without (over all floats), subnormal results included.
///
/// Method: `x = n ln 2 + r` with `|r| <= ln 2 / 2` (Cody and Waite, `ln 2` split in two so that `n * LN2_HIGH` is exact),
/// a polynomial for `e^r`, then a scaling by `2^n`, which reaches into the subnormals and up to the overflow.
/// Special values: `exp(-inf) = 0`, `exp(+inf) = +inf`, `exp(NaN) = NaN`, `exp(0) = 1`.
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::F32) -> S::F32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // The high part has 15 significant bits: times |n| <= 150 (8 bits) it is exact in 24.
    const LN2_HIGH: f32 = 0.693_145_75;
    const LN2_LOW: f32 = 1.428_606_8e-6;
    // Below EXP_MIN the result rounds to 0, above EXP_MAX it overflows; clamping keeps n in the range of `mul_pow2`.
    const EXP_MIN: f32 = -104.0;
    const EXP_MAX: f32 = 89.0;
    // e^r = 1 + r + r^2 q(r), the coefficients of q from r^4 down. They minimise the largest relative error of e^r over
    // |r| <= ln 2 / 2: 2^-28.3, a twentieth of an ULP. Computed for this file by Remez exchange in 50-digit arithmetic.
    const Q: [f32; 5] = [1.381_460_8e-3, 8.368_717e-3, 4.166_839e-2, 1.666_652_1e-1, 4.999_999_3e-1];

    // `min` and `max` return their second operand for NaN, so a NaN passes through.
    let clamped = s.min(s.splat(EXP_MAX), s.max(s.splat(EXP_MIN), x));
    let n = s.round(s.mul(clamped, s.splat(LOG2_E)));
    let r = s.mul_add(n, s.splat(-LN2_HIGH), clamped);
    let r = s.mul_add(n, s.splat(-LN2_LOW), r);

    let mut p = s.splat(Q[0]);
    for c in [Q[1], Q[2], Q[3], Q[4], 1.0, 1.0] {
        p = s.mul_add(p, r, s.splat(c));
    }
    s.mul_pow2(p, n)
}

/// `(sigmoid(x), 1 - sigmoid(x))`, both without cancellation: with `e = e^-|x|` they are `1 / (1 + e)` and `e / (1 + e)`.
#[inline(always)]
fn sigmoid_and_complement<S: Simd>(s: S, x: S::F32) -> (S::F32, S::F32) {
    let minus_abs = s.min(x, s.sub(s.splat(0.0), x));
    let e = exp(s, minus_abs);
    let large = s.div(s.splat(1.0), s.add(s.splat(1.0), e));
    let small = s.mul(e, large);
    let negative = s.lt(x, s.splat(0.0));
    (s.select(negative, small, large), s.select(negative, large, small))
}

/// `sigmoid(x) = 1 / (1 + e^-x)`, within 3 ULP, subnormal results included.
/// Special values: `sigmoid(-inf) = 0`, `sigmoid(+inf) = 1`, `sigmoid(NaN) = NaN`.
#[inline(always)]
pub fn sigmoid<S: Simd>(s: S, x: S::F32) -> S::F32 {
    sigmoid_and_complement(s, x).0
}

/// `silu(x) = x sigmoid(x)` and its derivative `sigmoid(x) + silu(x) (1 - sigmoid(x))`.
///
/// Accuracy: the value within 4 ULP for `x >= -87`; below, where sigmoid is subnormal, within `3 |x| 2^-149` (the value is
/// below 1.4e-36 there). The derivative, which has a zero at -1.278, within `4 2^-24`.
/// Special values: both are NaN at NaN, as in IEEE arithmetic on the formulas; the value is `-inf * 0` = NaN at -inf and
/// +inf at +inf, the derivative NaN at both.
#[inline(always)]
pub fn silu<S: Simd>(s: S, x: S::F32) -> (S::F32, S::F32) {
    let (sigmoid, complement) = sigmoid_and_complement(s, x);
    let silu = s.mul(x, sigmoid);
    (silu, s.mul_add(silu, complement, sigmoid))
}

#[cfg(test)]
mod tests {
    use crate::elementwise;
    use crate::reference;
    use crate::simd::Level;
    use crate::team::Team;
    use crate::testing::{ROUNDING, ulps};

    type Vector = fn(&Team, &[f32], &mut [f32]);

    /// Inputs where something special happens: zeros, infinities, NaN, the smallest and largest numbers, the edges of
    /// overflow, of subnormal results and of 0.
    const SPECIAL: [f32; 22] = [
        0.0,
        -0.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        f32::MIN_POSITIVE,
        f32::MAX,
        f32::MIN,
        1e-45,
        -1e-45,
        1.0,
        -1.0,
        88.722_83,
        88.722_84,
        -87.336_54,
        -87.336_55,
        -103.278_93,
        -103.972_08,
        -103.972_084,
        -104.0,
        -88.722_84,
        -104.1,
    ];

    /// The largest `error` over `SPECIAL` and the floats whose bit patterns are the multiples of `stride`, on every level.
    /// Panics if it is over the bound, naming the worst input.
    fn check(what: &str, stride: usize, f: Vector, error: impl Fn(f32, f32) -> f64, bound: impl Fn(Level) -> f64) {
        const BLOCK: u64 = 1 << 16;
        for level in Level::available() {
            let team = Team::serial(level);
            let (mut worst, mut worst_at, mut worst_is) = (0.0, 0.0, 0.0);
            let mut xs = SPECIAL.to_vec();
            let mut next = 0u64;
            while !xs.is_empty() {
                let mut ys = vec![0.0; xs.len()];
                f(&team, &xs, &mut ys);
                for (&x, &y) in xs.iter().zip(&ys) {
                    let e = error(x, y);
                    if e.is_nan() || e > worst {
                        (worst, worst_at, worst_is) = (if e.is_nan() { f64::INFINITY } else { e }, x, y);
                    }
                }
                let end = (next + BLOCK * stride as u64).min(1 << 32);
                xs = (next..end).step_by(stride).map(|bits| f32::from_bits(bits as u32)).collect();
                next += xs.len() as u64 * stride as u64;
            }
            println!("{what} {level}: worst {worst:.3} at {worst_at:e} ({:#010x})", worst_at.to_bits());
            assert!(
                worst <= bound(level),
                "{what} {level}: {worst:.3} over the bound {:.3} at x = {worst_at:e} ({:#010x}): is {worst_is:e}",
                bound(level),
                worst_at.to_bits(),
            );
        }
    }

    fn check_exp(stride: usize) {
        check(
            "exp (ULP)",
            stride,
            elementwise::exp,
            |x, y| ulps(y, (x as f64).exp()),
            |level| {
                if level > Level::PORTABLE { 0.91 } else { 1.18 }
            },
        );
    }

    fn check_sigmoid(stride: usize) {
        check("sigmoid (ULP)", stride, elementwise::sigmoid, |x, y| ulps(y, reference::sigmoid(x as f64)), |_| 3.0);
    }

    fn check_silu(stride: usize) {
        let error = |x: f32, y: f32| {
            let expected = reference::silu(x as f64).0;
            if x >= -87.0 || x.is_nan() || x.is_infinite() {
                ulps(y, expected)
            } else {
                // In units in which the bound is 4 as well.
                (y as f64 - expected).abs() / (0.75 * x.abs() as f64 * f64::powi(2.0, -149))
            }
        };
        check("silu (ULP)", stride, elementwise::silu, error, |_| 4.0);
    }

    fn check_silu_derivative(stride: usize) {
        let f: Vector = |team, x, y| elementwise::silu_backward(team, &vec![1.0; x.len()], x, y);
        let error = |x: f32, y: f32| {
            let expected = reference::silu(x as f64).1;
            let nan_lost = if y.is_nan() { 0.0 } else { f64::INFINITY };
            if expected.is_nan() { nan_lost } else { (y as f64 - expected).abs() / ROUNDING }
        };
        check("silu derivative (2^-24)", stride, f, error, |_| 4.0);
    }

    /// Every 1009th float: a stride that is odd and prime, so that all exponents and low bits occur.
    #[test]
    fn within_the_stated_ulps() {
        check_exp(1009);
        check_sigmoid(1009);
        check_silu(1009);
        check_silu_derivative(1009);
    }

    // All floats: `cargo test --release -p kernels --lib every_float -- --ignored --nocapture`

    #[test]
    #[ignore = "2^32 floats on every level take minutes: cargo test --release -p kernels --lib every_float -- --ignored --nocapture"]
    fn exp_at_every_float() {
        check_exp(1);
    }

    #[test]
    #[ignore = "2^32 floats on every level take minutes: cargo test --release -p kernels --lib every_float -- --ignored --nocapture"]
    fn sigmoid_at_every_float() {
        check_sigmoid(1);
    }

    #[test]
    #[ignore = "2^32 floats on every level take minutes: cargo test --release -p kernels --lib every_float -- --ignored --nocapture"]
    fn silu_at_every_float() {
        check_silu(1);
    }

    #[test]
    #[ignore = "2^32 floats on every level take minutes: cargo test --release -p kernels --lib every_float -- --ignored --nocapture"]
    fn silu_derivative_at_every_float() {
        check_silu_derivative(1);
    }
}
