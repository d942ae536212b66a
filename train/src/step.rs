//! One optimiser step: micro-batches forward and backward, the norm, the update.

use crate::data::{Batch, Batches};
use crate::error::Error;
use crate::optimizer::{Optimizer, gradient_squares};
use autograd::{Gradients, Tape};
use model::{LatentPenalty, Psi, PsiAt, Transformer, Weights, parameter_specs};
use tensor::{Total, ops};

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
    /// What the penalty on the latent adds to it, in nats; 0 without one.
    pub l1_penalty: f64,
    /// Norm of the gradient, the penalty's included, before clipping.
    pub grad_norm: f64,
}

/// Runs step `psi.step`: the gradient of the mean loss over all tokens of the step, and of the [`LatentPenalty`] of factor `l1`
/// if that is not 0, summed over its micro-batches, and one [update](Optimizer::update). A token's draws depend on its place in the step, not on how the step is cut.
///
/// On a GPU the step goes on the stream as a whole, clipping and update included; then this waits for it, once, and reads loss and norm.
///
/// Errors: data that cannot be read; [`Error::NonFinite`], with weights and moments as they were.
pub fn train_step(
    model: &mut Transformer,
    optimizer: &mut Optimizer,
    batches: &mut Batches,
    shape: StepShape,
    psi: PsiAt,
    l1: f64,
    lr: f64,
) -> Result<StepResult, Error> {
    let scale = (1.0 / shape.tokens() as f64) as f32;
    let mut grads = Gradients::default();
    let mut loss = Total::zero(&model.weights().device());
    let mut penalty = (l1 != 0.0).then(|| LatentPenalty::new(l1, scale, model.weights().config()));
    for micro in 0..shape.micro_batches {
        let (batch, psi) = micro_batch(batches, shape, psi, micro)?;
        let tape = Tape::new();
        let leaves = model.leaves(&tape);
        let batch = (&batch.inputs, &batch.targets);
        let (scaled, sum) = match &mut penalty {
            Some(penalty) => model.loss_penalised(&leaves, batch, scale, psi, penalty),
            None => model.loss(&leaves, batch, scale, psi, None),
        };
        loss.add(&sum);
        scaled.backward(&mut grads);
    }
    let squares = gradient_squares(&grads, model.weights());
    optimizer.update(model.weights_mut(), &grads, &loss, &squares, lr);
    let (loss, grad_norm) = (loss.value(), squares.value().sqrt());
    if !(loss.is_finite() && grad_norm.is_finite()) {
        optimizer.take_back();
        let what = if loss.is_finite() {
            format!("the norm of the gradient is {grad_norm}")
        } else {
            format!("the loss is {loss}")
        };
        let first = first_non_finite(model, &grads, batches, shape, psi)?;
        return Err(Error::NonFinite { step: psi.step as usize, what, first });
    }
    let l1_penalty = penalty.map_or(0.0, |penalty| penalty.value());
    Ok(StepResult { loss: loss / shape.tokens() as f64, l1_penalty, grad_norm })
}

/// Micro-batch number `micro` of step `psi.step`, and where its tokens stand among those of the step.
fn micro_batch(batches: &mut Batches, shape: StepShape, psi: PsiAt, micro: usize) -> Result<(Batch, PsiAt), Error> {
    let first = (psi.step as usize * shape.micro_batches + micro) * shape.micro_batch;
    let batch = batches.train(first as u64, shape.micro_batch)?;
    Ok((batch, PsiAt { first_token: (micro * shape.micro_batch * shape.seq_len) as u32, ..psi }))
}

/// Where an infinity or NaN arose, in words: in a weight; or else in the result of an op, which running the step's
/// micro-batches again on a checking tape finds; or else in a gradient.
fn first_non_finite(
    model: &Transformer,
    grads: &Gradients,
    batches: &mut Batches,
    shape: StepShape,
    psi: PsiAt,
) -> Result<String, Error> {
    if let Some(weight) = first_non_finite_weight(model.weights()) {
        return Ok(weight);
    }
    for micro in 0..shape.micro_batches {
        let (batch, psi) = micro_batch(batches, shape, psi, micro)?;
        let tape = Tape::checking();
        let leaves = model.leaves(&tape);
        model.loss(&leaves, (&batch.inputs, &batch.targets), 1.0, psi, None);
        if let Some(found) = tape.first_non_finite() {
            return Ok(found.to_string());
        }
    }
    Ok(first_non_finite_gradient(model, grads))
}

/// The first weight with an infinity or NaN, in words.
pub(crate) fn first_non_finite_weight(weights: &Weights) -> Option<String> {
    parameter_specs(weights.config()).zip(weights.tensors()).find_map(|(spec, weight)| {
        let element = ops::first_non_finite(weight)?;
        Some(format!("the weight {} (shape {}, element {element})", spec.name, spec.shape))
    })
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
