//! `silurian bench --device cuda kernels`: each kernel against what limits it.

use super::super::{Report, progress};
use super::clock::{Gpu, Timed, micros, rates};
use super::gemm::{Layout, Operands, Shape};
use crate::table::{Cell, Column, Table};
use cuda::ops::adamw::adamw;
use cuda::ops::attention::{AttentionSaved, attention, attention_backward};
use cuda::ops::attention_cached::{AttentionScratch, CachedKv, Heads, attention_cached};
use cuda::ops::embedding::{embedding, embedding_backward};
use cuda::ops::gated_activation::{gated_activation, gated_activation_backward};
use cuda::ops::gemm::Mat;
use cuda::ops::gemm_gated_activation::{gemm_gated_activation, gemm_gated_activation_backward};
use cuda::ops::gemv::{MAX_TOKENS, gemv, gemv_batch};
use cuda::ops::lm_head_loss::{lm_head_loss, lm_head_loss_backward};
use cuda::ops::rms_norm::{rms_norm, rms_norm_backward};
use cuda::ops::rope::rope;
use cuda::ops::softmax_loss::{softmax_loss, softmax_loss_backward, softmax_loss_backward_bf16};
use cuda::ops::{elementwise, reduce, strided};
use cuda::{Buffer, Error};
use half::bf16;
use kernels::adamw::AdamW;
use kernels::attention::AttentionShape;
use kernels::rope::{RopeShape, Rotation};
use kernels::{Activation, Beta, MaskSite};

const COLUMNS: [Column; 7] = [
    Column::text("kernel", "kernel"),
    Column::text("shape", "shape"),
    Column::spread("micros", "us"),
    Column::text("unit", "unit"),
    Column::spread("rate", "rate"),
    Column::number("limit", "limit"),
    Column::number("percent", "share of it, %"),
];

const METHOD: &str = "Shapes of a training step of 1.5b (decoding: a layer of an 8b model). Data are taken by turns, 512 MiB and more in all, so \
that no cache holds them. GB/s count the bytes that must come from or go to memory, by the table in docs/cuda.md, whose limit is copying in this \
run; TFLOP/s count the operations of the formula (attention: visible pairs alone; its backward 10 D each), whose limit is gemm_bf16 at 8192 cubed in this run. Kernels of \
decoding are replayed from a graph.";

/// The sizes that kernels are measured at.
pub(super) struct Sizes {
    sequences: usize,
    seq_len: usize,
    d_model: usize,
    d_ff: usize,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    vocab: usize,
    /// Elements of what has no shape: elementwise operations, AdamW.
    len: usize,
    /// Of decoding.
    token: TokenSizes,
    /// The square whose rate is the limit.
    square: usize,
}

struct TokenSizes {
    d_model: usize,
    d_ff: usize,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    kv_len: usize,
}

pub(super) const OF_A_CARD: Sizes = Sizes {
    sequences: 4,
    seq_len: 2048,
    d_model: 2048,
    d_ff: 5632,
    n_heads: 16,
    n_kv_heads: 8,
    head_dim: 128,
    vocab: 32_000,
    len: 64 << 20,
    token: TokenSizes { d_model: 4096, d_ff: 14_336, n_heads: 32, n_kv_heads: 8, head_dim: 128, kv_len: 8192 },
    square: 8192,
};

/// What a kernel must do at least.
#[derive(Clone, Copy)]
enum Amount {
    Bytes(usize),
    Operations(usize),
}
use Amount::{Bytes, Operations};

pub(super) fn run(gpu: &Gpu, sizes: &Sizes) -> anyhow::Result<Report> {
    let n = sizes.square;
    let square = Shape { layout: Layout::NT, m: n, n, k: n };
    let product = rates(1e-12 * square.operations(), &super::gemm::measure(gpu, Operands::Bf16, square)?).median;
    let table = Table::new("kernels", "Kernels".to_string(), &COLUMNS);
    let mut rows = Rows { gpu, copy: gpu.copy_gbs()?, product, table };
    rows.elementwise(sizes)?;
    rows.training(sizes)?;
    rows.attention(sizes)?;
    rows.decoding(&sizes.token)?;
    Ok(Report::new(METHOD, vec![rows.table]))
}

