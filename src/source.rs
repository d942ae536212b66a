//! Which model a `-m` means, and which activation a flag means.

use anyhow::{Context, bail};
use model::Psi;
use model::hf::{self, Checkpoint};
use std::path::{Path, PathBuf};

/// A loaded model and where it came from.
pub struct Source {
    /// The folder with `config.json` and `model.safetensors`.
    pub folder: PathBuf,
    /// Weights and what the config says beside the sizes.
    pub checkpoint: Checkpoint,
}

/// Loads a model from a Hugging Face folder, or from the newest checkpoint of a run folder.
pub fn load(path: &Path) -> anyhow::Result<Source> {
    let folder = folder(path)?;
    let checkpoint = hf::load(&folder)?;
    Ok(Source { folder, checkpoint })
}

/// The Hugging Face folder that `path` names.
pub fn folder(path: &Path) -> anyhow::Result<PathBuf> {
    if path.join("config.json").is_file() {
        return Ok(path.to_path_buf());
    }
    if !path.exists() {
        bail!("{}: there is no such folder", path.display());
    }
    let checkpoints = path.join("checkpoints");
    let whole = |folder: &PathBuf| train::checkpoint::read_state(folder).is_ok();
    let newest = if checkpoints.is_dir() {
        train::checkpoint::list(&checkpoints)?.into_iter().rev().map(|(_, folder)| folder).find(whole)
    } else {
        None
    };
    newest.with_context(|| {
        let why = if !path.is_dir() {
            "is a file; a model is a folder: a run, or one with config.json and model.safetensors".to_string()
        } else if checkpoints.is_dir() {
            "a run that has no checkpoint yet".to_string()
        } else {
            format!("neither a model (no config.json) nor a run with a checkpoint{}", runs_in(path))
        };
        format!("{}: {why}", path.display())
    })
}

/// `; did you mean runs/a, runs/b?` where a folder holds runs.
fn runs_in(path: &Path) -> String {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut runs: Vec<String> =
        entries.filter(|p| p.join("checkpoints").is_dir()).map(|p| p.display().to_string()).collect();
    runs.sort();
    if runs.is_empty() { String::new() } else { format!("; did you mean {}?", runs.join(", ")) }
}

/// Bytes are the only tokens so far: anything else needs a tokenizer that is not there.
pub fn require_bytes(source: &Source) -> anyhow::Result<()> {
    let vocab_size = source.checkpoint.weights.config().vocab_size;
    if vocab_size != 256 {
        bail!(
            "{}: vocab_size = {vocab_size}: only byte models (256) can read and write text so far",
            source.folder.display()
        );
    }
    Ok(())
}

/// Refuses samples that would all be the same one.
pub fn require_draws(flag: &str, psi: Psi, temperature: f32) -> anyhow::Result<()> {
    if temperature == 0.0 && !psi.draws() {
        bail!(
            "{flag}: --temp 0 and {psi} draw nothing, so all samples would be the same: raise --temp, or draw with \
             --activation stochastic:P"
        );
    }
    Ok(())
}

/// Refuses an activation under which a text has not one likelihood but one for each draw.
pub fn require_deterministic(flag: &str, psi: Psi) -> anyhow::Result<()> {
    if psi.draws() {
        bail!("{flag} {psi}: must be an activation that draws nothing, such as relu");
    }
    Ok(())
}

/// The value of an `--activation` flag: `relu`, `silu` or `stochastic:P`.
pub fn parse_psi(text: &str) -> Result<Psi, String> {
    match (text, text.strip_prefix("stochastic:")) {
        ("relu", _) => Ok(Psi::Relu),
        ("silu", _) => Ok(Psi::Silu),
        (_, Some(p)) => match p.parse() {
            Ok(p) if (0.0..=1.0).contains(&p) => Ok(Psi::Stochastic { p }),
            _ => Err(format!("the probability of SILU, {p}, is not a number from 0 to 1")),
        },
        _ => Err("expected relu, silu or stochastic:P, with P the probability of SILU for negative inputs".to_string()),
    }
}
