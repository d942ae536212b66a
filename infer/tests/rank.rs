//! Samples of one prompt, and their ranking.

mod common;

use common::{configs, engine_on, options, tokens, weights};
use infer::{
    CpuEngine, Engine, EngineOptions, Error, FfnMode, Ranked, Request, Sampler, Samples, Sampling, StopReason,
};
use infer::{Generation, generate, rank, score};
use kernels::Level;
use model::{Config, Psi, Weights};
use std::ops::ControlFlow;
use std::time::Duration;

const SAMPLING: Sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 3 };

fn config() -> Config {
    Config { max_seq_len: 40, ..configs()[1].clone() }
}

fn model() -> Weights {
    weights(&config(), 2)
}

fn engine(psi: Psi) -> CpuEngine {
    CpuEngine::new(&model(), EngineOptions::new(psi)).unwrap()
}

/// Texts of several lengths after a prompt: one twice, one empty.
fn texts() -> (Vec<u32>, Vec<Vec<u32>>) {
    let prompt = tokens(&config(), 1, 5);
    let mut texts: Vec<Vec<u32>> = [3, 1, 9, 2, 0, 7].map(|n| tokens(&config(), 10 + n as u64, n)).to_vec();
    texts.insert(3, texts[0].clone());
    (prompt, texts)
}

fn bits(ranked: &[Ranked]) -> Vec<(usize, Option<u64>)> {
    ranked.iter().map(|r| (r.index, r.score.map(f64::to_bits))).collect()
}

#[test]
fn texts_rank_by_their_mean_log_likelihood() {
    let (prompt, texts) = texts();
    let mut engine = engine(Psi::Relu);
    let ranked = rank(&mut engine, Psi::Relu, &prompt, &texts).unwrap();
    assert_eq!(ranked.len(), texts.len());
    let mut expected: Vec<(f64, usize)> = Vec::new();
    for (index, text) in texts.iter().enumerate().filter(|(_, text)| !text.is_empty()) {
        expected.push((score(&mut engine, &prompt, text).unwrap().total() / text.len() as f64, index));
    }
    expected.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let found: Vec<(f64, usize)> = ranked[..texts.len() - 1].iter().map(|r| (r.score.unwrap(), r.index)).collect();
    assert_eq!(found, expected, "rank: score, then the order of the texts");
    assert_eq!(ranked.last(), Some(&Ranked { index: 5, score: None }), "rank: a text without tokens comes last");
    let place = |index| ranked.iter().position(|r| r.index == index).unwrap();
    assert_eq!(place(3), place(0) + 1, "rank: equal texts rank in their order");
    assert!(rank(&mut engine, Psi::Relu, &prompt, &[]).unwrap().is_empty());
}

/// The kept prompt, the length of the text and the neighbours change no score by more than rounding, and a prompt of one token,
/// of which nothing is kept, is a prompt.
#[test]
fn a_score_is_that_of_the_text_alone() {
    let mut engine = engine(Psi::Relu);
    let text = tokens(&config(), 9, 12);
    for n in [1, 2, 7] {
        let (prompt, text) = text.split_at(n);
        let ranked = rank(&mut engine, Psi::Relu, prompt, &[text[..4].to_vec(), text.to_vec()]).unwrap();
        let (short, long) =
            (score(&mut engine, prompt, &text[..4]).unwrap(), score(&mut engine, prompt, text).unwrap());
        for r in ranked {
            assert_eq!(r.score, [&short, &long][r.index].per_token(), "rank: prompt of {n}, text {}", r.index);
        }
    }
}

#[test]
fn ranking_is_equal_for_dense_and_sparse_engines_and_any_threads() {
    let (prompt, texts) = texts();
    for level in Level::available() {
        let run = |threads, ffn| {
            let mut engine = engine_on(level, threads, &model(), options(Psi::Relu, ffn));
            let mut sampler = Sampler::new(SAMPLING).unwrap();
            let mut samples = Samples::new(&mut engine, &prompt);
            let drawn = (0..6).map(|i| samples.draw(&mut sampler, 9, &[], i, |_| ControlFlow::Continue(())));
            let mut all: Vec<Vec<u32>> = drawn.map(|g| g.unwrap().tokens).collect();
            all.extend(texts.iter().cloned());
            (bits(&rank(&mut engine, Psi::Relu, &prompt, &all).unwrap()), all)
        };
        let measure = run(1, FfnMode::Dense);
        for (threads, ffn) in [(1, FfnMode::Sparse), (2, FfnMode::Sparse), (3, FfnMode::Dense)] {
            assert!(run(threads, ffn) == measure, "rank {level}: {ffn} on {threads} threads differs from dense on 1");
        }
    }
}

