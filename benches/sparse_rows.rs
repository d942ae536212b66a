//! The parts of the sparse FFN, each alone: `cargo bench --bench sparse_rows`.
//!
//! `select_active` reads g; `rows_dot` and `rows_axpy` read one row in ten of W, the active ones, at random places. W is one of as
//! many copies as make 600 MB, each in its turn, so that no cache holds it. The limit is the measured rate of reading memory.

mod share;

use criterion::{Criterion, criterion_group, criterion_main};
use half::bf16;
use kernels::quant::{I8Dot, Q4, Q8};
use kernels::sparse::{rows_axpy, rows_dot, select_active};
use kernels::testing::uniform;
use kernels::{RowFormat, Team};
use share::Limit;

const C: usize = 2048;
const F: usize = 5632;

fn bench(criterion: &mut Criterion) {
    for team in share::teams() {
        let limit = share::read_limit(&team);
        let mut group = criterion.benchmark_group(format!("select_active/{}", team.level()));
        share::settings(&mut group);
        let mut g = share::weights::<f32>(1, 1 << 24);
        let g = &mut g.elements_mut::<f32>()[..1 << 24];
        g.iter_mut().for_each(|g| *g -= 0.8); // a tenth is above 0
        let mut active = Vec::new();
        share::bench(&mut group, format!("{}", g.len()), size_of_val(g) as u64, limit, || {
            select_active(&team, g, &mut active)
        });
        group.finish();
        bench_of::<f32>(criterion, &team, limit);
        bench_of::<bf16>(criterion, &team, limit);
        bench_of::<Q8>(criterion, &team, limit);
        bench_of::<Q4>(criterion, &team, limit);
        bench_of::<I8Dot<8>>(criterion, &team, limit);
        bench_of::<I8Dot<4>>(criterion, &team, limit);
    }
}

fn bench_of<W: RowFormat>(criterion: &mut Criterion, team: &Team, limit: Limit) {
    let mut group = criterion.benchmark_group(format!("sparse_rows/{}/{}/{}t", W::NAME, team.level(), team.threads()));
    share::settings(&mut group);
    let row_bytes = size_of::<W>() * W::row_len(C);
    let copies = 600_000_000usize.div_ceil(row_bytes * F);
    let w = share::matrices::<W>(copies, F, C);
    let mut turns = w.elements::<W>().chunks_exact(F * W::row_len(C)).take(copies).cycle();
    let rows: Vec<u32> = uniform(2, F).iter().zip(0..).filter(|&(&r, _)| r > 0.8).map(|(_, row)| row).collect();
    let bytes = (row_bytes * rows.len()) as u64;
    let (x, h) = (uniform(3, C), uniform(4, rows.len()));
    let (mut out, mut y, mut partial) = (vec![0.0; rows.len()], vec![0.0; C], Vec::new());
    share::bench(&mut group, format!("rows_dot {}x{C}", rows.len()), bytes, limit, || {
        rows_dot(team, turns.next().expect("a cycle has no end"), &rows, &x, &mut out)
    });
    share::bench(&mut group, format!("rows_axpy {}x{C}", rows.len()), bytes, limit, || {
        rows_axpy(team, turns.next().expect("a cycle has no end"), &rows, &h, &mut y, &mut partial)
    });
}

criterion_group!(benches, bench);
criterion_main!(benches);
