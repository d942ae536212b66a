//! A text from the model in training, through the crate `infer`: the token path that will run it later.

use crate::data::Tokenizer;
use crate::error::Error;
use infer::{CpuEngine, EngineOptions, FfnMode, Request, Sampler, Sampling, generate};
use model::{Psi, Weights};
use std::ops::ControlFlow;

/// What [`sample`] wrote.
pub struct Written {
    /// The text after the prompt.
    pub text: String,
    /// The activation, and how the FFN ran, in words.
    pub how: String,
}

/// The temperature of samples: below 1 a small model stays on its words, above 0 it does not loop.
const TEMPERATURE: f32 = 0.8;

/// Continues `prompt` by at most `tokens` tokens, drawn at temperature 0.8: under RELU with the sparse FFN where it pays, else
/// dense.
/// The same weights and seed give the same text.
pub fn sample(
    weights: &Weights,
    tokenizer: Tokenizer,
    psi: Psi,
    prompt: &str,
    tokens: usize,
    seed: u64,
) -> Result<Written, Error> {
    let prompt = tokenizer.encode(prompt);
    let context = (prompt.len() + tokens).min(weights.config().max_seq_len);
    let options = EngineOptions { seed, context: Some(context), ..EngineOptions::new(psi) };
    let mut engine = CpuEngine::new(weights, options)?;
    let mut sampler = Sampler::new(Sampling { temperature: TEMPERATURE, seed, ..Sampling::GREEDY })?;
    let request = Request { prompt: &prompt, max_tokens: tokens, stop: &[tokenizer.separator()], sample: 0 };
    let written = generate(&mut engine, &mut sampler, request, |_| ControlFlow::Continue(()))?;
    let how = match (written.ffn, written.mean_density()) {
        (FfnMode::Sparse | FfnMode::Filtered | FfnMode::Auto | FfnMode::AutoFiltered, Some(density)) => {
            let (sparse, layers) = (written.sparse_layers(), written.density.len());
            format!("{psi}, sparse FFN in {sparse} of {layers} layers, {:.1} % of the neurons", 100.0 * density)
        }
        (FfnMode::Dense, _) | (_, None) => format!("{psi}, {} FFN", written.ffn),
    };
    Ok(Written { text: tokenizer.decode(&written.tokens), how })
}
