//! A run as its folder tells it.

use super::ReportError;
use super::results::Results;
use crate::checkpoint;
use crate::config::TrainConfig;
use crate::data::Tokenizer;
use crate::events::{Sample, Started};
use crate::html::curve::Point;
use crate::metrics::{Evaluation, StepMetrics};
use crate::run_dir::{self, CONFIG};
use crate::schedule::Phases;
use model::{Config, Psi};
use std::path::{Path, PathBuf};

/// All that a report says of a run.
pub struct Run {
    /// The folder's name, with as much of what is before it as tells it from the others.
    pub name: String,
    pub path: PathBuf,
    pub config: TrainConfig,
    pub phases: Phases,
    /// Of the model; none if the run is from before sessions were kept and began with another model's weights.
    pub sizes: Option<Config>,
    /// One for each step; at least one.
    pub steps: Vec<StepMetrics>,
    pub samples: Vec<Sample>,
    /// The processes that did the steps.
    pub sessions: Vec<Started>,
    /// Instruction set of the last steps, if it is known.
    pub level: Option<String>,
    pub results: Option<Results>,
}

impl Run {
    /// Reads the folder, also while the run goes on.
    pub fn read(path: &Path) -> Result<Run, ReportError> {
        let not_a_run = |why| ReportError::NotARun { path: path.to_path_buf(), why };
        if !path.exists() {
            return Err(not_a_run("there is no such folder"));
        }
        if !path.is_dir() {
            return Err(not_a_run("not a run: not a folder"));
        }
        if !path.join(CONFIG).is_file() {
            return Err(not_a_run("not a run: it has no config.toml"));
        }
        let config = TrainConfig::read(path.join(CONFIG))?;
        let steps = match run_dir::has_metrics(path) {
            true => run_dir::read_metrics(path)?,
            false => Vec::new(),
        };
        if steps.is_empty() {
            return Err(not_a_run("no metrics yet: no step is done"));
        }
        let sessions: Vec<Started> = run_dir::read_sessions(path)?;
        // One that began where the records end has done nothing yet.
        let sessions: Vec<Started> =
            sessions.into_iter().filter(|s| s.steps_done <= steps[steps.len() - 1].step).collect();
        let sizes = match sessions.last() {
            Some(session) => Some(session.sizes.clone()),
            None if config.model.from.is_some() => None,
            None => config.clone().resolve(Tokenizer::Bytes.vocab_size(), None).ok().map(|(_, sizes)| sizes),
        };
        let level = sessions.last().map(|s| s.level.clone()).or_else(|| checkpoint_level(path));
        let (samples, results) = (run_dir::read_samples(path)?, Results::read(path)?);
        let phases = Phases::new(&config);
        Ok(Run {
            name: String::new(),
            path: path.to_path_buf(),
            config,
            phases,
            sizes,
            steps,
            samples,
            sessions,
            level,
            results,
        })
    }

    /// Steps that its records know.
    pub fn steps_done(&self) -> usize {
        self.last().step + 1
    }

    pub fn last(&self) -> &StepMetrics {
        self.steps.last().expect("a run with metrics")
    }

    /// Its evaluations, in order.
    pub fn evaluations(&self) -> impl DoubleEndedIterator<Item = &Evaluation> {
        self.steps.iter().filter_map(|s| s.eval.as_ref())
    }

    pub fn last_evaluation(&self) -> Option<&Evaluation> {
        self.evaluations().next_back()
    }

    /// The first step under RELU, if the run turns to it and has reached it.
    pub fn switch(&self) -> Option<usize> {
        let reached = |&at: &usize| at < self.steps_done() && self.phases.psi(at) == Psi::Relu;
        self.phases.switch_step().filter(reached)
    }

    /// The evaluation of the same weights under both activations, just before the switch.
    pub fn evaluation_at_switch(&self) -> Option<&Evaluation> {
        let at = self.switch()?;
        self.evaluations().find(|e| e.steps_done == at)
    }

    /// A value of every step.
    pub fn by_step(&self, value: impl Fn(&StepMetrics) -> f64) -> Vec<Point> {
        self.steps.iter().map(|s| (s.step as f64, value(s))).collect()
    }

    /// A value of every evaluation that has it.
    pub fn by_evaluation(&self, value: impl Fn(&Evaluation) -> Option<f64>) -> Vec<Point> {
        self.evaluations().filter_map(|e| Some((e.steps_done as f64, value(e)?))).collect()
    }

    /// Where in the records the switch is.
    pub fn switch_index(&self) -> Vec<usize> {
        self.switch().map(|at| self.steps.partition_point(|s| s.step < at)).into_iter().collect()
    }

    /// Seconds of all steps, without evaluations, samples and checkpoints.
    pub fn seconds(&self) -> f64 {
        self.steps.iter().map(|s| s.seconds).sum()
    }

    /// Layers, as far as the evaluations know.
    pub fn layers(&self) -> usize {
        self.last_evaluation().map_or(0, |e| e.zeros.len())
    }
}

/// The instruction set in the newest checkpoint that says one.
fn checkpoint_level(run: &Path) -> Option<String> {
    let checkpoints = checkpoint::list(&run.join("checkpoints")).ok()?;
    checkpoints.iter().rev().find_map(|(_, path)| checkpoint::read_state(path).ok()).map(|state| state.level)
}

/// Gives each run the last part of its path as a name, and to those that share it one part more, until all differ.
pub fn name(runs: &mut [Run]) {
    let parts = |run: &Run| -> Vec<String> {
        let path = run.path.canonicalize().unwrap_or_else(|_| run.path.clone());
        path.components().map(|c| c.as_os_str().to_string_lossy().into_owned()).collect()
    };
    let parts: Vec<Vec<String>> = runs.iter().map(parts).collect();
    let tail = |i: usize, n: usize| parts[i][parts[i].len().saturating_sub(n)..].join("/");
    for i in 0..parts.len() {
        let alone = |n: &usize| (0..parts.len()).all(|j| j == i || tail(j, *n) != tail(i, *n));
        let n = (1..parts[i].len()).find(alone).unwrap_or(parts[i].len());
        runs[i].name = tail(i, n);
    }
}
