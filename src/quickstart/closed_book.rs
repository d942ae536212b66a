//! What the model knows: questions without a text to look the answers up in.

use crate::terminal::{progress_bar, say};
use infer::CpuEngine;
use model::Psi;
use train::almanac;
use train::data::Tokenizer;
use train::qa::{Answered, QaOptions, QaReport, evaluate_questions};
use train::questions::Question;
use train::report::{Example, Kind, Questions};

/// Questions that are shown with the model's answer.
const SHOWN: usize = 5;

/// Asks all questions and tells how many answers were right. The three sets as the report shows them.
pub fn ask(engine: &mut CpuEngine, questions: &almanac::Questions) -> anyhow::Result<Vec<Questions>> {
    let almanac::Questions { seen, held_out, cloze } = questions;
    let bar = progress_bar((seen.len() + held_out.len() + cloze.len()) as u64);
    let mut put = |questions: &[Question]| -> anyhow::Result<QaReport> {
        let options = QaOptions::greedy(Psi::Relu, Tokenizer::Bytes, questions);
        Ok(evaluate_questions(engine, Tokenizer::Bytes, questions, &options, &mut |_| bar.inc(1))?)
    };
    let sets = [
        ("asked in the text too", put(seen)?),
        ("held out: only stated there", put(held_out)?),
        ("sentences unlike any there", put(cloze)?),
    ];
    bar.finish_and_clear();

    say(
        "\nClosed-book questions about facts that the text tells (RELU, sparse FFN, greedy; only the exact answer counts):",
    )?;
    for (title, report) in &sets {
        let (asked, right) = (report.answered.len(), right(report.answered.iter()));
        say(format_args!(
            "  {title:<28} {right:>4} of {asked:>3} right: {:>5.1} %; by the most frequent answer of each kind {:.1} %",
            100.0 * report.all.greedy,
            100.0 * report.all.baseline
        ))?;
    }
    say("Some of the held-out ones:")?;
    for a in shown(&sets[1].1) {
        let right = if a.greedy.right { "right".to_string() } else { format!("wrong: {}", a.question.answers[0]) };
        say(format_args!("  | {} {} [{right}]", a.question.prompt, a.greedy.text))?;
    }
    Ok(sets.iter().map(|(title, report)| for_report(title, report)).collect())
}

fn right<'a>(answered: impl Iterator<Item = &'a Answered>) -> usize {
    answered.filter(|a| a.greedy.right).count()
}

fn shown(report: &QaReport) -> impl Iterator<Item = &Answered> {
    report.answered.iter().step_by(report.answered.len().div_ceil(SHOWN))
}

fn for_report(title: &str, report: &QaReport) -> Questions {
    let kinds = report.kinds.iter().map(|scores| Kind {
        name: scores.kind.clone().unwrap_or_default(),
        asked: scores.questions,
        correct: right(report.answered.iter().filter(|a| a.question.kind == scores.kind)),
        baseline: scores.baseline,
    });
    let examples = shown(report).map(|a| Example {
        prompt: a.question.prompt.clone(),
        expected: a.question.answers[0].clone(),
        answer: a.greedy.text.clone(),
        correct: a.greedy.right,
    });
    Questions {
        title: title.to_string(),
        how: "RELU, sparse FFN, greedy".to_string(),
        asked: report.answered.len(),
        correct: right(report.answered.iter()),
        baseline: report.all.baseline,
        kinds: kinds.collect(),
        examples: examples.collect(),
    }
}
