//! The model: a decoder-only transformer of the Llama family whose FFN activation is the method's field of play.
//!
//! - [`Config`] and [`preset`]: sizes. [`Psi`] and [`PsiAt`]: which activation, and which draws.
//! - [`Weights`]: the parameters by their Hugging Face names, in one fixed order.
//!
//! Shape letters: B batch, T time, C d_model, H heads, K kv heads, D head_dim, F d_ff, V vocabulary.
#![forbid(unsafe_code)]

mod config;
mod psi;
mod weights;

pub use config::{Config, ConfigError, PRESETS, RopeScaling, preset};
pub use psi::{Psi, PsiAt};
pub use weights::{EMBED_TOKENS, Init, LM_HEAD, LayerNames, NORM, ParameterSpec, Weights, parameter_specs};
