use super::*;
use infer::{CpuEngine, EngineOptions};
use model::{Config, Weights, preset};

const BYTES: Tokenizer = Tokenizer::Bytes;

fn weights() -> Weights {
    // With tied embeddings an untrained model repeats the last byte.
    let config = Config { n_layers: 1, max_seq_len: 64, tie_embeddings: false, ..preset("tiny", 256).unwrap() };
    Weights::init(&config, 1)
}

fn engine(psi: Psi) -> CpuEngine {
    CpuEngine::new(&weights(), EngineOptions { seed: 5, ..EngineOptions::new(psi) }).unwrap()
}

fn question(prompt: &str, answers: &[&str], kind: Option<&str>) -> Question {
    Question {
        prompt: prompt.to_string(),
        answers: answers.iter().map(|a| a.to_string()).collect(),
        kind: kind.map(str::to_string),
    }
}

fn sampling(temperature: f32) -> Sampling {
    Sampling { temperature, seed: 9, ..Sampling::GREEDY }
}

fn ask(engine: &mut CpuEngine, questions: &[Question], options: &QaOptions) -> Result<QaReport, QaError> {
    let mut heard = Vec::new();
    let report = evaluate_questions(engine, BYTES, questions, options, &mut |done| heard.push(done))?;
    assert_eq!(heard, (1..=questions.len()).collect::<Vec<_>>());
    Ok(report)
}

#[test]
fn an_answer_ends_at_a_line_or_a_sentence() {
    let answer = |until: AnswerEnd, text: &str| until.find(text).map(|end| text[..end.answer].to_string());
    for (text, sentence, line) in [
        ("a baker", None, None),
        ("a baker.", None, None),
        ("a baker. ", Some("a baker"), None),
        ("a baker.\nIn", Some("a baker"), Some("a baker.")),
        ("3.5\n", Some("3.5"), Some("3.5")),
        ("3.5. x. ", Some("3.5"), None),
        ("\nno", Some(""), Some("")),
        ("", None, None),
    ] {
        let found = [AnswerEnd::Sentence, AnswerEnd::Line].map(|until| answer(until, text));
        assert_eq!(found, [sentence, line].map(|a| a.map(str::to_string)), "{text:?}");
    }
    for (text, sentence, line) in [("St. Ives", false, true), ("a\nb", false, false), (" 3.5. ", true, true)] {
        assert_eq!([AnswerEnd::Sentence, AnswerEnd::Line].map(|u| u.can_give(text)), [sentence, line], "{text:?}");
    }
}

/// What is scored is the answer with its end, and not the whitespace by which a full stop is known for one.
#[test]
fn what_is_scored_is_the_answer_and_its_end() {
    let q = question("p", &["Ann"], None);
    let options = QaOptions::greedy(Psi::Relu, BYTES, std::slice::from_ref(&q));
    assert_eq!((options.max_tokens, options.until), (3 + SPARE_TOKENS, AnswerEnd::Sentence));
    let given = |text: &str, stop, until| {
        let written = Generation {
            batch: 1,
            tokens: BYTES.encode(text),
            stop,
            prompt_tokens: 1,
            prefill: Default::default(),
            decode_steps: 0,
            decode: Default::default(),
            ffn_time: Default::default(),
            sampling: Default::default(),
            ffn: FfnMode::Dense,
            density: Vec::new(),
        };
        let options = QaOptions { until, ..options.clone() };
        let Given { answer, tokens } = options.given(BYTES, &q, &written, until.find(text));
        (BYTES.decode(&tokens), answer.text, answer.right, answer.ended)
    };
    let owned = |scored: &str, text: &str, right, ended| (scored.to_string(), text.to_string(), right, ended);
    let (sentence, line, broken) = (AnswerEnd::Sentence, AnswerEnd::Line, StopReason::Receiver);
    assert_eq!(given(" ann. ", broken, sentence), owned(" ann.", "ann", true, true));
    assert_eq!(given(" Ann\n", broken, sentence), owned(" Ann\n", "Ann", true, true));
    assert_eq!(given("Bob.\n", broken, line), owned("Bob.\n", "Bob.", false, true));
    assert_eq!(given("Ann", StopReason::StopToken(0), line), owned("Ann\0", "Ann", true, true));
    assert_eq!(given("", StopReason::StopToken(0), line), owned("\0", "", false, true));
    // Cut off: the full stop at the end is one, and without it nobody knows whether it is Ann or Anna.
    assert_eq!(given(" Ann.", StopReason::MaxTokens, sentence), owned(" Ann.", "Ann.", true, true));
    assert_eq!(given(" Ann", StopReason::MaxTokens, sentence), owned(" Ann", "Ann", false, false));
    assert_eq!(given(" Ann", StopReason::ContextFull, line), owned(" Ann", "Ann", false, false));
}

