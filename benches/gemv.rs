//! GEMV of f32, bf16, q8 and q4 weights against the measured rate of reading memory: `cargo bench --bench gemv`. W is one of as many copies as make 600 MB,
//! each in its turn, so that no cache holds it.

mod share;

use criterion::{Criterion, criterion_group, criterion_main};
use half::bf16;
use kernels::gemv::gemv;
use kernels::quant::{I8Dot, Q4, Q8};
use kernels::testing::uniform;
use kernels::{RowFormat, Team};

/// Rows and columns of W.
const SHAPES: [(usize, usize); 5] = [(256, 256), (768, 768), (2048, 768), (5632, 2048), (11008, 4096)];

fn bench(criterion: &mut Criterion) {
    for team in share::teams() {
        let limit = share::read_limit(&team);
        bench_of::<f32>(criterion, &team, limit);
        bench_of::<bf16>(criterion, &team, limit);
        bench_of::<Q8>(criterion, &team, limit);
        bench_of::<Q4>(criterion, &team, limit);
        bench_of::<I8Dot<8>>(criterion, &team, limit);
        bench_of::<I8Dot<4>>(criterion, &team, limit);
    }
}

fn bench_of<W: RowFormat>(criterion: &mut Criterion, team: &Team, limit: share::Limit) {
    let mut group = criterion.benchmark_group(format!("gemv/{}/{}/{}t", W::NAME, team.level(), team.threads()));
    share::settings(&mut group);
    for (m, k) in SHAPES {
        let (x, mut y) = (uniform(2, k), vec![0.0; m]);
        let units = m * W::row_len(k);
        let bytes = size_of::<W>() * units;
        let copies = 600_000_000usize.div_ceil(bytes);
        let w = share::matrices::<W>(copies, m, k);
        let mut turns = w.elements::<W>().chunks_exact(units).take(copies).cycle();
        share::bench(&mut group, format!("{m}x{k}"), bytes as u64, limit, || {
            gemv(team, turns.next().expect("a cycle has no end"), &x, &mut y)
        });
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
