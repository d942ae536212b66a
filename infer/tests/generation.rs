//! Errors, stops, replay and scores, through the public interface.

mod common;

use common::{configs, options, tokens, weights};
use infer::{
    CacheMemory, CpuEngine, Engine, EngineOptions, Error, FfnMode, KvFormat, Request, Sampler, Sampling, StopReason,
    WeightFormat,
};
use infer::{Generation, generate, score};
use model::reference::Reference;
use model::{Config, Psi, PsiAt};
use std::ops::ControlFlow;
use std::time::Duration;

const SAMPLING: Sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 11 };

fn config() -> Config {
    Config { max_seq_len: 40, ..configs()[1].clone() }
}

fn engine(options: EngineOptions) -> Result<CpuEngine, Error> {
    CpuEngine::new(&weights(&config(), 2), options)
}

fn relu() -> CpuEngine {
    engine(EngineOptions::new(Psi::Relu)).unwrap()
}

fn run(engine: &mut CpuEngine, sampling: Sampling, request: Request) -> Generation {
    let mut seen = Vec::new();
    let generation = generate(engine, &mut Sampler::new(sampling).unwrap(), request, |token| {
        seen.push(token);
        ControlFlow::Continue(())
    });
    let generation = generation.unwrap();
    assert_eq!(seen, generation.tokens, "generate: the receiver saw what is reported");
    generation
}

#[test]
fn a_prompt_beyond_the_context_is_refused_with_both_numbers() {
    let mut engine = relu();
    let prompt = tokens(&config(), 1, 41);
    let error = engine.prefill(&prompt).unwrap_err();
    assert!(matches!(error, Error::Context { tokens: 41, position: 0, context: 40 }), "{error:?}");
    assert_eq!(error.to_string(), "41 tokens do not fit in a context of 40");
    assert_eq!(engine.position(), 0, "a refused prompt leaves no trace");

    engine.prefill(&prompt[..40]).unwrap();
    let error = engine.decode(1).unwrap_err();
    assert!(matches!(error, Error::Context { tokens: 1, position: 40, context: 40 }), "{error:?}");
    assert_eq!(engine.position(), 40);
}

#[test]
fn a_token_outside_the_vocabulary_is_refused() {
    let mut engine = relu();
    let error = engine.prefill(&[1, 2, 61]).unwrap_err();
    assert!(matches!(error, Error::Token { token: 61, position: 2, vocab_size: 61 }), "{error:?}");
    assert_eq!(engine.position(), 0, "a refused prompt leaves no trace");
    engine.prefill(&[1, 2]).unwrap();
    let error = engine.decode(u32::MAX).unwrap_err();
    assert_eq!(error.to_string(), "token 4294967295 at position 2 is not in a vocabulary of 61");
    let error = score(&mut engine, &[1], &[2, 61]).unwrap_err();
    assert!(matches!(error, Error::Token { token: 61, position: 2, vocab_size: 61 }), "{error:?}");
}

#[test]
fn an_empty_prompt_is_refused() {
    assert!(matches!(relu().prefill(&[]), Err(Error::EmptyPrompt)));
}

#[test]
fn options_out_of_range_are_refused_by_name() {
    let refused = |options: EngineOptions| engine(options).err().expect("accepted").to_string();
    let base = EngineOptions::new(Psi::Relu);
    let context = |n| EngineOptions { context: Some(n), ..base.clone() };
    assert_eq!(refused(context(0)), "context = 0: must be 1 to 40, the model's max_seq_len");
    assert_eq!(refused(context(41)), "context = 41: must be 1 to 40, the model's max_seq_len");
    assert_eq!(engine(context(40)).unwrap().context(), 40);
    for p in [-0.1, 1.1, f64::NAN] {
        let message = refused(EngineOptions::new(Psi::stochastic(p)));
        assert_eq!(message, format!("p = {p}: must be a probability, 0 to 1"));
    }
    for psi in [Psi::Silu, Psi::stochastic(0.5)] {
        for ffn in [FfnMode::Sparse, FfnMode::Filtered, FfnMode::AutoFiltered] {
            let message = refused(options(psi, ffn));
            let expected = format!("the {ffn} FFN is exact for RELU only, and this model runs with {psi}");
            assert!(message.starts_with(&expected), "{message}");
        }
    }
    for weights in [WeightFormat::Q8, WeightFormat::Q4] {
        for ffn in [FfnMode::Filtered, FfnMode::AutoFiltered] {
            let message = refused(EngineOptions { weights, ..options(Psi::Relu, ffn) });
            assert!(message.starts_with(&format!("ffn = {ffn}: must be dense, sparse or auto with")), "{message}");
        }
    }
}

