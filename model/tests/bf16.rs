//! The transformer in bf16, on a GPU (the interpreter of its kernels), beside f32.

use autograd::{Gradients, Tape};
use cuda_testing::Interpreter;
use kernels::testing::uniform;
use model::{
    Config, HiddenAct, Init, LatentPenalty, Positive, Precision, Probe, Psi, PsiAt, TrainingMemory, Transformer,
    Weights, parameter_specs, preset,
};
use tensor::{DType, Device, Tensor, ops};

/// Half a unit in the last place of bf16, which has eight bits.
const BF16_ROUNDING: f64 = 1.0 / (1 << 8) as f64;

/// Rows at multiples of 16 bytes, where the fused products run, with a tied table; and others, untied.
fn configs() -> [Config; 2] {
    let aligned = Config {
        vocab_size: 40,
        d_model: 32,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 8,
        d_ff: 48,
        max_seq_len: 32,
        ..preset("tiny", 40).unwrap()
    };
    let odd = Config { vocab_size: 37, head_dim: 6, d_model: 28, d_ff: 42, tie_embeddings: false, ..aligned.clone() };
    [aligned, odd]
}

/// Weights that keep the variance of what they project, so that no part is near 0; gains in 0.5 .. 1.5.
fn weights(config: &Config) -> Weights {
    let tensors = parameter_specs(config).enumerate().map(|(i, spec)| {
        let size = (3.0 / *spec.shape.last().unwrap() as f32).sqrt();
        let value = |x: f32| if spec.init == Init::Ones { 1.0 + 0.5 * x } else { size * x };
        let values: Vec<f32> = uniform(i as u64, spec.shape.elements()).into_iter().map(value).collect();
        Tensor::from_slice(&values, spec.shape)
    });
    Weights::from_tensors(config, tensors.collect())
}

fn model(config: &Config, device: &Device, precision: Precision) -> Transformer {
    Transformer::new(weights(config).to_device(device).unwrap()).with_precision(precision)
}

fn gpu() -> Device {
    Device::Cuda(cuda_testing::device())
}

/// 24 tokens, two sequences of 12, and what follows them.
fn batch(config: &Config, device: &Device) -> [Tensor; 2] {
    [1, 8].map(|first| {
        let tokens: Vec<u32> = (first..first + 24).map(|i| (i * i * 7 % config.vocab_size) as u32).collect();
        Tensor::from_slice(&tokens, [2, 12]).to_device(device).unwrap()
    })
}

/// Loss, gradients and `h > 0` of two micro-batches of one tape each.
fn gradients(model: &Transformer, psi: PsiAt) -> (f64, Vec<Tensor>) {
    let [inputs, targets] = batch(model.weights().config(), &model.weights().device());
    let mut grads = Gradients::default();
    let mut loss = 0.0;
    for micro in 0..2 {
        let tape = Tape::new();
        let psi = PsiAt { first_token: psi.first_token + 24 * micro, ..psi };
        let (scaled, sum) = model.loss(&model.leaves(&tape), (&inputs, &targets), 1.0 / 48.0, psi, None);
        let sum = sum.value();
        loss += sum / 48.0;
        scaled.backward(&mut grads);
    }
    let all = (0..model.weights().tensors().len()).map(|i| grads.at(i).expect("a gradient for each weight").clone());
    (loss, all.collect())
}

/// Smooth; the paper's pair; one whose two differ much below 0, for which nothing is fused.
fn psis() -> [PsiAt; 3] {
    let pair = Psi::Stochastic { p: 0.5, negative: [HiddenAct::Relu, HiddenAct::Tanh], positive: Positive::Identity };
    [Psi::Silu, Psi::stochastic(0.5), pair].map(|psi| PsiAt { psi, seed: 11, first_token: 7, step: 3 })
}

/// The normalised mean square error of `a` beside `b`.
fn nmse(a: &Tensor, b: &Tensor) -> f64 {
    let [a, b] = [a, b].map(|x| x.to_vec::<f32>().unwrap());
    let square = |x: f64| x * x;
    let off: f64 = a.iter().zip(&b).map(|(&a, &b)| square(a as f64 - b as f64)).sum();
    off / b.iter().map(|&b| square(b as f64)).sum::<f64>()
}

/// Roundings to bf16 on the longest way through a model there and back: an activation is rounded in each layer, with its weight, at n, q, rope, P, o,
/// the branch, n, g or u, h and the branch, and again for each of their gradients; then at the head.
fn roundings(config: &Config) -> f64 {
    (40 * config.n_layers + 6) as f64
}

