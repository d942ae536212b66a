use super::Inputs;
use super::block::{self, BLOCK, Pair, STRIP, padded};
use crate::simd::map::spans;
use crate::simd::math::exp;
use crate::simd::{Kernel, Simd};
use crate::team::SharedMut;
use crate::{Beta, Mat, Team, Weight, scratch};

/// One task for each block of queries of each head. Neighbours in task order share their K and V (the heads of one
/// key-value head); within a head the longest task goes first, so that the last ones to finish are short.
pub(super) fn run<W: Weight>(team: &Team, inputs: Inputs<W>, out: &mut [f32], lse: &mut [f32]) {
    let shape = inputs.shape;
    let blocks = shape.q_len.div_ceil(BLOCK);
    let scratch_len = Forward::<W>::scratch_len(shape.head_dim);
    let (out, lse) = (SharedMut::new(out), SharedMut::new(lse));
    team.run(shape.batch * shape.n_heads * blocks, |task| {
        let (head_of_all, block) = (task / blocks, blocks - 1 - task % blocks);
        let (b, h) = (head_of_all / shape.n_heads, head_of_all % shape.n_heads);
        scratch::with(scratch_len, |scratch| {
            let (out, lse) = (&out, &lse);
            team.level().dispatch(Forward { inputs, b, h, t: block * BLOCK, out, lse, scratch });
        });
    });
}

/// The queries `t .. t + BLOCK` of head h in sequence b.
struct Forward<'a, W> {
    inputs: Inputs<'a, W>,
    b: usize,
    h: usize,
    t: usize,
    out: &'a SharedMut<'a, f32>,
    lse: &'a SharedMut<'a, f32>,
    scratch: &'a mut [f32],
}

impl<W: Weight> Forward<'_, W> {
    fn scratch_len(head_dim: usize) -> usize {
        let widened_keys = if W::as_f32(&[]).is_some() { 0 } else { padded(head_dim) };
        BLOCK * (head_dim + 2 * padded(head_dim) + widened_keys + BLOCK + 3)
    }
}

impl<W: Weight> Kernel for Forward<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Forward { inputs, b, h, t, .. } = self;
        let shape = inputs.shape;
        let d = shape.head_dim;
        let n = padded(d);
        let rows = BLOCK.min(shape.q_len - t);
        let queries = rows.next_multiple_of(STRIP);

        let (q_t, scratch) = self.scratch.split_at_mut(d * BLOCK); // [D, BLOCK], scaled
        let (s_t, scratch) = scratch.split_at_mut(BLOCK * BLOCK); // scores, then probabilities, [keys, BLOCK]
        let (v, scratch) = scratch.split_at_mut(BLOCK * n); // [keys, N]
        let (o, scratch) = scratch.split_at_mut(BLOCK * n); // [queries, N]
        let (max, scratch) = scratch.split_at_mut(BLOCK);
        let (sum, scratch) = scratch.split_at_mut(BLOCK);
        let (rescale, k) = scratch.split_at_mut(BLOCK); // k: [keys, N], unless K can be read in place

        block::copy_transposed(s, shape.q_rows(inputs.q, b, t, h, rows), inputs.scale, q_t);
        max.fill(f32::NEG_INFINITY);
        sum.fill(0.0);

        let visible = shape.visible(t + rows - 1);
        for first_key in (0..visible).step_by(BLOCK) {
            let keys = BLOCK.min(visible - first_key);
            let pair = Pair { queries, keys, shift: shape.visible(t) as isize - 1 - first_key as isize };
            let k_rows = match W::as_f32(inputs.k) {
                Some(k) => inputs.kv_rows(k, b, first_key, h, keys),
                None => {
                    block::copy_rows(s, inputs.kv_rows(inputs.k, b, first_key, h, keys), 1.0, k);
                    Mat::strided(k, keys, d, n, 1)
                }
            };
            pair.masked_scores(s, k_rows, q_t, s_t);

            for (queries, keys) in pair.query_strips() {
                for at in queries.step_by(S::LANES) {
                    let cells = keys.len() * BLOCK;
                    let old_max = s.load(&max[at..]);
                    let mut new_max = old_max;
                    for row in s_t[..cells].chunks_exact(BLOCK) {
                        new_max = s.max(new_max, s.load(&row[at..]));
                    }
                    let mut block_sum = s.splat(0.0);
                    for row in s_t[..cells].chunks_exact_mut(BLOCK) {
                        let p = exp(s, s.sub(s.load(&row[at..]), new_max));
                        block_sum = s.add(block_sum, p);
                        s.store(p, &mut row[at..]);
                    }
                    let old_scale = exp(s, s.sub(old_max, new_max));
                    s.store(old_scale, &mut rescale[at..]);
                    s.store(new_max, &mut max[at..]);
                    s.store(s.mul_add(s.load(&sum[at..]), old_scale, block_sum), &mut sum[at..]);
                }
            }

            let beta = if first_key == 0 { Beta::Zero } else { Beta::One };
            if beta == Beta::One {
                for (o, &rescale) in o.chunks_exact_mut(n).zip(rescale[..queries].iter()) {
                    // The maximum settles after a few blocks; times 1 changes nothing.
                    if rescale != 1.0 {
                        let rescale = s.splat(rescale);
                        for at in spans(s, n) {
                            at.store(s, s.mul(at.load(s, o), rescale), o);
                        }
                    }
                }
            }
            block::copy_rows(s, inputs.kv_rows(inputs.v, b, first_key, h, keys), 1.0, v);
            pair.add_over_keys(s, s_t, v, n, beta, o);
        }

        // SAFETY: no two tasks have the same block of the same head, nor two rows of `out` the same place.
        let lse = unsafe { self.lse.slice((b * shape.n_heads + h) * shape.q_len + t, rows) };
        for (i, lse) in lse.iter_mut().enumerate() {
            *lse = max[i] + sum[i].ln();
            let inv_sum = s.splat(1.0 / sum[i]);
            // SAFETY: as above.
            let out = unsafe { self.out.slice(shape.q_at(b, t + i, h), d) };
            for at in spans(s, d) {
                at.store(s, s.mul(at.load(s, &o[i * n..(i + 1) * n]), inv_sum), out);
            }
        }
    }
}
