//! `silurian bench prefill`: a prompt through the engine, against the peak of its arithmetic.

use super::decode::{self, Named};
use super::{Report, Setting, parse_percent, progress, seconds};
use crate::source::{parse_prefill, parse_weights};
use crate::table::{Cell, Column, Spread, Table};
use anyhow::ensure;
use infer::{CpuEngine, Engine, EngineOptions, FfnMode, Prefill, WeightFormat};
use kernels::limits::{Dot, dot_gops, fma_gflops};
use kernels::{Level, Team};
use model::{Config, Psi};
use silurian::synthetic;
use std::sync::Arc;
use tensor::pool;

/// Feeding a prompt: tokens a second of models with random weights, and the share of the peak.
///
/// bf16 multiplies with the dot product of bf16, where the CPU has one, and rounds activations for it; q8 with that of bytes; exact
/// keeps them in f32.
#[derive(clap::Args)]
pub struct Args {
    /// Models with random weights: 125m, 1.3b, or any preset with 32000 tokens
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', default_value = "125m", value_parser = decode::parse_named)]
    models: Vec<Named>,

    /// How weights are kept: f32, bf16, q8, q4
    #[arg(long, value_name = "FORMAT,...", value_delimiter = ',', value_parser = parse_weights, default_value = "f32,bf16")]
    weights: Vec<WeightFormat>,

    /// How they are multiplied: exact, bf16, and q8, which is for q8 and q4 weights alone
    #[arg(long, value_name = "WAY,...", value_delimiter = ',', value_parser = parse_prefill, default_value = "exact,bf16")]
    prefill: Vec<Prefill>,

    /// Also leave out the neurons that are inactive for a token, at these shares of zeros in percent
    #[arg(long, value_name = "PERCENT,...", value_delimiter = ',', value_parser = parse_percent)]
    zeros: Vec<f64>,

    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = 512)]
    tokens: usize,
}

const COLUMNS: [Column; 13] = [
    Column::text("model", "model"),
    Column::text("level", "level"),
    Column::text("weights", "weights"),
    Column::text("prefill", "prefill"),
    Column::text("ffn", "FFN"),
    Column::number("zeros_percent", "zeros, %"),
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
median and of the best repetition. Sparse prompts (--zeros) are compared with dense ones of the same repetition; all tokens of these models have the same zeros, so rows \
that nobody needs are never read, which text would not grant.";

pub(super) fn run(args: Args, setting: &Setting) -> anyhow::Result<Report> {
    for way in &args.prefill {
        ensure!(
            args.weights.iter().any(|&format| way.fits(format)),
            "--prefill {way}: for q8 and q4 weights alone, and --weights has none"
        );
    }
    for model in &args.models {
        let (name, most) = (&model.name, model.config.max_seq_len);
        ensure!(
            (1..=most).contains(&args.tokens),
            "--tokens {}: must be 1 to {most}, the context of {name}",
            args.tokens
        );
        decode::require_memory_of("prefill", model)?;
    }
    let teams: Vec<Arc<Team>> = setting.teams(Level::from_env()?)?.into_iter().map(Arc::new).collect();
    let mut table = Table::new("prefill", format!("A prompt of {} tokens", args.tokens), &COLUMNS);
    for Named { name, config } in &args.models {
        // What the last model used must not be missing here.
        pool::trim();
        progress(format_args!("prefill, {name}: making {} parameters", config.parameters()));
        let mut weights = synthetic::weights(config);
        let prompt: Vec<u32> = (0..args.tokens).map(|i| (i * 31 % config.vocab_size) as u32).collect();
        // Without zeros, as the weights are.
        let sweep: Vec<Option<f64>> =
            if args.zeros.is_empty() { vec![None] } else { args.zeros.iter().copied().map(Some).collect() };
        for zeros in sweep {
            if let Some(percent) = zeros {
                synthetic::set_zeros(&mut weights, percent / 100.0);
            }
            for &format in &args.weights {
                for team in &teams {
                    progress(format_args!("prefill, {name}, {format}, -t {}", team.threads()));
                    let ffn = FfnMode::Dense;
                    let context = Some(args.tokens);
                    let options = EngineOptions { context, weights: format, ffn, ..EngineOptions::new(Psi::Relu) };
                    let mut engine = team.install(|| CpuEngine::new(&weights, options))?;
                    // A sparse prompt right after the dense one that it is compared with.
                    let prompts: &[bool] = if zeros.is_some() { &[false, true] } else { &[false] };
                    let ways = args.prefill.iter().filter(|way| way.fits(format));
                    let ways = ways.flat_map(|&way| prompts.iter().map(move |&sparse| Way::new(way, sparse)));
                    let ways = measure(&mut engine, team, &prompt, ways.collect(), setting.repetitions(5))?;
                    for (i, way) in ways.iter().enumerate() {
                        let dense = way.sparse.then(|| &ways[i - 1]);
                        table.push(way.row(name, config, prompt.len(), format, team, zeros, dense));
                    }
                }
            }
        }
    }
    Ok(Report::new(METHOD, vec![table]))
}

/// A way of multiplying, and what it took.
struct Way {
    prefill: Prefill,
    sparse: bool,
    seconds: Vec<f64>,
    /// Of its arithmetic, in GFLOP/s.
    peak: f64,
}

impl Way {
    fn new(prefill: Prefill, sparse: bool) -> Way {
        Way { prefill, sparse, seconds: Vec::new(), peak: 0.0 }
    }

    #[allow(clippy::too_many_arguments)] // The columns.
    fn row(
        &self,
        name: &str,
        config: &Config,
        tokens: usize,
        format: WeightFormat,
        team: &Team,
        zeros: Option<f64>,
        dense: Option<&Way>,
    ) -> Vec<Cell> {
        let times = Spread::of(self.seconds.iter().copied());
        // A sparse prompt does fewer operations.
        let gflops = |seconds: f64| (!self.sparse).then(|| flop(config, tokens) / seconds / 1e9);
        let over = |dense: &Way| Spread::of(dense.seconds.iter().zip(&self.seconds).map(|(dense, own)| dense / own));
        vec![
            name.into(),
            team.level().to_string().into(),
            format.to_string().into(),
            self.prefill.to_string().into(),
            if self.sparse { "sparse" } else { "dense" }.into(),
            zeros.into(),
            team.threads().into(),
            Spread::of(self.seconds.iter().map(|&s| tokens as f64 / s)).into(),
            gflops(times.median).into(),
            self.peak.into(),
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
            way.peak = way.peak.max(peak(team, way.prefill));
            engine.set_prefill(way.prefill, way.sparse)?;
            engine.reset(0);
            let mut result = Ok(());
            let time = seconds(|| result = engine.prefill(prompt).map(|_| ()));
            result?;
            if repetition > 0 {
                way.seconds.push(time);
            }
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
