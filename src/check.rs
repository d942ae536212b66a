//! `silurian check`: the kernels of a GPU against the CPU.

mod model;

use crate::terminal::{counted, say};
use anyhow::bail;
use cuda::Error;
use cuda_checks::{CHECKS, Check, Failed, Outcome, Size};
use silurian::device::DeviceArg;
use std::io;
use std::process::ExitCode;
use std::time::Duration;
use tensor::Device;

/// Check what a GPU computes: each kernel against the CPU's references, within derived bounds or bit for bit.
///
/// A line for each check tells how near its worst comparison came to its bound (1 is the bound). Exit code 1 if one fails. After a kernel that the
/// GPU itself stopped nothing more can run; KERNELS_CUDA_SYNC=1 then names the launch.
#[derive(clap::Args)]
pub struct Args {
    /// Only checks with one of these in their name, family::name
    #[arg(value_name = "WORD")]
    only: Vec<String>,

    /// The GPU: cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "cuda")]
    device: DeviceArg,

    /// Only the small shapes, which the tests of this software take without a GPU
    #[arg(long)]
    small: bool,

    /// Say what there is, and run nothing
    #[arg(long)]
    list: bool,
}

/// All of them: kernels, then what is made of them.
pub fn checks() -> impl Iterator<Item = &'static Check> {
    CHECKS.iter().chain(&model::CHECKS)
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let chosen: Vec<&Check> = checks().filter(|check| is_chosen(check, &args.only)).collect();
    if chosen.is_empty() {
        bail!("no check has {} in its name: --list says what there is", args.only.join(" or "));
    }
    if args.list {
        for check in chosen {
            say(format_args!("{}::{}", check.family, check.name))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let Device::Cuda(device) = args.device.open()? else { bail!("--device cpu: checks compare a GPU with the CPU") };
    let size = if args.small { Size::Small } else { Size::Card };
    let good = run_all(&device, &chosen, size, &mut |line| say(line))?;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn is_chosen(check: &Check, words: &[String]) -> bool {
    let name = format!("{}::{}", check.family, check.name);
    words.is_empty() || words.iter().any(|word| format!("::{name}").contains(word.as_str()))
}

/// Runs them in their order and tells; whether all passed. A kernel that fails ends them: the device is unusable from then on.
fn run_all(
    device: &cuda::Device,
    checks: &[&Check],
    size: Size,
    tell: &mut dyn FnMut(String) -> io::Result<()>,
) -> io::Result<bool> {
    let (mut passed, mut run, mut time) = (0, 0, Duration::ZERO);
    for check in checks {
        let outcome = check.run(device, size);
        tell(in_words(check, &outcome))?;
        run += 1;
        time += outcome.time;
        passed += usize::from(outcome.failed.is_none());
        if let Some(Failed::Device(Error::Kernel { .. })) = outcome.failed {
            tell(format!(
                "{} not run: the device cannot be used after that",
                counted((checks.len() - run) as u64, "check")
            ))?;
            break;
        }
    }
    tell(format!("{passed} of {} checks passed on {}, {:.1} s", checks.len(), device.name(), time.as_secs_f64()))?;
    Ok(passed == checks.len())
}

/// A line, and below it what went wrong.
fn in_words(check: &Check, outcome: &Outcome) -> String {
    let Outcome { comparisons, values, worst, failed, time } = outcome;
    let verdict = if failed.is_none() { "ok    " } else { "FAILED" };
    let worst = worst.as_ref().map_or(String::new(), |(share, what)| format!("{share:.2} of its bound ({what}); "));
    let mut line = format!(
        "{verdict} {}::{}: {worst}{comparisons} comparisons of {values} numbers, {:.1} s",
        check.family,
        check.name,
        time.as_secs_f64()
    );
    let below: Vec<String> = match failed {
        None => Vec::new(),
        Some(Failed::Comparisons(n, told)) => {
            let more = n.checked_sub(told.len()).filter(|&more| more > 0).map(|more| format!("and {more} more"));
            told.iter().cloned().chain(more).collect()
        }
        Some(Failed::Device(error)) => vec![error.to_string()],
        Some(Failed::Panic(message)) => vec![format!("panicked: {message}")],
    };
    for sentence in below {
        line += &format!("\n         {}", sentence.replace('\n', "\n         "));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use cuda::ops::elementwise::add;
    use cuda_checks::Run;
    use cuda_testing::Interpreter;

    const GOOD: Check = Check { family: "tests", name: "good", run: |run| sum(run, 2.0) };
    const BAD: Check = Check { family: "tests", name: "bad", run: |run| sum(run, 2.5) };
    /// Reads what nobody wrote.
    const FAULT: Check = Check {
        family: "tests",
        name: "fault",
        run: |run| {
            let (x, mut dst) = (run.stale(7)?, run.stale(7)?);
            add(x.as_slice(), x.as_slice(), dst.as_mut())
        },
    };

    fn sum(run: &mut Run, expected: f64) -> Result<(), Error> {
        let (x, mut dst) = (run.on(&[1.0])?, run.stale(1)?);
        add(x.as_slice(), x.as_slice(), dst.as_mut())?;
        run.within("add", &dst.to_vec()?, &[expected], |_| 0.1);
        Ok(())
    }

    fn told(checks: &[&Check]) -> (bool, Vec<String>) {
        let mut lines = Vec::new();
        let good = run_all(&Interpreter::default().device(), checks, Size::Small, &mut |line| {
            lines.push(line);
            Ok(())
        });
        (good.unwrap(), lines)
    }

    #[test]
    fn a_run_tells_what_passed_and_goes_on_after_what_did_not() {
        let (good, lines) = told(&[&GOOD, &BAD, &GOOD]);
        assert!(!good);
        assert!(lines[0].starts_with("ok     tests::good: 0.00 of its bound (add); 1 comparisons of 1"), "{lines:?}");
        assert!(
            lines[1].contains("FAILED tests::bad") && lines[1].contains("expected 2.5e0: off by 5e-1"),
            "{lines:?}"
        );
        assert!(lines[3].starts_with("2 of 3 checks passed on the interpreter"), "{lines:?}");
        assert!(told(&[&GOOD]).0);
    }

    #[test]
    fn a_kernel_that_the_device_stopped_ends_the_run_by_its_name() {
        let (good, lines) = told(&[&FAULT, &GOOD]);
        assert!(!good);
        assert!(lines[0].contains("add_f32 (launch 1") && lines[0].contains("never written"), "{lines:?}");
        assert!(lines[1].starts_with("1 check not run"), "{lines:?}");
        assert!(lines[2].starts_with("0 of 2 checks passed"), "{lines:?}");
    }

    /// Those of kernels are tests of `cuda`.
    #[test]
    fn models_are_trained_in_the_interpreter_as_on_the_cpu() {
        for check in &model::CHECKS {
            let outcome = check.run(&Interpreter::default().device(), Size::Small);
            outcome.unwrap();
            assert!(outcome.comparisons > 0, "{} compares nothing", check.name);
        }
    }

    #[test]
    fn words_choose_families_and_names() {
        let chosen = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|w| w.to_string()).collect();
            checks().filter(|check| is_chosen(check, &words)).count()
        };
        assert!(chosen(&[]) >= 45);
        assert!(chosen(&["::rows::"]) >= 10 && chosen(&["::rows::"]) < chosen(&[]));
        // Not those of gemm_gated_activation.
        assert!(chosen(&["::gated_activation::"]) < chosen(&["gated_activation::"]));
        assert_eq!(chosen(&["adamw"]), 1);
        assert_eq!(chosen(&["no such kernel"]), 0);
    }
}
