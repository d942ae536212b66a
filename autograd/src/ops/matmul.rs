//! `y = a b`: the product of two matrices.

use crate::gradients::{Gradients, Slot};
use crate::tape::{Op, Var};
use tensor::{Tensor, ops};

struct Matmul {
    a: Tensor,
    b: Tensor,
    a_slot: Option<Slot>,
    b_slot: Option<Slot>,
}

impl<'t> Var<'t> {
    /// `y = a b` with `self` as a. Shapes: a `[M, K]`; b `[K, N]`; y `[M, N]`; views, such as a transpose, cost nothing.
    /// Panics unless both are matrices with one K. For a batch of rows and a weight, see [`Var::linear`].
    #[track_caller]
    pub fn matmul(&self, b: &Var<'t>) -> Var<'t> {
        let y = ops::matmul(&self.value, &b.value);
        self.tape.record("matmul", y, &[self, b], || Matmul {
            a: self.value.clone(),
            b: b.value.clone(),
            a_slot: self.slot,
            b_slot: b.slot,
        })
    }
}

impl Op for Matmul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    /// `da += dy b^T`, `db += a^T dy`.
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Gradients) {
        let dy = ops::cast(&dy, self.a.dtype());
        grads.accumulate(self.b_slot, &dy.device(), self.b.shape(), self.b.dtype(), |beta, db| {
            ops::matmul_into(&self.a.t(), &dy, beta, db)
        });
        grads.accumulate(self.a_slot, &dy.device(), self.a.shape(), self.a.dtype(), |beta, da| {
            ops::matmul_into(&dy, &self.b.t(), beta, da)
        });
    }
}

#[cfg(test)]
mod tests {
    use crate::gradcheck::{GradCheck, input};
    use crate::ops::testing::{gpu, product_sizes};
    use kernels::{Mat, reference};

    #[test]
    fn matmul_gradients() {
        for [m, k, n] in [[1, 1, 1], [2, 3, 5], [7, 1, 4], [5, 17, 3], [33, 21, 40]] {
            let product = |x: &[&[f32]]| reference::gemm(Mat::new(x[0], m, k), Mat::new(x[1], k, n)).0;
            let sizes = |x: &[&[f32]], r: &[f32]| product_sizes(Mat::new(x[0], m, k), Mat::new(x[1], k, n), r);
            // da sums over N, db over M.
            let check =
                GradCheck::new("matmul", &[input(1, [m, k]), input(2, [k, n])]).roundings(m.max(n)).sizes(sizes);
            check.run(|x| x[0].matmul(&x[1]), product);
            check.in_bf16(2).on(&gpu()).run(|x| x[0].matmul(&x[1]), product);
        }
    }

    #[test]
    fn matmul_gradients_of_a_leaf_and_its_transpose() {
        let (m, k) = (4, 3);
        let gram = |x: &[&[f32]]| reference::gemm(Mat::new(x[0], m, k), Mat::new(x[0], m, k).t()).0;
        GradCheck::new("matmul", &[input(1, [m, k])])
            .roundings(2 * m)
            .run(|x| x[0].matmul(&x[0].transpose(0, 1)), gram);
    }
}
