//! How well a model answers questions: greedily, and by the best of N samples.
//!
//! **An answer** is what the model writes after the prompt, up to its end ([`AnswerEnd`]). It is **right** if it equals one of the
//! question's answers, both without surrounding whitespace, one final full stop and case ([`questions::normalized`]). One that
//! has not ended when the tokens run out is wrong: what it would have become is not known.
//!
//! **Coverage** (is any of N samples right?) and the **selector** (is the one that ranks first right?) are two numbers: diversity
//! raises the first, and only a selector that finds the right one turns it into accuracy.

use crate::data::Tokenizer;
use crate::questions::{self, Question, most_frequent_answer_share};
use infer::diversity::{distinct, type_token_ratio};
use infer::{Engine, FfnMode, Generation, Sampler, Samples, Sampling, StopReason, batches, rank};
use model::Psi;
use serde::Serialize;
use std::ops::ControlFlow;

/// How to ask.
#[derive(Clone, Debug, PartialEq)]
pub struct QaOptions {
    /// The deterministic pass: greedy answers run with it, and samples are ranked under it.
    pub psi: Psi,
    /// Where an answer ends.
    pub until: AnswerEnd,
    /// Tokens that end it too: the model's end of text.
    pub stop: Vec<u32>,
    /// Tokens of an answer at most, with its end.
    pub max_tokens: usize,
    /// Samples beside the greedy answer.
    pub samples: Option<QaSampling>,
}

/// How to draw samples, and how many.
#[derive(Clone, Debug, PartialEq)]
pub struct QaSampling {
    /// N samples a question, 1 to 65536.
    pub n: u32,
    /// The activation that they are drawn with. Its draws are keyed by the engine's seed.
    pub psi: Psi,
    /// Temperature, filters, and the seed of the token draws.
    pub sampling: Sampling,
    /// Words of a question's answers that their type-token ratio is taken over.
    pub ttr_budget: usize,
}

/// Where an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerEnd {
    /// At a newline, or at a full stop before whitespace: `3.5` goes on, `a baker. He` ends.
    Sentence,
    /// At a newline.
    Line,
}

/// Tokens beyond the longest right answer: a space, an article, the end, and enough of a wrong answer to show what it is.
const SPARE_TOKENS: usize = 16;

impl QaOptions {
    /// Greedy answers alone, of `questions`, under `psi`: to the end of a sentence, with room for the longest answer.
    pub fn greedy(psi: Psi, tokenizer: Tokenizer, questions: &[Question]) -> QaOptions {
        let answers = questions.iter().flat_map(|question| &question.answers);
        let longest = answers.map(|answer| tokenizer.encode(answer).len()).max().unwrap_or(0);
        let max_tokens = longest + SPARE_TOKENS;
        QaOptions { psi, until: AnswerEnd::Sentence, stop: Vec::new(), max_tokens, samples: None }
    }
}

/// Why questions could not be put.
#[derive(Debug, thiserror::Error)]
pub enum QaError {
    /// An answer that ends before its own end.
    #[error(
        "question {number}: the answer {answer:?} can never be given: answers end at {}",
        match until {
            AnswerEnd::Sentence => "a newline and at a full stop before a space; let them end at a newline alone (until = line)",
            AnswerEnd::Line => "a newline",
        }
    )]
    Unreachable {
        /// The question, from 1.
        number: usize,
        /// The answer.
        answer: String,
        /// Where answers end.
        until: AnswerEnd,
    },
    /// A question that the model cannot take.
    #[error("question {number} ({prompt:?}): {reason}")]
    Question {
        /// The question, from 1.
        number: usize,
        /// Its prompt.
        prompt: String,
        /// What the engine said.
        reason: infer::Error,
    },
    /// Options that do not fit each other or the engine.
    #[error(transparent)]
    Options(infer::Error),
}

/// What was answered, and how well.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QaReport {
    /// Over all questions.
    pub all: QaScores,
    /// For each kind, in the order in which they first occur; without those that have none.
    pub kinds: Vec<QaScores>,
    /// For each question.
    pub answered: Vec<Answered>,
}

/// Scores of a set of questions. Shares are 0 to 1.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QaScores {
    /// The kind; none for all of them.
    pub kind: Option<String>,
    /// How many.
    pub questions: usize,
    /// Greedy answers that are right.
    pub greedy: f64,
    /// What the most frequent answer would get: [`most_frequent_answer_share`].
    pub baseline: f64,
    /// Answers, greedy and sampled, that had not ended when the tokens ran out.
    pub unended: usize,
    /// Of the samples, if there are any.
    pub samples: Option<SampleScores>,
}

