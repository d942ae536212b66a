//! Views: other shapes on the same elements.

use crate::gradients::{Gradients, Slot};
use crate::tape::{Op, Var};
use tensor::{Shape, Tensor};

struct Reshape {
    x: (Option<Slot>, Shape),
}

impl<'t> Var<'t> {
    /// The same elements, in row-major order, in another shape; shares the storage if x is contiguous.
    /// Panics if the numbers of elements differ.
    #[track_caller]
    pub fn reshape(&self, shape: impl Into<Shape>) -> Var<'t> {
        let y = self.value.reshape(shape);
        self.tape.record("reshape", y, &[self], || Reshape { x: (self.slot, self.value.shape()) })
    }
}

impl Op for Reshape {
    fn name(&self) -> &'static str {
        "reshape"
    }

    /// `dx = dy` in the shape of x.
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Gradients) {
        let (slot, shape) = self.x;
        grads.add(slot, dy.reshape(shape));
    }
}

#[cfg(test)]
mod tests {
    use crate::gradcheck::{GradCheck, input};

    #[test]
    fn reshape_gradients() {
        for (from, to) in [(&[6][..], &[2, 3][..]), (&[2, 3, 5], &[30]), (&[1], &[]), (&[4, 3], &[1, 4, 3])] {
            let same = |x: &[&[f32]]| x[0].iter().map(|&x| x as f64).collect();
            GradCheck::new("reshape", &[input(1, from)]).run(|x| x[0].reshape(to), same);
        }
    }

    #[test]
    fn reshape_of_a_view_copies_in_row_major_order() {
        let columns = |x: &[&[f32]]| [0, 3, 1, 4, 2, 5].map(|i| x[0][i] as f64).to_vec();
        GradCheck::new("reshape", &[input(1, [2, 3])]).run(|x| x[0].transpose(0, 1).reshape([6]), columns);
    }
}
