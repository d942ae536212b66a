//! The LM head fused with the cross-entropy: `scale * sum of (logsumexp(z) - z[target])`, `z = W x`.

use crate::gradients::{Gradients, Slot};
use crate::tape::{Op, Var};
use tensor::{Beta, DType, Tensor, Total, ops};

/// The gradients are made in the forward pass, from the logits of a chunk of rows while they are there; to make them in
/// the backward would be to multiply by the LM head, the largest matrix of a small model, a second time.
struct LmHeadLoss {
    dx: Tensor,
    d_weight: Tensor,
    x_slot: Option<Slot>,
    weight_slot: Option<Slot>,
}

impl<'t> Var<'t> {
    /// The cross-entropy of the targets under `softmax(W x)`: `loss = sum over rows of logsumexp(z) - z[target]`, `z = W x`.
    /// Returns `scale * loss` as a scalar to differentiate, and `loss` itself in nats; on a GPU nothing waits for it. With `scale` one over the number of
    /// tokens in an optimiser step, the gradients of its micro-batches add up to that of the mean.
    ///
    /// Shapes: x (self) `[.., C]`; weight `[V, C]`; targets u32, one for each row, each below V. Panics if they differ, or unless x and
    /// weight are both f32 or, on a GPU, bf16: logits and loss are f32 for both.
    #[track_caller]
    pub fn lm_head_loss(&self, weight: &Var<'t>, targets: &Tensor, scale: f32) -> (Var<'t>, Total) {
        let (x, w) = (&self.value, &weight.value);
        let (loss, op) = if self.slot.is_none() && weight.slot.is_none() {
            (ops::lm_head_loss(x, w, targets), None)
        } else {
            let mut d_weight = Tensor::stale_on(&w.device(), w.shape(), DType::F32);
            let made = ops::lm_head_loss_backward(x, w, targets, scale, Beta::Zero, &mut d_weight);
            let (x_slot, weight_slot) = (self.slot, weight.slot);
            (made.loss, Some(LmHeadLoss { dx: made.dx, d_weight, x_slot, weight_slot }))
        };
        let y = loss.scaled(scale as f64);
        let y = self.tape.record("lm_head_loss", y, &[self, weight], || op.expect("made above for a wanted gradient"));
        (y, loss)
    }
}

impl Op for LmHeadLoss {
    fn name(&self) -> &'static str {
        "lm_head_loss"
    }

    /// With `dz = scale (softmax(z) - onehot(target))`: `dx = dy dz W`, `dW += dy dz^T x`, where dy is one number, and
    /// nearly always the 1 that the backward begins with. dW is f32.
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Gradients) {
        let dy = if grads.dy_is_one() { 1.0 } else { dy.item() };
        for (slot, d) in [(self.x_slot, self.dx), (self.weight_slot, self.d_weight)] {
            if slot.is_some() {
                grads.add(slot, if dy == 1.0 { d } else { scaled(dy, &d) });
            }
        }
    }
}

/// `factor * d`, in the type of d.
fn scaled(factor: f32, d: &Tensor) -> Tensor {
    ops::cast(&ops::scale(factor, &ops::cast(d, DType::F32)), d.dtype())
}

#[cfg(test)]
mod tests {
    use crate::gradcheck::{GradCheck, input};
    use crate::ops::testing::{devices, gpu};
    use crate::{Gradients, Tape};
    use kernels::reference;
    use tensor::{Shape, Tensor};

    const SCALE: f32 = 0.3;

