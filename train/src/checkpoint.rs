//! A checkpoint: a Hugging Face folder, the state of the optimiser, and what a resumed run must know.
//!
//! ```text
//! checkpoints/step-N/config.json, model.safetensors    the model after N steps
//! checkpoints/step-N/optimizer.safetensors             `m.<name>` and `v.<name>`, the moments of every parameter
//! checkpoints/step-N/state.json                        [`State`]
//! ```
//!
//! It is written as `.step-N.new`, synced, and renamed: a folder named `step-N` is whole. On the way out it is renamed to
//! `.step-N.old` first, then removed. So a kill at any instant leaves the last good one.

use crate::config::TrainConfig;
use crate::files;
use crate::optimizer::Optimizer;
use kernels::philox;
use model::{Psi, Weights, hf, parameter_specs};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tensor::{Tensor, safetensors};

const STATE: &str = "state.json";
const OPTIMIZER: &str = "optimizer.safetensors";

/// Changes with the meaning of what is stored.
const FORMAT: u32 = 1;

/// What a resumed run must know beyond weights and moments. The order of the data and all draws follow from the step and the
/// seed, so there is no cursor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Version of this layout.
    pub format: u32,
    /// Optimiser steps done; the next one has this number.
    pub steps_done: usize,
    /// The activation of the last step, in words.
    pub activation: String,
    /// Seed of weights, data order and draws.
    pub seed: u64,
    /// Rounds of Philox: draws of another number of rounds are other draws.
    pub philox_rounds: u32,
    /// Instruction set of the kernels, or `cuda`. Another one sums in another order.
    pub level: String,
    /// Hash of the tokens, see [`Tokens::hash`](crate::data::Tokens::hash).
    pub data_hash: String,
    /// The resolved configuration.
    pub config: TrainConfig,
    /// The other files, with their sizes in bytes.
    pub files: BTreeMap<String, u64>,
}

impl State {
    /// The state after `steps_done` steps under `psi`; the files are named when it is [saved](save).
    pub fn new(steps_done: usize, psi: Psi, level: String, data_hash: String, config: &TrainConfig) -> State {
        State {
            format: FORMAT,
            steps_done,
            activation: psi.to_string(),
            seed: config.train.seed,
            philox_rounds: philox::ROUNDS,
            level,
            data_hash,
            config: config.clone(),
            files: BTreeMap::new(),
        }
    }
}

/// Why a checkpoint cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file or folder.
    #[error("checkpoint: {0}")]
    File(#[from] files::Error),
    /// The moments.
    #[error("checkpoint: {0}")]
    Moments(#[from] safetensors::Error),
    /// The model.
    #[error("checkpoint: {0}")]
    Model(#[from] hf::Error),
    /// It is not complete, or was changed.
    #[error("checkpoint: {}: {reason}", path.display())]
    Invalid {
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// Writes the checkpoint into `folder`, with what `meta` says of the model, and removes all but the newest
/// `keep_last`. Returns its path. On an error the unfinished folder is removed and the older ones stay.
pub fn save(
    folder: &Path,
    mut state: State,
    weights: &Weights,
    meta: &hf::Meta,
    optimizer: &Optimizer,
    keep_last: usize,
) -> Result<PathBuf, CheckpointError> {
    let name = format!("step-{}", state.steps_done);
    let (path, temporary) = (folder.join(&name), folder.join(format!(".{name}.new")));
    let written = (|| {
        remove(&temporary)?;
        files::create_dir_all(&temporary)?;
        hf::save(&temporary, weights, meta)?;
        let (m, v) = optimizer.moments();
        let names: Vec<String> = parameter_specs(weights.config()).map(|spec| spec.name).collect();
        let named = |prefix: &'static str, moments| {
            names.iter().zip::<&[Tensor]>(moments).map(move |(name, t)| (format!("{prefix}.{name}"), t))
        };
        safetensors::write(temporary.join(OPTIMIZER), named("m", m).chain(named("v", v)), &BTreeMap::new())?;
        state.files = sizes(&temporary)?;
        let json = serde_json::to_vec_pretty(&state).expect("a state is made of numbers and strings");
        files::write_synced(&temporary.join(STATE), &json)?;
        files::sync_files(&temporary)?;
        remove(&path)?; // there can be one that is not complete
        Ok(files::rename(&temporary, &path)?)
    })();
    if let Err(e) = written {
        // What is reported is the error that led here.
        let _ = std::fs::remove_dir_all(&temporary);
        return Err(e);
    }
    // One of a later step is not whole, or the run would have gone on from it: it does not count.
    let whole = list(folder)?.into_iter().rev().filter(|&(steps_done, _)| steps_done <= state.steps_done);
    for (_, old) in whole.skip(keep_last) {
        remove(&old)?;
    }
    Ok(path)
}

/// The newest checkpoint in `folder` that is whole. `note` hears of those that are not; unfinished ones are removed.
pub fn latest(folder: &Path, note: &mut dyn FnMut(String)) -> Result<Option<(PathBuf, State)>, CheckpointError> {
    let failed = |reason| files::Error::new("read", folder, reason);
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".step-")) {
            note(format!("{}: an unfinished checkpoint is removed", path.display()));
            remove(&path)?;
        }
    }
    for (steps_done, path) in list(folder)?.into_iter().rev() {
        match read_state(&path) {
            Ok(state) if state.steps_done == steps_done => return Ok(Some((path, state))),
            Ok(state) => note(format!("{}: skipped: it is of step {}", path.display(), state.steps_done)),
            Err(e) => note(format!("{e}; skipped")),
        }
    }
    Ok(None)
}

