//! The model on the validation data: loss under the training activation and under RELU, zeros, dead neurons.

use crate::data::{Batch, Batches, DataError};
use crate::metrics::{Evaluation, NORM_QUANTILES, SMALL_ROW};
use autograd::Tape;
use model::{LayerNames, Probe, Psi, PsiAt, Transformer, Weights};
use tensor::{Total, failure, ops};

/// Which validation sequences, and how many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvalShape {
    /// Sequences, from the start of the validation data.
    pub sequences: usize,
    /// Sequences that go through the model at once. The draws and, but for the order of sums, the losses do not depend on it.
    pub micro_batch: usize,
    /// T.
    pub seq_len: usize,
}

impl EvalShape {
    /// As many whole sequences as `tokens` hold, at least one, at most all there are.
    pub fn new(batches: &Batches, tokens: usize, micro_batch: usize, seq_len: usize) -> EvalShape {
        let sequences = (tokens / seq_len).clamp(1, batches.val_sequences());
        EvalShape { sequences, micro_batch: micro_batch.min(sequences), seq_len }
    }
}

/// The step that stands in the counter of evaluation draws: no training step has it, and every evaluation draws the same, so
/// that two evaluations differ by their weights alone.
pub const EVALUATION_STEP: u32 = u32::MAX;

/// Evaluates under `psi` and under RELU, with the weights as they are; `batches` must come to where these are.
pub fn evaluate(
    model: &Transformer,
    batches: &mut Batches,
    shape: EvalShape,
    psi: Psi,
    seed: u64,
    steps_done: usize,
) -> Result<Evaluation, DataError> {
    let mut probe = Probe::new(model.weights());
    let relu_loss = mean_loss(model, batches, shape, PsiAt::deterministic(Psi::Relu), Some(&mut probe))?;
    let loss = if psi == Psi::Relu {
        relu_loss
    } else {
        let draws = PsiAt { psi, seed, first_token: 0, step: EVALUATION_STEP };
        mean_loss(model, batches, shape, draws, None)?
    };
    let rows = gate_norms(model.weights());
    Ok(Evaluation {
        steps_done,
        tokens: (shape.sequences * shape.seq_len) as u64,
        activation: psi.to_string(),
        loss,
        relu_loss,
        zeros: probe.zeros(),
        dead: probe.never_active(),
        small_rows: rows.iter().map(|norms| small_rows(norms)).collect(),
        gate_norms: rows.iter().map(|norms| NORM_QUANTILES.map(|q| quantile(norms, q))).collect(),
    })
}

/// Mean cross-entropy over the sequences, in nats.
fn mean_loss(
    model: &Transformer,
    batches: &mut Batches,
    shape: EvalShape,
    psi: PsiAt,
    mut probe: Option<&mut Probe>,
) -> Result<f64, DataError> {
    let mut sum = Total::zero(&model.weights().device());
    for first in (0..shape.sequences).step_by(shape.micro_batch) {
        let Batch { inputs, targets } = batches.val(first, shape.micro_batch.min(shape.sequences - first))?;
        let psi = PsiAt { first_token: (first * shape.seq_len) as u32, ..psi };
        let tape = Tape::without_gradients();
        let leaves = model.leaves(&tape);
        sum.add(&model.loss(&leaves, (&inputs, &targets), 1.0, psi, probe.as_deref_mut()).1);
    }
    Ok(sum.value() / (shape.sequences * shape.seq_len) as f64)
}

/// For each layer, the norms of the rows of gate_proj `[F, C]`, ascending.
fn gate_norms(weights: &Weights) -> Vec<Vec<f64>> {
    (0..weights.config().n_layers)
        .map(|layer| {
            let gate = &weights.tensors()[LayerNames::new(layer).gate_proj];
            let squares = ops::sum_to(&ops::mul(gate, gate), [gate.dim(0), 1]);
            let squares = squares.to_vec::<f32>().unwrap_or_else(|e| failure::raise("gate_norms", e));
            let mut norms: Vec<f64> = squares.iter().map(|&s| (s as f64).sqrt()).collect();
            norms.sort_by(f64::total_cmp);
            norms
        })
        .collect()
}

/// The number of norms below [`SMALL_ROW`] times their mean.
fn small_rows(norms: &[f64]) -> usize {
    let mean = norms.iter().sum::<f64>() / norms.len() as f64;
    norms.iter().filter(|&&norm| norm < SMALL_ROW * mean).count()
}

/// The value that a share `q` of the ascending values lies at or below, interpolated between neighbours.
fn quantile(values: &[f64], q: f64) -> f64 {
    let place = q * (values.len() - 1) as f64;
    let (below, share) = (place.floor() as usize, place.fract());
    let above = (below + 1).min(values.len() - 1);
    values[below] + share * (values[above] - values[below])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_the_ends() {
        let values: Vec<f64> = (0..=200).map(|n| n as f64).collect();
        let expected = [0.0, 2.0, 10.0, 50.0, 100.0, 150.0, 190.0, 198.0, 200.0];
        // A place is the product of two roundings.
        for (q, expected) in NORM_QUANTILES.into_iter().zip(expected) {
            let found = quantile(&values, q);
            assert!((found - expected).abs() <= 2.0 * f64::EPSILON * 200.0, "quantile {q}: {found}, not {expected}");
        }
        assert_eq!([0.0, 0.5, 1.0].map(|q| quantile(&[3.0], q)), [3.0; 3]);
        assert_eq!(quantile(&[1.0, 2.0], 0.25), 1.25);
    }

    #[test]
    fn small_rows_are_those_far_below_the_mean() {
        // The mean is 0.7505; a twentieth of it lies between the first two.
        assert_eq!(small_rows(&[0.001, 1.0, 1.0, 1.001]), 1);
        assert_eq!(small_rows(&[1.0; 7]), 0);
    }
}
