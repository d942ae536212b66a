//! `h = psi(g) * u`: the hidden layer of the FFN, on its own. [`Var::gated_down_proj`] fuses it with the projection after it.

use crate::gradients::{Gradients, Slot};
use crate::tape::{Op, Var};
use tensor::{Activation, Tensor, ops};

struct GatedActivation {
    act: Activation,
    g: Tensor,
    u: Tensor,
    g_slot: Option<Slot>,
    u_slot: Option<Slot>,
}

impl<'t> Var<'t> {
    /// `h = psi(g) * u` with `self` as g (paper, "the layer"). A row is a token of a stochastic activation's mask site.
    /// Shapes: g, u, h `[.., F]`. Panics if they differ.
    #[track_caller]
    pub fn gated_activation(&self, u: &Var<'t>, act: Activation) -> Var<'t> {
        let h = ops::gated_activation(act, &self.value, &u.value);
        self.tape.record("gated_activation", h, &[self, u], || GatedActivation {
            act,
            g: self.value.clone(),
            u: u.value.clone(),
            g_slot: self.slot,
            u_slot: u.slot,
        })
    }
}

impl Op for GatedActivation {
    fn name(&self) -> &'static str {
        "gated_activation"
    }

    /// With the draws of the forward pass: `dg = dh u psi'(g)`, `du = dh psi(g)`.
    fn backward(self: Box<Self>, dh: Tensor, grads: &mut Gradients) {
        let ops::GatedGradients { dg, du, .. } = ops::gated_activation_backward(self.act, &dh, &self.g, &self.u);
        grads.add(self.g_slot, dg);
        grads.add(self.u_slot, du);
    }
}
