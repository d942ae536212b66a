//! Several tokens of one sequence at once, by products of matrices: what a prompt and the scoring of a text take. The memory comes from the device's
//! pool, and goes back.

use super::passes::{Model, Prompt, Wanted};
use super::weights::Element;
use crate::sampler::best;
use crate::{Error, Prefill};
use cuda::ops::attention::attention;
use cuda::ops::embedding::embedding;
use cuda::ops::ffn::ffn_dense;
use cuda::ops::gated_activation::gated_activation;
use cuda::ops::gemm::{Mat, gemm};
use cuda::ops::gemm_bf16::gemm_bf16;
use cuda::ops::gemv::{MAX_TOKENS, gemv_batch};
use cuda::ops::kv_append::{Slots, kv_append};
use cuda::ops::rms_norm::rms_norm;
use cuda::ops::softmax_loss::softmax_loss;
use cuda::ops::strided::gather;
use cuda::{Buffer, Slice, SliceMut};
use half::bf16;
use kernels::Beta;
use kernels::attention::AttentionShape;
use model::{Config, PsiAt, attention_scale};

/// Logits that are there at once while a text is scored: 32 MiB.
const ROW_LOGITS: usize = 8 << 20;

impl<W: Element, E: Element> Model<W, E> {
    /// See [`Passes::prompt`](super::passes::Passes::prompt).
    pub fn append_prompt(&mut self, prompt: Prompt, logits: &mut [f32]) -> Result<(), Error> {
        let Some(x) = self.hidden(prompt)? else { return Ok(()) };
        let z = self.norm(&x, &self.weights.norm)?;
        let last = z.as_slice().part(z.len() - self.config.d_model..z.len());
        let mut y = Buffer::stale(z.device(), logits.len())?;
        gemv_batch(self.weights.lm_head(), last, 1, Beta::Zero, y.as_mut())?;
        Ok(y.as_slice().copy_to_host(logits)?)
    }

    /// See [`Passes::log_probs`](super::passes::Passes::log_probs).
    pub fn score_prompt(&mut self, prompt: Prompt, targets: &[u32], log_probs: &mut Vec<f64>) -> Result<(), Error> {
        let (c, v) = (self.config.d_model, self.config.vocab_size);
        let x = self.hidden(prompt)?.expect("all rows are wanted");
        let z = self.norm(&x, &self.weights.norm)?;
        let most_rows = (ROW_LOGITS / v).clamp(1, targets.len());
        for first in (0..targets.len()).step_by(most_rows) {
            let rows = first..targets.len().min(first + most_rows);
            let mut logits = Buffer::stale(z.device(), rows.len() * v)?;
            let part = z.as_slice().part(rows.start * c..rows.end * c);
            self.row_logits(prompt.prefill, part, rows.len(), logits.as_mut())?;
            let targets = Buffer::from_slice(z.device(), &targets[rows.clone()])?;
            let mut losses = Buffer::stale(z.device(), rows.len())?;
            softmax_loss(logits.as_slice(), v, targets.as_slice(), losses.as_mut())?;
            let scored = log_probs.len();
            log_probs.extend(losses.to_vec()?.iter().map(|loss: &f64| -loss));
            if let Some(row) = log_probs[scored..].iter().position(|log_prob| log_prob.is_nan()) {
                let row_logits = logits.as_slice().part(row * v..(row + 1) * v).to_vec()?;
                best(&row_logits, prompt.position() + rows.start + row + 1)?;
            }
        }
        Ok(())
    }

    /// The logits of some rows, `[n, V]`.
    fn row_logits(&self, prefill: Prefill, z: Slice<f32>, n: usize, mut y: SliceMut<f32>) -> Result<(), cuda::Error> {
        let (c, v) = (self.config.d_model, self.config.vocab_size);
        let table = Weight { data: self.weights.lm_head(), rows: v, cols: c, transposed: true };
        if prefill == Prefill::Bf16 || size_of::<W>() == size_of::<f32>() {
            return product(prefill, z, n, table, Beta::Zero, y);
        }
        // A widened copy of the table would be the largest thing on the device: it is read as it is, for eight rows at a time.
        for first in (0..n).step_by(MAX_TOKENS) {
            let last = n.min(first + MAX_TOKENS);
            let to = y.reborrow().part(first * v..last * v);
            gemv_batch(table.data, z.part(first * c..last * c), last - first, Beta::Zero, to)?;
        }
        Ok(())
    }

