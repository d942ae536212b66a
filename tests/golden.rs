//! Parity with PyTorch and transformers: our f32 results against their f64 ones, within derived bounds.
//!
//! `tests/golden/make_golden.py` made the values and says where the bounds come from. Weights and tokens are not stored: both
//! sides make them from the same hash.

use autograd::{Gradients, Tape};
use infer::{CpuEngine, Engine, EngineOptions, FfnMode};
use kernels::testing::{ROUNDING, assert_within, uniform};
use kernels::{Activation, Fixed, MaskSite};
use model::{Config, HiddenAct, Init, Positive, Psi, PsiAt, Transformer, Weights, parameter_specs};
use serde::Deserialize;
use std::collections::BTreeMap;
use tensor::Tensor;

#[derive(Deserialize)]
struct Models<T> {
    made_by: String,
    models: Vec<T>,
}

#[derive(Deserialize)]
struct Logits {
    name: String,
    config: Config,
    hidden_act: String,
    tokens: Vec<u32>,
    bound: f64,
    logits: Vec<f64>,
}

#[derive(Deserialize)]
struct LossAndGradients {
    name: String,
    config: Config,
    hidden_act: String,
    tokens: Vec<u32>,
    targets: Vec<u32>,
    loss: f64,
    loss_bound: f64,
    gradients: BTreeMap<String, Gradient>,
}

#[derive(Deserialize)]
struct Gradient {
    bound: f64,
    values: Vec<f64>,
}

