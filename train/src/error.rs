//! What can end a run.

use crate::checkpoint::CheckpointError;
use crate::config::{ConfigError, Difference};
use crate::data::DataError;
use crate::files;
use std::path::PathBuf;

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
    /// More memory than the system gives.
    #[error(
        "training takes about {:.1} GiB of memory, and the system refuses that: choose a smaller model or train.micro_batch",
        *bytes as f64 / (1u64 << 30) as f64
    )]
    Memory {
        /// The estimate.
        bytes: u64,
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

impl From<CheckpointError> for Error {
    fn from(e: CheckpointError) -> Error {
        Error::Checkpoint(Box::new(e)) // the largest by far
    }
}
