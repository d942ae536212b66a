//! A decode step allocates nothing. A test binary of its own, because it replaces the allocator.

mod common;

use common::{configs, engine_on, options, weights};
use infer::{ActivationFormat, CacheMemory, Engine, FfnMode, KvFormat, Sampler, Sampling, WeightFormat};
use kernels::Level;
use kernels::testing::CountingAllocator;
use model::Psi;
#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

/// Rounds that a team of two may take until its helper has met every kernel and brought its scratch memory up: which thread
/// takes a task is left to chance, and on a busy machine the helper may sleep through many.
const ROUNDS: usize = 100;

/// One test for all, so that no other test of this binary allocates beside it.
#[test]
fn decode_and_sample_allocate_nothing() {
    for config in &configs()[..2] {
        let weights = weights(config, 1);
        for level in Level::available() {
            let stochastic = Psi::stochastic(0.5);
            let (exact, q8) = (ActivationFormat::Exact, ActivationFormat::Q8);
            for (number, (psi, ffn, format, activations)) in [
                (Psi::Relu, FfnMode::Sparse, WeightFormat::F32, exact),
                (Psi::Relu, FfnMode::Sparse, WeightFormat::Bf16, exact),
                (Psi::Relu, FfnMode::Sparse, WeightFormat::Q8, exact),
                (Psi::Relu, FfnMode::Sparse, WeightFormat::Q4, exact),
                (Psi::Relu, FfnMode::Sparse, WeightFormat::Q8, q8),
                (Psi::Relu, FfnMode::Sparse, WeightFormat::Q4, q8),
                (Psi::Relu, FfnMode::Filtered, WeightFormat::F32, exact),
                (Psi::Relu, FfnMode::Filtered, WeightFormat::Bf16, exact),
                (Psi::Relu, FfnMode::Filtered, WeightFormat::Bf16Packed, exact),
                (Psi::Relu, FfnMode::Auto, WeightFormat::F32, exact),
                (Psi::Relu, FfnMode::Auto, WeightFormat::Q8, exact),
                (Psi::Relu, FfnMode::Dense, WeightFormat::F32, exact),
                (Psi::Relu, FfnMode::Dense, WeightFormat::Bf16, exact),
                (Psi::Relu, FfnMode::Dense, WeightFormat::Q8, exact),
                (Psi::Relu, FfnMode::Dense, WeightFormat::Q4, exact),
                (Psi::Relu, FfnMode::Dense, WeightFormat::Q4, q8),
                (Psi::Relu, FfnMode::Dense, WeightFormat::Q8, q8),
                (Psi::Silu, FfnMode::Dense, WeightFormat::F32, exact),
                (stochastic, FfnMode::Dense, WeightFormat::F32, exact),
            ]
            .into_iter()
            .enumerate()
            {
                for threads in [1, 2] {
                    let mut options = options(psi, ffn);
                    // A growing cache has room for 256 positions before it grows, and keeps what it has grown to.
                    let caches = [(CacheMemory::Fixed, KvFormat::F32), (CacheMemory::Growing, KvFormat::Bf16)];
                    (options.cache, options.kv) = caches[(number + threads) % 2];
                    options.weights = format;
                    options.activations = activations;
                    let mut engine = engine_on(level, threads, &weights, options);
                    let sampling = Sampling { temperature: 0.8, top_k: 20, top_p: 0.9, min_p: 0.01, seed: 3 };
                    let mut sampler = Sampler::new(sampling).unwrap();
                    engine.prefill(&[1, 2, 3]).unwrap();
                    // One round of decode steps on fresh positions; returns what it allocated.
                    let mut round = || {
                        let before = ALLOCATOR.allocations();
                        engine.truncate(3);
                        for token in 0..60 {
                            let position = engine.position();
                            sampler.sample(engine.decode(token).unwrap(), position, 0).unwrap();
                        }
                        ALLOCATOR.allocations() - before
                    };
                    round();
                    let (cache, kv) = caches[(number + threads) % 2];
                    let what = format!(
                        "decode {psi} {ffn} {format} x {activations} {level}, {cache:?} cache of {kv}, {threads} threads"
                    );
                    if threads == 1 {
                        assert_eq!(round(), 0, "{what}: allocations in 60 steps");
                    } else {
                        assert!((0..ROUNDS).any(|_| round() == 0), "{what}: allocates in every round of 60 steps");
                    }
                    let mut round = || {
                        engine.truncate(3);
                        (0..4).for_each(|branch| engine.fork(branch).unwrap());
                        let before = ALLOCATOR.allocations();
                        for token in 0..20 {
                            engine.decode_batch(&[(2, token), (0, 1), (1, 2), (3, token)]).unwrap();
                        }
                        ALLOCATOR.allocations() - before
                    };
                    round();
                    let free = if threads == 1 { round() == 0 } else { (0..ROUNDS).any(|_| round() == 0) };
                    assert!(free, "{what}, 4 at once: allocates in every round of 20 steps");
                }
            }
        }
    }
}
