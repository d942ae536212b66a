//! `silurian bench decode`: what zeros are worth for whole tokens, of random weights and of real models.

use super::machine::require_memory;
use super::plot::{self, Picture};
use super::{Formats, LARGE, Report, Setting, large_block, parse_percent, progress, read_now, read_percent};
use crate::source::{self, parse_activations, parse_weights};
use crate::table::{Cell, Column, Spread, Table};
use crate::terminal::{bytes, complain};
use anyhow::{Context, Error, ensure};
use infer::{
    ActivationFormat, CpuEngine, Engine, EngineOptions, FfnMode, Generation, Request, Resident, Sampler, Sampling,
    WeightFormat, filter_bytes, generate,
};
use kernels::{Level, Team};
use model::{Config, Psi, preset};
use silurian::synthetic;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tensor::pool::{self, Block};
use train::html::plot::Look;

/// Whole tokens with the zeros of RELU against all neurons: decoding, dense, sparse and filtered by turns.
///
/// Models with random weights, over a sweep of zeros; with -m, a model with the zeros that it has. The tokens are the same in all
/// ways of computing the FFN.
#[derive(clap::Args)]
pub struct Args {
    /// Models with random weights: 125m, 1.3b (ten minutes), 8b, or any preset with 32000 tokens [default: 125m, on a GPU 1.3b,8b]
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', value_parser = parse_named)]
    pub(super) models: Vec<Named>,

    /// Shares of zeros of a model with random weights, in percent [default: 50,80,90,95, on a GPU 90]
    #[arg(long, value_name = "PERCENT,...", value_delimiter = ',', value_parser = parse_percent)]
    pub(super) zeros: Vec<f64>,

    /// A run folder or a Hugging Face folder: decode with this model instead
    #[arg(short, long, value_name = "DIR", conflicts_with_all = ["models", "zeros"])]
    pub(super) model: Option<PathBuf>,

    /// How weights are kept: f32, bf16, bf16-packed, q8, q4 [default: f32,bf16, on a GPU bf16]
    #[arg(long, value_name = "FORMAT,...", value_delimiter = ',', value_parser = parse_weights)]
    pub(super) weights: Vec<WeightFormat>,

    /// What q8 and q4 weights are multiplied with: exact, x as it is, or q8, rounded to 8 bits
    #[arg(long, value_name = "FORMAT", default_value = "exact", value_parser = parse_activations)]
    pub(super) activations: ActivationFormat,

    /// Tokens of a repetition [default: 64, or 16 for a model of more than 1 GiB]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) tokens: Option<u16>,

    /// Also write the curves beside their ceilings to this HTML file
    #[arg(long, value_name = "FILE")]
    pub(super) plot: Option<PathBuf>,
}

const TOKENS: Picture = Picture {
    title: "Whole tokens",
    by: &["model", "weights", "threads"],
    x: ("zeros_percent", "zeros, %"),
    y: "times as fast as dense",
    curves: &[
        ("speed_up", "sparse", Look::Heavy),
        ("byte_ceiling", "sparse: its bytes allow", Look::Dashed),
        ("filtered_speed_up", "filtered", Look::Heavy),
        ("filtered_byte_ceiling", "filtered: its bytes allow", Look::Dashed),
    ],
};

const FFNS: Picture = Picture {
    title: "Their FFNs alone",
    curves: &[("ffn_speed_up", "sparse", Look::Heavy), ("ffn_byte_ceiling", "its bytes allow", Look::Dashed)],
    ..TOKENS
};

const METHOD: &str = "Generations, dense, sparse and filtered, and a pass over 512 MiB in huge pages by turns; speed-ups and the shares \
of reading are medians of the ratios of neighbours. Bytes are those of the weights that a token has to read; the time is that of whole \
tokens, sampling and all.";

