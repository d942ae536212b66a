//! Attention, forward, backward and one decoded token: `cargo bench --bench attention`.
//!
//! Throughput of forward and backward is in flop (Gelem/s reads GFLOP/s): `4 D` forward and `10 D` backward for each visible
//! pair of a query and a key, so what is computed and masked away counts as lost. The bound is the machine's FMA peak. A
//! decoded token is bound by memory: its throughput is the bytes of K and V. `KERNELS_SIMD` picks the level.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kernels::attention::{AttentionSaved, AttentionShape, attention, attention_backward};
use kernels::testing::uniform;
use kernels::{Beta, Level, Team};
use std::hint::black_box;

/// Training: model S and the 60M preset's heads at its context.
const TRAINING: [AttentionShape; 2] = [
    AttentionShape { batch: 8, q_len: 256, kv_len: 256, n_heads: 8, n_kv_heads: 4, head_dim: 32 },
    AttentionShape { batch: 2, q_len: 512, kv_len: 512, n_heads: 12, n_kv_heads: 4, head_dim: 64 },
];

/// Decoding: the last token of the same contexts, and of a long one.
const DECODING: [AttentionShape; 3] = [
    AttentionShape { batch: 1, q_len: 1, kv_len: 256, n_heads: 8, n_kv_heads: 4, head_dim: 32 },
    AttentionShape { batch: 1, q_len: 1, kv_len: 512, n_heads: 12, n_kv_heads: 4, head_dim: 64 },
    AttentionShape { batch: 1, q_len: 1, kv_len: 4096, n_heads: 16, n_kv_heads: 8, head_dim: 128 },
];

fn name(shape: AttentionShape) -> String {
    let AttentionShape { batch, q_len, kv_len, n_heads, n_kv_heads, head_dim } = shape;
    format!("B{batch} Tq{q_len} Tk{kv_len} H{n_heads} K{n_kv_heads} D{head_dim}")
}

fn training(c: &mut Criterion) {
    let level = Level::from_env().unwrap_or_else(|e| panic!("{e}"));
    for shape in TRAINING {
        let scale = 1.0 / (shape.head_dim as f32).sqrt();
        let (q, d_out) = (uniform(1, shape.q_elements()), uniform(4, shape.q_elements()));
        let (k, v) = (uniform(2, shape.kv_elements()), uniform(3, shape.kv_elements()));
        let (mut out, mut dq) = (vec![0.0; q.len()], vec![0.0; q.len()]);
        let (mut dk, mut dv) = (vec![0.0; k.len()], vec![0.0; v.len()]);
        let mut lse = vec![0.0; shape.lse_elements()];
        let pairs: usize = (0..shape.q_len).map(|t| shape.visible(t)).sum::<usize>() * shape.batch * shape.n_heads;
        for threads in [1, 2] {
            let team = Team::new(level, threads);
            let mut group = c.benchmark_group(format!("attention {} {level} threads={threads}", name(shape)));
            group.throughput(Throughput::Elements((pairs * 4 * shape.head_dim) as u64));
            group.bench_function("forward", |b| {
                b.iter(|| attention(&team, shape, scale, black_box(&q), &k, &v, black_box(&mut out), &mut lse))
            });
            group.throughput(Throughput::Elements((pairs * 10 * shape.head_dim) as u64));
            group.bench_function("backward", |b| {
                b.iter(|| {
                    let saved = AttentionSaved { q: &q, k: &k, v: &v, out: &out, lse: &lse };
                    let d_out = black_box(&d_out);
                    attention_backward(&team, shape, scale, saved, d_out, Beta::Zero, &mut dq, &mut dk, &mut dv)
                })
            });
            group.finish();
        }
    }
}

fn decoding(c: &mut Criterion) {
    let level = Level::from_env().unwrap_or_else(|e| panic!("{e}"));
    for shape in DECODING {
        let scale = 1.0 / (shape.head_dim as f32).sqrt();
        let q = uniform(1, shape.q_elements());
        let (k, v) = (uniform(2, shape.kv_elements()), uniform(3, shape.kv_elements()));
        let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; shape.lse_elements()]);
        for threads in [1, 2] {
            let team = Team::new(level, threads);
            let mut group = c.benchmark_group(format!("attention {} {level} threads={threads}", name(shape)));
            group.throughput(Throughput::Bytes((size_of::<f32>() * (k.len() + v.len())) as u64));
            group.bench_function("decode", |b| {
                b.iter(|| attention(&team, shape, scale, black_box(&q), &k, &v, black_box(&mut out), &mut lse))
            });
            group.finish();
        }
    }
}

criterion_group!(benches, training, decoding);
criterion_main!(benches);
