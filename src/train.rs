//! `silurian train`: from a text to a model.

use crate::narrator::Narrator;
use crate::source::{self, parse_psi, parse_share};
use crate::terminal::complain;
use anyhow::{Context, anyhow, bail};
use model::{HiddenAct, Psi, Switch};
use silurian::device::DeviceArg;
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tensor::Device;
use train::config::{ConfigError, TrainConfig};
use train::report;
use train::trainer::{Outcome, Trainer};

/// Train a model on text files, folders of text, or .jsonl files.
///
/// A run is a folder (runs/NAME): config.toml, metrics.jsonl, checkpoints/step-N, report.html. Ctrl-C saves a checkpoint; --resume goes on
/// from the newest one, to the same bits as an uninterrupted run.
///
/// What is not given here comes from --config, and else from the defaults, which suit models of 1 to 15 million parameters.
/// The defaults are the paper's method: StochA(0.5), then RELU for the last 10 % of the steps.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Text files, folders (all .txt, .md and .jsonl below), .jsonl files
    #[arg(value_name = "PATH")]
    data: Vec<PathBuf>,

    /// A configuration in TOML, such as a run's config.toml; flags override it
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// The run's folder is runs/NAME [default: the name of the first PATH, or the next free NAME-2, NAME-3, ..]
    #[arg(long, value_name = "NAME", conflicts_with = "out")]
    name: Option<String>,

    /// The run's folder, anywhere
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Go on with a run from its newest checkpoint. Flags may change what is reported and kept, not what is learnt
    #[arg(long, value_name = "DIR", conflicts_with_all = ["name", "out"])]
    resume: Option<PathBuf>,

    /// tiny, 5m, 15m, 60m, 125m, 350m, 1.5b, 3b: see `silurian inspect` [default: tiny]
    #[arg(long, value_name = "NAME", conflicts_with = "from")]
    preset: Option<String>,

    /// Start from the weights of a run folder (its newest checkpoint) or a Hugging Face folder
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,

    /// psi until the switch: relu, silu, gelu, relu2, tanh, stochastic:P or stochastic:P:A,B[:POSITIVE]. Below 0 a stochastic one
    /// is B with probability P and else A (relu,silu if not given); from 0 on it is identity or silu [default: stochastic:0.5]
    #[arg(long, value_name = "PSI", value_parser = parse_psi)]
    activation: Option<Psi>,

    /// Swi+FT: the share of the steps, at the end, that run under RELU (or train.switch.to); 0 is no switch [default: 0.1]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = parse_share)]
    alpha: Option<f64>,

    /// Optimiser steps [default: 1000]
    #[arg(long, value_name = "N")]
    steps: Option<usize>,

    /// Tokens of a sequence, at most the context of the model (model.max_seq_len) [default: 256]
    #[arg(long, value_name = "T")]
    seq_len: Option<usize>,

    /// Tokens of an optimiser step [default: micro-batch x seq-len]
    #[arg(long, value_name = "N")]
    batch_tokens: Option<usize>,

    /// Sequences that go through the model at once: decides the memory; the result changes by rounding alone [default: 8]
    #[arg(long, value_name = "B")]
    micro_batch: Option<usize>,

    /// The highest learning rate [default: 0.002]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    lr: Option<f64>,

    /// Of weights, order of the data, and draws [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Where to compute: cpu, cuda or cuda:N (a GPU's number, from 0)
    #[arg(long, value_name = "DEVICE", default_value_t)]
    device: DeviceArg,

    /// Any key of the configuration: --set train.weight_decay=0.05 --set model.d_ff=1024
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

const EXAMPLES: &str = "\
Examples:
  silurian train book.txt --name book --steps 2000
  silurian train book.txt --name swift --activation silu --alpha 0.1  Swi+FT without StochA
  silurian train notes/ --preset 5m --set train.switch.alpha=0.2
  silurian train book.txt --activation stochastic:0.5:relu,gelu:silu  another pair, SILU for x >= 0
  silurian train book.txt --set train.l1=0.1                          more zeros
  silurian train book.txt --device cuda --set train.precision=bf16    on a GPU; f32 without --set
  silurian train --resume runs/book";

