//! `silurian bench train`: whole training steps against the peak of multiplying and adding.

use super::machine::{peak_resident, require_memory, reset_peak_resident};
use super::{Report, Setting, progress, seconds};
use crate::source::parse_psi;
use crate::table::{Cell, Column, Spread, Table};
use anyhow::{Context, bail, ensure};
use kernels::limits::fma_gflops;
use kernels::{Level, Team};
use model::{Config, PRESETS, Precision, Psi, PsiAt, preset};
use silurian::synthetic::TrainStep;
use std::sync::Arc;
use tensor::{Device, pool};

/// Training steps (forward, backward and AdamW) on random tokens, on the CPU in f32.
///
/// On the CPU three sizes, with the vocabulary, sequences and batch that other software was timed with: S 6.8M parameters, M 33.6M,
/// L 124.7M. On a GPU the presets 15m, 125m and 1.5b, with steps for one. Or a preset.
#[derive(clap::Args)]
pub struct Args {
    /// Of S, M, L, 15m, 125m and 1.5b [default: S,M,L, on a GPU 15m,125m,1.5b]
    #[arg(long, value_name = "SIZE,...", value_delimiter = ',', value_parser = parse_size)]
    models: Vec<Size>,

    /// A preset instead
    #[arg(long, value_name = "NAME", conflicts_with = "models")]
    preset: Option<String>,

    /// Tokens of the preset's vocabulary
    #[arg(long, value_name = "V", default_value_t = 256, requires = "preset")]
    vocab_size: usize,

    /// Tokens of a sequence of the preset
    #[arg(long, value_name = "T", default_value_t = 256, requires = "preset")]
    seq_len: usize,

    /// Sequences of a step of the preset
    #[arg(long, value_name = "B", default_value_t = 8, requires = "preset")]
    micro_batch: usize,

    /// The activation, as in `silurian train`
    #[arg(long, value_name = "PSI", default_value = "silu", value_parser = parse_psi)]
    pub(super) activation: Psi,

    /// On a GPU: f32, bf16, or both [default: bf16]
    #[arg(long, value_name = "TYPE,...", value_delimiter = ',', value_parser = parse_precision)]
    pub(super) precision: Vec<Precision>,
}

fn parse_precision(name: &str) -> Result<Precision, String> {
    let known = [Precision::F32, Precision::Bf16].into_iter().find(|precision| precision.to_string() == name);
    known.ok_or_else(|| "expected f32 or bf16".to_string())
}

const COLUMNS: [Column; 12] = [
    Column::text("model", "model"),
    Column::number("parameters", "parameters"),
    Column::text("step", "B x T"),
    Column::text("activation", "activation"),
    Column::text("level", "level"),
    Column::number("threads", "threads"),
    Column::spread("tokens_per_second", "tokens/s"),
    Column::spread("gflops", "GFLOP/s"),
    Column::number("peak_gflops", "peak, GFLOP/s"),
    Column::number("peak_percent", "share of peak, %"),
    Column::number("tensor_mib", "tensors at most, MiB"),
    Column::number("resident_mib", "process at most, MiB"),
];

const METHOD: &str = "Whole steps after two to warm up. GFLOP/s by the model's arithmetic: 6 for each parameter of a projection or of \
the LM head and token, and attention over the causal half; what backward computes again is not counted. The peak is the best of \
many passes of multiply-adds in registers, before and after the steps.";

/// A model and the shape of its step.
#[derive(Clone, Debug)]
pub(super) struct Size {
    pub name: String,
    pub config: Config,
    pub micro_batch: usize,
    pub seq_len: usize,
}

fn parse_size(name: &str) -> Result<Size, String> {
    let (vocab_size, d_model, n_layers, n_heads, d_ff, micro_batch, seq_len) = match name {
        "S" => (4096, 256, 6, 8, 768, 8, 256),
        "M" => (8192, 512, 8, 8, 1536, 4, 512),
        "L" => (32_000, 768, 12, 12, 2048, 2, 512),
        _ => return of_a_gpu(name).ok_or_else(|| "expected S, M, L, 15m, 125m or 1.5b".to_string()),
    };
    let config = Config {
        vocab_size,
        d_model,
        n_layers,
        n_heads,
        n_kv_heads: 4,
        head_dim: d_model / n_heads,
        d_ff,
        max_seq_len: seq_len,
        rope_theta: 10_000.0,
        rope_scaling: None,
        norm_eps: 1e-5,
        tie_embeddings: false,
    };
    Ok(Size { name: name.to_string(), config, micro_batch, seq_len })
}

