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
        let (dq, dk, dv) = ops::attention_backward(&dy, &self.q, &self.k, &self.v, &self.forward, self.scale);
        grads.add(self.q_slot, dq);
        grads.add(self.k_slot, dk);
        grads.add(self.v_slot, dv);
    }
}
