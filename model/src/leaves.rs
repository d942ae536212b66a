//! The parameters as variables on a tape.

use crate::{Precision, Weights};
use autograd::{Tape, Var};
use std::ops::Index;
use tensor::Tensor;

/// All parameters as leaves, in the fixed order of [`parameter_specs`](crate::parameter_specs): on a fresh tape, slot i of
/// [`Gradients`](autograd::Gradients) is parameter i. Index with the positions in [`LayerNames`](crate::LayerNames).
///
/// In bf16 the matrices that products read are copies, which [stand in](Var::stand_in) for the leaves: gradients go to the leaves, in f32.
///
/// A leaf shares its parameter's storage, which an optimiser may write only when nothing else holds it: drop the leaves
/// (and the tape) before the update.
pub struct Leaves<'t> {
    tape: &'t Tape,
    precision: Precision,
    embed_tokens: Var<'t>,
    /// As the layers read them.
    vars: Vec<Var<'t>>,
    tied: bool,
}

impl<'t> Leaves<'t> {
    /// Leaves for `weights`, before anything else is put on the tape. `copies` are those of the parameters that products read in another
    /// precision than f32.
    pub(crate) fn new(
        tape: &'t Tape,
        weights: &Weights,
        precision: Precision,
        copies: &[Option<Tensor>],
    ) -> Leaves<'t> {
        let leaves: Vec<Var> = weights.tensors().iter().map(|w| tape.leaf(w.clone())).collect();
        let vars = leaves.iter().zip(copies).map(|(leaf, copy)| match copy {
            Some(copy) => leaf.stand_in(copy.clone()),
            None => leaf.clone(),
        });
        let (embed_tokens, tied) = (leaves[0].clone(), weights.config().tie_embeddings);
        Leaves { tape, precision, embed_tokens, vars: vars.collect(), tied }
    }

    /// The tape that they are on.
    pub fn tape(&self) -> &'t Tape {
        self.tape
    }

    /// What products read.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The embedding table `[V, C]`, in f32: its rows begin the residual stream.
    pub fn embed_tokens(&self) -> &Var<'t> {
        &self.embed_tokens
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
