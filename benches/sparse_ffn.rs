//! The FFN of one token, sparse against dense, over the share of zeros, with f32 and bf16 weights:
//! `cargo bench --bench sparse_ffn`.
//!
//! C = 2048, F = 5632, eight layers taken by turns: 1.1 GB of weights (bf16: 0.6) in huge pages, so that neither the gate nor the active rows
//! of the last call are in a cache. Bytes are those that have to be read; the limit is the measured rate of reading memory. The
//! ceiling of the speed-up is `3 / (1 + 2 (1 - s))` (dense gate, memory-bound).

mod share;

use criterion::{Criterion, criterion_group, criterion_main};
use half::bf16;
use kernels::sparse::{FfnScratch, FfnWeights, ffn_dense, ffn_sparse};
use kernels::testing::uniform;
use kernels::{Activation, Weight};
use tensor::pool::Block;

const C: usize = 2048;
const F: usize = 5632;
const LAYERS: usize = 8;

/// gate, up and down_t of a layer.
struct Layer([Block; 3]);

impl Layer {
    fn new<W: Weight>(layer: usize) -> Layer {
        Layer([0, 1, 2].map(|i| share::weights::<W>((3 * layer + i) as u64, F * C)))
    }

    fn weights<W: Weight>(&self) -> FfnWeights<'_, W> {
        let [gate, up, down_t] = self.0.each_ref().map(|block| &block.elements::<W>()[..F * C]);
        FfnWeights { gate, up, down_t }
    }

    /// x is positive, so the sign of a gate row is the sign of g: negative in a share `zeros` of the rows, at random.
    fn set_zeros<W: Weight>(&mut self, zeros: f32, seed: u64) {
        let gate = &mut self.0[0].elements_mut::<W>()[..F * C];
        for (row, r) in gate.chunks_mut(C).zip(uniform(seed, F)) {
            let sign = if (r + 1.0) / 2.0 < zeros { -1.0 } else { 1.0 };
            row.iter_mut().for_each(|w| *w = W::round(w.widen().abs() * sign));
        }
    }
}

fn bench(criterion: &mut Criterion) {
    bench_of::<f32>(criterion);
    bench_of::<bf16>(criterion);
}

fn bench_of<W: Weight>(criterion: &mut Criterion) {
    let x: Vec<f32> = uniform(1, C).into_iter().map(f32::abs).collect();
    let mut layers: Vec<Layer> = (0..LAYERS).map(Layer::new::<W>).collect();
    let (mut y, mut scratch) = (vec![0.0; C], FfnScratch::default());
    for team in share::teams() {
        let limit = share::read_limit(&team);
        let name = format!("sparse_ffn/{}/{}/{}t", W::NAME, team.level(), team.threads());
        let mut group = criterion.benchmark_group(name);
        share::settings(&mut group);
        let matrix = (size_of::<W>() * F * C) as f64;
        let mut turn = 0;
        for zeros in [0.0f32, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 0.85, 0.9, 0.95, 0.99] {
            layers.iter_mut().enumerate().for_each(|(i, layer)| layer.set_zeros::<W>(zeros, 100 + i as u64));
            let mut sum = |layer: &Layer| ffn_sparse(&team, layer.weights::<W>(), &x, &mut scratch, &mut y);
            let active = layers.iter().map(&mut sum).sum::<usize>() as f64 / (F * LAYERS) as f64;
            let percent = 100.0 * zeros;
            // By turns with the sparse form, so that a machine whose speed drifts is fair to both.
            let dense =
                share::bench(&mut group, format!("dense {percent:.0} % zeros"), 3 * matrix as u64, limit, || {
                    turn += 1;
                    ffn_dense(&team, layers[turn % LAYERS].weights::<W>(), Activation::Relu, &x, &mut scratch, &mut y);
                });
            let bytes = matrix * (1.0 + 2.0 * active);
            let name = format!("sparse {percent:.0} % zeros");
            let sparse = share::bench(&mut group, name, bytes as u64, limit, || {
                turn += 1;
                ffn_sparse(&team, layers[turn % LAYERS].weights::<W>(), &x, &mut scratch, &mut y);
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
