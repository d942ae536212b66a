//! Matrix times vector, for decoding.

use crate::{Beta, Mat, MatMut, Team, gemm::gemm};

/// `y = W x`: `y[i] = dot(W[i, :], x)`. Shapes: w `[M, K]`, x `[K]`, y `[M]`.
pub fn gemv(team: &Team, w: &[f32], x: &[f32], y: &mut [f32]) {
    let (m, k) = (y.len(), x.len());
    gemm(team, Mat::new(w, m, k), Mat::new(x, k, 1), Beta::Zero, MatMut::new(y, m, 1));
}
