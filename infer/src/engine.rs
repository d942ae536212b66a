//! What a device offers to generation.

use crate::Error;
use half::bf16;
use kernels::RowFormat;
use kernels::packed::PackedBf16;
use kernels::quant::{Q4, Q8};
use model::{Config, Psi};
use std::time::Duration;

/// A model on a device, with the key-value cache of one sequence, and of branches of it.
///
/// Positions count from 0. A call that fails leaves the engine as it was, unless the device itself has failed. The same tokens after the same [`reset`](Engine::reset)
/// give the same logits, bit for bit, for any number of threads, and on every GPU of one generation; how the tokens are split between `prefill` and `decode` calls
/// may change the last bits (another order of summation), but never a draw of the stochastic activation.
pub trait Engine {
    /// The model's sizes.
    fn config(&self) -> &Config;

    /// What the model runs with.
    fn options(&self) -> &EngineOptions;

    /// Positions in the cache: the next token's position.
    fn position(&self) -> usize;

    /// The most positions that the cache may hold.
    fn context(&self) -> usize;

    /// Forgets all positions and counts, and begins sample number `sample`: the last word of the counter of every draw.
    /// Without effect on the logits unless the activation is stochastic.
    fn reset(&mut self, sample: u32) {
        self.rewind(0, sample);
    }

    /// The same, but for the positions before `len`, which stay as they are: under a stochastic activation they are those of
    /// the former sample.
    fn rewind(&mut self, len: usize, sample: u32);

    /// Runs with `psi` and `ffn` from now on, and forgets all positions, counts and the sample's number.
    ///
    /// Errors: those of [`EngineOptions::validate`]; the engine is then as it was.
    fn set_activation(&mut self, psi: Psi, ffn: FfnMode) -> Result<(), Error>;

    /// Forgets the positions from `len` on, if there are any: the next token goes to position `len`.
    fn truncate(&mut self, len: usize);

    /// Appends `tokens`; returns the logits `[V]` after the last one.
    ///
    /// Errors: [`Error::EmptyPrompt`], [`Error::Context`], [`Error::Token`].
    fn prefill(&mut self, tokens: &[u32]) -> Result<&[f32], Error>;

    /// Appends one token; returns the logits `[V]` after it. Allocates nothing while the cache has room.
    ///
    /// Errors: [`Error::Context`], [`Error::Token`].
    fn decode(&mut self, token: u32) -> Result<&[f32], Error>;

    /// Makes branch number `branch` a copy of the positions held, with the sample's number, whatever it was before. Branches live beside the
    /// engine's own sequence: `reset`, `truncate` and `decode` leave them as they are, [`set_activation`](Engine::set_activation) drops
    /// them. They may have different prompts and lengths.
    ///
    /// Errors: [`Error::Device`] if a GPU has no memory for it; the engine is then as it was.
    fn fork(&mut self, branch: usize) -> Result<(), Error>;

    /// Appends a token to each of several branches, given as (branch, token); returns the logits `[B, V]` after them, a row for each in this
    /// order, with the bits that [`decode`](Engine::decode) would give for its positions and sample: whatever the others are, and how many.
    /// Each weight is read once for all, on a GPU once for each eight of them. Allocates nothing once such a batch was there, while the caches
    /// have room.
    ///
    /// Errors: [`Error::Context`], [`Error::Token`]; then no branch has changed. Panics if there is no token, a branch was never forked, or
    /// one is named twice.
    fn decode_batch(&mut self, tokens: &[(usize, u32)]) -> Result<&[f32], Error>;

    /// Appends `tokens` and adds to `log_probs`, for each of them, `ln P(targets[i])` given all positions up to its own: the
    /// logits' log-softmax at temperature 1. One pass for all, as in [`prefill`](Engine::prefill); the logits exist for a few
    /// positions at a time.
    ///
    /// Errors: [`Error::Context`], [`Error::Token`] (in which a target stands at the position after its token's). Panics if
    /// there are not as many targets as tokens.
    fn log_probs(&mut self, tokens: &[u32], targets: &[u32], log_probs: &mut Vec<f64>) -> Result<(), Error>;

