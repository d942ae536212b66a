//! The model: a decoder-only transformer of the Llama family whose FFN activation is the method's field of play.
//!
//! - [`Config`] and [`preset`]: sizes. [`Psi`] and [`PsiAt`]: which activation, and which draws.
//! - [`Weights`]: the parameters by their Hugging Face names, in one fixed order.
//! - [`Transformer`]: the forward on a tape, with the parameters as [`Leaves`]; a [`Probe`] watches its sparsity.
//! - [`hf`]: a Hugging Face folder in and out. [`reference`](mod@reference): the forward as plain loops, for tests.
//!
//! Shape letters: B batch, T time, C d_model, H heads, K kv heads, D head_dim, F d_ff, V vocabulary.
#![forbid(unsafe_code)]

mod attention;
mod config;
mod cost;
mod ffn;
pub mod hf;
mod leaves;
mod penalty;
mod precision;
mod probe;
mod project;
mod psi;
pub mod reference;
mod rope_table;
mod transformer;
mod weights;

pub use attention::attention_scale;
pub use config::{Config, ConfigError, PRESETS, RopeScaling, preset};
pub use cost::{Flops, InferenceMemory, ParameterCounts, TrainingMemory};
pub use leaves::Leaves;
pub use penalty::LatentPenalty;
pub use precision::Precision;
pub use probe::Probe;
pub use psi::{HiddenAct, Positive, Psi, PsiAt, Switch};
pub use rope_table::{RopeTable, rope_frequencies};
pub use transformer::Transformer;
pub use weights::{EMBED_TOKENS, Init, LM_HEAD, LayerNames, NORM, ParameterSpec, Weights, parameter_specs};
