//! The engine's forward against the f64 reference within its derived bound, and against the training forward.

mod common;

use autograd::Tape;
use common::{configs, engine_on, options, rounded, tokens, weights};
use infer::{Engine, EngineOptions, FfnMode, WeightFormat};
use kernels::quant::{Q4, Q8};
use kernels::testing::assert_within;
use kernels::{Level, RowFormat, Team};
use model::reference::{Reference, Value};
use model::{Config, HiddenAct, Positive, Psi, PsiAt, Transformer, Weights};
use std::sync::Arc;
use tensor::Tensor;

const PAIR: Psi = Psi::Stochastic { p: 0.4, negative: [HiddenAct::Relu2, HiddenAct::Gelu], positive: Positive::Silu };
const PSIS: [Psi; 7] = [Psi::Relu, Psi::Silu, Psi::Gelu, Psi::Relu2, Psi::Tanh, Psi::stochastic(0.5), PAIR];
const SEED: u64 = 0xfeed_5eed;
const SAMPLE: u32 = 3;

fn psi_at(psi: Psi) -> PsiAt {
    PsiAt { psi, seed: SEED, first_token: 0, step: SAMPLE }
}

#[track_caller]
fn assert_bounded(what: &str, logits: &[f32], expected: &[Value]) {
    let exact: Vec<f64> = expected.iter().map(|e| e.exact).collect();
    assert_within(what, logits, &exact, |i| expected[i].bound());
}

/// The logits `[T][V]` of the training forward.
fn training_logits(weights: &Weights, tokens: &[u32], psi: PsiAt) -> Vec<Vec<f32>> {
    let model = Transformer::new(weights.clone());
    let tape = Tape::without_gradients();
    let leaves = model.leaves(&tape);
    let hidden = model.hidden(&leaves, &Tensor::from_slice(tokens, [1, tokens.len()]), psi, None);
    let logits = model.logits(&leaves, &hidden).value().to_vec::<f32>().unwrap();
    logits.chunks(weights.config().vocab_size).map(<[f32]>::to_vec).collect()
}

#[test]
fn both_forwards_are_within_the_bound_of_the_reference() {
    for (number, config) in configs().iter().enumerate() {
        let weights = weights(config, number as u64);
        let tokens = tokens(config, number as u64, 21);
        for psi in PSIS {
            let expected = Reference::new(&weights).logits(&tokens, psi_at(psi));
            // A bound of the logits' size would hold nothing.
            let bound = expected.iter().flatten().map(|e| e.bound()).fold(0.0, f64::max);
            let size = expected.iter().flatten().map(|e| e.exact.abs()).fold(0.0, f64::max);
            assert!(bound < 1e-4 * size, "config {number} {psi}: bound {bound:e} for logits of {size:e}");

            for level in Level::available() {
                let what = |part: &str| format!("forward {part} config {number} {psi} {level}");
                let team = Arc::new(Team::new(level, 2));
                let training = team.install(|| training_logits(&weights, &tokens, psi_at(psi)));
                for (t, (logits, expected)) in training.iter().zip(&expected).enumerate() {
                    assert_bounded(&format!("{} token {t}", what("training")), logits, expected);
                }

                let mut options = options(psi, FfnMode::Dense);
                options.seed = SEED;
                let mut engine = engine_on(level, 2, &weights, options);
                // All at once, from the middle on, and one by one.
                for prompt in [tokens.len(), 8, 1] {
                    engine.reset(SAMPLE);
                    let logits = engine.prefill(&tokens[..prompt]).unwrap();
                    assert_bounded(&format!("{} of {prompt}", what("prefill")), logits, &expected[prompt - 1]);
                    for (t, &token) in tokens.iter().enumerate().skip(prompt) {
                        let logits = engine.decode(token).unwrap();
                        assert_bounded(&format!("{} token {t}", what("decode")), logits, &expected[t]);
                    }
                }
            }
        }
    }
}

/// Quantised weights against the reference of what they are rounded to.
#[test]
fn quantised_weights_are_within_the_bound_of_the_reference() {
    fn check<W: RowFormat>(format: WeightFormat, number: usize, config: &Config) {
        let weights = weights(config, number as u64);
        let tokens = tokens(config, number as u64, 21);
        for psi in [Psi::Relu, Psi::Silu] {
            let expected = Reference::new(&rounded::<W>(&weights)).logits(&tokens, psi_at(psi));
            for level in Level::available() {
                let options = EngineOptions { weights: format, seed: SEED, ..options(psi, FfnMode::Dense) };
                let mut engine = engine_on(level, 2, &weights, options);
                for prompt in [tokens.len(), 8, 1] {
                    let what = |part: String| format!("forward {part} {format} config {number} {psi} {level}");
                    engine.reset(SAMPLE);
                    let logits = engine.prefill(&tokens[..prompt]).unwrap();
                    assert_bounded(&what(format!("prefill of {prompt}")), logits, &expected[prompt - 1]);
                    for (t, &token) in tokens.iter().enumerate().skip(prompt) {
                        let logits = engine.decode(token).unwrap();
                        assert_bounded(&what(format!("decode token {t}")), logits, &expected[t]);
                    }
                }
            }
        }
    }
    for (number, config) in configs().iter().enumerate() {
        check::<Q8>(WeightFormat::Q8, number, config);
        check::<Q4>(WeightFormat::Q4, number, config);
    }
}

/// A prompt of more than one chunk, continued by a second prompt and by single tokens.
#[test]
fn a_long_prompt_is_within_the_bound_of_the_reference() {
    let config = &configs()[0];
    let (weights, psi) = (weights(config, 7), Psi::stochastic(0.5));
    let tokens = tokens(config, 7, 290);
    let expected = Reference::new(&weights).logits(&tokens, psi_at(psi));
    for level in Level::available() {
        let mut options = options(psi, FfnMode::Dense);
        options.seed = SEED;
        let mut engine = engine_on(level, 2, &weights, options);
        for first in [255, 256, 257, 270] {
            engine.reset(SAMPLE);
            let logits = engine.prefill(&tokens[..first]).unwrap();
            assert_bounded(&format!("forward prefill {level} of {first}"), logits, &expected[first - 1]);
            let logits = engine.prefill(&tokens[first..285]).unwrap();
            assert_bounded(&format!("forward prefill {level} of {first}, then to 285"), logits, &expected[284]);
            for t in 285..290 {
                let logits = engine.decode(tokens[t]).unwrap();
                assert_bounded(&format!("forward decode {level} token {t}"), logits, &expected[t]);
            }
        }
    }
}
