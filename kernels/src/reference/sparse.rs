/// Specification of [`select_active`](crate::sparse::select_active): the indices of the elements that are positive or NaN,
/// ascending: all but those where RELU is known to be 0. A NaN counts as active, so that it reaches the output.
pub fn select_active(g: &[f32]) -> Vec<u32> {
    (0..g.len() as u32).filter(|&i| g[i as usize] > 0.0 || g[i as usize].is_nan()).collect()
}

/// Specification of the sparse and the dense FFN under RELU (arXiv 2509.22358):
/// `y = W2 (max(W1 x, 0) * (W3 x))` with `down_t` = W2 transposed. Returns `y` and, for bounds, the same with absolute values.
pub fn ffn_relu(gate: &[f32], up: &[f32], down_t: &[f32], x: &[f32]) -> (Vec<f64>, Vec<f64>) {
    let d = x.len();
    let (mut y, mut abs) = (vec![0.0; d], vec![0.0; d]);
    for ((gate, up), down) in gate.chunks(d).zip(up.chunks(d)).zip(down_t.chunks(d)) {
        let dot = |w: &[f32]| -> f64 { w.iter().zip(x).map(|(&w, &x)| w as f64 * x as f64).sum() };
        let dot_abs = |w: &[f32]| -> f64 { w.iter().zip(x).map(|(&w, &x)| (w as f64 * x as f64).abs()).sum() };
        let h = dot(gate).max(0.0) * dot(up);
        let h_abs = dot_abs(gate) * dot_abs(up);
        for i in 0..d {
            y[i] += h * down[i] as f64;
            abs[i] += h_abs * (down[i] as f64).abs();
        }
    }
    (y, abs)
}
