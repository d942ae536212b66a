//! The memory-bound kernels around the matrix products: `cargo bench --bench elementwise`.
//!
//! Throughput counts the bytes that a kernel must move, each once. The limit is the measured rate of copying, or of reading for
//! the sums. A store that is not preceded by a load makes the cache read its line first; that traffic is not counted, but
//! the limit of a row allows for it. `KERNELS_SIMD` picks the level.

mod share;

use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main, measurement::WallTime};
use kernels::adamw::{AdamW, adamw};
use kernels::philox::{self, philox4x32_lanes};
use kernels::rms_norm::{rms_norm, rms_norm_backward};
use kernels::rope::{RopeShape, Rotation, rope};
use kernels::simd::{Kernel, Simd};
use kernels::testing::uniform;
use kernels::{Beta, Team, elementwise, embedding, reduce};
use share::Limit;
use std::hint::black_box;
use tensor::pool::Block;

/// Tokens (64 MiB for a tensor, beyond an L3), d_model and heads of the paper's 1.5B model, and a vocabulary cut to 128 MiB.
const TOKENS: usize = 8192;
const D_MODEL: usize = 2048;
const N_HEADS: usize = 16;
const VOCAB: usize = 16 * 1024;

/// How many tensors a kernel reads and writes, and how many of the latter it does not read before.
#[derive(Clone, Copy)]
struct Traffic {
    read: usize,
    written: usize,
    fresh: usize,
}

const fn traffic(read: usize, written: usize, fresh: usize) -> Traffic {
    Traffic { read, written, fresh }
}

/// Rows of one team, under its measured limits.
struct Rows<'a> {
    group: BenchmarkGroup<'a, WallTime>,
    /// Of copying, all traffic counted.
    copy_gbs: f64,
    read: Limit,
}

impl Rows<'_> {
    fn row(&mut self, name: &str, Traffic { read, written, fresh }: Traffic, f: impl FnMut()) {
        let limit = if written == 0 {
            self.read
        } else {
            let counted = (read + written) as f64 / (read + written + fresh) as f64;
            Limit { rate: self.copy_gbs * counted, unit: "GB/s" }
        };
        let bytes = 4 * (read + written) * TOKENS * D_MODEL;
        share::bench(&mut self.group, name.to_string(), bytes as u64, limit, f);
    }
}

/// Draws for `column / 8` from 0 on, as the activation makes them: `out.len()` of 16 bits.
struct Draw<'a> {
    token: u32,
    out: &'a mut [u16],
}

impl Kernel for Draw<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (i, out) in self.out.chunks_exact_mut(8 * S::LANES).enumerate() {
            let counter = [(i * S::LANES) as u32, self.token, 0, 0];
            s.store_interleaved4_u16(philox4x32_lanes(s, philox::ROUNDS, counter, [1, 0]), out);
        }
    }
}

fn draw(team: &Team, out: &mut [u16]) {
    team.run_chunks_mut(out, 16 * D_MODEL, |task, out| team.level().dispatch(Draw { token: task as u32, out }));
}

fn elementwise_kernels(c: &mut Criterion) {
    let len = TOKENS * D_MODEL;
    let mut blocks = [1, 2, 3, 4, 5].map(|seed| share::weights::<f32>(seed, len));
    let [a, b, y, m, v] = blocks.each_mut().map(|block| &mut block.elements_mut::<f32>()[..len]);
    v.iter_mut().for_each(|v| *v = v.abs()); // a second moment
    let mut draws = Block::new(4 * len);
    let draws = &mut draws.elements_mut::<u16>()[..2 * len];
    let weight = uniform(3, D_MODEL);
    let (mut inv_rms, mut d_weight) = (vec![1.0; TOKENS], vec![0.0; D_MODEL]);
    let (mut sums, mut counts) = (vec![0.0; D_MODEL], vec![0; D_MODEL]);
    let [table, mut d_table] = [6, 7].map(|seed| share::weights::<f32>(seed, VOCAB * D_MODEL));
    let table = &table.elements::<f32>()[..VOCAB * D_MODEL];
    let d_table = &mut d_table.elements_mut::<f32>()[..VOCAB * D_MODEL];
    let tokens: Vec<u32> = (0..TOKENS as u32).map(|n| n * 7919 % VOCAB as u32).collect();
    let shape = RopeShape { n_heads: N_HEADS, head_dim: D_MODEL / N_HEADS, seq_len: TOKENS, first_position: 0 };
    let angles = uniform(5, TOKENS * shape.head_dim / 2);
    let step = AdamW { lr: 1e-9, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step: 10 };

    for team in &share::teams() {
        let read = share::read_limit(team);
        let copy = share::copy_limit(team);
        let name = format!("elementwise/{TOKENS}x{D_MODEL}/{}/{}t", team.level(), team.threads());
        let mut group = c.benchmark_group(name);
        share::settings(&mut group);
        let mut rows = Rows { group, copy_gbs: copy.rate * 1.5, read };
        let one_to_one = traffic(1, 1, 1);
        rows.row("scale", one_to_one, || elementwise::scale(team, 1.0, a, y));
        rows.row("add", traffic(2, 1, 1), || elementwise::add(team, a, b, y));
        rows.row("exp", one_to_one, || elementwise::exp(team, a, y));
        rows.row("log", one_to_one, || elementwise::log(team, v, y));
        rows.row("sum", traffic(1, 0, 0), || {
            black_box(reduce::sum(team, a));
        });
        rows.row("sum_squares", traffic(1, 0, 0), || {
            black_box(reduce::sum_squares(team, a));
        });
        rows.row("sum_rows", traffic(1, 0, 0), || reduce::sum_rows(team, a, &mut sums));
        rows.row("count_positive", traffic(1, 0, 0), || reduce::count_positive(team, a, &mut counts));
        rows.row("rms_norm", one_to_one, || rms_norm(team, a, &weight, 1e-5, y, &mut inv_rms));
        rows.row("rms_norm_backward", traffic(2, 1, 1), || {
            rms_norm_backward(team, b, a, &weight, &inv_rms, Beta::Zero, y, &mut d_weight)
        });
        rows.row("rope", one_to_one, || rope(team, a, &angles, &angles, shape, Rotation::Forward, y));
        rows.row("adamw", traffic(4, 3, 0), || adamw(team, &step, 1.0, y, b, m, v));
        rows.row("embedding", one_to_one, || embedding::embedding(team, table, &tokens, D_MODEL, y));
        rows.row("embedding_backward", traffic(2, 1, 0), || {
            embedding::embedding_backward(team, a, &tokens, D_MODEL, d_table)
        });
        // As many bytes as a tensor of floats has.
        rows.row("philox4x32", traffic(0, 1, 1), || draw(team, draws));
    }
}

criterion_group!(benches, elementwise_kernels);
criterion_main!(benches);
