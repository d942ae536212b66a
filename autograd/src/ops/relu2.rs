//! `y = max(x, 0)^2`, also called squared ReLU (arXiv 2109.08668).

use crate::gradients::{Gradients, Slot};
use crate::tape::{Op, Var};
use tensor::{Tensor, ops};

struct Relu2 {
    x: Tensor,
    x_slot: Option<Slot>,
}

impl<'t> Var<'t> {
    /// `max(x, 0)^2`, element by element. Shapes: any.
    #[track_caller]
    pub fn relu2(&self) -> Var<'t> {
        let y = ops::relu2(&self.value);
        self.tape.record("relu2", y, &[self], || Relu2 { x: self.value.clone(), x_slot: self.slot })
    }
}

impl Op for Relu2 {
    fn name(&self) -> &'static str {
        "relu2"
    }

    /// `dx = dy 2 max(x, 0)`.
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Gradients) {
        grads.add(self.x_slot, ops::relu2_backward(&dy, &self.x));
    }
}

#[cfg(test)]
mod tests {
    use crate::gradcheck::{GradCheck, input};
    use kernels::reference;

    #[test]
    fn relu2_gradients() {
        for shape in [&[][..], &[1], &[2, 3, 5], &[37]] {
            let check = GradCheck::new("relu2", &[input(1, shape)]).roundings(1);
            check.run(|x| x[0].relu2(), |x| x[0].iter().map(|&x| reference::relu2(x as f64).0).collect());
        }
    }
}
