//! What can end a run.

use crate::checkpoint::CheckpointError;
use crate::config::{ConfigError, Difference};
use crate::data::DataError;
use crate::files;
use std::path::PathBuf;
use tensor::failure::Failure;

/// What ended a run, or kept it from beginning.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A file of the run folder.
    #[error(transparent)]
    File(#[from] files::Error),
    /// A checkpoint.
    #[error(transparent)]
    Checkpoint(Box<CheckpointError>),
    /// A sample.
    #[error("sample: {0}")]
    Sample(#[from] infer::Error),
    /// More memory than the system gives, or the GPU has.
    #[error(
        "training takes about {:.1} GiB of memory, and {}: choose a smaller model or train.micro_batch",
        gib(*bytes),
        of_gpu.as_ref().map_or("the system refuses that".to_string(), |(gpu, free)| format!("{gpu} has {:.1} GiB free", gib(*free)))
    )]
    Memory {
        /// The estimate.
        bytes: u64,
        /// The GPU, if there, and its free bytes.
        of_gpu: Option<(String, u64)>,
    },
    /// A GPU failed, or its memory ended.
    #[error("{when}: {failure}{then}")]
    Device {
        /// `after 12 steps`.
        when: String,
        /// What failed.
        failure: Box<Failure>,
        /// What to lower, and what is saved, in words; each part with its `; ` in front.
        then: String,
    },
    /// A new run where there is one.
    #[error("{}: exists already; resume it (train --resume), or choose another --name or --out", path.display())]
    Exists {
        /// The run folder.
        path: PathBuf,
    },
    /// A run to resume that is none.
    #[error("{}: no run to resume: it has no {missing}", path.display())]
    NotARun {
        /// The run folder.
        path: PathBuf,
        /// The file that is not there.
        missing: &'static str,
    },
    /// Another process trains there.
    #[error("{}: in use by another process{}", path.display(), pid.map_or(String::new(), |pid| format!(" (pid {pid})")))]
    InUse {
        /// The run folder.
        path: PathBuf,
        /// The process, if it wrote its number.
        pid: Option<u32>,
    },
    /// A resume with another configuration.
    #[error(
        "{}: cannot resume with a changed configuration: {}",
        path.display(),
        changes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    )]
    Changed {
        /// The run folder.
        path: PathBuf,
        /// Each key, with both values.
        changes: Vec<Difference>,
    },
    /// A resume with other data.
    #[error("{}: cannot resume: the data have changed: hash {was} when the run began, now {now}", path.display())]
    DataChanged {
        /// The run folder.
        path: PathBuf,
        /// Hash of the tokens of the run.
        was: String,
        /// Of those found now.
        now: String,
    },
    /// An infinity or NaN. The step is not applied, and checkpoints are as they were.
    #[error("step {step}: not finite: {what}; first in {first}")]
    NonFinite {
        /// The step, from 0.
        step: usize,
        /// `the loss is NaN`.
        what: String,
        /// The tensor.
        first: String,
    },
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}

impl From<CheckpointError> for Error {
    fn from(e: CheckpointError) -> Error {
        Error::Checkpoint(Box::new(e)) // the largest by far
    }
}