/// The probability that a draw of k of n holds one of c, by counting all subsets.
#[test]
fn pass_at_k_is_the_share_of_subsets() {
    for n in 1..=8usize {
        for c in 0..=n {
            for k in 1..=n {
                let subsets = (0u32..1 << n).filter(|s| s.count_ones() as usize == k);
                let (mut all, mut hit) = (0.0, 0.0);
                for subset in subsets {
                    all += 1.0;
                    hit += f64::from(subset & ((1 << c) - 1) != 0);
                }
                let (found, expected) = (pass_at_k(n, c, k), hit / all);
                // At most 8 factors, each rounded thrice, and a difference from 1.
                assert!(
                    (found - expected).abs() <= 32.0 * f64::EPSILON,
                    "pass_at_k({n}, {c}, {k}) = {found}, {expected}"
                );
            }
        }
    }
    assert_eq!((pass_at_k(20, 1, 20), pass_at_k(20, 0, 20)), (1.0, 0.0));
}

/// A question whose answers were made by hand: scores by counting.
#[test]
fn scores_are_those_counted_by_hand() {
    let answer = |text: &str, right, ended| Answer { text: text.to_string(), right, ended };
    let ranked = |answers: &[(usize, &str, bool)]| {
        let one = |&(sample, text, right): &(usize, &str, bool)| RankedAnswer {
            sample,
            score: Some(-1.0),
            answer: answer(text, right, true),
        };
        answers.iter().map(one).collect::<Vec<_>>()
    };
    let answered = [
        Answered {
            question: question("1", &["ann"], Some("who")),
            greedy: answer("Bob", false, true),
            ranked: ranked(&[(3, "Ann", true), (1, "Bob the cook", false), (2, "ann.", true), (4, "", false)]),
        },
        Answered {
            question: question("2", &["bob"], Some("who")),
            greedy: answer("Bob", true, true),
            ranked: ranked(&[(4, "Ann", false), (2, "Ann", false), (1, "Bob", true), (3, "Ann", false)]),
        },
        Answered {
            question: question("3", &["1800"], Some("when")),
            greedy: answer("180", false, false),
            ranked: ranked(&[(1, "1", false), (2, "2", false), (3, "3", false), (4, "4", false)]),
        },
    ];
    let samples = QaSampling { n: 4, psi: Psi::Relu, sampling: sampling(1.0), ttr_budget: 4 };
    let q = QaOptions::greedy(Psi::Relu, BYTES, &[]);
    let report = report(answered.to_vec(), &QaOptions { samples: Some(samples), ..q });
    let third = 1.0 / 3.0;
    let QaScores { questions, greedy, baseline, unended, samples, .. } = report.all;
    assert_eq!((questions, greedy, baseline, unended), (3, third, 2.0 * third, 1));
    let s = samples.unwrap();
    assert_eq!((s.first, s.best, s.coverage), (third, third, 2.0 * third));
    assert_eq!(s.pass_at.iter().map(|p| p.k).collect::<Vec<_>>(), [1, 2, 4]);
    // 2, 1 and 0 right of 4: pass@1 = (2/4 + 1/4 + 0) / 3; pass@2 = (5/6 + 1/2 + 0) / 3.
    for (pass, expected) in s.pass_at.iter().zip([0.25, 4.0 / 9.0, 2.0 * third]) {
        assert!((pass.share - expected).abs() < 1e-15, "pass@{}: {}, expected {expected}", pass.k, pass.share);
    }
    assert_eq!(s.distinct, (3.0 + 2.0 + 4.0) / 3.0, "ann, bob the cook, nothing; bob, ann; 1, 2, 3, 4");
    // In the order of drawing: bob the cook ann; bob ann ann ann; 1 2 3 4.
    assert_eq!((s.ttr, s.ttr_questions), (Some((1.0 + 0.5 + 1.0) / 3.0), 3));
    let kinds: Vec<(&str, usize, f64, f64)> =
        report.kinds.iter().map(|k| (k.kind.as_deref().unwrap(), k.questions, k.greedy, k.baseline)).collect();
    assert_eq!(kinds, [("who", 2, 0.5, 0.5), ("when", 1, 0.0, 1.0)]);
}

