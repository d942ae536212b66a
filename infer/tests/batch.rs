//! A sequence in a batch has the bits that it has alone, whatever is beside it.

mod common;

use common::{bits, configs, engine_on, options, tokens, weights};
use infer::{ActivationFormat, CpuEngine, Engine, EngineOptions, Error, FfnMode, KvFormat, WeightFormat};
use kernels::Level;
use model::{Config, Psi, Weights};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Tokens that each sequence continues with.
const STEPS: usize = 7;

/// Sequences with prompts of their own lengths, the first 4 with one and the same.
fn prompt(config: &Config, sequence: usize) -> Vec<u32> {
    if sequence < 4 { tokens(config, 1, 9) } else { tokens(config, sequence as u64, 1 + 5 * sequence) }
}

fn continuation(config: &Config, sequence: usize) -> Vec<u32> {
    tokens(config, 100 + sequence as u64, STEPS)
}

/// For each sequence the logits after each of its tokens, decoded alone.
fn alone(engine: &mut CpuEngine, sequences: usize) -> Vec<Vec<Vec<u32>>> {
    let config = engine.config().clone();
    let one = |sequence| {
        engine.reset(sequence as u32);
        engine.prefill(&prompt(&config, sequence)).unwrap();
        continuation(&config, sequence).into_iter().map(|token| bits(engine.decode(token).unwrap())).collect()
    };
    (0..sequences).map(one).collect()
}

/// The same in batches, of which each leaves out other sequences and has another order.
#[track_caller]
fn check(what: &str, engine: &mut CpuEngine, expected: &[Vec<Vec<u32>>]) {
    let config = engine.config().clone();
    let n = expected.len();
    for sequence in 0..n {
        engine.reset(sequence as u32);
        engine.prefill(&prompt(&config, sequence)).unwrap();
        engine.fork(sequence);
    }
    engine.reset(0);
    let mut done = vec![0; n];
    let mut steps = 0;
    for step in 0.. {
        let turn = (0..n).map(|i| (i * 7 + step) % n).collect::<Vec<_>>();
        let mut batch: Vec<(usize, u32)> = Vec::new();
        for sequence in turn {
            let named = batch.iter().any(|&(other, _)| other == sequence);
            if done[sequence] < STEPS && !named && (sequence + step) % 4 != 0 {
                batch.push((sequence, continuation(&config, sequence)[done[sequence]]));
            }
        }
        if batch.is_empty() {
            if done.iter().all(|&done| done == STEPS) {
                break;
            }
            continue;
        }
        steps += 1;
        let logits = bits(engine.decode_batch(&batch).unwrap());
        for (&(sequence, _), logits) in batch.iter().zip(logits.chunks(config.vocab_size)) {
            let at = done[sequence];
            assert!(logits == expected[sequence][at], "decode_batch {what}: sequence {sequence} differs at token {at}");
            done[sequence] += 1;
        }
    }
    for layer in engine.density() {
        let d_ff = config.d_ff as u64;
        assert_eq!((layer.tokens, layer.neurons), ((n * STEPS) as u64, (n * STEPS) as u64 * d_ff), "density {what}");
        assert_eq!(layer.steps, steps, "density {what}: steps");
        assert!(layer.union <= layer.active && layer.active <= layer.union * n as u64, "density {what}: {layer:?}");
        assert!(layer.union_share().unwrap() >= layer.share().unwrap() - 1e-12, "density {what}: {layer:?}");
    }
}

fn run(what: &str, weights: &Weights, options: EngineOptions, sequences: usize, level: Level) {
    let expected = alone(&mut engine_on(level, 1, weights, options.clone()), sequences);
    for threads in [1, 3] {
        let what = format!("{what} {level} {threads} threads, {sequences} sequences");
        check(&what, &mut engine_on(level, threads, weights, options.clone()), &expected);
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
    let config = &configs()[0];
    let mut engine = engine_on(Level::best(), 1, &weights(config, 1), options(Psi::Relu, FfnMode::Auto));
    engine.prefill(&[1, 2, 3]).unwrap();
    let expected = bits(engine.decode(4).unwrap());
    engine.truncate(3);
    engine.fork(2);
    engine.fork(0);
    assert_eq!(bits(engine.decode_batch(&[(0, 7)]).unwrap()), bits(engine.decode(7).unwrap()));
    engine.reset(0);
    assert_eq!(bits(engine.decode_batch(&[(2, 4)]).unwrap()), expected);
    assert_eq!(engine.position(), 0, "decode_batch moves the engine's own sequence");
    // A branch that is forked again is another one.
    engine.prefill(&[1, 2, 3]).unwrap();
    engine.fork(0);
    assert_eq!(bits(engine.decode_batch(&[(0, 4)]).unwrap()), expected);
}

#[test]
fn batches_that_do_not_fit_are_refused() {
    let config = Config { max_seq_len: 4, ..configs()[0].clone() };
    let mut engine = engine_on(Level::best(), 1, &weights(&config, 1), options(Psi::Relu, FfnMode::Auto));
    engine.prefill(&[1, 2, 3]).unwrap();
    engine.fork(0);
    engine.prefill(&[4]).unwrap();
    engine.fork(1);
    let refused = engine.decode_batch(&[(0, 5), (1, 6)]).unwrap_err();
    assert!(matches!(refused, Error::Context { tokens: 1, position: 4, context: 4 }), "{refused}");
    let refused = engine.decode_batch(&[(0, 61)]).unwrap_err();
    assert!(matches!(refused, Error::Token { token: 61, position: 3, vocab_size: 61 }), "{refused}");
    // Nothing has changed meanwhile.
    engine.reset(0);
    engine.prefill(&[1, 2, 3]).unwrap();
    assert_eq!(bits(engine.decode_batch(&[(0, 5)]).unwrap()), bits(engine.decode(5).unwrap()));
    let panics = |engine: &mut CpuEngine, tokens: &[(usize, u32)], words: &str| {
        let payload = catch_unwind(AssertUnwindSafe(|| engine.decode_batch(tokens).map(|_| ()))).unwrap_err();
        let message = payload.downcast_ref::<String>().map(String::as_str);
        let message = message.or(payload.downcast_ref::<&str>().copied()).unwrap();
        assert!(message.contains(words), "{message}");
    };
    panics(&mut engine, &[], "decode_batch: no tokens");
    panics(&mut engine, &[(7, 1)], "decode_batch: branch 7 was never forked");
    engine.reset(0);
    engine.prefill(&[1]).unwrap();
    engine.fork(0);
    panics(&mut engine, &[(0, 1), (0, 2)], "decode_batch: branch 0 is named twice");
    engine.set_activation(Psi::Silu, FfnMode::Dense).unwrap();
    panics(&mut engine, &[(0, 1)], "decode_batch: branch 0 was never forked");
}
