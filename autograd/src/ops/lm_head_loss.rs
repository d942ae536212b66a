//! The LM head fused with the cross-entropy: `scale * sum of (logsumexp(z) - z[target])`, `z = W x`.

use crate::gradients::{Gradients, Slot};
use crate::tape::{Op, Var};
use tensor::{Beta, DType, Tensor, ops};

/// The gradients are made in the forward pass, from the logits of a chunk of rows while they are there; to make them in
/// the backward would be to multiply by the LM head, the largest matrix of a small model, a second time.
struct LmHeadLoss {
    dx: Tensor,
    d_weight: Tensor,
    x_slot: Option<Slot>,
    weight_slot: Option<Slot>,
}

impl<'t> Var<'t> {
    /// The cross-entropy of the targets under `softmax(W x)`: `loss = sum over rows of logsumexp(z) - z[target]`, `z = W x`.
    /// Returns `scale * loss` as a scalar to differentiate, and `loss` itself in nats. With `scale` one over the number of
    /// tokens in an optimiser step, the gradients of its micro-batches add up to that of the mean.
    ///
    /// Shapes: x (self) `[.., C]`; weight `[V, C]`; targets u32, one for each row, each below V. Panics if they differ.
    #[track_caller]
    pub fn lm_head_loss(&self, weight: &Var<'t>, targets: &Tensor, scale: f32) -> (Var<'t>, f64) {
        let (x, w) = (&self.value, &weight.value);
        let (loss, op) = if self.slot.is_none() && weight.slot.is_none() {
            (ops::lm_head_loss(x, w, targets), None)
        } else {
            let mut d_weight = Tensor::stale(w.shape(), DType::F32);
            let made = ops::lm_head_loss_backward(x, w, targets, scale, Beta::Zero, &mut d_weight);
            let (x_slot, weight_slot) = (self.slot, weight.slot);
            (made.loss, Some(LmHeadLoss { dx: made.dx, d_weight, x_slot, weight_slot }))
        };
        let y = Tensor::scalar((scale as f64 * loss) as f32);
        let y = self.tape.record("lm_head_loss", y, &[self, weight], || op.expect("made above for a wanted gradient"));
        (y, loss)
    }
}

impl Op for LmHeadLoss {
    fn name(&self) -> &'static str {
        "lm_head_loss"
    }

    /// With `dz = scale (softmax(z) - onehot(target))`: `dx = dy dz W`, `dW += dy dz^T x`, where dy is one number, and
    /// nearly always 1.
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Gradients) {
        let dy = dy.item();
        for (slot, d) in [(self.x_slot, self.dx), (self.weight_slot, self.d_weight)] {
            if slot.is_some() {
                grads.add(slot, if dy == 1.0 { d } else { ops::scale(dy, &d) });
            }
        }
    }
}