/// The share of the steps under RELU unless the user says otherwise: the upper end of the paper's 0.05 to 0.10, because runs
/// here are short and the loss needs some hundred steps to settle after the switch.
const DEFAULT_ALPHA: f64 = 0.1;

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let device = args.device.open()?;
    if let Some(folder) = &args.resume {
        let stored = folder.join("config.toml");
        let config = match (&args.config, stored.is_file()) {
            (Some(file), _) => Some(args.apply(TrainConfig::read(file)?)?),
            (None, true) => {
                let base = TrainConfig::read(stored)?;
                Some(args.apply(base.clone())?).filter(|config| *config != base)
            }
            // Not a run: the trainer says so.
            (None, false) => None,
        };
        let mut narrator = Narrator::new(folder);
        let trainer = Trainer::resume(folder, config, &device, &mut narrator).map_err(|e| match &e {
            train::Error::NotARun { path, .. } => anyhow!("{e}{}", source::runs_in(path)),
            _ => e.into(),
        })?;
        return drive(trainer, folder, &mut narrator);
    }
    let mut config = match &args.config {
        Some(file) => TrainConfig::read(file)?,
        None => {
            let mut config = TrainConfig::default();
            config.train.switch = Some(Switch { to: HiddenAct::Relu, alpha: DEFAULT_ALPHA });
            config
        }
    };
    config = args.apply(config)?;
    if config.data.paths.is_empty() {
        bail!(
            "no data: name a text file, a folder or a .jsonl file (silurian train book.txt), or a --config that does"
        );
    }
    let folder = match (&args.out, &args.name) {
        (Some(out), _) => out.clone(),
        (None, Some(name)) => named(name)?,
        (None, None) => free_folder(&Path::new("runs").join(stem(&config.data.paths[0]))),
    };
    start(&folder, config, &device)
}

/// Trains in a new folder, telling the terminal.
pub fn start(folder: &Path, config: TrainConfig, device: &Device) -> anyhow::Result<ExitCode> {
    let mut narrator = Narrator::new(folder);
    let trainer = Trainer::create(folder, config, device, &mut narrator)?;
    drive(trainer, folder, &mut narrator)
}

/// Runs until the end or Ctrl-C. At the end, the report goes into the folder.
fn drive(mut trainer: Trainer, folder: &Path, narrator: &mut Narrator) -> anyhow::Result<ExitCode> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            // The second Ctrl-C: the user does not want to wait. The last checkpoint is whole.
            std::process::exit(130);
        }
        complain(format_args!("\nstopping after this step; the checkpoint is saved (Ctrl-C again: stop at once)"));
    })
    .context("cannot listen for Ctrl-C")?;
    match trainer.run(&stop, narrator)? {
        Outcome::Finished => {
            let report = folder.join(report::FILE);
            match report::write(&[folder], &report) {
                Ok(()) => narrator.line(format_args!("report    {}", report.display())),
                // The run is whole without it.
                Err(e) => complain(format_args!("note: no report: {e}")),
            }
            Ok(ExitCode::SUCCESS)
        }
        // 128 + SIGINT, as shells report it.
        Outcome::Interrupted => Ok(ExitCode::from(130)),
    }
}

