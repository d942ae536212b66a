//! The gated activation, forward and backward, at the paper's F for 1.5B: `cargo bench --bench activation`.
//!
//! Throughput counts the bytes that a kernel must move, each once: reads and writes, without the lines that a plain store
//! reads first. The row `copy` is the machine's bound for the same measure (8 bytes an element). `KERNELS_SIMD` picks the level.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kernels::activation::{Activation, Fixed, MaskSite, Positive, gated_activation, gated_activation_backward};
use kernels::testing::uniform;
use kernels::{Level, Team, elementwise};
use std::hint::black_box;

const TOKENS: usize = 2048;
const D_FF: usize = 5632;

fn gated(c: &mut Criterion) {
    let level = Level::from_env().unwrap_or_else(|e| panic!("{e}"));
    let len = TOKENS * D_FF;
    let (dh, g, u) = (uniform(1, len), uniform(2, len), uniform(3, len));
    let [mut dg, mut du, mut h] = [(); 3].map(|_| vec![0.0f32; len]);
    let site = MaskSite { seed: 1, first_token: 0, layer: 0, stream: 0, step: 0 };
    let acts = [
        ("relu", Activation::Relu, 0.0),
        ("relu with l1", Activation::Relu, 1e-4),
        ("silu", Activation::Silu, 0.0),
        ("gelu", Activation::Gelu, 0.0),
        ("relu2", Activation::Relu2, 0.0),
        ("tanh", Activation::Tanh, 0.0),
        ("stochastic", Activation::stochastic(0.5, site), 0.0),
        ("relu or gelu, silu", Activation::pair(0.5, [Fixed::Relu, Fixed::Gelu], Positive::Silu, site), 0.0),
    ];
    for threads in [1, 2] {
        let team = Team::new(level, threads);
        let mut group = c.benchmark_group(format!("gated_activation {TOKENS}x{D_FF} {level} threads={threads}"));
        group.sample_size(20);
        group.throughput(Throughput::Bytes(8 * len as u64));
        group.bench_function("copy", |b| b.iter(|| elementwise::scale(&team, 1.0, black_box(&g), black_box(&mut h))));
        for (name, act, l1) in acts {
            group.throughput(Throughput::Bytes(12 * len as u64));
            group.bench_function(format!("{name} forward"), |b| {
                b.iter(|| gated_activation(&team, act, black_box(&g), &u, D_FF, black_box(&mut h)))
            });
            group.throughput(Throughput::Bytes(24 * len as u64));
            group.bench_function(format!("{name} backward"), |b| {
                b.iter(|| {
                    let dh = black_box(&dh);
                    gated_activation_backward(&team, act, l1, dh, &g, &u, D_FF, &mut dg, &mut du, &mut h)
                })
            });
        }
        group.finish();
    }
}

criterion_group!(benches, gated);
criterion_main!(benches);
