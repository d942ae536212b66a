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

#[cfg(test)]
mod tests {
    use crate::gradcheck::{GradCheck, input};

    #[test]
    fn sum_and_mean_gradients() {
        for shape in [&[][..], &[1], &[2, 3, 5], &[7, 1]] {
            let inputs = [input(1, shape)];
            let total = |x: &[&[f32]]| x[0].iter().map(|&x| x as f64).sum::<f64>();
            GradCheck::new("sum", &inputs).run(|x| x[0].sum(), |x| vec![total(x)]);
            GradCheck::new("mean", &inputs).roundings(1).run(|x| x[0].mean(), |x| vec![total(x) / x[0].len() as f64]);
        }
    }

    /// The gradient of a sum is one number, repeated: adding to it needs memory of its own.
    #[test]
    fn sum_gradients_of_a_leaf_used_twice() {
        let twice = |x: &[&[f32]]| vec![2.0 * x[0].iter().map(|&x| x as f64).sum::<f64>()];
        GradCheck::new("sum", &[input(1, [3, 5])]).run(|x| x[0].sum() + x[0].sum(), twice);
    }
}
