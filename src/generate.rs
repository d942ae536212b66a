//! `silurian generate`: continues a prompt, streaming.

use crate::source::{self, parse_psi};
use crate::terminal::{complain, print, say};
use infer::{
    CpuEngine, EngineOptions, FfnMode, Generation, Request, Sampler, Sampling, StopReason, Utf8Stream, generate,
};
use model::Psi;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use train::data::Tokenizer;

/// Continue a prompt.
///
/// The text goes to standard output as it comes, what it took to standard error. The same model, prompt, flags and seed give
/// the same text, on any number of threads.
#[derive(clap::Args)]
pub struct Args {
    /// A run folder (its newest checkpoint) or a Hugging Face folder
    #[arg(short, long, value_name = "DIR")]
    model: PathBuf,

    /// The text to continue
    #[arg(short, long, default_value = "\n", hide_default_value = true)]
    prompt: String,

    /// How many tokens to generate at most; fewer if the context is full
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_tokens: usize,

    /// How many texts
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    samples: u32,

    /// Divides the logits; 0 always takes the most probable token
    #[arg(long, value_name = "X", default_value_t = 0.8)]
    temp: f32,

    /// Draw from the K most probable tokens; 0 is all
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,

    /// Draw from the fewest tokens whose probabilities sum to P
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    top_p: f32,

    /// Draw from tokens at least P times as probable as the most probable one
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    min_p: f32,

    /// Of all draws: tokens and stochastic activation
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// relu, silu or stochastic:P [default: what the model is meant to run with]
    #[arg(long, value_name = "PSI", value_parser = parse_psi)]
    activation: Option<Psi>,

    /// How the FFN of each token is computed; both give the same text, bit for bit [default: sparse under RELU]
    #[arg(long, value_name = "MODE")]
    ffn: Option<Ffn>,

    /// Positions of the context [default: the model's]
    #[arg(long, value_name = "N")]
    context: Option<usize>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Ffn {
    /// Every neuron
    Dense,
    /// The neurons that RELU lets through
    Sparse,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let sampling =
        Sampling { temperature: args.temp, top_k: args.top_k, top_p: args.top_p, min_p: args.min_p, seed: args.seed };
    let mut sampler = Sampler::new(sampling)?;
    let source = source::load(&args.model)?;
    source::require_bytes(&source)?;
    let psi = args.activation.unwrap_or_else(|| source.checkpoint.meta.hidden_act().into());
    let mut options = EngineOptions { seed: args.seed, context: args.context, ..EngineOptions::new(psi) };
    if let Some(ffn) = args.ffn {
        options.ffn = match ffn {
            Ffn::Dense => FfnMode::Dense,
            Ffn::Sparse => FfnMode::Sparse,
        };
    }
    let mut engine = CpuEngine::new(&source.checkpoint.weights, options)?;
    let prompt = Tokenizer::Bytes.encode(&args.prompt);
    let stop = &source.checkpoint.meta.eos_token_ids;
    for sample in 0..args.samples {
        if args.samples > 1 {
            say(format_args!("{}--- sample {} of {}", if sample > 0 { "\n" } else { "" }, sample + 1, args.samples))?;
        }
        let request = Request { prompt: &prompt, max_tokens: args.max_tokens, stop, sample };
        let done = stream(&mut engine, &mut sampler, request, &args.prompt)?;
        report(&done, psi);
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints the prompt and what follows it, piece by piece.
fn stream(engine: &mut CpuEngine, sampler: &mut Sampler, request: Request, prompt: &str) -> anyhow::Result<Generation> {
    let mut utf8 = Utf8Stream::default();
    let mut failure = None;
    print(prompt)?;
    let done = generate(engine, sampler, request, |token| {
        let mut piece = String::new();
        utf8.push(&[token as u8], &mut piece);
        match print(piece) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    if let Some(error) = failure {
        return Err(error.into());
    }
    let mut rest = String::new();
    utf8.finish(&mut rest);
    say(rest)?;
    Ok(done)
}

/// What a text took, in a line or two on standard error.
fn report(done: &Generation, psi: Psi) {
    let rate = |r: Option<f64>| r.map_or("-".to_string(), |r| format!("{r:.0} tokens/s"));
    let ended = match done.stop {
        StopReason::ContextFull => "; the context is full",
        StopReason::StopToken(_) => "; the text has ended",
        _ => "",
    };
    complain(format_args!(
        "[{} prompt tokens at {}, {} new at {}{ended}]",
        done.prompt_tokens,
        rate(done.prefill_rate()),
        done.tokens.len(),
        rate(done.decode_rate()),
    ));
    let zeros = done.mean_density().map_or(String::new(), |d| format!(", {:.1} % zeros", 100.0 * (1.0 - d)));
    complain(format_args!("[{psi}, FFN {}{zeros}]", done.ffn));
}
