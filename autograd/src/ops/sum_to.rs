//! Sums over some axes: the transpose of broadcasting.

use crate::gradients::{Gradients, Slot};
use crate::tape::{Op, Var};
use tensor::{Shape, Tensor, ops};

struct SumTo {
    x: (Option<Slot>, Shape),
}

impl<'t> Var<'t> {
    /// The sums over the axes that broadcasting `shape` to x's shape would repeat: from `[M, N]` to `[M, 1]` the sum of each
    /// row, to `[N]` or `[1, N]` of each column. Panics if `shape` does not broadcast to x's.
    #[track_caller]
    pub fn sum_to(&self, shape: impl Into<Shape>) -> Var<'t> {
        let y = ops::sum_to(&self.value, shape);
        self.tape.record("sum_to", y, &[self], || SumTo { x: (self.slot, self.value.shape()) })
    }
}

impl Op for SumTo {
    fn name(&self) -> &'static str {
        "sum_to"
    }

    /// `dx = dy` for each element of a sum: seen from every place, not written out.
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Gradients) {
        let (slot, shape) = self.x;
        grads.add(slot, dy.broadcast_to(shape));
    }
}

#[cfg(test)]
mod tests {
    use crate::gradcheck::{GradCheck, input};

    #[test]
    fn sum_to_gradients() {
        // From, to, and which sum an element is in.
        type Case = (&'static [usize], &'static [usize], fn(usize) -> usize);
        let cases: [Case; 5] = [
            (&[4, 5], &[4, 1], |e| e / 5),
            (&[4, 5], &[5], |e| e % 5),
            (&[2, 3, 4], &[3, 1], |e| e / 4 % 3),
            (&[2, 3], &[], |_| 0),
            (&[3], &[3], |e| e),
        ];
        for (from, to, sum_of) in cases {
            GradCheck::new("sum_to", &[input(1, from)]).run(
                |x| x[0].sum_to(to),
                |x| {
                    let mut sums = vec![0.0; to.iter().product()];
                    x[0].iter().enumerate().for_each(|(e, &x)| sums[sum_of(e)] += x as f64);
                    sums
                },
            );
        }
    }
}
