//! What a forward pass can say about the FFN: how sparse it would be under RELU.

use crate::Weights;
use tensor::{Tensor, failure, ops};

/// Counts, per layer and neuron, the tokens on which `g > 0`: those that RELU would let through. Under every psi alike, so
/// that the sparsity to come can be watched before the switch.
#[derive(Clone)]
pub struct Probe {
    /// `[F]` of u32 for each layer.
    positive: Vec<Tensor>,
    /// Tokens seen, by each layer.
    rows: Vec<u64>,
    d_ff: usize,
}

impl Probe {
    /// A probe of a model with these weights, that has seen nothing. It counts where they are.
    pub fn new(weights: &Weights) -> Probe {
        let (config, device) = (weights.config(), weights.device());
        let none = || Tensor::from_slice(&vec![0u32; config.d_ff], [config.d_ff]);
        let zeros = || none().to_device(&device).unwrap_or_else(|e| failure::raise("Probe", e));
        Probe {
            positive: (0..config.n_layers).map(|_| zeros()).collect(),
            rows: vec![0; config.n_layers],
            d_ff: config.d_ff,
        }
    }

    /// Adds the tokens of `g`, `[.., F]`, to the counts of `layer`. Panics beyond 2^32 - 1 tokens: a count is 32 bits.
    #[track_caller]
    pub(crate) fn see(&mut self, layer: usize, g: &Tensor) {
        self.rows[layer] += (g.elements() / self.d_ff) as u64;
        assert!(self.rows[layer] <= u32::MAX as u64, "Probe: more than 2^32 - 1 tokens; use one for each evaluation");
        ops::count_positive(g, &mut self.positive[layer]);
    }

    /// Tokens seen.
    pub fn tokens(&self) -> u64 {
        self.rows[0]
    }

    /// For each layer, on how many of the tokens each neuron had `g > 0`. Shape: `[n_layers][F]`. Panics if a GPU fails.
    pub fn positive(&self) -> Vec<Vec<u32>> {
        let counts = |c: &Tensor| c.to_vec::<u32>().unwrap_or_else(|e| failure::raise("Probe", e));
        self.positive.iter().map(counts).collect()
    }

    /// For each layer, the share of `psi(g)` that RELU makes 0: `1 - sum positive / (tokens F)`, in `0..=1`.
    /// NaN if no token was seen.
    pub fn zeros(&self) -> Vec<f64> {
        let elements = |rows: u64| rows as f64 * self.d_ff as f64;
        let sum = |counts: Vec<u32>| counts.iter().map(|&c| c as f64).sum::<f64>();
        self.positive().into_iter().zip(&self.rows).map(|(c, &rows)| 1.0 - sum(c) / elements(rows)).collect()
    }

    /// For each layer, the number of neurons that RELU would let through on none of the tokens seen.
    pub fn never_active(&self) -> Vec<usize> {
        self.positive().iter().map(|counts| counts.iter().filter(|&&c| c == 0).count()).collect()
    }
}