    /// `y = norm(x)`, row by row.
    fn norm(&self, x: &Buffer<f32>, gain: &Buffer<f32>) -> Result<Buffer<f32>, cuda::Error> {
        let mut y = Buffer::stale(x.device(), x.len())?;
        let mut inv_rms = Buffer::stale(x.device(), x.len() / self.config.d_model)?;
        rms_norm(x.as_slice(), gain.as_slice(), self.config.norm_eps, y.as_mut(), inv_rms.as_mut())?;
        Ok(y)
    }

    /// Brings a prompt's keys and values into the first cache; returns the residual stream of the rows that are wanted, after the last block.
    fn hidden(&mut self, prompt: Prompt) -> Result<Option<Buffer<f32>>, Error> {
        let Prompt { tokens, prefill, mut psi, wanted } = prompt;
        let device = self.weights.norm.device().clone();
        let Config { n_layers, d_model: c, d_ff, n_heads, n_kv_heads, head_dim, .. } = self.config;
        let (q_width, kv_width) = (self.config.q_width(), self.config.kv_width());
        let (mut n, position) = (tokens.len(), prompt.position());
        let kv_len = position + n;
        let stale = |len: usize| Buffer::<f32>::stale(&device, len);

        let positions: Vec<u32> = (0..n as u32).map(|i| psi.first_token + i).collect();
        let (positions, cache) = (Buffer::from_slice(&device, &positions)?, Buffer::zeros(&device, n)?);
        let ids = Buffer::from_slice(&device, tokens)?;
        let mut x = stale(n * c)?;
        embedding(self.weights.embed_tokens.as_slice(), ids.as_slice(), c, x.as_mut())?;
        for layer in 0..n_layers {
            let z = self.norm(&x, &self.weights.layers[layer].input_layernorm)?;
            let w = &self.weights.layers[layer];
            let (mut q, mut k, mut v) = (stale(n * q_width)?, stale(n * kv_width)?, stale(n * kv_width)?);
            for (w, width, y) in
                [(&w.q_proj, q_width, &mut q), (&w.k_proj, kv_width, &mut k), (&w.v_proj, kv_width, &mut v)]
            {
                project(prefill, z.as_slice(), n, w, (width, c), Beta::Zero, y.as_mut())?;
            }
            let slots = Slots { positions: positions.as_slice(), cache: cache.as_slice() };
            let (cos, sin, to) =
                (self.weights.cos.as_slice(), self.weights.sin.as_slice(), self.caches.layer_mut(layer));
            kv_append(self.heads, slots, cos, sin, q.as_mut(), k.as_slice(), v.as_slice(), to)?;

            let mut queries = q.as_slice();
            if layer + 1 == n_layers && wanted != Wanted::All {
                // Nothing reads what the last block makes of the other rows.
                if wanted == Wanted::None {
                    return Ok(None);
                }
                queries = queries.part((n - 1) * q_width..n * q_width);
                let mut last = stale(c)?;
                last.as_mut().copy_from(x.as_slice().part((n - 1) * c..n * c))?;
                psi = PsiAt { first_token: psi.first_token + n as u32 - 1, ..psi };
                (x, n) = (last, 1);
            }
            let held = self.caches.layer(layer);
            let [k, v] = [held.k, held.v].map(|x| by_position(x, held.capacity, [kv_len, n_kv_heads, head_dim]));
            let (mut attended, mut lse) = (stale(n * q_width)?, stale(n * n_heads)?);
            let shape = AttentionShape { batch: 1, q_len: n, kv_len, n_heads, n_kv_heads, head_dim };
            let (scale, k, v) = (attention_scale(head_dim), k?, v?);
            attention(shape, scale, queries, k.as_slice(), v.as_slice(), attended.as_mut(), lse.as_mut())?;
            project(prefill, attended.as_slice(), n, &w.o_proj, (c, q_width), Beta::One, x.as_mut())?;

            let z = self.norm(&x, &self.weights.layers[layer].post_attention_layernorm)?;
            if n == 1 {
                let weights = self.weights.layers[layer].ffn();
                ffn_dense(weights, psi.layer(layer), z.as_slice(), self.step.ffn_scratch(), Beta::One, x.as_mut())?;
                continue;
            }
            let w = &self.weights.layers[layer];
            let (mut g, mut u, mut h) = (stale(n * d_ff)?, stale(n * d_ff)?, stale(n * d_ff)?);
            for (w, y) in [(&w.gate_proj, &mut g), (&w.up_proj, &mut u)] {
                project(prefill, z.as_slice(), n, w, (d_ff, c), Beta::Zero, y.as_mut())?;
            }
            gated_activation(psi.layer(layer), g.as_slice(), u.as_slice(), d_ff, h.as_mut())?;
            let down_t = Weight { data: w.down_proj_t.as_slice(), rows: d_ff, cols: c, transposed: false };
            product(prefill, h.as_slice(), n, down_t, Beta::One, x.as_mut())?;
        }
        Ok(Some(x))
    }
}