    /// For each layer, how many neurons were active in the [`decode`](Engine::decode) and [`decode_batch`](Engine::decode_batch) calls since
    /// the last reset.
    fn density(&self) -> &[LayerDensity];

    /// Time spent in the FFNs of the [`decode`](Engine::decode) and [`decode_batch`](Engine::decode_batch) calls since the last reset, all
    /// layers together: from the normalised x to y. The norm before and the addition to the residual stream after are not in it.
    ///
    /// Zero on a GPU that runs a step as one graph, in which nothing can be timed; see [`CudaEngine::set_graphs`](crate::CudaEngine::set_graphs),
    /// where the addition is in it.
    fn ffn_time(&self) -> Duration;
}

/// Whether a sequence of so many positions, of at most `context`, has room for `tokens`, and the vocabulary has them all.
pub(crate) fn check_tokens(tokens: &[u32], position: usize, context: usize, config: &Config) -> Result<(), Error> {
    if tokens.len() > context - position {
        return Err(Error::Context { tokens: tokens.len(), position, context });
    }
    check_vocab(tokens, position, config)
}

/// Whether the vocabulary has all `tokens`, the first of which is for `position`.
pub(crate) fn check_vocab(tokens: &[u32], position: usize, config: &Config) -> Result<(), Error> {
    let vocab_size = config.vocab_size;
    match tokens.iter().position(|&token| token as usize >= vocab_size) {
        Some(i) => Err(Error::Token { token: tokens[i], position: position + i, vocab_size }),
        None => Ok(()),
    }
}

/// How a model is run.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineOptions {
    /// The activation at inference. [`Psi::Stochastic`] draws by (seed, sample, layer, position, channel): a generation can
    /// be replayed.
    pub psi: Psi,
    /// How the FFN of a decoded token is computed.
    pub ffn: FfnMode,
    /// How the engine keeps the weights.
    pub weights: WeightFormat,
    /// What a decoded token's activations are multiplied with the weights as.
    pub activations: ActivationFormat,
    /// How several tokens at once are multiplied with the weights.
    pub prefill: Prefill,
    /// How the FFNs of a prompt's tokens are computed.
    pub prompt_ffn: PromptFfn,
    /// The seed of the draws.
    pub seed: u64,
    /// Positions of the cache, `1 ..= max_seq_len`; `None` is `max_seq_len`.
    pub context: Option<usize>,
    /// When the cache takes its memory.
    pub cache: CacheMemory,
    /// How the cache keeps keys and values.
    pub kv: KvFormat,
}

impl EngineOptions {
    /// A model that runs with `psi`: [`FfnMode::of`] it, f32 weights, exact activations and prefill, dense prompts, seed 0, the model's whole context, a growing
    /// cache in f32.
    pub fn new(psi: Psi) -> EngineOptions {
        EngineOptions {
            psi,
            ffn: FfnMode::of(psi),
            weights: WeightFormat::F32,
            activations: ActivationFormat::Exact,
            prefill: Prefill::Exact,
            prompt_ffn: PromptFfn::Dense,
            seed: 0,
            context: None,
            cache: CacheMemory::Growing,
            kv: KvFormat::F32,
        }
    }

    /// The context for a model of `config`, if the options fit it.
    ///
    /// Errors: [`Error::SparseNeedsRelu`]; [`Error::Option`] for `context`, for the probability `p`, for
    /// `activations`, for `prefill`, and for `ffn` if the weights have no filter.
    pub fn validate(&self, config: &Config) -> Result<usize, Error> {
        let fail = |field, value: String, expected: String| Err(Error::Option { field, value, expected });
        if let Psi::Stochastic { p, .. } = self.psi
            && !(0.0..=1.0).contains(&p)
        {
            return fail("p", p.to_string(), "a probability, 0 to 1".to_string());
        }
        if matches!(self.ffn, FfnMode::Sparse | FfnMode::Filtered | FfnMode::AutoFiltered) && self.psi != Psi::Relu {
            return Err(Error::SparseNeedsRelu { ffn: self.ffn, psi: self.psi });
        }
        if self.ffn.has_filter() && !self.weights.has_filter() {
            let expected =
                format!("dense, sparse or auto with {} weights: f32, bf16 and bf16-packed have a filter", self.weights);
            return fail("ffn", self.ffn.to_string(), expected);
        }
        if self.activations == ActivationFormat::Q8 && !self.weights.is_quantised() {
            let expected = format!("exact with {} weights: only q8 and q4 are multiplied as integers", self.weights);
            return fail("activations", self.activations.to_string(), expected);
        }
        if !self.prefill.fits(self.weights) {
            let expected =
                format!("exact or bf16 with {} weights: only q8 and q4 are multiplied as integers", self.weights);
            return fail("prefill", self.prefill.to_string(), expected);
        }
        let context = self.context.unwrap_or(config.max_seq_len);
        if context == 0 || context > config.max_seq_len {
            return fail(
                "context",
                context.to_string(),
                format!("1 to {}, the model's max_seq_len", config.max_seq_len),
            );
        }
        Ok(context)
    }
}

