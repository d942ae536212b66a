//! The fused LM head and loss: `cargo bench --bench lm_head_loss`.
//!
//! Throughput is in flop of the products (Gelem/s reads GFLOP/s): `2 N V C` for the loss alone, `6 N V C` with its gradients.
//! The bound is the machine's FMA peak. `KERNELS_SIMD` picks the level.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kernels::lm_head_loss::{lm_head_loss, lm_head_loss_backward};
use kernels::testing::uniform;
use kernels::{Beta, Level, Team};
use std::hint::black_box;

/// N, V, C: a step of a byte model, and a vocabulary of the size of Llama's.
const SHAPES: [[usize; 3]; 2] = [[2048, 257, 256], [512, 32_000, 512]];

fn loss(c: &mut Criterion) {
    let level = Level::from_env().unwrap_or_else(|e| panic!("{e}"));
    for [n, v, d_model] in SHAPES {
        let (x, w) = (uniform(1, n * d_model), uniform(2, v * d_model));
        let targets: Vec<u32> = (0..n).map(|i| (i * 7919 % v) as u32).collect();
        let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; w.len()]);
        for threads in [1, 2] {
            let team = Team::new(level, threads);
            let mut group = c.benchmark_group(format!("lm_head_loss N{n} V{v} C{d_model} {level} threads={threads}"));
            group.sample_size(20);
            group.throughput(Throughput::Elements((2 * n * v * d_model) as u64));
            group.bench_function("forward", |b| b.iter(|| lm_head_loss(&team, black_box(&x), &w, &targets, d_model)));
            group.throughput(Throughput::Elements((6 * n * v * d_model) as u64));
            group.bench_function("backward", |b| {
                b.iter(|| {
                    let (x, scale) = (black_box(&x), 1.0 / n as f32);
                    lm_head_loss_backward(&team, x, &w, &targets, d_model, scale, &mut dx, Beta::One, &mut dw)
                })
            });
            group.finish();
        }
    }
}

criterion_group!(benches, loss);
criterion_main!(benches);
