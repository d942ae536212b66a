//! `silurian inspect`: what a model costs before it is trained or run.
use std::process::ExitCode;
/// x
#[derive(clap::Args)]
pub struct Args {}
/// Runs the command.
pub fn run(_: Args) -> anyhow::Result<ExitCode> {
    Ok(ExitCode::SUCCESS)
}
