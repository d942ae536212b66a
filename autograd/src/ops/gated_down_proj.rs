//! `y = (psi(g) * u) W2^T`: the FFN from its two projections to its output, as one op.
//!
//! One op rather than two, because the hidden layer h need not be kept: backward makes it again from g and u in the pass
//! that makes their gradients. For d_ff = 4 d_model that saves a third of what an FFN keeps.

use super::linear::{as_matrix, project};
use crate::gradients::{Gradients, Slot};
use crate::tape::{Op, Var};
use tensor::{Activation, DType, Tensor, Total, ops};

struct GatedDownProj {
    act: Activation,
    /// Factor of the penalty on h.
    l1: f32,
    g: Tensor,
    u: Tensor,
    weight: Tensor,
    g_slot: Option<Slot>,
    u_slot: Option<Slot>,
    weight_slot: Option<Slot>,
}

/// The hidden layer of an FFN, and the gates that it is made of: what [`Var::gated_hidden`] gives.
pub struct GatedHidden<'t> {
    act: Activation,
    g: Var<'t>,
    u: Var<'t>,
    h: Tensor,
}

impl<'t> GatedHidden<'t> {
    /// g, `[.., F]`.
    pub fn gate(&self) -> &Var<'t> {
        &self.g
    }

    /// `y = h W2^T`: as [`Var::gated_down_proj`].
    #[track_caller]
    pub fn down_proj(self, weight: &Var<'t>) -> Var<'t> {
        self.g.project_down(&self.h, &self.u, weight, self.act, 0.0)
    }

    /// With a penalty on h: as [`Var::gated_down_proj_l1`].
    #[track_caller]
    pub fn down_proj_l1(self, weight: &Var<'t>, l1: f32) -> (Var<'t>, Total) {
        let mut sum = Total::zero(&self.h.device());
        ops::sum_abs(&self.h, &mut sum);
        (self.g.project_down(&self.h, &self.u, weight, self.act, l1), sum)
    }
}

impl<'t> Var<'t> {
    /// The FFN from its input, self, to its hidden layer: `g = x W1^T`, `u = x W3^T`, `h = psi(g) * u` (arXiv 2509.22358). Records two
    /// [`linear`](Var::linear), and has their bits and those of [`gated_activation`](Var::gated_activation); in bf16 it is one launch.
    ///
    /// Shapes: x `[.., C]`; gate_proj (W1) and up_proj (W3) `[F, C]`; g, u, h `[.., F]`. Panics if they differ.
    #[track_caller]
    pub fn gated_hidden(&self, gate_proj: &Var<'t>, up_proj: &Var<'t>, act: Activation) -> GatedHidden<'t> {
        let ops::Gated { g, u, h } = ops::gemm_gated_activation(act, &self.value, &gate_proj.value, &up_proj.value);
        let linear = |name, weight, y| {
            let _scope = self.tape.scope(name);
            self.linear_made(weight, y)
        };
        GatedHidden { act, g: linear("gate_proj", gate_proj, g), u: linear("up_proj", up_proj, u), h }
    }

    /// `h = psi(g) * u`, `y = h W2^T`, with `self` as g (arXiv 2509.22358).
    /// Shapes: g, u `[.., F]`; weight (down_proj) `[C, F]`; y `[.., C]`. Panics if they differ. All are f32 or, on a GPU, bf16.
    #[track_caller]
    pub fn gated_down_proj(&self, u: &Var<'t>, weight: &Var<'t>, act: Activation) -> Var<'t> {
        let h = ops::gated_activation(act, &self.value, &u.value);
        self.project_down(&h, u, weight, act, 0.0)
    }

    /// [`gated_down_proj`](Var::gated_down_proj) with a penalty on h (arXiv 2603.23198): y as without, and `sum |h|`.
    ///
    /// A backward through y also adds the gradient of `l1 sum |h|`, sign(0) being 0, as though the loss that is differentiated
    /// had it as a term; what scales that loss does not scale it.
    #[track_caller]
    pub fn gated_down_proj_l1(&self, u: &Var<'t>, weight: &Var<'t>, act: Activation, l1: f32) -> (Var<'t>, Total) {
        let h = ops::gated_activation(act, &self.value, &u.value);
        let mut sum = Total::zero(&h.device());
        ops::sum_abs(&h, &mut sum);
        (self.project_down(&h, u, weight, act, l1), sum)
    }

    #[track_caller]
    fn project_down(&self, h: &Tensor, u: &Var<'t>, weight: &Var<'t>, act: Activation, l1: f32) -> Var<'t> {
        let y = project("gated_down_proj", "h", h, &weight.value);
        self.tape.record("gated_down_proj", y, &[self, u, weight], || GatedDownProj {
            act,
            l1,
            g: self.value.clone(),
            u: u.value.clone(),
            weight: weight.value.clone(),
            g_slot: self.slot,
            u_slot: u.slot,
            weight_slot: weight.slot,
        })
    }
}

