//! The FFN of several tokens at once, each with the bits that it has alone.
//!
//! A chunk of neurons is one task, as for one token. Every row that is needed is read from memory once, and met there by all tokens that
//! need it, some rows at a time, so that the others find them in the L2 cache. Each token keeps the order of its own sums, whatever tokens
//! are beside it: so a sequence has the same bits in any batch.

use super::ffn::{FfnScratch, FfnWeights, ffn_dense, ffn_sparse};
use super::rows_axpy::sum_chunks;
use super::select::{MAX_LANES, select};
use super::{MAX_CHUNK, chunk_len};
use crate::activation::gated_activation_from;
use crate::panel::{Panels, axpys_of_batch, dots_of_batch, with_panels, with_panels_of_sorted, with_sorted};
use crate::row_format::row_bytes;
use crate::simd::{Kernel, Simd};
use crate::{Activation, RowFormat, Team, scratch};
use bytemuck::cast_slice_mut;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What was active in a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchCounts {
    /// Active neurons, summed over the tokens.
    pub active: usize,
    /// Neurons that are active for any of them.
    pub union: usize,
}

/// Counts of tasks.
#[derive(Default)]
struct Counts {
    active: AtomicUsize,
    union: AtomicUsize,
}

impl Counts {
    fn add(&self, counts: BatchCounts) {
        self.active.fetch_add(counts.active, Ordering::Relaxed);
        self.union.fetch_add(counts.union, Ordering::Relaxed);
    }

    fn into_inner(self) -> BatchCounts {
        BatchCounts { active: self.active.into_inner(), union: self.union.into_inner() }
    }
}

/// [`ffn_sparse`](super::ffn_sparse) of each of `n` tokens: the gate is read in full, up and down_t in the rows that are active for any token.
///
/// Shapes: weights `[F, C]`, x and y `[N, C]`.
///
/// Panics if the shapes do not fit. Each row of y is, bit for bit, that of `ffn_sparse` for its row of x. Cost: with a share u of neurons
/// that any token needs, `(1 + 2 u) / 3` of the dense bytes; 2 F C flop for each token's gate and 4 C for each of its active neurons.
/// For independent tokens with a share s of zeros, `u = 1 - s^N`.
#[track_caller]
pub fn ffn_sparse_batch<W: RowFormat>(
    team: &Team,
    weights: FfnWeights<W>,
    n: usize,
    x: &[f32],
    scratch: &mut FfnScratch,
    y: &mut [f32],
) -> BatchCounts {
    let d_ff = d_ff("ffn_sparse_batch", weights, n, x, y);
    if n == 1 {
        let active = ffn_sparse(team, weights, x, scratch, y);
        return BatchCounts { active, union: active };
    }
    let (chunk, row_len) = (chunk_len(d_ff), W::row_len(x.len() / n));
    let counts = Counts::default();
    with_sorted::<W, _>(team, x, n, |x| {
        with_panels_of_sorted::<W, _>(team.level(), x, n, |panels| {
            sum_chunks::<W>(team, d_ff, n, y, &mut scratch.partial, |task, sums| {
                let (first, len) = (task * chunk, chunk.min(d_ff - task * chunk));
                let gate = &weights.gate[first * row_len..][..len * row_len];
                scratch::with(n * len + Lists::len_of(n, len), |memory| {
                    let (g, lists) = memory.split_at_mut(n * len);
                    W::dispatch(team.level(), Dots { w: gate, x: panels, len, out: &mut *g });
                    let lists = Lists::new(n, len, cast_slice_mut(lists));
                    counts.add(W::dispatch(team.level(), SparseChunk { weights, x, first, g, lists, sums }));
                });
            });
        });
    });
    counts.into_inner()
}

