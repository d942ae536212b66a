use crate::activation::{Activation, MaskSite};
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
pub fn activation(activation: Activation, row: usize, column: usize, x: f64) -> (f64, f64) {
    match activation {
        Activation::Relu => relu(x),
        Activation::Silu => silu(x),
        Activation::Stochastic { threshold, site } => {
            if x < 0.0 && draw16(site, row, column) < threshold {
                silu(x)
            } else {
                relu(x)
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
    dh: &[f32],
    g: &[f32],
    u: &[f32],
    d_ff: usize,
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (mut dg, mut du, mut h) = (Vec::new(), Vec::new(), Vec::new());
    for i in 0..g.len() {
        let (value, derivative) = activation(act, i / d_ff, i % d_ff, g[i] as f64);
        dg.push(dh[i] as f64 * u[i] as f64 * derivative);
        du.push(dh[i] as f64 * value);
        h.push(value * u[i] as f64);
    }
    (dg, du, h)
}