    /// In absolute value, term by term: `dz = scale (p + onehot)`, `dx = dz W`, `dW = dz^T x`.
    fn sizes(c: usize, targets: &[u32], x: &[&[f32]], r: &[f32]) -> Vec<Vec<f64>> {
        let (x, w) = (x[0], x[1]);
        let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; w.len()]);
        for (n, &target) in targets.iter().enumerate() {
            let z = |j: usize| (0..c).map(|i| x[n * c + i] as f64 * w[j * c + i] as f64).sum::<f64>();
            let sum: f64 = (0..w.len() / c).map(|j| z(j).exp()).sum();
            for j in 0..w.len() / c {
                let dz = (z(j).exp() / sum + f64::from(j == target as usize)) * (SCALE * r[0]).abs() as f64;
                for i in 0..c {
                    dx[n * c + i] += dz * w[j * c + i].abs() as f64;
                    dw[j * c + i] += dz * x[n * c + i].abs() as f64;
                }
            }
        }
        vec![dx, dw]
    }

    /// A logit is a dot of C terms, at most `1.125^2 C` in size: twice its error moves a probability, `z - max` rounds on
    /// top; exp takes 4, the sum over V one for each term. Then come the sums over V or over the rows.
    fn roundings(rows: usize, c: usize, v: usize) -> usize {
        let logit = (c as f64 * 1.125 * 1.125).ceil() as usize;
        2 * (c + 4) * logit + 4 * logit + v + 8 + v.max(rows) + 8
    }

    #[test]
    fn lm_head_loss_gradients() {
        let targets = [2, 0, 1, 1, 2, 0, 0, 2, 1, 2];
        for (lead, c, v) in [(&[1][..], 1, 3), (&[], 4, 3), (&[2, 3], 5, 7), (&[1, 10], 3, 37), (&[2, 5], 27, 11)] {
            let shape = Shape::new(&[lead, &[c]].concat());
            let rows = shape.elements() / c;
            let targets = &targets[..rows];
            for device in devices() {
                let indices = Tensor::from_slice(targets, lead).to_device(&device).unwrap();
                let check = GradCheck::new("lm_head_loss", &[input(1, shape), input(2, [v, c])]).on(&device);
                check.roundings(roundings(rows, c, v)).sizes(move |x, r| sizes(c, targets, x, r)).run(
                    |x| x[0].lm_head_loss(&x[1], &indices, SCALE).0,
                    |x| vec![SCALE as f64 * reference::lm_head_loss(x[0], x[1], targets, c, 1.0).0],
                );
            }
            // dz and the results; r, for dy is not 1.
            let indices = Tensor::from_slice(targets, lead).to_device(&gpu()).unwrap();
            let check = GradCheck::new("lm_head_loss", &[input(1, shape), input(2, [v, c])]).in_bf16(3);
            let check = check.on(&indices.device()).roundings(roundings(rows, c, v));
            check.sizes(move |x, r| sizes(c, targets, x, r)).run(
                |x| x[0].lm_head_loss(&x[1], &indices, SCALE).0,
                |x| vec![SCALE as f64 * reference::lm_head_loss(x[0], x[1], targets, c, 1.0).0],
            );
        }
    }

    /// The same loss, and the same bits of the scaled one, with and without gradients; the former unscaled.
    #[test]
    fn lm_head_loss_is_the_same_without_gradients() {
        let (x, weight) = (input(1, [2, 3, 5]), input(2, [7, 5]));
        let targets = Tensor::from_slice(&[0u32, 6, 1, 1, 5, 2], [2, 3]);
        let (tape, silent) = (Tape::new(), Tape::without_gradients());
        let (y, loss) = tape.leaf(x.clone()).lm_head_loss(&tape.leaf(weight.clone()), &targets, SCALE);
        let (y_silent, loss_silent) = silent.leaf(x).lm_head_loss(&silent.leaf(weight), &targets, SCALE);
        let (loss, loss_silent) = (loss.value(), loss_silent.value());
        assert_eq!(loss.to_bits(), loss_silent.to_bits(), "lm_head_loss");
        assert_eq!(y.value().item(), (SCALE as f64 * loss) as f32, "lm_head_loss");
        assert_eq!(y.value().item(), y_silent.value().item(), "lm_head_loss");
    }

    /// With the upstream gradient 1 nothing is copied: the leaf's gradient is the memory that the forward wrote.
    #[test]
    fn lm_head_loss_hands_its_gradients_over() {
        let tape = Tape::new();
        let (x, weight) = (tape.leaf(input(1, [3, 5])), tape.leaf(input(2, [7, 5])));
        let targets = Tensor::from_slice(&[0u32, 6, 1], [3]);
        let (y, _) = x.lm_head_loss(&weight, &targets, SCALE);
        let mut grads = Gradients::default();
        y.backward(&mut grads);
        assert!(grads.get(&x).unwrap().is_unique() && grads.get(&weight).unwrap().is_unique(), "lm_head_loss");
    }
}
