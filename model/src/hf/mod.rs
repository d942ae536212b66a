//! A model as a Hugging Face folder: `config.json` and `model.safetensors`, as `transformers` writes and loads them for
//! `LlamaForCausalLM`.
//!
//! `hidden_act` says what the model is meant to run with: `relu`, `silu`, `gelu` (the exact form), `relu2` or `tanh`. A
//! stochastic model says what its run switches to; without a switch `relu` if that is in its pair, as in the paper's, and else
//! the first of the pair. Its full specification is kept under one further key, `silurian`, which other readers ignore.
//!
//! [`load`] takes what [`save`] wrote and what others wrote: both spellings of the rotary parameters (`rope_theta` and
//! `rope_scaling`, or transformers 5's `rope_parameters`), one file or shards with an index, f32, bf16 or f16 (widened).
//! A field that would change the result and that this crate does not implement is refused by name.

mod config_json;
mod tensors;
#[cfg(test)]
mod tests;

use crate::{Config, HiddenAct, Psi, Switch, Weights, parameter_specs};
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use tensor::Shape;

/// The file with the sizes.
pub const CONFIG: &str = "config.json";
/// The file with the parameters.
pub const WEIGHTS: &str = "model.safetensors";
/// The file that says which shard holds which parameter, where there are several.
pub const INDEX: &str = "model.safetensors.index.json";

/// What a checkpoint says beside its sizes and parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct Meta {
    /// The activation at the time of saving. Written as [`Meta::hidden_act`]; a stochastic one in full under `silurian`.
    pub psi: Psi,
    /// The switch that the run's schedule has, whether before or behind this checkpoint.
    pub switch: Option<Switch>,
    /// The token that begins a text, if there is one.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a text.
    pub eos_token_ids: Vec<u32>,
}

impl Meta {
    /// What a fixed activation without a schedule and without special tokens says.
    pub fn new(psi: Psi) -> Meta {
        Meta { psi, switch: None, bos_token_id: None, eos_token_ids: Vec::new() }
    }

    /// What the model is meant to run with: the activation if it draws nothing; else what the switch turns to, and without one
    /// [`Psi::hidden_act`].
    pub fn hidden_act(&self) -> HiddenAct {
        hidden_act(self.psi, self.switch)
    }
}

fn hidden_act(psi: Psi, switch: Option<Switch>) -> HiddenAct {
    match switch {
        // A share of 0 is no switch.
        Some(Switch { to, alpha }) if psi.draws() && alpha > 0.0 => to,
        _ => psi.hidden_act(),
    }
}

/// A loaded folder.
pub struct Checkpoint {
    /// The parameters, and with them the config.
    pub weights: Weights,
    /// The rest.
    pub meta: Meta,
}

/// Why a folder cannot be written or read. Every message names the file, and the field or tensor.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A safetensors file cannot be written or read.
    #[error(transparent)]
    Safetensors(#[from] tensor::safetensors::Error),
    /// Another file cannot be read.
    #[error("{}: cannot be read: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's words.
        reason: io::Error,
    },
    /// Another file cannot be written.
    #[error("{}: cannot be written: {reason}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's words.
        reason: io::Error,
    },
    /// It is not JSON, or not an object.
    #[error("{}: not a JSON object: {reason}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The parser's words, with line and column.
        reason: String,
    },
    /// A field is missing, or has a value that no model here has.
    #[error("{}: {field} is {found}, expected {expected}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field; fields of an object are `object.field`.
        field: String,
        /// Its value as JSON, or `missing`.
        found: String,
        /// What it must be.
        expected: String,
    },
    /// There are no parameters in the folder.
    #[error("{}: holds neither {WEIGHTS} nor {INDEX}", dir.display())]
    NoWeights {
        /// The folder.
        dir: PathBuf,
    },
    /// The tensors are not those that the config asks for.
    #[error("{}: its tensors are not those of {CONFIG}: {mismatch}", path.display())]
    Tensors {
        /// The weights' file, or the index.
        path: PathBuf,
        /// Which.
        mismatch: Mismatch,
    },
}

/// How the tensors of a file differ from those of a config. Displayed with the first few names of each kind and the count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mismatch {
    /// In the config, not in the file.
    pub missing: Vec<String>,
    /// In the file, not in the config.
    pub unexpected: Vec<String>,
    /// In both: name, shape in the file, shape after the config.
    pub shapes: Vec<(String, Vec<usize>, Shape)>,
}