/// How the FFN of a single token is computed. The tokens of a prompt run dense: together they use nearly every neuron.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FfnMode {
    /// Every neuron.
    Dense,
    /// gate_proj in full, then up_proj and down_proj for the neurons with `g > 0` alone. For RELU only, where it gives the
    /// same bits as [`FfnMode::Dense`].
    Sparse,
    /// As [`FfnMode::Sparse`], and gate_proj only in the rows that an 8-bit copy of it cannot prove to be inactive: a byte more of memory
    /// for each of its elements. In a [batch](Engine::decode_batch) as [`FfnMode::Sparse`]. For RELU only, with the same bits, and for weights that [have a filter](WeightFormat::has_filter).
    Filtered,
    /// Layer by layer: sparse under RELU while few enough neurons of the layer were active in the last tokens, else dense. The
    /// bits are the same whatever is chosen.
    Auto,
    /// As [`FfnMode::Auto`], and filtered instead of sparse where few enough rows of the gate survive: with the memory, and for the models,
    /// of [`FfnMode::Filtered`].
    AutoFiltered,
}

impl FfnMode {
    /// What `psi` runs with unless something else is asked for: auto if it is RELU, else dense.
    pub fn of(psi: Psi) -> FfnMode {
        if psi == Psi::Relu { FfnMode::Auto } else { FfnMode::Dense }
    }

    /// Whether it needs the filters of the gates.
    pub fn has_filter(self) -> bool {
        matches!(self, FfnMode::Filtered | FfnMode::AutoFiltered)
    }
}

impl std::fmt::Display for FfnMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            FfnMode::Dense => "dense",
            FfnMode::Sparse => "sparse",
            FfnMode::Filtered => "filtered",
            FfnMode::Auto => "auto",
            FfnMode::AutoFiltered => "auto-filtered",
        })
    }
}

/// How an engine keeps the weights. What is computed from them is f32, but for the products of [`ActivationFormat::Q8`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightFormat {
    /// 4 bytes a weight, as trained.
    F32,
    /// 2 bytes a weight: half the memory, and half the bytes that a decoded token reads. Matrices are rounded to the nearest bf16
    /// (ties to even; a relative error of 2^-8 at most), which changes nothing in a checkpoint that was bf16; gains stay
    /// f32. On the CPU, the engine has the bits of an f32 engine of the rounded weights; on a GPU, sums are in another order.
    Bf16,
    /// 1.53 bytes a weight, and every bit of the results of [`WeightFormat::Bf16`]: exponents, of which few occur, in 4 bits
    /// ([`kernels::packed`]). Matrices that cannot be kept so, because their exponents are too many, are kept as bf16, with those that they are
    /// multiplied beside: q, k and v; o; gate, up and down of a layer; the embedding; the LM head.
    /// [`CpuEngine::packed_groups`](crate::CpuEngine::packed_groups) counts them.
    Bf16Packed,
    /// 1.06 bytes a weight: 8 bits, and a scale in f16 for each 32 of a row ([`kernels::quant`]). A weight is off by 1/254 of the largest
    /// of its 32 at most. Rows run along the inputs of a projection, those of down_proj along its outputs, d_model. Gains stay f32.
    Q8,
    /// 0.56 bytes a weight: 4 bits and the scale. A weight is off by 1/16 of the largest of its 32, or 1/8 where it is nearly as large
    /// with the other sign.
    Q4,
}

