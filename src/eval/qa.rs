//! `silurian eval qa`: questions with known answers, greedily and by the best of N samples.

use crate::generate::parse_budget;
use crate::source::{self, parse_psi, parse_resident};
use crate::table::{Cell, Column, Format, Table};
use crate::terminal::{complain, counted, print, progress_bar, say};
use anyhow::bail;
use infer::{EngineOptions, Resident, Sampling};
use model::Psi;
use model::hf::Folder;
use serde_json::json;
use silurian::device::DeviceArg;
use std::path::PathBuf;
use std::process::ExitCode;
use train::data::Tokenizer;
use train::qa::{
    Answer, AnswerEnd, Answered, MAX_SAMPLES, QaOptions, QaReport, QaSampling, QaScores, evaluate_questions,
};
use train::questions::{self, Question};

/// Put questions whose answers are known, and count.
///
/// Each line of the file is {"prompt": "...", "answers": ["..."], "kind": "..."}: a text to be continued, all answers that are right,
/// and a name to group by, which may be left out.
///
/// What the model writes after the prompt is its answer, up to a newline, a full stop before whitespace (see --until), or the end of
/// the text. It is right if it equals one of the answers, apart from case, surrounding whitespace and one final full stop. An answer
/// that has not ended after --max-tokens is wrong.
///
/// Greedy answers take the most probable token, always. With -n, N more are drawn for each question, and the one that ranks first by
/// ln P(answer | prompt) / tokens is the best of N; the token that ended it counts. Coverage asks whether any of the N is right, and
/// pass@k whether any of k would be. The baseline is what the most frequent answer of each kind would get.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The questions, a .jsonl file
    #[arg(value_name = "QUESTIONS")]
    questions: PathBuf,

    /// A run folder (its newest checkpoint) or a Hugging Face folder
    #[arg(short, long, value_name = "DIR")]
    model: PathBuf,

    /// Draw N answers to each question, beside the greedy one
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MAX_SAMPLES as i64))]
    samples: Option<u32>,

    /// What samples are drawn with: relu, silu, gelu, relu2, tanh, stochastic:P or stochastic:P:A,B[:POSITIVE] (see train) [default:
    /// what the model is meant to run with]
    #[arg(long, value_name = "PSI", value_parser = parse_psi)]
    activation: Option<Psi>,

    /// The activation of the greedy answers and of the ranking, which must not draw [default: --activation, or if that draws, what
    /// the model is meant to run with]
    #[arg(long, value_name = "PSI", value_parser = parse_psi)]
    rank_under: Option<Psi>,

    /// Divides the logits of samples; 0 leaves the draws to a stochastic activation
    #[arg(long, value_name = "X", default_value_t = 0.8, allow_negative_numbers = true, requires = "samples")]
    temp: f32,

    /// Draw from the K most probable tokens; 0 is all
    #[arg(long, value_name = "K", default_value_t = 0, requires = "samples")]
    top_k: usize,

    /// Draw from the fewest tokens whose probabilities sum to P; 1 is all
    #[arg(long, value_name = "P", default_value_t = 1.0, allow_negative_numbers = true, requires = "samples")]
    top_p: f32,

    /// Draw from tokens at least P times as probable as the most probable one
    #[arg(long, value_name = "P", default_value_t = 0.0, allow_negative_numbers = true, requires = "samples")]
    min_p: f32,

    /// Of all draws: tokens and stochastic activation
    #[arg(long, default_value_t = 0, requires = "samples")]
    seed: u64,

    /// Words that the type-token ratio of a question's answers is taken over [default: N]
    #[arg(long, value_name = "B", value_parser = parse_budget, requires = "samples")]
    ttr_budget: Option<usize>,

    /// Where an answer ends, beside the end of the text
    #[arg(long, value_name = "END", default_value = "sentence")]
    until: Until,

    /// Tokens of an answer at most, with its end [default: those of the longest right answer and 16 more]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: Option<u32>,

    /// Questions at most, from the start of the file
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,

    /// Print K questions, spread over the file, with what was answered
    #[arg(long, value_name = "K", default_value_t = 0)]
    show: usize,

    /// Whether the weights are read from and written to disk beside the model (MODEL/resident/), as decoding reads them: auto, for models
    /// of 64 MiB or more, always, or never
    #[arg(long, value_name = "WHEN", default_value = "auto", value_parser = parse_resident)]
    disk_cache: Resident,

    /// Where to compute: cpu, cuda or cuda:N (a GPU's number, from 0)
    #[arg(long, value_name = "DEVICE", default_value_t)]
    device: DeviceArg,

    /// How the figures are written; json holds every answer
    #[arg(short, long, value_name = "FORMAT", default_value = "md")]
    output: Format,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Until {
    /// At a newline, or at a full stop before whitespace: 3.5 goes on
    Sentence,
    /// At a newline: for answers like St. Ives
    Line,
}

