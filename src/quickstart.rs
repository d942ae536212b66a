//! `silurian quickstart`, and `silurian` alone: the method from end to end on a text that the program makes itself.

use crate::source;
use crate::terminal::{bytes, grouped, say};
use crate::train::{free_folder, start};
use anyhow::Context;
use infer::{CpuEngine, EngineOptions, FfnMode, Generation, Request, Sampler, Sampling, generate};
use model::{HiddenAct, Psi, Switch};
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use train::almanac::Almanac;
use train::config::TrainConfig;
use train::data::Tokenizer;

/// Train a small model on a generated text and decode from it, dense and sparse.
///
/// The text is the almanac: an invented world of people and towns, told in plain English. The model learns it with StochA(0.5)
/// and switches to RELU for the last 10 % of the steps. Then it writes, with every neuron and with the active ones alone.
#[derive(clap::Args)]
pub struct Args {
    /// Optimiser steps
    #[arg(long, value_name = "N", default_value_t = STEPS)]
    steps: usize,

    /// Of the world, the weights and the draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// The run's folder [default: runs/quickstart, or the next free runs/quickstart-N]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Under a minute of training on two Zen 5 cores (49 s while others used them too).
const STEPS: usize = 400;

/// Bytes of the text: each of its some 350 facts is told about 15 times.
const TEXT_BYTES: usize = 400_000;

/// Tokens of each text that is written at the end.
const DECODE_TOKENS: usize = 160;

/// Times that dense and sparse decoding take turns; the median counts.
const ROUNDS: usize = 5;

impl Default for Args {
    fn default() -> Self {
        Args { steps: STEPS, seed: 0, out: None }
    }
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let folder = args.out.clone().unwrap_or_else(|| free_folder(Path::new("runs/quickstart")));
    let world = Almanac::new(args.seed);
    let text = write_text(&folder, &world, args.seed)?;
    say("Silurian's quick start: train with stochastic activations, switch to RELU, decode sparsely.\n")?;
    let code = start(&folder, config(&args, text))?;
    if code != ExitCode::SUCCESS {
        return Ok(code);
    }
    decode(&folder)?;
    say(format_args!("\nNext:"))?;
    say(format_args!("  silurian generate -m {} -p 'In '", folder.display()))?;
    say("  silurian train YOUR.txt --name mine --steps 2000")?;
    say("  silurian train --help")?;
    Ok(ExitCode::SUCCESS)
}

/// The almanac as a file beside the run's folder, where the next command can name it.
fn write_text(folder: &Path, world: &Almanac, seed: u64) -> anyhow::Result<PathBuf> {
    let beside = folder.parent().unwrap_or(Path::new(""));
    let path = beside.join(format!("almanac-{seed}.txt"));
    let text = world.text(TEXT_BYTES);
    if fs::read_to_string(&path).is_ok_and(|old| old == text) {
        return Ok(path);
    }
    fs::create_dir_all(beside).with_context(|| format!("{}: cannot be made", beside.display()))?;
    fs::write(&path, text).with_context(|| format!("{}: cannot be written", path.display()))?;
    Ok(path)
}

/// Two million parameters, with a wide FFN: that is where the zeros are.
fn config(args: &Args, text: PathBuf) -> TrainConfig {
    let mut config = TrainConfig::default();
    config.model.preset = Some("tiny".to_string());
    config.model.d_model = Some(192);
    config.model.n_heads = Some(6);
    config.model.n_kv_heads = Some(3);
    config.model.d_ff = Some(768);
    config.data.paths = vec![text];
    let t = &mut config.train;
    t.steps = args.steps;
    t.seq_len = Some(256);
    t.micro_batch = 8;
    t.seed = args.seed;
    t.lr = 3e-3;
    t.warmup_steps = (args.steps / 10).clamp(1, 50);
    t.switch = Some(Switch { to: HiddenAct::Relu, alpha: 0.1 });
    t.eval_every = (args.steps / 4).max(1);
    t.eval_tokens = 1 << 14;
    t.sample_every = 0;
    t.checkpoint_every = args.steps;
    config
}

/// Writes with the trained model: dense and sparse by turns, the same text both times.
fn decode(folder: &Path) -> anyhow::Result<()> {
    let source = source::load(folder)?;
    let weights = &source.checkpoint.weights;
    let engine = |ffn| CpuEngine::new(weights, EngineOptions { ffn, ..EngineOptions::new(Psi::Relu) });
    let (mut dense, mut sparse) = (engine(FfnMode::Dense)?, engine(FfnMode::Sparse)?);
    let mut sampler = Sampler::new(Sampling { temperature: 0.7, ..Sampling::GREEDY })?;
    let prompt = Tokenizer::Bytes.encode("In ");
    let mut write = |engine: &mut CpuEngine, sample| {
        let request = Request {
            prompt: &prompt,
            max_tokens: DECODE_TOKENS.min(weights.config().max_seq_len - prompt.len()),
            stop: &[],
            sample,
        };
        generate(engine, &mut sampler, request, |_| ControlFlow::Continue(()))
    };

    let (mut rates_dense, mut rates_sparse, mut shown) = (Vec::new(), Vec::new(), None);
    for round in 0..ROUNDS as u32 {
        let (a, b) = (write(&mut dense, round)?, write(&mut sparse, round)?);
        anyhow::ensure!(a.tokens == b.tokens, "dense and sparse decoding differ in sample {round}: this is a bug");
        rates_dense.push(rate(&a));
        rates_sparse.push(rate(&b));
        shown.get_or_insert(b);
    }
    let shown = shown.expect("there is at least one round");
    let (rate_dense, rate_sparse) = (median(&mut rates_dense), median(&mut rates_sparse));
    let zeros = 1.0 - shown.mean_density().unwrap_or(1.0);

    say("\nThe model writes (RELU, sparse FFN):")?;
    for line in format!("In {}", Tokenizer::Bytes.decode(&shown.tokens)).lines() {
        say(format_args!("  | {line}"))?;
    }
    let c = weights.config();
    let ffn = 3 * c.n_layers * c.d_ff * c.d_model * size_of::<f32>();
    say(format_args!("\nDecoding {} tokens, {ROUNDS} times by turns, the same text with both:", shown.tokens.len()))?;
    say(format_args!("  dense   {rate_dense:>7.0} tokens/s"))?;
    say(format_args!(
        "  sparse  {rate_sparse:>7.0} tokens/s: {:.2} times as fast, with {:.1} % zeros",
        rate_sparse / rate_dense,
        100.0 * zeros
    ))?;
    say(format_args!(
        "The FFN is {} of the {} parameters ({}). With the gate read in full, its bytes allow {:.2} times; a model this\n\
         small lives in the caches, where more than the bytes count. Larger models gain more.",
        grouped((ffn / size_of::<f32>()) as u64),
        grouped(c.parameters() as u64),
        bytes(ffn as u64),
        3.0 / (1.0 + 2.0 * (1.0 - zeros))
    ))?;
    Ok(())
}

fn rate(done: &Generation) -> f64 {
    done.decode_rate().unwrap_or(0.0)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
