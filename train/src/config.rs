//! The configuration of a run: read from TOML, checked, completed, and written back.
//!
//! Every key has a default except `data.paths`. Reading refuses unknown keys; [`TrainConfig::resolve`] checks every range
//! and fills in what depends on other keys, so that the `config.toml` of a run folder says everything.
//!
//! ```
//! let text = r#"
//!     [model]
//!     preset = "5m"
//!     n_layers = 4                             # replaces the preset's
//!
//!     [activation]
//!     kind = "stochastic"                      # or relu, silu, gelu, relu2, tanh
//!     p = 0.5                                  # for x < 0 the probability of the second of the pair
//!     negative = ["relu", "silu"]              # the pair; this one if not given
//!     positive = "identity"                    # for x >= 0; or silu
//!
//!     [data]
//!     paths = ["shakespeare.txt"]              # files, folders, .jsonl
//!
//!     [train]
//!     steps = 2000
//!     batch_tokens = 4096                      # two micro-batches of 8 sequences of 256
//!     switch = { to = "relu", alpha = 0.1 }    # Swi+FT: RELU for the last 200 steps
//! "#;
//! let config = train::TrainConfig::from_toml(text, "run.toml".as_ref())?;
//! let (config, sizes) = config.resolve(256, None)?;
//! assert_eq!((sizes.n_layers, config.train.seq_len), (4, Some(256)));
//! # Ok::<(), train::config::ConfigError>(())
//! ```

mod differences;

pub use differences::Difference;
use model::{Config, HiddenAct, PRESETS, Positive, Precision, Psi, Switch, preset};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use tensor::Device;

/// A run's configuration, as in its TOML file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// `[model]`: the sizes.
    pub model: ModelSection,
    /// `[activation]`: psi until the switch.
    pub activation: ActivationSection,
    /// `[data]`: what to learn.
    pub data: DataSection,
    /// `[train]`: how.
    pub train: TrainSection,
}

/// `[model]`: a preset, of which any size may be replaced; or a checkpoint, whose sizes are taken.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelSection {
    /// One of [`PRESETS`]; `tiny` if neither this nor `from` is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<String>,
    /// A Hugging Face folder whose weights to start from, for continued pre-training. Excludes the other keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<PathBuf>,
    /// C, replacing the preset's. Changes `head_dim` to `d_model / n_heads` unless that is given too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub d_model: Option<usize>,
    /// Number of blocks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n_layers: Option<usize>,
    /// H. Changes `head_dim` as `d_model` does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n_heads: Option<usize>,
    /// K, dividing H.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n_kv_heads: Option<usize>,
    /// D, even.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<usize>,
    /// F.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub d_ff: Option<usize>,
    /// The longest context, in tokens: `train.seq_len` if not given, because positions beyond it are never trained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_seq_len: Option<usize>,
    /// Base of the rotary frequencies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope_theta: Option<f64>,
    /// Added to the mean square in RMSNorm.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm_eps: Option<f32>,
    /// Whether the LM head is the embedding table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tie_embeddings: Option<bool>,
}

/// The kinds of psi.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ActivationKind {
    /// `max(x, 0)`.
    Relu,
    /// `x sigmoid(x)`.
    Silu,
    /// `x Phi(x)`, the exact form.
    Gelu,
    /// `max(x, 0)^2`.
    Relu2,
    /// `tanh(x)`.
    Tanh,
    /// StochA(p).
    Stochastic,
}

/// `[activation]`: psi, until the switch if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActivationSection {
    /// Which.
    pub kind: ActivationKind,
    /// For x < 0, the probability of the second of the pair, `0..=1`; for `stochastic` alone, where it must be given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p: Option<f64>,
    /// The pair for x < 0; for `stochastic` alone, RELU and SILU if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negative: Option<[HiddenAct; 2]>,
    /// For x >= 0; for `stochastic` alone, the identity if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub positive: Option<Positive>,
}

impl Default for ActivationSection {
    /// StochA(0.5), the paper's choice for pre-training.
    fn default() -> Self {
        ActivationSection { kind: ActivationKind::Stochastic, p: Some(0.5), negative: None, positive: None }
    }
}

