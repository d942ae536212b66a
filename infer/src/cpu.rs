//! The engine on the CPU: the formulas of the model, one after the other, on slices.
//!
//! Several tokens at once run on gemm, a single one on gemv and the FFN of one token, dense or sparse; nothing else differs. Tokens of
//! several sequences are in [`batch`].

mod batch;
mod pass;

use crate::engine::{check_tokens, check_vocab};
use crate::kv_cache::KvCache;
use crate::recent::{Recent, prompt_break_even};
use crate::resident::{self, Opened};
use crate::rows::FromTensors;
use crate::sampler::best;
use crate::weights::DecodeWeights;
use crate::{
    Engine, EngineOptions, Error, FfnMode, LayerDensity, Prefill, PromptFfn, Residence, Resident, WeightFormat,
};
use batch::Batch;
use kernels::rms_norm::rms_norm;
use kernels::sparse::{Filtered, GateFilter};
use kernels::{Beta, Team};
use model::{Config, Psi, PsiAt, Weights};
use pass::{Activations, Pass};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Tokens that a prompt is cut into. A gemm of 512 rows uses each packed weight 512 times; the three hidden buffers then take 48 MiB at
/// d_ff = 8192, whatever the length of the prompt.
const PREFILL_CHUNK: usize = 512;

/// Logits that [`Engine::log_probs`] holds at once, 32 MiB: every product packs all of lm_head, which many rows must pay for. 65
/// rows at a vocabulary of 128256; of bytes, a whole chunk.
const ROW_LOGITS: usize = 8 << 20;

/// A model on the CPU, with the cache of one sequence. Matrices are kept as [`WeightFormat`] says, all else
/// is f32.
///
/// Memory: one copy of the weights (tied embeddings once), the cache, and the activations of 512 tokens.
pub struct CpuEngine {
    config: Config,
    options: EngineOptions,
    team: Arc<Team>,
    weights: DecodeWeights,
    residence: Residence,
    cache: KvCache,
    activations: Activations,
    logits: Vec<f32>,
    /// Logits of several positions, while [`log_probs`](Engine::log_probs) needs them.
    row_logits: Vec<f32>,
    density: Vec<LayerDensity>,
    /// Of prompts that may run sparse.
    prompt_density: Vec<LayerDensity>,
    /// What [`FfnMode::Auto`] and [`FfnMode::AutoFiltered`] go by, for each layer.
    recent: Vec<Recent>,
    ffn_time: Duration,
    sample: u32,
    batch: Batch,
}

impl CpuEngine {
    /// Converts the weights to decode layout. Runs on the [`Team::current`] of this call from then on.
    ///
    /// Errors: those of [`EngineOptions::validate`]; [`Error::Device`] if a weight cannot be read from its device.
    pub fn new(weights: &Weights, options: EngineOptions) -> Result<CpuEngine, Error> {
        let context = options.validate(weights.config())?;
        let tensors = FromTensors(|index: usize| Ok(weights.tensors()[index].clone()));
        let layout = DecodeWeights::new(weights.config(), &options, context, &tensors)?;
        Ok(CpuEngine::of(weights.config().clone(), options, context, layout, Residence::Converted))
    }

    /// The model in the Hugging Face folder `dir`, whose weights are mapped from disk in decode layout if they were kept there, and else
    /// converted one at a time, and then kept if `resident` says so; and so are the filters, if `options` ask for them. `note` hears, in
    /// words, what was written, and what was there and not used.
    ///
    /// Errors: those of [`EngineOptions::validate`]; [`Error::Checkpoint`].
    pub fn open(
        dir: &Path,
        options: EngineOptions,
        resident: Resident,
        note: &mut dyn FnMut(String),
    ) -> Result<CpuEngine, Error> {
        let Opened { folder, weights, residence } = resident::open(dir, &options, resident, note)?;
        let config = folder.config().clone();
        let context = options.validate(&config)?;
        Ok(CpuEngine::of(config, options, context, weights, residence))
    }

