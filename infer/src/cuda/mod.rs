//! The engine on a GPU.
//!
//! - [`step`]: a token, or up to eight of several sequences, as one recorded graph. [`prompt`]: more of one sequence, by products of matrices.
//! - [`weights`] and [`cache`]: what lies in the GPU's memory. [`passes`]: all that, behind one trait for the formats of both.
//!
//! Here is what the host knows: positions, counts, and which layers run sparse.

mod cache;
mod passes;
mod prompt;
mod step;
mod weights;

use crate::cpu::log_softmax_at;
use crate::engine::{check_tokens, check_vocab};
use crate::recent::Recent;
use crate::rows::{FromTensors, Parameters};
use crate::sampler::best;
use crate::{CacheMemory, Engine, EngineOptions, Error, FfnMode, LayerDensity, PromptFfn, WeightFormat};
use cuda::Device;
use cuda::ops::attention::MAX_DIM;
use cuda::ops::attention_cached::MAX_GROUP;
use cuda::ops::ffn::MAX_NEURONS;
use cuda::ops::gemv::MAX_TOKENS;
use model::hf::Folder;
use model::{Config, Psi, PsiAt, Weights};
use passes::{Passes, Prompt, Slot, Wanted};
use std::path::Path;
use std::time::Duration;

/// Tokens that a prompt is cut into: four rows of tiles of a product; the three hidden buffers take 48 MiB at d_ff = 8192.
const PREFILL_CHUNK: usize = 512;

/// Positions that a growing cache begins with; from there it doubles, so that at most half of the blocks of attention, whose grid is that of the
/// capacity, have nothing to do.
const FIRST_CAPACITY: usize = 256;

/// The share of neurons that any token of a step uses below which [`FfnMode::Auto`] takes the sparse FFN. Not measured. By bytes it would be 1: a step
/// reads `(1 + 2 u) / 3` of the dense weights at a share u, by the same kernels, whose lists are only shorter. A little less, for what lists of different
/// lengths cost: at 0.95 they save 3 % of the bytes.
const SPARSE_BREAK_EVEN: f32 = 0.95;

/// A sequence in a cache of its own.
#[derive(Clone, Copy, Default)]
struct Sequence {
    len: usize,
    sample: u32,
    /// Whether it was forked since branches were dropped last. (The engine's own is.)
    live: bool,
}

/// A model on a GPU. Weights are f32 or bf16; what is computed from them is f32, but for the products of a prompt under
/// [`Prefill::Bf16`](crate::Prefill::Bf16).
///
/// A decoded token is one graph: a block of integers goes to the GPU, and the logits come back. So does each eight of a batch. The graph is recorded
/// at the first step of so many tokens, and again when the cache has grown.
///
/// Memory of the GPU: one copy of the weights (tied embeddings once), the caches, all with the capacity of the longest, and the activations of 512 tokens.
/// Host memory holds one matrix at a time while they are loaded.
pub struct CudaEngine {
    config: Config,
    options: EngineOptions,
    context: usize,
    device: Device,
    passes: Box<dyn Passes>,
    /// The engine's own, and branch i as number i + 1.
    sequences: Vec<Sequence>,
    density: Vec<LayerDensity>,
    recent: Vec<Recent>,
    ffn_time: Duration,
    /// After a prompt that no step took, `[V]`, or of a batch of more than a step takes, `[B, V]`.
    logits: Vec<f32>,
    slots: Vec<Slot>,
    dense: Vec<bool>,
}

impl CudaEngine {
    /// Copies the weights to the device, rounded as the options say.
    ///
    /// Errors: those of [`EngineOptions::validate`]; [`Error::Option`] for what a GPU does not have: quantised weights, filters, sparse
    /// prompts, heads of more than 128, more than 16 query heads to a key-value head, more than 65536 neurons; [`Error::Device`].
    pub fn new(weights: &Weights, options: EngineOptions, device: &Device) -> Result<CudaEngine, Error> {
        let tensors = FromTensors(|index: usize| Ok(weights.tensors()[index].clone()));
        CudaEngine::of(weights.config(), options, device, &tensors)
    }

