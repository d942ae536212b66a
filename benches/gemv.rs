//! GEMV against the measured rate of reading memory: `cargo bench --bench gemv`. W is one of as many copies as make 600 MB,
//! each in its turn, so that no cache holds it.

mod share;

use criterion::{Criterion, criterion_group, criterion_main};
use kernels::gemv::gemv;
use kernels::testing::uniform;

/// Rows and columns of W.
const SHAPES: [(usize, usize); 5] = [(256, 256), (768, 768), (2048, 768), (5632, 2048), (11008, 4096)];

fn bench(criterion: &mut Criterion) {
    for team in share::teams() {
        let limit = share::read_limit(&team);
        let mut group = criterion.benchmark_group(format!("gemv/{}/{}t", team.level(), team.threads()));
        share::settings(&mut group);
        for (m, k) in SHAPES {
            let (x, mut y) = (uniform(2, k), vec![0.0; m]);
            let copies = 600_000_000usize.div_ceil(4 * m * k);
            let w = share::weights(1, copies * m * k);
            let mut turns = w.elements::<f32>().chunks_exact(m * k).take(copies).cycle();
            share::bench(&mut group, format!("{m}x{k}"), 4 * (m * k) as u64, limit, || {
                gemv(&team, turns.next().expect("a cycle has no end"), &x, &mut y)
            });
        }
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
