//! `silurian bench`: what the machine can do, and how near the kernels come to it.
//!
//! Every speed stands beside the limit that was measured in the same run. Repetitions go round all rows of a table (or by turns,
//! where two are compared), so that a bad spell of the machine falls on all of them; medians are printed with their spread.

mod cuda;
mod decode;
mod gemm;
mod limits;
mod machine;
mod plot;
mod prefill;
mod sparse;
mod train;

use crate::table::{Format, Spread, Table};
use crate::terminal::{complain, print};
use anyhow::{Context, bail, ensure};
use infer::{ActivationFormat, WeightFormat};
use kernels::limits::read_pass_gbs;
use kernels::{Level, Team};
use machine::{Disturbance, Machine};
use plot::Picture;
use serde_json::{Value, json};
use silurian::device::DeviceArg;
use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;
use tensor::Device;
use tensor::pool::Block;

/// Measure the machine's limits, and the share of them that kernels, decoding and training reach.
///
/// Without a subcommand: the limits. With --device cuda those of a GPU, which has kernels, ffn and all besides. Figures go to standard output, progress to standard error. `-t N` measures with N threads
/// instead of one and all.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: Option<What>,

    /// Repetitions of each measurement [default: what suits it]
    #[arg(short, long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    repetitions: Option<u16>,

    /// How the figures are written; json adds the machine, the date and the version
    #[arg(short, long, global = true, value_name = "FORMAT", default_value = "md")]
    output: Format,

    /// What is measured: cpu, cuda or cuda:N
    #[arg(long, global = true, value_name = "DEVICE", default_value_t)]
    device: DeviceArg,

    /// On a GPU: seconds after which no new measurement begins; rows without one stay empty
    #[arg(long, global = true, value_name = "SECONDS")]
    budget: Option<u64>,
}

#[derive(clap::Subcommand)]
enum What {
    /// The machine: arithmetic at each instruction set, and memory
    Limits,
    Gemm(gemm::Args),
    Sparse(sparse::Args),
    Decode(decode::Args),
    Prefill(prefill::Args),
    Train(train::Args),
    /// On a GPU: each kernel against what limits it
    Kernels,
    Ffn(cuda::ffn::Args),
    All(cuda::all::Args),
}

/// What a benchmark found.
struct Report {
    /// How it was measured, in sentences.
    method: String,
    tables: Vec<Table>,
    /// Where the page with the curves goes, if one was asked for.
    page: Option<PathBuf>,
    /// How it draws the tables of these names.
    pictures: Vec<(&'static str, Picture)>,
}

impl Report {
    /// Without a page.
    fn new(method: &str, tables: Vec<Table>) -> Report {
        Report { method: method.to_string(), tables, page: None, pictures: Vec::new() }
    }
}

/// What all benchmarks are asked.
struct Setting {
    repetitions: Option<u16>,
    /// Numbers of threads, one row or table part each.
    threads: Vec<usize>,
}

impl Setting {
    fn repetitions(&self, default: usize) -> usize {
        self.repetitions.map_or(default, usize::from)
    }

