//! `silurian generate`: continues a prompt, streaming, or ranks several continuations.

use crate::source::{
    self, AnyEngine, parse_activations, parse_kv, parse_prefill, parse_psi, parse_resident, parse_weights,
};
use crate::terminal::{bytes, complain, counted, grouped, print, progress_bar, say};
use anyhow::{Context, bail};
use infer::diversity::{distinct, distinct_n, type_token_ratio};
use infer::{
    ActivationFormat, EngineOptions, FfnMode, Generation, KvFormat, Prefill, PromptFfn, Ranked, Resident, Sampler,
    Samples, Sampling, StopReason, Utf8Stream, WeightFormat, batches, rank,
};
use model::Psi;
use serde_json::{Value, json};
use silurian::device::DeviceArg;
use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use train::data::Tokenizer;

/// Continue a prompt.
///
/// Several samples are decoded 16 at a time, each as it would be alone. The text goes to standard output as it comes, what it took to standard error. The same model, prompt, flags and seed give
/// the same text, on any number of threads.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A run folder (its newest checkpoint) or a Hugging Face folder
    #[arg(short, long, value_name = "DIR")]
    model: PathBuf,

    /// The text to continue; - is standard input [default: a line break, for a text from its start]
    #[arg(short, long, default_value = "\n", hide_default_value = true)]
    prompt: String,

    /// How many tokens to generate at most; fewer if the context is full
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_tokens: usize,

    /// How many texts
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    samples: u32,

    /// Divides the logits; 0 always takes the most probable token
    #[arg(long, value_name = "X", default_value_t = 0.8, allow_negative_numbers = true)]
    temp: f32,

    /// Draw from the K most probable tokens; 0 is all
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,

    /// Draw from the fewest tokens whose probabilities sum to P
    #[arg(long, value_name = "P", default_value_t = 0.95, allow_negative_numbers = true)]
    top_p: f32,

    /// Draw from tokens at least P times as probable as the most probable one
    #[arg(long, value_name = "P", default_value_t = 0.0, allow_negative_numbers = true)]
    min_p: f32,

    /// Of all draws: tokens and stochastic activation
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// relu, silu, gelu, relu2, tanh, stochastic:P or stochastic:P:A,B[:POSITIVE] (see train) [default: what the model is meant to run with]
    #[arg(long, value_name = "PSI", value_parser = parse_psi)]
    activation: Option<Psi>,

    /// How the FFN of each token is computed; all give the same text, bit for bit [default: auto under RELU, else dense]
    #[arg(long, value_name = "MODE")]
    ffn: Option<Ffn>,

    /// How the weights are kept: f32, as trained; bf16, q8 or q4, rounded to 16, 8 or 4 bits, in a half, a quarter or a seventh of the
    /// memory, and as much faster where memory is the limit; bf16-packed, the same numbers as bf16 and the same text, in 12 bits each
    #[arg(long, value_name = "FORMAT", default_value = "f32", value_parser = parse_weights)]
    weights: WeightFormat,

    /// What q8 and q4 weights are multiplied with for each new token: exact, activations as they are, or q8, rounded to 8 bits, which is
    /// faster
    #[arg(long, value_name = "FORMAT", default_value = "exact", value_parser = parse_activations)]
    activations: ActivationFormat,

    /// How the prompt (and a text that is ranked) is multiplied with the weights: exact, activations as they are; bf16, rounded to 16
    /// bits, which is up to twice as fast; q8, rounded to 8 bits, for q8 and q4 weights, which is faster still
    #[arg(long, value_name = "WAY", default_value = "exact", value_parser = parse_prefill)]
    prefill: Prefill,

    /// How keys and values of the context are kept: f32, or bf16, rounded to 16 bits, in half of the memory and faster where the context is
    /// long
    #[arg(long, value_name = "FORMAT", default_value = "f32", value_parser = parse_kv)]
    kv: KvFormat,

    /// Whether the weights are read from and written to disk beside the model (MODEL/resident/), as decoding reads them, for the next
    /// start: auto, for models of 64 MiB or more, always, or never
    #[arg(long, value_name = "WHEN", default_value = "auto", value_parser = parse_resident)]
    disk_cache: Resident,

    /// Leave out the neurons that are inactive for a token of the prompt too, in layers where it pays: faster, and the last bits of sums
    /// differ from those of a dense prompt
    #[arg(long)]
    sparse_prompt: bool,

    /// Where to compute: cpu, cuda or cuda:N (a GPU's number, from 0). A GPU has f32 and bf16 weights and no filter; texts may
    /// differ from the CPU's where two tokens are nearly as probable
    #[arg(long, value_name = "DEVICE", default_value_t)]
    device: DeviceArg,

    /// Positions of the context [default: the model's]
    #[arg(long, value_name = "N")]
    context: Option<usize>,

    /// Print the samples best first: by ln P(text | prompt) / tokens, in nats, at temperature 1. A token that ended the text counts
    #[arg(long)]
    rank: bool,

    /// The activation that samples are ranked under; it must not draw [default: what the model is meant to run with]
    #[arg(long, value_name = "PSI", value_parser = parse_psi, requires = "rank")]
    rank_under: Option<Psi>,

    /// Words that the type-token ratio is taken over: the first B of all samples together
    #[arg(long, value_name = "B", default_value_t = 100, value_parser = parse_budget)]
    ttr_budget: usize,

    /// How the samples are written
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: Output,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Ffn {
    /// Every neuron
    Dense,
    /// The neurons that RELU lets through
    Sparse,
    /// The same, and of the gate only the rows that an 8-bit copy of it cannot rule out; with f32, bf16 and bf16-packed weights
    Filtered,
    /// Layer by layer, sparse where that is faster
    Auto,
    /// Layer by layer, filtered, sparse or dense; with f32, bf16 and bf16-packed weights
    AutoFiltered,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// The texts on standard output, figures on standard error
    Text,
    /// One object on standard output with texts, scores and diversity
    Json,
}