    /// Of weights in the layout of these options, which fit the config.
    pub(crate) fn of(
        config: Config,
        options: EngineOptions,
        context: usize,
        weights: DecodeWeights,
        residence: Residence,
    ) -> CpuEngine {
        let mut engine = CpuEngine {
            team: Team::current(),
            weights,
            residence,
            cache: KvCache::new(&config, context, &options),
            activations: Activations::default(),
            logits: vec![0.0; config.vocab_size],
            row_logits: Vec::new(),
            density: vec![LayerDensity::default(); config.n_layers],
            prompt_density: vec![LayerDensity::default(); config.n_layers],
            recent: vec![Recent::default(); config.n_layers],
            ffn_time: Duration::ZERO,
            sample: 0,
            batch: Batch::default(),
            config,
            options,
        };
        engine.make_filters();
        engine
    }

    /// Where the weights lie.
    pub fn residence(&self) -> Residence {
        self.residence
    }

    /// With [`WeightFormat::Bf16Packed`], how many groups of matrices are packed, and how many there are:
    /// the others are kept as bf16. None with other formats.
    pub fn packed_groups(&self) -> Option<(usize, usize)> {
        (self.options.weights == WeightFormat::Bf16Packed).then(|| self.weights.packed_groups())
    }

    /// As [`density`](Engine::density), of several tokens at once: how many neurons were active for them since the last reset, where they
    /// were counted, which is under RELU and unless [`PromptFfn::Dense`] was asked for. A step is one of 512 tokens at most.
    pub fn prompt_density(&self) -> &[LayerDensity] {
        &self.prompt_density
    }

    /// The filters of the gates, if they are asked for and not there yet.
    fn make_filters(&mut self) {
        if self.options.ffn.has_filter() {
            self.weights.make_filters(&self.team);
        }
    }

    /// Bytes of the filters of [`FfnMode::Filtered`] and [`FfnMode::AutoFiltered`], which come on top of the weights:
    /// those of [`filter_bytes`](crate::filter_bytes()), or 0 if they were never asked for.
    pub fn filter_bytes(&self) -> usize {
        self.weights.filters().map(GateFilter::bytes).sum()
    }

    /// Computes the FFN of a decoded token in this way from now on: to compare ways on one copy of the weights.
    ///
    /// Errors: [`Error::SparseNeedsRelu`]; the engine is then as it was.
    pub fn set_ffn(&mut self, ffn: FfnMode) -> Result<(), Error> {
        let options = EngineOptions { ffn, ..self.options.clone() };
        options.validate(&self.config)?;
        self.options = options;
        self.make_filters();
        Ok(())
    }

    /// Multiplies several tokens with the weights in this way from now on, and computes their FFNs in that one.
    ///
    /// Errors: [`Error::Option`] if it does not [fit](Prefill::fits) the weights; the engine is then as it was.
    pub fn set_prefill(&mut self, prefill: Prefill, prompt_ffn: PromptFfn) -> Result<(), Error> {
        let options = EngineOptions { prefill, prompt_ffn, ..self.options.clone() };
        options.validate(&self.config)?;
        self.options = options;
        Ok(())
    }

    fn check(&self, cache: &KvCache, tokens: &[u32]) -> Result<(), Error> {
        check_tokens(tokens, cache.len(), cache.context(), &self.config)
    }

