//! What the model knows: questions without a text to look the answers up in.

use crate::terminal::say;
use indicatif::{ProgressBar, ProgressStyle};
use infer::{CpuEngine, Request, Sampler, Sampling, generate};
use std::ops::ControlFlow;
use train::almanac::{Questions, most_frequent_answer_share};
use train::data::Tokenizer;
use train::questions::Question;

/// More than the longest answer of an almanac.
const ANSWER_TOKENS: usize = 24;

/// Questions that are shown with the model's answer.
const SHOWN: usize = 5;

/// Asks all questions and tells how many answers were right.
pub fn ask(engine: &mut CpuEngine, questions: &Questions) -> anyhow::Result<()> {
    let Questions { seen, held_out, cloze } = questions;
    let style = "{bar:32} {pos}/{len} questions asked  {eta} left";
    let bar = ProgressBar::new((seen.len() + held_out.len() + cloze.len()) as u64)
        .with_style(ProgressStyle::with_template(style).expect("the template is valid"));
    let mut answers = |questions: &[Question]| -> anyhow::Result<Vec<String>> {
        questions.iter().map(|question| answer(engine, question).inspect(|_| bar.inc(1))).collect()
    };
    let (to_seen, to_held_out, to_cloze) = (answers(seen)?, answers(held_out)?, answers(cloze)?);
    bar.finish_and_clear();

    say(
        "\nClosed-book questions, about facts that the text tells (greedy decoding; a right answer is exactly right):",
    )?;
    let baseline =
        format!("; {:.1} % by the most frequent answer of each kind", 100.0 * most_frequent_answer_share(held_out));
    for (what, questions, answers, rest) in [
        ("asked in the text too", seen, &to_seen, ""),
        ("held out, never asked there", held_out, &to_held_out, baseline.as_str()),
        ("sentences never used there", cloze, &to_cloze, ""),
    ] {
        let right = questions.iter().zip(answers).filter(|(question, answer)| is_right(question, answer)).count();
        let share = 100.0 * right as f64 / questions.len() as f64;
        say(format_args!("  {what:<28} {right:>4} of {:>3} right: {share:>5.1} %{rest}", questions.len()))?;
    }
    say("Some of those held out:")?;
    for (question, answer) in held_out.iter().zip(&to_held_out).step_by(held_out.len().div_ceil(SHOWN)) {
        let verdict =
            if is_right(question, answer) { "right".to_string() } else { format!("wrong: {}", question.answers[0]) };
        say(format_args!("  | {} {answer} [{verdict}]", question.prompt))?;
    }
    Ok(())
}

/// What the model says up to the end of the sentence or line.
fn answer(engine: &mut CpuEngine, question: &Question) -> anyhow::Result<String> {
    let prompt = Tokenizer::Bytes.encode(&question.prompt);
    let stop = [b'.', b'\n'].map(u32::from);
    let request = Request { prompt: &prompt, max_tokens: ANSWER_TOKENS, stop: &stop, sample: 0 };
    let mut sampler = Sampler::new(Sampling::GREEDY)?;
    let said = generate(engine, &mut sampler, request, |_| ControlFlow::Continue(()))?;
    Ok(Tokenizer::Bytes.decode(&said.tokens).trim().to_string())
}

fn is_right(question: &Question, answer: &str) -> bool {
    question.answers.iter().any(|right| right.eq_ignore_ascii_case(answer))
}
