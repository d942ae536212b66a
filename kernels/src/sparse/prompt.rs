//! The FFN of a prompt: many tokens, each with its own zeros.

use super::batch::{Ahead, add_rows, multiply_by_dots};
use super::select::{MAX_LANES, select};
use crate::panel::with_sorted;
use crate::row_format::row_bytes;
use crate::simd::map::spans;
use crate::simd::{Kernel, Simd};
use crate::{RowFormat, Team, scratch};
use bytemuck::cast_slice_mut;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Tokens of a task. Each task reads all rows: 64 tokens use a row of which a tenth is active six times, and 512 tokens are 8 tasks.
const TOKENS: usize = 64;

/// Bytes of the rows that all tokens of a task meet before the next ones: half of an L2 cache of 1 MiB, where those on their way and a
/// token's x and sum have room beside them. The more rows, the less often a token's sum comes and goes.
const BLOCK_BYTES: usize = 1 << 19;

/// `y[n, :] += sum_i max(g[n, i], 0) (up_i . x[n, :]) down_t_i` over the i with `g[n, i] > 0`, for each token n of a prompt: up_proj and
/// down_proj of the FFN under RELU, after the gate. Returns how many pairs of token and neuron were active.
///
/// Shapes: up and down_t `[F, C]` in any [`RowFormat`], g `[N, F]`, x and y `[N, C]`.
///
/// Panics if the shapes do not fit. Accuracy: as the f64 sum but for a dot of C terms and a sum of F: `(C + F + 10) 2^-24` times the sum
/// over absolute values, in which `|y|` joins. The bits of a row of y depend on its token alone. Cost: 4 C flop for each active pair, and
/// the rows are read once for every 64 tokens; two products of matrices cost 4 N F C.
#[track_caller]
pub fn ffn_sparse_prompt<W: RowFormat>(
    team: &Team,
    up: &[W],
    down_t: &[W],
    g: &[f32],
    n: usize,
    x: &[f32],
    y: &mut [f32],
) -> usize {
    if n == 0 {
        return 0;
    }
    let (c, d_ff) = (x.len() / n, g.len() / n);
    let fits = x.len() == n * c && g.len() == n * d_ff && up.len() == d_ff * W::row_len(c);
    assert!(
        c > 0 && fits && down_t.len() == up.len() && y.len() == x.len() && u32::try_from(d_ff).is_ok(),
        "ffn_sparse_prompt: up {} and down_t {} units of {} must both be [F, C], g {} [N, F], x {} and y {} both [N, C] for N = {n}",
        up.len(),
        down_t.len(),
        W::NAME,
        g.len(),
        x.len(),
        y.len()
    );
    let active = AtomicUsize::new(0);
    with_sorted::<W, _>(team, x, n, |x| {
        let x_len = x.len() / n;
        team.run_chunks_mut(y, TOKENS * c, |task, y| {
            let (first, n) = (task * TOKENS, y.len() / c);
            let (g, x) = (&g[first * d_ff..][..n * d_ff], &x[first * x_len..][..n * x_len]);
            scratch::with(Task::<W>::memory_len(n, d_ff, c), |memory| {
                let count = W::dispatch(team.level(), Task { up, down_t, g, x, y, n, memory });
                active.fetch_add(count, Ordering::Relaxed);
            });
        });
    });
    active.into_inner()
}

struct Task<'a, W> {
    up: &'a [W],
    down_t: &'a [W],
    g: &'a [f32],
    /// `[N, sorted]`.
    x: &'a [f32],
    y: &'a mut [f32],
    n: usize,
    memory: &'a mut [f32],
}

impl<W: RowFormat> Task<'_, W> {
    /// Rows that all tokens meet before the next ones.
    #[inline(always)]
    fn block(d_ff: usize, row_len: usize) -> usize {
        (BLOCK_BYTES / row_bytes::<W>(row_len)).clamp(8, d_ff.max(8))
    }

    /// Of each token its sum, and of the block at hand its h and the rows that they belong to; then a row of y.
    fn memory_len(n: usize, d_ff: usize, c: usize) -> usize {
        let block = Self::block(d_ff, W::row_len(c));
        n * (W::sum_len(c) + 2 * (block + MAX_LANES)) + c
    }
}

