//! What is measured, and its line in `metrics.jsonl`.

use serde::{Deserialize, Serialize};

/// One optimiser step: a line of `metrics.jsonl`. All keys are always there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepMetrics {
    /// From 0.
    pub step: usize,
    /// Training tokens seen, this step's included.
    pub tokens: u64,
    /// psi of the step: `StochA(0.5)`.
    pub activation: String,
    /// Learning rate.
    pub lr: f64,
    /// Mean cross-entropy of the step's tokens before the update, in nats.
    pub loss: f64,
    /// What `train.l1` adds to the loss that is differentiated, in nats; 0 without it.
    #[serde(default)] // records before there was a penalty
    pub l1_penalty: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Seconds of the step, without evaluation, samples and checkpoints.
    pub seconds: f64,
    /// Training tokens a second.
    pub tokens_per_second: f64,
    /// By [`Config::flops_per_token`](model::Config::flops_per_token), forward and backward.
    pub gflops: f64,
    /// Blocks of tensor memory that the step took from the system. 0 once the pool holds what a step needs.
    pub fresh_blocks: u64,
    /// The most bytes of tensor memory in use at once, since the program began.
    pub peak_bytes: u64,
    /// What an evaluation after the step found, if there was one.
    pub eval: Option<Evaluation>,
}

/// The model on the validation data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// Steps done.
    pub steps_done: usize,
    /// Validation tokens.
    pub tokens: u64,
    /// The activation of the last step.
    pub activation: String,
    /// Mean cross-entropy under it, in nats. Stochastic draws are the same in every evaluation.
    pub loss: f64,
    /// Mean cross-entropy under RELU.
    pub relu_loss: f64,
    /// For each layer, the share of psi(g) that is 0 under RELU.
    pub zeros: Vec<f64>,
    /// For each layer, neurons that RELU lets through on no token of the evaluation.
    pub dead: Vec<usize>,
    /// For each layer, neurons whose row of gate_proj has a norm below [`SMALL_ROW`] of the layer's mean: the paper's sign of
    /// dead neurons, which needs no data.
    pub small_rows: Vec<usize>,
    /// For each layer, the norms of the rows of gate_proj at the [`NORM_QUANTILES`]. Empty in records from before they were kept.
    #[serde(default)]
    pub gate_norms: Vec<[f64; NORM_QUANTILES.len()]>,
}

/// The shares of a layer's rows with a norm of at most what [`Evaluation::gate_norms`] says: from the smallest to the largest,
/// close together at the ends, where dead neurons and outliers are.
pub const NORM_QUANTILES: [f64; 9] = [0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0];

/// A row of gate_proj is near zero below this share of the mean norm of the layer's rows. Initial norms lie within a few
/// percent of each other.
pub const SMALL_ROW: f64 = 0.05;

impl Evaluation {
    /// The mean over layers of [`zeros`](Evaluation::zeros).
    pub fn mean_zeros(&self) -> f64 {
        self.zeros.iter().sum::<f64>() / self.zeros.len() as f64
    }
}