/// The table in the making.
struct Rows<'a> {
    gpu: &'a Gpu,
    /// Limits, in GB/s and TFLOP/s.
    copy: f64,
    product: f64,
    table: Table,
}

impl Rows<'_> {
    /// A row: `make` makes a set of data, `work` is a call on it.
    fn time<S>(
        &mut self,
        kernel: &str,
        shape: &str,
        amount: Amount,
        make: impl FnMut() -> Result<S, Error>,
        mut work: impl FnMut(&mut S) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let gpu = self.gpu;
        self.row(kernel, shape, amount, || {
            let mut sets = gpu.rotated(make)?;
            let n = sets.len();
            gpu.seconds(gpu.calls(n, |set| work(&mut sets[set]))?)
        })
    }

    /// The same, replayed from a graph.
    fn time_recorded<S>(
        &mut self,
        kernel: &str,
        shape: &str,
        amount: Amount,
        make: impl FnMut() -> Result<S, Error>,
        mut work: impl FnMut(&mut S) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let gpu = self.gpu;
        self.row(kernel, shape, amount, || {
            let mut sets = gpu.rotated(make)?;
            let timed: Timed = gpu.recorded(sets.len(), |set| work(&mut sets[set]))?;
            gpu.seconds(timed)
        })
    }

    fn row(
        &mut self,
        kernel: &str,
        shape: &str,
        amount: Amount,
        measure: impl FnOnce() -> Result<Vec<f64>, Error>,
    ) -> Result<(), Error> {
        progress(format_args!("{kernel} {shape}"));
        let (unit, scaled, limit) = match amount {
            Bytes(bytes) => ("GB/s", 1e-9 * bytes as f64, self.copy),
            Operations(operations) => ("TFLOP/s", 1e-12 * operations as f64, self.product),
        };
        let seconds = if self.gpu.is_over() { None } else { Some(measure()?) };
        let rate = seconds.as_ref().map(|seconds| rates(scaled, seconds));
        self.table.push(vec![
            kernel.into(),
            shape.into(),
            seconds.map(|seconds| micros(&seconds)).into(),
            unit.into(),
            rate.into(),
            limit.into(),
            Cell::from(rate.map(|rate| 100.0 * rate.median / limit)),
        ]);
        Ok(())
    }

    fn elementwise(&mut self, &Sizes { len, d_model, sequences, seq_len, .. }: &Sizes) -> Result<(), Error> {
        let (gpu, shape) = (self.gpu, format!("[{len}]"));
        let two = || Ok((gpu.random::<f32>(len)?, gpu.random::<f32>(len)?));
        let three = || Ok((gpu.random::<f32>(len)?, gpu.random::<f32>(len)?, gpu.stale::<f32>(len)?));
        let narrow = || Ok((gpu.random::<f32>(len)?, gpu.random::<bf16>(len)?));
        let total = || Ok((gpu.random::<f32>(len)?, gpu.stale::<f64>(1)?));
        self.time("add", &shape, Bytes(12 * len), three, |(a, b, y)| {
            elementwise::add(a.as_slice(), b.as_slice(), y.as_mut())
        })?;
        self.time("axpy", &shape, Bytes(12 * len), two, |(a, y)| elementwise::axpy(0.5, a.as_slice(), y.as_mut()))?;
        self.time("silu", &shape, Bytes(8 * len), two, |(a, y)| elementwise::silu(a.as_slice(), y.as_mut()))?;
        self.time("narrow", &shape, Bytes(6 * len), narrow, |(a, y)| elementwise::narrow(a.as_slice(), y.as_mut()))?;
        self.time("widen", &shape, Bytes(6 * len), narrow, |(y, a)| elementwise::widen(a.as_slice(), y.as_mut()))?;
        self.time("sum", &shape, Bytes(4 * len), total, |(a, y)| reduce::sum(a.as_slice(), Beta::Zero, y.as_mut()))?;
        self.time("sum_squares", &shape, Bytes(4 * len), total, |(a, y)| {
            reduce::sum_squares(a.as_slice(), Beta::Zero, y.as_mut())
        })?;
        let args = AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step: 9 };
        let parameters = || {
            let v = gpu.repeated(&[0.5f32, 0.25], len)?;
            Ok(([gpu.random(len)?, gpu.random(len)?, v], [gpu.random(len)?, gpu.repeated(&[1.0f32], 1)?]))
        };
        self.time("adamw", &shape, Bytes(28 * len), parameters, |([p, m, v], [g, one])| {
            adamw(&args, one.as_slice(), p.as_mut(), g.as_slice(), m.as_mut(), v.as_mut())
        })?;

        let (n, c) = (sequences * seq_len, d_model);
        let shape = format!("[{n}, {c}]");
        let rows = || Ok((gpu.random::<f32>(n * c)?, gpu.random::<f32>(c)?));
        self.time("sum_rows", &shape, Bytes(4 * n * c), rows, |(x, sums)| {
            reduce::sum_rows(x.as_slice(), sums.as_mut())
        })?;
        let words = || Ok((gpu.repeated(&[1u32, 2, 3], n * c)?, gpu.stale::<u32>(n * c)?));
        self.time("gather, transposed", &shape, Bytes(8 * n * c), words, |(x, y)| {
            strided::gather(x.as_slice(), &[c, n], &[1, c], y.as_mut())
        })?;
        let halves = || Ok((gpu.random::<f32>(n * c)?, gpu.random::<f32>(2 * n * c)?));
        self.time("add_to_range", &format!("{shape} into [{n}, {}]", 2 * c), Bytes(12 * n * c), halves, |(x, y)| {
            strided::add_to_range(x.as_slice(), c, 2 * c, y.as_mut())
        })
    }

    fn training(&mut self, sizes: &Sizes) -> Result<(), Error> {
        let &Sizes { sequences, seq_len, d_model: c, d_ff: f, vocab: v, .. } = sizes;
        let (gpu, n) = (self.gpu, sequences * seq_len);
        let site = MaskSite { seed: 1, first_token: 0, layer: 0, stream: 0, step: 0 };
        let act = Activation::stochastic(0.5, site);
        let shape = format!("[{n}, {f}]");
        let three = || Ok((gpu.random::<bf16>(n * f)?, gpu.random::<bf16>(n * f)?, gpu.stale::<bf16>(n * f)?));
        for (name, act) in [("RELU", Activation::Relu), ("SILU", Activation::Silu), ("StochA(0.5)", act)] {
            self.time(&format!("gated_activation bf16 {name}"), &shape, Bytes(6 * n * f), three, |(g, u, h)| {
                gated_activation(act, g.as_slice(), u.as_slice(), f, h.as_mut())
            })?;
        }
        let six = || {
            Ok((
                [gpu.random::<bf16>(n * f)?, gpu.random(n * f)?, gpu.random(n * f)?],
                [gpu.stale::<bf16>(n * f)?, gpu.stale(n * f)?, gpu.stale(n * f)?],
            ))
        };
        self.time(
            "gated_activation_backward bf16 StochA(0.5)",
            &shape,
            Bytes(12 * n * f),
            six,
            |([dh, g, u], [dg, du, h])| {
                let to = (dg.as_mut(), du.as_mut(), h.as_mut());
                gated_activation_backward(act, 0.0, dh.as_slice(), g.as_slice(), u.as_slice(), f, to.0, to.1, to.2)
            },
        )?;

        let name = format!("[{n}, {c}] x [{c}, {f}]");
        let fused = || {
            let from = [gpu.random::<bf16>(n * c)?, gpu.random(f * c)?, gpu.random(f * c)?];
            Ok((from, [gpu.stale::<bf16>(n * f)?, gpu.stale(n * f)?, gpu.stale(n * f)?]))
        };
        let operations = Operations(4 * n * f * c);
        self.time("gemm_gated_activation StochA(0.5)", &name, operations, fused, |([x, gate, up], [g, u, h])| {
            let (gate, up) = (Mat::new(gate.as_slice(), f, c), Mat::new(up.as_slice(), f, c));
            gemm_gated_activation(act, Mat::new(x.as_slice(), n, c), gate, up, g.as_mut(), u.as_mut(), h.as_mut())
        })?;
        let fused = || {
            let from = [gpu.random::<bf16>(n * c)?, gpu.random(c * f)?, gpu.random(n * f)?, gpu.random(n * f)?];
            Ok((from, [gpu.stale::<bf16>(n * f)?, gpu.stale(n * f)?, gpu.stale(n * f)?]))
        };
        let operations = Operations(2 * n * f * c);
        self.time("gemm_gated_activation_backward StochA(0.5)", &name, operations, fused, |([dy, down, g, u], to)| {
            let (dy, down) = (Mat::new(dy.as_slice(), n, c), Mat::new(down.as_slice(), c, f));
            let [dg, du, h] = to.each_mut().map(Buffer::as_mut);
            gemm_gated_activation_backward(act, 0.0, dy, down, g.as_slice(), u.as_slice(), dg, du, h)
        })?;

        let shape = format!("[{n}, {c}]");
        let norm =
            || Ok((gpu.random::<f32>(n * c)?, gpu.random::<f32>(c)?, gpu.stale::<bf16>(n * c)?, gpu.stale::<f32>(n)?));
        self.time("rms_norm, y in bf16", &shape, Bytes(6 * n * c), norm, |(x, w, y, inv_rms)| {
            rms_norm(x.as_slice(), w.as_slice(), 1e-5, y.as_mut(), inv_rms.as_mut())
        })?;
        let norm = || {
            let inv_rms = gpu.repeated(&[0.5f32], n)?;
            Ok((
                gpu.random::<bf16>(n * c)?,
                [gpu.random::<f32>(n * c)?, gpu.random(c)?, inv_rms, gpu.random(n * c)?, gpu.random(c)?],
            ))
        };
        self.time(
            "rms_norm_backward, dy in bf16",
            &shape,
            Bytes(10 * n * c),
            norm,
            |(dy, [x, w, inv_rms, dx, dw])| {
                let from = (x.as_slice(), w.as_slice(), inv_rms.as_slice());
                rms_norm_backward(dy.as_slice(), from.0, from.1, from.2, Beta::Zero, dx.as_mut(), dw.as_mut())
            },
        )?;
        let tokens: Vec<u32> = (0..n).map(|i| (i * 7919 % v) as u32).collect();
        let rows = || Ok((gpu.random::<f32>(v * c)?, gpu.repeated(&tokens, n)?, gpu.random::<f32>(n * c)?));
        self.time("embedding", &shape, Bytes(8 * n * c), rows, |(table, tokens, y)| {
            embedding(table.as_slice(), tokens.as_slice(), c, y.as_mut())
        })?;
        self.time("embedding_backward", &shape, Bytes(12 * n * c), rows, |(table, tokens, dy)| {
            embedding_backward(dy.as_slice(), tokens.as_slice(), c, table.as_mut())
        })?;

        let shape = format!("[{n}, {v}]");
        let logits = || Ok((gpu.random::<f32>(n * v)?, gpu.repeated(&tokens, n)?, gpu.stale::<f64>(n)?));
        self.time("softmax_loss", &shape, Bytes(4 * n * v), logits, |(z, targets, losses)| {
            softmax_loss(z.as_slice(), v, targets.as_slice(), losses.as_mut())
        })?;
        self.time("softmax_loss_backward", &shape, Bytes(8 * n * v), logits, |(z, targets, losses)| {
            softmax_loss_backward(z.as_mut(), v, targets.as_slice(), 1.0, losses.as_mut())
        })?;
        let logits = || {
            Ok((gpu.random::<f32>(n * v)?, gpu.stale::<bf16>(n * v)?, gpu.repeated(&tokens, n)?, gpu.stale::<f64>(n)?))
        };
        self.time(
            "softmax_loss_backward, dz in bf16",
            &shape,
            Bytes(6 * n * v),
            logits,
            |(z, dz, targets, losses)| {
                softmax_loss_backward_bf16(z.as_slice(), v, targets.as_slice(), 1.0, dz.as_mut(), losses.as_mut())
            },
        )?;
        // In f32, a quarter of the tokens: these products are slow.
        let n = n.div_ceil(4);
        let shape = format!("[{n}, {c}] x [{c}, {v}]");
        let head = || {
            Ok((
                [gpu.random::<f32>(n * c)?, gpu.random(v * c)?, gpu.stale(n * c)?, gpu.random(v * c)?],
                gpu.repeated(&tokens, n)?,
                gpu.stale::<f64>(1)?,
            ))
        };
        self.time("lm_head_loss f32", &shape, Operations(2 * n * v * c), head, |([x, w, ..], targets, loss)| {
            lm_head_loss(x.as_slice(), w.as_slice(), targets.as_slice(), c, loss.as_mut())
        })?;
        self.time(
            "lm_head_loss_backward f32",
            &shape,
            Operations(6 * n * v * c),
            head,
            |([x, w, dx, dw], targets, loss)| {
                let to = (dx.as_mut(), dw.as_mut(), loss.as_mut());
                lm_head_loss_backward(
                    x.as_slice(),
                    w.as_slice(),
                    targets.as_slice(),
                    c,
                    1.0,
                    to.0,
                    Beta::One,
                    to.1,
                    to.2,
                )
            },
        )
    }

    fn attention(&mut self, sizes: &Sizes) -> Result<(), Error> {
        let &Sizes { sequences: batch, seq_len, n_heads, n_kv_heads, head_dim, .. } = sizes;
        let gpu = self.gpu;
        let rope_shape = RopeShape { n_heads, head_dim, seq_len, first_position: 0 };
        let q_len = batch * seq_len * n_heads * head_dim;
        let turned = || {
            Ok((
                [gpu.random::<bf16>(q_len)?, gpu.stale(q_len)?],
                [gpu.random::<f32>(seq_len * head_dim / 2)?, gpu.random(seq_len * head_dim / 2)?],
            ))
        };
        let name = format!("[{batch}, {seq_len}, {n_heads}, {head_dim}]");
        self.time("rope bf16", &name, Bytes(4 * q_len), turned, |([x, y], [cos, sin])| {
            rope(x.as_slice(), cos.as_slice(), sin.as_slice(), rope_shape, Rotation::Forward, y.as_mut())
        })?;

        let shape = AttentionShape { batch, q_len: seq_len, kv_len: seq_len, n_heads, n_kv_heads, head_dim };
        let name = format!("{name}, {n_kv_heads} key-value heads");
        let pairs = batch * n_heads * seq_len * (seq_len + 1) / 2;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let (q_len, kv_len, lse_len) = (shape.q_elements(), shape.kv_elements(), shape.lse_elements());
        type Set = ([Buffer<bf16>; 8], Buffer<f32>);
        let make = || -> Result<Set, Error> {
            let (like_q, like_kv) = (|| gpu.random::<bf16>(q_len), || gpu.random::<bf16>(kv_len));
            // q k v out d_out dq dk dv
            let tensors = [like_q()?, like_kv()?, like_kv()?, like_q()?, like_q()?, like_q()?, like_kv()?, like_kv()?];
            Ok((tensors, gpu.repeated(&[10.0f32], lse_len)?))
        };
        self.time(
            "attention bf16",
            &name,
            Operations(4 * head_dim * pairs),
            make,
            |([q, k, v, out, ..], lse): &mut Set| {
                attention(shape, scale, q.as_slice(), k.as_slice(), v.as_slice(), out.as_mut(), lse.as_mut())
            },
        )?;
        self.time(
            "attention_backward bf16",
            &name,
            Operations(10 * head_dim * pairs),
            make,
            |(tensors, lse): &mut Set| {
                let [q, k, v, out, d_out, dq, dk, dv] = tensors;
                let (q, k, v, out, lse) = (q.as_slice(), k.as_slice(), v.as_slice(), out.as_slice(), lse.as_slice());
                let saved = AttentionSaved { q, k, v, out, lse };
                attention_backward(
                    shape,
                    scale,
                    saved,
                    d_out.as_slice(),
                    Beta::Zero,
                    dq.as_mut(),
                    dk.as_mut(),
                    dv.as_mut(),
                )
            },
        )
    }

    fn decoding(&mut self, sizes: &TokenSizes) -> Result<(), Error> {
        let &TokenSizes { d_model: c, d_ff: f, n_heads, n_kv_heads, head_dim, kv_len } = sizes;
        let gpu = self.gpu;
        for (m, k) in [(c, c), (f, c)] {
            let matrix = || Ok((gpu.random::<bf16>(m * k)?, gpu.random::<f32>(k)?, gpu.stale::<f32>(m)?));
            self.time_recorded("gemv bf16", &format!("[{m}, {k}]"), Bytes(2 * m * k), matrix, |(w, x, y)| {
                gemv(w.as_slice(), x.as_slice(), y.as_mut())
            })?;
        }
        for tokens in [2, 4, MAX_TOKENS] {
            let (m, k) = (f, c);
            let matrix =
                || Ok((gpu.random::<bf16>(m * k)?, gpu.random::<f32>(tokens * k)?, gpu.stale::<f32>(tokens * m)?));
            let name = format!("[{m}, {k}], {tokens} tokens");
            self.time_recorded("gemv_batch bf16", &name, Bytes(2 * m * k), matrix, |(w, x, y)| {
                gemv_batch(w.as_slice(), x.as_slice(), tokens, Beta::Zero, y.as_mut())
            })?;
        }
        let heads = Heads { n_heads, n_kv_heads, head_dim };
        let cache_len = n_kv_heads * kv_len * head_dim;
        let make = || {
            let scratch = AttentionScratch::new(&gpu.device, heads, kv_len)?;
            let rows = [gpu.random::<f32>(n_heads * head_dim)?, gpu.stale(n_heads * head_dim)?, gpu.stale(n_heads)?];
            let length = gpu.repeated(&[kv_len as u32], 1)?;
            Ok(([gpu.random::<bf16>(cache_len)?, gpu.random(cache_len)?], rows, length, scratch))
        };
        let name = format!("{n_heads} and {n_kv_heads} heads of {head_dim}, {kv_len} positions");
        let bytes = Bytes(4 * cache_len);
        self.time_recorded("attention_cached bf16", &name, bytes, make, |([k, v], [q, out, lse], length, scratch)| {
            let cache = CachedKv { k: k.as_slice(), v: v.as_slice(), capacity: kv_len };
            let (to, lse) = (out.as_mut(), lse.as_mut());
            attention_cached(heads, 0.1, q.as_slice(), cache, length.as_slice(), scratch, to, lse)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_is_measured() {
        let sizes = Sizes {
            sequences: 2,
            seq_len: 6,
            d_model: 32,
            d_ff: 24,
            n_heads: 4,
            n_kv_heads: 2,
            head_dim: 16,
            vocab: 11,
            len: 100,
            token: TokenSizes { d_model: 16, d_ff: 24, n_heads: 4, n_kv_heads: 2, head_dim: 16, kv_len: 20 },
            square: 16,
        };
        let report = run(&Gpu::of_a_test(), &sizes).unwrap();
        let json = report.tables[0].json();
        let rows = json["rows"].as_array().unwrap();
        assert!(rows.len() >= 34, "{}", rows.len());
        for row in rows {
            assert!(row["rate"].as_f64().unwrap() > 0.0 && row["percent"].as_f64().unwrap() > 0.0, "{row}");
        }
    }
}
