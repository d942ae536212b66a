//! One optimiser step: micro-batches forward and backward, the norm, the update.

use crate::data::{Batch, Batches};
use crate::error::Error;
use crate::optimizer::{Optimizer, gradient_norm};
use autograd::{Gradients, Tape};
use model::{Psi, PsiAt, Transformer, parameter_specs};
use tensor::ops;

/// How a step's tokens are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepShape {
    /// B: sequences of a micro-batch.
    pub micro_batch: usize,
    /// T.
    pub seq_len: usize,
    /// Micro-batches of a step.
    pub micro_batches: usize,
}

impl StepShape {
    /// Tokens of a step.
    pub fn tokens(&self) -> usize {
        self.micro_batch * self.seq_len * self.micro_batches
    }
}

/// What a step found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepResult {
    /// Mean cross-entropy of the tokens before the update, in nats.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
}

/// Runs step `step`: the gradient of the mean loss over all tokens of the step, summed over its micro-batches, and one
/// [update](Optimizer::update). A token's draws depend on its place in the step, not on how the step is cut.
///
/// Errors: data that cannot be read; [`Error::NonFinite`], before anything is updated.
pub fn train_step(
    model: &mut Transformer,
    optimizer: &mut Optimizer,
    batches: &mut Batches,
    shape: StepShape,
    psi: PsiAt,
    lr: f64,
) -> Result<StepResult, Error> {
    let (step, tokens) = (psi.step as usize, shape.tokens());
    let scale = (1.0 / tokens as f64) as f32;
    let parameters = model.weights().tensors().len();
    let mut grads = Gradients::default();
    let mut loss = 0.0;
    for micro in 0..shape.micro_batches {
        let first = (step * shape.micro_batches + micro) * shape.micro_batch;
        let Batch { inputs, targets } = batches.train(first as u64, shape.micro_batch)?;
        let psi = PsiAt { first_token: (micro * shape.micro_batch * shape.seq_len) as u32, ..psi };
        let tape = Tape::new();
        let leaves = model.leaves(&tape);
        let (scaled, sum) = model.loss(&leaves, (&inputs, &targets), scale, psi, None);
        if !sum.is_finite() {
            let first = first_non_finite(model, &Batch { inputs, targets }, scale, psi);
            return Err(Error::NonFinite { step, what: format!("the loss is {sum}"), first });
        }
        scaled.backward(&mut grads);
        loss += sum;
    }
    let grad_norm = gradient_norm(&grads, parameters);
    if !grad_norm.is_finite() {
        let first = first_non_finite_gradient(model, &grads);
        return Err(Error::NonFinite { step, what: format!("the norm of the gradient is {grad_norm}"), first });
    }
    optimizer.update(model.weights_mut(), &mut grads, grad_norm, lr);
    Ok(StepResult { loss: loss / tokens as f64, grad_norm })
}

/// Where an infinity or NaN arises in the forward pass: in a weight, or else in the result of an op, which running the batch
/// again on a checking tape finds.
fn first_non_finite(model: &Transformer, batch: &Batch, scale: f32, psi: PsiAt) -> String {
    let weights = model.weights();
    for (spec, weight) in parameter_specs(weights.config()).zip(weights.tensors()) {
        if let Some(element) = ops::first_non_finite(weight) {
            return format!("the weight {} (shape {}, element {element})", spec.name, spec.shape);
        }
    }
    let tape = Tape::checking();
    let leaves = model.leaves(&tape);
    model.loss(&leaves, (&batch.inputs, &batch.targets), scale, psi, None);
    // Each loss of a row can be finite and their sum not.
    tape.first_non_finite().map_or("the sum of the losses".to_string(), |found| found.to_string())
}

/// The first gradient with an infinity or NaN on the way back: from the last parameter to the first.
fn first_non_finite_gradient(model: &Transformer, grads: &Gradients) -> String {
    let specs: Vec<_> = parameter_specs(model.weights().config()).collect();
    for (i, spec) in specs.iter().enumerate().rev() {
        if let Some(element) = grads.at(i).and_then(ops::first_non_finite) {
            return format!("the gradient of {} (shape {}, element {element})", spec.name, spec.shape);
        }
    }
    "the sum of the squares of the gradients".to_string()
}

/// The coordinates of the draws of training step `step`.
pub fn training_draws(psi: Psi, seed: u64, step: usize) -> PsiAt {
    PsiAt { psi, seed, first_token: 0, step: step as u32 }
}
