//! Causal attention with online softmax and grouped key-value heads; never a T x T matrix in memory.

mod backward;
mod block;
mod decode;
mod forward;
mod tile;

use crate::team::SharedMut;
use crate::{Beta, Mat, Team, Weight};

/// Shapes of an attention call: q, out `[B, Tq, H, D]`; k, v `[B, Tk, K, D]`; lse `[B, H, Tq]`.
///
/// Causal with the ends aligned: query t sees keys `0 ..= t + kv_len - q_len`. Training has `kv_len == q_len`; with a
/// cache, `kv_len` counts the cached positions too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// B.
    pub batch: usize,
    /// Tq: queries of a sequence.
    pub q_len: usize,
    /// Tk: keys of a sequence, at least `q_len`.
    pub kv_len: usize,
    /// H.
    pub n_heads: usize,
    /// K; divides H. Query head h reads key-value head `h / (H / K)`.
    pub n_kv_heads: usize,
    /// D.
    pub head_dim: usize,
}

impl AttentionShape {
    /// Elements of q, and of out.
    pub fn q_elements(self) -> usize {
        self.batch * self.q_len * self.n_heads * self.head_dim
    }
    /// Elements of k, and of v.
    pub fn kv_elements(self) -> usize {
        self.batch * self.kv_len * self.n_kv_heads * self.head_dim
    }
    /// Elements of lse.
    pub fn lse_elements(self) -> usize {
        self.batch * self.n_heads * self.q_len
    }
    /// Where the vector of query `(b, t)`, head `h` begins.
    pub fn q_at(self, b: usize, t: usize, h: usize) -> usize {
        ((b * self.q_len + t) * self.n_heads + h) * self.head_dim
    }
    /// Where the key (and the value) at `(b, s)` that query head `h` reads begins.
    pub fn kv_at(self, b: usize, s: usize, h: usize) -> usize {
        ((b * self.kv_len + s) * self.n_kv_heads + h / (self.n_heads / self.n_kv_heads)) * self.head_dim
    }
    /// How many keys query t sees.
    pub fn visible(self, t: usize) -> usize {
        t + 1 + self.kv_len - self.q_len
    }

    /// The vectors of head h at the queries `t .. t + rows` of sequence b: `[rows, D]`.
    fn q_rows(self, q: &[f32], b: usize, t: usize, h: usize, rows: usize) -> Mat<'_> {
        Mat::strided(&q[self.q_at(b, t, h)..], rows, self.head_dim, self.n_heads * self.head_dim, 1)
    }

    /// The keys (or values) that query head h reads at the positions `s .. s + rows` of sequence b: `[rows, D]`.
    fn kv_rows(self, k: &[f32], b: usize, s: usize, h: usize, rows: usize) -> Mat<'_> {
        Mat::strided(&k[self.kv_at(b, s, h)..], rows, self.head_dim, self.n_kv_heads * self.head_dim, 1)
    }

    /// Panics if attention or its backward, `op`, does not take tensors of these lengths, on any device: by name those
    /// that are shaped like q or like k, and lse.
    #[track_caller]
    pub fn check(self, op: &str, like_q: &[(&str, usize)], like_k: &[(&str, usize)], lse: usize) {
        let AttentionShape { batch, q_len, kv_len, n_heads, n_kv_heads, head_dim } = self;
        assert!(
            n_kv_heads > 0 && n_heads.is_multiple_of(n_kv_heads) && n_heads > 0 && head_dim > 0,
            "{op}: {n_heads} query heads of {head_dim} cannot share {n_kv_heads} key-value heads"
        );
        assert!(kv_len >= q_len, "{op}: {q_len} queries for {kv_len} keys; the ends are aligned, so kv_len >= q_len");
        // Checked: were a product to wrap, the parts of different tasks could meet, and a GPU's kernel leave its slices.
        let elements = |shape: &[usize]| shape.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent));
        let fits = |name: &str, len: usize, shape: &[usize]| {
            assert!(elements(shape) == Some(len), "{op}: {name} has {len} elements for {shape:?}");
        };
        like_q.iter().for_each(|&(name, len)| fits(name, len, &[batch, q_len, n_heads, head_dim]));
        like_k.iter().for_each(|&(name, len)| fits(name, len, &[batch, kv_len, n_kv_heads, head_dim]));
        fits("lse", lse, &[batch, n_heads, q_len]);
    }
}

