//! Vectorised exponential, sigmoid, SILU, GELU and tanh, generic over the level. The tests hold every level to the ULP stated
//! here.

use super::Simd;

/// `e^x`, within 0.91 ULP with fused `mul_add` and 1.18 without (over all floats), subnormal results included.
///
/// Method: `x = n ln 2 + r` with `|r| <= ln 2 / 2` (Cody and Waite, `ln 2` split in two so that `n * LN2_HIGH` is exact),
/// a polynomial for `e^r`, then a scaling by `2^n`, which reaches into the subnormals and up to the overflow.
/// Special values: `exp(-inf) = 0`, `exp(+inf) = +inf`, `exp(NaN) = NaN`, `exp(0) = 1`.
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::F32) -> S::F32 {
    // Below EXP_MIN the result rounds to 0, above EXP_MAX it overflows; clamping keeps n in the range of `mul_pow2`.
    const EXP_MIN: f32 = -104.0;
    const EXP_MAX: f32 = 89.0;
    // `min` and `max` return their second operand for NaN, so a NaN passes through.
    let (n, r) = reduce(s, s.min(s.splat(EXP_MAX), s.max(s.splat(EXP_MIN), x)));
    exp_reduced(s, n, r)
}

/// `n` and `r` with `x = n ln 2 + r`, for `|x| <= 106`.
#[inline(always)]
fn reduce<S: Simd>(s: S, x: S::F32) -> (S::F32, S::F32) {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // The high part has 15 significant bits: times |n| <= 153 (8 bits) it is exact in 24.
    const LN2_HIGH: f32 = 0.693_145_75;
    const LN2_LOW: f32 = 1.428_606_8e-6;
    let n = s.round(s.mul(x, s.splat(LOG2_E)));
    let r = s.mul_add(n, s.splat(-LN2_HIGH), x);
    (n, s.mul_add(n, s.splat(-LN2_LOW), r))
}

