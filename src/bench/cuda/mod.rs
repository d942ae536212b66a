//! `silurian bench --device cuda`: what a GPU can do, and the share of it that kernels, decoding and training reach.
//!
//! All times are the device's own, between events. A command measures copying first, so that its shares are of a limit of the same run.

pub(super) mod all;
mod cards;
mod clock;
mod decode;
pub(super) mod ffn;
mod gemm;
mod kernels;
mod limits;
mod train;

use super::{Report, Setting, What};
use crate::terminal::bytes;
use anyhow::{Context, bail, ensure};
use clock::Gpu;
use cuda::Device;
use std::time::{Duration, Instant};

/// Measures on a device. `budget`: seconds after which no new measurement begins.
pub(super) fn run(device: &Device, what: What, setting: &Setting, budget: Option<u64>) -> anyhow::Result<Report> {
    let until = budget.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let gpu = Gpu::new(device, setting.repetitions(7), until);
    let report = match what {
        What::Limits => limits::run(&gpu),
        What::Gemm(args) => {
            ensure!(args.levels.is_empty(), "--levels: instruction sets are for the CPU");
            gemm::run(&gpu, args)
        }
        What::Kernels => kernels::run(&gpu, &kernels::OF_A_CARD),
        What::Ffn(args) => ffn::run(&gpu, args),
        What::All(_) => bail!("bench all runs the other benchmarks, each in a process of its own"),
        What::Sparse(_) => bail!("bench sparse measures the CPU; on a GPU it is `bench --device cuda ffn`"),
        What::Train(args) => train::run(&gpu, &args),
        What::Decode(args) => decode::run(&gpu, args),
        What::Prefill(_) => bail!("bench prefill measures the CPU so far"),
    };
    let mut report = report.with_context(|| format!("bench on {}", device.name()))?;
    report.method = format!("{} {}", in_words(device), report.method);
    Ok(report)
}

/// The GPU, its driver, and the commit of this program, in the words that belong beside a figure.
fn in_words(device: &Device) -> String {
    let p = device.properties();
    let driver = std::fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    let driver = driver
        .lines()
        .next()
        .and_then(|line| line.strip_prefix("NVRM version:"))
        .map_or(String::new(), |name| format!(" ({})", name.split_whitespace().collect::<Vec<_>>().join(" ")));
    format!(
        "GPU: {}, compute capability {}.{}, {} multiprocessors, {} of memory; the driver supports CUDA {}.{}{driver}. Commit {}.",
        p.name,
        p.compute_capability.0,
        p.compute_capability.1,
        p.multiprocessors,
        bytes(p.total_memory as u64),
        p.driver_version.0,
        p.driver_version.1,
        commit(),
    )
}

/// What this program was built from, if the build was told: `SILURIAN_COMMIT=$(git rev-parse HEAD) cargo build --release`.
fn commit() -> &'static str {
    option_env!("SILURIAN_COMMIT").unwrap_or("not stated")
}
