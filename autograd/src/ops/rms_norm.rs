//! `y = x / sqrt(mean(x^2) + eps) * weight`: RMSNorm over the last axis.

use crate::gradients::{Gradients, Slot};
use crate::tape::{Op, Var};
use tensor::{Tensor, ops};

struct RmsNorm {
    x: Tensor,
    weight: Tensor,
    inv_rms: Tensor,
    x_slot: Option<Slot>,
    weight_slot: Option<Slot>,
}

impl<'t> Var<'t> {
    /// `y = x r weight` with `r = 1 / sqrt(mean(x^2) + eps)`, the mean over the last axis (Zhang and Sennrich 2019, eq. 4,
    /// with the eps of Llama). Shapes: x, y `[.., C]`; weight `[C]`. Panics if C differs.
    #[track_caller]
    pub fn rms_norm(&self, weight: &Var<'t>, eps: f32) -> Var<'t> {
        let (y, inv_rms) = ops::rms_norm(&self.value, &weight.value, eps);
        self.tape.record("rms_norm", y, &[self, weight], || RmsNorm {
            x: self.value.clone(),
            weight: weight.value.clone(),
            inv_rms,
            x_slot: self.slot,
            weight_slot: weight.slot,
        })
    }
}

impl Op for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    /// With `n = x r`: `dx += r (dy weight - n mean(dy weight n))`, `dweight += sum over rows of dy n`.
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Gradients) {
        let RmsNorm { x, weight, inv_rms, .. } = &*self;
        let (beta, mut dx) = grads.take_or_stale(self.x_slot, x.shape());
        let mut d_weight = grads.take_or_zeros(self.weight_slot, weight.shape());
        ops::rms_norm_backward(&dy, x, weight, inv_rms, beta, &mut dx, &mut d_weight);
        grads.add(self.x_slot, dx);
        grads.add(self.weight_slot, d_weight);
    }
}
