//! A token, or up to eight of several sequences, through the model: recorded once as a graph, and launched again for each step.
//!
//! What changes from step to step lies in device memory: tokens, positions, lengths, numbers of caches, samples, and which layers run dense. It is one
//! block of integers, which is copied to the device before the graph; the logits and the counts of active neurons are copied back after it.

use super::cache::Caches;
use super::passes::Slot;
use super::weights::{Element, Weights};
use crate::Error;
use cuda::ops::attention_cached::{AttentionScratch, Heads, Places, attention_cached_batch};
use cuda::ops::embedding::embedding;
use cuda::ops::ffn::{FfnScratch, Neurons, Tokens, ffn_batch};
use cuda::ops::gemv::{MAX_TOKENS, gemv_batch, gemv_each};
use cuda::ops::kv_append::{Slots, kv_append};
use cuda::ops::rms_norm::rms_norm;
use cuda::{Buffer, Device, Event, Graph, Pinned, Slice};
use kernels::Beta;
use model::{Config, Psi, PsiAt, attention_scale};
use std::time::Duration;

/// Where in the block of integers what lies; a number for each slot, but for the last, which has one for each layer.
const TOKENS: usize = 0;
const POSITIONS: usize = MAX_TOKENS;
const LENGTHS: usize = 2 * MAX_TOKENS;
const CACHES: usize = 3 * MAX_TOKENS;
const SAMPLES: usize = 4 * MAX_TOKENS;
const DENSE: usize = 5 * MAX_TOKENS;

/// The memory of steps, and the graphs that use it.
pub(super) struct Step {
    device: Device,
    /// Whether steps run as graphs.
    pub graphs: bool,
    /// Of 1, 2, .. tokens, once there was such a step.
    recorded: [Option<Graph>; MAX_TOKENS],
    integers: (Pinned<u32>, Buffer<u32>),
    work: Work,
    /// Pinned, of as many rows as there were tokens.
    logits: [Option<Pinned<f32>>; MAX_TOKENS],
    totals: Pinned<u32>,
}

/// Working memory of the launches, for [`MAX_TOKENS`] rows.
struct Work {
    /// The residual stream, `[N, C]`.
    x: Buffer<f32>,
    /// `[N, C]`.
    normed: Buffer<f32>,
    /// `[N]`.
    inv_rms: Buffer<f32>,
    /// `[N, H D]`.
    q: Buffer<f32>,
    /// `[N, K D]`.
    k: Buffer<f32>,
    v: Buffer<f32>,
    /// What attention gives, `[N, H D]`.
    attended: Buffer<f32>,
    /// `[N, H]`, which only a backward would read.
    lse: Buffer<f32>,
    attention: AttentionScratch,
    ffn: FfnScratch,
    /// `[N, V]`.
    logits: Buffer<f32>,
    /// `[n_layers, 2]`.
    totals: Buffer<u32>,
}

impl Step {
    pub fn new(device: &Device, config: &Config, heads: Heads, capacity: usize) -> Result<Step, Error> {
        const N: usize = MAX_TOKENS;
        let rows = |width: usize| Buffer::stale(device, N * width);
        let integers = DENSE + config.n_layers;
        Ok(Step {
            device: device.clone(),
            graphs: true,
            recorded: [const { None }; N],
            integers: (Pinned::zeros(device, integers)?, Buffer::stale(device, integers)?),
            work: Work {
                x: rows(config.d_model)?,
                normed: rows(config.d_model)?,
                inv_rms: rows(1)?,
                q: rows(config.q_width())?,
                k: rows(config.kv_width())?,
                v: rows(config.kv_width())?,
                attended: rows(config.q_width())?,
                lse: rows(config.n_heads)?,
                attention: AttentionScratch::for_tokens(device, heads, capacity, N)?,
                ffn: FfnScratch::for_tokens(device, config.d_ff, config.d_model, N)?,
                logits: rows(config.vocab_size)?,
                totals: Buffer::stale(device, 2 * config.n_layers)?,
            },
            logits: [const { None }; N],
            totals: Pinned::zeros(device, 2 * config.n_layers)?,
        })
    }

