//! The parameters of a model, laid out for decoding.

use crate::buffer::Buffer;
use crate::matrix::{FfnMatrices, Matrix};
use crate::rows::{FromFile, Parameter, Parameters, Rows};
use crate::{EngineOptions, Error};
use kernels::Team;
use kernels::sparse::{FilterLine, GateFilter};
use model::{Config, LayerNames, RopeTable};

/// All parameters, in decode layout: matrices in the format asked for, gains and the RoPE table, which are small,
/// in f32. Projections are `[out, in]` as in the checkpoint, so that a decoded token reads their rows in order; only down_proj
/// is turned.
pub(crate) struct DecodeWeights {
    /// `[V, C]`.
    pub embed_tokens: Matrix,
    pub layers: Vec<LayerWeights>,
    /// `[C]`.
    pub norm: Rows,
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
    pub input_layernorm: Rows,
    /// `[H D, C]`.
    pub q_proj: Matrix,
    /// `[K D, C]`.
    pub k_proj: Matrix,
    /// `[K D, C]`.
    pub v_proj: Matrix,
    /// `[C, H D]`.
    pub o_proj: Matrix,
    /// `[C]`.
    pub post_attention_layernorm: Rows,
    pub ffn: FfnMatrices,
}

impl DecodeWeights {
    /// Takes the parameters from where they are, and makes a RoPE table for `context` positions.
    pub fn new(
        config: &Config,
        options: &EngineOptions,
        context: usize,
        source: &impl Parameters,
    ) -> Result<DecodeWeights, Error> {
        let all = Parameter::all(config);
        let matrix = |index: usize| Matrix::new(source, all[index], options);
        let gain = |index: usize| source.rows(all[index]);
        let layer = |layer| {
            let at = LayerNames::new(layer);
            Ok(LayerWeights {
                input_layernorm: gain(at.input_layernorm)?,
                q_proj: matrix(at.q_proj)?,
                k_proj: matrix(at.k_proj)?,
                v_proj: matrix(at.v_proj)?,
                o_proj: matrix(at.o_proj)?,
                post_attention_layernorm: gain(at.post_attention_layernorm)?,
                ffn: FfnMatrices {
                    gate_proj: matrix(at.gate_proj)?,
                    up_proj: matrix(at.up_proj)?,
                    down_proj_t: matrix(at.down_proj)?,
                    filter: None,
                },
            })
        };
        let after_layers = LayerNames::new(config.n_layers).input_layernorm;
        let rope = RopeTable::new(&Config { max_seq_len: context, ..config.clone() });
        Ok(DecodeWeights {
            embed_tokens: matrix(0)?,
            layers: (0..config.n_layers).map(layer).collect::<Result<_, Error>>()?,
            norm: gain(after_layers)?,
            lm_head: (!config.tie_embeddings).then(|| matrix(after_layers + 1)).transpose()?,
            cos: Buffer::from_tensor(&rope.cos)?,
            sin: Buffer::from_tensor(&rope.sin)?,
        })
    }

    /// `[V, C]`.
    pub fn lm_head(&self) -> &Matrix {
        self.lm_head.as_ref().unwrap_or(&self.embed_tokens)
    }

    /// Makes the filters of the gates, unless they are there.
    pub fn make_filters(&mut self, team: &Team) {
        self.layers.iter_mut().for_each(|layer| layer.ffn.make_filter(team));
    }

    /// Takes the filters of the layers, by their number, from a file.
    pub fn set_filters(&mut self, file: &FromFile) {
        self.layers.iter_mut().enumerate().for_each(|(layer, weights)| weights.ffn.set_filter(file.part(layer)));
    }

    /// The filters that there are.
    pub fn filters(&self) -> impl Iterator<Item = &GateFilter<Rows<FilterLine>>> {
        self.layers.iter().filter_map(|layer| layer.ffn.filter.as_ref())
    }

    /// The bytes of every parameter, in the fixed order.
    pub fn bytes(&self) -> Vec<&[u8]> {
        let layers = self.layers.iter().flat_map(|layer| {
            let LayerWeights { input_layernorm, q_proj, k_proj, v_proj, o_proj, post_attention_layernorm, ffn } = layer;
            let FfnMatrices { gate_proj, up_proj, down_proj_t, filter: _ } = ffn;
            [
                input_layernorm.bytes(),
                q_proj.bytes(),
                k_proj.bytes(),
                v_proj.bytes(),
                o_proj.bytes(),
                post_attention_layernorm.bytes(),
                gate_proj.bytes(),
                up_proj.bytes(),
                down_proj_t.bytes(),
            ]
        });
        let last = [Some(self.norm.bytes()), self.lm_head.as_ref().map(Matrix::bytes)];
        std::iter::once(self.embed_tokens.bytes()).chain(layers).chain(last.into_iter().flatten()).collect()
    }
}
