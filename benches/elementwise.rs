//! The memory-bound kernels around the matrix products: `cargo bench --bench elementwise`.
//!
//! Throughput counts the bytes that a kernel must move, each once, as in `activation`; the row `copy` is the bound.
//! `KERNELS_SIMD` picks the level.

use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime};
use kernels::adamw::{AdamW, adamw};
use kernels::rms_norm::{rms_norm, rms_norm_backward};
use kernels::rope::{RopeShape, Rotation, rope};
use kernels::testing::uniform;
use kernels::{Beta, Level, Team, elementwise, embedding, reduce};
use std::hint::black_box;

/// Tokens, d_model, heads and vocabulary of the paper's 1.5B model, the last one cut to keep the table at 128 MiB.
const TOKENS: usize = 2048;
const D_MODEL: usize = 2048;
const N_HEADS: usize = 16;
const VOCAB: usize = 16 * 1024;

fn row(group: &mut BenchmarkGroup<WallTime>, name: &str, bytes_per_element: usize, mut f: impl FnMut()) {
    group.throughput(Throughput::Bytes((bytes_per_element * TOKENS * D_MODEL) as u64));
    group.bench_function(name, |b| b.iter(&mut f));
}

fn elementwise_kernels(c: &mut Criterion) {
    let level = Level::from_env().unwrap_or_else(|e| panic!("{e}"));
    let len = TOKENS * D_MODEL;
    let (a, b, weight) = (uniform(1, len), uniform(2, len), uniform(3, D_MODEL));
    let positive: Vec<f32> = a.iter().map(|a| a.abs()).collect();
    let (mut y, mut m, mut v) = (vec![0.0; len], vec![0.0; len], vec![1.0; len]);
    let (mut inv_rms, mut d_weight) = (vec![1.0; TOKENS], vec![0.0; D_MODEL]);
    let table = uniform(4, VOCAB * D_MODEL);
    let mut d_table = vec![0.0; VOCAB * D_MODEL];
    let tokens: Vec<u32> = (0..TOKENS as u32).map(|n| n * 7919 % VOCAB as u32).collect();
    let shape = RopeShape { n_heads: N_HEADS, head_dim: D_MODEL / N_HEADS, seq_len: TOKENS, first_position: 0 };
    let angles = uniform(5, TOKENS * shape.head_dim / 2);
    let step = AdamW { lr: 1e-9, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step: 10, grad_scale: 1.0 };

    for threads in [1, 2] {
        let team = Team::new(level, threads);
        let mut group = c.benchmark_group(format!("elementwise {TOKENS}x{D_MODEL} {level} threads={threads}"));
        group.sample_size(20);
        row(&mut group, "copy", 8, || elementwise::scale(&team, 1.0, black_box(&a), &mut y));
        row(&mut group, "add", 12, || elementwise::add(&team, black_box(&a), &b, &mut y));
        row(&mut group, "exp", 8, || elementwise::exp(&team, black_box(&a), &mut y));
        row(&mut group, "log", 8, || elementwise::log(&team, black_box(&positive), &mut y));
        row(&mut group, "sum_squares", 4, || {
            black_box(reduce::sum_squares(&team, black_box(&a)));
        });
        row(&mut group, "rms_norm", 8, || rms_norm(&team, black_box(&a), &weight, 1e-5, &mut y, &mut inv_rms));
        row(&mut group, "rms_norm_backward", 12, || {
            rms_norm_backward(&team, black_box(&b), &a, &weight, &inv_rms, Beta::Zero, &mut y, &mut d_weight)
        });
        row(&mut group, "rope", 8, || rope(&team, black_box(&a), &angles, &angles, shape, Rotation::Forward, &mut y));
        row(&mut group, "adamw", 28, || adamw(&team, &step, &mut y, black_box(&b), &mut m, &mut v));
        row(&mut group, "embedding", 8, || embedding::embedding(&team, black_box(&table), &tokens, D_MODEL, &mut y));
        row(&mut group, "embedding_backward", 12, || {
            embedding::embedding_backward(&team, black_box(&a), &tokens, D_MODEL, &mut d_table)
        });
        group.finish();
    }
}

criterion_group!(benches, elementwise_kernels);
criterion_main!(benches);
