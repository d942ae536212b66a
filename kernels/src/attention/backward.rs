use super::block::{self, BLOCK, Pair, STRIP, padded};
use super::{AttentionSaved, AttentionShape};
use crate::simd::map::{dot, spans};
use crate::simd::math::exp;
use crate::simd::{Kernel, Simd};
use crate::team::SharedMut;
use crate::{Beta, Team, scratch};

/// Where the gradients go; the parts of different key-value heads do not meet.
#[derive(Clone, Copy)]
pub(super) struct Gradients<'a> {
    pub beta: Beta,
    pub dq: &'a SharedMut<'a, f32>,
    pub dk: &'a SharedMut<'a, f32>,
    pub dv: &'a SharedMut<'a, f32>,
}

/// One task for each key-value head of each sequence: it owns dk and dv of that head and dq of the query heads that read
/// it, so that nothing is summed across tasks.
pub(super) fn run(
    team: &Team,
    shape: AttentionShape,
    scale: f32,
    saved: AttentionSaved,
    d_out: &[f32],
    gradients: Gradients,
) {
    let scratch_len = Backward::scratch_len(shape);
    team.run(shape.batch * shape.n_kv_heads, |task| {
        let (b, kv_head) = (task / shape.n_kv_heads, task % shape.n_kv_heads);
        scratch::with(scratch_len, |scratch| {
            team.level().dispatch(Backward { shape, scale, saved, d_out, b, kv_head, gradients, scratch });
        });
    });
}

/// All that belongs to one key-value head of sequence b.
struct Backward<'a> {
    shape: AttentionShape,
    scale: f32,
    saved: AttentionSaved<'a>,
    d_out: &'a [f32],
    b: usize,
    kv_head: usize,
    gradients: Gradients<'a>,
    scratch: &'a mut [f32],
}

impl Backward<'_> {
    fn scratch_len(shape: AttentionShape) -> usize {
        let n = padded(shape.head_dim);
        2 * shape.kv_len * n + BLOCK * (2 * shape.head_dim + 4 * n + 2 * BLOCK + 2)
    }
}

