//! `y = x sigmoid(x)`, also called swish.

use crate::gradients::{Gradients, Slot};
use crate::tape::{Op, Var};
use tensor::{Tensor, ops};

struct Silu {
    x: Tensor,
    x_slot: Option<Slot>,
}

impl<'t> Var<'t> {
    /// `x sigmoid(x)`, element by element. Shapes: any.
    #[track_caller]
    pub fn silu(&self) -> Var<'t> {
        let y = ops::silu(&self.value);
        self.tape.record("silu", y, &[self], || Silu { x: self.value.clone(), x_slot: self.slot })
    }
}

impl Op for Silu {
    fn name(&self) -> &'static str {
        "silu"
    }

    /// `dx = dy s (1 + x (1 - s))` with `s = sigmoid(x)`.
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Gradients) {
        grads.add(self.x_slot, ops::silu_backward(&dy, &self.x));
    }
}

#[cfg(test)]
mod tests {
    use crate::gradcheck::{GradCheck, input};
    use kernels::reference;
    #[test]
    fn silu_gradients() {
        for shape in [&[][..], &[1], &[2, 3, 5], &[37]] {
            // silu' is a sum of terms of both signs, no larger than 1.1: its error is of the size of dy.
            let check = GradCheck::new("silu", &[input(1, shape)])
                .roundings(5)
                .sizes(|_, r| vec![r.iter().map(|r| r.abs() as f64).collect()]);
            check.run(|x| x[0].silu(), |x| x[0].iter().map(|&x| x as f64).map(|x| reference::silu(x).0).collect());
        }
    }
}
