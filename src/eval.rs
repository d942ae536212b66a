//! `silurian eval`: how good a model is on a text, and how sparse.

mod qa;

use crate::source::{
    self, AnyEngine, parse_activations, parse_kv, parse_prefill, parse_psi, parse_resident, parse_weights,
};
use crate::terminal::{complain, grouped, progress_bar, say};
use anyhow::{Context, bail};
use infer::{ActivationFormat, EngineOptions, FfnMode, KvFormat, Prefill, Resident, WeightFormat};
use model::hf::Folder;
use model::{Psi, Transformer};
use silurian::device::DeviceArg;
use std::path::PathBuf;
use std::process::ExitCode;
use tensor::{Device, failure};
use train::data::{Batch, Batches, Documents, Tokenizer, Tokens, cache};
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

    /// Text files, folders (all .txt, .md and .jsonl below), .jsonl files; a file named qa is ./qa
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

    /// Tokens at most, from the start of the text, in whole windows [default: all]
    #[arg(long, value_name = "N")]
    tokens: Option<usize>,

    /// Of the draws of a stochastic activation
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// Compute as `generate` does, with weights kept as f32, bf16, bf16-packed, q8 or q4: the loss under --activation alone
    #[arg(long, value_name = "FORMAT", value_parser = parse_weights)]
    weights: Option<WeightFormat>,

    /// What q8 and q4 weights are multiplied with: exact, or q8, activations rounded to 8 bits, for which the text goes through the model
    /// token by token
    #[arg(long, value_name = "FORMAT", default_value = "exact", value_parser = parse_activations, requires = "weights")]
    activations: ActivationFormat,

    /// How all else is multiplied: exact, activations as they are, bf16, rounded to 16 bits, or q8, rounded to 8 bits, for q8 and q4
    #[arg(long, value_name = "WAY", default_value = "exact", value_parser = parse_prefill, requires = "weights")]
    prefill: Prefill,

    /// How keys and values are kept: f32, or bf16, rounded to 16 bits
    #[arg(long, value_name = "FORMAT", default_value = "f32", value_parser = parse_kv, requires = "weights")]
    kv: KvFormat,

    /// Whether the weights, as --weights keeps them, are read from and written to disk beside the model (MODEL/resident/): auto, for
    /// models of 64 MiB or more, always, or never
    #[arg(long, value_name = "WHEN", default_value = "auto", value_parser = parse_resident, requires = "weights")]
    disk_cache: Resident,

    /// Where to compute: cpu, cuda or cuda:N (a GPU's number, from 0)
    #[arg(long, value_name = "DEVICE", default_value_t)]
    device: DeviceArg,

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

/// The loss by the engine that generates.
fn by_engine(
    (folder, device): (&Folder, &Device),
    (options, resident): (EngineOptions, Resident),
    batches: &mut Batches,
    shape: EvalShape,
) -> anyhow::Result<ExitCode> {
    let (psi, one_by_one) = (options.psi, options.activations == ActivationFormat::Q8);
    let AnyEngine { mut engine, formats, .. } = source::engine_on(device, folder, options, resident)?;
    let words = format!("{formats}, under {psi}");
    let (mut log_probs, mut sum) = (Vec::new(), 0.0);
    let bar = progress_bar(shape.sequences as u64);
    for sequence in 0..shape.sequences {
        let Batch { inputs, targets } = batches.val(sequence, 1)?;
        let (inputs, targets) = (inputs.to_vec::<u32>()?, targets.to_vec::<u32>()?);
        log_probs.clear();
        engine.reset(sequence as u32);
        for part in 0..if one_by_one { shape.seq_len } else { 1 } {
            let part = if one_by_one { part..part + 1 } else { 0..shape.seq_len };
            engine.log_probs(&inputs[part.clone()], &targets[part], &mut log_probs)?;
        }
        sum -= log_probs.iter().sum::<f64>();
        bar.inc(1);
    }
    bar.finish_and_clear();
    let tokens = shape.sequences * shape.seq_len;
    let loss = sum / tokens as f64;
    let bits = loss / std::f64::consts::LN_2;
    let folder = folder.dir().display();
    say(format_args!("{folder}: {} tokens in windows of {}", grouped(tokens as u64), shape.seq_len))?;
    say(format_args!("{words}: loss {loss:.4} nats, {bits:.4} bits a token, perplexity {:.3}", loss.exp()))?;
    Ok(ExitCode::SUCCESS)
}

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
    let folder = source::open(&args.model.expect("clap demands it"))?;
    source::require_bytes(&folder)?;
    let device = args.device.open()?;
    let psi = args.activation.unwrap_or_else(|| folder.meta().hidden_act().into());
    let config = folder.config().clone();
    let seq_len = args.seq_len.unwrap_or(config.max_seq_len.min(256));
    if seq_len == 0 || seq_len > config.max_seq_len {
        bail!("--seq-len {seq_len}: must be 1 to {}, the model's context", config.max_seq_len);
    }
    if args.activations == ActivationFormat::Q8 && args.prefill != Prefill::Exact {
        bail!("--prefill {}: with --activations q8, the text goes through the model token by token", args.prefill);
    }
    if let Some(tokens) = args.tokens
        && tokens < seq_len
    {
        bail!("--tokens {tokens}: must be at least {seq_len}, the tokens of a window (--seq-len)");
    }
    let documents = Documents::open(&args.data, &args.field)?;
    let mut note = |text: String| complain(format_args!("note: {text}"));
    let tokens = Tokens::open(&documents, Tokenizer::Bytes, &cache::default_dir(), &mut note)?;
    let mut batches = Batches::for_evaluation(tokens, seq_len)?;
    let shape = EvalShape::new(&batches, args.tokens.unwrap_or(usize::MAX), MICRO_BATCH, seq_len);
    u32::try_from(shape.sequences * seq_len).context("more than 2^32 tokens: choose fewer with --tokens")?;
    if let Some(weights) = args.weights {
        let ffn = FfnMode::of(psi);
        let (activations, prefill, kv) = (args.activations, args.prefill, args.kv);
        let (seed, context) = (args.seed, Some(seq_len));
        let options =
            EngineOptions { ffn, weights, activations, prefill, kv, seed, context, ..EngineOptions::new(psi) };
        return by_engine((&folder, &device), (options, args.disk_cache), &mut batches, shape);
    }
    let weights = folder.load_all()?.to_device(&device)?;
    let mut batches = batches.on(&device);
    let e = failure::catch(|| {
        let model = Transformer::new(weights);
        evaluate(&model, &mut batches, shape, psi, args.seed, 0)
    })??;

    say(format_args!("{}: {} tokens in windows of {seq_len}", folder.dir().display(), grouped(e.tokens)))?;
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
