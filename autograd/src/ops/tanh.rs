//! `y = tanh(x)`.

use crate::gradients::{Gradients, Slot};
use crate::tape::{Op, Var};
use tensor::{Tensor, ops};

struct Tanh {
    x: Tensor,
    x_slot: Option<Slot>,
}

impl<'t> Var<'t> {
    /// `tanh(x)`, element by element. Shapes: any.
    #[track_caller]
    pub fn tanh(&self) -> Var<'t> {
        let y = ops::tanh(&self.value);
        self.tape.record("tanh", y, &[self], || Tanh { x: self.value.clone(), x_slot: self.slot })
    }
}

impl Op for Tanh {
    fn name(&self) -> &'static str {
        "tanh"
    }

    /// `dx = dy (1 - tanh(x)^2)`.
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Gradients) {
        grads.add(self.x_slot, ops::tanh_backward(&dy, &self.x));
    }
}

#[cfg(test)]
mod tests {
    use crate::gradcheck::{GradCheck, input};
    use kernels::reference;

    #[test]
    fn tanh_gradients() {
        for shape in [&[][..], &[1], &[2, 3, 5], &[37]] {
            // tanh' is at most 1, and off by 4 units of 2^-24 wherever it is: of the size of dy.
            let check = GradCheck::new("tanh", &[input(1, shape)])
                .roundings(5)
                .sizes(|_, r| vec![r.iter().map(|r| r.abs() as f64).collect()]);
            check.run(|x| x[0].tanh(), |x| x[0].iter().map(|&x| reference::tanh(x as f64).0).collect());
        }
    }
}
