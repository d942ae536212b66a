//! Tokens on their way through the blocks: the model, in the kernels of the CPU.

use super::Way;
use crate::kv_cache::KvCache;
use crate::matrix::{Matrix, OneToken};
use crate::weights::LayerWeights;
use crate::{LayerDensity, Prefill};
use kernels::activation::gated_activation;
use kernels::attention::AttentionShape;
use kernels::elementwise::axpy;
use kernels::reduce::count_positive;
use kernels::rms_norm::rms_norm;
use kernels::rope::{RopeShape, Rotation, rope};
use kernels::sparse::{FfnScratch, Filtered};
use kernels::{Beta, Team};
use model::{Config, PsiAt, attention_scale};
use std::time::{Duration, Instant};

/// The tokens at positions `position .. position + n` on their way through the blocks.
#[derive(Clone, Copy)]
pub(super) struct Pass<'a> {
    pub(super) team: &'a Team,
    pub(super) config: &'a Config,
    pub(super) prefill: Prefill,
    /// Below which share of active neurons the prompt's FFN runs sparse, if it may.
    pub(super) sparse_below: Option<f32>,
    /// `[context, D / 2]`.
    pub(super) cos: &'a [f32],
    pub(super) sin: &'a [f32],
    /// Of the first of them.
    pub(super) psi: PsiAt,
    pub(super) position: usize,
    pub(super) n: usize,
}

impl Pass<'_> {
    /// The last of the tokens alone, with its residual stream and its norm.
    pub(super) fn of_last(self, a: &mut Activations) -> Self {
        let (before, c) = (self.n - 1, self.config.d_model);
        for buffer in [&mut a.x, &mut a.normed] {
            buffer.copy_within(before * c.., 0);
        }
        a.resize(self.config, 1);
        let psi = PsiAt { first_token: self.psi.first_token + before as u32, ..self.psi };
        Pass { psi, position: self.position + before, n: 1, ..self }
    }

    /// `z = norm(x)`; the new keys `rope(W_k z)` and values `W_v z` join K and V in the cache. Of one token, the queries `W_q z` too.
    pub(super) fn keys_and_values(&self, layer: usize, w: &LayerWeights, cache: &mut KvCache, a: &mut Activations) {
        rms_norm(self.team, &a.x, &w.input_layernorm, self.config.norm_eps, &mut a.normed, &mut a.inv_rms);
        let ([q, _], [k, k_rotated]) = (&mut a.q, &mut a.k);
        if self.n == 1 {
            Matrix::gemv_each([&w.q_proj, &w.k_proj, &w.v_proj], self.team, &a.normed, [q, k, &mut a.v]);
        } else {
            self.project_both(&a.normed, [&w.k_proj, &w.v_proj], [k, &mut a.v]);
        }
        self.rotate(k, self.config.n_kv_heads, k_rotated);
        cache.write(self.team, layer, k_rotated, &a.v);
    }

    /// `x += W_o softmax(rope(Q) rope(K)^T / sqrt(D)) V` with the queries `Q = W_q z`, and the z, K and V of
    /// [`keys_and_values`](Pass::keys_and_values).
    pub(super) fn attention(&self, layer: usize, w: &LayerWeights, cache: &KvCache, a: &mut Activations) {
        let (config, n) = (self.config, self.n);
        let [q, q_rotated] = &mut a.q;
        self.rotate(q, config.n_heads, q_rotated);

        let shape = AttentionShape {
            batch: 1,
            q_len: n,
            kv_len: self.position + n,
            n_heads: config.n_heads,
            n_kv_heads: config.n_kv_heads,
            head_dim: config.head_dim,
        };
        let scale = attention_scale(config.head_dim);
        cache.attention(self.team, layer, (shape, scale), q_rotated, q, &mut a.lse);
        self.project_add(q, &w.o_proj, &mut a.x, &mut a.y);
    }

    /// `x += W2 (psi(W1 z) * (W3 z))` with `z = norm(x)`, for several tokens. Returns what was counted.
    pub(super) fn ffn(&self, layer: usize, w: &LayerWeights, a: &mut Activations) -> LayerDensity {
        rms_norm(self.team, &a.x, &w.post_attention_layernorm, self.config.norm_eps, &mut a.normed, &mut a.inv_rms);
        let mut counted = LayerDensity::default();
        if let Some(break_even) = self.sparse_below {
            self.project(&a.normed, &w.ffn.gate_proj, &mut a.g);
            a.counts.fill(0);
            count_positive(self.team, &a.g, &mut a.counts);
            let (neurons, tokens) = (a.g.len() as u64, self.n as u64);
            counted = LayerDensity { neurons, tokens, gate_rows: neurons, steps: 1, ..counted };
            counted.active = a.counts.iter().map(|&count| u64::from(count)).sum();
            counted.union = a.counts.iter().filter(|&&count| count > 0).count() as u64;
            if (counted.active as f32) < break_even * neurons as f32 {
                w.ffn.sparse_prompt(self.team, &a.g, self.n, &a.normed, &mut a.x);
                return LayerDensity { sparse_tokens: tokens, ..counted };
            }
            self.project(&a.normed, &w.ffn.up_proj, &mut a.u);
        } else {
            self.project_both(&a.normed, [&w.ffn.gate_proj, &w.ffn.up_proj], [&mut a.g, &mut a.u]);
        }
        gated_activation(self.team, self.psi.layer(layer), &a.g, &a.u, self.config.d_ff, &mut a.h);
        w.ffn.down_proj_t.multiply(self.team, self.prefill, &a.h, Beta::One, &mut a.x);
        counted
    }

    /// The same for one token, in the kernels where sparse equals dense. Returns the numbers of active neurons and of rows of the gate
    /// that were read, and the time of the kernels.
    pub(super) fn ffn_of_one(
        &self,
        layer: usize,
        w: &LayerWeights,
        way: Way,
        a: &mut Activations,
    ) -> (Filtered, Duration) {
        rms_norm(self.team, &a.x, &w.post_attention_layernorm, self.config.norm_eps, &mut a.normed, &mut a.inv_rms);
        let token = OneToken { x: &a.normed, scratch: &mut a.ffn, y: &mut a.y };
        let start = Instant::now();
        let all = |active| Filtered { active, survivors: self.config.d_ff };
        let count = match way {
            Way::Dense => all(w.ffn.dense(self.team, self.psi.layer(layer), token)),
            Way::Sparse => all(w.ffn.sparse(self.team, token)),
            Way::Filtered => w.ffn.filtered(self.team, token),
        };
        let time = start.elapsed();
        axpy(self.team, 1.0, &a.y, &mut a.x);
        (count, time)
    }

    /// `y = x W^T`. Shapes: x `[N, in]`, w `[out, in]`, y `[N, out]`.
    pub(super) fn project(&self, x: &[f32], w: &Matrix, y: &mut [f32]) {
        if self.n == 1 { w.gemv(self.team, x, y) } else { w.multiply_t(self.team, self.prefill, x, Beta::Zero, y) }
    }

    /// [`project`](Pass::project) with each of two W, for several tokens.
    fn project_both(&self, x: &[f32], w: [&Matrix; 2], y: [&mut [f32]; 2]) {
        Matrix::multiply_both_t(w, self.team, self.prefill, x, y);
    }

    /// `residual += x W^T`. Shapes: x `[N, in]`, w `[C, in]`, residual `[N, C]`; y `[C]` is overwritten.
    fn project_add(&self, x: &[f32], w: &Matrix, residual: &mut [f32], y: &mut [f32]) {
        if self.n == 1 {
            w.gemv(self.team, x, y);
            axpy(self.team, 1.0, y, residual);
        } else {
            w.multiply_t(self.team, self.prefill, x, Beta::One, residual);
        }
    }

    /// `y = rope(x)`. Shapes: both `[N, n_heads, D]`.
    fn rotate(&self, x: &[f32], n_heads: usize, y: &mut [f32]) {
        let head_dim = self.config.head_dim;
        let shape = RopeShape { n_heads, head_dim, seq_len: self.n, first_position: self.position };
        rope(self.team, x, self.cos, self.sin, shape, Rotation::Forward, y);
    }
}