const EXAMPLES: &str = "\
Examples:
  silurian generate -m runs/book -p 'It was '
  silurian generate -m runs/book -p 'It was ' -n 20 --rank    best of 20, drawn at temperature 0.8
  silurian generate -m runs/book -p 'It was ' -n 20 --rank --activation stochastic:0.7 --temp 0
                                                            drawn by the activation alone";

/// The value of a `--ttr-budget` flag.
pub fn parse_budget(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(budget) if budget > 0 => Ok(budget),
        _ => Err("expected a number of words, 1 or more".to_string()),
    }
}

/// Runs the command.
pub fn run(mut args: Args) -> anyhow::Result<ExitCode> {
    let sampling =
        Sampling { temperature: args.temp, top_k: args.top_k, top_p: args.top_p, min_p: args.min_p, seed: args.seed };
    let mut sampler = Sampler::new(sampling)?;
    if args.rank && args.samples == 1 {
        bail!("--rank: one sample needs no rank; say how many with -n, as in -n 20");
    }
    if args.prompt == "-" {
        args.prompt = io::read_to_string(io::stdin()).context("--prompt -: standard input cannot be read")?;
    }
    let folder = source::open(&args.model)?;
    source::require_bytes(&folder)?;
    let device = args.device.open()?;
    let hidden_act: Psi = folder.meta().hidden_act().into();
    let psi = args.activation.unwrap_or(hidden_act);
    if args.rank {
        source::require_draws("--rank", psi, args.temp)?;
    }
    if args.sparse_prompt && psi != Psi::Relu {
        bail!("--sparse-prompt: {psi} leaves no neuron out; RELU does");
    }
    let rank_under = args.rank.then(|| args.rank_under.unwrap_or(hidden_act));
    if let Some(psi) = rank_under {
        source::require_deterministic("--rank-under", psi)?;
    }
    let mut options = EngineOptions { seed: args.seed, context: args.context, ..EngineOptions::new(psi) };
    if let Some(ffn) = args.ffn {
        options.ffn = match ffn {
            Ffn::Dense => FfnMode::Dense,
            Ffn::Sparse => FfnMode::Sparse,
            Ffn::Filtered => FfnMode::Filtered,
            Ffn::Auto => FfnMode::Auto,
            Ffn::AutoFiltered => FfnMode::AutoFiltered,
        };
    }
    (options.weights, options.activations) = (args.weights, args.activations);
    if args.sparse_prompt {
        options.prompt_ffn = PromptFfn::Auto;
    }
    (options.prefill, options.kv) = (args.prefill, args.kv);
    let AnyEngine { mut engine, formats, filter_bytes } =
        source::engine_on(&device, &folder, options, args.disk_cache)?;
    let prompt = Tokenizer::Bytes.encode(&args.prompt);

    // Before a word of the prompt is printed.
    if prompt.len() > engine.context() {
        bail!("--prompt: {} tokens do not fit in a context of {}", grouped(prompt.len() as u64), engine.context());
    }
    let streams = !args.rank && args.output == Output::Text;
    let bar = if streams { progress_bar(0) } else { progress_bar(args.samples.into()) };
    let mut texts = Vec::new();
    let mut samples = Samples::new(engine.as_mut(), &prompt);
    for batch in batches(args.samples) {
        if streams {
            head(&args, batch.start)?;
        }
        let numbers: Vec<u32> = batch.clone().collect();
        let written = write(&args, &folder.meta().eos_token_ids, &mut samples, &mut sampler, &numbers, streams)?;
        for (sample, text) in batch.clone().zip(&written) {
            if streams && sample > batch.start {
                head(&args, sample)?;
                say(format_args!("{}{}", args.prompt, text.text))?;
            }
            if streams {
                report(&text.generation, psi, &formats, filter_bytes);
            }
            bar.inc(1);
        }
        texts.extend(written);
    }
    let ranking = match rank_under {
        Some(psi) => {
            let drawn: Vec<Vec<u32>> = texts.iter().map(|text| text.generation.drawn()).collect();
            rank(engine.as_mut(), psi, &prompt, &drawn)?
        }
        None => (0..texts.len()).map(|index| Ranked { index, score: None }).collect(),
    };
    bar.finish_and_clear();
    match (args.output, rank_under) {
        (Output::Json, _) => say(format_args!("{:#}", json_of(&args, psi, rank_under, &ranking, &texts)))?,
        (Output::Text, Some(under)) => say_ranked(&args, psi, under, &ranking, &texts)?,
        (Output::Text, None) => {}
    }
    if args.output == Output::Text && args.samples > 1 {
        complain(format_args!("[{}]", Diversity::of(&texts, args.ttr_budget).in_words()));
    }
    Ok(ExitCode::SUCCESS)
}

