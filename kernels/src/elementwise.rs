//! Elementwise arithmetic on equal lengths.

use crate::Team;
use crate::reference;

/// `dst = a + b`.
pub fn add(_team: &Team, a: &[f32], b: &[f32], dst: &mut [f32]) {
    dst.iter_mut().zip(a.iter().zip(b)).for_each(|(d, (a, b))| *d = a + b);
}
/// `dst = a - b`.
pub fn sub(_team: &Team, a: &[f32], b: &[f32], dst: &mut [f32]) {
    dst.iter_mut().zip(a.iter().zip(b)).for_each(|(d, (a, b))| *d = a - b);
}
/// `dst = a * b`.
pub fn mul(_team: &Team, a: &[f32], b: &[f32], dst: &mut [f32]) {
    dst.iter_mut().zip(a.iter().zip(b)).for_each(|(d, (a, b))| *d = a * b);
}
/// `dst = a / b`.
pub fn div(_team: &Team, a: &[f32], b: &[f32], dst: &mut [f32]) {
    dst.iter_mut().zip(a.iter().zip(b)).for_each(|(d, (a, b))| *d = a / b);
}
/// `dst += factor * a`.
pub fn axpy(_team: &Team, factor: f32, a: &[f32], dst: &mut [f32]) {
    dst.iter_mut().zip(a).for_each(|(d, a)| *d += factor * a);
}
/// `dst = factor * a`.
pub fn scale(_team: &Team, factor: f32, a: &[f32], dst: &mut [f32]) {
    dst.iter_mut().zip(a).for_each(|(d, a)| *d = factor * a);
}
/// `dst = e^a`.
pub fn exp(_team: &Team, a: &[f32], dst: &mut [f32]) {
    dst.iter_mut().zip(a).for_each(|(d, a)| *d = a.exp());
}
/// `dst = sigmoid(a)`.
pub fn sigmoid(_team: &Team, a: &[f32], dst: &mut [f32]) {
    dst.iter_mut().zip(a).for_each(|(d, a)| *d = 1.0 / (1.0 + (-a).exp()));
}
/// `dst = relu(a)`.
pub fn relu(_team: &Team, a: &[f32], dst: &mut [f32]) {
    dst.iter_mut().zip(a).for_each(|(d, &a)| *d = reference::relu(a as f64).0 as f32);
}
/// `dx = dy` where `x > 0`, else 0.
pub fn relu_backward(_team: &Team, dy: &[f32], x: &[f32], dx: &mut [f32]) {
    dx.iter_mut().zip(dy.iter().zip(x)).for_each(|(d, (dy, &x))| *d = dy * reference::relu(x as f64).1 as f32);
}
/// `dst = silu(a)`.
pub fn silu(_team: &Team, a: &[f32], dst: &mut [f32]) {
    dst.iter_mut().zip(a).for_each(|(d, &a)| *d = reference::silu(a as f64).0 as f32);
}
/// `dx = dy * silu'(x)`.
pub fn silu_backward(_team: &Team, dy: &[f32], x: &[f32], dx: &mut [f32]) {
    dx.iter_mut().zip(dy.iter().zip(x)).for_each(|(d, (dy, &x))| *d = dy * reference::silu(x as f64).1 as f32);
}