fn read<T: for<'de> Deserialize<'de>>(file: &str) -> T {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn psi(hidden_act: &str) -> Psi {
    HiddenAct::of_name(hidden_act).unwrap_or_else(|| panic!("hidden_act {hidden_act}")).into()
}

/// The weights of `make_golden.py`: gains near 1, the embedding uniform, projections uniform over the root of their width.
fn weights(config: &Config) -> Weights {
    let tensors = parameter_specs(config)
        .enumerate()
        .map(|(i, spec)| {
            let u = uniform(1000 + i as u64, spec.shape.elements());
            let scale = if spec.shape.rank() == 2 { (2.0 / (spec.shape[1] as f64).sqrt()) as f32 } else { 0.25 };
            let value = |u: f32| match spec.init {
                Init::Ones => 1.0 + scale * u,
                Init::Normal(_) if spec.name == model::EMBED_TOKENS => u,
                Init::Normal(_) => scale * u,
            };
            Tensor::from_slice(&u.into_iter().map(value).collect::<Vec<_>>(), spec.shape)
        })
        .collect();
    Weights::from_tensors(config, tensors)
}

#[test]
fn logits_match_transformers() {
    let golden: Models<Logits> = read("logits.json");
    assert!(golden.models.len() >= 6, "{}", golden.made_by);
    for m in golden.models {
        let psi = psi(&m.hidden_act);
        let transformer = Transformer::new(weights(&m.config));
        let tape = Tape::without_gradients();
        let leaves = transformer.leaves(&tape);
        let tokens = Tensor::from_slice(&m.tokens, [1, m.tokens.len()]);
        let hidden = transformer.hidden(&leaves, &tokens, PsiAt::deterministic(psi), None);
        let logits = transformer.logits(&leaves, &hidden).value().to_vec::<f32>().unwrap();
        assert_within(&format!("training forward of {}", m.name), &logits, &m.logits, |_| m.bound);

        // The token path: the prompt at once, and token by token; under RELU the FFN is sparse.
        let v = m.config.vocab_size;
        let mut engine = CpuEngine::new(transformer.weights(), EngineOptions::new(psi)).unwrap();
        assert_eq!(engine.options().ffn == FfnMode::Auto, psi == Psi::Relu);
        let last = &m.logits[m.logits.len() - v..];
        let prefill = engine.prefill(&m.tokens).unwrap();
        assert_within(&format!("prefill of {}", m.name), prefill, last, |_| m.bound);
        engine.reset(0);
        for (i, &token) in m.tokens.iter().enumerate() {
            let logits = if i == 0 { engine.prefill(&[token]) } else { engine.decode(token) }.unwrap();
            assert_within(&format!("decode {i} of {}", m.name), logits, &m.logits[i * v..(i + 1) * v], |_| m.bound);
        }
    }
}

#[test]
fn loss_and_all_gradients_match_transformers() {
    let golden: Models<LossAndGradients> = read("gradients.json");
    for m in golden.models {
        let transformer = Transformer::new(weights(&m.config));
        let n = m.tokens.len();
        let (tokens, targets) = (Tensor::from_slice(&m.tokens, [1, n]), Tensor::from_slice(&m.targets, [1, n]));
        let tape = Tape::new();
        let leaves = transformer.leaves(&tape);
        let at = PsiAt::deterministic(psi(&m.hidden_act));
        let (loss, sum) = transformer.loss(&leaves, (&tokens, &targets), 1.0 / n as f32, at, None);
        let mean = sum.value() / n as f64;
        assert!((mean - m.loss).abs() <= m.loss_bound, "{}: loss {mean}, expected {}", m.name, m.loss);
        let mut grads = Gradients::default();
        loss.backward(&mut grads);

        let specs: Vec<_> = parameter_specs(&m.config).collect();
        assert_eq!(specs.len(), m.gradients.len(), "{}: number of parameters", m.name);
        for (i, spec) in specs.iter().enumerate() {
            let expected = &m.gradients[&spec.name];
            let actual = grads.at(i).unwrap_or_else(|| panic!("{}: no gradient for {}", m.name, spec.name));
            let actual = actual.to_vec::<f32>().unwrap();
            assert_within(&format!("{}: gradient of {}", m.name, spec.name), &actual, &expected.values, |_| {
                expected.bound
            });
        }
    }
}

#[derive(Deserialize)]
struct Gated {
    fixed: Vec<FixedCase>,
    stochastic: Vec<StochasticCase>,
}

#[derive(Deserialize)]
struct FixedCase {
    act: HiddenAct,
    l1: f32,
    rows: usize,
    d_ff: usize,
    h: Vec<f64>,
    dg: Vec<f64>,
    du: Vec<f64>,
}

#[derive(Deserialize)]
struct StochasticCase {
    p: f64,
    negative: [HiddenAct; 2],
    positive: Positive,
    rows: usize,
    d_ff: usize,
    site: Site,
    second_on_negatives: usize,
    h: Vec<f64>,
    dg: Vec<f64>,
    du: Vec<f64>,
}

#[derive(Deserialize)]
struct Site {
    /// As text: JSON numbers end at 2^53.
    seed: String,
    first_token: u32,
    layer: u16,
    stream: u16,
    step: u32,
}

/// g, u and dh of `rows x d_ff`, as `make_golden.py` makes them.
fn gated_inputs(rows: usize, d_ff: usize) -> [Vec<f32>; 3] {
    let n = rows * d_ff;
    [uniform(21, n).into_iter().map(|u| 4.0 * u).collect(), uniform(22, n), uniform(23, n)]
}

/// Holds forward and backward to `[h, dg, du]` on every level; returns h.
fn check_gated(act: Activation, l1: f32, d_ff: usize, inputs: &[Vec<f32>; 3], expected: [&[f64]; 3]) -> Vec<f32> {
    let ([g, u, dh], [h_ref, dg_ref, du_ref]) = (inputs, expected);
    let n = g.len();
    let mut last = Vec::new();
    for team in kernels::testing::teams() {
        let [mut forward, mut dg, mut du, mut h] = [(); 4].map(|_| vec![f32::NAN; n]);
        kernels::activation::gated_activation(&team, act, g, u, d_ff, &mut forward);
        let outputs = (&mut dg, &mut du, &mut h);
        kernels::activation::gated_activation_backward(&team, act, l1, dh, g, u, d_ff, outputs.0, outputs.1, outputs.2);
        assert_eq!(forward, h, "gated_activation: forward and backward differ");
        // psi within 10 roundings (5 ULP), psi' within 4 units of 2^-24 or exact, the penalty and the products three or four
        // more; the file has nine digits.
        let bound = |size: f64| (12.0 * ROUNDING + 5e-9) * size;
        let what = format!("gated_activation {act:?} l1={l1} {} x{}", team.level(), team.threads());
        assert_within(&format!("{what} h"), &h, h_ref, |i| bound(h_ref[i].abs()));
        assert_within(&format!("{what} du"), &du, du_ref, |i| bound(du_ref[i].abs()));
        assert_within(&format!("{what} dg"), &dg, dg_ref, |i| {
            bound((dh[i].abs() + l1) as f64 * u[i].abs() as f64) + bound(dg_ref[i].abs())
        });
        last = h;
    }
    last
}

/// PyTorch's functions and its autograd, with an L1 penalty on h and without.
#[test]
fn fixed_activations_match_pytorch() {
    let golden: Gated = read("gated_activation.json");
    assert_eq!(golden.fixed.len(), 2 * HiddenAct::ALL.len());
    for case in golden.fixed {
        let act = PsiAt::deterministic(case.act.into()).layer(0);
        let inputs = gated_inputs(case.rows, case.d_ff);
        check_gated(act, case.l1, case.d_ff, &inputs, [&case.h, &case.dg, &case.du]);
    }
}

/// PyTorch's autograd on StochA(p), fed the mask that an independent Philox in Python draws.
#[test]
fn the_stochastic_activation_matches_pytorch_under_the_same_mask() {
    let golden: Gated = read("gated_activation.json");
    for case in golden.stochastic {
        let Site { seed, first_token, layer, stream, step } = case.site;
        let site = MaskSite { seed: seed.parse().unwrap(), first_token, layer, stream, step };
        let positive = match case.positive {
            Positive::Identity => kernels::Positive::Identity,
            Positive::Silu => kernels::Positive::Silu,
        };
        let act = Activation::pair(case.p, case.negative.map(Fixed::from), positive, site);
        let inputs = gated_inputs(case.rows, case.d_ff);
        let h = check_gated(act, 0.0, case.d_ff, &inputs, [&case.h, &case.dg, &case.du]);
        if case.negative[0] == HiddenAct::Relu {
            let drawn = inputs[0].iter().zip(&h).filter(|&(&g, &h)| g < 0.0 && h != 0.0).count();
            assert_eq!(drawn, case.second_on_negatives, "gated_activation: elements under the second of the pair");
        }
    }
}
