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
    /// Time of the prompt; zero if its pass was there already ([`Samples`]).
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
    /// Tokens of the prompt a second; `None` if its pass was there already.
    pub fn prefill_rate(&self) -> Option<f64> {
        (self.prefill > Duration::ZERO).then(|| self.prompt_tokens as f64 / self.prefill.as_secs_f64())
    }

    /// The tokens that were drawn: those of the text, and the stop token if one ended it. What [`rank`](crate::rank()) scores.
    pub fn drawn(&self) -> Vec<u32> {
        let stop = match self.stop {
            StopReason::StopToken(token) => Some(token),
            _ => None,
        };
        self.tokens.iter().copied().chain(stop).collect()
    }

    /// Decode steps a second; `None` if there was none.
    pub fn decode_rate(&self) -> Option<f64> {
        (self.decode_steps > 0).then(|| self.decode_steps as f64 / self.decode.as_secs_f64())
    }

    /// Layers whose FFN ran sparse for most of the decode steps.
    pub fn sparse_layers(&self) -> usize {
        self.density.iter().filter(|layer| layer.ran_sparse()).count()
    }

    /// How the FFN ran, in words: `dense`, `sparse`, or `auto: 5 of 6 layers sparse`.
    pub fn ffn_in_words(&self) -> String {
        match self.ffn {
            FfnMode::Auto | FfnMode::AutoFiltered if self.decode_steps > 0 => {
                format!("{}: {} of {} layers sparse", self.ffn, self.sparse_layers(), self.density.len())
            }
            ffn => ffn.to_string(),
        }
    }

    /// The mean over layers of their active shares, 0 to 1; `None` without a decode step.
    pub fn mean_density(&self) -> Option<f64> {
        self.mean(LayerDensity::share)
    }

    /// The mean over layers of the shares of the gate's rows that were read, 0 to 1; `None` without a decode step. Below 1 only if the
    /// FFN ran filtered: then it is the share of the filter's survivors.
    pub fn mean_gate_share(&self) -> Option<f64> {
        self.mean(LayerDensity::gate_share)
    }

    fn mean(&self, share: impl Fn(&LayerDensity) -> Option<f64>) -> Option<f64> {
        let shares: Option<Vec<f64>> = self.density.iter().map(share).collect();
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
    on_token: impl FnMut(u32) -> ControlFlow<()>,
) -> Result<Generation, Error> {
    Samples::new(engine, request.prompt).draw(sampler, request.max_tokens, request.stop, request.sample, on_token)
}

/// Several texts after one prompt, whose pass is kept from one to the next, unless the activation is stochastic: its draws
/// are different ones for each sample, in the prompt too, so each sample feeds the prompt again. A text is the one that
/// [`generate`] gives, bit for bit.
pub struct Samples<'a> {
    engine: &'a mut dyn Engine,
    prompt: &'a [u32],
    /// After the prompt; empty before its first pass.
    logits: Vec<f32>,
}

impl<'a> Samples<'a> {
    /// Texts after `prompt`. Nothing is computed yet. Holds the engine, which the kept pass is in.
    pub fn new(engine: &'a mut dyn Engine, prompt: &'a [u32]) -> Samples<'a> {
        Samples { engine, prompt, logits: Vec::new() }
    }

    /// Generates sample number `sample`: see [`Request`] for the arguments and [`generate`] for errors.
    pub fn draw(
        &mut self,
        sampler: &mut Sampler,
        max_tokens: usize,
        stop: &[u32],
        sample: u32,
        mut on_token: impl FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Generation, Error> {
        let prefill = self.begin(sample)?;
        let engine = &mut *self.engine;
        let context = engine.context();
        let mut tokens = Vec::new();
        let (mut decode, mut sampling, mut decode_steps) = (Duration::ZERO, Duration::ZERO, 0);
        let mut logits = self.logits.as_slice();
        let mut position = self.prompt.len();
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
            prompt_tokens: self.prompt.len(),
            prefill,
            decode_steps,
            decode,
            ffn_time: engine.ffn_time(),
            sampling,
            ffn: engine.options().ffn,
            density: engine.density().to_vec(),
        })
    }

    /// Brings the engine to the end of the prompt, with the logits there. Returns the time of the pass, zero if it was kept.
    fn begin(&mut self, sample: u32) -> Result<Duration, Error> {
        if !self.logits.is_empty() && !self.engine.options().psi.draws() {
            self.engine.rewind(self.prompt.len(), sample);
            return Ok(Duration::ZERO);
        }
        self.engine.reset(sample);
        let start = Instant::now();
        let logits = self.engine.prefill(self.prompt)?;
        let time = start.elapsed();
        self.logits.clear();
        self.logits.extend_from_slice(logits);
        Ok(time)
    }
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

    /// The mean over tokens, by which texts of different lengths are compared; `None` for an empty continuation.
    pub fn per_token(&self) -> Option<f64> {
        (!self.log_probs.is_empty()).then(|| self.total() / self.log_probs.len() as f64)
    }
}

/// Resets the engine (sample 0) and scores `continuation` after `prompt`, all its tokens in one pass.
///
/// Errors: those of [`Engine::log_probs`], also for a continuation that does not fit (its last token needs no position).
pub fn score(engine: &mut dyn Engine, prompt: &[u32], continuation: &[u32]) -> Result<Score, Error> {
    Scorer::new(engine, prompt)?.score(continuation)
}

/// Scores continuations of one prompt, whose pass is kept from one to the next.
pub struct Scorer<'a> {
    engine: &'a mut dyn Engine,
    /// The prompt's last token. Those before it are in the engine: the pass of a continuation begins with it, because the
    /// logits after it are those of the first token.
    last: u32,
    /// Position of the last token.
    position: usize,
}

impl<'a> Scorer<'a> {
    /// Resets the engine (sample 0) and feeds it the prompt but for the last token. Errors: those of [`Engine::prefill`].
    pub fn new(engine: &'a mut dyn Engine, prompt: &[u32]) -> Result<Scorer<'a>, Error> {
        engine.reset(0);
        let (&last, before) = prompt.split_last().ok_or(Error::EmptyPrompt)?;
        if prompt.len() > engine.context() {
            return Err(Error::Context { tokens: prompt.len(), position: 0, context: engine.context() });
        }
        if !before.is_empty() {
            engine.prefill(before)?;
        }
        Ok(Scorer { engine, last, position: before.len() })
    }

    /// Scores `continuation` after the prompt. Errors: those of [`Engine::log_probs`].
    pub fn score(&mut self, continuation: &[u32]) -> Result<Score, Error> {
        let mut log_probs = Vec::with_capacity(continuation.len());
        if let Some((_, but_last)) = continuation.split_last() {
            let tokens: Vec<u32> = [&[self.last], but_last].concat();
            self.engine.truncate(self.position);
            self.engine.log_probs(&tokens, continuation, &mut log_probs)?;
        }
        Ok(Score { log_probs })
    }
}