/// The whole way, with a model that knows nothing: two engines and their activations give one report; the rank is the library's.
#[test]
fn a_report_is_the_same_whatever_the_engine_ran_with_before() {
    let questions =
        [question("Who? ", &["ann"], Some("who")), question("Where? ", &["x"], None), question("W", &["y"], None)];
    let greedy = QaOptions { max_tokens: 6, ..QaOptions::greedy(Psi::Relu, BYTES, &questions) };
    for (psi, temperature) in [(Psi::Relu, 1.0), (Psi::stochastic(0.7), 0.0), (Psi::Silu, 0.7)] {
        let samples = QaSampling { n: 5, psi, sampling: sampling(temperature), ttr_budget: 2 };
        let options = QaOptions { samples: Some(samples), ..greedy.clone() };
        let mut first = engine(Psi::Relu);
        let report = ask(&mut first, &questions, &options).unwrap();
        assert_eq!(first.options().psi, Psi::Relu);
        let mut second = engine(Psi::Silu);
        assert_eq!(ask(&mut second, &questions, &options).unwrap(), report, "samples of {psi}");
        assert_eq!(second.options().psi, Psi::Silu);
        // Fewer questions leave the others as they were, and the greedy answers are those of the greedy run.
        assert_eq!(ask(&mut first, &questions[..2], &options).unwrap().answered[..], report.answered[..2]);
        let alone = ask(&mut first, &questions, &greedy).unwrap();
        assert!(alone.all.samples.is_none());
        for (a, b) in alone.answered.iter().zip(&report.answered) {
            assert_eq!(a.greedy, b.greedy);
            assert_eq!(b.ranked.len(), 5);
            assert!(b.ranked.windows(2).all(|w| w[0].score >= w[1].score), "not by rank: {:?}", b.ranked);
        }
        let answers: Vec<Vec<&str>> = report.answered.iter().map(Answered::in_order).collect();
        assert!(answers.iter().any(|a| distinct(a) > 1), "no sample differs from another: {answers:?}");
    }
}

#[test]
fn what_cannot_be_asked_is_refused() {
    let mut engine = engine(Psi::Relu);
    let refused = |engine: &mut CpuEngine, questions: &[Question], change: &dyn Fn(&mut QaOptions)| {
        let mut options = QaOptions::greedy(Psi::Relu, BYTES, questions);
        change(&mut options);
        let error = ask(engine, questions, &options).unwrap_err().to_string();
        assert_eq!(engine.options().psi, Psi::Relu);
        error
    };
    let good = question("p", &["a"], None);
    let long = question(&"x".repeat(65), &["a"], None);
    let error = refused(&mut engine, &[good.clone(), long], &|o| o.psi = Psi::Silu);
    assert!(
        error.starts_with("question 2 (\"xxx") && error.ends_with("65 tokens do not fit in a context of 64"),
        "{error}"
    );
    let ives = question("p", &["Paris", "St. Ives"], None);
    let error = refused(&mut engine, &[good.clone(), ives.clone()], &|_| {});
    assert!(
        error.starts_with("question 2: the answer \"St. Ives\" can never be given") && error.contains("line"),
        "{error}"
    );
    let error = refused(&mut engine, &[question("p", &["a\nb"], None)], &|o| o.until = AnswerEnd::Line);
    assert!(error.ends_with("answers end at a newline"), "{error}");
    let error = refused(&mut engine, std::slice::from_ref(&good), &|o| o.psi = Psi::stochastic(0.5));
    assert!(error.contains("rank_under = StochA(0.5)"), "{error}");
    let bad = QaSampling { n: 2, psi: Psi::Relu, sampling: sampling(-1.0), ttr_budget: 2 };
    let error = refused(&mut engine, &[good], &|o| o.samples = Some(bad.clone()));
    assert!(error.contains("temperature = -1"), "{error}");
    let options =
        QaOptions { until: AnswerEnd::Line, ..QaOptions::greedy(Psi::Relu, BYTES, std::slice::from_ref(&ives)) };
    ask(&mut engine, &[ives], &options).unwrap();
}
