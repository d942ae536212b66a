//! `y = factor x`, and `-x`.

use crate::gradients::{Gradients, Slot};
use crate::tape::{Op, Var};
use tensor::{Tensor, ops};

struct Scale {
    factor: f32,
    x_slot: Option<Slot>,
}

impl<'t> Var<'t> {
    /// `factor x`, for a number that is known. Shapes: any.
    #[track_caller]
    pub fn scale(&self, factor: f32) -> Var<'t> {
        let y = ops::scale(factor, &self.value);
        self.tape.record("scale", y, &[self], || Scale { factor, x_slot: self.slot })
    }
}

impl<'t> std::ops::Neg for &Var<'t> {
    type Output = Var<'t>;

    /// `-x`, which is exact.
    #[track_caller]
    fn neg(self) -> Var<'t> {
        self.scale(-1.0)
    }
}

impl Op for Scale {
    fn name(&self) -> &'static str {
        "scale"
    }

    /// `dx = factor dy`.
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Gradients) {
        grads.add(self.x_slot, ops::scale(self.factor, &dy));
    }
}

#[cfg(test)]
mod tests {
    use crate::gradcheck::{GradCheck, input};

    #[test]
    fn scale_and_neg_gradients() {
        for shape in [&[][..], &[1], &[2, 3, 5]] {
            let times = |factor: f64| move |x: &[&[f32]]| x[0].iter().map(|&x| factor * x as f64).collect();
            let inputs = [input(1, shape)];
            GradCheck::new("scale", &inputs).run(|x| x[0].scale(0.7), times(0.7f32 as f64));
            GradCheck::new("neg", &inputs).run(|x| -&x[0], times(-1.0));
        }
    }
}
