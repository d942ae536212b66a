//! `y = a / b`, elementwise and broadcast.

use crate::gradients::{Gradients, Slot};
use crate::tape::{Op, Var};
use tensor::{Shape, Tensor, ops};

struct Div {
    b: Tensor,
    y: Tensor,
    a: (Option<Slot>, Shape),
    b_slot: Option<Slot>,
}

impl<'t> std::ops::Div for &Var<'t> {
    type Output = Var<'t>;

    /// `a / b`, element by element. Shapes: equal, or one broadcasts to the other (NumPy's rule); panics otherwise.
    #[track_caller]
    fn div(self, other: &Var<'t>) -> Var<'t> {
        let y = ops::div(&self.value, &other.value);
        self.tape.record("div", y.clone(), &[self, other], || Div {
            b: other.value.clone(),
            y,
            a: (self.slot, self.value.shape()),
            b_slot: other.slot,
        })
    }
}

impl Op for Div {
    fn name(&self) -> &'static str {
        "div"
    }

    /// `da = dy / b` and `db = -da y`, each summed over the axes along which it was repeated.
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Gradients) {
        let da = ops::div(&dy, &self.b);
        if self.b_slot.is_some() {
            let minus_db = ops::sum_to(&ops::mul(&da, &self.y), self.b.shape());
            grads.add(self.b_slot, ops::scale(-1.0, &minus_db));
        }
        let (a_slot, a_shape) = self.a;
        if a_slot.is_some() {
            grads.add(a_slot, ops::sum_to(&da, a_shape));
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::gradcheck::{GradCheck, input};
    use crate::ops::testing::{broadcast, broadcast_shapes};

    #[test]
    fn div_gradients() {
        for (a, b) in broadcast_shapes() {
            let inputs = [input(1, a), input(2, b)];
            // A gradient is a sum over the elements that were repeated, 24 at most, of two quotients and a product.
            let check = GradCheck::new("div", &inputs).roundings(24 + 3);
            check.run(|x| &x[0] / &x[1], |x| broadcast((x[0], a), (x[1], b), |a, b| a / b));
        }
    }

    /// `1 / a - a / a^2`: the two cancel, so the size is that of each.
    #[test]
    fn div_gradients_of_one_leaf_as_both_operands() {
        let same = |x: &[&[f32]]| x[0].iter().map(|&a| a as f64).map(|a| a / a).collect();
        let check = GradCheck::new("div", &[input(1, [3, 5])]).roundings(3);
        let sizes =
            |x: &[&[f32]], r: &[f32]| vec![r.iter().zip(x[0]).map(|(r, a)| 2.0 * (r / a).abs() as f64).collect()];
        check.sizes(sizes).run(|x| &x[0] / &x[0], same);
    }
}
