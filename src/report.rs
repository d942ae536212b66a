//! `silurian report`: a run, or several, as a page with plots.

use crate::source::runs_in;
use crate::terminal::say;
use anyhow::anyhow;
use std::path::PathBuf;
use std::process::ExitCode;
use train::report::ReportError;

/// Write a report of a run, or of several beside each other: one HTML file with plots.
///
/// Losses with the switch to RELU enlarged, zeros by layer, dead neurons and gate_proj row norms, speed, samples, and what was
/// measured after training. The file needs nothing beside it, and runs that still go on can be reported too. Of several runs,
/// differences are to the first.
#[derive(clap::Args)]
pub struct Args {
    /// Run folders
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,

    /// The file; an earlier report is replaced, anything else is kept [default: RUN/report.html; beside the first of several]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let output = args.output.unwrap_or_else(|| train::report::default_output(&args.runs));
    train::report::write(&args.runs, &output).map_err(|e| {
        let hint = if let ReportError::NotARun { path, .. } = &e { runs_in(path) } else { String::new() };
        anyhow!("{e}{hint}")
    })?;
    say(format_args!("report    {}", output.display()))?;
    Ok(ExitCode::SUCCESS)
}
