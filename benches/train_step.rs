//! A whole training step, forward, backward and AdamW, in tokens per second: `cargo bench --bench train_step [-- S/2t]`.
//!
//! The sizes are those that other software was timed on: S is 6.8M parameters at T = 256, B = 8; M is 33.6M at T = 512, B = 4.
//! SILU, as there. `KERNELS_SIMD` picks the level.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kernels::{Level, Team};
use model::{Config, Psi, PsiAt};
use silurian::synthetic::TrainStep;
use std::sync::Arc;
use tensor::{Device, pool};

struct Size {
    name: &'static str,
    config: Config,
    batch: usize,
    seq_len: usize,
}

fn sizes() -> [Size; 2] {
    let config = |vocab_size, d_model, n_layers, d_ff, max_seq_len| Config {
        vocab_size,
        d_model,
        n_layers,
        n_heads: 8,
        n_kv_heads: 4,
        head_dim: d_model / 8,
        d_ff,
        max_seq_len,
        rope_theta: 10_000.0,
        rope_scaling: None,
        norm_eps: 1e-5,
        tie_embeddings: false,
    };
    [
        Size { name: "S", config: config(4096, 256, 6, 768, 256), batch: 8, seq_len: 256 },
        Size { name: "M", config: config(8192, 512, 8, 1536, 512), batch: 4, seq_len: 512 },
    ]
}

fn train_step(c: &mut Criterion) {
    let level = Level::from_env().unwrap_or_else(|e| panic!("{e}"));
    let mut group = c.benchmark_group(format!("train_step {level}"));
    group.sample_size(10);
    for Size { name, config, batch, seq_len } in sizes() {
        for threads in [1, 2] {
            group.throughput(Throughput::Elements((batch * seq_len) as u64));
            group.bench_function(format!("{name}/{threads}t"), |b| {
                Arc::new(Team::new(level, threads)).install(|| {
                    let mut step = TrainStep::new(&config, batch, seq_len, &Device::Cpu).expect("memory of the CPU");
                    b.iter(|| step.run(PsiAt::deterministic(Psi::Silu)));
                })
            });
        }
    }
    group.finish();
    let stats = pool::stats();
    println!("tensor memory: {} blocks from the system, at most {} MiB in use", stats.fresh, stats.peak_bytes >> 20);
}

criterion_group!(benches, train_step);
criterion_main!(benches);