impl ActivationSection {
    /// psi. A missing p is 0.5 here; [`TrainConfig::resolve`] refuses it first.
    pub fn psi(&self) -> Psi {
        match self.kind {
            ActivationKind::Relu => Psi::Relu,
            ActivationKind::Silu => Psi::Silu,
            ActivationKind::Gelu => Psi::Gelu,
            ActivationKind::Relu2 => Psi::Relu2,
            ActivationKind::Tanh => Psi::Tanh,
            ActivationKind::Stochastic => Psi::Stochastic {
                p: self.p.unwrap_or(0.5),
                negative: self.negative.unwrap_or([HiddenAct::Relu, HiddenAct::Silu]),
                positive: self.positive.unwrap_or_default(),
            },
        }
    }

    /// With the pair and the positive side of a stochastic psi written out.
    pub(crate) fn complete(self) -> ActivationSection {
        self.psi().into()
    }
}

impl From<Psi> for ActivationSection {
    fn from(psi: Psi) -> ActivationSection {
        let fixed = |kind| ActivationSection { kind, p: None, negative: None, positive: None };
        match psi {
            Psi::Relu => fixed(ActivationKind::Relu),
            Psi::Silu => fixed(ActivationKind::Silu),
            Psi::Gelu => fixed(ActivationKind::Gelu),
            Psi::Relu2 => fixed(ActivationKind::Relu2),
            Psi::Tanh => fixed(ActivationKind::Tanh),
            Psi::Stochastic { p, negative, positive } => ActivationSection {
                kind: ActivationKind::Stochastic,
                p: Some(p),
                negative: Some(negative),
                positive: Some(positive),
            },
        }
    }
}

/// `[data]`: text files, folders, `.jsonl` files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataSection {
    /// Files and folders, in this order. See [`crate::data::documents`].
    pub paths: Vec<PathBuf>,
    /// The field of a `.jsonl` record that holds the text.
    pub field: String,
    /// The share of the tokens, the last ones, that is kept for validation: the end of a single text, the last documents of
    /// several. Above 0, below 1.
    pub val_fraction: f64,
    /// Where tokenised data is kept; `silurian` under the user's cache folder if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
}

impl Default for DataSection {
    fn default() -> Self {
        DataSection { paths: Vec::new(), field: "text".to_string(), val_fraction: 0.1, cache: None }
    }
}

/// `[train]`: schedule, batch, optimiser, and what is reported and kept.
///
/// The defaults suit models of about 1M to 15M parameters; larger ones want a smaller `lr`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainSection {
    /// Optimiser steps.
    pub steps: usize,
    /// T: tokens of a sequence. The smaller of 256 and `max_seq_len` if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq_len: Option<usize>,
    /// Tokens of an optimiser step; a multiple of `micro_batch * seq_len`. That product if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_tokens: Option<usize>,
    /// Sequences that go through the model at once. Decides the memory; of the result the rounding alone.
    pub micro_batch: usize,
    /// What products compute with: `f32`, or, on a GPU, `bf16` with f32 sums. Weights, moments and the residual stream are f32 in both.
    pub precision: Precision,
    /// Of the initial weights, the order of the data and the draws of the activation.
    pub seed: u64,
    /// The highest learning rate.
    pub lr: f64,
    /// The last learning rate, as a share of the highest.
    pub min_lr_ratio: f64,
    /// Steps over which the learning rate rises from 0.
    pub warmup_steps: usize,
    /// Decoupled weight decay; of projections only.
    pub weight_decay: f64,
    /// Decay of the first moment, below 1.
    pub beta1: f64,
    /// Decay of the second moment, below 1.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// The largest norm of the whole gradient; 0 for no clipping.
    pub grad_clip: f64,
    /// Added to the loss: this times the sum over layers of the mean of `|h|`, h being the FFN's hidden layer, over tokens and
    /// neurons; for more zeros. 0 for none. What is reported as the loss is without it. 0.01 to 1 is the range
    /// to try: docs/log.md has what came of 0.1 and 1.
    pub l1: f64,
    /// Swi+FT(alpha): `to` for the last share `alpha` of the steps, `0..=1`; 0 is no switch, and so is none given. `to` is any
    /// activation that draws nothing; RELU is the one whose zeros sparse decoding uses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub switch: Option<Switch>,
    /// Steps between evaluations. The last step and those around the switch are evaluated always.
    pub eval_every: usize,
    /// Tokens of an evaluation, from the start of the validation data; rounded down to sequences, all if there are fewer.
    pub eval_tokens: usize,
    /// Steps between samples, with one after the last step; 0 for none.
    pub sample_every: usize,
    /// What a sample continues.
    pub sample_prompt: String,
    /// The most new tokens of a sample.
    pub sample_tokens: usize,
    /// Steps between checkpoints. There is always one at the end.
    pub checkpoint_every: usize,
    /// Checkpoints that are kept, at least 1: older ones are removed.
    pub keep_last: usize,
}