/// [`ffn_dense`](super::ffn_dense) of each of several tokens, one for each of `acts`; the token is row 0 of its
/// [`MaskSite`](crate::MaskSite).
///
/// Shapes: weights `[F, C]`, x and y `[N, C]`.
///
/// Panics if the shapes do not fit. Each row of y, and what counts as active, is that of `ffn_dense`, bit for bit. Cost: the weights are
/// read once, 6 N F C flop.
#[track_caller]
pub fn ffn_dense_batch<W: RowFormat>(
    team: &Team,
    weights: FfnWeights<W>,
    acts: &[Activation],
    x: &[f32],
    scratch: &mut FfnScratch,
    y: &mut [f32],
) -> BatchCounts {
    let n = acts.len();
    let d_ff = d_ff("ffn_dense_batch", weights, n, x, y);
    if let [act] = *acts {
        let active = ffn_dense(team, weights, act, x, scratch, y);
        return BatchCounts { active, union: active };
    }
    let (chunk, row_len) = (chunk_len(d_ff), W::row_len(x.len() / n));
    let counts = Counts::default();
    with_panels::<W, _>(team, x, n, |x| {
        sum_chunks::<W>(team, d_ff, n, y, &mut scratch.partial, |task, sums| {
            let (first, len) = (task * chunk, chunk.min(d_ff - task * chunk));
            scratch::with(3 * n * len, |memory| {
                let (g, rest) = memory.split_at_mut(n * len);
                let (u, h) = rest.split_at_mut(n * len);
                let weights = weights.of(first..first + len, row_len);
                W::dispatch(team.level(), Dots { w: weights.gate, x, len, out: &mut *g });
                W::dispatch(team.level(), Dots { w: weights.up, x, len, out: &mut *u });
                for (t, &act) in acts.iter().enumerate() {
                    let part = t * len..(t + 1) * len;
                    gated_activation_from(
                        team.level(),
                        act,
                        first,
                        d_ff,
                        &g[part.clone()],
                        &u[part.clone()],
                        &mut h[part],
                    );
                }
                W::dispatch(team.level(), Axpys { w: weights.down_t, h, n, sums });
                counts.add(count(acts, g, h));
            });
        });
    });
    counts.into_inner()
}

/// F. Panics if the shapes do not fit.
#[track_caller]
fn d_ff<W: RowFormat>(op: &str, weights: FfnWeights<W>, n: usize, x: &[f32], y: &[f32]) -> usize {
    assert!(
        n > 0 && x.len().is_multiple_of(n) && y.len() == x.len(),
        "{op}: x {} and y {} elements for {n} tokens",
        x.len(),
        y.len()
    );
    let c = x.len() / n;
    weights.d_ff(op, &x[..c], &y[..c])
}

/// As [`ffn_dense`](super::ffn_dense) counts. Shapes: g and h `[N, chunk]`.
fn count(acts: &[Activation], g: &[f32], h: &[f32]) -> BatchCounts {
    let len = g.len() / acts.len();
    let active = |token: usize, i: usize| match acts[token] {
        Activation::Relu | Activation::Relu2 => g[token * len + i] > 0.0 || g[token * len + i].is_nan(),
        _ => h[token * len + i] != 0.0,
    };
    let mut counts = BatchCounts::default();
    for i in 0..len {
        let active = (0..acts.len()).filter(|&token| active(token, i)).count();
        counts.active += active;
        counts.union += (active > 0) as usize;
    }
    counts
}

/// Rows that all tokens meet before the next ones: with those that are on their way, half of an L2 cache of 1 MiB.
fn rows_per_block<W>(row_len: usize) -> usize {
    const BYTES: usize = 1 << 18;
    (BYTES / row_bytes::<W>(row_len)).clamp(8, MAX_CHUNK)
}

/// `out[n, i] = dot(w[i, :], x[n, :])`. Shapes: out `[N, rows]`.
struct Dots<'a, W> {
    w: &'a [W],
    x: Panels<'a>,
    len: usize,
    out: &'a mut [f32],
}

impl<W: RowFormat> Kernel for Dots<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Dots { w, x, len, out } = self;
        dots_of_batch(s, w, x, |i, token, dot| out[token * len + i] = dot);
    }
}

/// `sums[n, :] = sum_i h[n, i] * w[i, :]`. Shapes: h `[N, rows]`, sums `[N, sum_len]`.
struct Axpys<'a, W> {
    w: &'a [W],
    h: &'a [f32],
    n: usize,
    sums: &'a mut [f32],
}

