//! What the tests of this crate share: small models of every form.
#![allow(dead_code)] // each test file uses its part

pub mod any_engine;

use infer::{CpuEngine, EngineOptions, FfnMode};
use kernels::testing::{rounded_rows, uniform, widened_rows};
use kernels::{Level, RowFormat, Team};
use model::{Config, EMBED_TOKENS, Init, LayerNames, Psi, Weights, parameter_specs};
use std::sync::Arc;
use tensor::Tensor;

/// Sizes that share no factor by accident: GQA in every ratio, tied and untied, head_dim other than C / H, odd widths.
pub fn configs() -> Vec<Config> {
    let base = Config {
        vocab_size: 61,
        d_model: 48,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 12,
        d_ff: 80,
        max_seq_len: 560,
        rope_theta: 10_000.0,
        rope_scaling: None,
        norm_eps: 1e-5,
        tie_embeddings: true,
    };
    vec![
        base.clone(),
        Config { n_kv_heads: 4, tie_embeddings: false, rope_theta: 500.0, ..base.clone() },
        Config { n_heads: 6, n_kv_heads: 1, head_dim: 10, d_model: 33, d_ff: 71, ..base.clone() },
        Config {
            n_heads: 2,
            n_kv_heads: 1,
            head_dim: 34,
            d_model: 40,
            vocab_size: 257,
            norm_eps: 1e-3,
            ..base.clone()
        },
        Config {
            n_heads: 3,
            n_kv_heads: 3,
            head_dim: 2,
            d_model: 17,
            d_ff: 129,
            tie_embeddings: false,
            ..base.clone()
        },
        Config { n_layers: 1, n_heads: 8, n_kv_heads: 4, head_dim: 16, d_model: 64, d_ff: 33, ..base },
    ]
}

/// Uniform weights: embeddings of standard deviation 1, projections of `1 / sqrt(in)`, so that gates and scores are of the
/// size of 1, and a quarter of that for the two that write to the residual stream. Gains of 0.5 to 1.5.
pub fn weights(config: &Config, seed: u64) -> Weights {
    let tensors = parameter_specs(config).zip(1..).map(|(spec, number)| {
        let x = uniform(seed * 1000 + number, spec.shape.elements()).into_iter();
        let std = match spec.name.as_str() {
            EMBED_TOKENS => 1.0,
            name if name.contains("o_proj") || name.contains("down_proj") => 0.25 / (spec.shape[1] as f32).sqrt(),
            _ => 1.0 / (*spec.shape.last().unwrap() as f32).sqrt(),
        };
        let values: Vec<f32> = match spec.init {
            Init::Ones => x.map(|x| 1.0 + 0.5 * x).collect(),
            Init::Normal(_) => x.map(|x| 3f32.sqrt() * std * x).collect(),
        };
        Tensor::from_slice(&values, spec.shape)
    });
    Weights::from_tensors(config, tensors.collect())
}

/// [`weights`] in which neuron i of layer l is active on every token if `active(l, i)`, else on none: the first element of the
/// residual stream is large and positive, and the gate's weight for it decides.
pub fn weights_with_active(config: &Config, seed: u64, active: impl Fn(usize, usize) -> bool) -> Weights {
    let c = config.d_model;
    let mut tensors = weights(config, seed).tensors().to_vec();
    let mut change = |index: usize, f: &dyn Fn(usize, &mut [f32])| {
        let mut values = tensors[index].to_vec::<f32>().unwrap();
        values.chunks_mut(c).enumerate().for_each(|(row, values)| f(row, values));
        tensors[index] = Tensor::from_slice(&values, tensors[index].shape());
    };
    change(0, &|_, embedding| embedding[0] = 10.0);
    for layer in 0..config.n_layers {
        let gate_proj = LayerNames::new(layer).gate_proj;
        change(gate_proj, &|neuron, gate| gate[0] = if active(layer, neuron) { 5.0 } else { -5.0 });
    }
    Weights::from_tensors(config, tensors)
}

/// The weights with every matrix rounded to a format, as an engine rounds it, and widened again; gains as they are.
pub fn rounded<W: RowFormat>(weights: &Weights) -> Weights {
    let round = |tensor: &Tensor| {
        let cols = tensor.shape()[1];
        let rows = rounded_rows::<W>(&tensor.to_vec::<f32>().unwrap(), cols);
        Tensor::from_slice(&widened_rows(&rows, cols), tensor.shape())
    };
    let tensors =
        parameter_specs(weights.config()).zip(weights.tensors()).map(|(spec, tensor)| match tensor.shape().rank() {
            1 => tensor.clone(),
            _ if spec.name.contains("down_proj") => {
                let turned = tensor.t().to_vec::<f32>().unwrap();
                round(&Tensor::from_slice(&turned, [tensor.shape()[1], tensor.shape()[0]])).t()
            }
            _ => round(tensor),
        });
    Weights::from_tensors(weights.config(), tensors.collect())
}

/// Reproducible tokens.
pub fn tokens(config: &Config, seed: u64, n: usize) -> Vec<u32> {
    uniform(seed, n).into_iter().map(|x| ((x as f64 + 1.0) / 2.0 * config.vocab_size as f64) as u32).collect()
}

/// Options of a dense engine, or one with the FFN given.
pub fn options(psi: Psi, ffn: FfnMode) -> EngineOptions {
    EngineOptions { ffn, ..EngineOptions::new(psi) }
}

/// An engine on a team of its own.
pub fn engine_on(level: Level, threads: usize, weights: &Weights, options: EngineOptions) -> CpuEngine {
    Arc::new(Team::new(level, threads)).install(|| CpuEngine::new(weights, options).unwrap())
}

/// The bits, for comparisons in which `0 == -0` and `NaN != NaN` would mislead.
pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}
