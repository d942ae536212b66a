//! Tokens a second of decoding, dense and sparse, and of a prompt: `cargo bench --bench decode`.
//!
//! The model has the widths of the 350m preset and enough layers to be far larger than the caches. Its zeros are imposed
//! (`silurian::synthetic`), the same for dense and sparse; `silurian bench decode` has the sweep. Decoding reads every weight that it uses once a token, so the bound is memory: at s zeros the
//! sparse FFN reads `(1 + 2 (1 - s)) / 3` of the dense bytes; attention and the LM head read all of theirs.
//! `KERNELS_SIMD` picks the level.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use infer::{CpuEngine, Engine, EngineOptions, FfnMode};
use kernels::{Level, Team};
use model::{Config, Psi, Weights, preset};
use silurian::synthetic;
use std::hint::black_box;
use std::sync::Arc;

/// Positions in the cache when a token is decoded, and tokens of a prompt.
const POSITIONS: usize = 256;

fn config() -> Config {
    Config { n_layers: 6, ..preset("350m", 256).expect("a preset") }
}

fn decode(c: &mut Criterion) {
    let level = Level::from_env().unwrap_or_else(|e| panic!("{e}"));
    let prompt: Vec<u32> = (0..POSITIONS as u32).collect();
    for threads in [1, 2] {
        let team = Arc::new(Team::new(level, threads));
        let engine = |weights: &Weights, psi, ffn| {
            let options = EngineOptions { ffn, ..EngineOptions::new(psi) };
            let mut engine = team.install(|| CpuEngine::new(weights, options)).expect("options in range");
            engine.prefill(&prompt).expect("a prompt in the context");
            engine
        };
        let step = |engine: &mut CpuEngine| {
            black_box(engine.decode(black_box(7)).expect("room for one token"));
            engine.truncate(POSITIONS);
        };

        let mut group = c.benchmark_group(format!("decode 350m, 6 layers {level} threads={threads}"));
        group.sample_size(20);
        group.throughput(Throughput::Elements(1));
        let mut weights = synthetic::weights(&config());
        synthetic::set_zeros(&mut weights, 0.9);
        let mut relu = engine(&weights, Psi::Relu, FfnMode::Dense);
        group.bench_function("relu dense", |b| b.iter(|| step(&mut relu)));
        let mut silu = engine(&weights, Psi::Silu, FfnMode::Dense);
        group.bench_function("silu dense", |b| b.iter(|| step(&mut silu)));
        for zeros in [0.5, 0.9] {
            synthetic::set_zeros(&mut weights, zeros);
            let mut sparse = engine(&weights, Psi::Relu, FfnMode::Sparse);
            group.bench_function(format!("relu sparse zeros={zeros}"), |b| b.iter(|| step(&mut sparse)));
        }
        group.throughput(Throughput::Elements(POSITIONS as u64));
        group.sample_size(10);
        group.bench_function("prefill", |b| {
            b.iter(|| {
                relu.truncate(0);
                relu.prefill(black_box(&prompt)).expect("a prompt in the context");
            })
        });
        group.finish();
    }
}

criterion_group!(benches, decode);
criterion_main!(benches);
