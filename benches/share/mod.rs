//! What the benches share: one row of criterion, followed by the best call's share of a measured limit.

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Throughput};
use kernels::limits;
use kernels::row_format::round_rows;
use kernels::testing::uniform;
use kernels::{Level, RowFormat, Team, Weight};
use std::time::{Duration, Instant};
use tensor::pool::Block;

/// A rate in 1e9 units a second that nothing can beat, and its unit.
#[derive(Clone, Copy)]
pub struct Limit {
    pub rate: f64,
    pub unit: &'static str,
}

/// The team of the level that `KERNELS_SIMD` asks for with one thread, and with all if there are more.
pub fn teams() -> Vec<Team> {
    let level = Level::from_env().unwrap_or_else(|e| panic!("{e}"));
    let all = std::thread::available_parallelism().map_or(1, |n| n.get());
    if all > 1 { vec![Team::new(level, 1), Team::new(level, all)] } else { vec![Team::new(level, 1)] }
}

/// `len` uniform values in huge pages, as the engine keeps its weights.
#[allow(dead_code)] // for the memory-bound benches
pub fn weights<W: Weight>(seed: u64, len: usize) -> Block {
    let mut block = Block::new(size_of::<W>() * len);
    block.elements_mut::<W>().iter_mut().zip(uniform(seed, len)).for_each(|(w, x)| *w = W::round(x));
    block
}

/// `copies` equal matrices `[rows, cols]` of uniform values, in the same way.
#[allow(dead_code)] // for the memory-bound benches
pub fn matrices<W: RowFormat>(copies: usize, rows: usize, cols: usize) -> Block {
    let units = rows * W::row_len(cols);
    let mut block = Block::new(size_of::<W>() * copies * units);
    let matrix = uniform(1, rows * cols);
    for copy in block.elements_mut::<W>().chunks_exact_mut(units).take(copies) {
        round_rows(&Team::current(), &matrix, cols, copy);
    }
    block
}

/// The rate of reading memory in huge pages.
#[allow(dead_code)] // for the memory-bound benches
pub fn read_limit(team: &Team) -> Limit {
    let mut block = Block::new(512 << 20);
    // Pages that were never written are all one page of zeros, which a cache holds.
    block.elements_mut().fill(1.0f32);
    Limit { rate: limits::read_gbs(team, block.elements()), unit: "GB/s" }
}

/// The rate of copying in huge pages: what is read and what is written. 64 MiB, as the tensors of the rows judged by it: a
/// longer pass is interrupted more often on a busy machine, and would be no limit.
#[allow(dead_code)] // for the memory-bound benches
pub fn copy_limit(team: &Team) -> Limit {
    let [mut src, mut dst] = [(); 2].map(|_| Block::new(64 << 20));
    src.elements_mut().fill(1.0f32);
    let rate = limits::copy_gbs(team, src.elements(), dst.elements_mut(), limits::Store::Cached);
    Limit { rate: rate.expect("every CPU has ordinary stores"), unit: "GB/s" }
}

/// Settings of every group: short, because the best of many short calls is what a noisy machine measures best.
pub fn settings(group: &mut BenchmarkGroup<WallTime>) {
    group.sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(800));
}

/// Measures `f`, which does `work` units, and prints the best call in units a second and as a share of `limit`.
/// Returns the seconds of the best call.
pub fn bench(group: &mut BenchmarkGroup<WallTime>, name: String, work: u64, limit: Limit, mut f: impl FnMut()) -> f64 {
    group.throughput(if limit.unit == "GB/s" { Throughput::Bytes(work) } else { Throughput::Elements(work) });
    let mut best = f64::INFINITY;
    group.bench_function(&name, |bencher| {
        bencher.iter_custom(|calls| {
            let start = Instant::now();
            for _ in 0..calls {
                let call = Instant::now();
                f();
                best = best.min(call.elapsed().as_secs_f64());
            }
            start.elapsed()
        })
    });
    if best.is_finite() {
        let rate = work as f64 / best / 1e9;
        println!("{name}: best {rate:.1} {}, {:.0} % of {:.1}\n", limit.unit, 100.0 * rate / limit.rate, limit.rate);
    }
    best
}