    /// Appends tokens that passed [`check`](CpuEngine::check), [`PREFILL_CHUNK`] at most. Leaves the residual stream of the rows asked for,
    /// after the last block, in the activations. `counted`: whether density and FFN time count them.
    fn append(&mut self, tokens: &[u32], rows: Rows, counted: bool) {
        let CpuEngine {
            config,
            options,
            team,
            weights,
            cache,
            activations,
            density,
            prompt_density,
            recent,
            ffn_time,
            ..
        } = self;
        let (n, position) = (tokens.len(), cache.len());
        cache.reserve(n);
        activations.resize(config, n);
        weights.embed_tokens.embedding(team, tokens, &mut activations.x);
        let psi = PsiAt { psi: options.psi, seed: options.seed, first_token: position as u32, step: self.sample };
        let (cos, sin) = (&weights.cos, &weights.sin);
        let sparse_below = match options.prompt_ffn {
            _ if options.psi != Psi::Relu => None,
            PromptFfn::Dense => None,
            PromptFfn::Sparse => Some(f32::INFINITY),
            PromptFfn::Auto => Some(prompt_break_even(options.prefill)),
        };
        let mut pass = Pass { team, config, prefill: options.prefill, sparse_below, cos, sin, psi, position, n };
        for (layer, weights) in weights.layers.iter().enumerate() {
            // A single token's queries come with its keys and values.
            let has_queries = pass.n == 1;
            pass.keys_and_values(layer, weights, cache, activations);
            if layer + 1 == config.n_layers {
                // Nothing reads what the last block makes of the other rows.
                match rows {
                    Rows::None => break,
                    Rows::Last => pass = pass.of_last(activations),
                    Rows::All => {}
                }
            }
            if !has_queries {
                pass.project(&activations.normed, &weights.q_proj, &mut activations.q[0]);
            }
            pass.attention(layer, weights, cache, activations);
            if pass.n == 1 {
                let way = if n > 1 { Way::Dense } else { Way::of(options, recent[layer], 1) };
                let (Filtered { active, survivors }, time) = pass.ffn_of_one(layer, weights, way, activations);
                if n == 1 {
                    let share = |neurons: usize| neurons as f32 / config.d_ff as f32;
                    recent[layer].observe(share(active), (way == Way::Filtered).then_some(share(survivors)));
                }
                if counted {
                    density[layer].add(LayerDensity {
                        active: active as u64,
                        neurons: config.d_ff as u64,
                        tokens: 1,
                        steps: 1,
                        union: active as u64,
                        sparse_tokens: (way != Way::Dense) as u64,
                        gate_rows: survivors as u64,
                    });
                    *ffn_time += time;
                }
            } else {
                let counts = pass.ffn(layer, weights, activations);
                prompt_density[layer].add(counts);
            }
        }
        cache.advance(n);
    }

    /// The logits of the last token appended.
    fn last_logits(&mut self) -> &[f32] {
        let CpuEngine { config, team, weights, activations: a, logits, .. } = self;
        let c = config.d_model;
        let last = &a.x[a.x.len() - c..];
        rms_norm(team, last, &weights.norm, config.norm_eps, &mut a.normed[..c], &mut a.inv_rms[..1]);
        weights.lm_head().gemv(team, &a.normed[..c], logits);
        logits
    }

    /// `ln P(target)` after each of the tokens that were appended from `position` on.
    fn log_probs_of_appended(
        &mut self,
        position: usize,
        targets: &[u32],
        log_probs: &mut Vec<f64>,
    ) -> Result<(), Error> {
        let CpuEngine { config, options, team, weights, activations: a, row_logits, .. } = self;
        let (c, v) = (config.d_model, config.vocab_size);
        rms_norm(team, &a.x, &weights.norm, config.norm_eps, &mut a.normed, &mut a.inv_rms);
        let most_rows = (ROW_LOGITS / v).clamp(1, PREFILL_CHUNK);
        for (i, (targets, normed)) in targets.chunks(most_rows).zip(a.normed.chunks(most_rows * c)).enumerate() {
            let rows = targets.len();
            row_logits.resize(rows * v, 0.0);
            weights.lm_head().multiply_t(team, options.prefill, normed, Beta::Zero, row_logits);
            let first = log_probs.len();
            log_probs.resize(first + rows, 0.0);
            team.run_chunks_mut(&mut log_probs[first..], 1, |row, log_prob| {
                log_prob[0] = log_softmax_at(&row_logits[row * v..][..v], targets[row] as usize);
            });
            if let Some(row) = log_probs[first..].iter().position(|log_prob| log_prob.is_nan()) {
                let position = position + i * most_rows + row + 1;
                best(&row_logits[row * v..][..v], position)?;
            }
        }
        Ok(())
    }
}

impl Engine for CpuEngine {
    fn config(&self) -> &Config {
        &self.config
    }

    fn options(&self) -> &EngineOptions {
        &self.options
    }

    fn position(&self) -> usize {
        self.cache.len()
    }

    fn context(&self) -> usize {
        self.cache.context()
    }