pub(super) fn run(args: Args, setting: &Setting) -> anyhow::Result<Report> {
    let tokens = args.tokens.map(usize::from);
    let weights = if args.weights.is_empty() { vec![WeightFormat::F32, WeightFormat::Bf16] } else { args.weights };
    let models = if args.models.is_empty() { vec![parse_named("125m").map_err(Error::msg)?] } else { args.models };
    let formats: Vec<Formats> = weights.iter().map(|&weights| Formats::new(weights, args.activations)).collect();
    args.plot.as_deref().map_or(Ok(()), plot::check)?;
    let mut tables = Vec::new();
    if let Some(folder) = &args.model {
        tables.push(of_folder(folder, &formats, tokens, setting)?);
    } else {
        let mut zeros = if args.zeros.is_empty() { vec![50.0, 80.0, 90.0, 95.0] } else { args.zeros };
        zeros.sort_by(f64::total_cmp);
        // Before anything is measured.
        models.iter().try_for_each(|model| require_memory_of("decode", model))?;
        for model in &models {
            // What the last one used must not be missing here.
            pool::trim();
            tables.push(of_random(model, &zeros, &formats, tokens, setting)?);
        }
    }
    Ok(Report { page: args.plot, pictures: vec![("decode", TOKENS), ("decode", FFNS)], ..Report::new(METHOD, tables) })
}

const COLUMNS: [Column; 23] = [
    Column::text("model", "model"),
    Column::text("level", "level"),
    Column::text("weights", "weights"),
    Column::number("threads", "threads"),
    Column::number("zeros_percent", "zeros, %"),
    Column::spread("dense_tokens_per_second", "dense, tokens/s"),
    Column::number("dense_gbs", "GB/s"),
    Column::number("dense_read_percent", "share of reading, %"),
    Column::spread("sparse_tokens_per_second", "sparse, tokens/s"),
    Column::number("sparse_gbs", "GB/s touched"),
    Column::number("sparse_read_percent", "share of reading, %"),
    Column::spread("speed_up", "speed-up"),
    Column::number("byte_ceiling", "byte ceiling"),
    Column::number("dense_ffn_percent", "FFN's share of the dense time, %"),
    Column::spread("ffn_speed_up", "FFN alone, speed-up"),
    Column::number("ffn_byte_ceiling", "FFN alone, byte ceiling"),
    Column::number("survivors_percent", "the filter's survivors, %"),
    Column::number("decisions", "its decisions"),
    Column::number("missed", "active neurons that it missed"),
    Column::spread("filtered_tokens_per_second", "filtered, tokens/s"),
    Column::spread("filtered_speed_up", "filtered, speed-up"),
    Column::number("filtered_byte_ceiling", "filtered, byte ceiling"),
    Column::spread("read_gbs", "reading meanwhile, GB/s"),
];

/// Tokens of the prompt before random weights decode: what other software was timed after.
const PROMPT: usize = 32;

/// A model with random weights.
#[derive(Clone, Debug)]
pub(super) struct Named {
    pub(super) name: String,
    pub(super) config: Config,
}

/// Its sizes by name, with a vocabulary of 32000 tokens.
pub(super) fn parse_named(name: &str) -> Result<Named, String> {
    const VOCAB_SIZE: usize = 32_000;
    let config = match name {
        // The larger of the two models that other software was timed on; the smaller one is the preset 125m.
        "1.3b" => preset("1.5b", VOCAB_SIZE).map(|c| Config { n_layers: 24, tie_embeddings: false, ..c }),
        // The sizes of Llama 3 8B, with its vocabulary.
        "8b" => preset("3b", 128_256).map(|c| Config {
            d_model: 4096,
            n_layers: 32,
            n_heads: 32,
            n_kv_heads: 8,
            head_dim: 128,
            d_ff: 14_336,
            tie_embeddings: false,
            ..c
        }),
        _ => preset(name, VOCAB_SIZE),
    };
    let names = || model::PRESETS.map(|(name, _)| name).join(", ");
    let config = config.ok_or_else(|| format!("expected 1.3b, 8b or a preset: {}", names()))?;
    Ok(Named { name: name.to_string(), config })
}

