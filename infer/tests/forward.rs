//! The engine's forward against the f64 reference within its derived bound, and against the training forward.

mod common;

use autograd::Tape;
use common::{bits, configs, engine_on, options, rounded, tokens, weights};
use half::bf16;
use infer::{ActivationFormat, Engine, EngineOptions, FfnMode, Prefill, PromptFfn, WeightFormat};
use kernels::quant::{Q4, Q8};
use kernels::testing::assert_within;
use kernels::{Level, RowFormat, Team};
use model::reference::{Reference, Value};
use model::{Config, HiddenAct, LayerNames, Positive, Psi, PsiAt, Transformer, Weights};
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
                for prompt in [tokens.len(), 8, 4, 1] {
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
                for prompt in [tokens.len(), 8, 4, 1] {
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

/// Prefill with activations of 8 bits: about as far from the exact logits as decoding with them is, decoding after it too, and the same
/// bits for any number of threads. (A rounding bound would be loose: what lies near a tie is off by a whole step.)
#[test]
fn q8_prefill_is_as_near_as_decoding_with_activations_of_8_bits() {
    for (number, config) in configs().iter().enumerate() {
        let (weights, tokens) = (weights(config, number as u64), tokens(config, number as u64, 40));
        let exact = Reference::new(&rounded::<Q8>(&weights)).logits(&tokens, psi_at(Psi::Relu));
        let off = |logits: &[f32], t: usize| {
            let squares = logits.iter().zip(&exact[t]).map(|(&l, e)| (l as f64 - e.exact).powi(2));
            (squares.sum::<f64>() / exact[t].len() as f64).sqrt()
        };
        for level in Level::available() {
            let what = format!("forward prefill q8 config {number} {level}");
            let run = |threads, activations, prefill, prompt: usize| {
                let mut options = options(Psi::Relu, FfnMode::Dense);
                (options.weights, options.activations, options.prefill) = (WeightFormat::Q8, activations, prefill);
                let mut engine = engine_on(level, threads, &weights, options);
                let mut logits = vec![engine.prefill(&tokens[..prompt]).unwrap().to_vec()];
                logits.extend(tokens[prompt..].iter().map(|&token| engine.decode(token).unwrap().to_vec()));
                logits
            };
            let decoded = run(1, ActivationFormat::Q8, Prefill::Exact, 1);
            let worst = decoded.iter().enumerate().map(|(t, logits)| off(logits, t)).fold(0.0, f64::max);
            let prefilled = run(1, ActivationFormat::Exact, Prefill::Q8, 30);
            for (i, logits) in prefilled.iter().enumerate() {
                let off = off(logits, 29 + i);
                assert!(off <= 2.0 * worst, "{what} token {}: off by {off:e}, decoding by {worst:e}", 29 + i);
            }
            let again = run(2, ActivationFormat::Exact, Prefill::Q8, 30);
            assert!(prefilled.iter().zip(&again).all(|(a, b)| bits(a) == bits(b)), "{what}: 1 and 2 threads differ");
        }
    }
}

/// Prompts without their inactive neurons: within the bound of the reference, the same bits for any number of threads, and other bits than
/// dense ones, or the test compares a dense prompt with itself.
#[test]
fn a_sparse_prompt_is_within_the_bound_of_the_reference() {
    let mut differ = false;
    for (number, config) in configs().iter().enumerate() {
        let mut weights = weights(config, number as u64);
        let tokens = tokens(config, number as u64, 90);
        make_sparse(&mut weights);
        let expected = Reference::new(&weights).logits(&tokens, psi_at(Psi::Relu));
        for level in Level::available() {
            let run = |threads, prompt_ffn| {
                let mut options = options(Psi::Relu, FfnMode::Dense);
                options.prompt_ffn = prompt_ffn;
                let mut engine = engine_on(level, threads, &weights, options);
                let logits = engine.prefill(&tokens).unwrap().to_vec();
                (logits, engine.prompt_density().to_vec())
            };
            let (logits, density) = run(1, PromptFfn::Sparse);
            let what = format!("forward sparse prompt config {number} {level}");
            assert_bounded(&what, &logits, &expected[tokens.len() - 1]);
            assert!(bits(&logits) == bits(&run(2, PromptFfn::Sparse).0), "{what}: 1 and 2 threads differ");
            let (dense, uncounted) = run(1, PromptFfn::Dense);
            differ |= bits(&logits) != bits(&dense);
            // An eighth is active, in all layers but the last, which runs for the last token alone.
            let (auto, auto_density) = run(1, PromptFfn::Auto);
            assert!(bits(&logits) == bits(&auto) && density == auto_density, "{what}: auto is sparse");
            for (layer, density) in density.iter().enumerate().take(config.n_layers - 1) {
                let (tokens, share) = (density.tokens, density.share().unwrap_or(0.0));
                assert!(tokens == 90 && density.sparse_tokens == 90, "{what} layer {layer}: {density:?}");
                assert!((share - 0.125).abs() < 0.02, "{what} layer {layer}: share {share}");
                assert!(density.union_share() >= Some(share), "{what} layer {layer}: {density:?}");
            }
            assert!(uncounted.iter().all(|layer| layer.tokens == 0), "{what}: a dense prompt is not counted");
        }
    }
    assert!(differ, "no prompt ran sparse");
}

/// Gives most neurons a gate that is negative for all tokens: the first element of the residual stream becomes large, and the gate's
/// weight for it decides.
fn make_sparse(weights: &mut Weights) {
    let config = weights.config().clone();
    let mut set_first_column = |index: usize, value: &dyn Fn(usize) -> f32| {
        let matrix = &mut weights.tensors_mut()[index];
        let (mut data, cols) = (matrix.to_vec::<f32>().unwrap(), matrix.dim(1));
        data.chunks_mut(cols).enumerate().for_each(|(row, data)| data[0] = value(row));
        *matrix = Tensor::from_slice(&data, matrix.shape());
    };
    set_first_column(0, &|_| 10.0);
    for layer in 0..config.n_layers {
        set_first_column(LayerNames::new(layer).gate_proj, &|neuron| if neuron % 8 == 0 { 1.0 } else { -1.0 });
    }
}

/// A prompt of more than one chunk, continued by a second prompt and by single tokens.
#[test]
fn a_long_prompt_is_within_the_bound_of_the_reference() {
    let config = &configs()[0];
    let (weights, psi) = (weights(config, 7), Psi::stochastic(0.5));
    let tokens = tokens(config, 7, 550);
    let expected = Reference::new(&weights).logits(&tokens, psi_at(psi));
    for level in Level::available() {
        let mut options = options(psi, FfnMode::Dense);
        options.seed = SEED;
        let mut engine = engine_on(level, 2, &weights, options);
        for first in [511, 512, 513, 530] {
            engine.reset(SAMPLE);
            let logits = engine.prefill(&tokens[..first]).unwrap();
            assert_bounded(&format!("forward prefill {level} of {first}"), logits, &expected[first - 1]);
            let logits = engine.prefill(&tokens[first..545]).unwrap();
            assert_bounded(&format!("forward prefill {level} of {first}, then to 545"), logits, &expected[544]);
            for t in 545..550 {
                let logits = engine.decode(tokens[t]).unwrap();
                assert_bounded(&format!("forward decode {level} token {t}"), logits, &expected[t]);
            }
        }
    }
}

/// Prefill and scores with products of bf16: within the bound that follows from rounding what they read, decoding after them too, and
/// the same bits for any number of threads. Where there is no dot product of bf16, they are exact.
#[test]
fn bf16_prefill_is_within_its_bound_of_the_reference() {
    for (number, config) in configs().iter().enumerate() {
        let weights = rounded::<bf16>(&weights(config, number as u64));
        let (tokens, targets) = (tokens(config, number as u64, 40), tokens(config, number as u64 + 100, 39));
        for psi in PSIS {
            let reference = Reference::new(&weights).with_bf16_products();
            let expected = reference.logits(&tokens, psi_at(psi));
            let loss = reference.loss(&tokens[..39], &targets, psi_at(psi));
            let bound = expected.iter().flatten().map(|e| e.bound()).fold(0.0, f64::max);
            let size = expected.iter().flatten().map(|e| e.exact.abs()).fold(0.0, f64::max);
            assert!(bound < 0.5 * size, "config {number} {psi}: bound {bound:e} for logits of {size:e}");

            for level in Level::available() {
                let what = format!("forward bf16 config {number} {psi} {level}");
                let run = |threads, prefill| {
                    let mut options = options(psi, FfnMode::Dense);
                    (options.seed, options.weights, options.prefill) = (SEED, WeightFormat::Bf16, prefill);
                    let mut engine = engine_on(level, threads, &weights, options);
                    engine.reset(SAMPLE);
                    let mut logits = vec![engine.prefill(&tokens[..30]).unwrap().to_vec()];
                    logits.extend(tokens[30..].iter().map(|&token| engine.decode(token).unwrap().to_vec()));
                    engine.reset(SAMPLE);
                    let mut log_probs = Vec::new();
                    engine.log_probs(&tokens[..39], &targets, &mut log_probs).unwrap();
                    (logits, log_probs)
                };
                let (logits, log_probs) = run(1, Prefill::Bf16);
                for (logits, (t, expected)) in logits.iter().zip(expected.iter().enumerate().skip(29)) {
                    assert_bounded(&format!("{what} token {t}"), logits, expected);
                }
                let (actual, bound) = (-log_probs.iter().sum::<f64>(), loss.bound());
                let error = (actual - loss.exact).abs();
                assert!(error <= bound, "{what} log_probs: {actual:e}, expected {:e}: bound {bound:e}", loss.exact);

                let all_bits = |(logits, log_probs): (Vec<Vec<f32>>, Vec<f64>)| {
                    let log_probs: Vec<u64> = log_probs.iter().map(|p| p.to_bits()).collect();
                    (logits.iter().map(|l| bits(l)).collect::<Vec<_>>(), log_probs)
                };
                let one = all_bits((logits, log_probs));
                assert!(one == all_bits(run(2, Prefill::Bf16)), "{what}: 1 and 2 threads differ");
                let exact = one == all_bits(run(1, Prefill::Exact));
                assert_eq!(exact, !level.has_dot_bf16(), "{what}: as exact prefill");
            }
        }
    }
}
