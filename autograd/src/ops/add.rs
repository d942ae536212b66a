//! `y = a + b`, broadcast.

use crate::gradients::{Gradients, Slot};
use crate::tape::{Op, Var};
use tensor::{Shape, Tensor, ops};

struct Add {
    a: (Option<Slot>, Shape),
    b: (Option<Slot>, Shape),
}

impl<'t> std::ops::Add for &Var<'t> {
    type Output = Var<'t>;

    /// `a + b`. Shapes: equal, or one broadcasts to the other (NumPy's rule); panics otherwise.
    #[track_caller]
    fn add(self, other: &Var<'t>) -> Var<'t> {
        let y = ops::add(&self.value, &other.value);
        self.tape.record("add", y, &[self, other], || Add {
            a: (self.slot, self.value.shape()),
            b: (other.slot, other.value.shape()),
        })
    }
}

impl Op for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    /// `da = dy` and `db = dy`, each summed over the axes along which it was repeated.
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Gradients) {
        for (slot, shape) in [self.a, self.b] {
            if slot.is_some() {
                grads.add(slot, if shape == dy.shape() { dy.clone() } else { ops::sum_to(&dy, shape) });
            }
        }
    }
}