impl<W: RowFormat> Kernel for Axpys<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Axpys { w, h, n, sums } = self;
        sums.fill(0.0);
        axpys_of_batch(s, w, h, n, sums);
    }
}

/// For each token, the neurons of a chunk that are active, and their h; and those that are active for any token.
struct Lists<'a> {
    n: usize,
    /// Places of a token: [`MAX_LANES`] more than neurons, for [`select`].
    stride: usize,
    /// `[N, stride]`, ascending.
    rows: &'a mut [u32],
    /// `[N]`: how many there are.
    counts: &'a mut [u32],
    /// `[N]`: how many of them are done.
    done: &'a mut [u32],
    union: [u32; MAX_CHUNK],
}

impl<'a> Lists<'a> {
    /// u32 that lists of `n` tokens and `len` neurons take.
    fn len_of(n: usize, len: usize) -> usize {
        n * (len + MAX_LANES + 2)
    }

    fn new(n: usize, len: usize, memory: &'a mut [u32]) -> Lists<'a> {
        let stride = len + MAX_LANES;
        let (rows, rest) = memory.split_at_mut(n * stride);
        let (counts, done) = rest.split_at_mut(n);
        Lists { n, stride, rows, counts, done, union: [0; MAX_CHUNK] }
    }

    /// Lists the active neurons of `g` `[N, len]`, number `first` and those after it, and brings their g to the front of each row of g.
    #[inline(always)]
    fn fill<S: Simd>(&mut self, s: S, first: usize, g: &mut [f32]) -> BatchCounts {
        let len = g.len() / self.n;
        let mut used = [false; MAX_CHUNK];
        let mut counts = BatchCounts::default();
        for (token, g) in g.chunks_exact_mut(len).enumerate() {
            let rows = &mut self.rows[token * self.stride..][..self.stride];
            let active = select(s, g, first as u32, rows);
            self.counts[token] = active as u32;
            counts.active += active;
            for (j, &row) in rows[..active].iter().enumerate() {
                g[j] = g[row as usize - first];
                used[row as usize - first] = true;
            }
        }
        for (i, &used) in used[..len].iter().enumerate() {
            // Without a branch.
            self.union[counts.union] = (first + i) as u32;
            counts.union += used as usize;
        }
        counts
    }

    /// The places of the token's rows below `end` that are not done, which then are.
    fn next_below(&mut self, token: usize, end: usize) -> Range<usize> {
        let rows = &self.rows[token * self.stride..][..self.counts[token] as usize];
        let from = self.done[token] as usize;
        let n = rows[from..].iter().take_while(|&&row| (row as usize) < end).count();
        self.done[token] = (from + n) as u32;
        from..from + n
    }
}

struct SparseChunk<'a, W> {
    weights: FfnWeights<'a, W>,
    /// `[N, sorted]`.
    x: &'a [f32],
    first: usize,
    /// The gate's dots, `[N, chunk]`; overwritten.
    g: &'a mut [f32],
    lists: Lists<'a>,
    /// `[N, sum_len]`.
    sums: &'a mut [f32],
}

