//! Data, schedules, optimiser, checkpoints, and the loop that joins them.
//!
//! [`Trainer`] takes a [`TrainConfig`] and a run folder; what happens is told to an [`Observer`]. Nothing here prints.
//!
//! - [`config`]: what a run is. [`data`]: text, tokens, batches. [`schedule`]: learning rate and activation by step.
//! - [`step`] and [`optimizer`]: one step. [`evaluate`](mod@evaluate): loss, zeros, dead neurons. [`sample`](mod@sample).
//! - [`trainer`]: the loop. [`run_dir`] and [`checkpoint`]: its folder, and how a kill at any instant loses no more than the
//!   steps since the last checkpoint.
//! - [`almanac`]: the generated corpus. [`questions`]: files of questions with their answers.
//! - [`qa`]: how well a model answers them, greedily and by the best of N samples.
//! - [`records`]: files of one record a line. [`report`](mod@report): a run, or several, as a page; [`html`] draws it.
#![forbid(unsafe_code)]

pub mod almanac;
pub mod checkpoint;
pub mod config;
pub mod data;
mod error;
pub mod evaluate;
pub mod events;
pub mod files;
pub mod html;
mod jsonl;
pub mod metrics;
pub mod optimizer;
pub mod qa;
pub mod questions;
pub mod records;
pub mod report;
pub mod run_dir;
pub mod sample;
pub mod schedule;
pub mod step;
pub mod trainer;
pub mod words;

pub use config::TrainConfig;
pub use error::Error;
pub use events::{Event, Observer};
pub use trainer::{Outcome, Trainer};