impl WeightFormat {
    /// All of them, largest first.
    pub const ALL: [WeightFormat; 5] =
        [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Bf16Packed, WeightFormat::Q8, WeightFormat::Q4];

    /// Bytes of a row of `cols` weights, as they are kept.
    pub fn row_bytes(self, cols: usize) -> usize {
        match self {
            WeightFormat::F32 => row_bytes::<f32>(cols),
            WeightFormat::Bf16 => row_bytes::<bf16>(cols),
            WeightFormat::Bf16Packed => row_bytes::<PackedBf16>(cols),
            WeightFormat::Q8 => row_bytes::<Q8>(cols),
            WeightFormat::Q4 => row_bytes::<Q4>(cols),
        }
    }

    /// Whether weights are small integers with a scale for each 32 of them.
    pub fn is_quantised(self) -> bool {
        matches!(self, WeightFormat::Q8 | WeightFormat::Q4)
    }

    /// Whether [`FfnMode::Filtered`] is there: an 8-bit copy beside quantised weights would not pay, and the filter's proof is about
    /// dots of f32 and bf16 weights, packed or not.
    pub fn has_filter(self) -> bool {
        matches!(self, WeightFormat::F32 | WeightFormat::Bf16 | WeightFormat::Bf16Packed)
    }
}

fn row_bytes<W: RowFormat>(cols: usize) -> usize {
    W::row_len(cols) * size_of::<W>()
}

impl std::fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            WeightFormat::F32 => "f32",
            WeightFormat::Bf16 => "bf16",
            WeightFormat::Bf16Packed => "bf16-packed",
            WeightFormat::Q8 => "q8",
            WeightFormat::Q4 => "q4",
        })
    }
}

/// What the activations of a decoded token are multiplied with the weights as. A prompt's are always f32, and so is what
/// down_proj is multiplied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActivationFormat {
    /// In f32, as they are.
    Exact,
    /// For q8 and q4 weights: rounded to 8 bits for each product, with a scale for each 32 of them, and multiplied as integers: faster, with
    /// the instruction of AVX-512 VNNI where the CPU has it. An activation is off by 1/254 of the largest of its 32 at most.
    Q8,
}

impl std::fmt::Display for ActivationFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ActivationFormat::Exact => "exact",
            ActivationFormat::Q8 => "q8",
        })
    }
}

/// How the products of several tokens with the weights are computed: those of [`Engine::prefill`] and [`Engine::log_probs`]. A single
/// token always keeps its activations in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefill {
    /// Activations stay f32: what comes out differs from decoding token by token by the order of additions alone.
    Exact,
    /// Both operands of a product are bf16 on levels that have a dot product of bf16, which is up to twice as fast: activations are
    /// rounded (a relative error of 2^-8 at most), and so are weights that are not bf16. Sums, norms, attention and the residual stream
    /// stay f32. On other levels, and for 4 tokens or fewer, whose weights are read straight and not packed, this is [`Prefill::Exact`]; so it is on a
    /// GPU for 8 tokens or fewer, where tensor cores multiply more of them.
    Bf16,
    /// For q8 and q4 weights: activations are rounded to 8 bits, as [`ActivationFormat::Q8`] rounds those of a decoded token, and multiplied
    /// as integers ([`kernels::quant::gemm_i8`]). down_proj, whose scales lie along its outputs, is multiplied as in [`Prefill::Bf16`]; so is
    /// all else where the CPU has no AVX-512 VNNI.
    Q8,
}

impl Prefill {
    /// All of them.
    pub const ALL: [Prefill; 3] = [Prefill::Exact, Prefill::Bf16, Prefill::Q8];

    /// Whether weights of this format are multiplied so.
    pub fn fits(self, weights: WeightFormat) -> bool {
        self != Prefill::Q8 || weights.is_quantised()
    }
}

impl std::fmt::Display for Prefill {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Prefill::Exact => "exact",
            Prefill::Bf16 => "bf16",
            Prefill::Q8 => "q8",
        })
    }
}

