//! The parameters of a model, laid out for decoding.

use crate::Error;
use crate::buffer::Buffer;
use kernels::sparse::FfnWeights;
use model::{Config, LayerNames, RopeTable, Weights};

/// All parameters in f32, taken out of their tensors once. Projections are `[out, in]` as in the checkpoint, so that a
/// decoded token reads their rows in order; only down_proj is turned.
pub(crate) struct DecodeWeights {
    /// `[V, C]`.
    pub embed_tokens: Buffer,
    pub layers: Vec<LayerWeights>,
    /// `[C]`.
    pub norm: Buffer,
    /// `[V, C]`; absent if it is the embedding table.
    lm_head: Option<Buffer>,
    /// `[context, D / 2]`.
    pub cos: Buffer,
    /// `[context, D / 2]`.
    pub sin: Buffer,
}

/// A block of the model.
pub(crate) struct LayerWeights {
    /// `[C]`.
    pub input_layernorm: Buffer,
    /// `[H D, C]`.
    pub q_proj: Buffer,
    /// `[K D, C]`.
    pub k_proj: Buffer,
    /// `[K D, C]`.
    pub v_proj: Buffer,
    /// `[C, H D]`.
    pub o_proj: Buffer,
    /// `[C]`.
    pub post_attention_layernorm: Buffer,
    /// `[F, C]`.
    pub gate_proj: Buffer,
    /// `[F, C]`.
    pub up_proj: Buffer,
    /// down_proj transposed, `[F, C]`: the weights of a neuron lie together, and those of an inactive one are not touched.
    pub down_proj_t: Buffer,
}

impl DecodeWeights {
    /// Copies the weights, with a RoPE table for `context` positions.
    pub fn new(weights: &Weights, context: usize) -> Result<DecodeWeights, Error> {
        let config = weights.config();
        let layers = (0..config.n_layers).map(|layer| LayerWeights::new(weights, layer)).collect::<Result<_, _>>()?;
        let lm_head = (!config.tie_embeddings).then(|| Buffer::from_tensor(weights.lm_head())).transpose()?;
        let rope = RopeTable::new(&Config { max_seq_len: context, ..config.clone() });
        Ok(DecodeWeights {
            embed_tokens: Buffer::from_tensor(weights.embed_tokens())?,
            layers,
            norm: Buffer::from_tensor(weights.norm())?,
            lm_head,
            cos: Buffer::from_tensor(&rope.cos)?,
            sin: Buffer::from_tensor(&rope.sin)?,
        })
    }

    /// `[V, C]`.
    pub fn lm_head(&self) -> &[f32] {
        self.lm_head.as_ref().unwrap_or(&self.embed_tokens)
    }
}

impl LayerWeights {
    fn new(weights: &Weights, layer: usize) -> Result<LayerWeights, Error> {
        let at = LayerNames::new(layer);
        let get = |index: usize| Buffer::from_tensor(&weights.tensors()[index]);
        Ok(LayerWeights {
            input_layernorm: get(at.input_layernorm)?,
            q_proj: get(at.q_proj)?,
            k_proj: get(at.k_proj)?,
            v_proj: get(at.v_proj)?,
            o_proj: get(at.o_proj)?,
            post_attention_layernorm: get(at.post_attention_layernorm)?,
            gate_proj: get(at.gate_proj)?,
            up_proj: get(at.up_proj)?,
            down_proj_t: Buffer::from_tensor(&weights.tensors()[at.down_proj].t())?,
        })
    }

    /// The FFN's matrices, for the kernels of one token.
    pub fn ffn(&self) -> FfnWeights<'_> {
        FfnWeights { gate: &self.gate_proj, up: &self.up_proj, down_t: &self.down_proj_t }
    }
}
