//! GEMV against the measured rate of reading memory: `cargo bench --bench gemv`. The small matrices stay in cache and may
//! beat it; the last two are larger than an L3 of 32 MiB.

mod share;

use criterion::{Criterion, criterion_group, criterion_main};
use kernels::gemv::gemv;
use kernels::limits::read_gbs;
use kernels::testing::uniform;
use share::Limit;

/// Rows and columns of W.
const SHAPES: [(usize, usize); 5] = [(256, 256), (768, 768), (2048, 768), (5632, 2048), (11008, 4096)];

fn bench(criterion: &mut Criterion) {
    for team in share::teams() {
        let limit = Limit { rate: read_gbs(&team, 512), unit: "GB/s" };
        let mut group = criterion.benchmark_group(format!("gemv/{}/{}t", team.level(), team.threads()));
        share::settings(&mut group);
        for (m, k) in SHAPES {
            let (w, x, mut y) = (uniform(1, m * k), uniform(2, k), vec![0.0; m]);
            share::bench(&mut group, format!("{m}x{k}"), 4 * (m * k) as u64, limit, || gemv(&team, &w, &x, &mut y));
        }
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