#[test]
fn ranking_under_another_activation_leaves_the_engine_with_its_own() {
    let (prompt, texts) = texts();
    let under_silu = bits(&rank(&mut engine(Psi::Silu), Psi::Silu, &prompt, &texts).unwrap());
    let under_relu = bits(&rank(&mut engine(Psi::Relu), Psi::Relu, &prompt, &texts).unwrap());
    assert_ne!(under_silu, under_relu);
    for psi in [Psi::stochastic(0.7), Psi::Silu, Psi::Relu] {
        let mut engine = engine(psi);
        let options = engine.options().clone();
        let request = Request { prompt: &prompt, max_tokens: 20, stop: &[], sample: 4 };
        let write = |engine: &mut CpuEngine| {
            generate(engine, &mut Sampler::new(SAMPLING).unwrap(), request, |_| ControlFlow::Continue(())).unwrap()
        };
        let before = write(&mut engine).tokens;
        assert_eq!(bits(&rank(&mut engine, Psi::Silu, &prompt, &texts).unwrap()), under_silu, "drawn with {psi}");
        assert_eq!(bits(&rank(&mut engine, Psi::Relu, &prompt, &texts).unwrap()), under_relu, "drawn with {psi}");
        assert_eq!((engine.options(), engine.position()), (&options, 0));
        assert_eq!(write(&mut engine).tokens, before, "rank: it changed what {psi} draws");
        // A failure leaves it too.
        rank(&mut engine, Psi::Silu, &[], &texts).unwrap_err();
        assert_eq!(engine.options(), &options);
    }
    let error = rank(&mut engine(Psi::Relu), Psi::stochastic(0.5), &prompt, &texts).unwrap_err();
    assert_eq!(error.to_string(), "rank_under = StochA(0.5): must be an activation that draws nothing, such as relu");
}

#[test]
fn samples_are_those_of_generate_with_the_prompt_fed_once_if_it_can_be() {
    let prompt = tokens(&config(), 3, 10);
    for psi in [Psi::Relu, Psi::Silu, Psi::stochastic(0.7)] {
        let (mut kept, mut fresh) = (engine(psi), engine(psi));
        let mut samples = Samples::new(&mut kept, &prompt);
        let mut sampler = Sampler::new(SAMPLING).unwrap();
        let facts = |g: &Generation| (g.tokens.clone(), g.stop, g.decode_steps, g.density.clone());
        for sample in [0, 1, 7, 1] {
            let request = Request { prompt: &prompt, max_tokens: 12, stop: &[5, 6, 7], sample };
            let one = generate(&mut fresh, &mut sampler, request, |_| ControlFlow::Continue(())).unwrap();
            let other = samples.draw(&mut sampler, 12, &[5, 6, 7], sample, |_| ControlFlow::Continue(())).unwrap();
            assert_eq!(facts(&other), facts(&one), "Samples: sample {sample} of {psi} is not that of generate");
            let fed = sample == 0 || psi.draws();
            assert_eq!(other.prefill > Duration::ZERO, fed, "Samples: the prompt of sample {sample} of {psi}");
            assert_eq!(other.prefill_rate().is_some(), fed);
        }
    }
}

#[test]
fn samples_drawn_at_once_are_those_drawn_alone() {
    let prompt = tokens(&config(), 3, 10);
    for psi in [Psi::Relu, Psi::Silu, Psi::stochastic(0.7)] {
        let (mut alone, mut together) = (engine(psi), engine(psi));
        let mut sampler = Sampler::new(SAMPLING).unwrap();
        for numbers in [vec![3], vec![9, 1], (0..16).collect::<Vec<u32>>(), vec![u32::MAX, 0, 7, 8, 2]] {
            // Limits by the number of tokens, by stop tokens, by the context and by the receiver of sample 1.
            for (max_tokens, stop) in [(12, &[5, 6, 7][..]), (0, &[]), (1, &[]), (usize::MAX, &[5])] {
                let most = |sample: usize| if sample == 1 { 4 } else { usize::MAX };
                let mut heard = vec![Vec::new(); numbers.len()];
                let generations = Samples::new(&mut together, &prompt)
                    .draw_batch(&mut sampler, max_tokens, stop, &numbers, |sample, token| {
                        heard[sample].push(token);
                        if heard[sample].len() < most(sample) {
                            ControlFlow::Continue(())
                        } else {
                            ControlFlow::Break(())
                        }
                    })
                    .unwrap();
                let mut samples = Samples::new(&mut alone, &prompt);
                for (i, (&number, other)) in numbers.iter().zip(&generations).enumerate() {
                    let mut left = most(i);
                    let one = samples
                        .draw(&mut sampler, max_tokens, stop, number, |_| {
                            left -= 1;
                            if left > 0 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                        })
                        .unwrap();
                    let facts = |g: &Generation| (g.tokens.clone(), g.stop, g.decode_steps, g.prompt_tokens);
                    let what = format!("draw_batch {psi}, {numbers:?}, sample {number}");
                    assert_eq!(facts(other), facts(&one), "{what}: not that of draw");
                    assert_eq!(heard[i], one.tokens, "{what}: what the receiver heard");
                    assert_eq!(other.batch, numbers.len());
                }
            }
        }
    }
}

