//! `silurian bench prefill`: a prompt through the engine, against the peak of its arithmetic.

use super::decode::{self, MakeEngine, Named};
use super::machine::require_memory;
use super::{Report, Setting, parse_percent, progress, seconds};
use crate::source::{self, parse_prefill, parse_weights};
use crate::table::{Cell, Column, Spread, Table};
use crate::terminal::complain;
use anyhow::{Context, ensure};
use infer::{CpuEngine, Engine, EngineOptions, FfnMode, LayerDensity, Prefill, PromptFfn, Resident, WeightFormat};
use kernels::limits::{Dot, dot_gops, fma_gflops};
use kernels::{Level, Team};
use model::{Config, Psi};
use silurian::synthetic;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tensor::pool;
use train::data::Tokenizer;

/// Feeding a prompt: tokens a second of models with random weights, and the share of the peak; with -m, of a model and a text.
///
/// bf16 multiplies with the dot product of bf16, where the CPU has one, and rounds activations for it; q8 with that of bytes; exact
/// keeps them in f32.
#[derive(clap::Args)]
pub struct Args {
    /// Models with random weights: 125m, 1.3b, or any preset with 32000 tokens
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', default_value = "125m", value_parser = decode::parse_named)]
    models: Vec<Named>,

    /// A run folder or a Hugging Face folder: feed this model a text instead, with the zeros that it has
    #[arg(short, long, value_name = "DIR", conflicts_with_all = ["models", "zeros"], requires = "text")]
    model: Option<PathBuf>,

    /// The text, from the beginning of a file
    #[arg(long, value_name = "FILE", requires = "model")]
    text: Option<PathBuf>,

    /// How weights are kept: f32, bf16, bf16-packed, q8, q4
    #[arg(long, value_name = "FORMAT,...", value_delimiter = ',', value_parser = parse_weights, default_value = "f32,bf16")]
    weights: Vec<WeightFormat>,

    /// How they are multiplied: exact, bf16, and q8, which is for q8 and q4 weights alone
    #[arg(long, value_name = "WAY,...", value_delimiter = ',', value_parser = parse_prefill, default_value = "exact,bf16")]
    prefill: Vec<Prefill>,

    /// Also leave out the neurons that are inactive for a token, at these shares of zeros in percent; each token has zeros of its own
    #[arg(long, value_name = "PERCENT,...", value_delimiter = ',', value_parser = parse_percent)]
    zeros: Vec<f64>,

    /// Tokens of the prompt [default: 512, or what is the most with -m]
    #[arg(long, value_name = "N")]
    tokens: Option<usize>,
}

const COLUMNS: [Column; 15] = [
    Column::text("model", "model"),
    Column::text("level", "level"),
    Column::text("weights", "weights"),
    Column::text("prefill", "prefill"),
    Column::text("ffn", "FFN"),
    Column::number("zeros_percent", "zeros, %"),
    Column::number("union_percent", "neurons of any token, %"),
    Column::number("sparse_percent", "FFNs that ran sparse, %"),
    Column::number("threads", "threads"),
    Column::spread("tokens_per_second", "tokens/s"),
    Column::number("gflops", "GFLOP/s"),
    Column::number("peak_gflops", "peak, GFLOP/s"),
    Column::number("peak_percent", "share of peak, %"),
    Column::number("best_percent", "of the best, %"),
    Column::spread("speed_up", "over dense"),
];

const METHOD: &str = "The prompt is fed whole into an empty cache, once more for every repetition; repetitions go round the ways of \
multiplying, and the peak (best of many passes in registers, of multiply-adds, or of the dot product of bf16 where bf16 has it) is \
measured in each round; that of q8 is of bytes, although down_proj is multiplied as bf16. Operations are those of the products and of attention, an addition and a multiplication counting 2: the last \
block makes keys and values for all tokens, and all else for the last one alone, as the LM head does. The shares are those of the \
median and of the best repetition. Sparse prompts (--zeros, -m) are compared with dense ones of the same repetition: sparse in all layers, and \
auto in those where few enough pairs of token and neuron are active. Zeros are counted, in all layers but the last; with random weights each \
token has zeros as if at random, whatever the others have.";