impl Default for TrainSection {
    fn default() -> Self {
        TrainSection {
            steps: 1000,
            seq_len: None,
            batch_tokens: None,
            micro_batch: 8,
            precision: Precision::F32,
            seed: 0,
            lr: 2e-3,
            min_lr_ratio: 0.1,
            warmup_steps: 100,
            weight_decay: 0.1,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            grad_clip: 1.0,
            l1: 0.0,
            switch: None,
            eval_every: 100,
            eval_tokens: 1 << 15,
            sample_every: 500,
            sample_prompt: "\n".to_string(),
            sample_tokens: 200,
            checkpoint_every: 500,
            keep_last: 2,
        }
    }
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: cannot be read: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's words.
        reason: std::io::Error,
    },
    /// Not TOML, an unknown key, a value of the wrong type. The reason gives line and column.
    #[error("{}: {reason}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
    /// A value out of its range.
    #[error("{}{} = {value}: {expected}", place.as_deref().unwrap_or_default(), key)]
    Value {
        /// File and line, where known: `run.toml line 12: `.
        place: Option<String>,
        /// The key, with its section: `train.lr`.
        key: String,
        /// What it is.
        value: String,
        /// What it must be.
        expected: String,
    },
}

fn value_error(key: &str, value: impl std::fmt::Display, expected: impl Into<String>) -> ConfigError {
    ConfigError::Value { place: None, key: key.to_string(), value: value.to_string(), expected: expected.into() }
}

impl TrainConfig {
    /// Reads a file. Values are checked by [`resolve`](TrainConfig::resolve), after command-line flags had their say.
    pub fn read(path: impl AsRef<Path>) -> Result<TrainConfig, ConfigError> {
        let path = path.as_ref();
        let text =
            std::fs::read_to_string(path).map_err(|reason| ConfigError::Read { path: path.to_path_buf(), reason })?;
        TrainConfig::from_toml(&text, path)
    }

    /// Reads text; `path` is for messages. Ranges are checked here too, so that the message has the line.
    pub fn from_toml(text: &str, path: &Path) -> Result<TrainConfig, ConfigError> {
        let config: TrainConfig = toml::from_str(text).map_err(|e| ConfigError::Parse {
            path: path.to_path_buf(),
            reason: e.to_string().trim_end().to_string(),
        })?;
        config.check().map_err(|e| match e {
            ConfigError::Value { place: None, key, value, expected } => {
                let line = line_of(text, &key).map_or(String::new(), |n| format!(" line {n}"));
                ConfigError::Value { place: Some(format!("{}{line}: ", path.display())), key, value, expected }
            }
            e => e,
        })?;
        Ok(config)
    }

