//! `silurian bench --device cuda all`: all checks, then all benchmarks, into one file.

use super::super::machine::{Machine, now};
use super::{commit, in_words};
use crate::check::checks;
use crate::terminal::complain;
use anyhow::Context;
use silurian::device::DeviceArg;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Everything that is to be done on a GPU: all checks, then all benchmarks, into one file.
///
/// Each part is a process of its own with a time of its own: a kernel that fails, or never ends, takes its part with it and no other. The file
/// grows as parts come to their ends, so that nothing is lost if the machine is. Exit code 1 if a part failed.
#[derive(clap::Args)]
pub struct Args {
    /// The file for the results
    #[arg(long, value_name = "FILE")]
    out: PathBuf,

    /// Seconds for all of it
    #[arg(long, value_name = "SECONDS", default_value_t = 480, value_parser = clap::value_parser!(u64).range(10..=86_400))]
    time: u64,
}

/// A part: what it is called in the file, the arguments of its process, and the seconds that it may take.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    title: String,
    arguments: Vec<String>,
    seconds: u64,
}

/// How a part ends that is well.
const DONE: &str = "done";
/// And one that never began.
const NOT_RUN: &str = "not run: the time was up";
/// Lines of what a part that failed said on standard error.
const LAST_LINES: usize = 30;

/// Seconds for the checks of a family, at most.
const SECONDS_OF_CHECKS: u64 = 40;

/// A benchmark ends by itself before these seconds are over.
const BENCHMARKS: [(&str, u64); 9] = [
    ("limits", 20),
    ("kernels", 60),
    ("gemm", 30),
    ("ffn", 60),
    // Each alone: large ones need memory, and a while for their weights.
    ("train --models 15m --precision f32,bf16", 20),
    ("train --models 125m", 30),
    ("train --models 1.5b", 60),
    ("decode --models 1.3b", 30),
    ("decode --models 8b", 110),
];

fn parts(device: DeviceArg) -> Vec<Part> {
    let words = |words: &[&str]| words.iter().map(|word| word.to_string()).collect::<Vec<_>>();
    let device = device.to_string();
    // By family, so that one that ends the device does not take the others with it.
    let mut families: Vec<&str> = checks().map(|check| check.family).collect();
    families.dedup();
    let checks = families.into_iter().map(|family| Part {
        title: format!("Checks: {family}"),
        arguments: words(&["check", "--device", &device, &format!("::{family}::")]),
        seconds: SECONDS_OF_CHECKS,
    });
    let benchmarks = BENCHMARKS.iter().map(|&(what, seconds)| Part {
        title: format!("Benchmark: {what}"),
        arguments: {
            let budget = (seconds * 3 / 4).to_string();
            let first = ["bench", "--device", &device, "--budget", &budget];
            words(&first.into_iter().chain(what.split(' ')).collect::<Vec<_>>())
        },
        seconds,
    });
    checks.chain(benchmarks).collect()
}

