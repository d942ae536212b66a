use crate::attention::AttentionShape;

/// Specification of [`attention`](crate::attention::attention): returns `(out, lse)`.
pub fn attention(shape: AttentionShape, scale: f32, q: &[f32], k: &[f32], v: &[f32]) -> (Vec<f64>, Vec<f64>) {
    let AttentionShape { batch, q_len, n_heads, head_dim, .. } = shape;
    let mut out = vec![0.0; shape.q_elements()];
    let mut lse = vec![0.0; batch * n_heads * q_len];
    for b in 0..batch {
        for h in 0..n_heads {
            for t in 0..q_len {
                let (p, log_sum) = probabilities(shape, scale, q, k, b, h, t);
                lse[(b * n_heads + h) * q_len + t] = log_sum;
                for (s, p) in p.into_iter().enumerate() {
                    for d in 0..head_dim {
                        out[shape.q_at(b, t, h) + d] += p * v[shape.kv_at(b, s, h) + d] as f64;
                    }
                }
            }
        }
    }
    (out, lse)
}

/// The softmax row of query `(b, t, h)` over all keys that it sees, and the logarithm of its sum.
fn probabilities(
    shape: AttentionShape,
    scale: f32,
    q: &[f32],
    k: &[f32],
    b: usize,
    h: usize,
    t: usize,
) -> (Vec<f64>, f64) {
    let dot = |s: usize| -> f64 {
        (0..shape.head_dim).map(|d| q[shape.q_at(b, t, h) + d] as f64 * k[shape.kv_at(b, s, h) + d] as f64).sum()
    };
    let scores: Vec<f64> = (0..shape.visible(t)).map(|s| dot(s) * scale as f64).collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
    (scores.iter().map(|s| (s - max).exp() / sum).collect(), max + sum.ln())
}

/// Specification of [`attention_backward`](crate::attention::attention_backward): returns `(dq, dk, dv)`.
///
/// With `P = softmax(S)`, `S = scale Q K^T`, `O = P V`: `dV = P^T dO`, `dP = dO V^T`, `dS = P * (dP - rowsum(P * dP))`,
/// `dQ = scale dS K`, `dK = scale dS^T Q`.
pub fn attention_backward(
    shape: AttentionShape,
    scale: f32,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    d_out: &[f32],
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let AttentionShape { batch, q_len, n_heads, head_dim, .. } = shape;
    let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    for b in 0..batch {
        for h in 0..n_heads {
            for t in 0..q_len {
                let (p, _) = probabilities(shape, scale, q, k, b, h, t);
                let q_at = shape.q_at(b, t, h);
                let dp: Vec<f64> = (0..p.len())
                    .map(|s| (0..head_dim).map(|d| d_out[q_at + d] as f64 * v[shape.kv_at(b, s, h) + d] as f64).sum())
                    .collect();
                let delta: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
                for s in 0..p.len() {
                    let ds = p[s] * (dp[s] - delta) * scale as f64;
                    let kv_at = shape.kv_at(b, s, h);
                    for d in 0..head_dim {
                        dq[q_at + d] += ds * k[kv_at + d] as f64;
                        dk[kv_at + d] += ds * q[q_at + d] as f64;
                        dv[kv_at + d] += p[s] * d_out[q_at + d] as f64;
                    }
                }
            }
        }
    }
    (dq, dk, dv)
}

/// Sizes of the terms in [`attention`] and [`attention_backward`], for error bounds. P is the exact softmax; |x| is taken
/// element by element.
pub struct AttentionAbs {
    /// The largest `sum_d |scale q_d k_d|` over all scores: bounds the scores and, times rounding, their errors.
    pub score: f64,
    /// `P |V|`, like out.
    pub out: Vec<f64>,
    /// `scale X |K|` with `X = P * (|dO| |V|^T + rowsum(|dO| * (P |V|)))`, like q.
    pub dq: Vec<f64>,
    /// `scale X^T |Q|`, like k.
    pub dk: Vec<f64>,
    /// `P^T |dO|`, like v.
    pub dv: Vec<f64>,
}

/// The sizes of all terms of the forward and the backward.
pub fn attention_abs(
    shape: AttentionShape,
    scale: f32,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    d_out: &[f32],
) -> AttentionAbs {
    let AttentionShape { batch, q_len, n_heads, head_dim, .. } = shape;
    let abs_dot = |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(&a, &b)| (a as f64 * b as f64).abs()).sum() };
    let mut abs = AttentionAbs {
        score: 0.0,
        out: vec![0.0; q.len()],
        dq: vec![0.0; q.len()],
        dk: vec![0.0; k.len()],
        dv: vec![0.0; v.len()],
    };
    for b in 0..batch {
        for h in 0..n_heads {
            for t in 0..q_len {
                let (p, _) = probabilities(shape, scale, q, k, b, h, t);
                let q_at = shape.q_at(b, t, h);
                let (q, d_out) = (&q[q_at..q_at + head_dim], &d_out[q_at..q_at + head_dim]);
                for (s, p) in p.iter().enumerate() {
                    let kv_at = shape.kv_at(b, s, h);
                    abs.score = abs.score.max(abs_dot(q, &k[kv_at..kv_at + head_dim]) * scale.abs() as f64);
                    for d in 0..head_dim {
                        abs.out[q_at + d] += p * v[kv_at + d].abs() as f64;
                        abs.dv[kv_at + d] += p * d_out[d].abs() as f64;
                    }
                }
                let delta: f64 = (0..head_dim).map(|d| d_out[d].abs() as f64 * abs.out[q_at + d]).sum();
                for (s, p) in p.iter().enumerate() {
                    let kv_at = shape.kv_at(b, s, h);
                    let x = p * (abs_dot(d_out, &v[kv_at..kv_at + head_dim]) + delta) * scale.abs() as f64;
                    for d in 0..head_dim {
                        abs.dq[q_at + d] += x * k[kv_at + d].abs() as f64;
                        abs.dk[kv_at + d] += x * q[d].abs() as f64;
                    }
                }
            }
        }
    }
    abs
}