/// Fails if the weights and the engine's copy of them do not fit.
pub(super) fn require_memory_of(bench: &str, model: &Named) -> anyhow::Result<()> {
    let weights = model.config.inference_memory().weights;
    let needed = weights.saturating_mul(2).saturating_add(filter_bytes(&model.config) + 4 * LARGE as u64);
    require_memory(&format!("bench {bench}: model {} with an engine's copy of its weights", model.name), needed)
}

/// A model with random weights under imposed zeros.
fn of_random(
    model: &Named,
    zeros: &[f64],
    formats: &[Formats],
    tokens: Option<usize>,
    setting: &Setting,
) -> anyhow::Result<Table> {
    let Named { name, config } = model;
    progress(format_args!("decode, {name}: making {} parameters", config.parameters()));
    let mut weights = synthetic::weights(config);
    let prompt: Vec<u32> = (0..PROMPT as u32).collect();
    let mut bench = Decode::new(name, config, formats, (prompt, Sampling::GREEDY), tokens, setting)?;
    for &percent in zeros {
        synthetic::set_zeros(&mut weights, percent / 100.0);
        bench.measure(&|options| Ok(CpuEngine::new(&weights, options)?), &format!("{percent} % zeros"))?;
    }
    Ok(bench.table(&format!("random weights, {}", sizes_in_words(config))))
}

/// A real model, with the zeros that it has under RELU.
fn of_folder(folder: &Path, formats: &[Formats], tokens: Option<usize>, setting: &Setting) -> anyhow::Result<Table> {
    let model = source::open(folder)?;
    let (config, meta) = (model.config(), model.meta());
    require_memory(
        &format!("bench decode: an engine's copy of {}", model.dir().display()),
        config.inference_memory().weights.saturating_add(filter_bytes(config) + 4 * LARGE as u64),
    )?;
    let meant: Psi = meta.hidden_act().into();
    if meant != Psi::Relu {
        complain(format_args!("note: the model is meant to run with {meant}; its zeros here are those under RELU"));
    }
    // A line's beginning for bytes; for other tokens the beginning of a text, or the first token there is.
    let first = if config.vocab_size == 256 { u32::from(b'\n') } else { meta.bos_token_id.unwrap_or(0) };
    let sampling = Sampling { temperature: 0.8, ..Sampling::GREEDY };
    let name = folder.display().to_string();
    let mut bench = Decode::new(&name, config, formats, (vec![first], sampling), tokens, setting)?;
    // A format at a time, from the files: no copy of all weights in f32.
    bench.measure(&|options| source::engine(&model, options, Resident::Off), "its own zeros")?;
    Ok(bench.table(&sizes_in_words(config)))
}

fn sizes_in_words(c: &Config) -> String {
    format!(
        "d_model {}, {} layers, d_ff {}, {} tokens: {:.1}M parameters, {:.1}M read for a token ({} in f32), {:.0} % of them the FFNs'",
        c.d_model,
        c.n_layers,
        c.d_ff,
        c.vocab_size,
        c.parameters() as f64 / 1e6,
        read_parameters(c) as f64 / 1e6,
        bytes(4 * read_parameters(c) as u64),
        100.0 * ffn_parameters(c) as f64 / read_parameters(c) as f64
    )
}

/// Those that a dense token reads: all but the look-up of its own embedding.
pub(super) fn read_parameters(config: &Config) -> usize {
    config.parameters() - if config.tie_embeddings { 0 } else { config.vocab_size * config.d_model }
}

pub(super) fn ffn_parameters(config: &Config) -> usize {
    config.n_layers * config.parameter_counts().layer_ffn
}

/// An engine of the model at hand.
pub(super) type MakeEngine<'a> = dyn Fn(EngineOptions) -> anyhow::Result<CpuEngine> + Sync + 'a;

/// Generations by turns, and the rows that they gave.
struct Decode<'a> {
    name: &'a str,
    prompt: Vec<u32>,
    tokens: usize,
    sampler: Sampler,
    repetitions: usize,
    formats: &'a [Formats],
    teams: Vec<Arc<Team>>,
    large: Block,
    /// In the order of `formats`, for each in that of `teams`.
    rows: Vec<Vec<Vec<Cell>>>,
}