/// The first positions of the first of some caches, `[len, K, D]` in f32, from `[K, capacity, D]`.
fn by_position<E: Element>(
    cache: Slice<E>,
    capacity: usize,
    [len, n_kv_heads, head_dim]: [usize; 3],
) -> Result<Buffer<f32>, cuda::Error> {
    let mut rows = Buffer::<E>::stale(cache.device(), len * n_kv_heads * head_dim)?;
    gather(cache, &[len, n_kv_heads, head_dim], &[head_dim, capacity * head_dim, 1], rows.as_mut())?;
    let mut wide = Buffer::stale(rows.device(), rows.len())?;
    E::in_f32(rows.as_slice(), |rows| wide.as_mut().copy_from(rows))?;
    Ok(wide)
}

/// A matrix `[rows, cols]` in memory, or its transpose.
#[derive(Clone, Copy)]
struct Weight<'a, W> {
    data: Slice<'a, W>,
    rows: usize,
    cols: usize,
    transposed: bool,
}

/// `y = x W^T`, or added to y. Shapes: x `[N, in]`, w `[out, in]` (the pair), y `[N, out]`.
fn project<W: Element>(
    prefill: Prefill,
    x: Slice<f32>,
    n: usize,
    w: &Buffer<W>,
    (rows, cols): (usize, usize),
    beta: Beta,
    y: SliceMut<f32>,
) -> Result<(), cuda::Error> {
    if n <= MAX_TOKENS {
        return gemv_batch(w.as_slice(), x, n, beta, y);
    }
    product(prefill, x, n, Weight { data: w.as_slice(), rows, cols, transposed: true }, beta, y)
}

/// `y = x W`, or added to y: in f32, or with both operands in bf16, as `prefill` says.
fn product<W: Element>(
    prefill: Prefill,
    x: Slice<f32>,
    n: usize,
    w: Weight<W>,
    beta: Beta,
    y: SliceMut<f32>,
) -> Result<(), cuda::Error> {
    fn mat<T: bytemuck::Pod>(w: Slice<'_, T>, (rows, cols, transposed): (usize, usize, bool)) -> Mat<'_, T> {
        let w = Mat::new(w, rows, cols);
        if transposed { w.t() } else { w }
    }
    let (shape, k) = ((w.rows, w.cols, w.transposed), x.len() / n);
    match prefill {
        Prefill::Bf16 => <f32 as Element>::in_bf16(x, |x: Slice<bf16>| {
            W::in_bf16(w.data, |w| gemm_bf16(Mat::new(x, n, k), mat(w, shape), beta, y))
        }),
        Prefill::Exact | Prefill::Q8 => W::in_f32(w.data, |w| gemm(Mat::new(x, n, k), mat(w, shape), beta, y)),
    }
}