/// A preset with a step for a GPU. The peer in benches/peers has the same.
fn of_a_gpu(name: &str) -> Option<Size> {
    let (vocab_size, micro_batch, seq_len) = match name {
        "15m" => (256, 32, 512),
        "125m" => (32_000, 16, 1024),
        "1.5b" => (32_000, 4, 2048),
        _ => return None,
    };
    Some(Size { name: name.to_string(), config: preset(name, vocab_size)?, micro_batch, seq_len })
}

impl Args {
    /// Those that are asked for, or else these.
    pub(super) fn sizes(&self, default: &[&str]) -> anyhow::Result<Vec<Size>> {
        let Some(name) = &self.preset else {
            let default = || default.iter().map(|name| parse_size(name).expect("a size")).collect();
            return Ok(if self.models.is_empty() { default() } else { self.models.clone() });
        };
        let names = || PRESETS.map(|(name, _)| name).join(", ");
        let config =
            preset(name, self.vocab_size).with_context(|| format!("--preset {name}: must be one of {}", names()))?;
        config.validate()?;
        let (micro_batch, seq_len) = (self.micro_batch, self.seq_len);
        if seq_len == 0 || seq_len > config.max_seq_len {
            bail!("--seq-len {seq_len}: must be 1 to {}, the model's context", config.max_seq_len);
        }
        // As in training.
        let tokens = micro_batch.checked_mul(seq_len);
        ensure!(
            micro_batch > 0 && tokens.is_some_and(|tokens| u32::try_from(tokens).is_ok()),
            "--micro-batch {micro_batch}: must be at least 1, and micro-batch x seq-len below 2^32"
        );
        Ok(vec![Size { name: name.clone(), config, micro_batch, seq_len }])
    }
}

pub(super) fn run(args: Args, setting: &Setting) -> anyhow::Result<Report> {
    ensure!(!args.precision.contains(&Precision::Bf16), "--precision bf16: for --device cuda; the CPU trains in f32");
    let sizes = args.sizes(&["S", "M", "L"])?;
    for size in &sizes {
        let needed = size.config.training_memory(size.micro_batch * size.seq_len, Precision::F32).total();
        require_memory(&format!("bench train: model {}", size.name), needed)?;
    }
    let mut table = Table::new("train", "Training, f32".to_string(), &COLUMNS);
    let teams: Vec<_> = setting.teams(Level::from_env()?)?.into_iter().map(Arc::new).collect();
    for size in &sizes {
        for team in &teams {
            table.push(measure(team, size, args.activation, setting.repetitions(5)));
        }
    }
    Ok(Report::new(METHOD, vec![table]))
}

fn measure(team: &Arc<Team>, size: &Size, activation: Psi, repetitions: usize) -> Vec<Cell> {
    const WARM_UP: usize = 2;
    let Size { name, config, micro_batch, seq_len } = size;
    // What the last model left counts in neither peak.
    pool::trim();
    let resets = reset_peak_resident();
    let mut peak = fma_gflops(team);
    let rates = team.install(|| {
        let step = TrainStep::new(config, *micro_batch, *seq_len, &Device::Cpu);
        let mut step = step.expect("memory of the CPU, which was seen to be there");
        let times = (0..WARM_UP + repetitions).map(|i| {
            progress(format_args!("train, {name}, -t {}, step {} of {}", team.threads(), i + 1, WARM_UP + repetitions));
            let psi = PsiAt { psi: activation, seed: 0, first_token: 0, step: i as u32 };
            seconds(|| {
                step.run(psi);
            })
        });
        let times: Vec<f64> = times.collect();
        Spread::of(times[WARM_UP..].iter().map(|time| step.tokens() as f64 / time))
    });
    peak = peak.max(fma_gflops(team));
    let flops = config.flops_per_token(*seq_len);
    let gflop = (flops.forward + flops.backward) / 1e9;
    let gflops = Spread { median: gflop * rates.median, min: gflop * rates.min, max: gflop * rates.max };
    let mib = |bytes: u64| Cell::Count(bytes >> 20);
    vec![
        name.clone().into(),
        config.parameters().into(),
        format!("{micro_batch} x {seq_len}").into(),
        activation.to_string().into(),
        team.level().to_string().into(),
        team.threads().into(),
        rates.into(),
        gflops.into(),
        peak.into(),
        (100.0 * gflops.median / peak).into(),
        mib(pool::stats().peak_bytes),
        peak_resident().filter(|_| resets).map_or(Cell::Absent, mib),
    ]
}