pub(super) fn run(args: Args, setting: &Setting) -> anyhow::Result<Report> {
    for way in &args.prefill {
        ensure!(
            args.weights.iter().any(|&format| way.fits(format)),
            "--prefill {way}: for q8 and q4 weights alone, and --weights has none"
        );
    }
    let bench = Bench {
        teams: setting.teams(Level::from_env()?)?.into_iter().map(Arc::new).collect(),
        weights: args.weights,
        prefill: args.prefill,
        repetitions: setting.repetitions(5),
    };
    let mut table = Table::new("prefill", String::new(), &COLUMNS);
    if let (Some(folder), Some(text)) = (&args.model, &args.text) {
        let tokens = bench.of_text(folder, text, args.tokens, &mut table)?;
        table.title = format!("{tokens} tokens of {}", text.display());
        return Ok(Report::new(METHOD, vec![table]));
    }
    let tokens = args.tokens.unwrap_or(512);
    for model in &args.models {
        require_context(&model.name, &model.config, tokens)?;
        decode::require_memory_of("prefill", model)?;
    }
    table.title = format!("A prompt of {tokens} tokens");
    for Named { name, config } in &args.models {
        // What the last model used must not be missing here.
        pool::trim();
        progress(format_args!("prefill, {name}: making {} parameters", config.parameters()));
        let mut weights = synthetic::weights(config);
        let prompt: Vec<u32> = (0..tokens).map(|i| (i * 31 % config.vocab_size) as u32).collect();
        if args.zeros.is_empty() {
            bench.measure(
                name,
                &|options| Ok(CpuEngine::new(&weights, options)?),
                &prompt,
                &[PromptFfn::Dense],
                &mut table,
            )?;
        }
        for percent in &args.zeros {
            synthetic::set_zeros_of_each_token(&mut weights, percent / 100.0);
            bench.measure(name, &|options| Ok(CpuEngine::new(&weights, options)?), &prompt, &ALL_FFNS, &mut table)?;
        }
    }
    Ok(Report::new(METHOD, vec![table]))
}

/// In the order in which they are compared.
const ALL_FFNS: [PromptFfn; 3] = [PromptFfn::Dense, PromptFfn::Sparse, PromptFfn::Auto];

fn require_context(name: &str, config: &Config, tokens: usize) -> anyhow::Result<()> {
    let most = config.max_seq_len;
    ensure!((2..=most).contains(&tokens), "--tokens {tokens}: must be 2 to {most}, the context of {name}");
    Ok(())
}

/// What all models are measured with.
struct Bench {
    teams: Vec<Arc<Team>>,
    weights: Vec<WeightFormat>,
    prefill: Vec<Prefill>,
    repetitions: usize,
}

impl Bench {
    /// A real model and the beginning of a text. Returns the number of tokens.
    fn of_text(&self, folder: &Path, text: &Path, tokens: Option<usize>, table: &mut Table) -> anyhow::Result<usize> {
        let model = source::open(folder)?;
        source::require_bytes(&model)?;
        let (config, name) = (model.config(), folder.display().to_string());
        let memory = config.inference_memory().weights;
        require_memory(&format!("bench prefill: an engine's copy of {}", model.dir().display()), memory)?;
        let meant: Psi = model.meta().hidden_act().into();
        if meant != Psi::Relu {
            complain(format_args!("note: the model is meant to run with {meant}; its zeros here are those under RELU"));
        }
        let bytes = fs::read_to_string(text).with_context(|| format!("{} cannot be read as text", text.display()))?;
        let prompt = Tokenizer::Bytes.encode(&bytes);
        let tokens = tokens.unwrap_or(512.min(config.max_seq_len).min(prompt.len()));
        require_context(&name, config, tokens)?;
        ensure!(tokens <= prompt.len(), "--tokens {tokens}: {} has {}", text.display(), prompt.len());
        let engine = |options| source::engine(&model, options, Resident::Off);
        self.measure(&name, &engine, &prompt[..tokens], &ALL_FFNS, table)?;
        Ok(tokens)
    }

    /// Rows for all formats, teams and ways of multiplying.
    fn measure(
        &self,
        name: &str,
        engine: &MakeEngine,
        prompt: &[u32],
        ffns: &[PromptFfn],
        table: &mut Table,
    ) -> anyhow::Result<()> {
        for &format in &self.weights {
            for team in &self.teams {
                progress(format_args!("prefill, {name}, {format}, -t {}", team.threads()));
                let (context, ffn) = (Some(prompt.len()), FfnMode::Dense);
                let options = EngineOptions { context, weights: format, ffn, ..EngineOptions::new(Psi::Relu) };
                let mut engine = team.install(|| engine(options))?;
                let ways = self.prefill.iter().filter(|way| way.fits(format));
                let ways = ways.flat_map(|&way| ffns.iter().map(move |&ffn| Way::new(way, ffn))).collect();
                let ways = measure(&mut engine, team, prompt, ways, self.repetitions)?;
                for ways in ways.chunks(ffns.len()) {
                    for way in ways {
                        table.push(way.row(name, engine.config(), prompt.len(), format, team, ways));
                    }
                }
            }
        }
        Ok(())
    }
}

/// A way of multiplying, and what it took.
struct Way {
    prefill: Prefill,
    ffn: PromptFfn,
    /// Of one prompt, where it was counted.
    density: Vec<LayerDensity>,
    seconds: Vec<f64>,
    /// Of its arithmetic, in GFLOP/s; of a dense prompt, whose share of it is said.
    peak: f64,
}

impl Way {
    fn new(prefill: Prefill, ffn: PromptFfn) -> Way {
        Way { prefill, ffn, density: Vec::new(), seconds: Vec::new(), peak: 0.0 }
    }

