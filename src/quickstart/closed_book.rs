//! What the model knows: questions without a text to look the answers up in.

use crate::terminal::say;
use indicatif::{ProgressBar, ProgressStyle};
use infer::CpuEngine;
use model::Psi;
use train::almanac::Questions;
use train::data::Tokenizer;
use train::qa::{QaOptions, QaReport, evaluate_questions};
use train::questions::Question;

/// Held-out questions that are shown with the model's answer.
const SHOWN: usize = 5;

/// Asks all questions and tells how many answers were right.
pub fn ask(engine: &mut CpuEngine, questions: &Questions) -> anyhow::Result<()> {
    let Questions { seen, held_out, cloze } = questions;
    let style = "{bar:32} {pos}/{len} questions asked  {eta} left";
    let bar = ProgressBar::new((seen.len() + held_out.len() + cloze.len()) as u64)
        .with_style(ProgressStyle::with_template(style).expect("the template is valid"));
    let mut put = |questions: &[Question]| -> anyhow::Result<QaReport> {
        let options = QaOptions::greedy(Psi::Relu, Tokenizer::Bytes, questions);
        Ok(evaluate_questions(engine, Tokenizer::Bytes, questions, &options, &mut |_| bar.inc(1))?)
    };
    let (of_seen, of_held_out, of_cloze) = (put(seen)?, put(held_out)?, put(cloze)?);
    bar.finish_and_clear();

    let baseline = format!("; {:.1} % by the most frequent answer of each kind", 100.0 * of_held_out.all.baseline);
    say(
        "\nClosed-book questions about facts that the text tells (RELU, sparse FFN, greedy; only the exact answer counts):",
    )?;
    for (what, report, rest) in [
        ("asked in the text too", &of_seen, ""),
        ("held out: only stated there", &of_held_out, baseline.as_str()),
        ("sentences unlike any there", &of_cloze, ""),
    ] {
        let all = report.answered.len();
        let right = report.answered.iter().filter(|a| a.greedy.right).count();
        say(format_args!("  {what:<28} {right:>4} of {all:>3} right: {:>5.1} %{rest}", 100.0 * report.all.greedy))?;
    }
    say("Some of the held-out ones:")?;
    for a in of_held_out.answered.iter().step_by(of_held_out.answered.len().div_ceil(SHOWN)) {
        let right = if a.greedy.right { "right".to_string() } else { format!("wrong: {}", a.question.answers[0]) };
        say(format_args!("  | {} {} [{right}]", a.question.prompt, a.greedy.text))?;
    }
    Ok(())
}
