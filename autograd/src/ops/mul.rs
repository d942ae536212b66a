//! `y = a * b`, elementwise and broadcast.

use crate::gradients::{Gradients, Slot};
use crate::tape::{Op, Var};
use tensor::{Tensor, ops};

struct Mul {
    a: Tensor,
    b: Tensor,
    a_slot: Option<Slot>,
    b_slot: Option<Slot>,
}

impl<'t> std::ops::Mul for &Var<'t> {
    type Output = Var<'t>;

    /// `a * b`, element by element. Shapes: equal, or one broadcasts to the other (NumPy's rule); panics otherwise.
    #[track_caller]
    fn mul(self, other: &Var<'t>) -> Var<'t> {
        let y = ops::mul(&self.value, &other.value);
        self.tape.record("mul", y, &[self, other], || Mul {
            a: self.value.clone(),
            b: other.value.clone(),
            a_slot: self.slot,
            b_slot: other.slot,
        })
    }
}

impl Op for Mul {
    fn name(&self) -> &'static str {
        "mul"
    }

    /// `da = dy b` and `db = dy a`, each summed over the axes along which it was repeated.
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Gradients) {
        for (slot, x, other) in [(self.a_slot, &self.a, &self.b), (self.b_slot, &self.b, &self.a)] {
            if slot.is_some() {
                grads.add(slot, ops::sum_to(&ops::mul(&dy, other), x.shape()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::gradcheck::{GradCheck, input};
    use crate::ops::testing::{broadcast, broadcast_shapes};

    #[test]
    fn mul_gradients() {
        for (a, b) in broadcast_shapes() {
            let inputs = [input(1, a), input(2, b)];
            // A gradient is a sum over the elements that were repeated: 24 at most.
            let check = GradCheck::new("mul", &inputs).roundings(24);
            check.run(|x| &x[0] * &x[1], |x| broadcast((x[0], a), (x[1], b), |a, b| a * b));
        }
    }

    #[test]
    fn mul_gradients_of_one_leaf_as_both_operands() {
        let same = |x: &[&[f32]]| x[0].iter().map(|&a| a as f64).map(|a| a * a).collect();
        GradCheck::new("mul", &[input(1, [3, 5])]).run(|x| &x[0] * &x[0], same);
    }
}
