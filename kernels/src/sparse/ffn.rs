use super::rows_axpy::{axpy_then, sum_chunks, sum_runs};
use super::select::{MAX_LANES, select};
use super::{MAX_CHUNK, Run, chunk_len};
use crate::activation::gated_activation_from;
use crate::gemv::{Dots, Rows, RowsFrom, dots, dots_then, rows_ahead};
use crate::simd::{Kernel, Level, Simd};
use crate::{Activation, RowFormat, Team, scratch};
use bytemuck::cast_slice_mut;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The weights of an FFN, laid out for decoding, in any [`RowFormat`].
#[derive(Clone, Copy, Debug)]
pub struct FfnWeights<'a, W = f32> {
    /// gate_proj `[F, C]` (the paper's W1).
    pub gate: &'a [W],
    /// up_proj `[F, C]` (W3).
    pub up: &'a [W],
    /// down_proj transposed, `[F, C]` (W2^T).
    pub down_t: &'a [W],
}

impl<'a, W: RowFormat> FfnWeights<'a, W> {
    /// F, from the shapes of the weights and of one token. Panics if they do not fit.
    #[track_caller]
    pub(super) fn d_ff(&self, op: &str, x: &[f32], y: &[f32]) -> usize {
        let (len, c, row_len) = (self.gate.len(), x.len(), W::row_len(x.len()));
        assert!(
            c > 0 && y.len() == c && len.is_multiple_of(row_len) && self.up.len() == len && self.down_t.len() == len,
            "{op}: gate {len}, up {} and down_t {} units of {} must all be [F, C], x {c} and y {} both [C]",
            self.up.len(),
            self.down_t.len(),
            W::NAME,
            y.len()
        );
        let d_ff = len / row_len;
        assert!(u32::try_from(d_ff).is_ok(), "{op}: {d_ff} neurons, indices are u32");
        d_ff
    }

    /// The rows of some neurons, of `row_len` units each.
    pub(super) fn of(&self, neurons: Range<usize>, row_len: usize) -> Self {
        let part = |w: &'a [W]| &w[neurons.start * row_len..neurons.end * row_len];
        FfnWeights { gate: part(self.gate), up: part(self.up), down_t: part(self.down_t) }
    }
}

/// Working memory of an FFN, kept by the caller from token to token: after the first call nothing is allocated.
#[derive(Clone, Debug, Default)]
pub struct FfnScratch {
    /// The sums of the chunks, `[chunks, C]`, in the order of the format.
    pub(super) partial: Vec<f32>,
    /// x in 16 bits, `[C]`, for the filter.
    pub(super) token: Vec<i16>,
}

/// The FFN of one token under RELU from the active neurons alone; returns how many they were.
///
/// `y = sum_i max(g_i, 0) * (up_i . x) * down_t_i` with `g = gate x`, over the i with `g_i > 0`.
/// Shapes: weights `[F, C]`, x and y `[C]`.
///
/// Panics if the shapes do not fit. Equal, bit for bit, to [`ffn_dense`] with [`Activation::Relu`], for finite weights and x.
/// Accuracy: as the f64 sum but for three dots: `(2 C + F + 12) 2^-24` times the sum over absolute values. Cost: gate is read
/// in full, up and down_t only in the active rows: at s zeros `(1 + 2 (1 - s)) / 3` of the dense bytes.
///
/// One task does all for its chunks of neurons, from the gate's rows to the chunks' sums, without waiting for the others: the threads meet
/// once, before the sums are added.
#[track_caller]
pub fn ffn_sparse<W: RowFormat>(
    team: &Team,
    weights: FfnWeights<W>,
    x: &[f32],
    scratch: &mut FfnScratch,
    y: &mut [f32],
) -> usize {
    let d_ff = weights.d_ff("ffn_sparse", x, y);
    let active = AtomicUsize::new(0);
    W::with_x(team.level(), x, |x| {
        sum_runs::<W>(team, d_ff, (1, Run::chunks(team, d_ff)), y, &mut scratch.partial, |task, sums| {
            let run = Run::of(team, d_ff, task);
            let n = Lists::with(run.len, |lists| W::dispatch(team.level(), SparseRun { weights, x, run, lists, sums }));
            active.fetch_add(n, Ordering::Relaxed);
        });
    });
    active.into_inner()
}