    fn teams(&self, level: Level) -> anyhow::Result<Vec<Team>> {
        self.threads.iter().map(|&threads| team(level, threads)).collect()
    }
}

fn team(level: Level, threads: usize) -> anyhow::Result<Team> {
    Team::try_new(level, threads).with_context(|| format!("--threads {threads}: the system refuses them"))
}

/// Runs the command. `threads` is what `-t` says.
pub fn run(args: Args, threads: Option<usize>) -> anyhow::Result<ExitCode> {
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.map_or(if all > 1 { vec![1, all] } else { vec![1] }, |n| vec![n]);
    let setting = Setting { repetitions: args.repetitions, threads };
    let disturbance = Disturbance::watch();
    let report = match (args.device.open()?, args.what.unwrap_or(What::Limits)) {
        (Device::Cuda(device), What::All(all)) => {
            ensure!(args.output == Format::Md, "--output: bench all writes Markdown");
            return cuda::all::run(all, args.device, &device);
        }
        (Device::Cuda(device), what) => cuda::run(&device, what, &setting, args.budget)?,
        (Device::Cpu, _) if args.budget.is_some() => bail!("--budget is for --device cuda"),
        (Device::Cpu, What::Limits) => limits::run(&setting)?,
        (Device::Cpu, What::Gemm(args)) => gemm::run(args, &setting)?,
        (Device::Cpu, What::Sparse(args)) => sparse::run(args, &setting)?,
        (Device::Cpu, What::Decode(args)) => decode::run(args, &setting)?,
        (Device::Cpu, What::Prefill(args)) => prefill::run(args, &setting)?,
        (Device::Cpu, What::Train(args)) => train::run(args, &setting)?,
        (Device::Cpu, What::Kernels | What::Ffn(_) | What::All(_)) => {
            bail!("bench kernels, ffn and all are for --device cuda")
        }
    };
    let figures = match args.output {
        Format::Md => markdown(&report, &disturbance),
        Format::Csv => report.tables.iter().map(Table::csv).collect::<Vec<_>>().join("\n"),
        Format::Json => format!("{:#}\n", json_of(&report, &disturbance)),
    };
    print(figures)?;
    if let Some(path) = &report.page {
        plot::page(&report, path)?;
        complain(format_args!("page      {}", path.display()));
    }
    Ok(ExitCode::SUCCESS)
}

fn markdown(report: &Report, disturbance: &Disturbance) -> String {
    let mut text = format!(
        "## `{}`\n\n{}, silurian {}. {}\n",
        command(),
        machine::now(),
        env!("CARGO_PKG_VERSION"),
        Machine::this().in_words()
    );
    if let Some([others, stolen]) = disturbance.cores() {
        text +=
            &format!("Meanwhile other processes used {others:.2} cores, and the hypervisor withheld {stolen:.2}.\n");
    }
    text += &format!("\n{}\n", report.method);
    for table in &report.tables {
        text += &format!("\n### {}\n\n{}", table.title, table.markdown());
    }
    text
}

fn json_of(report: &Report, disturbance: &Disturbance) -> Value {
    let cores = disturbance.cores();
    json!({
        "command": command(),
        "date": machine::now(),
        "version": env!("CARGO_PKG_VERSION"),
        "machine": Machine::this().json(),
        "other_processes_cores": cores.map(|c| c[0]),
        "withheld_cores": cores.map(|c| c[1]),
        "method": report.method,
        "tables": report.tables.iter().map(Table::json).collect::<Vec<_>>(),
    })
}

/// The command line that was given, after the name that the program has for everybody.
fn command() -> String {
    let arguments = std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned());
    std::iter::once("silurian".to_string()).chain(arguments).collect::<Vec<_>>().join(" ")
}

fn progress(what: impl std::fmt::Display) {
    complain(format_args!("bench: {what}"));
}

fn seconds(f: impl FnOnce()) -> f64 {
    let start = Instant::now();
    f();
    start.elapsed().as_secs_f64()
}

/// Elements of what is read to find the limit of reading: 512 MiB, beyond any cache.
const LARGE: usize = 128 << 20;

/// A block of [`LARGE`] elements in huge pages.
fn large_block() -> Block {
    let mut block = Block::new(4 * LARGE);
    // Pages that were never written are all one page of zeros, which a cache holds.
    block.elements_mut().fill(1.0f32);
    block
}

/// The rate of reading memory on `team` at this moment, in GB/s.
fn read_now(team: &Team, large: &Block) -> f64 {
    read_pass_gbs(team, &large.elements()[..LARGE])
}

/// The median share of `gbs` in the rate of reading that was measured next to it, in percent.
fn read_percent(gbs: &[f64], read: &[f64]) -> f64 {
    100.0 * Spread::of(gbs.iter().zip(read).map(|(gbs, read)| gbs / read)).median
}

/// How weights are kept and multiplied.
#[derive(Clone, Copy)]
struct Formats {
    weights: WeightFormat,
    activations: ActivationFormat,
}

impl Formats {
    /// `activations` are those of q8 and q4 weights; others are multiplied exactly.
    fn new(weights: WeightFormat, activations: ActivationFormat) -> Formats {
        Formats { weights, activations: if weights.is_quantised() { activations } else { ActivationFormat::Exact } }
    }

    /// Of a weight in rows of `cols`, with all that they need.
    fn bytes(self, cols: usize) -> f64 {
        self.weights.row_bytes(cols) as f64 / cols as f64
    }
}

impl fmt::Display for Formats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.activations {
            ActivationFormat::Exact => write!(f, "{}", self.weights),
            ActivationFormat::Q8 => write!(f, "{} x q8", self.weights),
        }
    }
}

/// The value of a `--zeros` flag: a percentage.
fn parse_percent(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(p) if (0.0..=100.0).contains(&p) => Ok(p),
        _ => Err("expected a percentage, 0 to 100".to_string()),
    }
}