#[test]
fn a_growing_cache_gives_the_bits_of_a_fixed_one() {
    let config = configs()[3].clone();
    let weights = weights(&config, 4);
    let run = |cache, kv| {
        let mut engine =
            CpuEngine::new(&weights, EngineOptions { cache, kv, ..EngineOptions::new(Psi::Relu) }).unwrap();
        engine.prefill(&tokens(&config, 6, 250)).unwrap();
        let tokens = tokens(&config, 7, 50);
        tokens.iter().map(|&t| common::bits(engine.decode(t).unwrap())).collect::<Vec<_>>()
    };
    for kv in [KvFormat::F32, KvFormat::Bf16] {
        let same = run(CacheMemory::Growing, kv) == run(CacheMemory::Fixed, kv);
        assert!(same, "kv_cache {kv}: growing changed the logits");
    }
}

#[test]
fn a_generation_ends_for_each_of_its_reasons() {
    let mut engine = relu();
    let prompt = tokens(&config(), 3, 10);
    let request = Request { prompt: &prompt, max_tokens: 5, stop: &[], sample: 0 };
    let text = run(&mut engine, SAMPLING, request);
    assert_eq!((text.tokens.len(), text.stop, text.decode_steps), (5, StopReason::MaxTokens, 4));
    assert_eq!((text.prompt_tokens, text.ffn), (10, FfnMode::Auto));
    let (sparse, n) = (text.density.iter().filter(|layer| layer.ran_sparse()).count(), text.density.len());
    assert_eq!((text.sparse_layers(), text.ffn_in_words()), (sparse, format!("auto: {sparse} of {n} layers sparse")));
    assert!(text.ffn_time > Duration::ZERO && text.ffn_time < text.decode, "ffn_time is a part of decode");
    assert!(text.prefill_rate().unwrap() > 0.0 && text.decode_rate().unwrap() > 0.0);
    for layer in &text.density {
        assert_eq!(layer.neurons, 4 * config().d_ff as u64, "density counts the decode steps");
    }
    let mean = text.density.iter().map(|layer| layer.active as f64).sum::<f64>() / (2 * 4 * config().d_ff) as f64;
    assert!((text.mean_density().unwrap() - mean).abs() < 1e-12);

    // Every position is used, and one token follows the last.
    let long = run(&mut engine, SAMPLING, Request { max_tokens: usize::MAX, ..request });
    assert_eq!((long.tokens.len(), long.stop, engine.position()), (31, StopReason::ContextFull, 40));
    assert_eq!(long.tokens[..5], text.tokens, "generate: a limit changes nothing before it");

    let third = text.tokens[2];
    let at = text.tokens.iter().position(|&t| t == third).unwrap();
    let stopped = run(&mut engine, SAMPLING, Request { stop: &[third], ..request });
    assert_eq!((&stopped.tokens[..], stopped.stop), (&text.tokens[..at], StopReason::StopToken(third)));

    let nothing = run(&mut engine, SAMPLING, Request { max_tokens: 0, ..request });
    assert_eq!((nothing.tokens.len(), nothing.stop, nothing.decode_rate()), (0, StopReason::MaxTokens, None));
    assert_eq!(nothing.ffn_time, Duration::ZERO, "ffn_time: what came before was not forgotten");
    assert_eq!(nothing.mean_density(), None);
    // A prompt of one token is a prompt.
    let single = run(&mut engine, SAMPLING, Request { prompt: &prompt[..1], max_tokens: 3, ..request });
    assert_eq!((single.decode_steps, single.density[1].neurons), (2, 2 * config().d_ff as u64));

    let mut taken = 0;
    let broken = generate(&mut engine, &mut Sampler::new(SAMPLING).unwrap(), request, |_| {
        taken += 1;
        if taken == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let broken = broken.unwrap();
    assert_eq!((&broken.tokens[..], broken.stop), (&text.tokens[..3], StopReason::Receiver));
}

#[test]
fn a_generation_is_replayed_by_its_seeds_and_sample() {
    let stochastic = |seed| EngineOptions { seed, ..EngineOptions::new(Psi::stochastic(0.7)) };
    let prompt = tokens(&config(), 3, 6);
    let text = |engine_seed, sampling: Sampling, sample| {
        let request = Request { prompt: &prompt, max_tokens: 34, stop: &[], sample };
        run(&mut engine(stochastic(engine_seed)).unwrap(), sampling, request).tokens
    };
    // At temperature 0 the draws of the activation alone make the difference.
    let greedy = text(1, Sampling::GREEDY, 0);
    assert_eq!(greedy, text(1, Sampling::GREEDY, 0), "StochA: not replayed");
    assert!((1..20).any(|sample| text(1, Sampling::GREEDY, sample) != greedy), "StochA: the sample has no effect");
    assert!((2..20).any(|seed| text(seed, Sampling::GREEDY, 0) != greedy), "StochA: the seed has no effect");
    let drawn = text(1, SAMPLING, 0);
    assert_eq!(drawn, text(1, SAMPLING, 0), "sampler: not replayed");
    assert_ne!(drawn, text(1, Sampling { seed: 12, ..SAMPLING }, 0), "sampler: the seed has no effect");
    assert_ne!(drawn, text(1, SAMPLING, 1), "sampler: the sample has no effect");
}

#[test]
fn score_is_the_log_softmax_along_the_text() {
    let mut engine = relu();
    let text = tokens(&config(), 9, 12);
    let reference = Reference::new(&weights(&config(), 2)).logits(&text, PsiAt::deterministic(Psi::Relu));
    let bound = reference.iter().flatten().map(|z| z.bound()).fold(0.0, f64::max);
    let scored = score(&mut engine, &text[..4], &text[4..]).unwrap();
    for (i, &log_prob) in scored.log_probs.iter().enumerate() {
        // Again from the start, all at once: other bits, the same numbers.
        engine.reset(0);
        let logits = engine.prefill(&text[..4 + i]).unwrap();
        let sum: f64 = logits.iter().map(|&x| (x as f64).exp()).sum();
        let expected = (logits[text[4 + i] as usize] as f64).exp() / sum;
        // On both sides a logit is within its bound, and so is the logarithm of the sum; the rest is f64.
        let off = (log_prob - expected.ln()).abs();
        assert!(off <= 4.0 * bound, "score: token {i}: {log_prob}, expected {}, bound {bound:e}", expected.ln());
    }
    // Sums of 8 and of 61 numbers in f64, whose roundings come to some 1e-14.
    assert!((scored.total() - scored.log_probs.iter().sum::<f64>()).abs() < 1e-12);
    assert!((scored.per_token().unwrap() - scored.total() / 8.0).abs() < 1e-12);

    // The probabilities of all continuations of one token sum to 1.
    let all: f64 = (0..61).map(|token| score(&mut engine, &text, &[token]).unwrap().total().exp()).sum();
    assert!((all - 1.0).abs() < 1e-12, "score: probabilities sum to {all}");
    // A text of the whole context and one token more is scored; one more is not.
    let long = tokens(&config(), 9, 42);
    assert_eq!(score(&mut engine, &long[..40], &long[40..41]).unwrap().log_probs.len(), 1);
    assert!(matches!(score(&mut engine, &long[..40], &long[40..]), Err(Error::Context { context: 40, .. })));
}

#[test]
fn logits_without_a_distribution_stop_the_generation() {
    let config = config();
    let mut tensors = weights(&config, 2).tensors().to_vec();
    let lm_head = tensors.last_mut().unwrap();
    *lm_head = tensor::Tensor::full(f32::NAN, lm_head.shape());
    let broken = model::Weights::from_tensors(&config, tensors);
    let mut engine = CpuEngine::new(&broken, EngineOptions::new(Psi::Relu)).unwrap();
    let request = Request { prompt: &[1, 2, 3], max_tokens: 5, stop: &[], sample: 0 };
    for sampling in [SAMPLING, Sampling::GREEDY] {
        let error = generate(&mut engine, &mut Sampler::new(sampling).unwrap(), request, |_| ControlFlow::Continue(()));
        assert!(matches!(error, Err(Error::Logit { position: 3, token: 0, value }) if value.is_nan()), "{error:?}");
    }
}
