//! `y = max(x, 0)`.

use crate::gradients::{Gradients, Slot};
use crate::tape::{Op, Var};
use tensor::{Tensor, ops};

struct Relu {
    x: Tensor,
    x_slot: Option<Slot>,
}

impl<'t> Var<'t> {
    /// `max(x, 0)`, element by element. Shapes: any.
    #[track_caller]
    pub fn relu(&self) -> Var<'t> {
        let y = ops::relu(&self.value);
        self.tape.record("relu", y, &[self], || Relu { x: self.value.clone(), x_slot: self.slot })
    }
}

impl Op for Relu {
    fn name(&self) -> &'static str {
        "relu"
    }

    /// `dx = dy` where `x > 0`, else 0; so the derivative at 0 is 0.
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Gradients) {
        grads.add(self.x_slot, ops::relu_backward(&dy, &self.x));
    }
}

#[cfg(test)]
mod tests {
    use crate::gradcheck::{GradCheck, input};
    use kernels::reference;
    #[test]
    fn relu_gradients() {
        for shape in [&[][..], &[1], &[2, 3, 5], &[37]] {
            let check = GradCheck::new("relu", &[input(1, shape)]).roundings(0);
            check.run(|x| x[0].relu(), |x| x[0].iter().map(|&x| x as f64).map(|x| reference::relu(x).0).collect());
        }
    }
}