impl Op for GatedDownProj {
    fn name(&self) -> &'static str {
        "gated_down_proj"
    }

    /// `dh = dy W2 + l1 sign(h)`; then, with the draws of the forward pass, `dg = dh u psi'(g)` and `du = dh psi(g)`;
    /// `dW2 += dy^T h`, in f32.
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Gradients) {
        let dy = ops::cast(&as_matrix(&dy), self.g.dtype());
        let ops::GatedGradients { dg, du, h } =
            ops::gemm_gated_activation_backward(self.act, self.l1, &dy, &self.weight, &self.g, &self.u);
        grads.accumulate(self.weight_slot, &dy.device(), self.weight.shape(), DType::F32, |beta, dw| {
            ops::matmul_into(&dy.t(), &as_matrix(&h), beta, dw)
        });
        grads.add(self.g_slot, dg);
        grads.add(self.u_slot, du);
    }
}

#[cfg(test)]
mod tests {
    use crate::gradcheck::{GradCheck, input, weights_of_results};
    use crate::ops::testing::{activations, devices, gpu};
    use kernels::reference;
    use tensor::{Activation, DType, Shape, Tensor, ops};

    /// `[dg, du, dW2]` of `sum(r * y) + l1 sum |h|`, term by term in absolute value.
    fn sizes(act: Activation, l1: f32, [f, c]: [usize; 2], x: &[&[f32]], r: &[f32]) -> Vec<Vec<f64>> {
        let (g, u, w) = (x[0], x[1], x[2]);
        let abs = |x: f32| x.abs() as f64;
        let eval = |i: usize| reference::activation(act, i / f, i % f, g[i] as f64);
        let psi = |i: usize| eval(i).0.abs();
        let dh = |i: usize| (0..c).map(|o| abs(r[i / f * c + o]) * abs(w[o * f + i % f])).sum::<f64>();
        let dh: Vec<f64> = (0..g.len()).map(|i| dh(i) + l1 as f64).collect();
        let h = |i: usize| psi(i) * abs(u[i]);
        let dw = |o: usize, j: usize| (0..g.len() / f).map(|n| abs(r[n * c + o]) * h(n * f + j)).sum();
        vec![
            // psi' is exact or off by 4 units of 2^-24 in sums of both signs, of a size up to 1.
            (0..g.len()).map(|i| dh[i] * abs(u[i]) * eval(i).1.abs().max(1.0)).collect(),
            (0..g.len()).map(|i| dh[i] * psi(i)).collect(),
            (0..c * f).map(|i| dw(i / f, i % f)).collect(),
        ]
    }

    fn reference(act: Activation, [f, c]: [usize; 2], x: &[&[f32]]) -> Vec<f64> {
        let h = reference::gated_activation(act, x[0], x[1], f);
        let y = |n: usize, o: usize| (0..f).map(|j| h[n * f + j] * x[2][o * f + j] as f64).sum();
        (0..h.len() / f * c).map(|i| y(i / c, i % c)).collect()
    }

    #[test]
    fn gated_down_proj_gradients() {
        for act in activations() {
            for (lead, f, c) in [(&[1][..], 1, 1), (&[], 5, 3), (&[2, 3], 7, 2), (&[11], 25, 6)] {
                let shape = Shape::new(&[lead, &[f]].concat());
                let rows = shape.elements() / f;
                let inputs = [input(1, shape), input(2, shape), input(3, [c, f])];
                for device in devices() {
                    // dh is a sum over C, dW2 one over the rows; psi is within 5 ULP, and two products follow.
                    let check = GradCheck::new("gated_down_proj", &inputs).roundings(c.max(rows) + 12).on(&device);
                    check
                        .sizes(move |x, r| sizes(act, 0.0, [f, c], x, r))
                        .run(|x| x[0].gated_down_proj(&x[1], &x[2], act), |x| reference(act, [f, c], x));
                }
                // r; dh and then dg and du, or h.
                let check = GradCheck::new("gated_down_proj", &inputs).roundings(c.max(rows) + 12).in_bf16(3);
                check
                    .on(&gpu())
                    .sizes(move |x, r| sizes(act, 0.0, [f, c], x, r))
                    .run(|x| x[0].gated_down_proj(&x[1], &x[2], act), |x| reference(act, [f, c], x));
            }
        }
    }

