//! An L1 penalty on the FFN's hidden layer, for more zeros.

use crate::Config;
use tensor::Total;

/// The penalty `l1 sum_layers mean |h|`, the mean over tokens and neurons (arXiv 2603.23198): an addition to the loss whose
/// gradient is exact, but for sign(0) = 0.
///
/// One for each micro-batch, or for several one after the other: a token counts the same wherever a step is cut.
#[derive(Debug)]
pub struct LatentPenalty {
    /// What multiplies `sum |h|` over all tokens, neurons and layers.
    factor: f32,
    /// `sum |h|` of what was seen, if anything was.
    sum: Option<Total>,
}

impl LatentPenalty {
    /// `scale` is that of [`Transformer::loss`](crate::Transformer::loss): one over the tokens of an optimiser step.
    pub fn new(l1: f64, scale: f32, config: &Config) -> LatentPenalty {
        LatentPenalty { factor: (l1 * scale as f64 / config.d_ff as f64) as f32, sum: None }
    }

    pub(crate) fn factor(&self) -> f32 {
        self.factor
    }

    pub(crate) fn add(&mut self, sum: Total) {
        match &mut self.sum {
            None => self.sum = Some(sum),
            Some(before) => before.add(&sum),
        }
    }

    /// What the tokens seen so far add to the loss, in nats. Waits for it on a GPU.
    pub fn value(&self) -> f64 {
        self.factor as f64 * self.sum.as_ref().map_or(0.0, Total::value)
    }
}
