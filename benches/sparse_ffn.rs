//! The FFN of one token, sparse against dense, over the share of zeros: `cargo bench --bench sparse_ffn`.
//! C = 2048, F = 5632: 138 MB of weights, beyond any L3. Bytes are those that have to be read; the limit is the measured rate
//! of reading memory. The ceiling of the speed-up is `3 / (1 + 2 (1 - s))` (dense gate, memory-bound).

mod share;

use criterion::{Criterion, criterion_group, criterion_main};
use kernels::Activation;
use kernels::limits::read_gbs;
use kernels::sparse::{FfnScratch, FfnWeights, ffn_dense, ffn_sparse};
use kernels::testing::uniform;
use share::Limit;

const C: usize = 2048;
const F: usize = 5632;

fn bench(criterion: &mut Criterion) {
    let x: Vec<f32> = uniform(1, C).into_iter().map(f32::abs).collect();
    let (up, down_t) = (uniform(2, F * C), uniform(3, F * C));
    let mut gate = uniform(4, F * C);
    let (mut y, mut scratch) = (vec![0.0; C], FfnScratch::default());
    for team in share::teams() {
        let limit = Limit { rate: read_gbs(&team, 512), unit: "GB/s" };
        let mut group = criterion.benchmark_group(format!("sparse_ffn/{}/{}t", team.level(), team.threads()));
        share::settings(&mut group);
        let matrix = 4.0 * (F * C) as f64;
        let weights = FfnWeights { gate: &gate, up: &up, down_t: &down_t };
        let dense = share::bench(&mut group, "dense".to_string(), 3 * matrix as u64, limit, || {
            ffn_dense(&team, weights, Activation::Relu, &x, &mut scratch, &mut y)
        });
        for zeros in [0.0f32, 0.5, 0.8, 0.85, 0.9, 0.95, 0.99] {
            // x is positive, so the sign of a gate row is the sign of g: negative in a share `zeros` of the rows, at random.
            for (row, r) in gate.chunks_mut(C).zip(uniform(5, F)) {
                let sign = if (r + 1.0) / 2.0 < zeros { -1.0 } else { 1.0 };
                row.iter_mut().for_each(|w| *w = w.abs() * sign);
            }
            let weights = FfnWeights { gate: &gate, up: &up, down_t: &down_t };
            let active = ffn_sparse(&team, weights, &x, &mut scratch, &mut y) as f64 / F as f64;
            let bytes = matrix * (1.0 + 2.0 * active);
            let name = format!("sparse {:.0} % zeros", 100.0 * zeros);
            let sparse = share::bench(&mut group, name, bytes as u64, limit, || {
                ffn_sparse(&team, weights, &x, &mut scratch, &mut y);
            });
            if sparse.is_finite() {
                let ceiling = 3.0 / (1.0 + 2.0 * active);
                println!("speed-up over dense {:.2}, ceiling {ceiling:.2}\n", dense / sparse);
            }
        }
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