impl Mismatch {
    fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.shapes.is_empty()
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Enough to see the pattern, few enough for a line.
        const SHOWN: usize = 4;
        let shapes = self.shapes.iter().map(|(name, found, expected)| format!("{name} is {found:?}, not {expected}"));
        let kinds = [
            ("missing", self.missing.clone()),
            ("unexpected", self.unexpected.clone()),
            ("of another shape", shapes.collect()),
        ];
        let parts = kinds.iter().filter(|(_, names)| !names.is_empty()).map(|(kind, names)| {
            let more = if names.len() > SHOWN { ", ..." } else { "" };
            format!("{} {kind} ({}{more})", names.len(), names[..names.len().min(SHOWN)].join(", "))
        });
        f.write_str(&parts.collect::<Vec<_>>().join("; "))
    }
}

/// Writes [`CONFIG`] and [`WEIGHTS`] into the folder `dir`, which must exist, and waits until they are on the disk.
///
/// The parameters are written as f32, so [`load`] gives the same bits back. An error may leave a part of a file: write into
/// a folder of a temporary name, and rename it afterwards.
pub fn save(dir: impl AsRef<Path>, weights: &Weights, meta: &Meta) -> Result<(), Error> {
    let dir = dir.as_ref();
    write_synced(&dir.join(CONFIG), config_json::write(weights.config(), meta).as_bytes())?;
    let names = parameter_specs(weights.config()).map(|spec| spec.name);
    // Older transformers refuse a file that does not say which framework's layout it has; `pt` is PyTorch's.
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    Ok(tensor::safetensors::write(dir.join(WEIGHTS), names.zip(weights.tensors()), &metadata)?)
}

/// Reads a folder.
///
/// Embeddings that `tie_word_embeddings` ties are handled as by transformers 5: a `lm_head.weight` that equals the embedding
/// table is dropped, and one that differs makes the model untied (`weights.config().tie_embeddings` says which it is).
pub fn load(dir: impl AsRef<Path>) -> Result<Checkpoint, Error> {
    let folder = Folder::open(dir)?;
    Ok(Checkpoint { weights: folder.load_all()?, meta: folder.meta })
}

/// A folder whose config and tensors have been checked, with the parameters still in their files, which are mapped: to take them
/// out one at a time, or only some.
pub struct Folder {
    dir: PathBuf,
    parameters: tensors::Parameters,
    meta: Meta,
}

impl Folder {
    /// Checks all but the elements. Errors are those of [`load`].
    pub fn open(dir: impl AsRef<Path>) -> Result<Folder, Error> {
        let dir = dir.as_ref();
        let (config, meta) = load_config(dir)?;
        Ok(Folder { dir: dir.to_path_buf(), parameters: tensors::Parameters::open(dir, config)?, meta })
    }

    /// The path that it was opened by.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The sizes, as [`load`] gives them.
    pub fn config(&self) -> &Config {
        &self.parameters.config
    }

    /// The rest.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Parameter number `index` of the fixed order of [`parameter_specs`]. Panics if there are not so many.
    pub fn load(&self, index: usize) -> Result<tensor::Tensor, Error> {
        self.parameters.load(index)
    }

    /// All parameters.
    pub fn load_all(&self) -> Result<Weights, Error> {
        self.parameters.load_all()
    }

    /// The files with the parameters, in the order in which they are named first.
    pub fn weight_files(&self) -> &[tensor::safetensors::File] {
        &self.parameters.files.files
    }
}

/// Reads [`CONFIG`] only.
pub fn load_config(dir: impl AsRef<Path>) -> Result<(Config, Meta), Error> {
    let path = dir.as_ref().join(CONFIG);
    config_json::read(&path, &read_json(&path)?)
}

fn read_json(path: &Path) -> Result<serde_json::Map<String, serde_json::Value>, Error> {
    let text = fs::read(path).map_err(|reason| Error::Read { path: path.to_path_buf(), reason })?;
    serde_json::from_slice(&text).map_err(|e| Error::Json { path: path.to_path_buf(), reason: e.to_string() })
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let write = || {
        let mut file = fs::File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|reason| Error::Write { path: path.to_path_buf(), reason })
}