/// `out = softmax(scale Q K^T + causal mask) V`, and `lse`, the logarithm of each softmax's sum, for the backward.
///
/// Shapes as in [`AttentionShape`]; out and lse are overwritten. With `q_len = 1` (a decoded token) another form runs, which
/// reads the keys and values once for all query heads that share them: `infer` calls this same function.
///
/// Panics if a length does not fit, if K does not divide H, or if `kv_len < q_len`. Accuracy: with `E` the largest error of
/// a score, `(D + 5) 2^-24 sum |scale q k|`, and S that sum, a probability is off by a factor within
/// `1 +- (2 E + (8 S + 2 ln Tk + Tk + 10 ceil(Tk / 64) + 12) 2^-24)`; an output adds the bound of a dot of Tk terms. Scores of
/// any finite size are safe. Infinities and NaN are not hidden: in v they may reach up to 15 queries before their
/// position as well, because 0 times NaN is NaN.
///
/// Cost: `4 D` flop for each visible pair; K and V are read once for each block of 64 queries, from cache. No memory beyond
/// a few blocks. Source: Dao et al., arXiv 2205.14135 and 2307.08691 (online softmax in blocks); GQA arXiv 2305.13245.
#[allow(clippy::too_many_arguments)] // the tensors of the formula
#[track_caller]
pub fn attention(
    team: &Team,
    shape: AttentionShape,
    scale: f32,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &mut [f32],
    lse: &mut [f32],
) {
    let (like_q, like_k) = ([("q", q.len()), ("out", out.len())], [("k", k.len()), ("v", v.len())]);
    shape.check("attention", &like_q, &like_k, lse.len());
    let position = shape.n_kv_heads * shape.head_dim;
    let strides = KvStrides { batch: shape.kv_len * position, position, head: shape.head_dim };
    run(team, Inputs { shape, scale, q, k, v, strides }, out, lse);
}

/// Keys and values of a sequence in a cache with room for `capacity` positions: `[K, capacity, D]` each, so that what a head reads is
/// one stretch of memory. `W` is f32 or bf16.
#[derive(Clone, Copy, Debug)]
pub struct CachedKv<'a, W> {
    /// Keys.
    pub k: &'a [W],
    /// Values.
    pub v: &'a [W],
    /// Positions that there is room for.
    pub capacity: usize,
}

/// [`attention`] over the first `kv_len` positions of a cache, of one sequence. The bits are those of `attention` over the same keys and
/// values, widened if they are bf16.
///
/// Panics as `attention`, and if `batch` is not 1 or the capacity is less than `kv_len`. Cost: K and V are read once for each
/// token that is decoded. One thread of a Zen 5, 8 heads of 64 and 3500 positions, from memory: 20 GB/s of f32 and 23 of bf16, where a cache
/// `[capacity, K, D]`, of which a head reads 256 or 128 bytes here and there, gave 14 and 8.
#[track_caller]
pub fn attention_cached<W: Weight>(
    team: &Team,
    shape: AttentionShape,
    scale: f32,
    q: &[f32],
    cache: CachedKv<W>,
    out: &mut [f32],
    lse: &mut [f32],
) {
    let CachedKv { k, v, capacity } = cache;
    let (batch, kv_len) = (shape.batch, shape.kv_len);
    assert!(batch == 1 && kv_len <= capacity, "attention_cached: batch {batch}, {kv_len} positions of {capacity}");
    shape.check("attention_cached", &[("q", q.len()), ("out", out.len())], &[], lse.len());
    let (heads, d) = (shape.n_kv_heads, shape.head_dim);
    let elements = heads.checked_mul(capacity).and_then(|rows| rows.checked_mul(d));
    for (name, len) in [("k", k.len()), ("v", v.len())] {
        assert!(elements == Some(len), "attention_cached: {name} has {len} elements for [{heads}, {capacity}, {d}]");
    }
    let strides = KvStrides { batch: k.len(), position: shape.head_dim, head: capacity * shape.head_dim };
    run(team, Inputs { shape, scale, q, k, v, strides }, out, lse);
}