/// Scores of N samples a question.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SampleScores {
    /// First samples that are right.
    pub first: f64,
    /// Samples that rank first and are right: best-of-N accuracy.
    pub best: f64,
    /// Questions of which any sample is right.
    pub coverage: f64,
    /// [`pass_at_k`] for k = 1, 2, 4 .. and N, averaged over the questions.
    pub pass_at: Vec<PassAt>,
    /// Different answers to a question, on average, after [`questions::normalized`].
    pub distinct: f64,
    /// Type-token ratio of the first words of a question's answers in their order, averaged over the questions that have so many;
    /// `None` if none has.
    pub ttr: Option<f64>,
    /// Words that it is taken over.
    pub ttr_budget: usize,
    /// Questions whose answers have so many words together.
    pub ttr_questions: usize,
}

/// Coverage by k samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PassAt {
    /// Samples.
    pub k: usize,
    /// The share of questions of which any of k is right.
    pub share: f64,
}

/// The answers to a question.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answered {
    /// The question.
    pub question: Question,
    /// The most probable token, always.
    pub greedy: Answer,
    /// The samples, best first, with their scores.
    pub ranked: Vec<RankedAnswer>,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answer {
    /// As it was written, without surrounding whitespace and its end.
    pub text: String,
    /// Whether it is right.
    pub right: bool,
    /// Whether it ended before the tokens ran out.
    pub ended: bool,
}

/// A sampled answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RankedAnswer {
    /// The sample's number, from 1.
    pub sample: usize,
    /// `ln P(answer | prompt) / tokens` under the deterministic pass, in nats; the token that ended the answer counts.
    pub score: Option<f64>,
    /// The answer.
    #[serde(flatten)]
    pub answer: Answer,
}

/// Puts all questions to a model. `progress` hears how many are done.
///
/// The same engine seed, options and questions give the same report, on any number of threads. Sample s of question q is
/// number `65536 q + s` to the engine and the sampler, so that the draws of different questions differ too; questions may be left
/// out at the end without a change to the others. The engine keeps its activation and forgets its positions.
///
/// Errors: [`QaError`], before the first question if it is one of the options or of an answer. Panics if there are no questions,
/// or if `samples` has an n or a `ttr_budget` out of range.
pub fn evaluate_questions(
    engine: &mut dyn Engine,
    tokenizer: Tokenizer,
    questions: &[Question],
    options: &QaOptions,
    progress: &mut dyn FnMut(usize),
) -> Result<QaReport, QaError> {
    assert!(!questions.is_empty(), "evaluate_questions: no questions");
    if let Some(QaSampling { n, ttr_budget, .. }) = options.samples {
        assert!((1..=MAX_SAMPLES).contains(&n) && ttr_budget > 0, "evaluate_questions: n = {n}, budget {ttr_budget}");
    }
    for (i, question) in questions.iter().enumerate() {
        if let Some(answer) = question.answers.iter().find(|answer| !options.until.can_give(answer)) {
            return Err(QaError::Unreachable { number: i + 1, answer: answer.clone(), until: options.until });
        }
    }
    let (psi, ffn) = (engine.options().psi, engine.options().ffn);
    let mut asker = Asker::new(engine, tokenizer, options).map_err(QaError::Options)?;
    let mut ask_all = || {
        let ask = |(i, question): (usize, &Question)| {
            let answered = asker.ask(i, question).map_err(|reason| {
                let (number, prompt) = (i + 1, question.prompt.clone());
                QaError::Question { number, prompt, reason }
            })?;
            progress(i + 1);
            Ok(answered)
        };
        questions.iter().enumerate().map(ask).collect::<Result<Vec<_>, _>>()
    };
    let answered = ask_all();
    engine.set_activation(psi, ffn).map_err(QaError::Options)?;
    Ok(report(answered?, options))
}

/// Most samples a question: their numbers have 16 bits beside the question's.
pub const MAX_SAMPLES: u32 = 1 << 16;

/// Puts questions one by one.
struct Asker<'a> {
    engine: &'a mut dyn Engine,
    tokenizer: Tokenizer,
    options: &'a QaOptions,
    greedy: Sampler,
    sampler: Option<Sampler>,
}

/// An answer, and the tokens that it is scored by.
struct Given {
    answer: Answer,
    tokens: Vec<u32>,
}

