//! `y = x W^T`: a projection by a weight `[out, in]`, as in a checkpoint.

use crate::gradients::{Gradients, Slot};
use crate::tape::{Op, Var};
use tensor::{DType, Tensor, ops};

struct Linear {
    x: Tensor,
    weight: Tensor,
    x_slot: Option<Slot>,
    weight_slot: Option<Slot>,
}

impl<'t> Var<'t> {
    /// `y = x W^T`. Shapes: x `[.., K]`; weight `[N, K]`; y `[.., N]`. Panics if K differs, or unless both are f32 or, on a GPU, bf16,
    /// which y is then too.
    #[track_caller]
    pub fn linear(&self, weight: &Var<'t>) -> Var<'t> {
        self.linear_made(weight, project("linear", "x", &self.value, &weight.value))
    }

    /// [`linear`](Var::linear) whose result, `y`, is there.
    #[track_caller]
    pub(crate) fn linear_made(&self, weight: &Var<'t>, y: Tensor) -> Var<'t> {
        self.tape.record("linear", y, &[self, weight], || Linear {
            x: self.value.clone(),
            weight: weight.value.clone(),
            x_slot: self.slot,
            weight_slot: weight.slot,
        })
    }
}

impl Op for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    /// `dx += dy W`, `dW += dy^T x`, dW in f32 whatever the type of W.
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Gradients) {
        let (dtype, device) = (self.x.dtype(), dy.device());
        let dy = ops::cast(&as_matrix(&dy), dtype);
        grads.accumulate(self.weight_slot, &device, self.weight.shape(), DType::F32, |beta, dw| {
            ops::matmul_into(&dy.t(), &as_matrix(&self.x), beta, dw)
        });
        grads.accumulate(self.x_slot, &device, self.x.shape(), dtype, |beta, dx| {
            ops::matmul_into(&dy, &self.weight, beta, dx)
        });
    }
}

/// `x W^T`, for `op`, which calls its x `name`. Shapes: x `[.., K]`; weight `[N, K]`; result `[.., N]`.
#[track_caller]
pub(crate) fn project(op: &str, name: &str, x: &Tensor, weight: &Tensor) -> Tensor {
    let (shape, w) = (x.shape(), weight.shape());
    let Some(&k) = shape.last() else { panic!("{op}: {name} is a scalar, expected at least one axis") };
    assert!(w.rank() == 2, "{op}: {name} {shape} and weight {w}: the weight is not a matrix [N, K]");
    assert!(w[1] == k, "{op}: {name} {shape} and weight {w}: axis 1 of the weight is {}, not {k}", w[1]);
    ops::matmul(&as_matrix(x), &weight.t()).reshape(shape.with(shape.rank() - 1, w[0]))
}

/// All axes but the last as one: `[.., K]` as `[N, K]`.
#[track_caller]
pub(crate) fn as_matrix(x: &Tensor) -> Tensor {
    let last = x.dim(x.shape().rank() - 1);
    x.reshape([x.elements() / last.max(1), last])
}

#[cfg(test)]
mod tests {
    use crate::gradcheck::{GradCheck, input};
    use crate::ops::testing::{devices, gpu, product_sizes};
    use crate::{Gradients, Tape, Var};
    use half::bf16;
    use kernels::{Mat, reference};
    use tensor::{DType, Shape, Tensor, ops};

    #[test]
    fn linear_gradients() {
        for (lead, k, n) in [(&[1][..], 1, 1), (&[], 3, 5), (&[2, 3], 5, 4), (&[1, 7], 2, 1), (&[3, 11], 19, 41)] {
            let shape = Shape::new(&[lead, &[k]].concat());
            let rows = shape.elements() / k;
            let product = |x: &[&[f32]]| reference::gemm(Mat::new(x[0], rows, k), Mat::new(x[1], n, k).t()).0;
            let sizes = |x: &[&[f32]], r: &[f32]| {
                let [dx, dw_t] =
                    product_sizes(Mat::new(x[0], rows, k), Mat::new(x[1], n, k).t(), r).try_into().unwrap();
                vec![dx, (0..n * k).map(|i| dw_t[i % k * n + i / k]).collect()]
            };
            // dx sums over N, dW over the rows.
            for device in devices() {
                let check = GradCheck::new("linear", &[input(1, shape), input(2, [n, k])]).roundings(rows.max(n));
                check.on(&device).sizes(sizes).run(|x| x[0].linear(&x[1]), product);
            }
            // r and dx; dW is f32.
            let check =
                GradCheck::new("linear", &[input(1, shape), input(2, [n, k])]).roundings(rows.max(n)).in_bf16(2);
            check.on(&gpu()).sizes(sizes).run(|x| x[0].linear(&x[1]), product);
        }
    }