/// How far gradients may be from those of f32, as NMSE.
///
/// Every rounding adds noise of at most 2^-8 of what is rounded, in norm. The signs of two roundings do not follow from each other, so
/// squares add up; norms, and weights that keep the variance, pass noise on at its size.
///
/// q_proj and k_proj take four times as much: their gradients come from `dS = P (dP - sum P dP)`, a difference that has the noise of both. Scores of
/// deviation 1 give a softmax over n keys the weight of n / e; averaged over 12 positions the difference of independent numbers keeps 0.46 of
/// their square and has 1.54 of the noise, 3.3 times as much for its size.
///
/// A psi with a kink at 0 adds the gates that rounding takes across it. g is near normal, so for noise of deviation s, in its own deviations, a
/// share `s E|N| / sqrt(2 pi) = s / pi` of them; s is at most that of all roundings. Such a gate passes on a gradient that is wrong by at most the jump of
/// the slope, 1, squared, where the mean square of the slope is 1/2 or more, in each layer.
fn bound(config: &Config, psi: Psi) -> f64 {
    let noise = roundings(config) * BF16_ROUNDING * BF16_ROUNDING;
    if psi == Psi::Silu { noise } else { noise + 2.0 * config.n_layers as f64 * noise.sqrt() / std::f64::consts::PI }
}

#[test]
fn gradients_in_bf16_are_those_of_f32_but_for_rounding() {
    let gpu = gpu();
    for config in configs() {
        for psi in psis() {
            let bound = bound(&config, psi.psi);
            let (exact, expected) = gradients(&model(&config, &Device::Cpu, Precision::F32), psi);
            let (loss, made) = gradients(&model(&config, &gpu, Precision::Bf16), psi);
            // The loss is a mean: it is off by no more than its terms are, which are logits of a size of 1.
            let off = (loss - exact).abs();
            assert!(
                off <= roundings(&config).sqrt() * BF16_ROUNDING * exact,
                "{}: loss {loss}, in f32 {exact}",
                psi.psi
            );
            let mut largest: f64 = 0.0;
            for (spec, (made, expected)) in parameter_specs(&config).zip(made.iter().zip(&expected)) {
                assert_eq!((made.dtype(), made.shape()), (DType::F32, spec.shape), "gradient of {}", spec.name);
                let nmse = nmse(made, expected);
                let of_scores = spec.name.contains("q_proj") || spec.name.contains("k_proj");
                let bound = if of_scores { 4.0 * bound } else { bound };
                assert!(nmse <= bound, "{}: gradient of {}: NMSE {nmse:e}, bound {bound:e}", psi.psi, spec.name);
                largest = largest.max(nmse);
            }
            // Something was rounded to bf16.
            assert!(largest > 0.1 * BF16_ROUNDING * BF16_ROUNDING, "{}: NMSE {largest:e}", psi.psi);
        }
    }
}

/// The bounds above can fail: with the draws of another step, the gradients of a pair that differ much below 0 are far outside.
#[test]
fn other_draws_are_far_from_the_gradients_in_bf16() {
    let (config, gpu) = (&configs()[0], gpu());
    let psi = psis()[2];
    let (_, expected) = gradients(&model(config, &gpu, Precision::F32), psi);
    let gate = model::LayerNames::new(1).gate_proj;
    let [same, other] = [3, 4].map(|step| {
        let (_, made) = gradients(&model(config, &gpu, Precision::Bf16), PsiAt { step, ..psi });
        nmse(&made[gate], &expected[gate])
    });
    let bound = bound(config, psi.psi);
    assert!(
        same <= bound && other > 4.0 * bound,
        "NMSE {same:e} of the same draws, {other:e} of others, bound {bound:e}"
    );
}

/// As training does, by plain steps against the gradient: the loss falls as in f32, and copies are made again when weights change.
#[test]
fn the_loss_falls_as_in_f32() {
    let (config, gpu) = (&configs()[0], gpu());
    let psi = psis()[0];
    let losses = |precision| {
        let mut model = model(config, &gpu, precision);
        let step = |_| {
            let (loss, grads) = gradients(&model, psi);
            for (weight, grad) in model.weights_mut().tensors_mut().iter_mut().zip(&grads) {
                ops::axpy(-0.2, grad, weight);
            }
            loss
        };
        (0..6).map(step).collect::<Vec<f64>>()
    };
    let [wide, bf16] = [Precision::F32, Precision::Bf16].map(losses);
    assert!(wide[5] < 0.8 * wide[0], "f32: {wide:?}");
    for (i, (a, b)) in bf16.iter().zip(&wide).enumerate() {
        // The weights after i steps are off by what i gradients were off.
        let bound = (i + 1) as f64 * roundings(config).sqrt() * BF16_ROUNDING * b;
        assert!((a - b).abs() <= bound, "after {i} steps: loss {a}, in f32 {b}, bound {bound:e}");
    }
}

