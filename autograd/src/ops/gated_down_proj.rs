//! `y = (psi(g) * u) W2^T`: the FFN from its two projections to its output, as one op.
//!
//! One op rather than two, because the hidden layer h need not be kept: backward makes it again from g and u in the pass
//! that makes their gradients. For d_ff = 4 d_model that saves a third of what an FFN keeps.

use super::linear::{as_matrix, project};
use crate::gradients::{Gradients, Slot};
use crate::tape::{Op, Var};
use tensor::{Activation, Tensor, ops};

struct GatedDownProj {
    act: Activation,
    g: Tensor,
    u: Tensor,
    weight: Tensor,
    g_slot: Option<Slot>,
    u_slot: Option<Slot>,
    weight_slot: Option<Slot>,
}

impl<'t> Var<'t> {
    /// `h = psi(g) * u`, `y = h W2^T`, with `self` as g (paper, "the layer").
    /// Shapes: g, u `[.., F]`; weight (down_proj) `[C, F]`; y `[.., C]`. Panics if they differ.
    #[track_caller]
    pub fn gated_down_proj(&self, u: &Var<'t>, weight: &Var<'t>, act: Activation) -> Var<'t> {
        let h = ops::gated_activation(act, &self.value, &u.value);
        let y = project(&h, &weight.value);
        self.tape.record("gated_down_proj", y, &[self, u, weight], || GatedDownProj {
            act,
            g: self.value.clone(),
            u: u.value.clone(),
            weight: weight.value.clone(),
            g_slot: self.slot,
            u_slot: u.slot,
            weight_slot: weight.slot,
        })
    }
}

impl Op for GatedDownProj {
    fn name(&self) -> &'static str {
        "gated_down_proj"
    }

    /// `dh = dy W2`; then, with the draws of the forward pass, `dg = dh u psi'(g)` and `du = dh psi(g)`; `dW2 += dy^T h`.
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Gradients) {
        let dy = as_matrix(&dy);
        let dh = ops::matmul(&dy, &self.weight).reshape(self.g.shape());
        let ops::GatedGradients { dg, du, h } = ops::gated_activation_backward(self.act, &dh, &self.g, &self.u);
        grads.accumulate(self.weight_slot, self.weight.shape(), |beta, dw| {
            ops::matmul_into(&dy.t(), &as_matrix(&h), beta, dw)
        });
        grads.add(self.g_slot, dg);
        grads.add(self.u_slot, du);
    }
}
