//! Attention, forward, backward and one decoded token: `cargo bench --bench attention`.
//!
//! Throughput of forward and backward is in flop: `4 D` forward and `10 D` backward for each visible pair of a query and a
//! key, so what is computed and masked away counts as lost; the limit is the level's FMA peak. A decoded token is bound by
//! memory: its throughput is the bytes of K and V, which a cache holds here as after the prompt of one short dialogue, so
//! that a row may go beyond the limit, the rate of reading memory. `KERNELS_SIMD` picks the level.

mod share;

use criterion::{Criterion, criterion_group, criterion_main};
use half::bf16;
use kernels::Beta;
use kernels::attention::{AttentionSaved, AttentionShape, CachedKv, attention, attention_backward, attention_cached};
use kernels::limits::fma_gflops;
use kernels::testing::uniform;
use share::Limit;

/// Training: model S and the 60M preset's heads at its context.
const TRAINING: [AttentionShape; 2] = [
    AttentionShape { batch: 8, q_len: 256, kv_len: 256, n_heads: 8, n_kv_heads: 4, head_dim: 32 },
    AttentionShape { batch: 2, q_len: 512, kv_len: 512, n_heads: 12, n_kv_heads: 4, head_dim: 64 },
];

/// Decoding: the last token of the same contexts, and of a long one.
const DECODING: [AttentionShape; 3] = [
    AttentionShape { batch: 1, q_len: 1, kv_len: 256, n_heads: 8, n_kv_heads: 4, head_dim: 32 },
    AttentionShape { batch: 1, q_len: 1, kv_len: 512, n_heads: 12, n_kv_heads: 4, head_dim: 64 },
    AttentionShape { batch: 1, q_len: 1, kv_len: 4096, n_heads: 16, n_kv_heads: 8, head_dim: 128 },
];

fn name(shape: AttentionShape) -> String {
    let AttentionShape { batch, q_len, kv_len, n_heads, n_kv_heads, head_dim } = shape;
    format!("B{batch} Tq{q_len} Tk{kv_len} H{n_heads} K{n_kv_heads} D{head_dim}")
}

fn training(c: &mut Criterion) {
    for shape in TRAINING {
        let scale = 1.0 / (shape.head_dim as f32).sqrt();
        let (q, d_out) = (uniform(1, shape.q_elements()), uniform(4, shape.q_elements()));
        let (k, v) = (uniform(2, shape.kv_elements()), uniform(3, shape.kv_elements()));
        let (mut out, mut dq) = (vec![0.0; q.len()], vec![0.0; q.len()]);
        let (mut dk, mut dv) = (vec![0.0; k.len()], vec![0.0; v.len()]);
        let mut lse = vec![0.0; shape.lse_elements()];
        let pairs: usize = (0..shape.q_len).map(|t| shape.visible(t)).sum::<usize>() * shape.batch * shape.n_heads;
        for team in share::teams() {
            let limit = Limit { rate: fma_gflops(&team), unit: "GFLOP/s" };
            let mut group =
                c.benchmark_group(format!("attention/{}/{}/{}t", name(shape), team.level(), team.threads()));
            share::settings(&mut group);
            let flop = (pairs * shape.head_dim) as u64;
            share::bench(&mut group, "forward".to_string(), 4 * flop, limit, || {
                attention(&team, shape, scale, &q, &k, &v, &mut out, &mut lse)
            });
            share::bench(&mut group, "backward".to_string(), 10 * flop, limit, || {
                let saved = AttentionSaved { q: &q, k: &k, v: &v, out: &out, lse: &lse };
                attention_backward(&team, shape, scale, saved, &d_out, Beta::Zero, &mut dq, &mut dk, &mut dv)
            });
        }
    }
}

fn decoding(c: &mut Criterion) {
    for shape in DECODING {
        let scale = 1.0 / (shape.head_dim as f32).sqrt();
        let q = uniform(1, shape.q_elements());
        let (k, v) = (uniform(2, shape.kv_elements()), uniform(3, shape.kv_elements()));
        let [k_bf16, v_bf16] = [&k, &v].map(|x| x.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>());
        let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; shape.lse_elements()]);
        for team in share::teams() {
            let limit = share::read_limit(&team);
            let mut group =
                c.benchmark_group(format!("attention/{}/{}/{}t", name(shape), team.level(), team.threads()));
            share::settings(&mut group);
            let bytes = (size_of::<f32>() * (k.len() + v.len())) as u64;
            let capacity = shape.kv_len;
            share::bench(&mut group, "decode".to_string(), bytes, limit, || {
                let cache = CachedKv { k: &k, v: &v, capacity };
                attention_cached(&team, shape, scale, &q, cache, &mut out, &mut lse)
            });
            let limit = share::read_limit(&team);
            share::bench(&mut group, "decode, bf16".to_string(), bytes / 2, limit, || {
                let cache = CachedKv { k: &k_bf16, v: &v_bf16, capacity };
                attention_cached(&team, shape, scale, &q, cache, &mut out, &mut lse)
            });
        }
    }
}

criterion_group!(benches, training, decoding);
criterion_main!(benches);