impl Args {
    /// The configuration with the flags' values in place of its own.
    fn apply(&self, mut config: TrainConfig) -> anyhow::Result<TrainConfig> {
        fn put<T: Clone>(place: &mut T, value: &Option<T>) {
            if let Some(value) = value {
                *place = value.clone();
            }
        }
        let t = &mut config.train;
        put(&mut t.steps, &self.steps);
        put(&mut t.micro_batch, &self.micro_batch);
        put(&mut t.lr, &self.lr);
        put(&mut t.seed, &self.seed);
        t.seq_len = self.seq_len.or(t.seq_len);
        t.batch_tokens = self.batch_tokens.or(t.batch_tokens);
        if let Some(alpha) = self.alpha {
            t.switch = Some(Switch { to: t.switch.map_or(HiddenAct::Relu, |switch| switch.to), alpha });
        }
        if let Some(psi) = self.activation {
            config.activation = psi.into();
        }
        if self.preset.is_some() {
            config.model.preset = self.preset.clone();
        }
        if let Some(from) = &self.from {
            config.model.preset = None;
            config.model.from = Some(source::folder(from)?);
        }
        if !self.data.is_empty() {
            config.data.paths = self.data.clone();
        }
        config.check()?;
        self.set.iter().try_fold(config, |config, assignment| set(config, assignment))
    }
}

/// The configuration with one `section.key=value` set. The value is TOML; what is not is taken as a string.
fn set(config: TrainConfig, assignment: &str) -> anyhow::Result<TrainConfig> {
    let flag = || format!("--set {assignment}");
    let (key, value) = assignment.split_once('=').with_context(|| format!("{}: expected KEY=VALUE", flag()))?;
    let mut all: toml::Table = toml::from_str(&config.to_toml()).context("a configuration is TOML")?;
    let value: toml::Value = match toml::from_str::<toml::Table>(&format!("value = {value}")) {
        // More keys come from a line break in the value, which TOML would take for the next key.
        Ok(mut parsed) if parsed.len() == 1 => parsed.remove("value").expect("it was just set"),
        _ => toml::Value::String(value.to_string()),
    };
    let mut keys: Vec<&str> = key.split('.').collect();
    let last = keys.pop().expect("split gives at least one part");
    let mut table = &mut all;
    for part in keys {
        let entry = table.entry(part).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        table = entry.as_table_mut().with_context(|| format!("{}: {part} is not a section", flag()))?;
    }
    table.insert(last.to_string(), value);
    let text = toml::to_string(&all).context("a table is TOML")?;
    TrainConfig::from_toml(&text, Path::new(&flag())).map_err(|e| match e {
        // Its place is in a text that the user does not see; the last line says what is wrong.
        ConfigError::Parse { reason, .. } => {
            let reason = reason.lines().last().unwrap_or_default();
            let sections = ["model", "activation", "data", "train"].map(|section| format!("{section}.{assignment}"));
            let meant = sections.iter().find(|meant| !key.contains('.') && set(config.clone(), meant).is_ok());
            let hint = meant.map_or(String::new(), |meant| format!("; did you mean --set {meant}?"));
            anyhow::anyhow!("{}: {reason}{hint}", flag())
        }
        // The line is one of a text that the user does not see.
        ConfigError::Value { key, value, expected, .. } => {
            ConfigError::Value { place: Some(format!("{}: ", flag())), key, value, expected }.into()
        }
        e => e.into(),
    })
}

/// The folder of the run of this name.
fn named(name: &str) -> anyhow::Result<PathBuf> {
    let path = Path::new(name);
    if name.is_empty() || !path.components().all(|part| matches!(part, Component::Normal(_))) {
        bail!("--name {name:?}: must name a folder below runs; --out takes any folder");
    }
    Ok(Path::new("runs").join(path))
}

/// `path`, or `path-2`, `path-3`, .. if it is taken.
pub fn free_folder(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let numbered = (2..).map(|n| path.with_file_name(format!("{name}-{n}")));
    std::iter::once(path.to_path_buf())
        .chain(numbered)
        .find(|p| p.symlink_metadata().is_err())
        .expect("names do not run out")
}

/// A file's name without its extension.
fn stem(path: &Path) -> String {
    path.file_stem().map_or("run".to_string(), |s| s.to_string_lossy().into_owned())
}
