/// Specification of [`sum`](crate::reduce::sum): returns the sum and the sum of absolute values.
pub fn sum(x: &[f32]) -> (f64, f64) {
    (x.iter().map(|&x| x as f64).sum(), x.iter().map(|&x| x.abs() as f64).sum())
}

/// Specification of [`sum_squares`](crate::reduce::sum_squares).
pub fn sum_squares(x: &[f32]) -> f64 {
    x.iter().map(|&x| x as f64 * x as f64).sum()
}

/// Specification of [`sum_rows`](crate::reduce::sum_rows): returns the sums over rows of `c` elements, and the sums of absolute
/// values.
pub fn sum_rows(x: &[f32], c: usize) -> (Vec<f64>, Vec<f64>) {
    let column = |j: usize| x.iter().skip(j).step_by(c).map(|&x| x as f64);
    (0..c).map(|j| (column(j).sum::<f64>(), column(j).map(f64::abs).sum::<f64>())).unzip()
}

/// Specification of [`count_positive`](crate::reduce::count_positive).
pub fn count_positive(g: &[f32], d_ff: usize) -> Vec<u32> {
    (0..d_ff).map(|j| g.iter().skip(j).step_by(d_ff).filter(|&&g| g > 0.0).count() as u32).collect()
}