impl<W: RowFormat> Kernel for SparseChunk<'_, W> {
    type Output = BatchCounts;

    /// Up and down go block by block: a token's rows of a block, one token after the other.
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> BatchCounts {
        let SparseChunk { weights, x, first, g, mut lists, sums } = self;
        let n = lists.n;
        let (x_len, len, sum_len) = (x.len() / n, g.len() / n, sums.len() / n);
        let counts = lists.fill(s, first, g);
        let union = lists.union;
        let union = &union[..counts.union];

        let row_len = W::row_len_for(&x[..x_len]);
        let block = rows_per_block::<W>(row_len);
        let blocks = len.div_ceil(block);
        for phase in [Phase::Up, Phase::Down] {
            lists.done.fill(0);
            let w = if phase == Phase::Up { weights.up } else { weights.down_t };
            if phase == Phase::Down {
                sums.fill(0.0);
            }
            for b in 0..blocks {
                let end = first + (b + 1) * block;
                let below = |row: usize| union.partition_point(|&r| (r as usize) < row);
                let (w_ahead, rows) = match phase {
                    _ if b + 1 < blocks => (w, below(end)..below(end + block)),
                    Phase::Up => (weights.down_t, 0..below(first + block)),
                    Phase::Down => (w, 0..0),
                };
                let mut ahead = Ahead { w: w_ahead, rows: union[rows].iter().copied(), row_len };
                for token in 0..n {
                    let part = lists.next_below(token, end);
                    let rows = &lists.rows[token * lists.stride..][part.clone()];
                    let h = &mut g[token * len..][part];
                    if phase == Phase::Up {
                        let x = &x[token * x_len..][..x_len];
                        match W::dots_at_once::<S>(row_len, true) {
                            4 => multiply_by_dots::<S, W, 4>(s, w, rows, x, &mut ahead, h),
                            2 => multiply_by_dots::<S, W, 2>(s, w, rows, x, &mut ahead, h),
                            _ => multiply_by_dots::<S, W, 1>(s, w, rows, x, &mut ahead, h),
                        }
                    } else {
                        let sum = &mut sums[token * sum_len..][..sum_len];
                        match W::axpys_at_once(row_len, true) {
                            8 => add_rows::<S, W, 8>(s, w, rows, h, &mut ahead, sum),
                            _ => add_rows::<S, W, 4>(s, w, rows, h, &mut ahead, sum),
                        }
                    }
                }
            }
        }
        counts
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Up,
    Down,
}

/// Rows of w that are needed soon, to be hinted at one by one.
pub(super) struct Ahead<'a, W, I> {
    pub(super) w: &'a [W],
    pub(super) rows: I,
    pub(super) row_len: usize,
}

impl<W, I: Iterator<Item = u32>> Ahead<'_, W, I> {
    /// The next one; one that is in a cache already, if there is none left.
    #[inline(always)]
    fn next(&mut self, other: &[W]) -> *const W {
        self.rows.next().map_or(other.as_ptr(), |row| self.w.as_ptr().wrapping_add(row as usize * self.row_len))
    }

    /// The rows of `w` that a list of `G` names, and as many to hint at.
    #[inline(always)]
    fn group<'w, const G: usize>(&mut self, w: &'w [W], rows: &[u32]) -> ([&'w [W]; G], [*const W; G]) {
        let (mut group, mut hints) = ([&w[..0]; G], [w.as_ptr(); G]);
        for r in 0..G {
            group[r] = &w[rows[r] as usize * self.row_len..][..self.row_len];
            hints[r] = self.next(group[r]);
        }
        (group, hints)
    }
}

/// `h[j] *= dot(w[rows[j], :], x)`, `G` rows at a time.
#[inline(always)]
pub(super) fn multiply_by_dots<S: Simd, W: RowFormat, const G: usize>(
    s: S,
    w: &[W],
    rows: &[u32],
    x: &[f32],
    ahead: &mut Ahead<W, impl Iterator<Item = u32>>,
    h: &mut [f32],
) {
    let mut j = 0;
    while j + G <= rows.len() {
        let (group, hints) = ahead.group::<G>(w, &rows[j..j + G]);
        let dots = W::dot_group(s, group, hints, x);
        for r in 0..G {
            h[j + r] *= dots[r];
        }
        j += G;
    }
    while j < rows.len() {
        let (row, hint) = ahead.group::<1>(w, &rows[j..=j]);
        let [dot] = W::dot_group(s, row, hint, x);
        h[j] *= dot;
        j += 1;
    }
}

