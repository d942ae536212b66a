//! `y = ln x`, the natural logarithm.

use crate::gradients::{Gradients, Slot};
use crate::tape::{Op, Var};
use tensor::{Tensor, ops};

struct Log {
    x: Tensor,
    x_slot: Option<Slot>,
}

impl<'t> Var<'t> {
    /// `ln x`, element by element: -inf at 0, NaN below. Shapes: any.
    #[track_caller]
    pub fn log(&self) -> Var<'t> {
        let y = ops::log(&self.value);
        self.tape.record("log", y, &[self], || Log { x: self.value.clone(), x_slot: self.slot })
    }
}

impl Op for Log {
    fn name(&self) -> &'static str {
        "log"
    }

    /// `dx = dy / x`.
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Gradients) {
        grads.add(self.x_slot, ops::div(&dy, &self.x));
    }
}

#[cfg(test)]
mod tests {
    use crate::gradcheck::{GradCheck, input};
    use tensor::ops;

    #[test]
    fn log_gradients() {
        for shape in [&[][..], &[1], &[2, 3, 5], &[37]] {
            let x = input(1, shape);
            let positive = ops::mul(&x, &x); // at least 1 / 64: its relative step is below 2^-4, and log is smooth
            let check = GradCheck::new("log", &[positive]).roundings(1);
            check.run(|x| x[0].log(), |x| x[0].iter().map(|&x| x as f64).map(f64::ln).collect());
        }
    }
}
