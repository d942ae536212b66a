//! A token each of several sequences, which share every pass over the weights.

use super::{CpuEngine, Way};
use crate::kv_cache::KvCache;
use crate::matrix::Tokens;
use crate::weights::LayerWeights;
use crate::{Error, LayerDensity};
use kernels::attention::AttentionShape;
use kernels::elementwise::axpy;
use kernels::rms_norm::rms_norm;
use kernels::rope::{RopeShape, Rotation, rope};
use kernels::sparse::{BatchCounts, FfnScratch};
use kernels::{Activation, Beta, Team};
use model::{Config, PsiAt, attention_scale};
use std::time::{Duration, Instant};

/// A sequence beside the engine's own.
struct Branch {
    cache: KvCache,
    sample: u32,
    /// Whether it was forked since branches were dropped last.
    live: bool,
}

/// The branches, and what a step leaves behind, kept from step to step. Rows are those of the tokens, in their order.
#[derive(Default)]
pub(super) struct Batch {
    branches: Vec<Branch>,
    tokens: Vec<u32>,
    /// The residual stream, `[B, C]`.
    x: Vec<f32>,
    /// `[B, C]`.
    normed: Vec<f32>,
    /// `[B]`.
    inv_rms: Vec<f32>,
    /// Queries before and after RoPE, `[B, H D]`; the first also takes the result of attention.
    q: [Vec<f32>; 2],
    /// Keys before RoPE, and values, `[B, K D]`.
    k: Vec<f32>,
    v: Vec<f32>,
    /// Keys of one token after RoPE, `[K D]`.
    k_rotated: Vec<f32>,
    /// `[H]`, which only a backward would read.
    lse: Vec<f32>,
    /// A branch's result, `[B, C]`.
    y: Vec<f32>,
    /// The psi of each token in the layer at hand.
    activations: Vec<Activation>,
    ffn: FfnScratch,
    /// `[B, V]`.
    logits: Vec<f32>,
}

impl Batch {
    pub fn drop_branches(&mut self) {
        self.branches.iter_mut().for_each(|branch| branch.live = false);
    }

    fn resize(&mut self, config: &Config, b: usize) {
        let [q_before, q_after] = &mut self.q;
        for (buffer, len) in [
            (&mut self.x, b * config.d_model),
            (&mut self.normed, b * config.d_model),
            (&mut self.inv_rms, b),
            (q_before, b * config.q_width()),
            (q_after, b * config.q_width()),
            (&mut self.k, b * config.kv_width()),
            (&mut self.v, b * config.kv_width()),
            (&mut self.k_rotated, config.kv_width()),
            (&mut self.lse, config.n_heads),
            (&mut self.y, b * config.d_model),
            (&mut self.logits, b * config.vocab_size),
        ] {
            buffer.resize(len, 0.0);
        }
    }
}

impl CpuEngine {
    pub(super) fn fork_to(&mut self, branch: usize) {
        let CpuEngine { config, options, cache, sample, batch, .. } = self;
        let new = || KvCache::new(config, cache.context(), options);
        while batch.branches.len() <= branch {
            batch.branches.push(Branch { cache: new(), sample: 0, live: false });
        }
        let to = &mut batch.branches[branch];
        to.cache.copy_from(cache);
        (to.sample, to.live) = (*sample, true);
    }

    pub(super) fn check_batch(&self, tokens: &[(usize, u32)]) -> Result<(), Error> {
        assert!(!tokens.is_empty(), "CpuEngine::decode_batch: no tokens");
        for (i, &(branch, token)) in tokens.iter().enumerate() {
            let live = self.batch.branches.get(branch).filter(|branch| branch.live);
            let live = live.unwrap_or_else(|| panic!("CpuEngine::decode_batch: branch {branch} was never forked"));
            let twice = tokens[..i].iter().any(|&(before, _)| before == branch);
            assert!(!twice, "CpuEngine::decode_batch: branch {branch} is named twice");
            self.check(&live.cache, &[token])?;
        }
        Ok(())
    }