    /// Of the layers together, the mean of what `share` says of a layer in which tokens were counted.
    fn mean(&self, share: impl Fn(&LayerDensity) -> Option<f64>) -> Option<f64> {
        let shares: Vec<f64> = self.density.iter().filter_map(share).collect();
        (!shares.is_empty()).then(|| shares.iter().sum::<f64>() / shares.len() as f64)
    }

    /// `ways` are all that multiply so, the dense one first.
    fn row(
        &self,
        name: &str,
        config: &Config,
        tokens: usize,
        format: WeightFormat,
        team: &Team,
        ways: &[Way],
    ) -> Vec<Cell> {
        let times = Spread::of(self.seconds.iter().copied());
        // A sparse prompt does fewer operations.
        let gflops = |seconds: f64| (self.ffn == PromptFfn::Dense).then(|| flop(config, tokens) / seconds / 1e9);
        let over = |dense: &Way| Spread::of(dense.seconds.iter().zip(&self.seconds).map(|(dense, own)| dense / own));
        let dense = ways.first().filter(|_| self.ffn != PromptFfn::Dense);
        let percent = |share: Option<f64>| share.map(|share| 100.0 * share);
        let active = ways.iter().find_map(|way| way.mean(LayerDensity::share));
        let sparse = |layer: &LayerDensity| layer.share().map(|_| layer.sparse_tokens as f64 / layer.tokens as f64);
        vec![
            name.into(),
            team.level().to_string().into(),
            format.to_string().into(),
            self.prefill.to_string().into(),
            self.ffn.to_string().into(),
            percent(active.map(|active| 1.0 - active)).into(),
            percent(self.mean(LayerDensity::union_share)).into(),
            percent(self.mean(sparse)).into(),
            team.threads().into(),
            Spread::of(self.seconds.iter().map(|&s| tokens as f64 / s)).into(),
            gflops(times.median).into(),
            (self.ffn == PromptFfn::Dense).then_some(self.peak).into(),
            gflops(times.median).map(|rate| 100.0 * rate / self.peak).into(),
            gflops(times.min).map(|rate| 100.0 * rate / self.peak).into(),
            dense.map(over).into(),
        ]
    }
}

/// Measures the ways by turns.
fn measure(
    engine: &mut CpuEngine,
    team: &Team,
    prompt: &[u32],
    mut ways: Vec<Way>,
    repetitions: usize,
) -> anyhow::Result<Vec<Way>> {
    // Repetition 0 warms up.
    for repetition in 0..=repetitions {
        for way in &mut ways {
            if way.ffn == PromptFfn::Dense {
                way.peak = way.peak.max(peak(team, way.prefill));
            }
            engine.set_prefill(way.prefill, way.ffn)?;
            engine.reset(0);
            let mut result = Ok(());
            let time = seconds(|| result = engine.prefill(prompt).map(|_| ()));
            result?;
            if repetition > 0 {
                way.seconds.push(time);
            }
            way.density = engine.prompt_density().to_vec();
        }
    }
    Ok(ways)
}

fn peak(team: &Team, prefill: Prefill) -> f64 {
    let level = team.level();
    let dots = match prefill {
        Prefill::Q8 if level.has_vnni() => dot_gops(team, Dot::I8),
        Prefill::Bf16 | Prefill::Q8 if level.has_dot_bf16() => dot_gops(team, Dot::Bf16),
        _ => None,
    };
    dots.unwrap_or_else(|| fma_gflops(team))
}

/// Operations of feeding n tokens: see [`METHOD`].
fn flop(config: &Config, n: usize) -> f64 {
    let c = config.d_model;
    let keys_and_values = 2 * c * config.kv_width();
    let others = 2 * c * config.q_width() + config.parameter_counts().layer_ffn;
    // A dot and an addition for each head and pair of positions.
    let attention = |pairs: usize| 2 * config.q_width() * pairs;
    let block = n * (keys_and_values + others) + attention(n * (n + 1) / 2);
    let last_block = n * keys_and_values + others + attention(n);
    2.0 * ((config.n_layers - 1) * block + last_block + config.vocab_size * c) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_of_one_token_are_those_of_the_model() {
        for name in ["1.3b", "125m"] {
            let Named { config, .. } = decode::parse_named(name).unwrap();
            assert_eq!(flop(&config, 1), config.flops_per_token(1).forward, "{name}");
        }
    }

    /// 23 of 24 blocks work for every token, and the last one for little but keys and values, 4.2M of its 47M weights.
    #[test]
    fn operations_of_a_prompt_are_nearly_those_of_its_tokens() {
        let Named { config, .. } = decode::parse_named("1.3b").unwrap();
        let embeddings = (2 * config.vocab_size * config.d_model) as f64;
        let all = 512.0 * (config.flops_per_token(512).forward - embeddings) + embeddings;
        let share = flop(&config, 512) / all;
        assert!((23.0 / 24.0..23.2 / 24.0).contains(&share), "{share}");
    }
}
