//! A sequence in a batch has the bits that it has alone, whatever is beside it.

mod common;

use common::any_engine::{self, alone, in_batches_as_alone};
use common::{configs, engine_on, options, weights};
use infer::{ActivationFormat, EngineOptions, FfnMode, KvFormat, WeightFormat};
use kernels::Level;
use model::{Config, Psi, Weights};

fn run(what: &str, weights: &Weights, options: EngineOptions, sequences: usize, level: Level) {
    let expected = alone(&mut engine_on(level, 1, weights, options.clone()), sequences);
    for threads in [1, 3] {
        let what = format!("{what} {level} {threads} threads, {sequences} sequences");
        in_batches_as_alone(&what, &mut engine_on(level, threads, weights, options.clone()), &expected);
    }
}

#[test]
fn a_sequence_in_a_batch_has_the_bits_that_it_has_alone() {
    let (exact, q8) = (ActivationFormat::Exact, ActivationFormat::Q8);
    let stochastic = Psi::stochastic(0.5);
    for (number, config) in configs().iter().enumerate() {
        let weights = weights(config, number as u64);
        for level in Level::available() {
            for (psi, ffn, format, activations) in [
                (Psi::Relu, FfnMode::Dense, WeightFormat::F32, exact),
                (Psi::Relu, FfnMode::Sparse, WeightFormat::F32, exact),
                (Psi::Relu, FfnMode::Filtered, WeightFormat::Bf16, exact),
                (Psi::Relu, FfnMode::Auto, WeightFormat::Bf16, exact),
                (Psi::Relu, FfnMode::Sparse, WeightFormat::Bf16Packed, exact),
                (Psi::Relu, FfnMode::Sparse, WeightFormat::Q8, exact),
                (Psi::Relu, FfnMode::Dense, WeightFormat::Q4, exact),
                (Psi::Relu, FfnMode::Sparse, WeightFormat::Q8, q8),
                (stochastic, FfnMode::Dense, WeightFormat::F32, exact),
                (stochastic, FfnMode::Dense, WeightFormat::Q4, q8),
            ] {
                let kv = if format == WeightFormat::Bf16 { KvFormat::Bf16 } else { KvFormat::F32 };
                let options = EngineOptions { weights: format, activations, kv, seed: 5, ..options(psi, ffn) };
                let what = format!("config {number} {psi} {ffn} {format} x {activations}");
                for sequences in if number == 0 { vec![1, 2, 5, 16, 18] } else { vec![4] } {
                    run(&what, &weights, options.clone(), sequences, level);
                }
            }
        }
    }
}

#[test]
fn branches_outlive_a_reset_and_go_their_own_way() {
    let weights = weights(&configs()[0], 1);
    let mut engine = engine_on(Level::best(), 1, &weights, options(Psi::Relu, FfnMode::Auto));
    any_engine::branches_outlive_a_reset_and_go_their_own_way(&mut engine);
}

#[test]
fn batches_that_do_not_fit_are_refused() {
    let config = Config { max_seq_len: 4, ..configs()[0].clone() };
    let mut engine = engine_on(Level::best(), 1, &weights(&config, 1), options(Psi::Relu, FfnMode::Auto));
    any_engine::batches_that_do_not_fit_are_refused(&mut engine);
}