const EXAMPLES: &str = "\
Examples:
  silurian eval qa -m runs/book questions.jsonl --show 5
  silurian eval qa -m runs/book questions.jsonl -n 20 --temp 0.5
  silurian eval qa -m runs/book questions.jsonl -n 20 --temp 0 --activation stochastic:0.7";

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    if args.show > 0 && args.output != Format::Md {
        bail!("--show: with -o md alone; -o json holds every answer");
    }
    let mut questions = questions::read(&args.questions)?;
    questions.truncate(args.limit.map_or(usize::MAX, |n| n as usize));
    let folder = source::open(&args.model)?;
    source::require_bytes(&folder)?;
    let options = options(&args, &folder, &questions)?;
    let engine = EngineOptions { seed: args.seed, ..EngineOptions::new(options.psi) };
    let mut engine = source::engine_on(&args.device.open()?, &folder, engine, args.disk_cache)?.engine;
    let bar = progress_bar(questions.len() as u64);
    let report = evaluate_questions(engine.as_mut(), Tokenizer::Bytes, &questions, &options, &mut |done| {
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    let report = report?;

    let tables = tables(&report);
    match args.output {
        Format::Md => {
            say(method(&args, &folder, &options, questions.len()))?;
            for table in &tables {
                say(format_args!("\n{}\n\n{}", table.title, table.markdown().trim_end()))?;
            }
            show(&report.answered, args.show)?;
        }
        Format::Csv => print(tables.iter().map(Table::csv).collect::<Vec<_>>().join("\n"))?,
        Format::Json => {
            let method = method(&args, &folder, &options, questions.len());
            let QaReport { all, kinds, answered } = &report;
            let report = json!({ "method": method, "all": all, "kinds": kinds, "answered": answered });
            say(format_args!("{report:#}"))?;
        }
    }
    if report.answered.iter().all(|answered| !answered.greedy.right && answered.ranked.iter().all(|r| !r.answer.right))
    {
        complain(format_args!(
            "note: not one answer is right: questions suit a model whose text has their answers; `silurian almanac` writes a text and \
             questions that go together",
        ));
    }
    if report.all.unended > 0 {
        let answers = questions.len() * (1 + args.samples.unwrap_or(0) as usize);
        complain(format_args!(
            "note: {} of {answers} answers had not ended after {} tokens or at the end of the context, and count as wrong",
            report.all.unended, options.max_tokens
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// The flags as the library takes them.
fn options(args: &Args, folder: &Folder, questions: &[Question]) -> anyhow::Result<QaOptions> {
    let meta = folder.meta();
    let hidden_act: Psi = meta.hidden_act().into();
    let drawn_with = args.activation.unwrap_or(hidden_act);
    let psi = args.rank_under.unwrap_or(if drawn_with.draws() { hidden_act } else { drawn_with });
    source::require_deterministic("--rank-under", psi)?;
    if let (None, Some(activation)) = (args.samples, args.activation)
        && psi != activation
    {
        bail!("--activation {activation}: is for samples, and none are drawn: say how many with -n, as in -n 20");
    }
    if args.samples.is_some() {
        source::require_draws("-n", drawn_with, args.temp)?;
    }
    let samples = args.samples.map(|n| QaSampling {
        n,
        psi: drawn_with,
        sampling: Sampling {
            temperature: args.temp,
            top_k: args.top_k,
            top_p: args.top_p,
            min_p: args.min_p,
            seed: args.seed,
        },
        ttr_budget: args.ttr_budget.unwrap_or(n as usize),
    });
    let until = match args.until {
        Until::Sentence => AnswerEnd::Sentence,
        Until::Line => AnswerEnd::Line,
    };
    let defaults = QaOptions::greedy(psi, Tokenizer::Bytes, questions);
    let max_tokens = args.max_tokens.map_or(defaults.max_tokens, |n| n as usize);
    Ok(QaOptions { until, max_tokens, stop: meta.eos_token_ids.clone(), samples, ..defaults })
}

/// What was done, in a line or two.
fn method(args: &Args, folder: &Folder, options: &QaOptions, questions: usize) -> String {
    let mut text = format!(
        "{}: {} of {}, answered greedily under {}.",
        folder.dir().display(),
        counted(questions as u64, "question"),
        args.questions.display(),
        options.psi
    );
    if let Some(QaSampling { n, psi, sampling, ttr_budget }) = &options.samples {
        let Sampling { temperature, top_k, top_p, min_p, seed } = sampling;
        let mut filters = String::new();
        for (name, value, none) in [("top-k", *top_k as f32, 0.0), ("top-p", *top_p, 1.0), ("min-p", *min_p, 0.0)] {
            if value != none {
                filters += &format!(", {name} {value}");
            }
        }
        text += &format!(
            "\n{} a question under {psi} at temperature {temperature}{filters}, seed {seed}; the best of them by the mean \
             ln P of a token under {} at temperature 1. Type-token ratio over the first {} of a question's samples.",
            counted(*n, "sample"),
            options.psi,
            counted(*ttr_budget as u64, "word")
        );
    }
    text
}

/// A row for each kind and one for all; with samples, their coverage by number.
fn tables(report: &QaReport) -> Vec<Table> {
    let mut columns = vec![
        Column::text("kind", "kind"),
        Column::number("questions", "questions"),
        Column::number("greedy_percent", "greedy %"),
        Column::number("baseline_percent", "baseline %"),
    ];
    if report.all.samples.is_some() {
        columns.extend([
            Column::number("first_percent", "first sample %"),
            Column::number("best_percent", "best of N %"),
            Column::number("coverage_percent", "coverage %"),
            Column::number("distinct_answers", "distinct answers"),
            Column::number("ttr", "TTR"),
            Column::number("ttr_questions", "questions with TTR"),
        ]);
    }
    let mut by_kind = Table::new("by_kind", "By kind:".to_string(), &columns);
    for scores in report.kinds.iter().chain([&report.all]) {
        by_kind.push(row(scores));
    }
    let Some(samples) = &report.all.samples else { return vec![by_kind] };
    let columns = [Column::number("k", "k"), Column::number("pass_at_k_percent", "pass@k %")];
    let title = "Coverage by any k of the samples (unbiased estimate), over all questions:";
    let mut pass_at = Table::new("pass_at_k", title.to_string(), &columns);
    for pass in &samples.pass_at {
        pass_at.push(vec![pass.k.into(), percent(pass.share)]);
    }
    vec![by_kind, pass_at]
}

fn row(scores: &QaScores) -> Vec<Cell> {
    let mut row: Vec<Cell> = vec![
        scores.kind.as_deref().unwrap_or("all").into(),
        scores.questions.into(),
        percent(scores.greedy),
        percent(scores.baseline),
    ];
    if let Some(s) = &scores.samples {
        row.extend([
            percent(s.first),
            percent(s.best),
            percent(s.coverage),
            s.distinct.into(),
            s.ttr.into(),
            s.ttr_questions.into(),
        ]);
    }
    row
}

fn percent(share: f64) -> Cell {
    (100.0 * share).into()
}

/// `k` of the questions, spread over all, with their answers.
fn show(answered: &[Answered], k: usize) -> anyhow::Result<()> {
    let k = k.min(answered.len());
    for i in 0..k {
        let Answered { question, greedy, ranked } = &answered[i * answered.len() / k];
        say(format_args!("\n{}", question.prompt.trim_end()))?;
        say(format_args!("  expected  {}", question.answers.join(" | ")))?;
        say(format_args!("  greedy    {}", judged(greedy)))?;
        if let Some(best) = ranked.first() {
            let score = best.score.map_or(String::new(), |s| format!(", {s:.3} nats a token"));
            say(format_args!("  best      {}: sample {}{score}", judged(&best.answer), best.sample))?;
            let mut counts: Vec<(&str, usize)> = Vec::new();
            for text in ranked.iter().map(|r| r.answer.text.as_str()) {
                match counts.iter_mut().find(|(known, _)| *known == text) {
                    Some((_, count)) => *count += 1,
                    None => counts.push((text, 1)),
                }
            }
            let counts: Vec<String> = counts.iter().map(|(text, count)| format!("{text:?} {count}")).collect();
            say(format_args!("  by rank   {}", counts.join(", ")))?;
        }
    }
    Ok(())
}

fn judged(answer: &Answer) -> String {
    let judgement = match (answer.right, answer.ended) {
        (true, _) => "right",
        (false, true) => "wrong",
        (false, false) => "not ended",
    };
    format!("{:?} ({judgement})", answer.text)
}