impl Kernel for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Backward { shape, scale, saved, b, gradients, .. } = self;
        let d = shape.head_dim;
        let n = padded(d);

        let (dk, scratch) = self.scratch.split_at_mut(shape.kv_len * n); // [Tk, N]
        let (dv, scratch) = scratch.split_at_mut(shape.kv_len * n); // [Tk, N]
        let (q_t, scratch) = scratch.split_at_mut(d * BLOCK); // [D, BLOCK], scaled
        let (d_out_t, scratch) = scratch.split_at_mut(d * BLOCK); // [D, BLOCK]
        let (s_t, scratch) = scratch.split_at_mut(BLOCK * BLOCK); // scores, then probabilities, [keys, BLOCK]
        let (ds_t, scratch) = scratch.split_at_mut(BLOCK * BLOCK); // dP^T, then dS^T, [keys, BLOCK]
        let (q, scratch) = scratch.split_at_mut(BLOCK * n); // [queries, N], scaled
        let (d_out, scratch) = scratch.split_at_mut(BLOCK * n); // [queries, N]
        let (k, scratch) = scratch.split_at_mut(BLOCK * n); // [keys, N]
        let (dq, scratch) = scratch.split_at_mut(BLOCK * n); // [queries, N]
        let (lse, delta) = scratch.split_at_mut(BLOCK);
        dk.fill(0.0);
        dv.fill(0.0);

        let group = shape.n_heads / shape.n_kv_heads;
        for h in self.kv_head * group..(self.kv_head + 1) * group {
            for t in (0..shape.q_len).step_by(BLOCK) {
                let rows = BLOCK.min(shape.q_len - t);
                let queries = rows.next_multiple_of(STRIP);
                let (q_rows, d_out_rows) =
                    (shape.q_rows(saved.q, b, t, h, rows), shape.q_rows(self.d_out, b, t, h, rows));
                block::copy_transposed(s, q_rows, scale, q_t);
                block::copy_transposed(s, d_out_rows, 1.0, d_out_t);
                block::copy_rows(s, q_rows, scale, q);
                block::copy_rows(s, d_out_rows, 1.0, d_out);
                // Beyond the last query all is 0: P is 1, dO is 0, and so is what they add.
                lse.fill(0.0);
                lse[..rows].copy_from_slice(&saved.lse[(b * shape.n_heads + h) * shape.q_len + t..][..rows]);
                delta.fill(0.0);
                for (i, delta) in delta[..rows].iter_mut().enumerate() {
                    let at = shape.q_at(b, t + i, h);
                    *delta = dot(s, &self.d_out[at..at + d], &saved.out[at..at + d]);
                }

                let visible = shape.visible(t + rows - 1);
                for first_key in (0..visible).step_by(BLOCK) {
                    let keys = BLOCK.min(visible - first_key);
                    let pair = Pair { queries, keys, shift: shape.visible(t) as isize - 1 - first_key as isize };
                    let k_rows = shape.kv_rows(saved.k, b, first_key, h, keys);
                    pair.masked_scores(s, k_rows, q_t, s_t);
                    pair.products(s, shape.kv_rows(saved.v, b, first_key, h, keys), d_out_t, ds_t);

                    // P = exp(S - lse); dS = P (dP - delta).
                    for (queries, keys) in pair.query_strips() {
                        let cells = keys.len() * BLOCK;
                        for at in queries.step_by(S::LANES) {
                            let (lse, delta) = (s.load(&lse[at..]), s.load(&delta[at..]));
                            for (p, ds) in s_t[..cells].chunks_exact_mut(BLOCK).zip(ds_t.chunks_exact_mut(BLOCK)) {
                                let (p, ds) = (&mut p[at..], &mut ds[at..]);
                                let p_at = exp(s, s.sub(s.load(p), lse));
                                s.store(p_at, p);
                                s.store(s.mul(p_at, s.sub(s.load(ds), delta)), ds);
                            }
                        }
                    }

                    let dst = first_key * n..(first_key + keys) * n;
                    pair.add_over_queries(s, s_t, d_out, n, &mut dv[dst.clone()]);
                    pair.add_over_queries(s, ds_t, q, n, &mut dk[dst]); // the scale is in q
                    block::copy_rows(s, k_rows, 1.0, k);
                    pair.add_over_keys(s, ds_t, k, n, if first_key == 0 { Beta::Zero } else { Beta::One }, dq);
                }
                for (i, dq) in dq.chunks_exact(n).take(rows).enumerate() {
                    // SAFETY: query head h belongs to this task alone, and the rows do not meet.
                    let dst = unsafe { gradients.dq.slice(shape.q_at(b, t + i, h), d) };
                    write_row(s, &dq[..d], scale, gradients.beta, dst);
                }
            }
        }
        let h = self.kv_head * group;
        for (i, (dk, dv)) in dk.chunks_exact(n).zip(dv.chunks_exact(n)).enumerate() {
            let at = shape.kv_at(b, i, h);
            // SAFETY: this key-value head belongs to this task alone, and the rows do not meet.
            let (dk_dst, dv_dst) = unsafe { (gradients.dk.slice(at, d), gradients.dv.slice(at, d)) };
            write_row(s, &dk[..d], 1.0, gradients.beta, dk_dst);
            write_row(s, &dv[..d], 1.0, gradients.beta, dv_dst);
        }
    }
}

/// `dst (+)= scale * src`.
#[inline(always)]
fn write_row<S: Simd>(s: S, src: &[f32], scale: f32, beta: Beta, dst: &mut [f32]) {
    let scale = s.splat(scale);
    for at in spans(s, src.len()) {
        let value = s.mul(at.load(s, src), scale);
        at.store(s, if beta == Beta::One { s.add(at.load(s, dst), value) } else { value }, dst);
    }
}