/// What a pass of n tokens through the blocks leaves behind, kept from call to call.
#[derive(Default)]
pub(super) struct Activations {
    /// The residual stream, `[N, C]`.
    pub(super) x: Vec<f32>,
    /// `[N, C]`.
    pub(super) normed: Vec<f32>,
    /// `[N]`.
    pub(super) inv_rms: Vec<f32>,
    /// Queries before and after RoPE, `[N, H D]`; the first also takes the result of attention.
    pub(super) q: [Vec<f32>; 2],
    /// Keys before and after RoPE, `[N, K D]`.
    k: [Vec<f32>; 2],
    /// `[N, K D]`.
    v: Vec<f32>,
    /// Logarithms of the softmax's sums `[H, N]`, which only a backward would read.
    lse: Vec<f32>,
    /// `[N, F]` each, N > 1.
    g: Vec<f32>,
    u: Vec<f32>,
    h: Vec<f32>,
    /// Of the tokens, how many use each neuron, `[F]`.
    counts: Vec<u32>,
    /// A branch's result for one token, `[C]`.
    y: Vec<f32>,
    /// The FFN of one token.
    ffn: FfnScratch,
}

impl Activations {
    /// Sized for n tokens. Takes memory only when n is larger than ever before.
    pub(super) fn resize(&mut self, config: &Config, n: usize) {
        self.counts.resize(config.d_ff, 0);
        let hidden = if n > 1 { n * config.d_ff } else { 0 };
        let ([q_before, q_after], [k_before, k_after]) = (&mut self.q, &mut self.k);
        for (buffer, len) in [
            (&mut self.x, n * config.d_model),
            (&mut self.normed, n * config.d_model),
            (&mut self.inv_rms, n),
            (q_before, n * config.q_width()),
            (q_after, n * config.q_width()),
            (k_before, n * config.kv_width()),
            (k_after, n * config.kv_width()),
            (&mut self.v, n * config.kv_width()),
            (&mut self.lse, n * config.n_heads),
            (&mut self.g, hidden),
            (&mut self.u, hidden),
            (&mut self.h, hidden),
            (&mut self.y, config.d_model),
        ] {
            buffer.resize(len, 0.0);
        }
    }
}
