//! The FFN of one token, sparse against dense, with f32, bf16, q8 and q4 weights: `cargo bench --bench sparse_ffn`. `silurian bench sparse`
//! has the whole sweep of zeros.
//!
//! C = 2048, F = 5632, eight layers taken by turns: 1.1 GB of weights (bf16: 0.6, q8: 0.3, q4: 0.16) in huge pages, so that neither the gate nor the
//! active rows of the last call are in a cache. Bytes are those that have to be read; the limit is the measured rate of reading
//! memory. The ceiling of the speed-up is `3 / (1 + 2 (1 - s))` (dense gate, memory-bound).

mod share;

use criterion::{Criterion, criterion_group, criterion_main};
use half::bf16;
use kernels::quant::{I8Dot, Q4, Q8};
use kernels::sparse::{FfnScratch, ffn_dense, ffn_sparse};
use kernels::{Activation, RowFormat};
use silurian::synthetic::FfnLayers;

const C: usize = 2048;
const F: usize = 5632;
const LAYERS: usize = 8;

fn bench(criterion: &mut Criterion) {
    bench_of::<f32>(criterion);
    bench_of::<bf16>(criterion);
    bench_of::<Q8>(criterion);
    bench_of::<Q4>(criterion);
    bench_of::<I8Dot<8>>(criterion);
    bench_of::<I8Dot<4>>(criterion);
}

fn bench_of<W: RowFormat>(criterion: &mut Criterion) {
    let mut layers = FfnLayers::<W>::new(LAYERS, C, F);
    let x = layers.input();
    let (mut y, mut scratch) = (vec![0.0; C], FfnScratch::default());
    for team in share::teams() {
        let limit = share::read_limit(&team);
        let name = format!("sparse_ffn/{}/{}/{}t", W::NAME, team.level(), team.threads());
        let mut group = criterion.benchmark_group(name);
        share::settings(&mut group);
        let matrix = (size_of::<W>() * W::row_len(C) * F) as f64;
        let mut turn = 0;
        for zeros in [0.5, 0.9] {
            layers.set_zeros(zeros);
            let mut active = |layer| ffn_sparse(&team, layers.weights(layer), &x, &mut scratch, &mut y);
            let active = (0..LAYERS).map(&mut active).sum::<usize>() as f64 / (F * LAYERS) as f64;
            let percent = 100.0 * zeros;
            // By turns with the sparse form, so that a machine whose speed drifts is fair to both.
            let dense =
                share::bench(&mut group, format!("dense {percent:.0} % zeros"), 3 * matrix as u64, limit, || {
                    turn += 1;
                    ffn_dense(&team, layers.weights(turn), Activation::Relu, &x, &mut scratch, &mut y);
                });
            let bytes = matrix * (1.0 + 2.0 * active);
            let name = format!("sparse {percent:.0} % zeros");
            let sparse = share::bench(&mut group, name, bytes as u64, limit, || {
                turn += 1;
                ffn_sparse(&team, layers.weights(turn), &x, &mut scratch, &mut y);
            });
            if dense.is_finite() && sparse.is_finite() {
                let ceiling = 3.0 / (1.0 + 2.0 * active);
                println!("{percent:.0} % zeros: speed-up over dense {:.2}, ceiling {ceiling:.2}\n", dense / sparse);
            }
        }
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
