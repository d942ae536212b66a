/// Specification of [`rms_norm`](crate::rms_norm::rms_norm): returns `(y, inv_rms)`.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> (Vec<f64>, Vec<f64>) {
    let c = weight.len();
    let (mut y, mut inv_rms) = (Vec::new(), Vec::new());
    for row in x.chunks(c) {
        let mean_square = row.iter().map(|&x| x as f64 * x as f64).sum::<f64>() / c as f64;
        let scale = 1.0 / (mean_square + eps as f64).sqrt();
        y.extend(row.iter().zip(weight).map(|(&x, &w)| x as f64 * scale * w as f64));
        inv_rms.push(scale);
    }
    (y, inv_rms)
}

/// Sizes of the terms in [`rms_norm_backward`], for error bounds.
pub struct RmsNormBackwardAbs {
    /// For each element of dx, the sum of the absolute values of all terms.
    pub dx: Vec<f64>,
    /// For each gain, the same.
    pub d_weight: Vec<f64>,
}

/// Specification of [`rms_norm_backward`](crate::rms_norm::rms_norm_backward): returns `(dx, d_weight, abs)`.
pub fn rms_norm_backward(
    dy: &[f32],
    x: &[f32],
    weight: &[f32],
    inv_rms: &[f32],
) -> (Vec<f64>, Vec<f64>, RmsNormBackwardAbs) {
    let c = weight.len();
    let mut dx = vec![0.0; x.len()];
    let mut d_weight = vec![0.0; c];
    let mut abs = RmsNormBackwardAbs { dx: vec![0.0; x.len()], d_weight: vec![0.0; c] };
    for (row, &r) in inv_rms.iter().enumerate() {
        let r = r as f64;
        let x_hat = |i: usize| x[row * c + i] as f64 * r;
        let dy_w = |i: usize| dy[row * c + i] as f64 * weight[i] as f64;
        let mean = (0..c).map(|i| dy_w(i) * x_hat(i)).sum::<f64>() / c as f64;
        let mean_abs = (0..c).map(|i| (dy_w(i) * x_hat(i)).abs()).sum::<f64>() / c as f64;
        for i in 0..c {
            dx[row * c + i] = r * (dy_w(i) - x_hat(i) * mean);
            abs.dx[row * c + i] = r * (dy_w(i).abs() + x_hat(i).abs() * mean_abs);
            let d_w = dy[row * c + i] as f64 * x_hat(i);
            d_weight[i] += d_w;
            abs.d_weight[i] += d_w.abs();
        }
    }
    (dx, d_weight, abs)
}
