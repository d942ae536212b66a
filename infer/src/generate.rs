//! From a prompt to what follows it, on any [`Engine`].

use crate::{Engine, Error, FfnMode, LayerDensity, Sampler};
use std::ops::{ControlFlow, Range};
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
    /// Samples that were decoded together: 1 is one alone.
    pub batch: usize,
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

    /// The mean over layers of the shares of neurons that any sample of a step needed, 0 to 1; `None` without a decode step.
    pub fn mean_union(&self) -> Option<f64> {
        self.mean(LayerDensity::union_share)
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

/// Samples to be drawn at once: from here on a token costs arithmetic and no longer memory, and each takes a cache.
const BATCH: u32 = 16;

/// The numbers `0 .. n` in parts for [`Samples::draw_batch`].
pub fn batches(n: u32) -> impl Iterator<Item = Range<u32>> {
    (0..n).step_by(BATCH as usize).map(move |first| first..n.min(first + BATCH))
}

/// Several texts after one prompt, whose pass is kept from one to the next, unless the activation is stochastic: its draws
/// are different ones for each sample, in the prompt too, so each sample feeds the prompt again. A text is the one that
/// [`generate`] gives, bit for bit, whether it is drawn alone or with others at once.
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
            batch: 1,
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

    /// Generates the samples with these numbers, decoded together: each has the tokens that [`draw`](Samples::draw) gives, for any number of them.
    /// `on_token` hears the index in `samples` too, and breaks off the one whose token it was. Arguments and errors as there.
    ///
    /// The times of a generation are those of the steps that it took part in, whole: those of several are not to be added up. Its density is that of
    /// all of them together.
    pub fn draw_batch(
        &mut self,
        sampler: &mut Sampler,
        max_tokens: usize,
        stop: &[u32],
        samples: &[u32],
        mut on_token: impl FnMut(usize, u32) -> ControlFlow<()>,
    ) -> Result<Vec<Generation>, Error> {
        if let [sample] = *samples {
            return Ok(vec![self.draw(sampler, max_tokens, stop, sample, |token| on_token(0, token))?]);
        }
        let mut all = Vec::with_capacity(samples.len());
        let mut logits = Vec::new();
        for (branch, &sample) in samples.iter().enumerate() {
            let prefill = self.begin(sample)?;
            self.engine.fork(branch)?;
            logits.extend_from_slice(&self.logits);
            all.push(Running {
                tokens: Vec::new(),
                stop: None,
                prefill,
                steps: 0,
                decode: Duration::ZERO,
                sampling: Duration::ZERO,
            });
        }
        let engine = &mut *self.engine;
        let (context, vocab_size) = (engine.context(), engine.config().vocab_size);
        let mut position = self.prompt.len();
        // Those whose logits there are, row by row.
        let mut running: Vec<usize> = (0..all.len()).collect();
        let mut step = Vec::new();
        while !running.is_empty() {
            step.clear();
            for (&branch, logits) in running.iter().zip(logits.chunks_exact(vocab_size)) {
                let one: &mut Running = &mut all[branch];
                if one.tokens.len() == max_tokens {
                    one.stop = Some(StopReason::MaxTokens);
                    continue;
                }
                let start = Instant::now();
                let token = sampler.sample(logits, position, samples[branch])?;
                one.sampling += start.elapsed();
                if stop.contains(&token) {
                    one.stop = Some(StopReason::StopToken(token));
                    continue;
                }
                one.tokens.push(token);
                one.stop = if on_token(branch, token).is_break() {
                    Some(StopReason::Receiver)
                } else if one.tokens.len() == max_tokens {
                    Some(StopReason::MaxTokens)
                } else if position == context {
                    Some(StopReason::ContextFull)
                } else {
                    step.push((branch, token));
                    None
                };
            }
            running.clear();
            running.extend(step.iter().map(|&(branch, _)| branch));
            if running.is_empty() {
                break;
            }
            let start = Instant::now();
            let next = engine.decode_batch(&step)?;
            let time = start.elapsed();
            logits.clear();
            logits.extend_from_slice(next);
            position += 1;
            for &branch in &running {
                all[branch].decode += time;
                all[branch].steps += 1;
            }
        }
        let finish = |one: Running| Generation {
            tokens: one.tokens,
            stop: one.stop.expect("one that is not running has stopped"),
            batch: samples.len(),
            prompt_tokens: self.prompt.len(),
            prefill: one.prefill,
            decode_steps: one.steps,
            decode: one.decode,
            ffn_time: engine.ffn_time(),
            sampling: one.sampling,
            ffn: engine.options().ffn,
            density: engine.density().to_vec(),
        };
        Ok(all.into_iter().map(finish).collect())
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

/// A sample of a batch on its way.
struct Running {
    tokens: Vec<u32>,
    stop: Option<StopReason>,
    prefill: Duration,
    steps: usize,
    decode: Duration,
    sampling: Duration,
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
