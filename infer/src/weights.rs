//! The parameters of a model, laid out for decoding.

use crate::buffer::Buffer;
use crate::matrix::{FfnMatrices, Matrix};
use crate::{EngineOptions, Error};
use model::{Config, LayerNames, RopeTable, Weights};

/// All parameters, taken out of their tensors once: matrices in the format asked for, gains and the RoPE table, which are small,
/// in f32. Projections are `[out, in]` as in the checkpoint, so that a decoded token reads their rows in order; only down_proj
/// is turned.
pub(crate) struct DecodeWeights {
    /// `[V, C]`.
    pub embed_tokens: Matrix,
    pub layers: Vec<LayerWeights>,
    /// `[C]`.
    pub norm: Buffer,
    /// `[V, C]`; absent if it is the embedding table.
    lm_head: Option<Matrix>,
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
    pub q_proj: Matrix,
    /// `[K D, C]`.
    pub k_proj: Matrix,
    /// `[K D, C]`.
    pub v_proj: Matrix,
    /// `[C, H D]`.
    pub o_proj: Matrix,
    /// `[C]`.
    pub post_attention_layernorm: Buffer,
    pub ffn: FfnMatrices,
}

impl DecodeWeights {
    /// Copies the weights, with a RoPE table for `context` positions.
    pub fn new(weights: &Weights, options: &EngineOptions, context: usize) -> Result<DecodeWeights, Error> {
        let config = weights.config();
        let layers =
            (0..config.n_layers).map(|layer| LayerWeights::new(weights, options, layer)).collect::<Result<_, _>>()?;
        let lm_head = (!config.tie_embeddings).then(|| Matrix::from_tensor(weights.lm_head(), options)).transpose()?;
        let rope = RopeTable::new(&Config { max_seq_len: context, ..config.clone() });
        Ok(DecodeWeights {
            embed_tokens: Matrix::from_tensor(weights.embed_tokens(), options)?,
            layers,
            norm: Buffer::from_tensor(weights.norm())?,
            lm_head,
            cos: Buffer::from_tensor(&rope.cos)?,
            sin: Buffer::from_tensor(&rope.sin)?,
        })
    }

    /// `[V, C]`.
    pub fn lm_head(&self) -> &Matrix {
        self.lm_head.as_ref().unwrap_or(&self.embed_tokens)
    }
}

impl LayerWeights {
    fn new(weights: &Weights, options: &EngineOptions, layer: usize) -> Result<LayerWeights, Error> {
        let at = LayerNames::new(layer);
        let tensor = |index: usize| &weights.tensors()[index];
        let matrix = |index| Matrix::from_tensor(tensor(index), options);
        Ok(LayerWeights {
            input_layernorm: Buffer::from_tensor(tensor(at.input_layernorm))?,
            q_proj: matrix(at.q_proj)?,
            k_proj: matrix(at.k_proj)?,
            v_proj: matrix(at.v_proj)?,
            o_proj: matrix(at.o_proj)?,
            post_attention_layernorm: Buffer::from_tensor(tensor(at.post_attention_layernorm))?,
            ffn: FfnMatrices {
                gate_proj: matrix(at.gate_proj)?,
                up_proj: matrix(at.up_proj)?,
                down_proj_t: Matrix::from_tensor(&tensor(at.down_proj).t(), options)?,
                filter: None,
            },
        })
    }
}