pub(in super::super) fn run(args: Args, arg: DeviceArg, device: &cuda::Device) -> anyhow::Result<ExitCode> {
    let mut out = File::create(&args.out).with_context(|| format!("--out {}", args.out.display()))?;
    let head = format!(
        "# GPU results\n\n{}, silurian {}, commit {}. {}\n\n{}\n",
        now(),
        env!("CARGO_PKG_VERSION"),
        commit(),
        in_words(device),
        Machine::this().in_words()
    );
    out.write_all(head.as_bytes())?;
    let program = std::env::current_exe().context("the path of this program")?;
    let good = run_parts(&program, &parts(arg), Duration::from_secs(args.time), &args.out)?;
    complain(format_args!("results   {}", args.out.display()));
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs the parts, each with its output at the end of the file; whether all went well.
fn run_parts(program: &Path, parts: &[Part], time: Duration, out: &Path) -> anyhow::Result<bool> {
    let start = Instant::now();
    let mut failed = Vec::new();
    for part in parts {
        let left = time.saturating_sub(start.elapsed());
        let limit = left.min(Duration::from_secs(part.seconds));
        complain(format_args!(
            "bench: {} (at {:.0} s of {} s)",
            part.title,
            start.elapsed().as_secs_f64(),
            time.as_secs()
        ));
        let verdict = if left.is_zero() { NOT_RUN.to_string() } else { run_part(program, part, limit, out, false)? };
        if verdict == DONE {
            continue;
        }
        // To learn which launch it was.
        if verdict != NOT_RUN && part.arguments[0] == "check" {
            run_part(program, part, limit.min(time.saturating_sub(start.elapsed())), out, true)?;
        }
        failed.push(format!("{}: {verdict}", part.title));
    }
    let summary = match failed.as_slice() {
        [] => format!("All {} parts went well.", parts.len()),
        failed => format!("{} of {} parts did not go well: {}.", failed.len(), parts.len(), failed.join("; ")),
    };
    append(out, &format!("\n## Summary\n\n{summary} {:.0} s.\n", start.elapsed().as_secs_f64()))?;
    complain(format_args!("{summary}"));
    Ok(failed.is_empty())
}

/// Runs a part for so long at most, and says how it ended: `done` if well. With `each_waits`, each launch waits for its end.
fn run_part(program: &Path, part: &Part, limit: Duration, out: &Path, each_waits: bool) -> anyhow::Result<String> {
    let again = if each_waits { ", each launch alone" } else { "" };
    // What checks print is no Markdown.
    let fence = if part.arguments[0] == "check" { "```\n" } else { "" };
    append(out, &format!("\n# {}{again}\n\n{fence}", part.title))?;
    let said = out.with_extension("stderr");
    let mut command = Command::new(program);
    command
        .args(&part.arguments)
        .stdin(Stdio::null())
        .stdout(File::options().append(true).open(out)?)
        .stderr(File::create(&said)?);
    if each_waits {
        command.env(cuda::SYNC_VARIABLE, "1");
    }
    let start = Instant::now();
    let mut child = command.spawn().with_context(|| format!("{}", program.display()))?;
    let verdict = wait(&mut child, limit)?;
    if verdict != DONE {
        // Its errors, and where it was: the rest is progress.
        let said = std::fs::read_to_string(&said).unwrap_or_default();
        let lines: Vec<&str> = said.lines().collect();
        let last = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n");
        append(out, &format!("{}{last}\n```\n", if fence.is_empty() { "```\n" } else { "" }))?;
    } else {
        append(out, fence)?;
    }
    let _ = std::fs::remove_file(&said);
    append(out, &format!("\n{}: {verdict}, {:.1} s.\n", part.title, start.elapsed().as_secs_f64()))?;
    Ok(verdict)
}

fn wait(child: &mut Child, limit: Duration) -> anyhow::Result<String> {
    let start = Instant::now();
    loop {
        match child.try_wait()? {
            Some(status) if status.success() => return Ok(DONE.to_string()),
            Some(status) => return Ok(format!("FAILED, {status}")),
            None if start.elapsed() >= limit => {
                child.kill()?;
                child.wait()?;
                return Ok(format!("KILLED after {:.0} s", limit.as_secs_f64()));
            }
            None => sleep(Duration::from_millis(20)),
        }
    }
}

fn append(out: &Path, text: &str) -> anyhow::Result<()> {
    let mut file = File::options().append(true).open(out).with_context(|| format!("{}", out.display()))?;
    Ok(file.write_all(text.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(title: &str, kind: &str, script: &str) -> Part {
        // The first word is what says whether a part is of checks; for the shell it is a file that there is.
        Part { title: title.into(), arguments: vec![kind.into(), script.into()], seconds: 2 }
    }

    /// A program that runs its second argument in a shell, whatever the first.
    fn program(folder: &Path) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = folder.join("program");
        std::fs::write(&path, "#!/bin/sh\neval \"$2\"\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn a_part_that_fails_or_never_ends_takes_no_other_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("results.md");
        std::fs::write(&out, "# head\n").unwrap();
        let parts = [
            shell("one", "bench", "echo first"),
            shell("two", "check", "echo waits=$KERNELS_CUDA_SYNC; echo a reason >&2; exit 3"),
            Part { seconds: 0, ..shell("three", "bench", "echo begun; sleep 100") },
            shell("four", "bench", "echo last"),
        ];
        assert!(!run_parts(&program(folder.path()), &parts, Duration::from_secs(60), &out).unwrap());
        let text = std::fs::read_to_string(&out).unwrap();
        for piece in [
            "# head\n",
            "# one\n\nfirst\n\none: done",
            "waits=\n",
            "waits=1\na reason\n```\n",
            "two: FAILED, exit status: 3",
            "# four\n\nlast\n",
        ] {
            assert!(text.contains(piece), "{piece:?} in {text}");
        }
        assert!(
            text.contains("2 of 4 parts did not go well: two: FAILED, exit status: 3; three: KILLED after 0 s."),
            "{text}"
        );
        assert!(run_parts(&program(folder.path()), &parts[..1], Duration::from_secs(60), &out).unwrap());
        // No time for any.
        assert!(!run_parts(&program(folder.path()), &parts[..1], Duration::ZERO, &out).unwrap());
        assert!(std::fs::read_to_string(&out).unwrap().contains("one: not run: the time was up"));
    }

    /// The parts are commands of this program, and all checks are among them.
    #[test]
    fn the_parts_are_commands() {
        use clap::Parser;
        let parts = parts(DeviceArg::Cuda(1));
        let mut titles: Vec<&str> = parts.iter().map(|part| part.title.as_str()).collect();
        for part in &parts {
            let line = std::iter::once("silurian".to_string()).chain(part.arguments.iter().cloned());
            crate::Cli::try_parse_from(line).unwrap_or_else(|e| panic!("{part:?}: {e}"));
        }
        for check in checks() {
            assert!(titles.contains(&format!("Checks: {}", check.family).as_str()), "{}", check.family);
        }
        titles.sort_unstable();
        titles.dedup();
        assert_eq!(titles.len(), parts.len(), "each family once");
    }
}
