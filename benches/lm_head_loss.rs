//! The fused LM head and loss: `cargo bench --bench lm_head_loss`.
//!
//! Throughput is in flop of the products: `2 N V C` for the loss alone, `6 N V C` with its gradients. The limit is the level's
//! FMA peak. `KERNELS_SIMD` picks the level.

mod share;

use criterion::{Criterion, criterion_group, criterion_main};
use kernels::Beta;
use kernels::limits::fma_gflops;
use kernels::lm_head_loss::{lm_head_loss, lm_head_loss_backward};
use kernels::testing::uniform;
use share::Limit;
use std::hint::black_box;

/// N, V, C: a step of a byte model, and a vocabulary of the size of Llama's.
const SHAPES: [[usize; 3]; 2] = [[2048, 257, 256], [512, 32_000, 512]];

fn loss(c: &mut Criterion) {
    for [n, v, d_model] in SHAPES {
        let (x, w) = (uniform(1, n * d_model), uniform(2, v * d_model));
        let targets: Vec<u32> = (0..n).map(|i| (i * 7919 % v) as u32).collect();
        let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; w.len()]);
        for team in share::teams() {
            let limit = Limit { rate: fma_gflops(&team), unit: "GFLOP/s" };
            let name = format!("lm_head_loss/N{n} V{v} C{d_model}/{}/{}t", team.level(), team.threads());
            let mut group = c.benchmark_group(name);
            share::settings(&mut group);
            let flop = 2 * (n * v * d_model) as u64;
            share::bench(&mut group, "forward".to_string(), flop, limit, || {
                black_box(lm_head_loss(&team, &x, &w, &targets, d_model));
            });
            share::bench(&mut group, "backward".to_string(), 3 * flop, limit, || {
                let scale = 1.0 / n as f32;
                lm_head_loss_backward(&team, &x, &w, &targets, d_model, scale, &mut dx, Beta::One, &mut dw);
            });
        }
    }
}

criterion_group!(benches, loss);
criterion_main!(benches);
