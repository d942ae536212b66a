//! GEMM against the measured FMA peak: `cargo bench --bench gemm`. Squares, and the products of a training step with 2048
//! tokens: forward NT (`Y = X W^T`), backward NN (`dX = dY W`) and TN (`dW = dY^T X`).

mod share;

use criterion::{Criterion, criterion_group, criterion_main};
use kernels::gemm::gemm;
use kernels::limits::fma_gflops;
use kernels::{Beta, Mat, MatMut};
use share::Limit;

/// Transposes, M, N, K.
const SHAPES: [(&str, usize, usize, usize); 15] = [
    ("NN", 256, 256, 256),
    ("NN", 512, 512, 512),
    ("NN", 1024, 1024, 1024),
    ("NN", 2048, 2048, 2048),
    ("NN", 4096, 4096, 4096),
    ("NT", 2048, 256, 256),
    ("TN", 256, 256, 2048),
    ("NT", 2048, 768, 256),
    ("TN", 768, 256, 2048),
    ("NT", 2048, 768, 768),
    ("NN", 2048, 768, 768),
    ("TN", 768, 768, 2048),
    ("NT", 2048, 2048, 768),
    ("NN", 2048, 768, 2048),
    ("TN", 2048, 768, 2048),
];

fn bench(criterion: &mut Criterion) {
    for team in share::teams() {
        let limit = Limit { rate: fma_gflops(&team), unit: "GFLOP/s" };
        let mut group = criterion.benchmark_group(format!("gemm/{}/{}t", team.level(), team.threads()));
        share::settings(&mut group);
        for (transposes, m, n, k) in SHAPES {
            // In huge pages, as tensors are.
            let [a, b, mut c] =
                [(1, m * k), (2, k * n), (3, m * n)].map(|(seed, len)| share::weights::<f32>(seed, len));
            let (a, b) = (&a.elements::<f32>()[..m * k], &b.elements::<f32>()[..k * n]);
            let c = &mut c.elements_mut::<f32>()[..m * n];
            let a = if transposes == "TN" { Mat::new(a, k, m).t() } else { Mat::new(a, m, k) };
            let b = if transposes == "NT" { Mat::new(b, n, k).t() } else { Mat::new(b, k, n) };
            let name = format!("{transposes} {m}x{n}x{k}");
            share::bench(&mut group, name, 2 * (m * n * k) as u64, limit, || {
                gemm(&team, a, b, Beta::Zero, MatMut::new(c, m, n))
            });
        }
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
