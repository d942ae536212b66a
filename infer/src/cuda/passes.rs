//! What an engine asks of its GPU, whatever the formats of weights and caches are.

use super::cache::Caches;
use super::step::Step;
use super::weights::{Element, Weights};
use crate::rows::Parameters;
use crate::{EngineOptions, Error, KvFormat, Prefill, WeightFormat};
use cuda::Device;
use cuda::ops::attention_cached::Heads;
use half::bf16;
use model::{Config, PsiAt};
use std::time::Duration;

/// A token on its way into a cache.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub token: u32,
    pub position: usize,
    /// Number of the cache; 0 is the engine's own sequence.
    pub cache: usize,
    pub sample: u32,
}

/// Which rows of a prompt are wanted after the last block. Keys and values are made for all.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    None,
    Last,
    All,
}

/// Several tokens of the engine's own sequence, more than a step takes.
#[derive(Clone, Copy)]
pub(super) struct Prompt<'a> {
    pub tokens: &'a [u32],
    pub prefill: Prefill,
    /// Of the first token: psi, and where its draws come from.
    pub psi: PsiAt,
    pub wanted: Wanted,
}

impl Prompt<'_> {
    /// Position of the first token.
    pub fn position(&self) -> usize {
        self.psi.first_token as usize
    }
}

/// Passes through a model on a GPU. Positions are counted by the caller, who has seen to the capacity.
pub(super) trait Passes: Send {
    /// Caches that there are, and their capacity.
    fn caches(&self) -> (usize, usize);

    /// See [`Caches::reshape`]. Recorded graphs are forgotten.
    fn reshape(&mut self, caches: usize, capacity: usize, held: &[usize]) -> Result<(), Error>;

    /// See [`Caches::copy_first`].
    fn copy_first(&mut self, to: usize) -> Result<(), Error>;

    /// Forgets the recorded graphs, which have psi among their parameters.
    fn forget_graphs(&mut self);

    /// Whether steps run as graphs; else launch by launch, with the time of the FFNs.
    fn set_graphs(&mut self, on: bool);

    /// Appends some tokens, one to [`MAX_TOKENS`](cuda::ops::gemv::MAX_TOKENS), under RELU with all neurons in the layers that are `dense`. Of psi, the first token and the step
    /// are not looked at: each slot has its own. Returns the time of the FFNs, if steps run launch by launch.
    fn step(&mut self, psi: PsiAt, slots: &[Slot], dense: &[bool]) -> Result<Duration, Error>;

    /// The logits `[n, V]` of the last step, which was of n tokens.
    fn logits(&self, n: usize) -> Result<&[f32], Error>;

    /// For each layer, what the last step counted: pairs of a token and a neuron that was active for it, and neurons active for any token.
    fn totals(&self) -> Result<&[u32], Error>;

    /// Appends a prompt; writes the logits after its last token to `logits` if that is wanted.
    fn prompt(&mut self, prompt: Prompt, logits: &mut [f32]) -> Result<(), Error>;

    /// Appends a prompt all of whose rows are wanted, and adds the logarithms of the targets' probabilities after its tokens.
    fn log_probs(&mut self, prompt: Prompt, targets: &[u32], log_probs: &mut Vec<f64>) -> Result<(), Error>;
}

/// A model with weights of W and caches of E.
pub(super) struct Model<W, E> {
    pub config: Config,
    pub heads: Heads,
    pub weights: Weights<W>,
    pub caches: Caches<E>,
    pub step: Step,
}

impl<W: Element, E: Element> Model<W, E> {
    fn new(
        device: &Device,
        config: &Config,
        (context, capacity): (usize, usize),
        source: &impl Parameters,
    ) -> Result<Model<W, E>, Error> {
        let Config { n_heads, n_kv_heads, head_dim, n_layers, .. } = *config;
        let heads = Heads { n_heads, n_kv_heads, head_dim };
        Ok(Model {
            weights: Weights::upload(device, config, context, source)?,
            caches: Caches::new(device, n_layers, heads, capacity)?,
            step: Step::new(device, config, heads, capacity)?,
            config: config.clone(),
            heads,
        })
    }
}

/// A model in the formats that the options name, with room for `context` positions in the RoPE table and `capacity` in the one cache.
pub(super) fn open(
    device: &Device,
    config: &Config,
    options: &EngineOptions,
    (context, capacity): (usize, usize),
    source: &impl Parameters,
) -> Result<Box<dyn Passes>, Error> {
    let room = (context, capacity);
    Ok(match (options.weights, options.kv) {
        (WeightFormat::F32, KvFormat::F32) => Box::new(Model::<f32, f32>::new(device, config, room, source)?),
        (WeightFormat::F32, KvFormat::Bf16) => Box::new(Model::<f32, bf16>::new(device, config, room, source)?),
        (WeightFormat::Bf16, KvFormat::F32) => Box::new(Model::<bf16, f32>::new(device, config, room, source)?),
        (WeightFormat::Bf16, KvFormat::Bf16) => Box::new(Model::<bf16, bf16>::new(device, config, room, source)?),
        _ => unreachable!("the options were validated: weights on a GPU are f32 or bf16"),
    })
}

impl<W: Element, E: Element> Passes for Model<W, E> {
    fn caches(&self) -> (usize, usize) {
        (self.caches.count(), self.caches.capacity())
    }

    fn reshape(&mut self, caches: usize, capacity: usize, held: &[usize]) -> Result<(), Error> {
        self.step.forget_graphs(); // which keep the memory that they read
        self.step.reserve(self.heads, self.caches.largest().max(capacity))?;
        Ok(self.caches.reshape(caches, capacity, held)?)
    }

    fn copy_first(&mut self, to: usize) -> Result<(), Error> {
        Ok(self.caches.copy_first(to)?)
    }

    fn forget_graphs(&mut self) {
        self.step.forget_graphs();
    }

    fn set_graphs(&mut self, on: bool) {
        self.step.graphs = on;
    }

    fn step(&mut self, psi: PsiAt, slots: &[Slot], dense: &[bool]) -> Result<Duration, Error> {
        let Model { config, heads, weights, caches, step } = self;
        step.run((config, *heads), weights, caches, psi, slots, dense)
    }

    fn logits(&self, n: usize) -> Result<&[f32], Error> {
        self.step.logits(n)
    }

    fn totals(&self) -> Result<&[u32], Error> {
        self.step.totals()
    }

    fn prompt(&mut self, prompt: Prompt, logits: &mut [f32]) -> Result<(), Error> {
        self.append_prompt(prompt, logits)
    }

    fn log_probs(&mut self, prompt: Prompt, targets: &[u32], log_probs: &mut Vec<f64>) -> Result<(), Error> {
        self.score_prompt(prompt, targets, log_probs)
    }
}
