//! `O = softmax(scale Q K^T) V`: causal attention with grouped key-value heads.

use crate::gradients::{Gradients, Slot};
use crate::tape::{Op, Var};
use tensor::{Tensor, ops};

struct Attention {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    /// The result, and the logarithms of the softmax's sums: from these backward makes the probabilities again.
    forward: ops::Attention,
    scale: f32,
    q_slot: Option<Slot>,
    k_slot: Option<Slot>,
    v_slot: Option<Slot>,
}

impl<'t> Var<'t> {
    /// `S = scale Q K^T`, `P = softmax(S)` over the keys that a query may see, `O = P V`, with `self` as Q (Vaswani et al.
    /// 2017, eq. 1). Query t sees keys `0 ..= t + Tk - Tq`; H / K query heads share a key-value head (Ainslie et al. 2023).
    ///
    /// Shapes: q, O `[B, Tq, H, D]`; k, v `[B, Tk, K, D]`. Panics unless B and D are equal, `Tk >= Tq`, and K divides H.
    #[track_caller]
    pub fn attention(&self, k: &Var<'t>, v: &Var<'t>, scale: f32) -> Var<'t> {
        let forward = ops::attention(&self.value, &k.value, &v.value, scale);
        self.tape.record("attention", forward.out.clone(), &[self, k, v], || Attention {
            q: self.value.clone(),
            k: k.value.clone(),
            v: v.value.clone(),
            forward,
            scale,
            q_slot: self.slot,
            k_slot: k.slot,
            v_slot: v.slot,
        })
    }
}

impl Op for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    /// `dV = P^T dO`, `dP = dO V^T`, `dS = P (dP - rowsum(P dP))`, `dQ = scale dS K`, `dK = scale dS^T Q`, where
    /// `rowsum(P dP) = rowsum(dO O)` (Dao et al. 2022, algorithm 4).
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Gradients) {
        let dy = ops::cast(&dy, self.q.dtype());
        let (dq, dk, dv) = ops::attention_backward(&dy, &self.q, &self.k, &self.v, &self.forward, self.scale);
        grads.add(self.q_slot, dq);
        grads.add(self.k_slot, dk);
        grads.add(self.v_slot, dv);
    }
}

#[cfg(test)]
mod tests {
    use crate::gradcheck::{GradCheck, input};
    use crate::ops::testing::{devices, gpu};
    use kernels::attention::AttentionShape;
    use kernels::reference;

    /// To first order, in roundings of 2^-24, with `score` the largest sum of `|scale q k|`: a score is off by `(D + 5)`
    /// times it, which moves a probability by twice that; `score - lse` and exp add `8 score + 2 ln Tk + 10 Tk / 64 + Tk +
    /// 12`; dP and the row sums are dots of D terms; then come the sums over keys or over the queries of a group.
    fn roundings(shape: AttentionShape, scale: f32) -> usize {
        let AttentionShape { q_len, kv_len, n_heads, n_kv_heads, head_dim, .. } = shape;
        let score = (head_dim as f32 * 1.125 * 1.125 * scale).ceil() as usize;
        let queries = q_len * n_heads / n_kv_heads;
        2 * (head_dim + 5) * score + 8 * score + 5 * kv_len + 22 + head_dim + 12 + kv_len.max(queries) + 8
    }

    #[test]
    fn attention_gradients() {
        // B, Tq, Tk, H, K, D: one of everything; plain; grouped heads; a cache before the queries; odd and large.
        let shapes =
            [[1, 1, 1, 1, 1, 1], [2, 3, 3, 2, 2, 4], [1, 4, 4, 6, 2, 3], [1, 2, 5, 4, 1, 5], [2, 9, 9, 3, 3, 17]];
        for [batch, q_len, kv_len, n_heads, n_kv_heads, head_dim] in shapes {
            let shape = AttentionShape { batch, q_len, kv_len, n_heads, n_kv_heads, head_dim };
            let scale = 1.0 / (head_dim as f32).sqrt();
            let kv = [batch, kv_len, n_kv_heads, head_dim];
            let inputs = [input(1, [batch, q_len, n_heads, head_dim]), input(2, kv), input(3, kv)];
            for device in devices() {
                let check = GradCheck::new("attention", &inputs).roundings(roundings(shape, scale)).sizes(|x, r| {
                    let abs = reference::attention_abs(shape, scale, x[0], x[1], x[2], r);
                    vec![abs.dq, abs.dk, abs.dv]
                });
                let out = |x: &[&[f32]]| reference::attention(shape, scale, x[0], x[1], x[2]).0;
                check.on(&device).run(|x| x[0].attention(&x[1], &x[2], scale), out);
            }
            // r; P, and out for rowsum(dO O); dS; the results.
            let check = GradCheck::new("attention", &inputs).roundings(roundings(shape, scale)).in_bf16(5);
            let check = check.sizes(|x, r| {
                let abs = reference::attention_abs(shape, scale, x[0], x[1], x[2], r);
                vec![abs.dq, abs.dk, abs.dv]
            });
            let out = |x: &[&[f32]]| reference::attention(shape, scale, x[0], x[1], x[2]).0;
            check.on(&gpu()).run(|x| x[0].attention(&x[1], &x[2], scale), out);
        }
    }

    #[test]
    fn attention_gradients_of_one_leaf_as_q_k_and_v() {
        let (scale, dims) = (0.5, [1, 4, 2, 3]);
        let shape = AttentionShape { batch: 1, q_len: 4, kv_len: 4, n_heads: 2, n_kv_heads: 2, head_dim: 3 };
        let check = GradCheck::new("attention", &[input(1, dims)]).roundings(roundings(shape, scale)).sizes(|x, r| {
            let abs = reference::attention_abs(shape, scale, x[0], x[0], x[0], r);
            vec![(0..x[0].len()).map(|i| abs.dq[i] + abs.dk[i] + abs.dv[i]).collect()]
        });
        let out = |x: &[&[f32]]| reference::attention(shape, scale, x[0], x[0], x[0]).0;
        check.run(|x| x[0].attention(&x[0], &x[0], scale), out);
    }
}