impl<'a> Decode<'a> {
    fn new(
        name: &'a str,
        config: &Config,
        formats: &'a [Formats],
        (prompt, sampling): (Vec<u32>, Sampling),
        tokens: Option<usize>,
        setting: &Setting,
    ) -> anyhow::Result<Decode<'a>> {
        let large_model = 4 * read_parameters(config) > 1 << 30;
        // The last token is drawn and not decoded.
        let most = (config.max_seq_len + 1).saturating_sub(prompt.len());
        let tokens = tokens.unwrap_or_else(|| if large_model { 16 } else { 64 }.min(most - 1)) + 1;
        ensure!(
            tokens <= most,
            "--tokens {}: {name} has a context of {}, and the prompt takes {}",
            tokens - 1,
            config.max_seq_len,
            prompt.len()
        );
        let teams = setting.teams(Level::from_env()?)?;
        Ok(Decode {
            name,
            prompt,
            tokens,
            sampler: Sampler::new(sampling)?,
            repetitions: setting.repetitions(5),
            rows: vec![Vec::new(); formats.len() * teams.len()],
            formats,
            teams: teams.into_iter().map(Arc::new).collect(),
            large: large_block(),
        })
    }

    /// A row for each team.
    fn measure(&mut self, engine: &MakeEngine, what: &str) -> anyhow::Result<()> {
        let teams = self.formats.iter().flat_map(|&format| self.teams.iter().map(move |team| (format, team)));
        for ((format, team), rows) in teams.zip(&mut self.rows) {
            progress(format_args!("decode, {}, {format}, {what}, -t {}", self.name, team.threads()));
            let mut read = Vec::new();
            let context = Some(self.prompt.len() + self.tokens - 1);
            let Formats { weights: kept, activations } = format;
            let options = EngineOptions { context, weights: kept, activations, ..EngineOptions::new(Psi::Relu) };
            let mut engine = team.install(|| engine(options))?;
            let mut by_turns = [const { Vec::new() }; 3];
            // Repetition 0 warms up.
            for repetition in 0..=self.repetitions {
                let request =
                    Request { prompt: &self.prompt, max_tokens: self.tokens, stop: &[], sample: repetition as u32 };
                let mut generation = |ffn| -> anyhow::Result<Generation> {
                    engine.set_ffn(ffn)?;
                    Ok(generate(&mut engine, &mut self.sampler, request, |_| ControlFlow::Continue(()))?)
                };
                let read_now = read_now(team, &self.large);
                let (dense, sparse) = (generation(FfnMode::Dense)?, generation(FfnMode::Sparse)?);
                let filtered = kept.has_filter().then(|| generation(FfnMode::Filtered)).transpose()?;
                let same = [Some(&sparse), filtered.as_ref()].into_iter().flatten().all(|g| g.tokens == dense.tokens);
                ensure!(same, "dense, sparse and filtered decoding differ: this is a bug");
                if repetition > 0 {
                    by_turns[0].push(dense);
                    by_turns[1].push(sparse);
                    by_turns[2].extend(filtered);
                    read.push(read_now);
                }
            }
            let label = match engine.packed_groups() {
                Some((packed, all)) if packed < all => format!("{format}, {packed} of {all} groups"),
                _ => format.to_string(),
            };
            let mut row =
                row(team, (format, label), engine.config(), &by_turns, &read).context("no token was decoded")?;
            row.insert(0, self.name.into());
            rows.push(row);
            // Blocks of this format are of no use to the next one.
            drop(engine);
            pool::trim();
        }
        Ok(())
    }

    fn table(self, sizes: &str) -> Table {
        let title = format!("Whole tokens: {}, {sizes}; {} tokens a repetition", self.name, self.tokens - 1);
        let mut table = Table::new("decode", title, &COLUMNS);
        self.rows.into_iter().flatten().for_each(|row| table.push(row));
        table
    }
}

