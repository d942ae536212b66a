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
    /// `h = psi(g) * u` with `self` as g (arXiv 2509.22358). A row is a token of a stochastic activation's mask site.
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
        let dh = ops::cast(&dh, self.g.dtype());
        let ops::GatedGradients { dg, du, .. } = ops::gated_activation_backward(self.act, 0.0, &dh, &self.g, &self.u);
        grads.add(self.g_slot, dg);
        grads.add(self.u_slot, du);
    }
}

#[cfg(test)]
mod tests {
    use crate::gradcheck::{GradCheck, input};
    use crate::ops::testing::{activations, gpu};
    use kernels::reference;

    #[test]
    fn gated_activation_gradients() {
        for act in activations() {
            for shape in [&[1][..], &[5], &[2, 3, 7], &[3, 19], &[2, 11, 23]] {
                let d_ff = shape[shape.len() - 1];
                // psi is within 5 ULP, 10 roundings, and of size 1 as a factor of dg but for relu2, whose derivative is exact:
                // |psi'| <= 1.13 is a sum of both signs.
                let check = GradCheck::new("gated_activation", &[input(1, shape), input(2, shape)]).roundings(7);
                let check = check.sizes(move |x, r| {
                    let psi = |i: usize| reference::activation(act, i / d_ff, i % d_ff, x[0][i] as f64);
                    let dg = |(i, r): (usize, &f32)| (r * x[1][i]).abs() as f64 * psi(i).1.abs().max(1.0);
                    let du = r.iter().enumerate().map(|(i, &r)| (r as f64 * psi(i).0).abs()).collect();
                    vec![r.iter().enumerate().map(dg).collect(), du]
                });
                let formula = |x: &[&[f32]]| reference::gated_activation(act, x[0], x[1], d_ff);
                check.run(|x| x[0].gated_activation(&x[1], act), formula);
                // r; dg and du.
                check.in_bf16(2).on(&gpu()).run(|x| x[0].gated_activation(&x[1], act), formula);
            }
        }
    }
}
