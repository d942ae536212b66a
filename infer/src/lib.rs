//! The token path: from a prompt to text, without a tape.
//!
//! - [`Engine`]: what a device implements, `prefill` and `decode` with a key-value cache. [`CpuEngine`] is the one on the CPU, [`CudaEngine`]
//!   the one on a GPU.
//! - [`Sampler`]: from logits to a token. [`generate`]: from a prompt to a [`Generation`]. [`Samples`]: several of them.
//! - [`score`]: the likelihood of a text. [`rank`](rank()): best-of-N by it. [`diversity`]: how different texts are.
//! - [`Utf8Stream`]: from bytes to text while they come.
//!
//! ```
//! use infer::{CpuEngine, EngineOptions, Request, Sampler, Sampling, generate};
//! use model::{Psi, Weights, preset};
//! use std::ops::ControlFlow;
//!
//! let weights = Weights::init(&preset("tiny", 256).unwrap(), 1); // untrained: it will babble
//! let mut engine = CpuEngine::new(&weights, EngineOptions::new(Psi::Relu))?;
//! let mut sampler = Sampler::new(Sampling { temperature: 0.8, top_k: 40, ..Sampling::GREEDY })?;
//! let prompt: Vec<u32> = "Once".bytes().map(u32::from).collect();
//! let request = Request { prompt: &prompt, max_tokens: 8, stop: &[], sample: 0 };
//! let text = generate(&mut engine, &mut sampler, request, |_token| ControlFlow::Continue(()))?;
//! assert_eq!(text.tokens.len(), 8);
//! println!("{} FFN, {:.0} % of the neurons", text.ffn, 100.0 * text.mean_density().unwrap());
//! # Ok::<(), infer::Error>(())
//! ```
//!
//! A second forward beside the one of `model`, on purpose: this one is a straight line over slices, that one records a tape,
//! and the tests hold both to one reference. Shape letters: N tokens of a call, C d_model, H heads, K kv heads, D head_dim,
//! F d_ff, V vocabulary.
#![forbid(unsafe_code)]

mod buffer;
mod cpu;
mod cuda;
pub mod diversity;
mod engine;
mod error;
mod generate;
mod kv_cache;
mod matrix;
mod rank;
mod recent;
mod resident;
mod rows;
mod sampler;
mod utf8;
mod weights;

pub use self::cuda::CudaEngine;
pub use cpu::CpuEngine;
pub use engine::{
    ActivationFormat, CacheMemory, Engine, EngineOptions, FfnMode, KvFormat, LayerDensity, Prefill, PromptFfn,
    WeightFormat,
};
pub use error::Error;
pub use generate::{Generation, Request, Samples, Score, Scorer, StopReason, batches, generate, score};
pub use rank::{Ranked, rank};
pub use recent::{prompt_break_even, sparse_break_even};
pub use resident::{Residence, Resident, filter_bytes, resident_bytes, resident_filter_path, resident_path};
pub use sampler::{Sampler, Sampling};
pub use utf8::Utf8Stream;
