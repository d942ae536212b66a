use crate::activation::{Activation, MaskSite, Positive};
use crate::philox::{ROUNDS, key, philox4x32};

/// `max(x, 0)` and its derivative, which is 0 at 0. NaN gives NaN.
pub fn relu(x: f64) -> (f64, f64) {
    if x > 0.0 {
        (x, 1.0)
    } else if x <= 0.0 {
        (0.0, 0.0)
    } else {
        (x, x)
    }
}

/// `1 / (1 + e^-x)`.
pub fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// `x sigmoid(x)` and its derivative.
pub fn silu(x: f64) -> (f64, f64) {
    // sigmoid(-x) is 1 - sigmoid(x) without the cancellation.
    (x * sigmoid(x), sigmoid(x) * (1.0 + x * sigmoid(-x)))
}

/// `max(x, 0)^2` and its derivative. NaN gives NaN.
pub fn relu2(x: f64) -> (f64, f64) {
    let (relu, _) = relu(x);
    (relu * relu, 2.0 * relu)
}

/// `tanh(x)` and its derivative.
pub fn tanh(x: f64) -> (f64, f64) {
    (x.tanh(), x.cosh().powi(-2))
}

/// The complementary error function, `2 / sqrt(pi)` times the integral of `e^(-t^2)` from x to infinity, to 14 digits.
/// Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.6 and 7.1.14.
pub fn erfc(x: f64) -> f64 {
    let gauss = (-x * x).exp() / std::f64::consts::PI.sqrt();
    if x < -2.0 {
        2.0 - erfc(-x)
    } else if x < 2.0 {
        // erf(x) = 2 gauss sum_n 2^n x^(2n + 1) / (1 3 .. (2n + 1)): terms of one sign. The 60th is below 1e-24 of the sum.
        let (mut term, mut sum) = (x, x);
        for n in 1..60 {
            term *= 2.0 * x * x / (2 * n + 1) as f64;
            sum += term;
        }
        1.0 - 2.0 * gauss * sum
    } else {
        // gauss / (x + (1/2) / (x + (2/2) / (x + (3/2) / (x + ..)))): 120 levels leave e^-60 at x = 2.
        let tail = (1..=120).rev().fold(x, |tail, k| x + k as f64 / 2.0 / tail);
        gauss / tail
    }
}

/// `x Phi(x)` with `Phi(x) = erfc(-x / sqrt(2)) / 2`, and its derivative; the limits at the infinities (arXiv 1606.08415).
pub fn gelu(x: f64) -> (f64, f64) {
    if x < -38.0 {
        // Below 1e-300; and -inf * 0 would be NaN.
        return (-0.0, 0.0);
    }
    if x > 38.0 {
        return (x, 1.0);
    }
    let phi = erfc(-x / std::f64::consts::SQRT_2) / 2.0;
    (x * phi, phi + x * (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt())
}

/// The 16-bit draw of element `(row, column)`: the specification of which bits of which Philox call it takes.
pub fn draw16(site: MaskSite, row: usize, column: usize) -> u32 {
    let counter = [
        column as u32 / 8,
        site.first_token.wrapping_add(row as u32),
        site.layer as u32 | (site.stream as u32) << 16,
        site.step,
    ];
    let word = philox4x32(ROUNDS, counter, key(site.seed))[column % 8 / 2];
    if column.is_multiple_of(2) { word & 0xFFFF } else { word >> 16 }
}

/// psi(x) and psi'(x) at `(row, column)` (arXiv 2509.22358).
pub fn activation(act: Activation, row: usize, column: usize, x: f64) -> (f64, f64) {
    match act {
        Activation::Relu => relu(x),
        Activation::Silu => silu(x),
        Activation::Gelu => gelu(x),
        Activation::Relu2 => relu2(x),
        Activation::Tanh => tanh(x),
        Activation::Stochastic { negative, positive, threshold, site } => {
            if x < 0.0 {
                let drawn = negative[usize::from(draw16(site, row, column) < threshold)];
                activation(drawn.into(), row, column, x)
            } else {
                match positive {
                    // RELU is the identity here, with derivative 0 at 0.
                    Positive::Identity => relu(x),
                    Positive::Silu => silu(x),
                }
            }
        }
    }
}

/// Specification of [`gated_activation`](crate::activation::gated_activation).
pub fn gated_activation(act: Activation, g: &[f32], u: &[f32], d_ff: usize) -> Vec<f64> {
    let psi = |i: usize| activation(act, i / d_ff, i % d_ff, g[i] as f64).0;
    (0..g.len()).map(|i| psi(i) * u[i] as f64).collect()
}

/// Specification of [`gated_activation_backward`](crate::activation::gated_activation_backward): returns `(dg, du, h)`.
pub fn gated_activation_backward(
    act: Activation,
    l1: f32,
    dh: &[f32],
    g: &[f32],
    u: &[f32],
    d_ff: usize,
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (mut dg, mut du, mut h) = (Vec::new(), Vec::new(), Vec::new());
    for i in 0..g.len() {
        let (value, derivative) = activation(act, i / d_ff, i % d_ff, g[i] as f64);
        let latent = value * u[i] as f64;
        // What is 0 in f32 has no sign.
        let sign = if latent as f32 == 0.0 { 0.0 } else { latent.signum() };
        let dh = dh[i] as f64 + l1 as f64 * sign;
        dg.push(dh * u[i] as f64 * derivative);
        du.push(dh * value);
        h.push(latent);
    }
    (dg, du, h)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against values computed with 50 digits.
    #[test]
    fn erfc_is_right_to_14_digits() {
        for (x, expected) in [
            (-5.0, 1.999_999_999_998_462_5),
            (-2.5, 1.999_593_047_982_555),
            (-1.9, 1.992_790_429_235_257_5),
            (-0.3, 1.328_626_759_459_127_4),
            (0.001, 0.998_871_621_209_030_8),
            (0.7, 0.322_198_806_162_581_5),
            (1.99, 0.004_888_586_800_383_003),
            (2.0, 0.004_677_734_981_047_266),
            (3.1, 1.164_865_736_719_959_6e-5),
            (6.5, 3.842_148_327_120_647_5e-20),
            (12.0, 1.356_261_169_205_904_2e-64),
            (26.0, 5.663_192_408_856_143e-296),
        ] {
            let actual = erfc(x);
            // Near 2 the digits of 1 - erf are gone: 14 are those of 1, and of erfc beyond. e^(-x^2) is off by x^2 roundings.
            let bound = 1e-14 * if x < 2.0 { 0.01 } else { expected * x * x };
            assert!(
                (actual - expected).abs() <= bound.max(1e-14 * expected),
                "erfc({x}) = {actual:e}, expected {expected:e}"
            );
        }
    }
}