    /// The text of a file that [`read`](TrainConfig::read) reads back to the same configuration. Panics on what
    /// [`check`](TrainConfig::check) refuses.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a configuration is made of tables, numbers and strings")
    }

    /// Fills in what was left out and depends on other keys, and checks everything. With `model.from`, `sizes` are those of
    /// that checkpoint; else they must be `None` and come from preset and overrides. `vocab_size` is the tokenizer's.
    pub fn resolve(mut self, vocab_size: usize, sizes: Option<Config>) -> Result<(TrainConfig, Config), ConfigError> {
        self.check()?;
        self.activation = self.activation.complete();
        if self.data.paths.is_empty() {
            return Err(value_error("data.paths", "[]", "must name at least one file or folder"));
        }
        // A preset's context is what its sizes are meant for; the model can use what it has seen in training.
        let context_is_open = sizes.is_none() && self.model.max_seq_len.is_none();
        let mut sizes = match sizes {
            Some(sizes) => sizes,
            None => self.model.complete(vocab_size)?,
        };
        if sizes.vocab_size != vocab_size {
            let expected = format!("must be {vocab_size}, the tokenizer's");
            return Err(value_error("model.vocab_size", sizes.vocab_size, expected));
        }
        let t = &mut self.train;
        let seq_len = *t.seq_len.get_or_insert(sizes.max_seq_len.min(256));
        if seq_len > sizes.max_seq_len {
            let expected = format!("must be at most model.max_seq_len = {}", sizes.max_seq_len);
            return Err(value_error("train.seq_len", seq_len, expected));
        }
        if context_is_open {
            sizes.max_seq_len = seq_len;
            self.model.max_seq_len = Some(seq_len);
        }
        let Some(micro) = t.micro_batch.checked_mul(seq_len).filter(|&n| u32::try_from(n).is_ok()) else {
            return Err(value_error("train.micro_batch", t.micro_batch, "micro_batch * seq_len must be below 2^32"));
        };
        let batch_tokens = *t.batch_tokens.get_or_insert(micro);
        if !batch_tokens.is_multiple_of(micro) {
            let expected =
                format!("must be a multiple of micro_batch * seq_len = {} * {seq_len} = {micro}", t.micro_batch);
            return Err(value_error("train.batch_tokens", batch_tokens, expected));
        }
        Ok((self, sizes))
    }

    /// Refuses what `device` cannot do.
    pub(crate) fn check_device(&self, device: &Device) -> Result<(), ConfigError> {
        match (self.train.precision, device) {
            (Precision::Bf16, Device::Cpu) => Err(value_error(
                "train.precision",
                "\"bf16\"",
                "is for a GPU (--device cuda); on the CPU training is in f32",
            )),
            _ => Ok(()),
        }
    }

    /// Checks what stands on its own: ranges, and that TOML can hold the values, so that [`to_toml`](TrainConfig::to_toml)
    /// cannot fail.
    pub fn check(&self) -> Result<(), ConfigError> {
        let (a, d, t) = (&self.activation, &self.data, &self.train);
        match (a.kind, a.p) {
            (ActivationKind::Stochastic, None) => {
                return Err(value_error(
                    "activation.p",
                    "(none)",
                    "kind = \"stochastic\" needs the probability of the second of the pair, 0 to 1",
                ));
            }
            (ActivationKind::Stochastic, Some(p)) => within("activation.p", p, 0.0, 1.0)?,
            (_, Some(p)) => return Err(value_error("activation.p", p, "goes with kind = \"stochastic\" only")),
            (_, None) => {}
        }
        if a.kind != ActivationKind::Stochastic {
            let negative = a.negative.map(|pair| format!("{:?}", pair.map(HiddenAct::name)));
            let positive = a.positive.map(|p| format!("{:?}", if p == Positive::Silu { "silu" } else { "identity" }));
            for (key, value) in [("activation.negative", negative), ("activation.positive", positive)] {
                if let Some(value) = value {
                    return Err(value_error(key, value, "goes with kind = \"stochastic\" only"));
                }
            }
        }
        let paths = d.paths.iter().map(|path| ("data.paths", path));
        let paths = paths.chain(d.cache.iter().map(|path| ("data.cache", path)));
        for (key, path) in paths.chain(self.model.from.iter().map(|path| ("model.from", path))) {
            if path.to_str().is_none() {
                let name = path.display();
                return Err(value_error(
                    key,
                    name,
                    "the name is not UTF-8, and config.toml could not hold it: rename it",
                ));
            }
        }
        if !(d.val_fraction > 0.0 && d.val_fraction < 1.0) {
            return Err(value_error("data.val_fraction", d.val_fraction, "must be above 0 and below 1"));
        }
        for (key, value) in [
            ("train.steps", Some(t.steps)),
            ("train.seq_len", t.seq_len),
            ("train.batch_tokens", t.batch_tokens),
            ("train.micro_batch", Some(t.micro_batch)),
            ("train.eval_every", Some(t.eval_every)),
            ("train.eval_tokens", Some(t.eval_tokens)),
            ("train.checkpoint_every", Some(t.checkpoint_every)),
            ("train.keep_last", Some(t.keep_last)),
        ] {
            match value {
                Some(0) => return Err(value_error(key, 0, "must be at least 1")),
                Some(n) if i64::try_from(n).is_err() => return Err(value_error(key, n, "must be below 2^63")),
                _ => {}
            }
        }
        // The last value is the step of evaluation draws. Both are words of a draw's counter.
        if t.steps >= u32::MAX as usize {
            return Err(value_error("train.steps", t.steps, format!("must be below {}", u32::MAX)));
        }
        if t.batch_tokens.is_some_and(|n| u32::try_from(n).is_err()) {
            return Err(value_error("train.batch_tokens", t.batch_tokens.unwrap_or(0), "must be below 2^32"));
        }
        if t.seed > i64::MAX as u64 {
            return Err(value_error("train.seed", t.seed, "must be below 2^63: TOML's numbers end there"));
        }
        for (key, value) in [("train.lr", t.lr), ("train.eps", t.eps)] {
            if !(value.is_finite() && value > 0.0) {
                return Err(value_error(key, value, "must be above 0"));
            }
        }
        for (key, value) in
            [("train.weight_decay", t.weight_decay), ("train.grad_clip", t.grad_clip), ("train.l1", t.l1)]
        {
            if !(value.is_finite() && value >= 0.0) {
                return Err(value_error(key, value, "must be 0 or more"));
            }
        }
        for (key, value) in [("train.beta1", t.beta1), ("train.beta2", t.beta2)] {
            if !(0.0..1.0).contains(&value) {
                return Err(value_error(key, value, "must be from 0 to below 1"));
            }
        }
        within("train.min_lr_ratio", t.min_lr_ratio, 0.0, 1.0)?;
        if let Some(switch) = t.switch {
            within("train.switch.alpha", switch.alpha, 0.0, 1.0)?;
        }
        if t.sample_every > 0 && t.sample_prompt.is_empty() {
            return Err(value_error("train.sample_prompt", "\"\"", "must not be empty: a sample continues something"));
        }
        if t.sample_every > 0 && t.sample_tokens == 0 {
            return Err(value_error(
                "train.sample_tokens",
                0,
                "must be at least 1; sample_every = 0 turns samples off",
            ));
        }
        Ok(())
    }
}

