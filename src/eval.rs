//! `silurian eval`: how good a model is on a text, and how sparse.

mod qa;

use crate::source::{self, parse_psi};
use crate::terminal::{complain, grouped, say};
use anyhow::{Context, bail};
use model::{Psi, Transformer};
use std::path::PathBuf;
use std::process::ExitCode;
use train::data::{Batches, Documents, Tokenizer, Tokens, cache};
use train::evaluate::{EvalShape, evaluate};
use train::metrics::SMALL_ROW;

/// Loss, perplexity and zeros of a model on a text.
///
/// The text is cut into windows that do not overlap. After each token of a window, the next one is predicted from the window
/// so far.
///
/// `silurian eval qa` puts questions instead.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true, disable_help_subcommand = true)]
pub struct Args {
    #[command(subcommand)]
    what: Option<What>,

    /// Text files, folders (all text below), .jsonl files; a file named qa is ./qa
    #[arg(value_name = "PATH", required = true)]
    data: Vec<PathBuf>,

    /// A run folder (its newest checkpoint) or a Hugging Face folder
    #[arg(short, long, value_name = "DIR", required = true)]
    model: Option<PathBuf>,

    /// relu, silu, gelu, relu2, tanh, stochastic:P or stochastic:P:A,B[:POSITIVE], beside RELU [default: what the model is meant to run with]
    #[arg(long, value_name = "PSI", value_parser = parse_psi)]
    activation: Option<Psi>,

    /// Tokens of a window [default: 256, or the model's context if that is shorter]
    #[arg(long, value_name = "T")]
    seq_len: Option<usize>,

    /// Tokens at most, from the start of the text [default: all]
    #[arg(long, value_name = "N")]
    tokens: Option<usize>,

    /// Of the draws of a stochastic activation
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// The field of a .jsonl record that holds the text
    #[arg(long, value_name = "NAME", default_value = "text")]
    field: String,
}

#[derive(clap::Subcommand)]
enum What {
    Qa(Box<qa::Args>),
}

/// Windows that go through the model at once: enough rows for the products, little memory.
const MICRO_BATCH: usize = 16;

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    if let Some(What::Qa(args)) = args.what {
        return qa::run(*args);
    }
    if let [word, questions, ..] = args.data.as_slice()
        && word.as_os_str() == "qa"
        && !word.exists()
    {
        bail!(
            "qa: there is no such file; for questions, it goes first: silurian eval qa {} -m ..",
            questions.display()
        );
    }
    let source = source::load(&args.model.expect("clap demands it"))?;
    source::require_bytes(&source)?;
    let psi = args.activation.unwrap_or_else(|| source.checkpoint.meta.hidden_act().into());
    let config = source.checkpoint.weights.config().clone();
    let seq_len = args.seq_len.unwrap_or(config.max_seq_len.min(256));
    if seq_len == 0 || seq_len > config.max_seq_len {
        bail!("--seq-len {seq_len}: must be 1 to {}, the model's context", config.max_seq_len);
    }
    if args.tokens == Some(0) {
        bail!("--tokens 0: must be at least 1");
    }
    let documents = Documents::open(&args.data, &args.field)?;
    let mut note = |text: String| complain(format_args!("note: {text}"));
    let tokens = Tokens::open(&documents, Tokenizer::Bytes, &cache::default_dir(), &mut note)?;
    let mut batches = Batches::for_evaluation(tokens, seq_len)?;
    let shape = EvalShape::new(&batches, args.tokens.unwrap_or(usize::MAX), MICRO_BATCH, seq_len);
    u32::try_from(shape.sequences * seq_len).context("more than 2^32 tokens: choose fewer with --tokens")?;
    let model = Transformer::new(source.checkpoint.weights);
    let e = evaluate(&model, &mut batches, shape, psi, args.seed, 0)?;

    say(format_args!("{}: {} tokens in windows of {seq_len}", source.folder.display(), grouped(e.tokens)))?;
    let mut losses = vec![("RELU".to_string(), e.relu_loss)];
    if psi != Psi::Relu {
        losses.insert(0, (e.activation.clone(), e.loss));
    }
    for (name, loss) in losses {
        let bits = loss / std::f64::consts::LN_2;
        say(format_args!("under {name}: loss {loss:.4} nats, {bits:.4} bits a token, perplexity {:.3}", loss.exp()))?;
    }
    say(format_args!("zeros under RELU: {:.1} % on average", 100.0 * e.mean_zeros()))?;
    say("layer   zeros   never active   small gate_proj rows")?;
    for (layer, zeros) in e.zeros.iter().enumerate() {
        let (dead, small) = (e.dead[layer], e.small_rows[layer]);
        say(format_args!("{layer:>5}  {:>5.1} %   {dead:>12}   {small:>20}", 100.0 * zeros))?;
    }
    say(format_args!("(of {} neurons a layer; a row is small below {SMALL_ROW} of the mean norm)", config.d_ff))?;
    Ok(ExitCode::SUCCESS)
}