    /// The model in the Hugging Face folder `dir`, matrix by matrix.
    ///
    /// Errors: those of [`CudaEngine::new`]; [`Error::Checkpoint`].
    pub fn open(dir: &Path, options: EngineOptions, device: &Device) -> Result<CudaEngine, Error> {
        let folder = Folder::open(dir)?;
        let tensors = FromTensors(|index| Ok(folder.load(index)?));
        let engine = CudaEngine::of(folder.config(), options, device, &tensors);
        // The host's copies of tensors: their sizes are of no use to decoding.
        tensor::pool::trim();
        engine
    }

    fn of(
        config: &Config,
        options: EngineOptions,
        device: &Device,
        source: &impl Parameters,
    ) -> Result<CudaEngine, Error> {
        let context = validate(&options, config)?;
        let capacity = match options.cache {
            CacheMemory::Fixed => context,
            CacheMemory::Growing => context.min(FIRST_CAPACITY),
        };
        Ok(CudaEngine {
            passes: passes::open(device, config, &options, (context, capacity), source)?,
            context,
            device: device.clone(),
            sequences: vec![Sequence { live: true, ..Sequence::default() }],
            density: vec![LayerDensity::default(); config.n_layers],
            recent: vec![Recent::default(); config.n_layers],
            ffn_time: Duration::ZERO,
            logits: Vec::new(),
            slots: Vec::with_capacity(MAX_TOKENS),
            dense: vec![false; config.n_layers],
            config: config.clone(),
            options,
        })
    }

    /// Where it runs.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Computes the FFN of a decoded token in this way from now on: to compare ways on one copy of the weights.
    ///
    /// Errors: those of [`CudaEngine::new`] for the option; the engine is then as it was.
    pub fn set_ffn(&mut self, ffn: FfnMode) -> Result<(), Error> {
        let options = EngineOptions { ffn, ..self.options.clone() };
        validate(&options, &self.config)?;
        self.options = options;
        Ok(())
    }

    /// Whether a step runs as one graph, as it does at first, or launch by launch, which is slower and tells the [time of FFNs](Engine::ffn_time).
    /// The bits are the same.
    pub fn set_graphs(&mut self, on: bool) {
        self.passes.set_graphs(on);
    }

    /// The psi of a sequence from `position` on.
    fn psi(&self, position: usize, sample: u32) -> PsiAt {
        PsiAt { psi: self.options.psi, seed: self.options.seed, first_token: position as u32, step: sample }
    }

    fn check(&self, of: &Sequence, tokens: &[u32]) -> Result<(), Error> {
        check_tokens(tokens, of.len, self.context, &self.config)
    }

    /// Makes room for so many positions in every cache.
    fn reserve(&mut self, positions: usize) -> Result<(), Error> {
        let (count, capacity) = self.passes.caches();
        if positions <= capacity {
            return Ok(());
        }
        self.reshape(count, positions.next_power_of_two().min(self.context))
    }

    fn reshape(&mut self, caches: usize, capacity: usize) -> Result<(), Error> {
        let held: Vec<usize> = self.sequences.iter().map(|sequence| sequence.len).collect();
        self.passes.reshape(caches, capacity, &held)
    }

    /// Runs a step of `self.slots`, whose caches have room. `counted`: whether density and FFN time count it.
    fn run_step(&mut self, counted: bool) -> Result<(), Error> {
        let relu = self.options.psi == Psi::Relu;
        for (dense, recent) in self.dense.iter_mut().zip(&self.recent) {
            *dense = match self.options.ffn {
                FfnMode::Sparse => false,
                FfnMode::Auto => !relu || !recent.sparse_pays_below(SPARSE_BREAK_EVEN),
                _ => true,
            };
        }
        let psi = self.psi(0, 0);
        let time = self.passes.step(psi, &self.slots, &self.dense)?;
        if !counted {
            return Ok(());
        }
        self.ffn_time += time;
        let (n, d_ff) = (self.slots.len() as u64, self.config.d_ff as u64);
        let totals = self.passes.totals()?.chunks_exact(2);
        for (layer, totals) in totals.enumerate() {
            let [active, union] = [totals[0], totals[1]].map(u64::from);
            self.recent[layer].observe(union as f32 / d_ff as f32, None);
            self.density[layer].add(LayerDensity {
                active,
                neurons: n * d_ff,
                tokens: n,
                steps: 1,
                union,
                sparse_tokens: if self.dense[layer] { 0 } else { n },
                gate_rows: n * d_ff,
            });
        }
        Ok(())
    }