    /// Makes room for caches of this capacity.
    pub fn reserve(&mut self, heads: Heads, capacity: usize) -> Result<(), Error> {
        self.work.attention = AttentionScratch::for_tokens(&self.device, heads, capacity, MAX_TOKENS)?;
        Ok(())
    }

    pub fn forget_graphs(&mut self) {
        self.recorded = [const { None }; MAX_TOKENS];
    }

    /// See [`Passes::step`](super::passes::Passes::step).
    pub fn run<W: Element, E: Element>(
        &mut self,
        model: (&Config, Heads),
        weights: &Weights<W>,
        caches: &mut Caches<E>,
        psi: PsiAt,
        slots: &[Slot],
        dense: &[bool],
    ) -> Result<Duration, Error> {
        let Step { device, graphs, recorded, integers: (host, integers), work, logits, totals } = self;
        let n = slots.len();
        let to = host.as_mut_slice()?;
        for (i, slot) in slots.iter().enumerate() {
            let position = u32::try_from(slot.position).expect("a position below the context");
            to[TOKENS + i] = slot.token;
            (to[POSITIONS + i], to[LENGTHS + i]) = (position, position + 1);
            (to[CACHES + i], to[SAMPLES + i]) = (slot.cache as u32, slot.sample);
        }
        to[DENSE..].iter_mut().zip(dense).for_each(|(to, &dense)| *to = dense.into());
        host.copy_to(integers.as_mut())?;

        let pinned = match &mut logits[n - 1] {
            Some(pinned) => pinned,
            none => none.insert(Pinned::zeros(device, n * model.0.vocab_size)?),
        };
        let psi = PsiAt { first_token: 0, step: 0, ..psi };
        let integers = Integers { all: integers.as_slice(), n };
        let mut launches = |timer: Option<&mut Timer>| work.launches(model, weights, caches, psi, integers, timer);
        let mut timer = Timer { device, ffns: Vec::new() };
        match &recorded[n - 1] {
            _ if !*graphs => launches(Some(&mut timer))?,
            Some(graph) => graph.launch()?,
            // Runs it once too, which is this step.
            None => recorded[n - 1] = Some(device.graph(|| launches(None))?),
        }
        pinned.copy_from(work.logits.as_slice().part(0..n * model.0.vocab_size))?;
        totals.copy_from(work.totals.as_slice())?;
        totals.as_slice()?; // waits for all
        timer.time()
    }

    /// See [`Passes::logits`](super::passes::Passes::logits).
    pub fn logits(&self, n: usize) -> Result<&[f32], Error> {
        Ok(self.logits[n - 1].as_ref().expect("a step of so many tokens").as_slice()?)
    }

    /// See [`Passes::totals`](super::passes::Passes::totals).
    pub fn totals(&self) -> Result<&[u32], Error> {
        Ok(self.totals.as_slice()?)
    }

    /// The working memory of one token's FFN.
    pub fn ffn_scratch(&mut self) -> &mut FfnScratch {
        &mut self.work.ffn
    }
}

/// Events around the FFNs of a step that runs launch by launch.
struct Timer<'a> {
    device: &'a Device,
    ffns: Vec<[Event; 2]>,
}

impl Timer<'_> {
    fn time(&self) -> Result<Duration, Error> {
        let mut milliseconds = 0.0;
        for [start, end] in &self.ffns {
            milliseconds += f64::from(end.milliseconds_since(start)?);
        }
        Ok(Duration::from_secs_f64(milliseconds / 1e3))
    }
}

/// The block of integers, of which the first n slots count.
#[derive(Clone, Copy)]
struct Integers<'a> {
    all: Slice<'a, u32>,
    n: usize,
}

impl<'a> Integers<'a> {
    fn at(self, first: usize) -> Slice<'a, u32> {
        self.all.part(first..first + self.n)
    }
}

