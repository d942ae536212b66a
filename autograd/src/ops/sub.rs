//! `y = a - b`, broadcast.

use crate::gradients::{Gradients, Slot};
use crate::tape::{Op, Var};
use tensor::{Shape, Tensor, ops};

struct Sub {
    a: (Option<Slot>, Shape),
    b: (Option<Slot>, Shape),
}

impl<'t> std::ops::Sub for &Var<'t> {
    type Output = Var<'t>;

    /// `a - b`. Shapes: equal, or one broadcasts to the other (NumPy's rule); panics otherwise.
    #[track_caller]
    fn sub(self, other: &Var<'t>) -> Var<'t> {
        let y = ops::sub(&self.value, &other.value);
        self.tape.record("sub", y, &[self, other], || Sub {
            a: (self.slot, self.value.shape()),
            b: (other.slot, other.value.shape()),
        })
    }
}

impl Op for Sub {
    fn name(&self) -> &'static str {
        "sub"
    }

    /// `da = dy` and `db = -dy`, each summed over the axes along which it was repeated.
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Gradients) {
        let ((a_slot, a_shape), (b_slot, b_shape)) = (self.a, self.b);
        if b_slot.is_some() {
            grads.add(b_slot, ops::scale(-1.0, &ops::sum_to(&dy, b_shape)));
        }
        if a_slot.is_some() {
            grads.add(a_slot, ops::sum_to(&dy, a_shape));
        }
    }
}
