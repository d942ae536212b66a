//! `silurian quickstart`, and `silurian` alone: the method from end to end on a text that the program makes itself.

mod closed_book;
mod speed;

use crate::almanac::{Files, TEXT_BYTES};
use crate::source;
use crate::terminal::{quoted, say};
use crate::train::{free_folder, start};
use infer::{CpuEngine, EngineOptions, FfnMode};
use model::{HiddenAct, Psi, Switch};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tensor::Device;
use train::almanac::Almanac;
use train::config::TrainConfig;
use train::report::{self, Results};

/// Train a small model on a generated text, ask it questions, and decode from it, dense and sparse.
///
/// The text is the almanac: an invented world of people, towns and events, told in plain English. The model learns it with
/// StochA(0.5) and switches to RELU for the last 10 % of the steps. Then it answers questions that the text never asks, and writes,
/// with every neuron and with the active ones alone.
#[derive(clap::Args)]
pub struct Args {
    /// Optimiser steps
    #[arg(long, value_name = "N", default_value_t = STEPS)]
    steps: usize,

    /// Of the world, the weights and the draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// The run's folder; the text goes beside it [default: runs/quickstart, or the next free runs/quickstart-N]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Some five minutes with the rest on two quiet Zen 5 cores (12,000 tokens/s). Answers to held-out questions come late and all at
/// once: in a run of 2400 steps, none is right after 1200, 8 % after 1800, 32 % at the end.
const STEPS: usize = 3500;

impl Default for Args {
    fn default() -> Self {
        Args { steps: STEPS, seed: 0, out: None }
    }
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let folder = args.out.clone().unwrap_or_else(|| free_folder(Path::new("runs/quickstart")));
    let almanac = Almanac::new(args.seed);
    let (files, are_there) = place(&folder, &almanac, args.seed);
    let config = config(&args, files.text.clone());
    config.check()?;
    if folder.symlink_metadata().is_ok() {
        return Err(train::Error::Exists { path: folder }.into());
    }
    if !are_there {
        files.write(&almanac, TEXT_BYTES)?;
    }
    say("Silurian's quick start: train with stochastic activations, switch to RELU, decode sparsely.")?;
    let (facts, text) = (almanac.fact_count(), files.text.display());
    say(format_args!("The text is an almanac of {facts} facts about an invented world: {text}\n"))?;
    let code = start(&folder, config, &Device::Cpu)?;
    if code != ExitCode::SUCCESS {
        return Ok(code);
    }

    let weights = source::open(&folder)?.load_all()?;
    let engine = |ffn| CpuEngine::new(&weights, EngineOptions { ffn, ..EngineOptions::new(Psi::Relu) });
    let (mut dense, mut sparse) = (engine(FfnMode::Dense)?, engine(FfnMode::Sparse)?);
    let questions = closed_book::ask(&mut sparse, &almanac.questions())?;
    let (decoding, samples) = speed::compare(&mut dense, &mut sparse, args.steps)?;
    Results { questions, decoding: vec![decoding], samples }.write(&folder)?;
    let report = report::default_output(&[&folder]);
    report::write(&[&folder], &report)?;
    say(format_args!("\nReport    {}", report.display()))?;
    next(&folder, &files)?;
    Ok(ExitCode::SUCCESS)
}

/// Where the text is, or where it can go: beside the run's folder, where later commands can name it and later quick starts find
/// it. And whether it is there.
fn place(folder: &Path, almanac: &Almanac, seed: u64) -> (Files, bool) {
    let usual = folder.with_file_name(format!("almanac-{seed}"));
    let files = Files::of(&usual);
    if files.hold(almanac, TEXT_BYTES) { (files, true) } else { (Files::of(&free_folder(&usual)), false) }
}

/// The preset of 5 million parameters, with five layers, which leave time for more steps: what is answered depends on those more than
/// on the depth (docs/log.md). Steps of 1024 tokens: of the same tokens, twice as many as `train` would make of them.
fn config(args: &Args, text: PathBuf) -> TrainConfig {
    let mut config = TrainConfig::default();
    config.model.preset = Some("5m".to_string());
    config.model.n_layers = Some(5);
    config.data.paths = vec![text];
    let t = &mut config.train;
    t.steps = args.steps;
    t.micro_batch = 4;
    t.seed = args.seed;
    t.warmup_steps = (args.steps / 10).clamp(1, 100);
    t.switch = Some(Switch { to: HiddenAct::Relu, alpha: 0.1 });
    t.eval_every = args.steps.div_ceil(6).max(10);
    t.eval_tokens = 1 << 14;
    t.sample_every = 0;
    t.checkpoint_every = args.steps;
    config
}

/// What to try with this run and after it.
fn next(folder: &Path, files: &Files) -> anyhow::Result<()> {
    let (run, config, questions) = (quoted(folder), quoted(&folder.join("config.toml")), quoted(&files.held_out));
    let commands = [
        (format!("generate -m {run} -p 'As everyone knows, '"), "more of its text"),
        (format!("eval qa -m {run} {questions}"), "the held-out questions, kind by kind"),
        (format!("inspect {run}"), "its sizes and costs"),
        (format!("train --config {config} --activation silu"), "the same with SILU before the switch"),
        ("almanac --seed 1 --out another-world".to_string(), "another text with its questions"),
        ("train YOUR.txt --name mine --preset 5m --steps 2000".to_string(), "your own text"),
    ];
    say("\nNext (without an installation, `cargo run --release --` stands for `silurian`):")?;
    let width = commands.iter().map(|(command, _)| command.len()).max().unwrap_or(0);
    for (command, what) in &commands {
        say(format_args!("  silurian {command:width$}   {what}"))?;
    }
    Ok(())
}