/// Reads and checks `state.json`, and that the other files are there in full.
pub fn read_state(path: &Path) -> Result<State, CheckpointError> {
    let invalid = |reason| CheckpointError::Invalid { path: path.to_path_buf(), reason };
    let text = std::fs::read(path.join(STATE)).map_err(|e| invalid(format!("{STATE}: cannot be read: {e}")))?;
    let state: State = serde_json::from_slice(&text).map_err(|e| invalid(format!("{STATE}: {e}")))?;
    if state.format != FORMAT {
        return Err(invalid(format!("{STATE}: format {}, expected {FORMAT}", state.format)));
    }
    if state.steps_done > state.config.train.steps {
        let steps = state.config.train.steps;
        return Err(invalid(format!("{STATE}: steps_done = {}, of {steps} steps", state.steps_done)));
    }
    let sizes = sizes(path)?;
    for (name, &size) in &state.files {
        match sizes.get(name) {
            Some(&found) if found == size => {}
            Some(found) => return Err(invalid(format!("{name} has {found} bytes, expected {size}"))),
            None => return Err(invalid(format!("{name} is missing"))),
        }
    }
    Ok(state)
}

/// Weights and optimiser of a checkpoint whose state is `state`, to go on under `config`.
pub fn load(path: &Path, state: &State, config: &TrainConfig) -> Result<(Weights, Optimizer), CheckpointError> {
    if state.philox_rounds != philox::ROUNDS {
        let reason = format!("drawn with {} rounds of Philox, expected {}", state.philox_rounds, philox::ROUNDS);
        return Err(CheckpointError::Invalid { path: path.to_path_buf(), reason });
    }
    let weights = hf::load(path)?.weights;
    let sizes = weights.config();
    let file = safetensors::File::open(path.join(OPTIMIZER))?;
    let moments = |prefix: &str| {
        let load = |spec: model::ParameterSpec| file.load_shaped(&format!("{prefix}.{}", spec.name), spec.shape);
        parameter_specs(sizes).map(load).collect::<Result<Vec<Tensor>, _>>()
    };
    let (m, v) = (moments("m")?, moments("v")?);
    let optimizer = Optimizer::with_moments(sizes, config, m, v, state.steps_done as u32);
    Ok((weights, optimizer))
}

/// The folders named `step-N`, by N.
pub fn list(folder: &Path) -> Result<Vec<(usize, PathBuf)>, files::Error> {
    let failed = |reason| files::Error::new("read", folder, reason);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let number = path.file_name().and_then(|name| name.to_str()?.strip_prefix("step-")?.parse().ok());
        if let Some(number) = number {
            found.push((number, path));
        }
    }
    found.sort();
    Ok(found)
}

/// Removes a checkpoint, if it is there, so that no half of it is ever seen under its name.
fn remove(path: &Path) -> Result<(), files::Error> {
    if !path.exists() {
        return Ok(());
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let hidden = if name.starts_with('.') { path.to_path_buf() } else { path.with_file_name(format!(".{name}.old")) };
    if hidden != path {
        remove(&hidden)?;
        files::rename(path, &hidden)?;
    }
    std::fs::remove_dir_all(&hidden).map_err(|reason| files::Error::new("removed", &hidden, reason))
}

/// The files of a folder but `state.json`, with their sizes.
fn sizes(folder: &Path) -> Result<BTreeMap<String, u64>, files::Error> {
    let failed = |reason| files::Error::new("read", folder, reason);
    let mut sizes = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name != STATE {
            sizes.insert(name, entry.metadata().map_err(failed)?.len());
        }
    }
    Ok(sizes)
}