/// Active neurons that dense decoding of the same tokens counted and filtered decoding did not, or the other way round.
fn missed(dense: &[Generation], filtered: &[Generation]) -> usize {
    let active = |g: &Generation| g.density.iter().map(|layer| layer.active).collect::<Vec<_>>();
    let pairs = dense.iter().zip(filtered).flat_map(|(d, f)| active(d).into_iter().zip(active(f)));
    pairs.map(|(dense, filtered)| dense.abs_diff(filtered) as usize).sum()
}

fn row(
    team: &Team,
    (format, label): (Formats, String),
    config: &Config,
    [dense, sparse, filtered]: &[Vec<Generation>; 3],
    read: &[f64],
) -> Option<Vec<Cell>> {
    let rates =
        |generations: &[Generation]| generations.iter().map(Generation::decode_rate).collect::<Option<Vec<_>>>();
    let ratios = |a: &[f64], b: &[f64]| Spread::of(a.iter().zip(b).map(|(a, b)| a / b));
    let ffn_times = |g: &[Generation]| g.iter().map(|g| g.ffn_time.as_secs_f64()).collect::<Vec<_>>();
    let mean = |shares: Option<Vec<f64>>| shares.map(|shares| shares.iter().sum::<f64>() / shares.len() as f64);
    let zeros = 1.0 - mean(sparse.iter().map(Generation::mean_density).collect())?;
    // None without a filter.
    let survivors = mean(filtered.iter().map(Generation::mean_gate_share).collect()).filter(|_| !filtered.is_empty());

    let (dense_rates, sparse_rates, filtered_rates) = (rates(dense)?, rates(sparse)?, rates(filtered)?);
    let bytes_each = format.bytes(config.d_model);
    let dense_bytes = bytes_each * read_parameters(config) as f64;
    let sparse_bytes = dense_bytes - bytes_each * ffn_parameters(config) as f64 * 2.0 / 3.0 * zeros;
    // An element of the gate is a byte with its share of the row's bound, and its own bytes in survivors.
    let filter = |survivors: f64| {
        let element = 1.0 + 16.0 / config.d_model as f64 - bytes_each * (1.0 - survivors);
        sparse_bytes + ffn_parameters(config) as f64 / 3.0 * element
    };
    let gbs = |rates: &[f64], bytes: f64| rates.iter().map(|rate| bytes * rate / 1e9).collect::<Vec<_>>();
    let (dense_gbs, sparse_gbs) = (gbs(&dense_rates, dense_bytes), gbs(&sparse_rates, sparse_bytes));
    let (dense_ffn, sparse_ffn) = (ffn_times(dense), ffn_times(sparse));
    let ffn_share = Spread::of(dense_ffn.iter().zip(dense).map(|(ffn, g)| ffn / g.decode.as_secs_f64()));
    Some(vec![
        team.level().to_string().into(),
        label.into(),
        team.threads().into(),
        (100.0 * zeros).into(),
        Spread::of(dense_rates.iter().copied()).into(),
        Spread::of(dense_gbs.iter().copied()).median.into(),
        read_percent(&dense_gbs, read).into(),
        Spread::of(sparse_rates.iter().copied()).into(),
        Spread::of(sparse_gbs.iter().copied()).median.into(),
        read_percent(&sparse_gbs, read).into(),
        ratios(&sparse_rates, &dense_rates).into(),
        (dense_bytes / sparse_bytes).into(),
        (100.0 * ffn_share.median).into(),
        ratios(&dense_ffn, &sparse_ffn).into(),
        (3.0 / (1.0 + 2.0 * (1.0 - zeros))).into(),
        survivors.map(|survivors| 100.0 * survivors).into(),
        survivors
            .map(|_| filtered.iter().flat_map(|g| &g.density).map(|layer| layer.neurons as usize).sum::<usize>())
            .into(),
        survivors.map(|_| missed(dense, filtered)).into(),
        survivors.map(|_| Spread::of(filtered_rates.iter().copied())).into(),
        survivors.map(|_| ratios(&filtered_rates, &dense_rates)).into(),
        survivors.map(|survivors| dense_bytes / filter(survivors)).into(),
        Spread::of(read.iter().copied()).into(),
    ])
}