    fn rewind(&mut self, len: usize, sample: u32) {
        self.cache.truncate(len);
        self.density.fill(LayerDensity::default());
        self.prompt_density.fill(LayerDensity::default());
        self.recent.fill(Recent::default());
        self.ffn_time = Duration::ZERO;
        self.sample = sample;
    }

    fn set_activation(&mut self, psi: Psi, ffn: FfnMode) -> Result<(), Error> {
        let options = EngineOptions { psi, ffn, ..self.options.clone() };
        options.validate(&self.config)?;
        self.options = options;
        self.make_filters();
        self.reset(0);
        self.batch.drop_branches();
        Ok(())
    }

    fn truncate(&mut self, len: usize) {
        self.cache.truncate(len);
    }

    fn prefill(&mut self, tokens: &[u32]) -> Result<&[f32], Error> {
        if tokens.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        self.check(&self.cache, tokens)?;
        let last = (tokens.len() - 1) / PREFILL_CHUNK;
        for (i, chunk) in tokens.chunks(PREFILL_CHUNK).enumerate() {
            self.append(chunk, if i == last { Rows::Last } else { Rows::None }, false);
        }
        Ok(self.last_logits())
    }

    fn decode(&mut self, token: u32) -> Result<&[f32], Error> {
        self.check(&self.cache, &[token])?;
        self.append(&[token], Rows::Last, true);
        Ok(self.last_logits())
    }

    fn fork(&mut self, branch: usize) -> Result<(), Error> {
        self.fork_to(branch);
        Ok(())
    }

    fn decode_batch(&mut self, tokens: &[(usize, u32)]) -> Result<&[f32], Error> {
        self.check_batch(tokens)?;
        Ok(self.append_batch(tokens))
    }

    fn log_probs(&mut self, tokens: &[u32], targets: &[u32], log_probs: &mut Vec<f64>) -> Result<(), Error> {
        let (n, m) = (tokens.len(), targets.len());
        assert_eq!(n, m, "CpuEngine::log_probs: {n} tokens and {m} targets");
        self.check(&self.cache, tokens)?;
        check_vocab(targets, self.cache.len() + 1, &self.config)?;
        let (before, scored) = (self.cache.len(), log_probs.len());
        for (tokens, targets) in tokens.chunks(PREFILL_CHUNK).zip(targets.chunks(PREFILL_CHUNK)) {
            let position = self.cache.len();
            self.append(tokens, Rows::All, false);
            self.log_probs_of_appended(position, targets, log_probs).inspect_err(|_| {
                self.cache.truncate(before);
                log_probs.truncate(scored);
            })?;
        }
        Ok(())
    }

    fn density(&self) -> &[LayerDensity] {
        &self.density
    }

    fn ffn_time(&self) -> Duration {
        self.ffn_time
    }
}

/// Which of the appended tokens the last block is wanted for. Keys and values are made for all.
#[derive(Clone, Copy)]
enum Rows {
    None,
    Last,
    All,
}

/// How the FFN of one token is computed: an [`FfnMode`] without the choice.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Dense,
    Sparse,
    Filtered,
}

impl Way {
    /// For so many tokens of a layer whose shares were `recent`.
    fn of(options: &EngineOptions, recent: Recent, tokens: usize) -> Way {
        let sparse_pays = options.psi == Psi::Relu && recent.sparse_pays(options.weights, tokens);
        match options.ffn {
            FfnMode::Sparse => Way::Sparse,
            FfnMode::Filtered => Way::Filtered,
            FfnMode::AutoFiltered if sparse_pays && recent.filter_pays(options.weights) => Way::Filtered,
            FfnMode::Auto | FfnMode::AutoFiltered if sparse_pays => Way::Sparse,
            FfnMode::Dense | FfnMode::Auto | FfnMode::AutoFiltered => Way::Dense,
        }
    }
}

/// `logits[i] - ln sum_j exp(logits[j])`, in f64; NaN if the logits make no distribution.
pub(crate) fn log_softmax_at(logits: &[f32], i: usize) -> f64 {
    let max = logits.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x)) as f64;
    let sum: f64 = logits.iter().map(|&x| (x as f64 - max).exp()).sum();
    logits[i] as f64 - max - sum.ln()
}