    /// Appends tokens, as few as a step takes, to the engine's own sequence; their logits are those of the step.
    fn append_few(&mut self, tokens: &[u32], counted: bool) -> Result<(), Error> {
        let Sequence { len, sample, .. } = self.sequences[0];
        self.reserve(len + tokens.len())?;
        self.slots.clear();
        self.slots.extend(tokens.iter().enumerate().map(|(i, &token)| Slot {
            token,
            position: len + i,
            cache: 0,
            sample,
        }));
        self.run_step(counted)?;
        self.sequences[0].len += tokens.len();
        Ok(())
    }

    /// What a prompt of more tokens than a step takes is, after room was made for it.
    fn prompt_of<'a>(&mut self, tokens: &'a [u32], wanted: Wanted) -> Result<Prompt<'a>, Error> {
        let Sequence { len, sample, .. } = self.sequences[0];
        self.reserve(len + tokens.len())?;
        Ok(Prompt { tokens, prefill: self.options.prefill, psi: self.psi(len, sample), wanted })
    }
}

/// The context for a model of `config` on a GPU, if the options fit both.
fn validate(options: &EngineOptions, config: &Config) -> Result<usize, Error> {
    let context = options.validate(config)?;
    let fail = |field, value: &dyn std::fmt::Display, expected: String| {
        Err(Error::Option { field, value: value.to_string(), expected })
    };
    if !matches!(options.weights, WeightFormat::F32 | WeightFormat::Bf16) {
        return fail("weights", &options.weights, "f32 or bf16 on a GPU".into());
    }
    if options.ffn.has_filter() {
        return fail("ffn", &options.ffn, "dense, sparse or auto on a GPU, which has no filter".into());
    }
    if options.prompt_ffn != PromptFfn::Dense {
        return fail("prompt_ffn", &options.prompt_ffn, "dense on a GPU".into());
    }
    let group = config.n_heads / config.n_kv_heads;
    for (field, value, most) in [
        ("head_dim", config.head_dim, MAX_DIM),
        ("n_heads / n_kv_heads", group, MAX_GROUP),
        ("d_ff", config.d_ff, MAX_NEURONS),
    ] {
        if value > most {
            return fail(field, &value, format!("at most {most} on a GPU"));
        }
    }
    Ok(context)
}

impl Engine for CudaEngine {
    fn config(&self) -> &Config {
        &self.config
    }

    fn options(&self) -> &EngineOptions {
        &self.options
    }

    fn position(&self) -> usize {
        self.sequences[0].len
    }

    fn context(&self) -> usize {
        self.context
    }

    fn rewind(&mut self, len: usize, sample: u32) {
        self.truncate(len);
        self.sequences[0].sample = sample;
        self.density.fill(LayerDensity::default());
        self.recent.fill(Recent::default());
        self.ffn_time = Duration::ZERO;
    }

    fn set_activation(&mut self, psi: Psi, ffn: FfnMode) -> Result<(), Error> {
        let options = EngineOptions { psi, ffn, ..self.options.clone() };
        validate(&options, &self.config)?;
        self.options = options;
        self.passes.forget_graphs();
        self.reset(0);
        self.sequences[1..].iter_mut().for_each(|branch| branch.live = false);
        Ok(())
    }

    fn truncate(&mut self, len: usize) {
        let own = &mut self.sequences[0].len;
        *own = len.min(*own);
    }

    fn prefill(&mut self, tokens: &[u32]) -> Result<&[f32], Error> {
        if tokens.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        self.check(&self.sequences[0], tokens)?;
        let (before, v) = (self.sequences[0].len, self.config.vocab_size);
        self.logits.resize(v, 0.0);
        let mut append = |tokens: &[u32], wanted| {
            if tokens.len() <= MAX_TOKENS {
                return self.append_few(tokens, false);
            }
            let prompt = self.prompt_of(tokens, wanted)?;
            self.passes.prompt(prompt, &mut self.logits[..v])?;
            self.sequences[0].len += tokens.len();
            Ok(())
        };
        let chunks = tokens.chunks(PREFILL_CHUNK);
        let last = chunks.len() - 1;
        let appended = chunks
            .enumerate()
            .try_for_each(|(i, chunk)| append(chunk, if i == last { Wanted::Last } else { Wanted::None }));
        if appended.is_err() {
            self.sequences[0].len = before;
        }
        appended?;
        // Only the last chunk can be so short.
        match tokens.len() - last * PREFILL_CHUNK {
            few if few <= MAX_TOKENS => Ok(&self.passes.logits(few)?[(few - 1) * v..]),
            _ => Ok(&self.logits[..v]),
        }
    }