    /// The weight in f32 has a copy in bf16, and its gradient, in f32, is in the leaf's slot; what flows back to x is bf16.
    #[test]
    fn linear_gradients_of_a_copy_are_its_leafs_and_f32() {
        let (gpu, tape) = (gpu(), Tape::new());
        let there = |x: Tensor| x.to_device(&gpu).unwrap();
        let rounded = |x: &Var| ops::cast(x.value(), DType::Bf16);
        let (w, x) = (tape.leaf(there(input(1, [3, 5]))), tape.leaf(there(input(2, [4, 5]))));
        let x_bf16 = tape.leaf(rounded(&x));
        let y = x_bf16.linear(&w.stand_in(rounded(&w)));
        assert_eq!((y.value().dtype(), tape.len()), (DType::Bf16, 1), "linear: a copy is no op");
        let mut grads = Gradients::default();
        for _ in 0..2 {
            let y = x_bf16.linear(&w.stand_in(rounded(&w)));
            y.cast(DType::F32).sum().backward(&mut grads);
        }
        // Twice the sums over the rows of x, which is exact in f32.
        let x = rounded(&x).to_vec::<bf16>().unwrap();
        let sums: Vec<f32> = (0..5).map(|k| 2.0 * (0..4).map(|row| x[row * 5 + k].to_f32()).sum::<f32>()).collect();
        let dw = grads.get(&w).expect("linear: the leaf has the copy's gradient");
        assert_eq!(dw.to_vec::<f32>().unwrap(), sums.repeat(3), "linear: dW");
        assert_eq!(grads.get(&x_bf16).map(Tensor::dtype), Some(DType::Bf16), "linear: dx");
    }

    #[test]
    #[should_panic(expected = "stand_in: a copy of shape [5, 3] for a leaf of shape [3, 5]")]
    fn a_copy_has_the_shape_of_its_leaf() {
        Tape::new().leaf(input(1, [3, 5])).stand_in(input(1, [5, 3]));
    }

    #[test]
    fn linear_gradients_of_a_weight_used_twice() {
        let twice = |x: &[&[f32]]| -> Vec<f64> {
            let w = |i: usize, j: usize| x[1][i * 3 + j] as f64;
            let once = |x: &[f64]| (0..3).map(|i| (0..3).map(|j| w(i, j) * x[j]).sum()).collect::<Vec<f64>>();
            once(&once(&x[0].iter().map(|&x| x as f64).collect::<Vec<_>>()))
        };
        // Two products of three terms each way.
        let check = GradCheck::new("linear", &[input(1, [1, 3]), input(2, [3, 3])]).roundings(16).sizes(|x, r| {
            let abs = |x: &[f32]| x.iter().map(|x| x.abs()).collect::<Vec<f32>>();
            let (x, w, r) = (abs(x[0]), abs(x[1]), abs(r));
            let (w, r) = (Mat::new(&w, 3, 3), Mat::new(&r, 1, 3));
            let narrow = |x: Vec<f64>| x.iter().map(|&x| x as f32).collect::<Vec<f32>>();
            let hidden = narrow(reference::gemm(Mat::new(&x, 1, 3), w.t()).0);
            let d_hidden = narrow(reference::gemm(r, w).0);
            let dx = reference::gemm(Mat::new(&d_hidden, 1, 3), w).0;
            let dw = |i: usize, j: usize| (r.at(0, i) * hidden[j] + d_hidden[i] * x[j]) as f64;
            vec![dx, (0..9).map(|e| dw(e / 3, e % 3)).collect()]
        });
        check.run(|x| x[0].linear(&x[1]).linear(&x[1]), twice);
    }
}