impl<'a> Asker<'a> {
    fn new(engine: &'a mut dyn Engine, tokenizer: Tokenizer, options: &'a QaOptions) -> Result<Self, infer::Error> {
        if options.psi.draws() {
            return Err(infer::Error::Option {
                field: "rank_under",
                value: options.psi.to_string(),
                expected: "an activation that draws nothing, such as relu".to_string(),
            });
        }
        let greedy = Sampler::new(Sampling::GREEDY)?;
        let sampler = options.samples.as_ref().map(|s| Sampler::new(s.sampling)).transpose()?;
        Ok(Asker { engine, tokenizer, options, greedy, sampler })
    }

    fn ask(&mut self, number: usize, question: &Question) -> Result<Answered, infer::Error> {
        let prompt = self.tokenizer.encode(&question.prompt);
        run_with(self.engine, self.options.psi)?;
        let mut samples = Samples::new(self.engine, &prompt);
        let mut greedy = self.options.answers(self.tokenizer, question, &mut samples, &mut self.greedy, &[0])?;
        let greedy = greedy.remove(0).answer;
        let (Some(QaSampling { n, psi, .. }), Some(sampler)) = (&self.options.samples, &mut self.sampler) else {
            return Ok(Answered { question: question.clone(), greedy, ranked: Vec::new() });
        };
        run_with(self.engine, *psi)?;
        let mut samples = Samples::new(self.engine, &prompt);
        let first = (number as u32).wrapping_mul(MAX_SAMPLES);
        let mut given: Vec<Given> = Vec::new();
        for batch in batches(*n) {
            let numbers: Vec<u32> = batch.map(|s| first.wrapping_add(s)).collect();
            given.extend(self.options.answers(self.tokenizer, question, &mut samples, sampler, &numbers)?);
        }
        let tokens: Vec<Vec<u32>> = given.iter().map(|given| given.tokens.clone()).collect();
        let ranked = rank(self.engine, self.options.psi, &prompt, &tokens)?;
        let ranked = ranked.into_iter().map(|r| RankedAnswer {
            sample: r.index + 1,
            score: r.score,
            answer: given[r.index].answer.clone(),
        });
        Ok(Answered { question: question.clone(), greedy, ranked: ranked.collect() })
    }
}

fn run_with(engine: &mut dyn Engine, psi: Psi) -> Result<(), infer::Error> {
    if engine.options().psi != psi { engine.set_activation(psi, FfnMode::of(psi)) } else { Ok(()) }
}

impl QaOptions {
    /// Writes the answers of some samples, all at once.
    fn answers(
        &self,
        tokenizer: Tokenizer,
        question: &Question,
        samples: &mut Samples,
        sampler: &mut Sampler,
        numbers: &[u32],
    ) -> Result<Vec<Given>, infer::Error> {
        let mut so_far = vec![(Vec::new(), None); numbers.len()];
        let written = samples.draw_batch(sampler, self.max_tokens, &self.stop, numbers, |sample, token| {
            let (tokens, end) = &mut so_far[sample];
            tokens.push(token);
            *end = self.until.find(&tokenizer.decode(tokens));
            if end.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        let given = written.iter().zip(so_far).map(|(written, (_, end))| self.given(tokenizer, question, written, end));
        Ok(given.collect())
    }

    fn given(&self, tokenizer: Tokenizer, question: &Question, written: &Generation, end: Option<End>) -> Given {
        let text = tokenizer.decode(&written.tokens);
        let (text, tokens, ended) = match end {
            Some(End { answer, mark }) => {
                // The whitespace after a full stop, by which it was known for the end, is no part of what is scored.
                let reaches = |n: &usize| tokenizer.decode(&written.tokens[..*n]).len() >= mark;
                let n = (1..written.tokens.len()).find(reaches).unwrap_or(written.tokens.len());
                (&text[..answer], written.tokens[..n].to_vec(), true)
            }
            None => {
                let stopped = matches!(written.stop, StopReason::StopToken(_));
                (text.as_str(), written.drawn(), stopped || self.until == AnswerEnd::Sentence && text.ends_with('.'))
            }
        };
        let right = ended && question.accepts(text);
        Given { answer: Answer { text: text.trim().to_string(), right, ended }, tokens }
    }
}

/// The end of an answer in a text, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct End {
    /// Of the answer.
    answer: usize,
    /// Of the newline or full stop after it.
    mark: usize,
}

impl AnswerEnd {
    /// The first end in a text; `None` if the answer may go on.
    fn find(self, text: &str) -> Option<End> {
        let line = text.find('\n');
        let stops = text.match_indices('.').map(|(i, _)| i);
        let mut ends = stops.filter(|i| text[i + 1..].starts_with(char::is_whitespace));
        let sentence = if self == AnswerEnd::Sentence { ends.next() } else { None };
        let answer = line.into_iter().chain(sentence).min()?;
        Some(End { answer, mark: answer + 1 })
    }

