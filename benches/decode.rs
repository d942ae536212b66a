//! Tokens a second of decoding, dense and sparse, and of a prompt: `cargo bench --bench decode`.
//!
//! The model has the widths of the 350m preset and enough layers to be far larger than the caches. Its sparsity is made: the
//! first element of the residual stream is large, and the gate's weight for it decides which neurons are ever active, the
//! same for dense and sparse. Decoding reads every weight that it uses once a token, so the bound is memory: at s zeros the
//! sparse FFN reads `(1 + 2 (1 - s)) / 3` of the dense bytes; attention and the LM head read all of theirs.
//! `KERNELS_SIMD` picks the level.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use infer::{CpuEngine, Engine, EngineOptions, FfnMode};
use kernels::testing::uniform;
use kernels::{Level, Team};
use model::{Config, LayerNames, Psi, Weights, preset};
use std::hint::black_box;
use std::sync::Arc;
use tensor::Tensor;

/// Positions in the cache when a token is decoded, and tokens of a prompt.
const POSITIONS: usize = 256;

fn config() -> Config {
    Config { n_layers: 6, ..preset("350m", 256).expect("a preset") }
}

/// Fresh weights in which a share `zeros` of every layer's neurons is never active.
fn weights(zeros: f32) -> Weights {
    let config = config();
    let mut tensors = Weights::init(&config, 1).tensors().to_vec();
    let mut set_first_column = |index: usize, values: &dyn Fn(usize) -> f32| {
        let mut data = tensors[index].to_vec::<f32>().expect("on the CPU");
        data.chunks_mut(config.d_model).enumerate().for_each(|(row, data)| data[0] = values(row));
        tensors[index] = Tensor::from_slice(&data, tensors[index].shape());
    };
    set_first_column(0, &|_| 100.0); // what the blocks add is of the size of 0.1 to 1
    for layer in 0..config.n_layers {
        // Normalised, the element is about sqrt(C) = 32 and the others below 0.3: the sign is that of this weight.
        let draws = uniform(layer as u64, config.d_ff);
        let sign = |neuron: usize| if draws[neuron] < 2.0 * zeros - 1.0 { -0.1 } else { 0.1 };
        set_first_column(LayerNames::new(layer).gate_proj, &sign);
    }
    Weights::from_tensors(&config, tensors)
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
        let dense = weights(0.9);
        let mut relu = engine(&dense, Psi::Relu, FfnMode::Dense);
        group.bench_function("relu dense", |b| b.iter(|| step(&mut relu)));
        let mut silu = engine(&dense, Psi::Silu, FfnMode::Dense);
        group.bench_function("silu dense", |b| b.iter(|| step(&mut silu)));
        for zeros in [0.5, 0.8, 0.9, 0.95, 0.99] {
            let mut sparse = engine(&weights(zeros), Psi::Relu, FfnMode::Sparse);
            step(&mut sparse);
            for layer in sparse.density() {
                let share = 1.0 - layer.share().expect("one token was decoded");
                assert!((share - zeros as f64).abs() < 0.03, "meant {zeros} zeros, made {share}");
            }
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
