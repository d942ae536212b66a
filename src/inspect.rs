//! `silurian inspect`: what a model costs before it is trained or run.

use crate::source;
use crate::terminal::{bytes, grouped, say};
use anyhow::{Context, bail};
use infer::{KvFormat, WeightFormat, filter_bytes, resident_bytes, resident_filter_path, resident_path};
use model::{Config, PRESETS, Precision, TrainingMemory, preset};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Parameters, memory and operations of a model.
///
/// Without a model or preset: the presets.
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("subject").args(["model", "preset"]))]
pub struct Args {
    /// A run folder (its newest checkpoint) or a Hugging Face folder
    #[arg(value_name = "DIR", conflicts_with = "preset")]
    model: Option<PathBuf>,

    /// A preset instead
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,

    /// Tokens that a preset's vocabulary has
    #[arg(long, value_name = "V", default_value_t = 256, conflicts_with = "model", requires = "preset")]
    vocab_size: usize,

    /// Tokens of a sequence [default: 256, or the model's context if that is shorter]
    #[arg(long, value_name = "T", requires = "subject")]
    seq_len: Option<usize>,

    /// Sequences that go through the model at once in training
    #[arg(long, value_name = "B", default_value_t = 8, requires = "subject")]
    micro_batch: usize,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (name, config, dir) = match (&args.model, &args.preset) {
        (Some(path), _) => {
            let folder = source::open(path)?;
            let meta = folder.meta();
            let act = match meta.psi {
                psi if psi.hidden_act() == meta.hidden_act() && psi == meta.hidden_act().into() => psi.to_string(),
                psi => format!("saved under {psi}, meant to run with {}", model::Psi::from(meta.hidden_act())),
            };
            (format!("{} ({act})", folder.dir().display()), folder.config().clone(), Some(folder.dir().to_path_buf()))
        }
        (None, Some(name)) => {
            let names = || PRESETS.map(|(name, _)| name).join(", ");
            let config = preset(name, args.vocab_size)
                .with_context(|| format!("--preset {name}: must be one of {}", names()))?;
            config.validate()?;
            (format!("preset {name}"), config, None)
        }
        (None, None) => return presets(),
    };
    let seq_len = args.seq_len.unwrap_or(config.max_seq_len.min(256));
    if seq_len == 0 || seq_len > config.max_seq_len {
        bail!("--seq-len {seq_len}: must be 1 to {}, the model's context", config.max_seq_len);
    }
    if args.micro_batch == 0 {
        bail!("--micro-batch 0: must be at least 1");
    }
    // As in training.
    if args.micro_batch.checked_mul(seq_len).is_none_or(|tokens| u32::try_from(tokens).is_err()) {
        bail!("--micro-batch {}: micro-batch x seq-len must be below 2^32", args.micro_batch);
    }
    tell((&name, dir.as_deref()), &config, seq_len, args.micro_batch)?;
    Ok(ExitCode::SUCCESS)
}

fn presets() -> anyhow::Result<ExitCode> {
    say("preset  d_model  layers  heads  kv    d_ff  context   parameters without embeddings")?;
    for (name, about) in PRESETS {
        let c = preset(name, 256).expect("a preset of the table");
        let counts = c.parameter_counts();
        say(format_args!(
            "{name:<6}  {:>7}  {:>6}  {:>5}  {:>2}  {:>6}  {:>7}  {:>13}   {about}",
            c.d_model,
            c.n_layers,
            c.n_heads,
            c.n_kv_heads,
            c.d_ff,
            c.max_seq_len,
            grouped((c.n_layers * counts.layer + counts.norm) as u64),
        ))?;
    }
    say("\nMore of one: silurian inspect --preset 5m")?;
    Ok(ExitCode::SUCCESS)
}

