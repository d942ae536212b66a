//! `y = x / sqrt(mean(x^2) + eps) * weight`: RMSNorm over the last axis.

use crate::gradients::{Gradients, Slot};
use crate::tape::{Op, Var};
use tensor::{DType, Tensor, ops};

struct RmsNorm {
    x: Tensor,
    weight: Tensor,
    inv_rms: Tensor,
    x_slot: Option<Slot>,
    weight_slot: Option<Slot>,
}

impl<'t> Var<'t> {
    /// `y = x r weight` with `r = 1 / sqrt(mean(x^2) + eps)`, the mean over the last axis (Zhang and Sennrich 2019, eq. 4,
    /// with the eps of Llama). Shapes: x, y `[.., C]`; weight `[C]`. Panics if C differs.
    #[track_caller]
    pub fn rms_norm(&self, weight: &Var<'t>, eps: f32) -> Var<'t> {
        self.rms_norm_as(DType::F32, weight, eps)
    }

    /// [`rms_norm`](Var::rms_norm) of a residual stream in f32 for products in `dtype`: y in bf16, on a GPU, is rounded once.
    #[track_caller]
    pub fn rms_norm_as(&self, dtype: DType, weight: &Var<'t>, eps: f32) -> Var<'t> {
        let (y, inv_rms) = ops::rms_norm_as(dtype, &self.value, &weight.value, eps);
        self.tape.record("rms_norm", y, &[self, weight], || RmsNorm {
            x: self.value.clone(),
            weight: weight.value.clone(),
            inv_rms,
            x_slot: self.slot,
            weight_slot: weight.slot,
        })
    }
}

impl Op for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    /// With `n = x r`: `dx += r (dy weight - n mean(dy weight n))`, `dweight += sum over rows of dy n`.
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Gradients) {
        let RmsNorm { x, weight, inv_rms, .. } = &*self;
        let (beta, mut dx) = grads.take_or_stale(self.x_slot, &dy.device(), x.shape(), DType::F32);
        let mut d_weight = grads.take_or_zeros(self.weight_slot, &dy.device(), weight.shape());
        ops::rms_norm_backward(&dy, x, weight, inv_rms, beta, &mut dx, &mut d_weight);
        grads.add(self.x_slot, dx);
        grads.add(self.weight_slot, d_weight);
    }
}

#[cfg(test)]
mod tests {
    use crate::gradcheck::{GradCheck, input};
    use crate::ops::testing::{devices, gpu};
    use kernels::reference;
    use tensor::{DType, Shape};

    const EPS: f32 = 1e-3;

    fn sizes(x: &[&[f32]], r: &[f32]) -> Vec<Vec<f64>> {
        let inv_rms: Vec<f32> = reference::rms_norm(x[0], x[1], EPS).1.iter().map(|&r| r as f32).collect();
        let abs = reference::rms_norm_backward(r, x[0], x[1], &inv_rms).2;
        vec![abs.dx, abs.d_weight]
    }

    /// r is off by C / 2 + 4 roundings and enters dx thrice, where a sum of C terms adds to it; dweight is a sum over rows.
    fn roundings(rows: usize, c: usize) -> usize {
        3 * (c / 2 + 4) + 8 + c + rows
    }

    #[test]
    fn rms_norm_gradients() {
        for (lead, c) in [(&[1][..], 1), (&[], 3), (&[2, 3], 5), (&[7], 2), (&[3, 5], 33)] {
            let shape = Shape::new(&[lead, &[c]].concat());
            for device in devices() {
                let check = GradCheck::new("rms_norm", &[input(1, shape), input(2, [c])]).on(&device);
                check
                    .roundings(roundings(shape.elements() / c, c))
                    .sizes(sizes)
                    .run(|x| x[0].rms_norm(&x[1], EPS), |x| reference::rms_norm(x[0], x[1], EPS).0);
            }
            // From the residual stream in f32 to bf16, and back: r; the gradients, because the inputs here are bf16.
            let check = GradCheck::new("rms_norm", &[input(1, shape), input(2, [c])]).on(&gpu()).in_bf16(2);
            let [f32, bf16] = [DType::F32, DType::Bf16];
            check.roundings(roundings(shape.elements() / c, c)).sizes(sizes).run(
                |x| x[0].cast(f32).rms_norm_as(bf16, &x[1].cast(f32), EPS),
                |x| reference::rms_norm(x[0], x[1], EPS).0,
            );
        }
    }

    #[test]
    fn rms_norm_gradients_of_one_leaf_as_row_and_as_weight() {
        let tied = |x: &[&[f32]], r: &[f32]| {
            let [dx, d_weight] = sizes(&[x[0], x[0]], r).try_into().unwrap();
            vec![dx.iter().zip(&d_weight).map(|(a, b)| a + b).collect()]
        };
        GradCheck::new("rms_norm", &[input(1, [5])])
            .roundings(roundings(1, 5))
            .sizes(tied)
            .run(|x| x[0].rms_norm(&x[0], EPS), |x| reference::rms_norm(x[0], x[0], EPS).0);
    }
}
