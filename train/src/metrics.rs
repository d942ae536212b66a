//! What is measured, and its line in `metrics.jsonl`.

use model::Config;
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
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Seconds of the step, without evaluation, samples and checkpoints.
    pub seconds: f64,
    /// Training tokens a second.
    pub tokens_per_second: f64,
    /// By [`train_flops_per_token`].
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
}

/// A row of gate_proj is near zero below this share of the mean norm of the layer's rows. Initial norms lie within a few
/// percent of each other.
pub const SMALL_ROW: f64 = 0.05;

impl Evaluation {
    /// The mean over layers of [`zeros`](Evaluation::zeros).
    pub fn mean_zeros(&self) -> f64 {
        self.zeros.iter().sum::<f64>() / self.zeros.len() as f64
    }
}

/// Floating-point operations of training on one token: 6 for each weight of a matrix (2 forward, 4 backward), the LM head's
/// included and the embedding table's not, and `6 H D T` a layer for attention, whose mean query sees half of T keys.
/// (Kaplan et al., arXiv 2001.08361, section 2.1; counted exactly there as here but for the causal half.)
pub fn train_flops_per_token(c: &Config, seq_len: usize) -> f64 {
    let layer = 2 * c.d_model * (c.q_width() + c.kv_width()) + 3 * c.d_model * c.d_ff;
    let matrices = c.n_layers * layer + c.vocab_size * c.d_model;
    let attention = c.n_layers * c.q_width() * seq_len;
    6.0 * (matrices + attention) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{EMBED_TOKENS, parameter_specs, preset};

    #[test]
    fn flops_are_six_for_each_matrix_element_and_attention() {
        for name in ["5m", "15m"] {
            let c = preset(name, 4096).unwrap(); // untied: the LM head is a matrix of its own
            let elements = |spec: model::ParameterSpec| spec.shape.elements();
            let matrices = parameter_specs(&c).filter(|spec| spec.shape.rank() == 2 && spec.name != EMBED_TOKENS);
            let expected = 6 * matrices.map(elements).sum::<usize>() + 6 * c.n_layers * 128 * c.q_width();
            assert_eq!(train_flops_per_token(&c, 128), expected as f64, "{name}");
        }
    }
}
