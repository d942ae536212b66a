//! Reductions in a fixed order.

use crate::Team;

/// `sum x`, accumulated in f32 within fixed blocks and in f64 across them.
pub fn sum(_team: &Team, x: &[f32]) -> f64 {
    x.iter().map(|&x| x as f64).sum()
}
/// `sum x^2`, as [`sum`].
pub fn sum_squares(_team: &Team, x: &[f32]) -> f64 {
    x.iter().map(|&x| x as f64 * x as f64).sum()
}
/// `sum_rows[c] += sum_n x[n, c]`. Shapes: x `[N, C]`, C the length of `sums`.
pub fn sum_rows(_team: &Team, x: &[f32], sums: &mut [f32]) {
    for row in x.chunks_exact(sums.len()) {
        sums.iter_mut().zip(row).for_each(|(s, x)| *s += x);
    }
}
/// `counts[f] += number of rows n with g[n, f] > 0`: from it come the zeros of a layer under RELU and its dead neurons.
/// Shapes: g `[N, F]`, F the length of `counts`.
pub fn count_positive(_team: &Team, g: &[f32], counts: &mut [u32]) {
    for row in g.chunks_exact(counts.len()) {
        counts.iter_mut().zip(row).for_each(|(c, &g)| *c += (g > 0.0) as u32);
    }
}