impl Work {
    /// The launches of a step: ten a layer, and three. No argument changes from step to step.
    fn launches<W: Element, E: Element>(
        &mut self,
        (config, heads): (&Config, Heads),
        weights: &Weights<W>,
        caches: &mut Caches<E>,
        psi: PsiAt,
        integers: Integers,
        mut timer: Option<&mut Timer>,
    ) -> Result<(), cuda::Error> {
        let Work { x, normed, inv_rms, q, k, v, attended, lse, attention, ffn, logits, totals } = self;
        let (n, c, eps) = (integers.n, config.d_model, config.norm_eps);
        let (q_len, kv_len) = (n * config.q_width(), n * config.kv_width());
        let positions = integers.at(POSITIONS);
        let slots = Slots { positions, cache: integers.at(CACHES) };
        let places = Places { kv_len: integers.at(LENGTHS), cache: integers.at(CACHES) };
        let tokens = Tokens { positions, samples: integers.at(SAMPLES) };
        let scale = attention_scale(config.head_dim);

        embedding(weights.embed_tokens.as_slice(), integers.at(TOKENS), c, x.as_mut().part(0..n * c))?;
        for (layer, w) in weights.layers.iter().enumerate() {
            let norm = |x: &Buffer<f32>, gain: &Buffer<f32>, normed: &mut Buffer<f32>, inv_rms: &mut Buffer<f32>| {
                let (y, inv_rms) = (normed.as_mut().part(0..n * c), inv_rms.as_mut().part(0..n));
                rms_norm(x.as_slice().part(0..n * c), gain.as_slice(), eps, y, inv_rms)
            };
            norm(x, &w.input_layernorm, normed, inv_rms)?;
            let z = normed.as_slice().part(0..n * c);
            let projections = [&w.q_proj, &w.k_proj, &w.v_proj].map(Buffer::as_slice);
            let mut qkv = [q.as_mut().part(0..q_len), k.as_mut().part(0..kv_len), v.as_mut().part(0..kv_len)];
            gemv_each(projections, z, n, qkv.each_mut().map(|part| part.reborrow()))?;
            let [q, k, v] = qkv;
            let (cos, sin, cache) = (weights.cos.as_slice(), weights.sin.as_slice(), caches.layer_mut(layer));
            let mut q = q;
            kv_append(heads, slots, cos, sin, q.reborrow(), k.as_slice(), v.as_slice(), cache)?;
            let (out, lse) = (attended.as_mut().part(0..q_len), lse.as_mut().part(0..n * config.n_heads));
            attention_cached_batch(heads, scale, q.as_slice(), caches.layer(layer), places, attention, out, lse)?;
            let attended = attended.as_slice().part(0..q_len);
            gemv_batch(w.o_proj.as_slice(), attended, n, Beta::One, x.as_mut().part(0..n * c))?;

            norm(x, &w.post_attention_layernorm, normed, inv_rms)?;
            let start = timer.as_ref().map(|timer| timer.device.record()).transpose()?;
            let neurons = match psi.psi {
                Psi::Relu => Neurons::active(integers.all.part(DENSE + layer..DENSE + layer + 1)),
                _ => Neurons::all(psi.layer(layer)),
            };
            let (z, y) = (normed.as_slice().part(0..n * c), x.as_mut().part(0..n * c));
            let totals = totals.as_mut().part(2 * layer..2 * layer + 2);
            ffn_batch(w.ffn(), neurons, tokens, z, ffn, Beta::One, y, totals)?;
            if let (Some(timer), Some(start)) = (&mut timer, start) {
                let end = timer.device.record()?;
                timer.ffns.push([start, end]);
            }
        }
        let (y, inv_rms) = (normed.as_mut().part(0..n * c), inv_rms.as_mut().part(0..n));
        rms_norm(x.as_slice().part(0..n * c), weights.norm.as_slice(), eps, y, inv_rms)?;
        let logits = logits.as_mut().part(0..n * config.vocab_size);
        gemv_batch(weights.lm_head(), normed.as_slice().part(0..n * c), n, Beta::Zero, logits)
    }
}
