//! Sums: of all elements, and over some axes, the transpose of broadcasting.

use crate::gradients::{Gradients, Slot};
use crate::tape::{Op, Var};
use tensor::{Shape, Tensor, ops};

struct Sum {
    name: &'static str,
    x: (Option<Slot>, Shape),
}

impl<'t> Var<'t> {
    /// The sum of all elements, as a scalar.
    #[track_caller]
    pub fn sum(&self) -> Var<'t> {
        self.record_sum("sum", ops::sum(&self.value))
    }

    /// The mean of all n elements, as a scalar: `sum(x) / n`, recorded as these two.
    #[track_caller]
    pub fn mean(&self) -> Var<'t> {
        self.sum().scale(1.0 / self.value.elements() as f32)
    }

    /// The sums over the axes that broadcasting `shape` to x's shape would repeat: from `[M, N]` to `[M, 1]` the sum of each
    /// row, to `[N]` or `[1, N]` of each column. Panics if `shape` does not broadcast to x's.
    #[track_caller]
    pub fn sum_to(&self, shape: impl Into<Shape>) -> Var<'t> {
        self.record_sum("sum_to", ops::sum_to(&self.value, shape))
    }

    #[track_caller]
    fn record_sum(&self, name: &'static str, y: Tensor) -> Var<'t> {
        self.tape.record(name, y, &[self], || Sum { name, x: (self.slot, self.value.shape()) })
    }
}

impl Op for Sum {
    fn name(&self) -> &'static str {
        self.name
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
    fn sum_and_mean_gradients() {
        for shape in [&[][..], &[1], &[2, 3, 5], &[7, 1]] {
            let inputs = [input(1, shape)];
            let total = |x: &[&[f32]]| x[0].iter().map(|&x| x as f64).sum::<f64>();
            GradCheck::new("sum", &inputs).run(|x| x[0].sum(), |x| vec![total(x)]);
            GradCheck::new("mean", &inputs).roundings(1).run(|x| x[0].mean(), |x| vec![total(x) / x[0].len() as f64]);
        }
    }

    /// The gradient of a sum is one number, repeated: adding to it needs memory of its own.
    #[test]
    fn sum_gradients_of_a_leaf_used_twice() {
        let twice = |x: &[&[f32]]| vec![2.0 * x[0].iter().map(|&x| x as f64).sum::<f64>()];
        GradCheck::new("sum", &[input(1, [3, 5])]).run(|x| x[0].sum() + x[0].sum(), twice);
    }

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
