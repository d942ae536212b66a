//! `y = x Phi(x)`, Phi being the normal distribution function: the exact form of GELU (arXiv 1606.08415).

use crate::gradients::{Gradients, Slot};
use crate::tape::{Op, Var};
use tensor::{Tensor, ops};

struct Gelu {
    x: Tensor,
    x_slot: Option<Slot>,
}

impl<'t> Var<'t> {
    /// `x Phi(x)`, element by element. Shapes: any.
    #[track_caller]
    pub fn gelu(&self) -> Var<'t> {
        let y = ops::gelu(&self.value);
        self.tape.record("gelu", y, &[self], || Gelu { x: self.value.clone(), x_slot: self.slot })
    }
}

impl Op for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    /// `dx = dy (Phi(x) + x phi(x))`, phi being the normal density.
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Gradients) {
        grads.add(self.x_slot, ops::gelu_backward(&dy, &self.x));
    }
}

#[cfg(test)]
mod tests {
    use crate::gradcheck::{GradCheck, input};
    use kernels::reference;

    #[test]
    fn gelu_gradients() {
        for shape in [&[][..], &[1], &[2, 3, 5], &[37]] {
            // gelu' is a sum of terms of both signs, no larger than 1.13: its error is of the size of dy.
            let check = GradCheck::new("gelu", &[input(1, shape)])
                .roundings(5)
                .sizes(|_, r| vec![r.iter().map(|r| r.abs() as f64).collect()]);
            check.run(|x| x[0].gelu(), |x| x[0].iter().map(|&x| reference::gelu(x as f64).0).collect());
        }
    }
}
