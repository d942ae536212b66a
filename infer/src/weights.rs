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

/// A parameter as it is kept.
enum Kept<'a> {
    Gain(&'a Rows),
    Matrix(&'a Matrix),
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
        fn group<const N: usize>(
            (source, all, options): (&impl Parameters, &[Parameter], &EngineOptions),
            indices: [usize; N],
        ) -> Result<[Matrix; N], Error> {
            Matrix::group(source, indices.map(|index| all[index]), options)
        }
        let from = (source, &all[..], options);
        let gain = |index: usize| source.rows(all[index]);
        let layer = |layer| {
            let at = LayerNames::new(layer);
            let [q_proj, k_proj, v_proj] = group(from, [at.q_proj, at.k_proj, at.v_proj])?;
            let [o_proj] = group(from, [at.o_proj])?;
            let [gate_proj, up_proj, down_proj_t] = group(from, [at.gate_proj, at.up_proj, at.down_proj])?;
            Ok(LayerWeights {
                input_layernorm: gain(at.input_layernorm)?,
                q_proj,
                k_proj,
                v_proj,
                o_proj,
                post_attention_layernorm: gain(at.post_attention_layernorm)?,
                ffn: FfnMatrices { gate_proj, up_proj, down_proj_t, filter: None },
            })
        };
        let after_layers = LayerNames::new(config.n_layers).input_layernorm;
        let rope = RopeTable::new(&Config { max_seq_len: context, ..config.clone() });
        let table = |index: usize| group(from, [index]).map(|[matrix]| matrix);
        Ok(DecodeWeights {
            embed_tokens: table(0)?,
            layers: (0..config.n_layers).map(layer).collect::<Result<_, Error>>()?,
            norm: gain(after_layers)?,
            lm_head: (!config.tie_embeddings).then(|| table(after_layers + 1)).transpose()?,
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
        self.parameters()
            .map(|parameter| match parameter {
                Kept::Gain(gain) => gain.bytes(),
                Kept::Matrix(matrix) => matrix.bytes(),
            })
            .collect()
    }

    /// Of every parameter, in the fixed order, whether it is a matrix that is not packed bf16.
    pub fn plain(&self) -> Vec<bool> {
        self.parameters().map(|parameter| matches!(parameter, Kept::Matrix(matrix) if !matrix.is_packed())).collect()
    }

    /// Groups of matrices that are kept in one format: those that are packed bf16, and all.
    pub fn packed_groups(&self) -> (usize, usize) {
        let layers = self.layers.iter().flat_map(|layer| [&layer.q_proj, &layer.o_proj, &layer.ffn.gate_proj]);
        let groups = layers.chain([&self.embed_tokens]).chain(&self.lm_head);
        groups.fold((0, 0), |(packed, all), matrix| (packed + matrix.is_packed() as usize, all + 1))
    }

    /// In the fixed order.
    fn parameters(&self) -> impl Iterator<Item = Kept<'_>> {
        let layers = self.layers.iter().flat_map(|layer| {
            let LayerWeights { input_layernorm, q_proj, k_proj, v_proj, o_proj, post_attention_layernorm, ffn } = layer;
            let FfnMatrices { gate_proj, up_proj, down_proj_t, filter: _ } = ffn;
            [
                Kept::Gain(input_layernorm),
                Kept::Matrix(q_proj),
                Kept::Matrix(k_proj),
                Kept::Matrix(v_proj),
                Kept::Matrix(o_proj),
                Kept::Gain(post_attention_layernorm),
                Kept::Matrix(gate_proj),
                Kept::Matrix(up_proj),
                Kept::Matrix(down_proj_t),
            ]
        });
        let last = [Some(Kept::Gain(&self.norm)), self.lm_head.as_ref().map(Kept::Matrix)];
        std::iter::once(Kept::Matrix(&self.embed_tokens)).chain(layers).chain(last.into_iter().flatten())
    }
}