/// The longest text that can be generated can be ranked, with the token that ended it.
#[test]
fn a_text_up_to_the_end_of_the_context_is_ranked() {
    let mut engine = engine(Psi::Relu);
    let prompt = tokens(&config(), 3, 10);
    let request = Request { prompt: &prompt, max_tokens: 100, stop: &[], sample: 0 };
    let mut write = |stop: &[u32]| {
        let mut sampler = Sampler::new(SAMPLING).unwrap();
        generate(&mut engine, &mut sampler, Request { stop, ..request }, |_| ControlFlow::Continue(())).unwrap()
    };
    let full = write(&[]);
    assert_eq!((full.stop, full.drawn()), (StopReason::ContextFull, full.tokens.clone()));
    let last = *full.tokens.last().unwrap();
    let at = full.tokens.iter().position(|&t| t == last).unwrap();
    let ended = write(&[last]);
    assert_eq!((&ended.tokens[..], &ended.drawn()[..]), (&full.tokens[..at], &full.tokens[..=at]));
    let ranked = rank(&mut engine, Psi::Relu, &prompt, &[full.drawn(), ended.drawn()]).unwrap();
    assert!(ranked.iter().all(|r| r.score.unwrap() < 0.0));
    let mut longer = full.drawn();
    longer.push(0);
    assert!(matches!(rank(&mut engine, Psi::Relu, &prompt, &[longer]), Err(Error::Context { context: 40, .. })));
}

#[test]
fn log_probs_refuse_what_they_cannot_do_and_leave_no_trace() {
    let mut engine = engine(Psi::Relu);
    let text = tokens(&config(), 3, 41);
    engine.prefill(&text[..3]).unwrap();
    let mut log_probs = vec![1.0];
    let mut refused = |tokens: &[u32], targets: &[u32]| {
        let error = engine.log_probs(tokens, targets, &mut log_probs).unwrap_err();
        assert_eq!((engine.position(), &log_probs[..]), (3, &[1.0][..]), "log_probs: {error}");
        error
    };
    let error = refused(&text[3..], &text[3..]);
    assert!(matches!(error, Error::Context { tokens: 38, position: 3, context: 40 }), "{error:?}");
    let error = refused(&[1, 61], &[1, 2]);
    assert!(matches!(error, Error::Token { token: 61, position: 4, vocab_size: 61 }), "{error:?}");
    let error = refused(&[1, 2], &[1, 61]);
    assert!(matches!(error, Error::Token { token: 61, position: 5, vocab_size: 61 }), "{error:?}");
    engine.log_probs(&[], &[], &mut log_probs).unwrap();
    engine.log_probs(&text[3..40], &text[4..], &mut log_probs).unwrap();
    assert_eq!((engine.position(), log_probs.len()), (40, 38));

    let mut tensors = model().tensors().to_vec();
    let lm_head = tensors.last_mut().unwrap();
    *lm_head = tensor::Tensor::full(f32::NAN, lm_head.shape());
    let broken = Weights::from_tensors(&config(), tensors);
    let mut engine = CpuEngine::new(&broken, EngineOptions::new(Psi::Relu)).unwrap();
    let error = engine.log_probs(&[1, 2, 3], &[2, 3, 4], &mut log_probs).unwrap_err();
    assert!(matches!(error, Error::Logit { position: 1, token: 0, value } if value.is_nan()), "{error:?}");
    assert_eq!((engine.position(), log_probs.len()), (0, 38));
}
