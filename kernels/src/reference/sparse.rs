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

/// The same from the gate's results on: `y = W2 (max(g, 0) * (W3 x))`, what
/// [`ffn_sparse_prompt`](crate::sparse::ffn_sparse_prompt) adds for a token.
pub fn ffn_relu_of_gate(g: &[f32], up: &[f32], down_t: &[f32], x: &[f32]) -> (Vec<f64>, Vec<f64>) {
    let d = x.len();
    let (mut y, mut abs) = (vec![0.0; d], vec![0.0; d]);
    for ((&g, up), down) in g.iter().zip(up.chunks(d)).zip(down_t.chunks(d)) {
        let g = g.max(0.0) as f64;
        let terms = || up.iter().zip(x).map(|(&w, &x)| w as f64 * x as f64);
        let (u, u_abs) = (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>());
        for i in 0..d {
            y[i] += g * u * down[i] as f64;
            abs[i] += g * u_abs * (down[i] as f64).abs();
        }
    }
    (y, abs)
}

/// Specification of the test of [`GateFilter`](crate::sparse::GateFilter), without what it adds for rounding: upper bounds of
/// `g = gate x` from an 8-bit copy of the gate and x in 16 bits. A neuron survives if its bound is above 0. Returns beside each bound
/// `||w|| ||x||`, which rounding goes by.
pub fn gate_filter(gate: &[f32], x: &[f32]) -> (Vec<f64>, Vec<f64>) {
    let c = x.len();
    let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
    let norm = |a: &[f64]| dot(a, a).sqrt();
    // The part of a along m, and the rest.
    let split = |a: &[f64], m: &[f64]| -> (f64, Vec<f64>) {
        let along = dot(a, m);
        (along, a.iter().zip(m).map(|(a, m)| a - along * m).collect())
    };
    let quantize = |a: &[f64], limit: f64| -> Vec<f64> {
        let scale = a.iter().fold(0.0f64, |max, a| max.max(a.abs())) / limit;
        a.iter().map(|a| if scale > 0.0 { (a / scale).round_ties_even() * scale } else { 0.0 }).collect()
    };
    let difference = |a: &[f64], b: &[f64]| -> Vec<f64> { a.iter().zip(b).map(|(a, b)| a - b).collect() };
    let wide = |a: &[f32]| -> Vec<f64> { a.iter().map(|&a| a as f64).collect() };

    let mut direction = vec![0.0; c];
    gate.chunks(c).for_each(|row| direction.iter_mut().zip(row).for_each(|(m, &w)| *m += w as f64));
    let length = norm(&direction);
    direction.iter_mut().for_each(|m| *m = if length > 0.0 { *m / length } else { 0.0 });

    let x = wide(x);
    let x_hat = quantize(&x, 32767.0);
    let lost = norm(&difference(&x, &x_hat));
    let (x_along, x_across) = split(&x_hat, &direction);
    let bounds = gate.chunks(c).map(|row| {
        let w = wide(row);
        let w_hat = quantize(&w, 127.0);
        let (along, across) = split(&difference(&w, &w_hat), &direction);
        let bound = dot(&w_hat, &x_hat) + along * x_along + norm(&across) * norm(&x_across) + norm(&w) * lost;
        (bound, norm(&w) * norm(&x))
    });
    bounds.unzip()
}
