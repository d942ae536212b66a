//! One step and one evaluation, looked at from inside: decay, clipping, dead neurons, draws.

mod common;

use model::{LayerNames, Psi, Transformer, Weights, parameter_specs};
use std::path::Path;
use tensor::Tensor;
use train::TrainConfig;
use train::data::{Batches, Documents, Tokenizer, Tokens};
use train::evaluate::{EvalShape, evaluate};
use train::optimizer::Optimizer;
use train::step::{StepShape, train_step, training_draws};

const SHAPE: StepShape = StepShape { micro_batch: 4, seq_len: 32, micro_batches: 1 };

fn batches(dir: &Path, config: &TrainConfig) -> Batches {
    let documents = Documents::open(&config.data.paths, "text").unwrap();
    let tokens = Tokens::open(&documents, Tokenizer::Bytes, &dir.join("cache"), &mut |_| {}).unwrap();
    Batches::new(tokens, 0.1, SHAPE.seq_len, 1).unwrap()
}

/// Weights, first moments and gradient norm after one step from the same start.
fn one_step(dir: &Path, change: impl Fn(&mut TrainConfig)) -> (Vec<Vec<f32>>, Vec<Vec<f32>>, f64) {
    let mut config = common::config(dir);
    change(&mut config);
    let (config, sizes) = config.resolve(256, None).unwrap();
    let mut model = Transformer::new(Weights::init(&sizes, 5));
    let mut optimizer = Optimizer::new(model.weights(), &config);
    let draws = training_draws(Psi::stochastic(0.5), 3, 0);
    let batches = &mut batches(dir, &config);
    let result = train_step(&mut model, &mut optimizer, batches, SHAPE, draws, 0.0, config.train.lr).unwrap();
    let all = |tensors: &[Tensor]| tensors.iter().map(|t| t.to_vec().unwrap()).collect();
    (all(model.weights().tensors()), all(optimizer.moments().0), result.grad_norm)
}

#[test]
fn decay_is_of_projections_alone() {
    let dir = tempfile::tempdir().unwrap();
    let [with, without] = [0.5, 0.0].map(|decay| one_step(dir.path(), |c| c.train.weight_decay = decay).0);
    let (_, sizes) = common::config(dir.path()).resolve(256, None).unwrap();
    let start = Weights::init(&sizes, 5);
    let decay = 1e-2 * 0.5;
    for (i, spec) in parameter_specs(&sizes).enumerate() {
        let first: Vec<f32> = start.tensors()[i].to_vec().unwrap();
        let decays = spec.name.contains("proj");
        for ((w, wo), p) in with[i].iter().zip(&without[i]).zip(first) {
            let expected = if decays { -decay * p as f64 } else { 0.0 };
            // Each weight is rounded twice on its way, at a size of at most |p| + lr.
            let bound = 4.0 * f32::EPSILON as f64 * (p.abs() as f64 + 0.02);
            let found = *w as f64 - *wo as f64;
            assert!((found - expected).abs() <= bound, "decay of {}: {found}, expected {expected}", spec.name);
        }
    }
}

#[test]
fn clipping_scales_the_gradient_to_the_norm_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let (_, free, norm) = one_step(dir.path(), |c| c.train.grad_clip = 0.0);
    assert!(norm > 0.1, "{norm}");
    let (_, loose, _) = one_step(dir.path(), |c| c.train.grad_clip = 2.0 * norm);
    assert!(free == loose, "a gradient below the limit is left as it is");
    let (_, clipped, same) = one_step(dir.path(), |c| c.train.grad_clip = 0.01);
    assert_eq!(norm, same, "the norm is reported before clipping");
    // m = (1 - beta1) g after one step.
    let norm_of = |m: &[Vec<f32>]| m.iter().flatten().map(|&x| (x as f64 / 0.1).powi(2)).sum::<f64>().sqrt();
    // The reported norm is the root of a sum of squares within 516 2^-24 (`kernels::reduce::sum`); an element of m has four
    // roundings: the scale of clipping, its product, 1 - beta1 and its product. beta1 itself is an f32: 0.9 is within
    // 2^-25, so that 1 - beta1 is within 10 2^-25 of 0.1.
    let bound = (258.0 + 4.0 + 5.0) * f64::powi(2.0, -24);
    assert!((norm_of(&free) / norm - 1.0).abs() <= bound);
    assert!((norm_of(&clipped) / 0.01 - 1.0).abs() <= bound);
}

#[test]
fn dead_neurons_are_counted_and_draws_depend_on_the_token_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (config, sizes) = common::config(dir.path()).resolve(256, None).unwrap();
    let mut weights = Weights::init(&sizes, 5);
    // Rows 3, 7 and 90 of layer 1's gate: zero, zero, and small but alive.
    let gate = LayerNames::new(1).gate_proj;
    let mut rows: Vec<f32> = weights.tensors()[gate].to_vec().unwrap();
    let c = sizes.d_model;
    rows[3 * c..4 * c].fill(0.0);
    rows[7 * c..8 * c].fill(0.0);
    rows[90 * c..91 * c].iter_mut().for_each(|w| *w *= 1e-3);
    weights.tensors_mut()[gate] = Tensor::from_slice(&rows, [sizes.d_ff, c]);
    let model = Transformer::new(weights);
    let mut batches = batches(dir.path(), &config);
    let mut at = |psi, micro_batch| {
        let shape = EvalShape::new(&batches, 320, micro_batch, SHAPE.seq_len);
        assert_eq!(shape.sequences, 10);
        evaluate(&model, &mut batches, shape, psi, 3, 0).unwrap()
    };
    let relu = at(Psi::Relu, 4);
    assert_eq!((relu.tokens, &relu.dead[..], &relu.small_rows[..]), (320, &[0, 2][..], &[0, 3][..]));
    assert!(relu.zeros.iter().all(|z| (0.4..0.6).contains(z)), "at the start half of g is positive: {:?}", relu.zeros);
    // p = 0 draws RELU always, and the same everywhere.
    assert_eq!(at(Psi::stochastic(0.0), 4).loss, relu.loss);
    let half = at(Psi::stochastic(0.5), 4);
    assert_eq!(half, at(Psi::stochastic(0.5), 4));
    assert_ne!(half.loss, relu.loss);
    // Cut another way, the last batch being shorter in both: the same draws, sums in another order.
    let cut = at(Psi::stochastic(0.5), 3);
    assert!((cut.loss - half.loss).abs() < 500.0 * f32::EPSILON as f64 * 5.6, "{} {}", cut.loss, half.loss);
    assert_eq!((cut.zeros, cut.dead), (half.zeros, half.dead));
}