/// Working memory of a task.
pub(super) struct Lists<'a> {
    /// Neurons, and [`MAX_LANES`] places.
    pub rows: &'a mut [u32],
    /// `gate . x` for each of them.
    pub g: &'a mut [f32],
    /// `up . x`, and then h.
    pub h: &'a mut [f32],
}

impl Lists<'_> {
    /// Calls `f` with lists that `len` neurons fit in; what they hold is stale.
    pub fn with<R>(len: usize, f: impl FnOnce(Lists) -> R) -> R {
        scratch::with(3 * len + MAX_LANES, |memory| {
            let (g, rest) = memory.split_at_mut(len);
            let (h, rows) = rest.split_at_mut(len);
            f(Lists { rows: cast_slice_mut(rows), g, h })
        })
    }
}

struct SparseRun<'a, W> {
    weights: FfnWeights<'a, W>,
    x: &'a [f32],
    run: Run,
    lists: Lists<'a>,
    sums: &'a mut [f32],
}

impl<W: RowFormat> Kernel for SparseRun<'_, W> {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> usize {
        let SparseRun { weights, x, run, lists: Lists { rows, g, h }, sums } = self;
        let Run { first, len, .. } = run;
        // While the last rows of the gate are read, the first active ones are known, and hinted at in up_proj.
        let row_len = W::row_len_for(x);
        let early = len - rows_ahead::<W>(row_len, 1).min(len);
        dots(s, weights.gate, RowsFrom(first), x, &mut g[..early]);
        let known = select(s, &g[..early], first as u32, rows);
        let up = |i: usize| weights.up.as_ptr().wrapping_add((&rows[..known]).at(i) * row_len);
        dots_then(s, weights.gate, &RowsFrom(first + early), up, x, &mut g[early..]);
        let n = select(s, g, first as u32, rows);
        // To the front; a place is read before one that is behind it.
        for j in 0..n {
            g[j] = g[rows[j] as usize - first];
        }
        let gate = |i: usize| weights.gate.as_ptr().wrapping_add((first + len + i) * row_len);
        let lists = Lists { rows: &mut rows[..n], g: &mut g[..n], h: &mut h[..n] };
        sum_active(s, weights, (run, lists), gate, x, sums);
        n
    }
}

/// The sums of the chunks of a run over the active neurons of the lists, which have g. Behind them the rows at `then(0)`, `then(1)`, ...
/// are hinted at.
#[inline(always)]
pub(super) fn sum_active<S: Simd, W: RowFormat>(
    s: S,
    FfnWeights { up, down_t, .. }: FfnWeights<W>,
    (run, Lists { rows, g, h }): (Run, Lists),
    then: impl Fn(usize) -> *const W,
    x: &[f32],
    sums: &mut [f32],
) {
    let row_len = W::row_len_for(x);
    let (mut rows, mut h): (&[u32], _) = (rows, h);
    dots_then(s, up, &rows, |i| down_t.as_ptr().wrapping_add(rows.at(i) * row_len), x, h);
    // One multiplication, as in `gated_activation`: relu(g) is g here.
    h.iter_mut().zip(g).for_each(|(h, g)| *h *= *g);
    let sum_len = sums.len() / run.len.div_ceil(run.chunk);
    for (i, sum) in sums.chunks_exact_mut(sum_len).enumerate() {
        let n = rows.partition_point(|&row| (row as usize) < run.first + (i + 1) * run.chunk);
        let hint = |i: usize| match rows.len() - n {
            left if i < left => down_t.as_ptr().wrapping_add(rows.at(n + i) * row_len),
            left => then(i - left),
        };
        // In the list, the rows of the next chunk are behind those of this one.
        axpy_then(s, down_t, &rows, hint, &h[..n], sum);
        (rows, h) = (&rows[n..], &mut h[n..]);
    }
}

