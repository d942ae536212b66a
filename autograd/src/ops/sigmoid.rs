//! `y = 1 / (1 + e^-x)`.

use crate::gradients::{Gradients, Slot};
use crate::tape::{Op, Var};
use tensor::{Tensor, ops};

struct Sigmoid {
    x: Tensor,
    x_slot: Option<Slot>,
}

impl<'t> Var<'t> {
    /// `1 / (1 + e^-x)`, element by element. Shapes: any.
    #[track_caller]
    pub fn sigmoid(&self) -> Var<'t> {
        let y = ops::sigmoid(&self.value);
        self.tape.record("sigmoid", y, &[self], || Sigmoid { x: self.value.clone(), x_slot: self.slot })
    }
}

impl Op for Sigmoid {
    fn name(&self) -> &'static str {
        "sigmoid"
    }

    /// `dx = dy sigmoid(x) sigmoid(-x)`: the second factor is `1 - y`, without the cancellation where y is near 1.
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Gradients) {
        let (one_way, other_way) = (ops::sigmoid(&self.x), ops::sigmoid(&ops::scale(-1.0, &self.x)));
        grads.add(self.x_slot, ops::mul(&dy, &ops::mul(&one_way, &other_way)));
    }
}

#[cfg(test)]
mod tests {
    use crate::gradcheck::{GradCheck, input};
    use kernels::reference;
    #[test]
    fn sigmoid_gradients() {
        for shape in [&[][..], &[1], &[2, 3, 5], &[37]] {
            // Two sigmoids within 3 ULP each, 6 roundings, and the products.
            let check = GradCheck::new("sigmoid", &[input(1, shape)]).roundings(12);
            check.run(|x| x[0].sigmoid(), |x| x[0].iter().map(|&x| x as f64).map(reference::sigmoid).collect());
        }
    }
}
