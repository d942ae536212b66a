//! Two axes exchanged.

use crate::gradients::{Gradients, Slot};
use crate::tape::{Op, Var};
use tensor::Tensor;

struct Transpose {
    axes: (usize, usize),
    x_slot: Option<Slot>,
}

impl<'t> Var<'t> {
    /// x with the axes `a` and `b` exchanged, as a view: nothing is copied. Panics if there is no such axis.
    #[track_caller]
    pub fn transpose(&self, a: usize, b: usize) -> Var<'t> {
        let y = self.value.transpose(a, b);
        self.tape.record("transpose", y, &[self], || Transpose { axes: (a, b), x_slot: self.slot })
    }
}

impl Op for Transpose {
    fn name(&self) -> &'static str {
        "transpose"
    }

    /// `dx` = dy with the same axes exchanged.
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Gradients) {
        let (a, b) = self.axes;
        grads.add(self.x_slot, dy.transpose(a, b));
    }
}
