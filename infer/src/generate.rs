//! From a prompt to what follows it, on any [`Engine`].

use crate::{Engine, Error, FfnMode, LayerDensity, Sampler};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// What to generate.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Tokens to begin with, at least one.
    pub prompt: &'a [u32],
    /// Tokens to generate at most.
    pub max_tokens: usize,
    /// Tokens that end the text; the one that did is not part of it.
    pub stop: &'a [u32],
    /// The sample's number: the same seeds and number give the same text, another number another one.
    pub sample: u32,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// `max_tokens` were generated.
    MaxTokens,
    /// There is no position left.
    ContextFull,
    /// This token was drawn.
    StopToken(u32),
    /// The receiver of tokens broke off.
    Receiver,
}

/// A generated text and what it took.
#[derive(Clone, Debug)]
pub struct Generation {
    /// The tokens after the prompt.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub stop: StopReason,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Time of the prompt.
    pub prefill: Duration,
    /// Decode steps; the last token is drawn and not fed back, so there is one less than tokens, or as many.
    pub decode_steps: usize,
    /// Time of the decode steps, without sampling and without the receiver.
    pub decode: Duration,
    /// The part of [`decode`](Generation::decode) that went to the FFNs: from the normalised x to y, without the norm before and
    /// the addition after.
    pub ffn_time: Duration,
    /// Time of sampling.
    pub sampling: Duration,
    /// How the FFN of decoded tokens ran.
    pub ffn: FfnMode,
    /// Active neurons of each layer in the decode steps.
    pub density: Vec<LayerDensity>,
}

impl Generation {
    /// Tokens of the prompt a second.
    pub fn prefill_rate(&self) -> f64 {
        self.prompt_tokens as f64 / self.prefill.as_secs_f64()
    }

    /// Decode steps a second; `None` if there was none.
    pub fn decode_rate(&self) -> Option<f64> {
        (self.decode_steps > 0).then(|| self.decode_steps as f64 / self.decode.as_secs_f64())
    }

    /// The mean over layers of their active shares, 0 to 1; `None` without a decode step.
    pub fn mean_density(&self) -> Option<f64> {
        let shares: Option<Vec<f64>> = self.density.iter().map(LayerDensity::share).collect();
        shares.map(|shares| shares.iter().sum::<f64>() / shares.len() as f64)
    }
}

/// Resets the engine, feeds the prompt, and generates. `on_token` sees each token as it comes and may break off.
///
/// Errors: those of [`Engine::prefill`] and [`Sampler::sample`]. A prompt as long as the context is in order: one token
/// follows it.
pub fn generate(
    engine: &mut dyn Engine,
    sampler: &mut Sampler,
    request: Request,
    mut on_token: impl FnMut(u32) -> ControlFlow<()>,
) -> Result<Generation, Error> {
    let Request { prompt, max_tokens, stop, sample } = request;
    engine.reset(sample);
    let context = engine.context();
    let mut tokens = Vec::new();
    let (mut decode, mut sampling, mut decode_steps) = (Duration::ZERO, Duration::ZERO, 0);

    let start = Instant::now();
    let mut logits = engine.prefill(prompt)?;
    let prefill = start.elapsed();
    let mut position = prompt.len();
    let stop = loop {
        if tokens.len() == max_tokens {
            break StopReason::MaxTokens;
        }
        let start = Instant::now();
        let token = sampler.sample(logits, position, sample)?;
        sampling += start.elapsed();
        if stop.contains(&token) {
            break StopReason::StopToken(token);
        }
        tokens.push(token);
        if on_token(token).is_break() {
            break StopReason::Receiver;
        }
        if tokens.len() == max_tokens {
            break StopReason::MaxTokens;
        }
        if position == context {
            break StopReason::ContextFull;
        }
        let start = Instant::now();
        logits = engine.decode(token)?;
        decode += start.elapsed();
        decode_steps += 1;
        position += 1;
    };
    Ok(Generation {
        tokens,
        stop,
        prompt_tokens: prompt.len(),
        prefill,
        decode_steps,
        decode,
        ffn_time: engine.ffn_time(),
        sampling,
        ffn: engine.options().ffn,
        density: engine.density().to_vec(),
    })
}

/// The log-likelihood of a continuation.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// `ln P(token)` for each token of the continuation, given all before it.
    pub log_probs: Vec<f64>,
}

impl Score {
    /// The sum: `ln P(continuation | prompt)`.
    pub fn total(&self) -> f64 {
        self.log_probs.iter().sum()
    }

    /// The mean over tokens, by which texts of different lengths are compared; NaN for an empty continuation.
    pub fn per_token(&self) -> f64 {
        self.total() / self.log_probs.len() as f64
    }
}

/// Resets the engine (sample 0) and scores `continuation` after `prompt`, a decode step a token.
///
/// Errors: those of [`Engine::prefill`], also for a continuation that does not fit (its last token needs no position).
pub fn score(engine: &mut dyn Engine, prompt: &[u32], continuation: &[u32]) -> Result<Score, Error> {
    engine.reset(0);
    let vocab_size = engine.config().vocab_size;
    let mut log_probs = Vec::with_capacity(continuation.len());
    let mut logits = engine.prefill(prompt)?;
    for (i, &token) in continuation.iter().enumerate() {
        let position = prompt.len() + i;
        if token as usize >= vocab_size {
            return Err(Error::Token { token, position, vocab_size });
        }
        log_probs.push(log_softmax_at(logits, token as usize));
        if i + 1 < continuation.len() {
            logits = engine.decode(token)?;
        }
    }
    Ok(Score { log_probs })
}

/// `logits[i] - ln sum_j exp(logits[j])`, in f64.
fn log_softmax_at(logits: &[f32], i: usize) -> f64 {
    let max = logits.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x)) as f64;
    let sum: f64 = logits.iter().map(|&x| (x as f64 - max).exp()).sum();
    logits[i] as f64 - max - sum.ln()
}
