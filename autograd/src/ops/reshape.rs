//! Views: other shapes on the same elements.

use crate::gradients::{Gradients, Slot};
use crate::tape::{Op, Var};
use tensor::{Shape, Tensor};

struct Reshape {
    x: (Option<Slot>, Shape),
}

impl<'t> Var<'t> {
    /// The same elements, in row-major order, in another shape; shares the storage if x is contiguous.
    /// Panics if the numbers of elements differ.
    #[track_caller]
    pub fn reshape(&self, shape: impl Into<Shape>) -> Var<'t> {
        let y = self.value.reshape(shape);
        self.tape.record("reshape", y, &[self], || Reshape { x: (self.slot, self.value.shape()) })
    }
}

impl Op for Reshape {
    fn name(&self) -> &'static str {
        "reshape"
    }

    /// `dx = dy` in the shape of x.
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Gradients) {
        let (slot, shape) = self.x;
        grads.add(slot, dy.reshape(shape));
    }
}
