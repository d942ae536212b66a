//! The command line: one file per subcommand.
#![forbid(unsafe_code)]

mod almanac;
mod bench;
mod check;
mod eval;
mod generate;
mod inspect;
mod narrator;
mod quickstart;
mod report;
mod source;
mod table;
mod terminal;
mod train;

use anyhow::Context;
use clap::{Parser, Subcommand};
use kernels::{Level, Team};
use std::process::ExitCode;
use std::sync::Arc;

/// Train, sparsify and run transformers with stochastic activations.
///
/// Without a subcommand: the quick start, which trains a small model on a built-in text, asks it questions, and decodes from it.
#[derive(Parser)]
#[command(version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,

    /// Threads of the kernels [default: all cores; bench: one, then all]. What is computed does not depend on it.
    #[arg(short, long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=MAX_THREADS))]
    threads: Option<u16>,
}

/// More than the cores of any machine, and few enough that no system runs out of what a thread takes.
const MAX_THREADS: i64 = 4096;

const EXAMPLES: &str = "\
First steps:
  silurian                                             the quick start
  silurian train book.txt --steps 2000 --name book     StochA(0.5), then RELU for the last tenth
  silurian generate -m runs/book -p 'It was '          continue a prompt, with the sparse FFN
  silurian eval -m runs/book other.txt                 loss and zeros on another text
  silurian eval qa -m runs/book questions.jsonl        answers to questions, greedy or best of N
  silurian report runs/book runs/other                 one page with plots of both
  silurian bench                                       what this machine can do at most
  silurian check --device cuda                         what a GPU computes, held against the CPU

KERNELS_SIMD=scalar|portable|avx2|avx512 forces an instruction set.";

#[derive(Subcommand)]
enum Command {
    Quickstart(quickstart::Args),
    Almanac(almanac::Args),
    Train(Box<train::Args>),
    Generate(Box<generate::Args>),
    Eval(Box<eval::Args>),
    Inspect(inspect::Args),
    Report(report::Args),
    Bench(bench::Args),
    Check(check::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(error) if terminal::is_closed_pipe(&error) => terminal::CLOSED_PIPE.into(),
        Err(error) => {
            terminal::complain(format_args!("error: {}", terminal::in_words(&error)));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let level = Level::from_env()?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = cli.threads.map_or(cores, usize::from);
    let team =
        Team::try_new(level, threads).with_context(|| format!("--threads {threads}: the system refuses them"))?;
    let team = Arc::new(team);
    team.install(|| match cli.command {
        None => quickstart::run(quickstart::Args::default()),
        Some(Command::Quickstart(args)) => quickstart::run(args),
        Some(Command::Almanac(args)) => almanac::run(args),
        Some(Command::Train(args)) => train::run(*args),
        Some(Command::Generate(args)) => generate::run(*args),
        Some(Command::Eval(args)) => eval::run(*args),
        Some(Command::Inspect(args)) => inspect::run(args),
        Some(Command::Report(args)) => report::run(args),
        Some(Command::Bench(args)) => bench::run(args, cli.threads.map(usize::from)),
        Some(Command::Check(args)) => check::run(args),
    })
}