fn tell((name, dir): (&str, Option<&Path>), c: &Config, seq_len: usize, micro_batch: usize) -> std::io::Result<()> {
    let n = c.parameter_counts();
    let total = c.parameters();
    let share = |part: usize| format!("{:.1} %", 100.0 * part as f64 / total as f64);
    say(name)?;
    say(format_args!(
        "sizes        {} layers, d_model {}, {} heads of {} on {} key-value heads, d_ff {}, vocabulary {}, context {}",
        c.n_layers, c.d_model, c.n_heads, c.head_dim, c.n_kv_heads, c.d_ff, c.vocab_size, c.max_seq_len
    ))?;
    say(format_args!("parameters   {}", grouped(total as u64)))?;
    let tied = if c.tie_embeddings { ", tied" } else { "" };
    say(format_args!(
        "  embeddings {:>14}  {} (token table and LM head{tied})",
        grouped(n.embeddings as u64),
        share(n.embeddings)
    ))?;
    say(format_args!("  a layer    {:>14}  {} each", grouped(n.layer as u64), share(n.layer)))?;
    let ffn = c.n_layers * n.layer_ffn;
    say(format_args!("  all FFNs   {:>14}  {}: what sparse decoding saves on", grouped(ffn as u64), share(ffn)))?;

    let flops = c.flops_per_token(seq_len);
    let mega = |x: f64| format!("{:.1} MFLOP", x / 1e6);
    say(format_args!("operations   for a token, in sequences of {seq_len}"))?;
    say(format_args!("  forward    {:>14}", mega(flops.forward)))?;
    say(format_args!("  training   {:>14}  forward and backward", mega(flops.forward + flops.backward)))?;

    say(format_args!(
        "training     with {micro_batch} sequences of {seq_len} at once (estimate), by train.precision; bf16 is for a GPU"
    ))?;
    say("                      f32        bf16")?;
    let [wide, bf16] = [Precision::F32, Precision::Bf16].map(|p| c.training_memory(micro_batch * seq_len, p));
    for (what, size) in [
        ("memory", TrainingMemory::total as fn(&TrainingMemory) -> u64),
        ("parameters", |t| t.parameters),
        ("copies", |t| t.copies),
        ("gradients", |t| t.gradients),
        ("AdamW", |t| t.moments),
        ("activations", |t| t.activations),
        ("workspace", |t| t.workspace),
    ] {
        say(format_args!("  {what:<11} {:>11} {:>11}", bytes(size(&wide)), bytes(size(&bf16))))?;
    }
    let cache = |kv: KvFormat| kv.bytes() * (2 * c.n_layers * c.kv_width()) as u64;
    say("inference    what is kept, by --weights")?;
    let formats: String = WeightFormat::ALL.iter().map(|format| format!("{:>12}", format.to_string())).collect();
    say(format_args!("  weights  {formats}"))?;
    let row = |what: &str, bytes_of: &dyn Fn(WeightFormat) -> String| {
        let cells: String = WeightFormat::ALL.iter().map(|&format| format!("{:>12}", bytes_of(format))).collect();
        say(format_args!("  {what:<9}{cells}"))
    };
    row("memory", &|format| bytes(resident_bytes(c, format)))?;
    row("filter", &|format| if format.has_filter() { bytes(filter_bytes(c)) } else { "-".to_string() })?;
    if let Some(dir) = dir {
        let on_disk = |format| {
            let files = [resident_path(dir, format), resident_filter_path(dir, format)];
            let sizes = files.iter().filter_map(|path| Some(std::fs::metadata(path).ok()?.len()));
            sizes.reduce(|a, b| a + b).map_or("-".to_string(), bytes)
        };
        row("on disk", &on_disk)?;
    }
    for kv in [KvFormat::F32, KvFormat::Bf16] {
        let all = cache(kv) * c.max_seq_len as u64;
        say(format_args!(
            "  KV cache {kv:<4} {:>13}  a token; {} for the whole context",
            bytes(cache(kv)),
            bytes(all)
        ))?;
    }
    // A token reads every weight of the layers and the head once; the embedding is one row.
    let read = 4 * (total - if c.tie_embeddings { 0 } else { c.vocab_size * c.d_model }) as u64;
    let sparse = read - (4.0 * ffn as f64 * 2.0 / 3.0 * 0.9) as u64;
    say(format_args!(
        "decoding     reads {} of f32 weights a token; {} at 90 % zeros, {:.2} times fewer",
        bytes(read),
        bytes(sparse),
        read as f64 / sparse as f64
    ))
}
