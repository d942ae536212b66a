//! The parameters as variables on a tape.

use crate::Weights;
use autograd::{Tape, Var};
use std::ops::Index;

/// All parameters as leaves, in the fixed order of [`parameter_specs`](crate::parameter_specs): on a fresh tape, slot i of
/// [`Gradients`](autograd::Gradients) is parameter i. Index with the positions in [`LayerNames`](crate::LayerNames).
///
/// A leaf shares its parameter's storage, which an optimiser may write only when nothing else holds it: drop the leaves
/// (and the tape) before the update.
pub struct Leaves<'t> {
    tape: &'t Tape,
    vars: Vec<Var<'t>>,
    tied: bool,
}

impl<'t> Leaves<'t> {
    /// Leaves for `weights`, before anything else is put on the tape.
    pub(crate) fn new(tape: &'t Tape, weights: &Weights) -> Leaves<'t> {
        let vars = weights.tensors().iter().map(|w| tape.leaf(w.clone())).collect();
        Leaves { tape, vars, tied: weights.config().tie_embeddings }
    }

    /// The tape that they are on.
    pub fn tape(&self) -> &'t Tape {
        self.tape
    }

    /// The embedding table `[V, C]`.
    pub fn embed_tokens(&self) -> &Var<'t> {
        &self.vars[0]
    }

    /// The gain of the last norm, `[C]`.
    pub fn norm(&self) -> &Var<'t> {
        &self.vars[self.vars.len() - if self.tied { 1 } else { 2 }]
    }

    /// The LM head `[V, C]`: with tied embeddings the embedding table, one leaf used twice, whose gradient is the sum.
    pub fn lm_head(&self) -> &Var<'t> {
        &self.vars[if self.tied { 0 } else { self.vars.len() - 1 }]
    }
}

impl<'t> Index<usize> for Leaves<'t> {
    type Output = Var<'t>;

    fn index(&self, position: usize) -> &Var<'t> {
        &self.vars[position]
    }
}