/// The FFN of one token over all neurons, under any activation: `y = W2 (psi(g) * u)`, `g = W1 x`, `u = W3 x`. Returns how
/// many neurons were active: under RELU and its square those with g > 0, which [`ffn_sparse`] would use, else those with
/// `psi(g) u` other than 0.
///
/// Shapes: weights `[F, C]`, x and y `[C]`; the token is row 0 of the [`MaskSite`](crate::MaskSite).
///
/// Panics if the shapes do not fit. Accuracy: as [`ffn_sparse`], and that of the activation. Cost: all three matrices are read
/// once, 12 F C bytes (bf16: 6 F C, q8: 3.2 F C, q4: 1.7 F C): memory-bound.
///
/// In tasks like those of [`ffn_sparse`]: g, u and h of a chunk never leave L1.
#[track_caller]
pub fn ffn_dense<W: RowFormat>(
    team: &Team,
    weights: FfnWeights<W>,
    act: Activation,
    x: &[f32],
    scratch: &mut FfnScratch,
    y: &mut [f32],
) -> usize {
    let d_ff = weights.d_ff("ffn_dense", x, y);
    let chunk = chunk_len(d_ff);
    let active = AtomicUsize::new(0);
    let row_len = W::row_len(x.len());
    W::with_x(team.level(), x, |x| {
        sum_chunks::<W>(team, d_ff, 1, y, &mut scratch.partial, |task, sum| {
            let neurons = task * chunk..d_ff.min((task + 1) * chunk);
            let n = dense_chunk(team.level(), weights.of(neurons.clone(), row_len), act, (neurons.start, d_ff), x, sum);
            active.fetch_add(n, Ordering::Relaxed);
        });
    });
    active.into_inner()
}

/// The sum over one chunk of neurons, number `first` of `d_ff` and those after it; returns the number of active ones.
fn dense_chunk<W: RowFormat>(
    level: Level,
    weights: FfnWeights<W>,
    act: Activation,
    (first, d_ff): (usize, usize),
    x: &[f32],
    sum: &mut [f32],
) -> usize {
    let len = weights.gate.len() / W::row_len_for(x);
    let [mut g, mut u, mut h] = [[0.0; MAX_CHUNK]; 3];
    let (g, u, h) = (&mut g[..len], &mut u[..len], &mut h[..len]);
    W::dispatch(level, Dots { w: weights.gate, then: weights.up.as_ptr(), x, y: g });
    W::dispatch(level, Dots { w: weights.up, then: weights.down_t.as_ptr(), x, y: u });
    gated_activation_from(level, act, first, d_ff, g, u, h);
    W::dispatch(level, Axpy { w: weights.down_t, then: weights.gate.as_ptr_range().end, h, sum });
    match act {
        Activation::Relu | Activation::Relu2 => g.iter().filter(|&&g| g > 0.0 || g.is_nan()).count(),
        _ => h.iter().filter(|&&h| h != 0.0).count(),
    }
}

/// `sum = sum_i h[i] * w[i, :]`.
struct Axpy<'a, W> {
    w: &'a [W],
    /// As in [`Dots`].
    then: *const W,
    h: &'a [f32],
    sum: &'a mut [f32],
}

