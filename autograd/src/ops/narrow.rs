//! A range of one axis.

use crate::gradients::{Gradients, Slot};
use crate::tape::{Op, Var};
use tensor::{DType, Shape, Tensor, ops};

struct Narrow {
    axis: usize,
    start: usize,
    x: (Option<Slot>, Shape),
}

impl<'t> Var<'t> {
    /// Elements `start .. start + len` along `axis`, as a view: nothing is copied. Panics if they reach beyond the axis.
    #[track_caller]
    pub fn narrow(&self, axis: usize, start: usize, len: usize) -> Var<'t> {
        let y = self.value.narrow(axis, start, len);
        self.tape.record("narrow", y, &[self], || Narrow { axis, start, x: (self.slot, self.value.shape()) })
    }
}

impl Op for Narrow {
    fn name(&self) -> &'static str {
        "narrow"
    }

    /// `dx[start .. start + len] += dy` along the axis; elsewhere it is 0.
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Gradients) {
        let (slot, shape) = self.x;
        let dy = ops::cast(&dy, DType::F32);
        grads.accumulate_onto_zeros(slot, &dy.device(), shape, |dx| ops::add_to_range(&dy, self.axis, self.start, dx));
    }
}

#[cfg(test)]
mod tests {
    use crate::gradcheck::{GradCheck, input};

    #[test]
    fn narrow_gradients() {
        for ([b, m, n], start, len) in [([1, 5, 3], 1, 2), ([3, 4, 1], 0, 4), ([2, 3, 5], 2, 1), ([2, 3, 2], 3, 0)] {
            let range = |x: &[&[f32]]| {
                let keep = |e: &usize| (start..start + len).contains(&(e / n % m));
                (0..b * m * n).filter(keep).map(|e| x[0][e] as f64).collect()
            };
            GradCheck::new("narrow", &[input(1, [b, m, n])]).run(|x| x[0].narrow(1, start, len), range);
        }
    }

    #[test]
    fn narrow_gradients_of_two_ranges_that_overlap() {
        let sum = |x: &[&[f32]]| (0..3).map(|i| x[0][i] as f64 * x[0][i + 1] as f64).collect();
        GradCheck::new("narrow", &[input(1, [4])])
            .roundings(2)
            .run(|x| x[0].narrow(0, 0, 3) * x[0].narrow(0, 1, 3), sum);
    }
}