    /// Whether an answer can be all that comes before the end.
    fn can_give(self, answer: &str) -> bool {
        let ended = format!("{}\n", answer.trim());
        let end = self.find(&ended).expect("it ends with a newline");
        questions::normalized(&ended[..end.answer]) == questions::normalized(answer)
    }
}

/// The probability that at least one of k samples is right, drawn without replacement from n of which c are: the unbiased estimate
/// of pass@k (Chen et al., arXiv 2107.03374).
///
/// ```text
/// 1 - C(n - c, k) / C(n, k) = 1 - prod_(i = n-c+1 .. n) (1 - k / i)
/// ```
///
/// Panics unless `c <= n` and `1 <= k <= n`.
pub fn pass_at_k(n: usize, c: usize, k: usize) -> f64 {
    assert!(c <= n && (1..=n).contains(&k), "pass_at_k: n = {n}, c = {c}, k = {k}");
    if n - c < k {
        return 1.0;
    }
    1.0 - (n - c + 1..=n).map(|i| 1.0 - k as f64 / i as f64).product::<f64>()
}

fn report(answered: Vec<Answered>, options: &QaOptions) -> QaReport {
    let budget = options.samples.as_ref().map(|s| s.ttr_budget);
    let all = scores(None, &answered.iter().collect::<Vec<_>>(), budget);
    let mut names: Vec<&String> = Vec::new();
    for kind in answered.iter().filter_map(|a| a.question.kind.as_ref()) {
        if !names.contains(&kind) {
            names.push(kind);
        }
    }
    let of_kind = |kind: &&String| {
        let of_kind: Vec<&Answered> = answered.iter().filter(|a| a.question.kind.as_ref() == Some(kind)).collect();
        scores(Some(kind.to_string()), &of_kind, budget)
    };
    let kinds = names.iter().map(of_kind).collect();
    QaReport { all, kinds, answered }
}

fn scores(kind: Option<String>, answered: &[&Answered], ttr_budget: Option<usize>) -> QaScores {
    let mean =
        |value: &dyn Fn(&Answered) -> f64| answered.iter().map(|a| value(a)).sum::<f64>() / answered.len() as f64;
    let samples = ttr_budget.map(|ttr_budget| {
        let n = answered[0].ranked.len();
        let right = |a: &Answered| a.ranked.iter().filter(|r| r.answer.right).count();
        let ks = std::iter::successors(Some(1), |k| Some(2 * k)).take_while(|&k| k < n).chain([n]);
        let ratios: Vec<f64> =
            answered.iter().filter_map(|a| type_token_ratio(&a.in_order(), ttr_budget).ratio).collect();
        SampleScores {
            first: mean(&|a| a.ranked.iter().any(|r| r.sample == 1 && r.answer.right).into()),
            best: mean(&|a| a.ranked[0].answer.right.into()),
            coverage: mean(&|a| (right(a) > 0).into()),
            pass_at: ks.map(|k| PassAt { k, share: mean(&|a| pass_at_k(n, right(a), k)) }).collect(),
            distinct: mean(&|a| {
                distinct(&a.in_order().into_iter().map(questions::normalized).collect::<Vec<_>>()) as f64
            }),
            ttr: (!ratios.is_empty()).then(|| ratios.iter().sum::<f64>() / ratios.len() as f64),
            ttr_budget,
            ttr_questions: ratios.len(),
        }
    });
    let unended = |a: &Answered| {
        let sampled = a.ranked.iter().filter(|r| !r.answer.ended).count();
        sampled + usize::from(!a.greedy.ended)
    };
    QaScores {
        kind,
        questions: answered.len(),
        greedy: mean(&|a| a.greedy.right.into()),
        baseline: most_frequent_answer_share(answered.iter().map(|a| &a.question)),
        unended: answered.iter().map(|a| unended(a)).sum(),
        samples,
    }
}

impl Answered {
    /// The samples' answers in the order in which they were drawn.
    pub fn in_order(&self) -> Vec<&str> {
        let mut ranked: Vec<&RankedAnswer> = self.ranked.iter().collect();
        ranked.sort_by_key(|r| r.sample);
        ranked.into_iter().map(|r| r.answer.text.as_str()).collect()
    }
}

#[cfg(test)]
mod tests;
