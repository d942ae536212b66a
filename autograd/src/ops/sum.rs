//! The sum and the mean of all elements.

use crate::gradients::{Gradients, Slot};
use crate::tape::{Op, Var};
use tensor::{Shape, Tensor, ops};

struct Sum {
    x: (Option<Slot>, Shape),
}

impl<'t> Var<'t> {
    /// The sum of all elements, as a scalar.
    #[track_caller]
    pub fn sum(&self) -> Var<'t> {
        let y = ops::sum(&self.value);
        self.tape.record("sum", y, &[self], || Sum { x: (self.slot, self.value.shape()) })
    }

    /// The mean of all n elements, as a scalar: `sum(x) / n`, recorded as these two.
    #[track_caller]
    pub fn mean(&self) -> Var<'t> {
        self.sum().scale(1.0 / self.value.elements() as f32)
    }
}

impl Op for Sum {
    fn name(&self) -> &'static str {
        "sum"
    }

    /// `dx = dy` for each element: one number seen from every place, not written out.
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Gradients) {
        let (slot, shape) = self.x;
        grads.add(slot, dy.broadcast_to(shape));
    }
}
