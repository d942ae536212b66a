//! One query a sequence: the decoding step. Blocks of 64 queries would be one part in 64 full, so this form goes by keys
//! instead, and reads each key and value once for all the query heads that share them.

use super::Inputs;
use super::block::{self, padded};
use super::tile::Product;
use crate::simd::map::spans;
use crate::simd::math::exp;
use crate::simd::{Kernel, Simd};
use crate::team::SharedMut;
use crate::{Beta, Mat, MatMut, Team, Weight, scratch};

/// Keys whose scores exist at a time: 64 rows of V at D = 128 are 32 KiB, which stay in L1 while the heads of a group read
/// them in turn.
const CHUNK: usize = 64;

/// Keys whose scores are summed together: they share the loads of q, and their chains of additions overlap.
const KEYS: usize = 4;

/// One task for each key-value head of each sequence.
pub(super) fn run<W: Weight>(team: &Team, inputs: Inputs<W>, out: &mut [f32], lse: &mut [f32]) {
    let shape = inputs.shape;
    let group = shape.n_heads / shape.n_kv_heads;
    let row = group * shape.head_dim;
    let lse = SharedMut::new(lse);
    team.run_chunks_mut(out, row, |task, out| {
        let (b, kv_head) = (task / shape.n_kv_heads, task % shape.n_kv_heads);
        // SAFETY: one part for each task.
        let lse = unsafe { lse.slice(task * group, group) };
        scratch::with(Decode::<W>::scratch_len(group, shape.head_dim), |scratch| {
            team.level().dispatch(Decode { inputs, b, h: kv_head * group, out, lse, scratch });
        });
    });
}

/// The query heads `h .. h + G` of sequence b: out `[G, D]`, lse `[G]`.
struct Decode<'a, W> {
    inputs: Inputs<'a, W>,
    b: usize,
    h: usize,
    out: &'a mut [f32],
    lse: &'a mut [f32],
    scratch: &'a mut [f32],
}

impl<W> Decode<'_, W> {
    fn scratch_len(group: usize, head_dim: usize) -> usize {
        group * (2 * padded(head_dim) + CHUNK + 2) + CHUNK * padded(head_dim)
    }
}

impl<W: Weight> Kernel for Decode<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Decode { inputs, b, h, .. } = self;
        let shape = inputs.shape;
        let d = shape.head_dim;
        let n = padded(d);
        let group = self.lse.len();

        let (q, scratch) = self.scratch.split_at_mut(group * n); // [G, N], scaled
        let (o, scratch) = scratch.split_at_mut(group * n); // [G, N]
        let (p, scratch) = scratch.split_at_mut(group * CHUNK); // [G, CHUNK]
        let (v, scratch) = scratch.split_at_mut(CHUNK * n); // [keys, N], unless V can be read in place
        let (max, sum) = scratch.split_at_mut(group);
        let q_group = &inputs.q[shape.q_at(b, 0, h)..][..group * d];
        for (src, dst) in q_group.chunks_exact(d).zip(q.chunks_exact_mut(n)) {
            for at in spans(s, d) {
                at.store(s, s.mul(at.load(s, src), s.splat(inputs.scale)), dst);
            }
        }
        o.fill(0.0);
        max.fill(f32::NEG_INFINITY);
        sum[..group].fill(0.0);

        for first_key in (0..shape.kv_len).step_by(CHUNK) {
            let keys = CHUNK.min(shape.kv_len - first_key);
            let k_block = inputs.kv_rows(inputs.k, b, first_key, h, keys);
            for key in (0..keys).step_by(KEYS) {
                // Beyond the last key the last one is read again; what it gives is cut off below.
                let mut k_rows: [&[W]; KEYS] = [&[]; KEYS];
                for (i, k_row) in k_rows.iter_mut().enumerate() {
                    let row = (key + i).min(keys - 1);
                    *k_row = &k_block.data[row * k_block.row_stride..][..d];
                }
                for (q, p) in q.chunks_exact(n).zip(p.chunks_exact_mut(CHUNK)) {
                    p[key..key + KEYS].copy_from_slice(&dots(s, &q[..d], k_rows));
                }
            }

            for g in 0..group {
                let p = &mut p[g * CHUNK..][..keys];
                let new_max = p.iter().fold(max[g], |m, &x| if x > m { x } else { m });
                let mut block_sum = s.splat(0.0);
                for at in spans(s, p.len()) {
                    let e = exp(s, s.sub(at.load(s, p), s.splat(new_max)));
                    at.store(s, e, p);
                    // Loaded again: the lanes beyond a short span count as 0.
                    block_sum = s.add(block_sum, at.load(s, p));
                }
                let rescale = s.reduce_max(exp(s, s.splat(max[g] - new_max)));
                max[g] = new_max;
                sum[g] = sum[g] * rescale + s.reduce_sum(block_sum);

                let o = &mut o[g * n..(g + 1) * n];
                for at in spans(s, n) {
                    at.store(s, s.mul(at.load(s, o), s.splat(rescale)), o);
                }
            }
            let v_rows = match W::as_f32(inputs.v) {
                Some(v) if d == n => inputs.kv_rows(v, b, first_key, h, keys),
                _ => {
                    block::copy_rows(s, inputs.kv_rows(inputs.v, b, first_key, h, keys), 1.0, v);
                    Mat::new(&v[..keys * n], keys, n)
                }
            };
            let p = Mat::strided(p, group, keys, CHUNK, 1);
            s.call(Product { a: p, b: v_rows, beta: Beta::One, c: MatMut::new(o, group, n) });
        }

        for (g, (out, lse)) in self.out.chunks_exact_mut(d).zip(self.lse).enumerate() {
            *lse = max[g] + sum[g].ln();
            let inv_sum = s.splat(1.0 / sum[g]);
            for at in spans(s, d) {
                at.store(s, s.mul(at.load(s, &o[g * n..]), inv_sum), out);
            }
        }
    }
}

/// The dot of q with each key.
#[inline(always)]
fn dots<S: Simd, W: Weight>(s: S, q: &[f32], keys: [&[W]; KEYS]) -> [f32; KEYS] {
    let mut acc = [s.splat(0.0); KEYS];
    for at in spans(s, q.len()) {
        let q = at.load(s, q);
        for (acc, k) in acc.iter_mut().zip(keys) {
            *acc = s.mul_add(q, at.load(s, k), *acc);
        }
    }
    // A loop, not `map`: its closure would be compiled for the baseline.
    let mut sums = [0.0; KEYS];
    for (sum, acc) in sums.iter_mut().zip(acc) {
        *sum = s.reduce_sum(acc);
    }
    sums
}
