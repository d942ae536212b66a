//! `y = a b`: the product of two matrices.

use crate::gradients::{Gradients, Slot};
use crate::tape::{Op, Var};
use tensor::{Tensor, ops};

struct Matmul {
    a: Tensor,
    b: Tensor,
    a_slot: Option<Slot>,
    b_slot: Option<Slot>,
}

impl<'t> Var<'t> {
    /// `y = a b` with `self` as a. Shapes: a `[M, K]`; b `[K, N]`; y `[M, N]`; views, such as a transpose, cost nothing.
    /// Panics unless both are matrices with one K. For a batch of rows and a weight, see [`Var::linear`].
    #[track_caller]
    pub fn matmul(&self, b: &Var<'t>) -> Var<'t> {
        let y = ops::matmul(&self.value, &b.value);
        self.tape.record("matmul", y, &[self, b], || Matmul {
            a: self.value.clone(),
            b: b.value.clone(),
            a_slot: self.slot,
            b_slot: b.slot,
        })
    }
}

impl Op for Matmul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    /// `da += dy b^T`, `db += a^T dy`.
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Gradients) {
        grads.accumulate(self.b_slot, self.b.shape(), |beta, db| ops::matmul_into(&self.a.t(), &dy, beta, db));
        grads.accumulate(self.a_slot, self.a.shape(), |beta, da| ops::matmul_into(&dy, &self.b.t(), beta, da));
    }
}