impl<W: RowFormat> Kernel for Axpy<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Axpy { w, then, h, sum } = self;
        let row_len = W::row_len(sum.len());
        axpy_then(s, w, &RowsFrom(0), |i| then.wrapping_add(i * row_len), h, sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activation::gated_activation;
    use crate::gemv::gemv;
    use crate::packed::PackedBf16;
    use crate::quant::{I8Dot, Q4, Q8};
    use crate::reference;
    use crate::testing::{ROUNDING, assert_within, rounded_rows, teams, uniform, widened_rows};
    use half::bf16;
    use proptest::prelude::*;

    /// An FFN and an x for it.
    struct Ffn<W> {
        gate: Vec<W>,
        up: Vec<W>,
        down_t: Vec<W>,
        x: Vec<f32>,
    }

    impl Ffn<f32> {
        /// A share of about `density` of the neurons is active: x is positive, and so are their rows of the gate.
        fn new(f: usize, c: usize, density: f32) -> Ffn<f32> {
            let x: Vec<f32> = uniform(4, c).into_iter().map(|x| 0.6 + 0.4 * x).collect();
            // A row is 1 or -1 throughout, with noise a tenth of that: its dot with x has the sign that was meant.
            let sign: Vec<f32> =
                uniform(5, f).into_iter().map(|r| if r < 2.0 * density - 1.0 { 1.0 } else { -1.0 }).collect();
            let gate = uniform(1, f * c).into_iter().enumerate().map(|(i, w)| sign[i / c] + 0.1 * w).collect();
            Ffn { gate, up: uniform(2, f * c), down_t: uniform(3, f * c), x }
        }

        fn rounded<W: RowFormat>(&self) -> Ffn<W> {
            let rounded = |w: &[f32]| rounded_rows(w, self.x.len());
            let Ffn { gate, up, down_t, x } = self;
            Ffn { gate: rounded(gate), up: rounded(up), down_t: rounded(down_t), x: x.clone() }
        }
    }

    impl<W: RowFormat> Ffn<W> {
        fn widened(&self) -> Ffn<f32> {
            let widened = |w: &[W]| widened_rows(w, self.x.len());
            let Ffn { gate, up, down_t, x } = self;
            Ffn { gate: widened(gate), up: widened(up), down_t: widened(down_t), x: x.clone() }
        }

        fn weights(&self) -> FfnWeights<'_, W> {
            FfnWeights { gate: &self.gate, up: &self.up, down_t: &self.down_t }
        }

        /// y and the number of active neurons.
        fn sparse(&self, team: &Team, scratch: &mut FfnScratch) -> (Vec<f32>, usize) {
            let mut y = vec![f32::NAN; self.x.len()];
            let active = ffn_sparse(team, self.weights(), &self.x, scratch, &mut y);
            (y, active)
        }

        fn dense(&self, team: &Team, act: Activation, scratch: &mut FfnScratch) -> (Vec<f32>, usize) {
            let mut y = vec![f32::NAN; self.x.len()];
            let active = ffn_dense(team, self.weights(), act, &self.x, scratch, &mut y);
            (y, active)
        }
    }

    fn bits(y: &[f32]) -> Vec<u32> {
        y.iter().map(|y| y.to_bits()).collect()
    }

    #[test]
    fn ffn_sparse_and_ffn_dense_match_reference() {
        for team in teams() {
            for (f, c) in [(1, 1), (7, 3), (33, 17), (256, 64), (300, 129), (1030, 40)] {
                for density in [0.0, 0.1, 0.5, 1.0] {
                    let ffn = Ffn::new(f, c, density);
                    let (y_ref, abs) = reference::ffn_relu(&ffn.gate, &ffn.up, &ffn.down_t, &ffn.x);
                    // Two dots of C terms each, their product, and a dot of F terms: the relative errors add up.
                    let bound = |i: usize| ((c + 4) + (c + 4) + 1 + (f + 4)) as f64 * ROUNDING * abs[i];
                    let positive =
                        ffn.gate.chunks(c).filter(|row| row.iter().zip(&ffn.x).map(|(w, x)| w * x).sum::<f32>() > 0.0);
                    let positive = positive.count();
                    let mut scratch = FfnScratch::default();
                    let what = format!("{} {}t [{f}, {c}] density {density}", team.level(), team.threads());
                    let (y, active) = ffn.sparse(&team, &mut scratch);
                    assert_within(&format!("ffn_sparse {what}"), &y, &y_ref, bound);
                    assert_eq!(active, positive, "ffn_sparse {what}: active neurons");
                    let (y, active) = ffn.dense(&team, Activation::Relu, &mut scratch);
                    assert_within(&format!("ffn_dense {what}"), &y, &y_ref, bound);
                    assert_eq!(active, positive, "ffn_dense {what}: active neurons");
                }
            }
        }
    }

    /// For weights of other formats: the reference of what they are rounded to.
    #[test]
    fn ffn_of_quantised_rows_matches_reference() {
        fn check<W: RowFormat>(team: &Team, ffn: &Ffn<W>) {
            let (wide, c) = (ffn.widened(), ffn.x.len());
            let f = wide.gate.len() / c;
            let (y_ref, abs) = reference::ffn_relu(&wide.gate, &wide.up, &wide.down_t, &ffn.x);
            let bound = |i: usize| ((c + 4) + (c + 4) + 1 + (f + 4)) as f64 * ROUNDING * abs[i];
            let what = format!("{} {} [{f}, {c}]", W::NAME, team.level());
            let mut scratch = FfnScratch::default();
            assert_within(&format!("ffn_sparse {what}"), &ffn.sparse(team, &mut scratch).0, &y_ref, bound);
            let (dense, _) = ffn.dense(team, Activation::Relu, &mut scratch);
            assert_within(&format!("ffn_dense {what}"), &dense, &y_ref, bound);
        }
        for team in teams() {
            for (f, c) in [(1, 1), (33, 17), (300, 129), (300, 512), (530, 600)] {
                let ffn = Ffn::new(f, c, 0.3);
                check(&team, &ffn.rounded::<Q8>());
                check(&team, &ffn.rounded::<Q4>());
            }
        }
    }

    /// ffn_dense is gemv, gated_activation and a product with down_proj, under an activation without zeros too.
    #[test]
    fn ffn_dense_applies_the_activation() {
        fn check<W: RowFormat>(team: &Team, act: Activation, ffn: &Ffn<W>) {
            let f = ffn.gate.len() / W::row_len(ffn.x.len());
            let (y, active) = ffn.dense(team, act, &mut FfnScratch::default());
            let (mut g, mut u, mut h) = (vec![0.0; f], vec![0.0; f], vec![0.0; f]);
            gemv(team, &ffn.gate, &ffn.x, &mut g);
            gemv(team, &ffn.up, &ffn.x, &mut u);
            gated_activation(team, act, &g, &u, f, &mut h);
            let rows: Vec<u32> = (0..f as u32).collect();
            let mut expected = vec![0.0; y.len()];
            super::super::rows_axpy(team, &ffn.down_t, &rows, &h, &mut expected, &mut Vec::new());
            assert_eq!(bits(&y), bits(&expected), "ffn_dense {} {} {act:?}", W::NAME, team.level());
            let not_zero = h.iter().filter(|&&h| h != 0.0).count();
            assert_eq!(active, not_zero, "ffn_dense {} {} {act:?}: active neurons", W::NAME, team.level());
        }
        let site = crate::MaskSite { seed: 3, first_token: 4, layer: 5, stream: 6, step: 7 };
        let ffn = Ffn::new(530, 24, 0.5);
        for team in teams() {
            for act in [Activation::Silu, Activation::stochastic(0.5, site)] {
                check(&team, act, &ffn);
                check(&team, act, &ffn.rounded::<bf16>());
                check(&team, act, &ffn.rounded::<PackedBf16>());
                check(&team, act, &ffn.rounded::<Q8>());
                check(&team, act, &ffn.rounded::<I8Dot<4>>());
            }
        }
    }

    /// The exactness that sparse decoding is sold with: every bit, any sparsity, any number of threads, any format of the
    /// weights. The bits of bf16 are those of the widened weights.
    fn sparse_is_dense(level: Level, f: usize, c: usize, density: f32) {
        fn check<W: RowFormat>(what: &str, level: Level, ffn: &Ffn<W>) -> Vec<u32> {
            let mut scratch = FfnScratch::default();
            let (dense, _) = ffn.dense(&Team::serial(level), Activation::Relu, &mut scratch);
            for threads in 1..=3 {
                let team = Team::new(level, threads);
                for stale in [f32::NAN, 1.0] {
                    scratch.partial.fill(stale);
                    let (sparse, active) = ffn.sparse(&team, &mut scratch);
                    let what = format!("{} {level} {what} {threads} threads", W::NAME);
                    assert_eq!(bits(&sparse), bits(&dense), "ffn_sparse {what} against ffn_dense");
                    let (again, active_dense) = ffn.dense(&team, Activation::Relu, &mut scratch);
                    assert_eq!(bits(&again), bits(&dense), "ffn_dense {what} against one thread");
                    assert_eq!(active, active_dense, "ffn_sparse {what}: active neurons against ffn_dense");
                }
            }
            bits(&dense)
        }
        let what = format!("[{f}, {c}] density {density}");
        let ffn = Ffn::new(f, c, density);
        let rounded = ffn.rounded::<bf16>();
        check(&what, level, &ffn);
        check(&what, level, &ffn.rounded::<Q8>());
        check(&what, level, &ffn.rounded::<Q4>());
        check(&what, level, &ffn.rounded::<I8Dot<8>>());
        check(&what, level, &ffn.rounded::<I8Dot<4>>());
        let bf16 = check(&what, level, &rounded);
        assert_eq!(
            check(&what, level, &ffn.rounded::<PackedBf16>()),
            bf16,
            "ffn_dense bf16-packed {level} {what} against bf16"
        );
        let (wide, _) = rounded.widened().dense(&Team::serial(level), Activation::Relu, &mut FfnScratch::default());
        assert_eq!(bf16, bits(&wide), "ffn_dense bf16 {level} {what} against the widened weights");
    }

    #[test]
    fn ffn_sparse_equals_ffn_dense() {
        for level in Level::available() {
            for (f, c) in [(1, 1), (31, 5), (32, 16), (513, 48), (1000, 33), (4500, 20)] {
                for density in [0.0, 0.01, 0.1, 0.15, 0.5, 0.9, 1.0] {
                    sparse_is_dense(level, f, c, density);
                }
            }
        }
    }

    /// Products so small that they round to a zero of either sign, and a x of zeros.
    #[test]
    fn ffn_sparse_equals_ffn_dense_at_the_bottom_of_the_range() {
        fn check<W: RowFormat>(level: Level, scale: f32, mut ffn: Ffn<W>) {
            ffn.x.iter_mut().for_each(|x| *x *= scale);
            let (team, mut scratch) = (Team::serial(level), FfnScratch::default());
            let (sparse, dense) = (ffn.sparse(&team, &mut scratch), ffn.dense(&team, Activation::Relu, &mut scratch));
            assert_eq!(bits(&sparse.0), bits(&dense.0), "ffn_sparse {} {level} x * {scale:e}", W::NAME);
        }
        for level in Level::available() {
            for scale in [0.0, 1e-20, 1e-38, 1e-44] {
                let ffn = Ffn::new(600, 20, 0.1);
                check(level, scale, ffn.rounded::<bf16>());
                check(level, scale, ffn.rounded::<PackedBf16>());
                check(level, scale, ffn.rounded::<Q8>());
                check(level, scale, ffn.rounded::<I8Dot<8>>());
                check(level, scale, ffn.rounded::<I8Dot<4>>());
                check(level, scale, ffn);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn ffn_sparse_equals_ffn_dense_in_any_shape(f in 1usize..900, c in 1usize..90, density in 0.0f32..1.0) {
            for level in Level::available() {
                sparse_is_dense(level, f, c, density);
            }
        }
    }
}
