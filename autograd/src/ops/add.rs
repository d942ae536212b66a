//! `y = a + b`, broadcast.

use crate::gradients::{Gradients, Slot};
use crate::tape::{Op, Var};
use tensor::{DType, Shape, Tensor, ops};

struct Add {
    a: (Option<Slot>, Shape, DType),
    b: (Option<Slot>, Shape, DType),
}

impl<'t> std::ops::Add for &Var<'t> {
    type Output = Var<'t>;

    /// `a + b`. Shapes: equal, or one broadcasts to the other (NumPy's rule); panics otherwise. The sum of f32 and bf16 is f32.
    #[track_caller]
    fn add(self, other: &Var<'t>) -> Var<'t> {
        let y = ops::add(&self.value, &other.value);
        self.tape.record("add", y, &[self, other], || Add {
            a: (self.slot, self.value.shape(), self.value.dtype()),
            b: (other.slot, other.value.shape(), other.value.dtype()),
        })
    }
}

impl Op for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    /// `da = dy` and `db = dy`, each summed over the axes along which it was repeated, in the operand's type.
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Gradients) {
        for (slot, shape, dtype) in [self.a, self.b] {
            if slot.is_some() {
                let d = if shape == dy.shape() { dy.clone() } else { ops::sum_to(&ops::cast(&dy, DType::F32), shape) };
                grads.add(slot, ops::cast(&d, dtype));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::gradcheck::{GradCheck, input};
    use crate::ops::testing::{broadcast, broadcast_shapes, gpu};
    use tensor::DType;

    #[test]
    fn add_gradients() {
        for (a, b) in broadcast_shapes() {
            let inputs = [input(1, a), input(2, b)];
            // A gradient is a sum over the elements that were repeated: 24 at most.
            let check = GradCheck::new("add", &inputs).roundings(24);
            let sum = |x: &[&[f32]]| broadcast((x[0], a), (x[1], b), |a, b| a + b);
            check.run(|x| &x[0] + &x[1], sum);
            // r, its sum, the gradient; then a residual stream of f32, whose r is not rounded.
            let check = check.in_bf16(3).on(&gpu());
            check.run(|x| &x[0] + &x[1], sum);
            check.run(|x| &x[0].cast(DType::F32) + &x[1], sum);
        }
    }

    #[test]
    fn add_gradients_of_one_leaf_as_both_operands() {
        let same = |x: &[&[f32]]| x[0].iter().map(|&a| a as f64).map(|a| a + a).collect();
        GradCheck::new("add", &[input(1, [3, 5])]).run(|x| &x[0] + &x[0], same);
    }
}
