//! The transformer's forward on autograd ops. Inference has its own, without a tape, in the crate `infer`.

use crate::attention::attention;
use crate::ffn::ffn;
use crate::project::{project, scoped};
use crate::{LatentPenalty, LayerNames, Leaves, Precision, Probe, PsiAt, RopeTable, Weights};
use autograd::{Tape, Var};
use std::sync::OnceLock;
use tensor::{DType, Tensor, Total, failure, ops};

/// A model: its parameters, and the rotary table that follows from its config.
pub struct Transformer {
    weights: Weights,
    rope: RopeTable,
    precision: Precision,
    /// Of the weights that products read, if not in f32: made when they are first asked for, and dropped when the weights may change.
    copies: OnceLock<Vec<Option<Tensor>>>,
}

impl Transformer {
    /// The model with these parameters, where they are, computing in f32. Raises the [failure](tensor::failure) of a GPU without room for
    /// the table.
    pub fn new(weights: Weights) -> Transformer {
        let rope = RopeTable::new(weights.config()).to_device(&weights.device());
        let rope = rope.unwrap_or_else(|e| failure::raise("the rotary table", e));
        Transformer { weights, rope, precision: Precision::F32, copies: OnceLock::new() }
    }

    /// The same model, computing in `precision`.
    pub fn with_precision(self, precision: Precision) -> Transformer {
        Transformer { precision, copies: OnceLock::new(), ..self }
    }

    /// What it computes in.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The parameters.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The parameters, to be changed in place by an optimiser.
    pub fn weights_mut(&mut self) -> &mut Weights {
        self.copies = OnceLock::new();
        &mut self.weights
    }

    /// The parameters, giving up the model.
    pub fn into_weights(self) -> Weights {
        self.weights
    }

    /// The parameters as variables on a fresh tape. See [`Leaves`]. The copies in bf16 are made once for all tapes until the next
    /// [`weights_mut`](Transformer::weights_mut).
    pub fn leaves<'t>(&self, tape: &'t Tape) -> Leaves<'t> {
        let copies = self.copies.get_or_init(|| {
            let copy = |(i, weight): (usize, &Tensor)| {
                // The matrices, but for a table that is looked up alone.
                let is_factor = weight.shape().rank() == 2 && (i > 0 || self.weights.config().tie_embeddings);
                (is_factor && self.precision != Precision::F32).then(|| ops::cast(weight, self.precision.dtype()))
            };
            self.weights.tensors().iter().enumerate().map(copy).collect()
        });
        Leaves::new(tape, &self.weights, self.precision, copies)
    }

    /// The last hidden state, normalised: what the LM head reads.
    ///
    /// `x = E[tokens]`; for every layer `x = x + attention(norm(x))`, `x = x + ffn(norm(x))`; then `norm(x)`.
    ///
    /// Shapes: tokens u32 `[B, T]`, each below V; result `[B, T, C]`, of the precision's type. Each sequence begins at position 0. Row `b T + t` is
    /// token `psi.first_token + b T + t` of the step, for the draws. `probe` sees the FFN's gates.
    ///
    /// Panics unless tokens is `[B, T]` with T at most `max_seq_len`.
    #[track_caller]
    pub fn hidden<'t>(&self, w: &Leaves<'t>, tokens: &Tensor, psi: PsiAt, probe: Option<&mut Probe>) -> Var<'t> {
        self.hidden_penalised(w, tokens, psi, probe, None)
    }

    #[track_caller]
    fn hidden_penalised<'t>(
        &self,
        w: &Leaves<'t>,
        tokens: &Tensor,
        psi: PsiAt,
        mut probe: Option<&mut Probe>,
        mut penalty: Option<&mut LatentPenalty>,
    ) -> Var<'t> {
        let c = self.weights.config();
        let fits = tokens.shape().rank() == 2 && tokens.dim(1) <= c.max_seq_len;
        assert!(fits, "hidden: tokens {}: not [B, T] with T at most {}", tokens.shape(), c.max_seq_len);
        let (tape, dtype) = (w.tape(), w.precision().dtype());

        let mut x = scoped(tape, "embed_tokens", || w.embed_tokens().embedding(tokens)); // [B, T, C]
        for layer in 0..c.n_layers {
            let _scope = tape.scope(format_args!("layers.{layer}"));
            let at = LayerNames::new(layer);
            let norm = |x: &Var<'t>, name, gain| scoped(tape, name, || x.rms_norm_as(dtype, &w[gain], c.norm_eps));

            let n = norm(&x, "input_layernorm", at.input_layernorm);
            x = &x + &scoped(tape, "self_attn", || attention(n, w, at, c, &self.rope));
            let n = norm(&x, "post_attention_layernorm", at.post_attention_layernorm);
            let (probe, penalty) = (probe.as_deref_mut(), penalty.as_deref_mut());
            x = &x + &scoped(tape, "mlp", || ffn(n, w, layer, psi, probe, penalty));
        }
        scoped(tape, "norm", || x.rms_norm_as(dtype, w.norm(), c.norm_eps))
    }

    /// The cross-entropy of `targets` `[B, T]` u32 after `tokens` `[B, T]`, summed over all B T positions: `scale` times it,
    /// as a variable to differentiate, and unscaled, in nats. With `scale` one over the tokens of an optimiser step, the
    /// gradients of its micro-batches add up to that of the mean loss. Panics as [`hidden`](Transformer::hidden) does, and
    /// if a target is missing.
    #[track_caller]
    pub fn loss<'t>(
        &self,
        w: &Leaves<'t>,
        (tokens, targets): (&Tensor, &Tensor),
        scale: f32,
        psi: PsiAt,
        probe: Option<&mut Probe>,
    ) -> (Var<'t>, Total) {
        let x = self.hidden(w, tokens, psi, probe); // [B, T, C]
        scoped(w.tape(), "lm_head", || x.lm_head_loss(w.lm_head(), targets, scale))
    }

    /// [`loss`](Transformer::loss) with a penalty on the latent: the gradient is that of the scaled loss and of the penalty
    /// together, the number in nats that of the loss alone. What the penalty adds is [`LatentPenalty::value`].
    #[track_caller]
    pub fn loss_penalised<'t>(
        &self,
        w: &Leaves<'t>,
        (tokens, targets): (&Tensor, &Tensor),
        scale: f32,
        psi: PsiAt,
        penalty: &mut LatentPenalty,
    ) -> (Var<'t>, Total) {
        let x = self.hidden_penalised(w, tokens, psi, None, Some(penalty)); // [B, T, C]
        scoped(w.tape(), "lm_head", || x.lm_head_loss(w.lm_head(), targets, scale))
    }

    /// The logits `[B, T, V]`, in f32, of [`hidden`](Transformer::hidden)'s result. Training never makes them all: see
    /// [`loss`](Transformer::loss).
    pub fn logits<'t>(&self, w: &Leaves<'t>, hidden: &Var<'t>) -> Var<'t> {
        project(hidden, "lm_head", w.lm_head()).cast(DType::F32)
    }
}
