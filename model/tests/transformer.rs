//! The transformer against its specification, and what must hold exactly.

use autograd::{Gradients, Tape};
use kernels::testing::{ROUNDING, uniform};
use model::reference::Reference;
use model::{
    Config, HiddenAct, Init, LatentPenalty, Positive, Probe, Psi, PsiAt, RopeScaling, Transformer, Weights,
    parameter_specs, preset,
};
use tensor::{Shape, Tensor};

const TOKENS: [u32; 12] = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 36, 0];
const TARGETS: [u32; 12] = [1, 4, 1, 5, 9, 2, 6, 5, 3, 36, 0, 7];

/// GQA, tied, untied with one key-value head and a head_dim that is not C / H, multi-head with Llama 3's scaling.
fn configs() -> [Config; 3] {
    let gqa = Config {
        vocab_size: 37,
        d_model: 24,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 6,
        d_ff: 40,
        max_seq_len: 32,
        ..preset("tiny", 37).unwrap()
    };
    let scaling = RopeScaling { factor: 4.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_seq_len: 16 };
    let mqa = Config { n_kv_heads: 1, head_dim: 10, tie_embeddings: false, rope_theta: 500.0, ..gqa.clone() };
    let mha = Config { n_kv_heads: 4, rope_scaling: Some(scaling), ..gqa.clone() };
    [gqa, mqa, mha]
}

/// Weights that keep the variance of what they project, so that attention is not near uniform and no part near 0; gains
/// in 0.5 .. 1.5.
fn weights(config: &Config) -> Weights {
    let tensors = parameter_specs(config).enumerate().map(|(i, spec)| {
        let size = (3.0 / *spec.shape.last().unwrap() as f32).sqrt();
        let value = |x: f32| if spec.init == Init::Ones { 1.0 + 0.5 * x } else { size * x };
        let values: Vec<f32> = uniform(i as u64, spec.shape.elements()).into_iter().map(value).collect();
        Tensor::from_slice(&values, spec.shape)
    });
    Weights::from_tensors(config, tensors.collect())
}

fn psis() -> [PsiAt; 7] {
    let pair = Psi::Stochastic { p: 0.4, negative: [HiddenAct::Gelu, HiddenAct::Relu2], positive: Positive::Silu };
    let [pair, papers] = [pair, Psi::stochastic(0.5)].map(|psi| PsiAt { psi, seed: 11, first_token: 7, step: 3 });
    let [relu, silu, gelu, relu2, tanh] = HiddenAct::ALL.map(|act| PsiAt::deterministic(act.into()));
    [relu, silu, gelu, relu2, tanh, pair, papers]
}

fn tokens(tokens: &[u32], batch: usize) -> Tensor {
    Tensor::from_slice(tokens, [batch, tokens.len() / batch])
}