    /// With a penalty the gradient is that of `sum(r * y) + l1 sum |h|`: the reference has the penalty in its first result,
    /// over that result's weight.
    #[test]
    fn gated_down_proj_l1_gradients() {
        let l1 = 0.125;
        for act in activations() {
            for (rows, f, c) in [(1, 1, 1), (4, 7, 2), (9, 25, 6)] {
                let inputs = [input(1, [rows, f]), input(2, [rows, f]), input(3, [c, f])];
                let check = GradCheck::new("gated_down_proj_l1", &inputs).roundings(c.max(rows) + 13);
                let penalised = |x: &[&[f32]]| {
                    let mut y = reference(act, [f, c], x);
                    let h = reference::gated_activation(act, x[0], x[1], f);
                    y[0] += l1 as f64 * h.iter().map(|h| h.abs()).sum::<f64>() / weights_of_results(y.len())[0] as f64;
                    y
                };
                check
                    .sizes(move |x, r| sizes(act, l1, [f, c], x, r))
                    .run(|x| x[0].gated_down_proj_l1(&x[1], &x[2], act, l1).0, penalised);
            }
        }
    }

    #[test]
    fn gated_down_proj_l1_gives_the_sum_and_the_same_result() {
        let tape = crate::Tape::new();
        let [g, u, w] = [(1, 5), (2, 5), (3, 4)].map(|(seed, n)| tape.leaf(input(seed, [n, 33])));
        for act in activations() {
            let plain = g.gated_down_proj(&u, &w, act);
            let (y, sum) = g.gated_down_proj_l1(&u, &w, act, 0.5);
            assert_eq!(plain.value().to_vec::<f32>().unwrap(), y.value().to_vec::<f32>().unwrap(), "{act:?}");
            let h = g.gated_activation(&u, act).value().to_vec::<f32>().unwrap();
            let sum = sum.value();
            let expected: f64 = h.iter().map(|h| h.abs() as f64).sum();
            // As `sum` states it: one block.
            assert!(
                (sum - expected).abs() <= 516.0 * kernels::testing::ROUNDING * expected,
                "{act:?}: {sum}, {expected}"
            );
        }
    }

    /// The whole FFN by [`Var::gated_hidden`] and by its parts: the same bits, forward and backward, on every device.
    #[test]
    fn gated_hidden_is_its_parts() {
        let bf16 = [(gpu(), DType::Bf16)];
        for (device, dtype) in devices().map(|device| (device, DType::F32)).into_iter().chain(bf16) {
            for (act, (f, c)) in activations().zip([(8, 8), (24, 16), (5, 3)].into_iter().cycle()) {
                let there = |seed, shape: &[usize]| ops::cast(&input(seed, shape).to_device(&device).unwrap(), dtype);
                let values = [there(1, &[2, 3, c]), there(2, &[f, c]), there(3, &[f, c]), there(4, &[c, f])];
                let run = |fused: bool| {
                    let tape = crate::Tape::new();
                    let [x, gate, up, down] = values.each_ref().map(|x| tape.leaf(x.clone()));
                    let y = if fused {
                        x.gated_hidden(&gate, &up, act).down_proj_l1(&down, 0.5).0
                    } else {
                        x.linear(&gate).gated_down_proj_l1(&x.linear(&up), &down, act, 0.5).0
                    };
                    let wide = |x: &Tensor| ops::cast(x, DType::F32).to_vec::<f32>().unwrap();
                    let (names, value) = (format!("{tape:?}"), wide(y.value()));
                    let mut grads = crate::Gradients::default();
                    y.cast(DType::F32).sum().backward(&mut grads);
                    (names, value, [x, gate, up, down].map(|x| wide(grads.get(&x).unwrap())))
                };
                assert!(run(true) == run(false), "gated_hidden: {act:?} in {dtype} on {device:?}");
            }
        }
    }

    #[test]
    fn gated_down_proj_gradients_of_one_leaf_as_g_and_u() {
        let (act, dims) = (Activation::Silu, [5, 3]);
        let check = GradCheck::new("gated_down_proj", &[input(1, [2, 5]), input(2, [3, 5])]).roundings(14);
        let check = check.sizes(move |x, r| {
            let [dg, du, dw] = sizes(act, 0.0, dims, &[x[0], x[0], x[1]], r).try_into().unwrap();
            vec![dg.iter().zip(&du).map(|(a, b)| a + b).collect(), dw]
        });
        check.run(|x| x[0].gated_down_proj(&x[0], &x[1], act), |x| reference(act, dims, &[x[0], x[0], x[1]]));
    }
}
