//! The attention block: `y = O softmax(rope(Q x) rope(K x)^T / sqrt(D)) V x`.

use crate::project::project;
use crate::{Config, LayerNames, Leaves, RopeTable};
use autograd::Var;

/// Causal self-attention with rotary positions and grouped key-value heads (H / K query heads share one).
/// Shapes: x and the result `[B, T, C]`.
pub(crate) fn attention<'t>(x: Var<'t>, w: &Leaves<'t>, at: LayerNames, c: &Config, rope: &RopeTable) -> Var<'t> {
    let shape = x.value().shape();
    let (batch, time, d) = (shape[0], shape[1], c.head_dim);
    let heads = |name, weight, n| project(&x, name, &w[weight]).reshape([batch, time, n, d]);

    let q = heads("q_proj", at.q_proj, c.n_heads).rope(&rope.cos, &rope.sin, 0); // [B, T, H, D]
    let k = heads("k_proj", at.k_proj, c.n_kv_heads).rope(&rope.cos, &rope.sin, 0); // [B, T, K, D]
    let v = heads("v_proj", at.v_proj, c.n_kv_heads); // [B, T, K, D]
    drop(x);
    let mixed = q.attention(&k, &v, attention_scale(d)); // [B, T, H, D]
    project(&mixed.reshape([batch, time, c.q_width()]), "o_proj", &w[at.o_proj]) // [B, T, C]
}

/// `1 / sqrt(D)`: keeps the variance of a score at 1 (Vaswani et al. 2017, section 3.2.1).
pub fn attention_scale(head_dim: usize) -> f32 {
    (1.0 / (head_dim as f64).sqrt()) as f32
}