/// `2^n e^r` for `|r| <= ln 2 / 2` and a little more.
#[inline(always)]
fn exp_reduced<S: Simd>(s: S, n: S::F32, r: S::F32) -> S::F32 {
    // e^r = 1 + r + r^2 q(r), the coefficients of q from r^4 down. They minimise the largest relative error of e^r over
    // |r| <= ln 2 / 2: 2^-28.3, a twentieth of an ULP. Computed for this file by Remez exchange in 50-digit arithmetic.
    const Q: [f32; 5] = [1.381_460_8e-3, 8.368_717e-3, 4.166_839e-2, 1.666_652_1e-1, 4.999_999_3e-1];
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

/// `gelu(x) = x Phi(x)`, Phi being the normal distribution function (the exact form, Hugging Face's `gelu`; not the tanh
/// approximation `gelu_new`), and its derivative `Phi(x) + x phi(x)` with `phi(x) = e^(-x^2 / 2) / sqrt(2 pi)`.
///
/// Method: for `z = |x|`, `Phi(-z) = e^(-z^2 / 2) P(t) / (z + 3.5)` with `t = (z - 3.5) / (z + 3.5)` and a polynomial P; the
/// square is split so that the exponent carries no rounding of it. `Phi(z) = 1 - Phi(-z)` then cancels nothing. For `z < 1`,
/// where roundings of P would be large beside those of `x / 2`, `Phi(x) = 1 / 2 + x S(x^2)`.
///
/// Accuracy: the value within 5 ULP for `x >= -13`; below, where Phi is subnormal, within `3 |x| 2^-149` (the value is below
/// 8e-38 there). The derivative, which has a zero at -0.752, within `4 2^-24`.
/// Special values: the limits at both infinities, (-0, 0) and (+inf, 1); both are NaN at NaN.
/// Source: Hendrycks and Gimpel, arXiv 1606.08415.
#[inline(always)]
pub fn gelu<S: Simd>(s: S, x: S::F32) -> (S::F32, S::F32) {
    // Phi(-14.5) rounds to 0, and so does phi(14.5): beyond, x may as well be there.
    const FAR: f32 = 14.5;
    // Coefficients of P from t^9 down: largest relative error 2^-25.3 for z in 0 ..= 14.5, a fifth of an ULP. By Remez
    // exchange in 50-digit arithmetic, then rounded one by one from the constant up, refitting those that were left.
    const P: [f32; 9] = [
        4.061_924_7e-4,
        -4.733_481e-4,
        -3.155_608_7e-3,
        6.483_577_7e-3,
        1.739_894_2e-2,
        -1.160_513_7e-1,
        3.154_259_3e-1,
        -5.655_618_3e-1,
        7.444_160_6e-1,
    ];
    // Coefficients of S from x^10 down: largest relative error of Phi - 1/2 for |x| <= 1 2^-24.8, rounding of the coefficients
    // included. By Remez exchange as well.
    const MIDDLE: [f32; 5] = [1.134_864_1e-4, -1.186_33e-3, 9.973_323e-3, -6.649_036e-2, 3.989_423e-1];
    const INV_SQRT_2_PI: f32 = 0.398_942_3;

    // NaN passes through `min` and `max`.
    let above = s.max(s.splat(-FAR), x);
    let near = s.min(s.splat(FAR), above);
    let z = s.max(near, s.sub(s.splat(0.0), near));
    let inverse = s.div(s.splat(1.0), s.add(z, s.splat(3.5)));
    let t = s.mul(s.sub(z, s.splat(3.5)), inverse);
    let mut p = s.splat(9.444_525_5e-5);
    for c in P {
        p = s.mul_add(p, t, s.splat(c));
    }

    // z = coarse + fine, coarse a multiple of 2^-8 of 12 bits at most: its square is exact.
    let coarse = s.mul(s.round(s.mul(z, s.splat(256.0))), s.splat(1.0 / 256.0));
    let (fine, sum) = (s.sub(z, coarse), s.add(z, coarse));
    let (n, r) = reduce(s, s.mul(s.mul(coarse, coarse), s.splat(-0.5)));
    let e = exp_reduced(s, n, s.add(r, s.mul(s.mul(fine, sum), s.splat(-0.5))));

    let small = s.mul(e, s.mul(p, inverse));
    let tail = s.select(s.lt(x, s.splat(0.0)), small, s.sub(s.splat(1.0), small));

    let square = s.mul(near, near);
    let mut q = s.splat(-7.654_222e-6);
    for c in MIDDLE {
        q = s.mul_add(q, square, s.splat(c));
    }
    let middle = s.mul_add(near, q, s.splat(0.5));
    let phi = s.select(s.lt(z, s.splat(1.0)), middle, tail);
    // x / (z + 3.5) = -(1 + t) / 2 for negative x: fewer roundings than x Phi, and no factor is subnormal before e^(-z^2 / 2) is.
    let left = s.mul(e, s.mul(p, s.mul_add(t, s.splat(-0.5), s.splat(-0.5))));
    let right = s.mul(above, phi);
    let value = s.select(s.lt(above, s.splat(-1.0)), left, right);
    (value, s.mul_add(near, s.mul(e, s.splat(INV_SQRT_2_PI)), phi))
}

/// `tanh(x)` and its derivative `1 - tanh(x)^2 = 4 e / (1 + e)^2` with `e = e^(-2 |x|)`.
///
/// Method: `x + x^3 P(x^2)` for `|x| < 0.55`, where `1 - 2 e / (1 + e)` would cancel; that, with the sign of x, beyond.
/// Accuracy: the value within 2 ULP; the derivative within `4 2^-24`.
/// Special values: `tanh(-inf) = -1`, `tanh(+inf) = 1`, the derivative 0 at both; both are NaN at NaN.
#[inline(always)]
pub fn tanh<S: Simd>(s: S, x: S::F32) -> (S::F32, S::F32) {
    // P from x^8 down: largest relative error of tanh 2^-27.8 for |x| <= 0.55. By Remez exchange in 50-digit arithmetic.
    const P: [f32; 4] = [2.107_167_4e-2, -5.385_231e-2, 1.333_258_6e-1, -3.333_331_6e-1];
    const MIDDLE: f32 = 0.55;

    let minus_abs = s.min(x, s.sub(s.splat(0.0), x));
    let e = exp(s, s.add(minus_abs, minus_abs));
    let inverse = s.div(s.splat(1.0), s.add(s.splat(1.0), e));
    let share = s.mul(e, inverse);
    let large = s.mul_add(s.splat(-2.0), share, s.splat(1.0));
    let large = s.select(s.lt(x, s.splat(0.0)), s.sub(s.splat(0.0), large), large);

    let square = s.mul(x, x);
    let mut p = s.splat(-6.274_231_7e-3);
    for c in P {
        p = s.mul_add(p, square, s.splat(c));
    }
    let small = s.mul_add(s.mul(x, square), p, x);
    let value = s.select(s.lt(s.splat(-MIDDLE), minus_abs), small, large);
    (value, s.mul(s.splat(4.0), s.mul(share, inverse)))
}

#[cfg(test)]
mod tests {
    use crate::elementwise;
    use crate::reference;
    use crate::simd::Level;
    use crate::team::Team;
    use crate::testing::{ROUNDING, ulps};

    /// Inputs where something special happens: zeros, infinities, NaN, the smallest and largest numbers, the edges of
    /// overflow, of subnormal results and of 0.
    const SPECIAL: [f32; 36] = [
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
        0.55,
        -0.55,
        0.549_999_95,
        // Where gelu was 5.4 and 5.2 ULP off at the levels without fused multiply-adds.
        -12.991_469,
        -1.827_180_1,
        -13.0,
        -13.000_001,
        -14.17,
        -14.5,
        -14.6,
        14.5,
        6.0,
        9.1,
        -1e10,
    ];

    /// The largest `error` over `SPECIAL` and the floats whose bit patterns are the multiples of `stride`, on every level.
    /// Panics if it is over the bound, naming the worst input.
    fn check(
        what: &str,
        stride: usize,
        f: impl Fn(&Team, &[f32], &mut [f32]),
        error: impl Fn(f32, f32) -> f64,
        bound: impl Fn(Level) -> f64,
    ) {
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
        let error = |x: f32, y: f32| ulps_or_subnormal(x, y, reference::silu(x as f64).0, -87.0, 4.0);
        check("silu (ULP)", stride, elementwise::silu, error, |_| 4.0);
    }

    fn check_silu_derivative(stride: usize) {
        let backward = elementwise::silu_backward;
        check_derivative("silu derivative (2^-24)", stride, backward, |x| reference::silu(x).1);
    }

    /// The value where it is an ordinary number, in ULP; below `edge`, where a factor of it is subnormal, in units in which
    /// the bound is `bound` where it is `3 |x| 2^-149`.
    fn ulps_or_subnormal(x: f32, y: f32, expected: f64, edge: f32, bound: f64) -> f64 {
        if x >= edge || x.is_nan() || x.is_infinite() {
            ulps(y, expected)
        } else {
            (y as f64 - expected).abs() / (3.0 / bound * x.abs() as f64 * f64::powi(2.0, -149))
        }
    }

    /// The derivative that `backward` multiplies by, in units of 2^-24.
    fn check_derivative(
        what: &str,
        stride: usize,
        backward: fn(&Team, &[f32], &[f32], &mut [f32]),
        expected: fn(f64) -> f64,
    ) {
        check(
            what,
            stride,
            |team, x, y| backward(team, &vec![1.0; x.len()], x, y),
            |x, y| {
                let expected = expected(x as f64);
                let nan_lost = if y.is_nan() { 0.0 } else { f64::INFINITY };
                if expected.is_nan() { nan_lost } else { (y as f64 - expected).abs() / ROUNDING }
            },
            |_| 4.0,
        );
    }

    fn check_gelu(stride: usize) {
        let error = |x: f32, y: f32| ulps_or_subnormal(x, y, reference::gelu(x as f64).0, -13.0, 5.0);
        check("gelu (ULP)", stride, elementwise::gelu, error, |_| 5.0);
    }

    fn check_gelu_derivative(stride: usize) {
        let backward = elementwise::gelu_backward;
        check_derivative("gelu derivative (2^-24)", stride, backward, |x| reference::gelu(x).1);
    }

    fn check_tanh(stride: usize) {
        check("tanh (ULP)", stride, elementwise::tanh, |x, y| ulps(y, reference::tanh(x as f64).0), |_| 2.0);
    }

    fn check_tanh_derivative(stride: usize) {
        let backward = elementwise::tanh_backward;
        check_derivative("tanh derivative (2^-24)", stride, backward, |x| reference::tanh(x).1);
    }

    /// Every 1009th float: a stride that is odd and prime, so that all exponents and low bits occur.
    #[test]
    fn within_the_stated_ulps() {
        check_exp(1009);
        check_sigmoid(1009);
        check_silu(1009);
        check_silu_derivative(1009);
        check_gelu(1009);
        check_gelu_derivative(1009);
        check_tanh(1009);
        check_tanh_derivative(1009);
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

    #[test]
    #[ignore = "2^32 floats on every level take minutes: cargo test --release -p kernels --lib every_float -- --ignored --nocapture"]
    fn gelu_at_every_float() {
        check_gelu(1);
    }

    #[test]
    #[ignore = "2^32 floats on every level take minutes: cargo test --release -p kernels --lib every_float -- --ignored --nocapture"]
    fn gelu_derivative_at_every_float() {
        check_gelu_derivative(1);
    }

    #[test]
    #[ignore = "2^32 floats on every level take minutes: cargo test --release -p kernels --lib every_float -- --ignored --nocapture"]
    fn tanh_at_every_float() {
        check_tanh(1);
    }

    #[test]
    #[ignore = "2^32 floats on every level take minutes: cargo test --release -p kernels --lib every_float -- --ignored --nocapture"]
    fn tanh_derivative_at_every_float() {
        check_tanh_derivative(1);
    }
}
