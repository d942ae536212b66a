//! Two axes exchanged.

use crate::gradients::{Gradients, Slot};
use crate::tape::{Op, Var};
use tensor::Tensor;

struct Transpose {
    axes: (usize, usize),
    x_slot: Option<Slot>,
}

impl<'t> Var<'t> {
    /// x with the axes `a` and `b` exchanged, as a view: nothing is copied. Panics if there is no such axis.
    #[track_caller]
    pub fn transpose(&self, a: usize, b: usize) -> Var<'t> {
        let y = self.value.transpose(a, b);
        self.tape.record("transpose", y, &[self], || Transpose { axes: (a, b), x_slot: self.slot })
    }
}

impl Op for Transpose {
    fn name(&self) -> &'static str {
        "transpose"
    }

    /// `dx` = dy with the same axes exchanged.
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Gradients) {
        let (a, b) = self.axes;
        grads.add(self.x_slot, dy.transpose(a, b));
    }
}

#[cfg(test)]
mod tests {
    use crate::gradcheck::{GradCheck, input};

    #[test]
    fn transpose_gradients() {
        for ([b, m, n], (i, j)) in [([1, 2, 3], (1, 2)), ([1, 5, 1], (2, 1)), ([3, 4, 5], (1, 2))] {
            let transposed = |x: &[&[f32]]| {
                let element = |e: usize| x[0][e / (m * n) * m * n + e % m * n + e / m % n] as f64;
                (0..b * m * n).map(element).collect()
            };
            GradCheck::new("transpose", &[input(1, [b, m, n])]).run(|x| x[0].transpose(i, j), transposed);
        }
    }

    /// The gradient that reaches the leaf is a view; the next is added to it.
    #[test]
    fn transpose_gradients_of_a_leaf_used_twice() {
        let both = |x: &[&[f32]]| {
            let x = |i: usize, j: usize| x[0][i * 3 + j] as f64;
            (0..9).map(|e| (e / 3, e % 3)).map(|(i, j)| x(i, j) + x(j, i)).collect()
        };
        GradCheck::new("transpose", &[input(1, [3, 3])]).run(|x| &x[0] + x[0].transpose(0, 1), both);
    }
}
