//! The parameters: names, shapes, and one fixed order that leaves, gradients and optimiser state share.

use crate::Config;
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use tensor::{Device, Shape, Tensor};

/// What is known of a parameter before it has values.
#[derive(Clone, Debug, PartialEq)]
pub struct ParameterSpec {
    /// The key in a Hugging Face checkpoint.
    pub name: String,
    /// Its shape; projections are `[out, in]`.
    pub shape: Shape,
    /// How it begins.
    pub init: Init,
}

/// How a parameter begins.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All ones: the gains of norms.
    Ones,
    /// Normal with this standard deviation.
    Normal(f64),
}

impl ParameterSpec {
    /// Whether weight decay applies: to the projections, not to norms and embeddings.
    pub fn decays(&self) -> bool {
        self.shape.rank() == 2 && self.name != EMBED_TOKENS
    }
}

/// Key of the embedding table.
pub const EMBED_TOKENS: &str = "model.embed_tokens.weight";
/// Key of the last norm's gain.
pub const NORM: &str = "model.norm.weight";
/// Key of the LM head; absent from a checkpoint with tied embeddings.
pub const LM_HEAD: &str = "lm_head.weight";

/// Positions of a layer's parameters in the fixed order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the field names are the checkpoint's
pub struct LayerNames {
    pub input_layernorm: usize,
    pub q_proj: usize,
    pub k_proj: usize,
    pub v_proj: usize,
    pub o_proj: usize,
    pub post_attention_layernorm: usize,
    pub gate_proj: usize,
    pub up_proj: usize,
    pub down_proj: usize,
}

/// Parameters of a layer.
const PER_LAYER: usize = 9;

impl LayerNames {
    /// The positions for `layer`.
    pub fn new(layer: usize) -> LayerNames {
        let first = 1 + layer * PER_LAYER;
        LayerNames {
            input_layernorm: first,
            q_proj: first + 1,
            k_proj: first + 2,
            v_proj: first + 3,
            o_proj: first + 4,
            post_attention_layernorm: first + 5,
            gate_proj: first + 6,
            up_proj: first + 7,
            down_proj: first + 8,
        }
    }
}

/// Every parameter of a model, in the fixed order: the embedding, the layers, the last norm, and the LM head unless tied.
///
/// Initialisation: normal with standard deviation 0.02; the two projections that write to the residual stream
/// (o_proj, down_proj) with 0.02 / sqrt(2 n_layers), so that its variance does not grow with depth (GPT-2).
pub fn parameter_specs(config: &Config) -> impl Iterator<Item = ParameterSpec> {
    // That of GPT-2, and the `initializer_range` of transformers' Llama.
    const STD: f64 = 0.02;
    let c = config.clone();
    let spec = |name: &str, shape: Shape, init| ParameterSpec { name: name.to_string(), shape, init };
    let vocabulary = Shape::from([c.vocab_size, c.d_model]);
    let gain = Shape::from([c.d_model]);
    let residual = STD / (2.0 * c.n_layers as f64).sqrt();
    let first = spec(EMBED_TOKENS, vocabulary, Init::Normal(STD));
    let last =
        [Some(spec(NORM, gain, Init::Ones)), (!c.tie_embeddings).then(|| spec(LM_HEAD, vocabulary, Init::Normal(STD)))];
    let layers = (0..c.n_layers).flat_map(move |layer| {
        let (q, kv) = (c.q_width(), c.kv_width());
        let spec = |name: &str, shape: &[usize], init| ParameterSpec {
            name: format!("model.layers.{layer}.{name}.weight"),
            shape: Shape::new(shape),
            init,
        };
        [
            spec("input_layernorm", &[c.d_model], Init::Ones),
            spec("self_attn.q_proj", &[q, c.d_model], Init::Normal(STD)),
            spec("self_attn.k_proj", &[kv, c.d_model], Init::Normal(STD)),
            spec("self_attn.v_proj", &[kv, c.d_model], Init::Normal(STD)),
            spec("self_attn.o_proj", &[c.d_model, q], Init::Normal(residual)),
            spec("post_attention_layernorm", &[c.d_model], Init::Ones),
            spec("mlp.gate_proj", &[c.d_ff, c.d_model], Init::Normal(STD)),
            spec("mlp.up_proj", &[c.d_ff, c.d_model], Init::Normal(STD)),
            spec("mlp.down_proj", &[c.d_model, c.d_ff], Init::Normal(residual)),
        ]
    });
    std::iter::once(first).chain(layers).chain(last.into_iter().flatten())
}

/// The parameters of a model, in the fixed order of [`parameter_specs`].
#[derive(Clone)]
pub struct Weights {
    config: Config,
    tensors: Vec<Tensor>,
}

impl Weights {
    /// Fresh parameters from a seed. Panics if the config does not validate.
    pub fn init(config: &Config, seed: u64) -> Weights {
        config.validate().unwrap_or_else(|e| panic!("Weights::init: {e}"));
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let tensors = parameter_specs(config)
            .map(|spec| match spec.init {
                Init::Ones => Tensor::full(1.0, spec.shape),
                Init::Normal(std) => {
                    let values: Vec<f32> =
                        (0..spec.shape.elements()).map(|_| (std * normal(&mut rng)) as f32).collect();
                    Tensor::from_slice(&values, spec.shape)
                }
            })
            .collect();
        Weights { config: config.clone(), tensors }
    }

    /// From tensors in the fixed order. Panics if their number or a shape is wrong: readers of files check first.
    #[track_caller]
    pub fn from_tensors(config: &Config, tensors: Vec<Tensor>) -> Weights {
        let specs: Vec<_> = parameter_specs(config).collect();
        assert_eq!(specs.len(), tensors.len(), "Weights::from_tensors: number of parameters");
        for (spec, tensor) in specs.iter().zip(&tensors) {
            assert!(
                spec.shape == tensor.shape(),
                "Weights::from_tensors: {} is {}, expected {}",
                spec.name,
                tensor.shape(),
                spec.shape
            );
        }
        Weights { config: config.clone(), tensors }
    }

    /// The same parameters on `device`. Fails when its memory does not suffice.
    pub fn to_device(&self, device: &Device) -> Result<Weights, cuda::Error> {
        let tensors = self.tensors.iter().map(|tensor| tensor.to_device(device)).collect::<Result<_, _>>()?;
        Ok(Weights { config: self.config.clone(), tensors })
    }

    /// Where they are.
    pub fn device(&self) -> Device {
        self.embed_tokens().device()
    }

    /// The sizes.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// All parameters, in the fixed order.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// All parameters, to be changed in place by an optimiser.
    pub fn tensors_mut(&mut self) -> &mut [Tensor] {
        &mut self.tensors
    }

    /// The embedding table `[V, C]`.
    pub fn embed_tokens(&self) -> &Tensor {
        &self.tensors[0]
    }

    /// The gain of the last norm, `[C]`.
    pub fn norm(&self) -> &Tensor {
        &self.tensors[1 + self.config.n_layers * PER_LAYER]
    }

    /// The LM head `[V, C]`: the embedding table if tied.
    pub fn lm_head(&self) -> &Tensor {
        if self.config.tie_embeddings {
            self.embed_tokens()
        } else {
            &self.tensors[2 + self.config.n_layers * PER_LAYER]
        }
    }
}

/// A standard normal draw (Box and Muller, one of the pair).
fn normal(rng: &mut impl Rng) -> f64 {
    let unit = |bits: u64| (bits >> 11) as f64 / (1u64 << 53) as f64;
    let (u, v) = (1.0 - unit(rng.next_u64()), unit(rng.next_u64()));
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}