fn within(key: &str, value: f64, low: f64, high: f64) -> Result<(), ConfigError> {
    if (low..=high).contains(&value) {
        Ok(())
    } else {
        Err(value_error(key, value, format!("must be from {low} to {high}")))
    }
}

/// The line, from 1, on which `section.key` is set, if it is written in the usual way.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let mut parts = key.split('.');
    let (section, name) = (parts.next()?, parts.next()?);
    let mut current = "";
    text.lines().enumerate().find_map(|(i, line)| {
        let line = line.trim();
        if let Some(header) = line.strip_prefix('[').and_then(|l| l.split(']').next()) {
            current = header.trim();
        }
        let sets = line.split_once('=').is_some_and(|(left, _)| left.trim() == name);
        (sets && current == section).then_some(i + 1)
    })
}

impl ModelSection {
    /// The sizes, which are written back into this section.
    fn complete(&mut self, vocab_size: usize) -> Result<Config, ConfigError> {
        let name = self.preset.get_or_insert_with(|| "tiny".to_string());
        let Some(mut sizes) = preset(name, vocab_size) else {
            let names: Vec<&str> = PRESETS.iter().map(|(name, _)| *name).collect();
            return Err(value_error(
                "model.preset",
                format!("{name:?}"),
                format!("must be one of {}", names.join(", ")),
            ));
        };
        if self.head_dim.is_none() && (self.d_model.is_some() || self.n_heads.is_some()) {
            let (d_model, n_heads) = (self.d_model.unwrap_or(sizes.d_model), self.n_heads.unwrap_or(sizes.n_heads));
            if n_heads == 0 || !d_model.is_multiple_of(n_heads) {
                let expected = format!("must divide d_model = {d_model}, or head_dim must be given");
                return Err(value_error("model.n_heads", n_heads, expected));
            }
            sizes.head_dim = d_model / n_heads;
        }
        fn fill<T: Copy>(ours: &mut Option<T>, size: &mut T) {
            *size = *ours.get_or_insert(*size);
        }
        fill(&mut self.d_model, &mut sizes.d_model);
        fill(&mut self.n_layers, &mut sizes.n_layers);
        fill(&mut self.n_heads, &mut sizes.n_heads);
        fill(&mut self.n_kv_heads, &mut sizes.n_kv_heads);
        fill(&mut self.head_dim, &mut sizes.head_dim);
        fill(&mut self.d_ff, &mut sizes.d_ff);
        fill(&mut self.max_seq_len, &mut sizes.max_seq_len);
        fill(&mut self.rope_theta, &mut sizes.rope_theta);
        fill(&mut self.norm_eps, &mut sizes.norm_eps);
        fill(&mut self.tie_embeddings, &mut sizes.tie_embeddings);
        sizes.validate().map_err(|e| value_error(&format!("model.{}", e.field), e.value, e.expected))?;
        Ok(sizes)
    }

    /// Whether any size is given: what `from` excludes.
    pub(crate) fn names_sizes(&self) -> bool {
        ModelSection { from: None, ..self.clone() } != ModelSection::default()
    }
}