/// How the FFNs of several tokens at once are computed: those of [`Engine::prefill`] and [`Engine::log_probs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptFfn {
    /// Every neuron, by products of matrices.
    Dense,
    /// gate_proj in full, then up_proj and down_proj for the pairs of a token and a neuron that is active for it. Sums are taken in another
    /// order: the last bits are not those of [`PromptFfn::Dense`]. Under RELU; other activations leave out nothing, and are computed so.
    Sparse,
    /// Layer by layer: sparse where so few pairs are active that it pays, else dense.
    Auto,
}

impl std::fmt::Display for PromptFfn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            PromptFfn::Dense => "dense",
            PromptFfn::Sparse => "sparse",
            PromptFfn::Auto => "auto",
        })
    }
}

/// How the key-value cache keeps keys and values. Scores and sums are f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvFormat {
    /// 4 bytes a number, as computed: a forward pass token by token differs from one of all at once by the order of additions alone.
    F32,
    /// 2 bytes: half the memory, and half of what a token reads of a long context. Each number is rounded to the nearest bf16 (a relative error of
    /// 2^-8 at most) when it enters the cache, so prefill and decode see the same ones; the bits are those of attention over the
    /// rounded numbers in f32.
    Bf16,
}

impl KvFormat {
    /// Bytes of a number.
    pub fn bytes(self) -> u64 {
        match self {
            KvFormat::F32 => 4,
            KvFormat::Bf16 => 2,
        }
    }
}

impl std::fmt::Display for KvFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            KvFormat::F32 => "f32",
            KvFormat::Bf16 => "bf16",
        })
    }
}

/// When the key-value cache takes its memory: `2 n_layers K D` numbers a position, keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheMemory {
    /// As positions come, doubling: a decode step at a power of two copies the cache.
    Growing,
    /// All at once: no decode step allocates.
    Fixed,
}

/// Active neurons of a layer, summed over decoded tokens, and how its FFN ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerDensity {
    /// Neurons whose psi(g) was not 0 (NaN counts).
    pub active: u64,
    /// All neurons: F for each token.
    pub neurons: u64,
    /// Tokens.
    pub tokens: u64,
    /// Steps: a token, or a batch of them (on a GPU, each eight of a batch).
    pub steps: u64,
    /// Neurons that were active for any token of a step, summed over steps: rows that up_proj and down_proj are needed in.
    pub union: u64,
    /// Tokens for which the layer's FFN ran sparse or filtered.
    pub sparse_tokens: u64,
    /// Rows of gate_proj that were read: F for each token, but the filter's survivors where the FFN ran filtered.
    pub gate_rows: u64,
}

impl LayerDensity {
    /// With the counts of another.
    pub(crate) fn add(&mut self, other: LayerDensity) {
        let LayerDensity { active, neurons, tokens, steps, union, sparse_tokens, gate_rows } = other;
        self.active += active;
        self.neurons += neurons;
        self.tokens += tokens;
        self.steps += steps;
        self.union += union;
        self.sparse_tokens += sparse_tokens;
        self.gate_rows += gate_rows;
    }

    /// The active share, 0 to 1; `None` before the first decoded token.
    pub fn share(&self) -> Option<f64> {
        (self.neurons > 0).then(|| self.active as f64 / self.neurons as f64)
    }

    /// The share of the gate's rows that was read, 0 to 1; `None` before the first decoded token.
    pub fn gate_share(&self) -> Option<f64> {
        (self.neurons > 0).then(|| self.gate_rows as f64 / self.neurons as f64)
    }

    /// The share of neurons that any token of a step needs, 0 to 1: [`share`](LayerDensity::share) for single tokens. `None` before the first
    /// decoded token.
    pub fn union_share(&self) -> Option<f64> {
        // F for each token.
        (self.neurons > 0).then(|| self.union as f64 * self.tokens as f64 / (self.neurons as f64 * self.steps as f64))
    }

    /// Whether the layer's FFN ran sparse for more than half of the tokens.
    pub fn ran_sparse(&self) -> bool {
        2 * self.sparse_tokens > self.tokens
    }
}