/// `sum += h[j] * w[rows[j], :]`, row by row, `G` of them in a pass over the sum.
#[inline(always)]
pub(super) fn add_rows<S: Simd, W: RowFormat, const G: usize>(
    s: S,
    w: &[W],
    rows: &[u32],
    h: &[f32],
    ahead: &mut Ahead<W, impl Iterator<Item = u32>>,
    sum: &mut [f32],
) {
    let mut j = 0;
    while j + G <= rows.len() {
        let (group, hints) = ahead.group::<G>(w, &rows[j..j + G]);
        W::axpy_group(s, group, hints, &h[j..j + G], sum);
        j += G;
    }
    while j < rows.len() {
        let (row, hint) = ahead.group::<1>(w, &rows[j..=j]);
        W::axpy_group(s, row, hint, &h[j..=j], sum);
        j += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Level;
    use crate::packed::PackedBf16;
    use crate::quant::{I8Dot, Q4, Q8};
    use crate::sparse::{ffn_dense, ffn_sparse};
    use crate::testing::{SparseInputs, rounded_rows, uniform};
    use half::bf16;
    use proptest::prelude::*;

    /// Weights, and tokens of which each makes another share of neurons active.
    struct Ffn {
        gate: Vec<f32>,
        up: Vec<f32>,
        down_t: Vec<f32>,
        x: Vec<f32>,
        c: usize,
    }

    impl Ffn {
        /// Token t is active in a share of about `density` of the neurons, which are others for other tokens; of five tokens, the first
        /// in all and the second in none.
        fn new(f: usize, c: usize, n: usize, density: f32) -> Ffn {
            let mut x = uniform(4, n * c);
            // The first element of x shifts all gates of a token.
            let shift = |token: usize| match token {
                0 if n == 5 => 4.0,
                1 if n == 5 => -4.0,
                _ => 2.0 * density - 1.0,
            };
            x.chunks_mut(c).enumerate().for_each(|(token, x)| x[0] = shift(token) * (c as f32 / 3.0).sqrt());
            let mut gate = uniform(1, f * c);
            gate.chunks_mut(c).for_each(|row| row[0] = 1.0);
            Ffn { gate, up: uniform(2, f * c), down_t: uniform(3, f * c), x, c }
        }
    }

    fn bits(y: &[f32]) -> Vec<u32> {
        y.iter().map(|y| y.to_bits()).collect()
    }

    /// Every row of a batch against the kernels of one token, for RELU and for a psi that draws by token.
    fn a_batch_is_its_tokens<W: RowFormat>(level: Level, ffn: &Ffn, n: usize) {
        let Ffn { gate, up, down_t, x, c } = ffn;
        let (gate, up, down_t) = (rounded_rows::<W>(gate, *c), rounded_rows(up, *c), rounded_rows(down_t, *c));
        let weights = FfnWeights { gate: &gate, up: &up, down_t: &down_t };
        let f = gate.len() / W::row_len(*c);
        let site =
            |token: usize| crate::MaskSite { seed: 3, first_token: 40 + token as u32, layer: 5, stream: 6, step: 7 };
        let stochastic: Vec<Activation> = (0..n).map(|token| Activation::stochastic(0.5, site(token))).collect();
        let relu = vec![Activation::Relu; n];
        let mut scratch = FfnScratch::default();
        let serial = Team::serial(level);
        let mut alone = |acts: &[Activation]| {
            let mut y = vec![f32::NAN; n * c];
            let rows = x.chunks(*c).zip(y.chunks_mut(*c)).zip(acts);
            let active: usize = rows.map(|((x, y), &act)| ffn_dense(&serial, weights, act, x, &mut scratch, y)).sum();
            (bits(&y), active)
        };
        let (relu_alone, stochastic_alone) = (alone(&relu), alone(&stochastic));
        let mut active_for_any = vec![false; f];
        for x in x.chunks(*c) {
            let mut g = vec![0.0; f];
            crate::gemv::gemv(&serial, &gate, x, &mut g);
            active_for_any.iter_mut().zip(g).for_each(|(any, g)| *any |= g > 0.0);
        }
        let union = active_for_any.into_iter().filter(|&any| any).count();
        for threads in 1..=3 {
            let team = Team::new(level, threads);
            let what = format!("{} {level} {threads} threads [{f}, {c}], {n} tokens", W::NAME);
            for stale in [f32::NAN, 1.0] {
                scratch.partial.fill(stale);
                let mut y = vec![f32::NAN; n * c];
                let counts = ffn_sparse_batch(&team, weights, n, x, &mut scratch, &mut y);
                assert_eq!(counts, BatchCounts { active: relu_alone.1, union }, "ffn_sparse_batch {what}");
                assert!(bits(&y) == relu_alone.0, "ffn_sparse_batch {what}: other bits than the tokens alone");
                for (acts, expected) in [(&relu, &relu_alone), (&stochastic, &stochastic_alone)] {
                    let counts = ffn_dense_batch(&team, weights, acts, x, &mut scratch, &mut y);
                    assert_eq!(counts.active, expected.1, "ffn_dense_batch {what}: active neurons");
                    assert!(
                        (counts.active.div_ceil(n)..=f).contains(&counts.union),
                        "ffn_dense_batch {what}: {counts:?}"
                    );
                    assert!(bits(&y) == expected.0, "ffn_dense_batch {what}: other bits than the tokens alone");
                }
                let relu_union = ffn_dense_batch(&team, weights, &relu, x, &mut scratch, &mut y).union;
                assert_eq!(relu_union, union, "ffn_dense_batch {what}: union");
            }
            if n == 1 {
                let mut y = vec![f32::NAN; *c];
                ffn_sparse(&team, weights, x, &mut scratch, &mut y);
                assert!(bits(&y) == relu_alone.0, "ffn_sparse {what}");
            }
        }
    }

    fn in_every_format(level: Level, ffn: &Ffn, n: usize) {
        a_batch_is_its_tokens::<f32>(level, ffn, n);
        a_batch_is_its_tokens::<bf16>(level, ffn, n);
        a_batch_is_its_tokens::<PackedBf16>(level, ffn, n);
        a_batch_is_its_tokens::<Q8>(level, ffn, n);
        a_batch_is_its_tokens::<Q4>(level, ffn, n);
        a_batch_is_its_tokens::<I8Dot<8>>(level, ffn, n);
        a_batch_is_its_tokens::<I8Dot<4>>(level, ffn, n);
    }

    #[test]
    fn the_ffn_of_a_batch_has_the_bits_of_its_tokens() {
        for level in Level::available() {
            for n in [1, 2, 3, 4, 5, 7, 8, 13, 16, 19] {
                in_every_format(level, &Ffn::new(70, 37, n, 0.3), n);
            }
            // Chunks of 256 neurons and more blocks of rows than one: 5 KiB a row of f32.
            in_every_format(level, &Ffn::new(4400, 20, 4, 0.1), 4);
            in_every_format(level, &Ffn::new(530, 1300, 6, 0.1), 6);
        }
    }

    /// The tokens that `silurian bench sparse` takes for the worst case are that: unions of n have a share 1 - s^n.
    #[test]
    fn independent_tokens_have_the_unions_of_chance() {
        let (c, f, n) = (300, 4000, 8);
        let inputs = SparseInputs::independent(1, c, n);
        for zeros in [0.5f64, 0.9] {
            let gate = inputs.gate(2, f, zeros);
            let weights = FfnWeights { gate: &gate, up: &gate, down_t: &gate };
            let (mut scratch, mut y) = (FfnScratch::default(), vec![0.0; n * c]);
            for n in [2, 4, 8] {
                let team = Team::serial(Level::best());
                let counts = ffn_sparse_batch(&team, weights, n, &inputs.x[..n * c], &mut scratch, &mut y[..n * c]);
                let expected = 1.0 - (1.0 - counts.active as f64 / (n * f) as f64).powi(n as i32);
                let union = counts.union as f64 / f as f64;
                // Of 4000 draws; the tokens' own shares differ by a little, which hardly matters.
                let deviation = (expected * (1.0 - expected) / f as f64).sqrt();
                assert!(
                    (union - expected).abs() < 4.0 * deviation,
                    "{n} tokens, {zeros}: union {union}, not {expected}"
                );
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn the_ffn_of_a_batch_has_the_bits_of_its_tokens_in_any_shape(
            f in 1usize..600, c in 1usize..200, n in 1usize..20, density in 0.0f32..1.0
        ) {
            for level in Level::available() {
                in_every_format(level, &Ffn::new(f, c, n, density), n);
            }
        }
    }
}
