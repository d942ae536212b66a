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

#[cfg(test)]
mod tests {
    use crate::gradcheck::{GradCheck, input};
    use crate::ops::testing::{broadcast, broadcast_shapes};

    #[test]
    fn sub_gradients() {
        for (a, b) in broadcast_shapes() {
            let inputs = [input(1, a), input(2, b)];
            // A gradient is a sum over the elements that were repeated: 24 at most.
            let check = GradCheck::new("sub", &inputs).roundings(24);
            check.run(|x| &x[0] - &x[1], |x| broadcast((x[0], a), (x[1], b), |a, b| a - b));
        }
    }

    #[test]
    fn sub_gradients_of_one_leaf_as_both_operands() {
        let same = |x: &[&[f32]]| x[0].iter().map(|&a| a as f64).map(|a| a - a).collect();
        GradCheck::new("sub", &[input(1, [3, 5])]).run(|x| &x[0] - &x[0], same);
    }
}
