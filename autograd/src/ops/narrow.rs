//! A range of one axis.

use crate::gradients::{Gradients, Slot};
use crate::tape::{Op, Var};
use tensor::{Shape, Tensor, ops};

struct Narrow {
    axis: usize,
    start: usize,
    x: (Option<Slot>, Shape),
}

impl<'t> Var<'t> {
    /// Elements `start .. start + len` along `axis`, as a view: nothing is copied. Panics if they reach beyond the axis.
    #[track_caller]
    pub fn narrow(&self, axis: usize, start: usize, len: usize) -> Var<'t> {
        let y = self.value.narrow(axis, start, len);
        self.tape.record("narrow", y, &[self], || Narrow { axis, start, x: (self.slot, self.value.shape()) })
    }
}

impl Op for Narrow {
    fn name(&self) -> &'static str {
        "narrow"
    }

    /// `dx[start .. start + len] += dy` along the axis; elsewhere it is 0.
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Gradients) {
        let (slot, shape) = self.x;
        grads.accumulate_onto_zeros(slot, shape, |dx| ops::add_to_range(&dy, self.axis, self.start, dx));
    }
}