fn hidden_bits(model: &Transformer, tokens: &Tensor, psi: PsiAt) -> Vec<u32> {
    let tape = Tape::without_gradients();
    let hidden = model.hidden(&model.leaves(&tape), tokens, psi, None);
    hidden.value().to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

#[test]
fn transformer_logits_match_reference() {
    for config in configs() {
        let weights = weights(&config);
        let (reference, model) = (Reference::new(&weights), Transformer::new(weights));
        for psi in psis() {
            let tape = Tape::without_gradients();
            let leaves = model.leaves(&tape);
            let hidden = model.hidden(&leaves, &tokens(&TOKENS, 1), psi, None);
            let logits = model.logits(&leaves, &hidden);
            assert_eq!(*logits.value().shape(), [1, 12, 37]);
            let expected: Vec<_> = reference.logits(&TOKENS, psi).concat();
            let size = expected.iter().map(|z| z.exact.abs()).fold(0.0, f64::max);
            for (i, (&z, e)) in logits.value().to_vec::<f32>().unwrap().iter().zip(&expected).enumerate() {
                let off = (z as f64 - e.exact).abs();
                assert!(
                    off <= e.bound(),
                    "transformer {} logit {i} is {z}, expected {}: off by {off:e}, bound {:e}",
                    psi.psi,
                    e.exact,
                    e.bound()
                );
                // A bound that could not fail would show nothing.
                assert!(e.bound() < 1e-3 * size, "transformer: the bound of logit {i} is {:e} of {size}", e.bound());
            }
        }
    }
}

#[test]
fn transformer_loss_matches_reference() {
    for config in configs() {
        let weights = weights(&config);
        let (reference, model) = (Reference::new(&weights), Transformer::new(weights));
        for psi in psis() {
            // With gradients and without, as one sequence of 12 and as two of 6.
            for (tape, batch) in [(Tape::new(), 1), (Tape::without_gradients(), 2)] {
                let batched = (&tokens(&TOKENS, batch), &tokens(&TARGETS, batch));
                let (scaled, loss) = model.loss(&model.leaves(&tape), batched, 0.25, psi, None);
                let loss = loss.value();
                let (mut exact, mut error) = (0.0, 0.0);
                let len = 12 / batch;
                for b in 0..batch {
                    let psi = PsiAt { first_token: psi.first_token + (b * len) as u32, ..psi };
                    let row = b * len..(b + 1) * len;
                    let e = reference.loss(&TOKENS[row.clone()], &TARGETS[row], psi);
                    (exact, error) = (exact + e.exact, error + e.bound());
                }
                assert!((loss - exact).abs() <= error, "transformer loss {loss}, expected {exact} +- {error:e}");
                assert!(error < 1e-3 * exact, "transformer: the bound of the loss is {error:e} of {exact}");
                assert_eq!(scaled.value().item(), (0.25 * loss) as f32, "transformer: the scaled loss");
            }
        }
    }
}

/// Without a penalty on the latent and with one. Along the direction of each parameter's own gradient, where nothing cancels: `<g, g / |g|> = |g|`, against central
/// differences of the f64 reference. A gradient that is wrong by a relative `r` in norm shows as `r^2` at least.
#[test]
fn transformer_gradients_match_differences_of_the_reference() {
    // Small enough that few neurons cross the kink of RELU, large enough for the f64 loss (1e-16 of it, over 2 h).
    const H: f64 = 1e-6;
    for config in configs() {
        let weights = weights(&config);
        // A rounding for every term of every dot on the longest way there and back, on sums without cancellation.
        let layer = 4 * config.d_model + 2 * config.q_width() + 2 * config.d_ff + 4 * TOKENS.len();
        let roundings = 2 * (config.n_layers * layer + config.d_model) + config.vocab_size;
        let mut reference = Reference::new(&weights);
        let model = Transformer::new(weights);
        for (psi, l1) in psis().into_iter().flat_map(|psi| [(psi, 0.0), (psi, 0.5)]) {
            let tape = Tape::new();
            let mut grads = Gradients::default();
            let batch = (&tokens(&TOKENS, 1), &tokens(&TARGETS, 1));
            let mut penalty = LatentPenalty::new(l1, 1.0, &config);
            model.loss_penalised(&model.leaves(&tape), batch, 1.0, psi, &mut penalty).0.backward(&mut grads);
            // Its factor is for the mean over the tokens of a step of one token; here are more.
            let penalties = |reference: &Reference| {
                l1 * TOKENS.len() as f64 * reference.mean_latents(&TOKENS, psi).iter().sum::<f64>()
            };
            let expected = penalties(&reference);
            assert!(
                (penalty.value() - expected).abs() <= roundings as f64 * ROUNDING * expected,
                "transformer {}: the penalty is {}, not {expected}",
                psi.psi,
                penalty.value()
            );
            for (i, spec) in parameter_specs(&config).enumerate() {
                let g: Vec<f64> = grads.at(i).unwrap().to_vec::<f32>().unwrap().into_iter().map(f64::from).collect();
                let norm = g.iter().map(|g| g * g).sum::<f64>().sqrt();
                assert!(norm > 1e-3, "transformer {}: |gradient| of {} is {norm:e}", psi.psi, spec.name);
                let before = reference.parameters[i].clone();
                let mut at = |h: f64| {
                    reference.parameters[i]
                        .iter_mut()
                        .zip(&before)
                        .zip(&g)
                        .for_each(|((x, b), g)| *x = b + h * g / norm);
                    reference.loss(&TOKENS, &TARGETS, psi).exact + penalties(&reference)
                };
                let difference = (at(H) - at(-H)) / (2.0 * H);
                at(0.0);
                // 1e-8 for the differences: two losses of some 50, each with the roundings of an f64 of that size (7e-15), over 2 h.
                let bound = roundings as f64 * ROUNDING * norm + 1e-8;
                let off = (difference - norm).abs();
                assert!(
                    off <= bound,
                    "transformer {} l1={l1}: gradient of {}: {norm} along itself, differences give {difference}: \
                     off by {off:e}, bound {bound:e}",
                    psi.psi,
                    spec.name
                );
            }
        }
    }
}

#[test]
fn transformer_is_causal() {
    let [config, ..] = configs();
    let model = Transformer::new(weights(&config));
    for psi in psis() {
        let before = hidden_bits(&model, &tokens(&TOKENS, 1), psi);
        for changed in 0..TOKENS.len() {
            let mut other = TOKENS;
            other[changed] = (other[changed] + 1) % config.vocab_size as u32;
            let after = hidden_bits(&model, &tokens(&other, 1), psi);
            let (same, rest) = (changed * config.d_model, config.d_model);
            assert!(before[..same] == after[..same], "transformer: token {changed} changes an earlier position");
            assert!(before[same..][..rest] != after[same..][..rest], "transformer: token {changed} changes nothing");
        }
    }
}

/// A sequence has the same bits alone and among others, and its draws are those of its tokens' places in the step: so a
/// step may be cut into micro-batches anywhere.
#[test]
fn transformer_rows_do_not_depend_on_the_batch() {
    for config in configs() {
        let model = Transformer::new(weights(&config));
        let both: Vec<u32> = TOKENS.into_iter().chain(TARGETS).collect();
        for psi in psis() {
            let together = hidden_bits(&model, &tokens(&both, 2), psi);
            let second = PsiAt { first_token: psi.first_token + 12, ..psi };
            let alone =
                [hidden_bits(&model, &tokens(&TOKENS, 1), psi), hidden_bits(&model, &tokens(&TARGETS, 1), second)];
            assert!(together == alone.concat(), "transformer {}: a row depends on its batch", psi.psi);
            if psi.psi.draws() {
                let elsewhere = hidden_bits(&model, &tokens(&TARGETS, 1), psi);
                assert!(elsewhere != alone[1], "transformer: first_token does not move the draws");
            }
        }
    }
}

#[test]
fn transformer_gradients_of_micro_batches_add_up() {
    let [config, ..] = configs();
    let model = Transformer::new(weights(&config));
    let [.., psi] = psis();
    let gradients = |parts: &[(usize, usize)]| {
        let mut grads = Gradients::default();
        for &(start, len) in parts {
            let tape = Tape::new();
            let psi = PsiAt { first_token: psi.first_token + start as u32, ..psi };
            let part = |of: &[u32]| tokens(&of[start..][..len], len / 4);
            let batch = (&part(&TOKENS), &part(&TARGETS));
            model.loss(&model.leaves(&tape), batch, 1.0 / 12.0, psi, None).0.backward(&mut grads);
        }
        grads
    };
    let (whole, parts) = (gradients(&[(0, 12)]), gradients(&[(0, 4), (4, 8)]));
    for (i, spec) in parameter_specs(&config).enumerate() {
        let [a, b] = [&whole, &parts].map(|g| g.at(i).unwrap().to_vec::<f32>().unwrap());
        let norm = a.iter().map(|&a| a as f64 * a as f64).sum::<f64>().sqrt();
        let off = a.iter().zip(&b).map(|(&a, &b)| (a as f64 - b as f64).powi(2)).sum::<f64>().sqrt();
        // Only the sums over the 12 tokens are taken in another order.
        assert!(off <= 16.0 * ROUNDING * norm * 4.0, "transformer: {}: off by {off:e} of {norm:e}", spec.name);
    }
}

/// A step that is cut has the penalty and the gradients of the whole, and a penalty of 0 the bits of none.
#[test]
fn transformer_penalties_of_micro_batches_add_up() {
    let [config, ..] = configs();
    let model = Transformer::new(weights(&config));
    let (scale, l1) = (1.0 / 12.0, 0.75);
    for psi in [PsiAt::deterministic(Psi::Gelu), PsiAt::deterministic(Psi::Silu)] {
        let gradients = |l1: f64, parts: &[(usize, usize)]| {
            let (mut grads, mut value) = (Gradients::default(), 0.0);
            for &(start, len) in parts {
                let tape = Tape::new();
                let part = |of: &[u32]| tokens(&of[start..][..len], len / 4);
                let batch = (&part(&TOKENS), &part(&TARGETS));
                let mut penalty = LatentPenalty::new(l1, scale, &config);
                model.loss_penalised(&model.leaves(&tape), batch, scale, psi, &mut penalty).0.backward(&mut grads);
                value += penalty.value();
            }
            let all = (0..model.weights().tensors().len()).map(|i| grads.at(i).unwrap().to_vec::<f32>().unwrap());
            (all.collect::<Vec<_>>(), value)
        };
        let (whole, value) = gradients(l1, &[(0, 12)]);
        let (parts, cut_value) = gradients(l1, &[(0, 4), (4, 8)]);
        let relative = 64.0 * ROUNDING;
        assert!((value / cut_value - 1.0).abs() <= relative, "penalty: {value} whole, {cut_value} in parts");
        for (spec, (a, b)) in parameter_specs(&config).zip(whole.iter().zip(&parts)) {
            let norm = a.iter().map(|&a| a as f64 * a as f64).sum::<f64>().sqrt();
            let off = a.iter().zip(b).map(|(&a, &b)| (a as f64 - b as f64).powi(2)).sum::<f64>().sqrt();
            // Only the sums over the 12 tokens are taken in another order.
            assert!(off <= 16.0 * ROUNDING * norm * 4.0, "penalty: {}: off by {off:e} of {norm:e}", spec.name);
        }
        let tape = Tape::new();
        let (tokens, targets) = (tokens(&TOKENS, 3), tokens(&TARGETS, 3));
        let mut plain = Gradients::default();
        model.loss(&model.leaves(&tape), (&tokens, &targets), scale, psi, None).0.backward(&mut plain);
        for (i, zero) in gradients(0.0, &[(0, 12)]).0.iter().enumerate() {
            let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert!(bits(&plain.at(i).unwrap().to_vec::<f32>().unwrap()) == bits(zero), "penalty: 0 changes bits");
        }
    }
}

#[test]
fn probe_counts_what_relu_lets_through() {
    let [config, ..] = configs();
    // One neuron of layer 1 that never fires: its row of gate_proj is 0, and so is g.
    let weights = {
        let weights = weights(&config);
        let gate = model::LayerNames::new(1).gate_proj;
        let mut tensors = weights.tensors().to_vec();
        let mut values = tensors[gate].to_vec::<f32>().unwrap();
        values[5 * config.d_model..6 * config.d_model].fill(0.0);
        tensors[gate] = Tensor::from_slice(&values, tensors[gate].shape());
        Weights::from_tensors(&config, tensors)
    };
    let model = Transformer::new(weights);
    let psi = PsiAt::deterministic(Psi::Silu);
    let mut probe = Probe::new(model.weights());
    for _ in 0..2 {
        let tape = Tape::without_gradients();
        model.hidden(&model.leaves(&tape), &tokens(&TOKENS, 1), psi, Some(&mut probe));
    }
    assert_eq!(probe.tokens(), 24);

    // Layer 0 by hand: its input does not depend on the FFN before it, as there is none.
    let tape = Tape::without_gradients();
    let w = model.leaves(&tape);
    let one_layer = Config { n_layers: 1, ..config.clone() };
    let first: Vec<Tensor> = model.weights().tensors()[..10].iter().chain([model.weights().norm()]).cloned().collect();
    let mut tensors = first;
    // Without its FFN, a model of layer 0 ends in norm(x + attention): with that norm's gain, the input of gate_proj.
    let at = model::LayerNames::new(0);
    tensors[at.down_proj] = Tensor::zeros(tensors[at.down_proj].shape());
    tensors[10] = tensors[at.post_attention_layernorm].clone();
    let half = Transformer::new(Weights::from_tensors(&one_layer, tensors));
    let n = half.hidden(&half.leaves(&tape), &tokens(&TOKENS, 1), psi, None);
    let g = n.linear(&w[at.gate_proj]).value().to_vec::<f32>().unwrap();
    let expected: Vec<u32> = (0..config.d_ff)
        .map(|f| 2 * g.iter().skip(f).step_by(config.d_ff).filter(|&&g| g > 0.0).count() as u32)
        .collect();
    assert_eq!(probe.positive()[0], expected, "Probe: counts of layer 0");
    let positive = expected.iter().sum::<u32>() as f64;
    assert_eq!(probe.zeros()[0], 1.0 - positive / (24.0 * config.d_ff as f64), "Probe: zeros of layer 0");

    assert_eq!(probe.positive()[1][5], 0);
    for (layer, counts) in probe.positive().iter().enumerate() {
        assert_eq!(probe.never_active()[layer], counts.iter().filter(|&&c| c == 0).count());
    }
    assert!(probe.never_active()[1] >= 1, "Probe: a dead neuron is not seen");
}

#[test]
fn transformer_names_the_place_of_a_nan() {
    let [config, ..] = configs();
    let weights = weights(&config);
    let mut tensors = weights.tensors().to_vec();
    let up = model::LayerNames::new(1).up_proj;
    let mut values = tensors[up].to_vec::<f32>().unwrap();
    values[3 * config.d_model] = f32::INFINITY;
    tensors[up] = Tensor::from_slice(&values, tensors[up].shape());
    let model = Transformer::new(Weights::from_tensors(&config, tensors));
    let tape = Tape::checking();
    let batch = (&tokens(&TOKENS, 2), &tokens(&TARGETS, 2));
    model.loss(&model.leaves(&tape), batch, 1.0, PsiAt::deterministic(Psi::Relu), None);
    let found = tape.first_non_finite().expect("transformer: an infinity is not found");
    assert_eq!(found.place, "layers.1.mlp.up_proj.linear");
    assert_eq!((found.shape, found.element), (Shape::from([2, 6, 40]), 3));
}

#[test]
#[should_panic(expected = "hidden: tokens [1, 33]: not [B, T] with T at most 32")]
fn transformer_refuses_a_sequence_beyond_its_context() {
    let [config, ..] = configs();
    let model = Transformer::new(weights(&config));
    let tape = Tape::without_gradients();
    model.hidden(&model.leaves(&tape), &tokens(&[0; 33], 1), PsiAt::deterministic(Psi::Relu), None);
}
