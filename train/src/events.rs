//! What a run tells while it runs. The words and the progress bar are the listener's.

use crate::metrics::{Evaluation, StepMetrics};
use model::Config;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Something that happened in a run.
#[derive(Debug)]
pub enum Event<'a> {
    /// Before the first step.
    Started(&'a Started),
    /// Something that the user should know: a cache written, an incomplete checkpoint skipped.
    Note(&'a str),
    /// A step is done.
    Step(&'a StepMetrics),
    /// The model was evaluated.
    Evaluation(&'a Evaluation),
    /// The loss at the switch, or some steps after it.
    Switch(&'a SwitchReport),
    /// The model continued the prompt.
    Sample(&'a Sample),
    /// A checkpoint is on the disk.
    Checkpoint {
        /// Steps done.
        steps_done: usize,
        /// Its folder.
        path: &'a Path,
    },
    /// The stop flag was seen; the checkpoint is saved.
    Interrupted {
        /// Steps done.
        steps_done: usize,
    },
    /// All steps are done and the last checkpoint is saved.
    Finished {
        /// Steps done.
        steps_done: usize,
        /// Of this process, with evaluations and checkpoints.
        seconds: f64,
    },
}

/// What a run is about to do: a line of `sessions.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Started {
    /// Which activation from which step, in words.
    pub schedule: String,
    /// Steps done already: 0, or that of the checkpoint.
    pub steps_done: usize,
    /// Steps in all.
    pub steps: usize,
    /// Of the model.
    pub sizes: Config,
    /// Of the model.
    pub parameters: usize,
    /// T.
    pub seq_len: usize,
    /// Tokens of a step.
    pub batch_tokens: usize,
    /// Tokens of the training data.
    pub train_tokens: usize,
    /// Tokens of the validation data.
    pub val_tokens: usize,
    /// How often the training data are seen.
    pub epochs: f64,
    /// Instruction set of the kernels.
    pub level: String,
    /// Threads of the kernels.
    pub threads: usize,
    /// `cpu`, or the GPU that computes instead: `cuda:0 (NVIDIA H200)`.
    #[serde(default = "cpu")] // records before there were others
    pub device: String,
}

fn cpu() -> String {
    "cpu".to_string()
}

/// How the change of psi went.
#[derive(Clone, Debug, PartialEq)]
pub enum SwitchReport {
    /// Before the first step under the new activation: the same weights under both.
    At {
        /// The first step under the new activation.
        step: usize,
        /// The new activation, in words.
        to: String,
        /// Validation loss under the activation until here.
        before: f64,
        /// Validation loss under the new one.
        at: f64,
    },
    /// Some steps later.
    After {
        /// Steps under the new activation.
        steps: usize,
        /// The new activation, in words.
        to: String,
        /// Validation loss.
        loss: f64,
    },
}

/// A text that the model wrote: a line of `samples.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Steps done.
    pub steps_done: usize,
    /// The prompt.
    pub prompt: String,
    /// What it wrote after it.
    pub text: String,
    /// In words: the activation, and whether the FFN was sparse.
    pub how: String,
}

/// Listens to a run.
pub trait Observer {
    /// Something happened. The run goes on when this returns.
    fn event(&mut self, event: Event<'_>);
}

impl<F: FnMut(Event<'_>)> Observer for F {
    fn event(&mut self, event: Event<'_>) {
        self(event)
    }
}
