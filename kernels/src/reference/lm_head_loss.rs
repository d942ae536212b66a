/// Specification of [`lm_head_loss_backward`](crate::lm_head_loss::lm_head_loss_backward): returns
/// `(sum of the losses, dx, dw)`, with `dx` and `dw` the gradients of `scale` times that sum.
///
/// With `z = W x` and target `t`: `loss = logsumexp(z) - z_t`, `dz = softmax(z) - onehot(t)`.
pub fn lm_head_loss(x: &[f32], w: &[f32], targets: &[u32], d_model: usize, scale: f32) -> (f64, Vec<f64>, Vec<f64>) {
    let (mut loss, mut dx, mut dw) = (0.0, vec![0.0; x.len()], vec![0.0; w.len()]);
    for (n, (&target, x)) in targets.iter().zip(x.chunks(d_model)).enumerate() {
        let dot = |w: &[f32]| -> f64 { w.iter().zip(x).map(|(&w, &x)| w as f64 * x as f64).sum() };
        let z: Vec<f64> = w.chunks(d_model).map(dot).collect();
        let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let log_sum = max + z.iter().map(|z| (z - max).exp()).sum::<f64>().ln();
        loss += log_sum - z[target as usize];
        for (j, z) in z.iter().enumerate() {
            let dz = ((z - log_sum).exp() - f64::from(j == target as usize)) * scale as f64;
            for i in 0..d_model {
                dx[n * d_model + i] += dz * w[j * d_model + i] as f64;
                dw[j * d_model + i] += dz * x[i] as f64;
            }
        }
    }
    (loss, dx, dw)
}

/// Sizes of the terms in [`lm_head_loss`], for error bounds. |x| is taken element by element.
pub struct LmHeadLossAbs {
    /// The largest `sum_c |w_c x_c|` over all logits: bounds the logits and, times rounding, their errors.
    pub logit: f64,
    /// `|scale| (softmax + onehot) |W|`, like x.
    pub dx: Vec<f64>,
    /// `|scale| (softmax + onehot)^T |X|`, like w.
    pub dw: Vec<f64>,
}

/// The sizes of all terms of the loss and its gradients.
pub fn lm_head_loss_abs(x: &[f32], w: &[f32], targets: &[u32], d_model: usize, scale: f32) -> LmHeadLossAbs {
    let mut abs = LmHeadLossAbs { logit: 0.0, dx: vec![0.0; x.len()], dw: vec![0.0; w.len()] };
    for (n, (&target, x)) in targets.iter().zip(x.chunks(d_model)).enumerate() {
        let terms = |w: &[f32]| -> Vec<f64> { w.iter().zip(x).map(|(&w, &x)| w as f64 * x as f64).collect() };
        let z: Vec<f64> = w.chunks(d_model).map(|w| terms(w).iter().sum()).collect();
        let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let log_sum = max + z.iter().map(|z| (z - max).exp()).sum::<f64>().ln();
        for (j, w) in w.chunks(d_model).enumerate() {
            abs.logit = abs.logit.max(terms(w).iter().map(|t| t.abs()).sum());
            let dz = ((z[j] - log_sum).exp() + f64::from(j == target as usize)) * scale.abs() as f64;
            for i in 0..d_model {
                abs.dx[n * d_model + i] += dz * w[i].abs() as f64;
                abs.dw[j * d_model + i] += dz * x[i].abs() as f64;
            }
        }
    }
    abs
}
