/// Specification of [`rope`](crate::rope::rope): `sign` is 1 forward and -1 backward.
///
/// `x` is `[N, H, D]` with row n at position `first + n % seq_len`; `cos` and `sin` are `[max_seq, D / 2]`.
pub fn rope(x: &[f32], cos: &[f32], sin: &[f32], shape: crate::rope::RopeShape, sign: f64) -> Vec<f64> {
    let crate::rope::RopeShape { n_heads, head_dim, seq_len, first_position } = shape;
    let half = head_dim / 2;
    let mut y = vec![0.0; x.len()];
    for head in 0..x.len() / head_dim {
        let position = first_position + head / n_heads % seq_len;
        for i in 0..half {
            let (c, s) = (cos[position * half + i] as f64, sign * sin[position * half + i] as f64);
            let (a, b) = (x[head * head_dim + i] as f64, x[head * head_dim + half + i] as f64);
            y[head * head_dim + i] = a * c - b * s;
            y[head * head_dim + half + i] = b * c + a * s;
        }
    }
    y
}
