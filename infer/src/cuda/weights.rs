//! The parameters of a model in the memory of a GPU.

use crate::Error;
use crate::rows::{Parameter, Parameters};
use cuda::ops::Float;
use cuda::ops::elementwise::{narrow, widen};
use cuda::ops::ffn::FfnWeights;
use cuda::{Buffer, Device, Slice};
use half::bf16;
use kernels::RowFormat;
use model::{Config, LayerNames, RopeTable};

/// What matrices, or keys and values, can be kept as on a GPU.
pub(super) trait Element: Float + RowFormat + Send + 'static {
    /// Gives `f` the elements in f32: themselves, or a widened copy.
    fn in_f32(w: Slice<Self>, f: impl FnOnce(Slice<f32>) -> Result<(), cuda::Error>) -> Result<(), cuda::Error>;

    /// Gives `f` the elements in bf16: themselves, or a rounded copy.
    fn in_bf16(w: Slice<Self>, f: impl FnOnce(Slice<bf16>) -> Result<(), cuda::Error>) -> Result<(), cuda::Error>;
}

impl Element for f32 {
    fn in_f32(w: Slice<f32>, f: impl FnOnce(Slice<f32>) -> Result<(), cuda::Error>) -> Result<(), cuda::Error> {
        f(w)
    }

    fn in_bf16(w: Slice<f32>, f: impl FnOnce(Slice<bf16>) -> Result<(), cuda::Error>) -> Result<(), cuda::Error> {
        let mut rounded = Buffer::stale(w.device(), w.len())?;
        narrow(w, rounded.as_mut())?;
        f(rounded.as_slice())
    }
}

impl Element for bf16 {
    fn in_f32(w: Slice<bf16>, f: impl FnOnce(Slice<f32>) -> Result<(), cuda::Error>) -> Result<(), cuda::Error> {
        let mut wide = Buffer::stale(w.device(), w.len())?;
        widen(w, wide.as_mut())?;
        f(wide.as_slice())
    }

    fn in_bf16(w: Slice<bf16>, f: impl FnOnce(Slice<bf16>) -> Result<(), cuda::Error>) -> Result<(), cuda::Error> {
        f(w)
    }
}

/// All parameters, in the layout of decoding: see [`DecodeWeights`](crate::weights::DecodeWeights).
pub(super) struct Weights<W> {
    /// `[V, C]`.
    pub embed_tokens: Buffer<W>,
    pub layers: Vec<LayerWeights<W>>,
    /// `[C]`.
    pub norm: Buffer<f32>,
    /// `[V, C]`; absent if it is the embedding table.
    lm_head: Option<Buffer<W>>,
    /// `[context, D / 2]`.
    pub cos: Buffer<f32>,
    /// `[context, D / 2]`.
    pub sin: Buffer<f32>,
}

/// A block of the model.
pub(super) struct LayerWeights<W> {
    /// `[C]`.
    pub input_layernorm: Buffer<f32>,
    /// `[H D, C]`.
    pub q_proj: Buffer<W>,
    /// `[K D, C]`.
    pub k_proj: Buffer<W>,
    /// `[K D, C]`.
    pub v_proj: Buffer<W>,
    /// `[C, H D]`.
    pub o_proj: Buffer<W>,
    /// `[C]`.
    pub post_attention_layernorm: Buffer<f32>,
    /// `[F, C]`.
    pub gate_proj: Buffer<W>,
    /// `[F, C]`.
    pub up_proj: Buffer<W>,
    /// down_proj transposed, `[F, C]`.
    pub down_proj_t: Buffer<W>,
}

impl<W: Element> LayerWeights<W> {
    pub fn ffn(&self) -> FfnWeights<'_, W> {
        let LayerWeights { gate_proj, up_proj, down_proj_t, .. } = self;
        FfnWeights { gate: gate_proj.as_slice(), up: up_proj.as_slice(), down_t: down_proj_t.as_slice() }
    }
}

impl<W: Element> Weights<W> {
    /// Takes the parameters from where they are, one by one: host memory holds one of them at a time.
    pub fn upload(
        device: &Device,
        config: &Config,
        context: usize,
        source: &impl Parameters,
    ) -> Result<Weights<W>, Error> {
        let all = Parameter::all(config);
        let matrix = |index: usize| Ok::<_, Error>(Buffer::from_slice(device, &source.rows::<W>(all[index])?)?);
        let gain = |index: usize| Ok::<_, Error>(Buffer::from_slice(device, &source.rows::<f32>(all[index])?)?);
        let layer = |layer| {
            let at = LayerNames::new(layer);
            Ok(LayerWeights {
                input_layernorm: gain(at.input_layernorm)?,
                q_proj: matrix(at.q_proj)?,
                k_proj: matrix(at.k_proj)?,
                v_proj: matrix(at.v_proj)?,
                o_proj: matrix(at.o_proj)?,
                post_attention_layernorm: gain(at.post_attention_layernorm)?,
                gate_proj: matrix(at.gate_proj)?,
                up_proj: matrix(at.up_proj)?,
                down_proj_t: matrix(at.down_proj)?,
            })
        };
        let after_layers = LayerNames::new(config.n_layers).input_layernorm;
        let rope = RopeTable::new(&Config { max_seq_len: context, ..config.clone() });
        Ok(Weights {
            embed_tokens: matrix(0)?,
            layers: (0..config.n_layers).map(layer).collect::<Result<_, Error>>()?,
            norm: gain(after_layers)?,
            lm_head: (!config.tie_embeddings).then(|| matrix(after_layers + 1)).transpose()?,
            cos: Buffer::from_slice(device, &rope.cos.to_vec::<f32>()?)?,
            sin: Buffer::from_slice(device, &rope.sin.to_vec::<f32>()?)?,
        })
    }

    /// `[V, C]`.
    pub fn lm_head(&self) -> Slice<'_, W> {
        self.lm_head.as_ref().unwrap_or(&self.embed_tokens).as_slice()
    }
}