fn run<W: Weight>(team: &Team, inputs: Inputs<W>, out: &mut [f32], lse: &mut [f32]) {
    if inputs.shape.q_len == 1 {
        decode::run(team, inputs, out, lse);
    } else {
        forward::run(team, inputs, out, lse);
    }
}

/// What the forward reads.
#[derive(Clone, Copy)]
struct Inputs<'a, W> {
    shape: AttentionShape,
    scale: f32,
    q: &'a [f32],
    k: &'a [W],
    v: &'a [W],
    strides: KvStrides,
}

/// Elements from a sequence, position or head of K and V to the next.
#[derive(Clone, Copy)]
struct KvStrides {
    batch: usize,
    position: usize,
    head: usize,
}

impl<W: Weight> Inputs<'_, W> {
    /// The keys (or values) that query head h reads at the positions `s .. s + rows` of sequence b: `[rows, D]`.
    fn kv_rows<'a, X: Weight>(&self, k: &'a [X], b: usize, s: usize, h: usize, rows: usize) -> Mat<'a, X> {
        let AttentionShape { n_heads, n_kv_heads, head_dim, .. } = self.shape;
        let KvStrides { batch, position, head } = self.strides;
        let start = b * batch + s * position + h / (n_heads / n_kv_heads) * head;
        Mat::strided(&k[start..], rows, head_dim, position, 1)
    }
}

/// What the backward of attention reads.
#[derive(Clone, Copy, Debug)]
pub struct AttentionSaved<'a> {
    /// Queries, as given to the forward.
    pub q: &'a [f32],
    /// Keys.
    pub k: &'a [f32],
    /// Values.
    pub v: &'a [f32],
    /// The forward's result.
    pub out: &'a [f32],
    /// The forward's `lse`.
    pub lse: &'a [f32],
}

/// The gradients `dq`, `dk`, `dv` of [`attention`], overwritten or added to as `beta` says.
///
/// With `P = exp(S - lse)`, computed again block by block, and `delta = rowsum(dO * O)`: `dV = P^T dO`, `dP = dO V^T`,
/// `dS = P * (dP - delta)`, `dQ = scale dS K`, `dK = scale dS^T Q`. The gradients of a key-value head are summed over its
/// query heads and blocks of queries in a fixed order: the same bits for any number of threads.
///
/// Shapes as in [`AttentionShape`]: d_out and dq like q, dk and dv like k. Panics as [`attention`] does. Accuracy: that of
/// the probabilities, times the sums of absolute values of the formula. Cost: `10 D` flop for each visible pair; scratch of
/// two matrices `[Tk, D]` for each thread. Tasks are key-value heads, so at most `B K` threads have work.
/// Source: Dao, arXiv 2307.08691, algorithm 2.
#[allow(clippy::too_many_arguments)] // the tensors of the formula
#[track_caller]
pub fn attention_backward(
    team: &Team,
    shape: AttentionShape,
    scale: f32,
    saved: AttentionSaved,
    d_out: &[f32],
    beta: Beta,
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
) {
    let AttentionSaved { q, k, v, out, lse } = saved;
    let like_q = [("q", q.len()), ("out", out.len()), ("d_out", d_out.len()), ("dq", dq.len())];
    let like_k = [("k", k.len()), ("v", v.len()), ("dk", dk.len()), ("dv", dv.len())];
    shape.check("attention_backward", &like_q, &like_k, lse.len());
    let (dq, dk, dv) = (&SharedMut::new(dq), &SharedMut::new(dk), &SharedMut::new(dv));
    backward::run(team, shape, scale, saved, d_out, backward::Gradients { beta, dq, dk, dv });
}

#[cfg(test)]
mod tests;