    /// Appends tokens that passed [`check_batch`](CpuEngine::check_batch); returns the logits.
    pub(super) fn append_batch(&mut self, tokens: &[(usize, u32)]) -> &[f32] {
        let CpuEngine { config, options, team, weights, batch, density, recent, ffn_time, .. } = self;
        let n = tokens.len();
        batch.resize(config, n);
        batch.tokens.clear();
        batch.tokens.extend(tokens.iter().map(|&(_, token)| token));
        for &(branch, _) in tokens {
            batch.branches[branch].cache.reserve(1);
        }
        let step = Step { team, config, cos: &weights.cos, sin: &weights.sin, tokens };
        weights.embed_tokens.embedding(team, &batch.tokens, &mut batch.x);
        for (layer, weights) in weights.layers.iter().enumerate() {
            step.attention(layer, weights, batch);
            batch.activations.clear();
            batch.activations.extend(tokens.iter().map(|&(branch, _)| {
                let Branch { cache, sample, .. } = &batch.branches[branch];
                let first_token = cache.len() as u32;
                PsiAt { psi: options.psi, seed: options.seed, first_token, step: *sample }.layer(layer)
            }));
            let way = Way::of(options, recent[layer], n);
            let (BatchCounts { active, union }, time) = step.ffn(weights, way, batch);
            *ffn_time += time;
            recent[layer].observe(active as f32 / (n * config.d_ff) as f32, None);
            density[layer].add(LayerDensity {
                active: active as u64,
                neurons: (n * config.d_ff) as u64,
                tokens: n as u64,
                steps: 1,
                union: union as u64,
                sparse_tokens: if way == Way::Dense { 0 } else { n as u64 },
                gate_rows: (n * config.d_ff) as u64,
            });
        }
        for &(branch, _) in tokens {
            batch.branches[branch].cache.advance(1);
        }
        rms_norm(team, &batch.x, &weights.norm, config.norm_eps, &mut batch.normed, &mut batch.inv_rms);
        weights.lm_head().gemv_batch(team, &batch.normed, n, Beta::Zero, &mut batch.logits);
        &batch.logits
    }
}

/// The tokens on their way through the blocks.
struct Step<'a> {
    team: &'a Team,
    config: &'a Config,
    /// `[context, D / 2]`.
    cos: &'a [f32],
    sin: &'a [f32],
    /// Branch and token.
    tokens: &'a [(usize, u32)],
}

impl Step<'_> {
    /// `x += W_o softmax(rope(W_q z) rope(K)^T / sqrt(D)) V` with `z = norm(x)`, K and V of each token's own branch.
    fn attention(&self, layer: usize, w: &LayerWeights, batch: &mut Batch) {
        let Step { team, config, tokens, .. } = *self;
        let Batch { branches, x, normed, inv_rms, q: [q, q_rotated], k, v, k_rotated, lse, .. } = batch;
        let n = tokens.len();
        rms_norm(team, x, &w.input_layernorm, config.norm_eps, normed, inv_rms);
        w.q_proj.gemv_batch(team, normed, n, Beta::Zero, q);
        w.k_proj.gemv_batch(team, normed, n, Beta::Zero, k);
        w.v_proj.gemv_batch(team, normed, n, Beta::Zero, v);
        let (q_width, kv_width) = (config.q_width(), config.kv_width());
        for (token, &(branch, _)) in tokens.iter().enumerate() {
            let cache = &mut branches[branch].cache;
            let position = cache.len();
            let of_q = token * q_width..(token + 1) * q_width;
            let of_kv = token * kv_width..(token + 1) * kv_width;
            self.rotate(&k[of_kv.clone()], config.n_kv_heads, position, k_rotated);
            cache.write(team, layer, k_rotated, &v[of_kv]);
            self.rotate(&q[of_q.clone()], config.n_heads, position, &mut q_rotated[of_q.clone()]);
            let shape = AttentionShape {
                batch: 1,
                q_len: 1,
                kv_len: position + 1,
                n_heads: config.n_heads,
                n_kv_heads: config.n_kv_heads,
                head_dim: config.head_dim,
            };
            let scale = attention_scale(config.head_dim);
            cache.attention(team, layer, (shape, scale), &q_rotated[of_q.clone()], &mut q[of_q], lse);
        }
        w.o_proj.gemv_batch(team, q, n, Beta::One, x);
    }

    /// `x += W2 (psi(W1 z) * (W3 z))` with `z = norm(x)`. Returns the time of the kernels too.
    fn ffn(&self, w: &LayerWeights, way: Way, batch: &mut Batch) -> (BatchCounts, Duration) {
        let Step { team, config, tokens, .. } = *self;
        let Batch { x, normed, inv_rms, y, ffn: scratch, activations, .. } = batch;
        rms_norm(team, x, &w.post_attention_layernorm, config.norm_eps, normed, inv_rms);
        let start = Instant::now();
        let tokens = Tokens { n: tokens.len(), x: normed, scratch, y };
        let counts = match way {
            Way::Dense => w.ffn.dense_batch(team, activations, tokens),
            // The filter's test is one token's; the gate is read for all of them anyway.
            Way::Sparse | Way::Filtered => w.ffn.sparse_batch(team, tokens),
        };
        let time = start.elapsed();
        axpy(team, 1.0, y, x);
        (counts, time)
    }

    /// `y = rope(x)` at a position. Shapes: both `[n_heads, D]`.
    fn rotate(&self, x: &[f32], n_heads: usize, position: usize, y: &mut [f32]) {
        let shape = RopeShape { n_heads, head_dim: self.config.head_dim, seq_len: 1, first_position: position };
        rope(self.team, x, self.cos, self.sin, shape, Rotation::Forward, y);
    }
}
