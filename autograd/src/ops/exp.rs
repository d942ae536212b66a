//! `y = e^x`.

use crate::gradients::{Gradients, Slot};
use crate::tape::{Op, Var};
use tensor::{Tensor, ops};

struct Exp {
    y: Tensor,
    x_slot: Option<Slot>,
}

impl<'t> Var<'t> {
    /// `e^x`, element by element. Shapes: any.
    #[track_caller]
    pub fn exp(&self) -> Var<'t> {
        let y = ops::exp(&self.value);
        self.tape.record("exp", y.clone(), &[self], || Exp { y, x_slot: self.slot })
    }
}

impl Op for Exp {
    fn name(&self) -> &'static str {
        "exp"
    }

    /// `dx = dy y`.
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Gradients) {
        grads.add(self.x_slot, ops::mul(&dy, &self.y));
    }
}

#[cfg(test)]
mod tests {
    use crate::gradcheck::{GradCheck, input};

    #[test]
    fn exp_gradients() {
        for shape in [&[][..], &[1], &[2, 3, 5], &[37]] {
            // exp is within 1.18 ULP.
            let check = GradCheck::new("exp", &[input(1, shape)]).roundings(1);
            check.run(|x| x[0].exp(), |x| x[0].iter().map(|&x| x as f64).map(f64::exp).collect());
        }
    }
}