/// A sample.
struct Text {
    /// What follows the prompt.
    text: String,
    generation: Generation,
}

/// Says which sample follows, if there are several.
fn head(args: &Args, sample: u32) -> anyhow::Result<()> {
    if args.samples > 1 {
        say(format_args!("{}--- sample {} of {}", if sample > 0 { "\n" } else { "" }, sample + 1, args.samples))?;
    }
    Ok(())
}

/// Generates some samples at once; prints the prompt and what follows it in the first of them, piece by piece, if it `streams`.
fn write(
    args: &Args,
    stop: &[u32],
    samples: &mut Samples,
    sampler: &mut Sampler,
    numbers: &[u32],
    streams: bool,
) -> anyhow::Result<Vec<Text>> {
    let mut texts: Vec<(Utf8Stream, String)> = numbers.iter().map(|_| Default::default()).collect();
    let mut printed = Ok(());
    if streams {
        print(&args.prompt)?;
    }
    let generations = samples.draw_batch(sampler, args.max_tokens, stop, numbers, |sample, token| {
        let (utf8, text) = &mut texts[sample];
        let before = text.len();
        utf8.push(&[token as u8], text);
        if streams && sample == 0 && printed.is_ok() {
            printed = print(&text[before..]);
        }
        if printed.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    printed?;
    let mut all = Vec::new();
    for (i, (generation, (mut utf8, mut text))) in generations.into_iter().zip(texts).enumerate() {
        let before = text.len();
        utf8.finish(&mut text);
        if streams && i == 0 {
            say(&text[before..])?;
        }
        all.push(Text { text, generation });
    }
    Ok(all)
}

/// What a text took, in a line or two on standard error.
fn report(done: &Generation, psi: Psi, formats: &str, filter_bytes: usize) {
    let prompt = done.prefill_rate().map_or("kept".to_string(), |r| format!("at {r:.0} tokens/s"));
    let beside = if done.batch > 1 { format!(", {} at once", done.batch) } else { String::new() };
    let rate = done.decode_rate().map_or("-".to_string(), |r| format!("{r:.0} tokens/s{beside}"));
    let ended = match done.stop {
        StopReason::ContextFull => "; the context is full",
        StopReason::StopToken(_) => "; the text has ended",
        _ => "",
    };
    let (prompt_tokens, new) = (counted(done.prompt_tokens as u64, "prompt token"), done.tokens.len());
    complain(format_args!("[{prompt_tokens} {prompt}, {new} new at {rate}{ended}]"));
    let zeros = done.mean_density().map_or(String::new(), |d| format!(", {:.1} % zeros", 100.0 * (1.0 - d)));
    let union = match done.mean_union() {
        Some(union) if done.batch > 1 => format!(", {:.1} % of the neurons used by any", 100.0 * union),
        _ => String::new(),
    };
    let filter = match (done.ffn, done.mean_gate_share()) {
        (ffn, Some(share)) if ffn.has_filter() => {
            format!(", {:.1} % of the gate's rows read, filter {}", 100.0 * share, bytes(filter_bytes as u64))
        }
        _ => String::new(),
    };
    complain(format_args!("[{psi}, {formats}, FFN {}{zeros}{union}{filter}]", done.ffn_in_words()));
}

/// The samples, best first, and how they came about.
fn say_ranked(args: &Args, psi: Psi, under: Psi, ranking: &[Ranked], texts: &[Text]) -> anyhow::Result<()> {
    for (place, ranked) in ranking.iter().enumerate() {
        let score = ranked.score.map_or("no token to score".to_string(), |s| format!("{s:.4} nats a token"));
        let (gap, place, n) = (if place > 0 { "\n" } else { "" }, place + 1, ranking.len());
        say(format_args!("{gap}--- rank {place} of {n}: sample {}, {score}", ranked.index + 1))?;
        say(format_args!("{}{}", args.prompt, texts[ranked.index].text))?;
    }
    complain(format_args!(
        "[drawn under {psi} at temperature {}; ranked by the mean ln P of a token under {under} at temperature 1]",
        args.temp
    ));
    Ok(())
}

/// How different the samples are.
struct Diversity {
    samples: usize,
    distinct_texts: usize,
    ttr: infer::diversity::TypeTokenRatio,
    distinct_2: Option<f64>,
}

impl Diversity {
    fn of(texts: &[Text], budget: usize) -> Diversity {
        let texts: Vec<&str> = texts.iter().map(|text| text.text.as_str()).collect();
        Diversity {
            samples: texts.len(),
            distinct_texts: distinct(&texts),
            ttr: type_token_ratio(&texts, budget),
            distinct_2: distinct_n(&texts, 2),
        }
    }

    fn in_words(&self) -> String {
        let (budget, words) = (self.ttr.budget, self.ttr.words);
        let ttr = match self.ttr.ratio {
            Some(ratio) => format!("type-token ratio {ratio:.3} over the first {}", counted(budget as u64, "word")),
            None => format!(
                "no type-token ratio: {} together, fewer than --ttr-budget {budget}",
                counted(words as u64, "word")
            ),
        };
        let distinct_2 = self.distinct_2.map_or(String::new(), |d| format!("; distinct-2 {d:.3}"));
        let texts = counted(self.distinct_texts as u64, "distinct text");
        format!("{texts} of {}; {ttr}{distinct_2}", self.samples)
    }
}

fn json_of(args: &Args, psi: Psi, rank_under: Option<Psi>, ranking: &[Ranked], texts: &[Text]) -> Value {
    let sample = |ranked: &Ranked| {
        let Text { text, generation } = &texts[ranked.index];
        let ended = match generation.stop {
            StopReason::MaxTokens => "max_tokens",
            StopReason::ContextFull => "context_full",
            StopReason::StopToken(_) => "stop_token",
            StopReason::Receiver => "receiver",
        };
        json!({
            "sample": ranked.index + 1,
            "score": ranked.score,
            "tokens": generation.tokens.len(),
            "ended": ended,
            "text": text,
        })
    };
    let diversity = Diversity::of(texts, args.ttr_budget);
    json!({
        "prompt": args.prompt,
        "activation": psi.to_string(),
        "temperature": decimal(args.temp),
        "top_k": args.top_k,
        "top_p": decimal(args.top_p),
        "min_p": decimal(args.min_p),
        "seed": args.seed,
        "rank_under": rank_under.map(|psi| psi.to_string()),
        "samples": ranking.iter().map(sample).collect::<Vec<_>>(),
        "distinct_texts": diversity.distinct_texts,
        "ttr": diversity.ttr.ratio,
        "ttr_budget": diversity.ttr.budget,
        "words": diversity.ttr.words,
        "distinct_2": diversity.distinct_2,
    })
}

/// The shortest decimal that is this f32, as the user wrote it: 0.95, and not 0.949999988.
fn decimal(x: f32) -> f64 {
    x.to_string().parse().expect("a number is written as one")
}