    fn decode(&mut self, token: u32) -> Result<&[f32], Error> {
        self.check(&self.sequences[0], &[token])?;
        self.append_few(&[token], true)?;
        self.passes.logits(1)
    }

    fn fork(&mut self, branch: usize) -> Result<(), Error> {
        let (count, capacity) = self.passes.caches();
        let number = branch + 1;
        if number >= count {
            self.reshape(number + 1, capacity)?;
        }
        self.passes.copy_first(number)?;
        if number >= self.sequences.len() {
            self.sequences.resize(number + 1, Sequence::default());
        }
        self.sequences[number] = self.sequences[0];
        Ok(())
    }

    fn decode_batch(&mut self, tokens: &[(usize, u32)]) -> Result<&[f32], Error> {
        assert!(!tokens.is_empty(), "CudaEngine::decode_batch: no tokens");
        let mut positions = 0;
        for (i, &(branch, token)) in tokens.iter().enumerate() {
            let live = self.sequences.get(branch + 1).filter(|branch| branch.live);
            let live = live.unwrap_or_else(|| panic!("CudaEngine::decode_batch: branch {branch} was never forked"));
            let twice = tokens[..i].iter().any(|&(before, _)| before == branch);
            assert!(!twice, "CudaEngine::decode_batch: branch {branch} is named twice");
            self.check(live, &[token])?;
            positions = positions.max(live.len + 1);
        }
        self.reserve(positions)?;
        let v = self.config.vocab_size;
        if tokens.len() > MAX_TOKENS {
            self.logits.resize(tokens.len() * v, 0.0);
        }
        for (i, part) in tokens.chunks(MAX_TOKENS).enumerate() {
            self.slots.clear();
            self.slots.extend(part.iter().map(|&(branch, token)| {
                let Sequence { len, sample, .. } = self.sequences[branch + 1];
                Slot { token, position: len, cache: branch + 1, sample }
            }));
            self.run_step(true)?;
            if tokens.len() > MAX_TOKENS {
                let logits = self.passes.logits(part.len())?;
                self.logits[i * MAX_TOKENS * v..][..part.len() * v].copy_from_slice(logits);
            }
        }
        // Not before all of it is done: what fails halfway has changed no branch.
        for &(branch, _) in tokens {
            self.sequences[branch + 1].len += 1;
        }
        if tokens.len() > MAX_TOKENS { Ok(&self.logits[..tokens.len() * v]) } else { self.passes.logits(tokens.len()) }
    }

    fn log_probs(&mut self, tokens: &[u32], targets: &[u32], log_probs: &mut Vec<f64>) -> Result<(), Error> {
        let (n, m) = (tokens.len(), targets.len());
        assert_eq!(n, m, "CudaEngine::log_probs: {n} tokens and {m} targets");
        let before = self.sequences[0].len;
        self.check(&self.sequences[0], tokens)?;
        check_vocab(targets, before + 1, &self.config)?;
        let scored = log_probs.len();
        let v = self.config.vocab_size;
        let mut append = |tokens: &[u32], targets: &[u32]| {
            if tokens.len() > MAX_TOKENS {
                let prompt = self.prompt_of(tokens, Wanted::All)?;
                self.passes.log_probs(prompt, targets, log_probs)?;
                self.sequences[0].len += tokens.len();
                return Ok(());
            }
            let position = self.sequences[0].len;
            self.append_few(tokens, false)?;
            for (i, (logits, &target)) in self.passes.logits(tokens.len())?.chunks_exact(v).zip(targets).enumerate() {
                let log_prob = log_softmax_at(logits, target as usize);
                if log_prob.is_nan() {
                    best(logits, position + i + 1)?;
                }
                log_probs.push(log_prob);
            }
            Ok(())
        };
        let mut chunks = tokens.chunks(PREFILL_CHUNK).zip(targets.chunks(PREFILL_CHUNK));
        let appended = chunks.try_for_each(|(tokens, targets)| append(tokens, targets));
        if appended.is_err() {
            self.sequences[0].len = before;
            log_probs.truncate(scored);
        }
        appended
    }

    fn density(&self) -> &[LayerDensity] {
        &self.density
    }

    fn ffn_time(&self) -> Duration {
        self.ffn_time
    }
}