impl<W: RowFormat> Kernel for Task<'_, W> {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> usize {
        let Task { up, down_t, g, x, y, n, memory } = self;
        let (x_len, d_ff, c) = (x.len() / n, g.len() / n, y.len() / n);
        let (row_len, sum_len) = (W::row_len(c), W::sum_len(c));
        let block = Self::block(d_ff, row_len);
        let stride = block + MAX_LANES;
        let (sums, rest) = memory.split_at_mut(n * sum_len);
        let (h, rest) = rest.split_at_mut(n * stride);
        let (rows, in_order) = rest.split_at_mut(n * stride);
        let rows: &mut [u32] = cast_slice_mut(rows);
        let (mut counts, mut active) = ([0; TOKENS], 0);
        sums.fill(0.0);
        for first in (0..d_ff).step_by(block) {
            let len = block.min(d_ff - first);
            for (token, count) in counts[..n].iter_mut().enumerate() {
                let g = &g[token * d_ff + first..][..len];
                let rows = &mut rows[token * stride..][..len + MAX_LANES];
                *count = select(s, g, first as u32, rows);
                for (h, &row) in h[token * stride..].iter_mut().zip(&rows[..*count]) {
                    *h = g[row as usize - first];
                }
                active += *count;
            }
            // All rows: 64 tokens leave out few.
            let mut ahead = Ahead { w: down_t, rows: first as u32..(first + len) as u32, row_len };
            for (token, &count) in counts[..n].iter().enumerate() {
                let (rows, h) = (&rows[token * stride..][..count], &mut h[token * stride..][..count]);
                multiply_by_dots::<S, W, 4>(s, up, rows, &x[token * x_len..][..x_len], &mut ahead, h);
            }
            let next = first + len..d_ff.min(first + len + block);
            let mut ahead = Ahead { w: up, rows: next.start as u32..next.end as u32, row_len };
            for (token, &count) in counts[..n].iter().enumerate() {
                let (rows, h) = (&rows[token * stride..][..count], &h[token * stride..][..count]);
                add_rows::<S, W, 8>(s, down_t, rows, h, &mut ahead, &mut sums[token * sum_len..][..sum_len]);
            }
        }
        for (sum, y) in sums.chunks_exact(sum_len).zip(y.chunks_exact_mut(c)) {
            W::sort_sum(sum, in_order);
            for at in spans(s, c) {
                at.store(s, s.add(at.load(s, y), at.load(s, in_order)), y);
            }
        }
        active
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packed::PackedBf16;
    use crate::quant::{I8Dot, Q4, Q8};
    use crate::reference;
    use crate::testing::{ROUNDING, assert_within, rounded_rows, teams, uniform, widened_rows};
    use half::bf16;

    /// A share of about `density` of g is positive.
    fn gates(len: usize, density: f32) -> Vec<f32> {
        uniform(1, len).into_iter().map(|g| g + 2.0 * density - 1.0).collect()
    }

    fn check<W: RowFormat>(team: &Team, (n, f, c): (usize, usize, usize), density: f32) {
        let (up, down_t) = (rounded_rows::<W>(&uniform(2, f * c), c), rounded_rows::<W>(&uniform(3, f * c), c));
        let (g, x, before) = (gates(n * f, density), uniform(4, n * c), uniform(5, n * c));
        let mut y = before.clone();
        let active = ffn_sparse_prompt(team, &up, &down_t, &g, n, &x, &mut y);
        let what = format!("ffn_sparse_prompt {} {} {}t [{n}, {f}, {c}]", W::NAME, team.level(), team.threads());
        assert_eq!(active, g.iter().filter(|&&g| g > 0.0).count(), "{what}: active");
        let (up, down_t) = (widened_rows(&up, c), widened_rows(&down_t, c));
        for token in 0..n {
            let g = &g[token * f..][..f];
            let (y_ref, abs) = reference::ffn_relu_of_gate(g, &up, &down_t, &x[token * c..][..c]);
            let before = &before[token * c..][..c];
            let expected: Vec<f64> = y_ref.iter().zip(before).map(|(y, &b)| y + b as f64).collect();
            let bound = |i: usize| (c + f + 10) as f64 * ROUNDING * (abs[i] + before[i].abs() as f64);
            assert_within(&what, &y[token * c..][..c], &expected, bound);
        }
    }

    #[test]
    fn ffn_sparse_prompt_matches_reference() {
        for team in teams() {
            for shape in [(0, 3, 5), (1, 1, 1), (3, 33, 17), (70, 40, 129), (130, 300, 20)] {
                for density in [0.0, 0.1, 1.0] {
                    check::<f32>(&team, shape, density);
                    check::<bf16>(&team, shape, density);
                    check::<PackedBf16>(&team, shape, density);
                    check::<Q8>(&team, shape, density);
                    check::<Q4>(&team, shape, density);
                }
            }
            // More than one block of rows.
            check::<f32>(&team, (5, 300, 1030), 0.1);
        }
    }

    #[test]
    fn ffn_sparse_prompt_bits_depend_on_the_token_alone() {
        fn check<W: RowFormat>(team: &Team) {
            let (n, f, c) = (67, 50, 300);
            let (up, down_t) = (rounded_rows::<W>(&uniform(2, f * c), c), rounded_rows::<W>(&uniform(3, f * c), c));
            let (g, x) = (gates(n * f, 0.3), uniform(4, n * c));
            let mut all = vec![0.0; n * c];
            ffn_sparse_prompt(team, &up, &down_t, &g, n, &x, &mut all);
            for token in [0, 63, 64, 66] {
                let mut one = vec![0.0; c];
                let (g, x) = (&g[token * f..][..f], &x[token * c..][..c]);
                ffn_sparse_prompt(&Team::serial(team.level()), &up, &down_t, g, 1, x, &mut one);
                let same = one.iter().zip(&all[token * c..]).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "ffn_sparse_prompt {} {} {}t: token {token}", W::NAME, team.level(), team.threads());
            }
        }
        for team in teams() {
            check::<f32>(&team);
            check::<I8Dot<8>>(&team);
        }
    }

    #[test]
    fn ffn_sparse_prompt_lets_nan_through() {
        let team = Team::serial(crate::Level::best());
        let mut y = [0.0; 2];
        assert_eq!(ffn_sparse_prompt(&team, &[1f32; 4], &[1.0; 4], &[-1.0, f32::NAN], 1, &[1.0; 2], &mut y), 1);
        assert!(y[0].is_nan() && y[1].is_nan(), "{y:?}");
    }

    #[test]
    #[should_panic(
        expected = "ffn_sparse_prompt: up 6 and down_t 4 units of f32 must both be [F, C], g 6 [N, F], x 4 and y 4"
    )]
    fn ffn_sparse_prompt_names_the_shapes_that_do_not_fit() {
        let team = Team::serial(crate::Level::SCALAR);
        ffn_sparse_prompt(&team, &[0f32; 6], &[0.0; 4], &[0.0; 6], 2, &[0.0; 4], &mut [0.0; 4]);
    }
}
