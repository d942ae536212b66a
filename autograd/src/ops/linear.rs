//! `y = x W^T`: a projection by a weight `[out, in]`, as in a checkpoint.

use crate::gradients::{Gradients, Slot};
use crate::tape::{Op, Var};
use tensor::{Tensor, ops};

struct Linear {
    x: Tensor,
    weight: Tensor,
    x_slot: Option<Slot>,
    weight_slot: Option<Slot>,
}

impl<'t> Var<'t> {
    /// `y = x W^T`. Shapes: x `[.., K]`; weight `[N, K]`; y `[.., N]`. Panics if K differs.
    #[track_caller]
    pub fn linear(&self, weight: &Var<'t>) -> Var<'t> {
        let y = project(&self.value, &weight.value);
        self.tape.record("linear", y, &[self, weight], || Linear {
            x: self.value.clone(),
            weight: weight.value.clone(),
            x_slot: self.slot,
            weight_slot: weight.slot,
        })
    }
}

impl Op for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    /// `dx += dy W`, `dW += dy^T x`.
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Gradients) {
        let dy = as_matrix(&dy);
        grads.accumulate(self.weight_slot, self.weight.shape(), |beta, dw| {
            ops::matmul_into(&dy.t(), &as_matrix(&self.x), beta, dw)
        });
        grads.accumulate(self.x_slot, self.x.shape(), |beta, dx| ops::matmul_into(&dy, &self.weight, beta, dx));
    }
}

/// `x W^T`. Shapes: x `[.., K]`; weight `[N, K]`; result `[.., N]`.
#[track_caller]
pub(crate) fn project(x: &Tensor, weight: &Tensor) -> Tensor {
    let shape = x.shape();
    assert!(shape.rank() > 0, "linear: x is a scalar");
    ops::matmul(&as_matrix(x), &weight.t()).reshape(shape.with(shape.rank() - 1, weight.dim(0)))
}

/// All axes but the last as one: `[.., K]` as `[N, K]`.
#[track_caller]
pub(crate) fn as_matrix(x: &Tensor) -> Tensor {
    let last = x.dim(x.shape().rank() - 1);
    x.reshape([x.elements() / last.max(1), last])
}