#[test]
fn copies_are_made_once_between_updates() {
    let (config, gpu) = (&configs()[1], gpu());
    let Device::Cuda(device) = &gpu else { unreachable!() };
    let mut model = model(config, &gpu, Precision::Bf16);
    let before = device.memory().in_use;
    let copied = || {
        let tape = Tape::new();
        let leaves = model.leaves(&tape);
        let at = model::LayerNames::new(0);
        for (i, spec) in parameter_specs(config).enumerate() {
            let is_factor = spec.shape.rank() == 2 && i > 0; // untied
            assert_eq!(leaves[i].value().dtype() == DType::Bf16, is_factor, "{}", spec.name);
        }
        assert_eq!(leaves.embed_tokens().value().dtype(), DType::F32);
        assert_eq!(leaves[at.q_proj].slot(), Some(leaves[at.q_proj].clone()).and_then(|leaf| leaf.slot()));
        device.memory().in_use - before
    };
    let bytes = copied();
    assert_eq!(copied(), bytes, "a second tape copied again");
    // The interpreter's blocks are as large as what is asked for, rounded up to their classes.
    let formula = config.training_memory(1, Precision::Bf16).copies as usize;
    assert!((formula..formula + 512 * 2 * 9).contains(&bytes), "copies of {bytes} bytes, the formula says {formula}");
    model.weights_mut();
    assert_eq!(device.memory().in_use, before, "copies outlive a change of the weights");
}

/// The probe and the penalty see g and h of bf16.
#[test]
fn probe_and_penalty_take_bf16() {
    let (config, gpu) = (&configs()[0], gpu());
    let psi = psis()[1];
    let seen = |precision| {
        let model = model(config, &gpu, precision);
        let [inputs, targets] = batch(config, &gpu);
        let mut probe = Probe::new(model.weights());
        let tape = Tape::without_gradients();
        model.loss(&model.leaves(&tape), (&inputs, &targets), 1.0, psi, Some(&mut probe));
        let mut penalty = LatentPenalty::new(0.5, 1.0, config);
        model.loss_penalised(&model.leaves(&tape), (&inputs, &targets), 1.0, psi, &mut penalty);
        (probe.zeros(), penalty.value())
    };
    let (wide, bf16) = (seen(Precision::F32), seen(Precision::Bf16));
    // Of 24 x 48 gates, few are within a rounding of 0.
    assert!(wide.0.iter().zip(&bf16.0).all(|(a, b)| (a - b).abs() < 0.02), "zeros {:?}, in f32 {:?}", bf16.0, wide.0);
    assert!((wide.1 - bf16.1).abs() < 0.05 * wide.1, "penalty {}, in f32 {}", bf16.1, wide.1);
}

/// What a micro-batch keeps for its backward, to the byte, and the peak.
#[test]
fn training_memory_in_bf16_is_what_the_formula_says() {
    // Powers of two, of which the pool rounds none up.
    let config = Config { vocab_size: 64, d_ff: 64, max_seq_len: 64, ..configs()[0].clone() };
    let (time, tokens) = (64, 128);
    // With a pool, as a card has it.
    let device = Interpreter { pooled: true, ..Interpreter::default() }.device();
    let gpu = Device::Cuda(device.clone());
    let empty = device.memory().in_use;
    let model = model(&config, &gpu, Precision::Bf16);
    let tokens_in = Tensor::from_slice(&vec![7u32; tokens], [tokens / time, time]).to_device(&gpu).unwrap();
    let expected = config.training_memory(tokens, Precision::Bf16);
    model.leaves(&Tape::new()); // the copies
    let mut grads = Gradients::default();
    // The second micro-batch adds to the gradients of the first.
    for micro_batch in 0..2 {
        let before = device.memory().in_use;
        let tape = Tape::new();
        let psi = PsiAt::deterministic(Psi::Silu);
        let (loss, _) = model.loss(&model.leaves(&tape), (&tokens_in, &tokens_in), 1.0, psi, None);
        // The gradient of the LM head is made with the loss, which is a block of the least size.
        let others = 4 * config.vocab_size * config.d_model + 512;
        let kept = device.memory().in_use - before - others;
        // The tokens are the caller's.
        assert_eq!(kept, expected.activations as usize - 4 * tokens, "what micro-batch {micro_batch} keeps");
        loss.backward(&mut grads);
    }
    let TrainingMemory { parameters, copies, gradients, activations, workspace, .. } = expected;
    let formula = (parameters + copies + gradients + activations + workspace) as f64;
    let peak = (device.memory().peak - empty) as f64;
    assert!((0.9..1.1).contains(&(peak / formula)), "a peak of {peak} bytes, the formula says {formula}");
}
