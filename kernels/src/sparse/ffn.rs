use super::rows_axpy::{axpy, sum_chunks};
use super::select::{MAX_LANES, select};
use super::{MAX_CHUNK, chunk_len};
use crate::activation::gated_activation;
use crate::gemv::{dots, gemv};
use crate::simd::{Kernel, Simd};
use crate::{Activation, Team};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The weights of an FFN, laid out for decoding.
#[derive(Clone, Copy, Debug)]
pub struct FfnWeights<'a> {
    /// gate_proj `[F, C]` (the paper's W1).
    pub gate: &'a [f32],
    /// up_proj `[F, C]` (W3).
    pub up: &'a [f32],
    /// down_proj transposed, `[F, C]` (W2^T).
    pub down_t: &'a [f32],
}

impl FfnWeights<'_> {
    /// F, from the shapes of the weights and of one token. Panics if they do not fit.
    #[track_caller]
    fn d_ff(&self, op: &str, x: &[f32], y: &[f32]) -> usize {
        let (len, c) = (self.gate.len(), x.len());
        assert!(
            c > 0 && y.len() == c && len.is_multiple_of(c) && self.up.len() == len && self.down_t.len() == len,
            "{op}: gate {len}, up {} and down_t {} elements must all be [F, C], x {c} and y {} both [C]",
            self.up.len(),
            self.down_t.len(),
            y.len()
        );
        assert!(u32::try_from(len / c).is_ok(), "{op}: {} neurons, indices are u32", len / c);
        len / c
    }
}

/// Working memory of an FFN, kept by the caller from token to token: after the first call nothing is allocated.
#[derive(Clone, Debug, Default)]
pub struct FfnScratch {
    g: Vec<f32>,
    u: Vec<f32>,
    h: Vec<f32>,
    partial: Vec<f32>,
}

impl FfnScratch {
    /// `g = gate x` of the last [`ffn_dense`], `[F]`: for counting zeros.
    pub fn g(&self) -> &[f32] {
        &self.g
    }

    /// `h = psi(g) * u` of the last [`ffn_dense`], `[F]`.
    pub fn h(&self) -> &[f32] {
        &self.h
    }
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
/// One task does all for a chunk of neurons, from the gate's rows to the chunk's sum, without waiting for the others: the
/// indices never leave L1, and the threads meet once before the sums are added.
#[track_caller]
pub fn ffn_sparse(team: &Team, weights: FfnWeights, x: &[f32], scratch: &mut FfnScratch, y: &mut [f32]) -> usize {
    let d_ff = weights.d_ff("ffn_sparse", x, y);
    let chunk = chunk_len(d_ff);
    let active = AtomicUsize::new(0);
    sum_chunks(team, d_ff, y, &mut scratch.partial, |task, sum| {
        let (first, len) = (task * chunk, chunk.min(d_ff - task * chunk));
        let n = team.level().dispatch(SparseChunk { weights, x, first, len, sum });
        active.fetch_add(n, Ordering::Relaxed);
    });
    active.into_inner()
}

struct SparseChunk<'a> {
    weights: FfnWeights<'a>,
    x: &'a [f32],
    first: usize,
    len: usize,
    sum: &'a mut [f32],
}

impl Kernel for SparseChunk<'_> {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> usize {
        let SparseChunk { weights: FfnWeights { gate, up, down_t }, x, first, len, sum } = self;
        let (mut g, mut h) = ([0.0; MAX_CHUNK], [0.0; MAX_CHUNK]);
        let mut rows = [0; MAX_CHUNK + MAX_LANES];
        let g = &mut g[..len];
        dots(s, gate, |i| first + i, x, g);
        let n = select(s, g, first as u32, &mut rows);
        let (rows, h) = (&rows[..n], &mut h[..n]);
        dots(s, up, |j| rows[j] as usize, x, h);
        for (h, &row) in h.iter_mut().zip(rows) {
            // One multiplication, as in `gated_activation`: relu(g) is g here.
            *h *= g[row as usize - first];
        }
        axpy(s, down_t, rows, h, sum);
        n
    }
}

/// The FFN of one token over all neurons, under any activation: `y = W2 (psi(g) * u)`, `g = W1 x`, `u = W3 x`.
///
/// Shapes: weights `[F, C]`, x and y `[C]`; the token is row 0 of the [`MaskSite`](crate::MaskSite).
///
/// Panics if the shapes do not fit. Accuracy: as [`ffn_sparse`], and that of the activation. Cost: all three matrices are read
/// once, 12 F C bytes: memory-bound.
#[track_caller]
pub fn ffn_dense(
    team: &Team,
    weights: FfnWeights,
    act: Activation,
    x: &[f32],
    scratch: &mut FfnScratch,
    y: &mut [f32],
) {
    let d_ff = weights.d_ff("ffn_dense", x, y);
    let FfnScratch { g, u, h, partial } = scratch;
    for buffer in [&mut *g, &mut *u, &mut *h] {
        buffer.resize(d_ff, 0.0);
    }
    gemv(team, weights.gate, x, g);
    gemv(team, weights.up, x, u);
    gated_activation(team, act, g, u, d_ff.max(1), h);
    let chunk = chunk_len(d_ff);
    sum_chunks(team, d_ff, y, partial, |task, sum| {
        let first = task * chunk;
        let h = &h[first..d_ff.min(first + chunk)];
        team.level().dispatch(DenseChunk { down_t: weights.down_t, first, h, sum });
    });
}

struct DenseChunk<'a> {
    down_t: &'a [f32],
    first: usize,
    h: &'a [f32],
    sum: &'a mut [f32],
}

impl Kernel for DenseChunk<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut rows = [0; MAX_CHUNK];
        let rows = &mut rows[..self.h.len()];
        rows.iter_mut().enumerate().for_each(|(i, row)| *row = (self.first + i) as u32);
        axpy(s, self.down_t, rows, self.h, self.sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;
    use crate::simd::Level;
    use crate::testing::{ROUNDING, assert_within, teams, uniform};
    use proptest::prelude::*;

    /// gate, up and down_t of an FFN whose share of active neurons is about `density`, and x with a positive sum.
    fn ffn(f: usize, c: usize, density: f32) -> ([Vec<f32>; 3], Vec<f32>) {
        let x: Vec<f32> = uniform(4, c).into_iter().map(|x| 0.6 + 0.4 * x).collect();
        // A row is 1 or -1 throughout, with noise a tenth of that: its dot with x has the sign that was meant.
        let sign: Vec<f32> =
            uniform(5, f).into_iter().map(|r| if r < 2.0 * density - 1.0 { 1.0 } else { -1.0 }).collect();
        let gate = uniform(1, f * c).into_iter().enumerate().map(|(i, w)| sign[i / c] + 0.1 * w).collect();
        ([gate, uniform(2, f * c), uniform(3, f * c)], x)
    }

    fn bits(y: &[f32]) -> Vec<u32> {
        y.iter().map(|y| y.to_bits()).collect()
    }

    #[test]
    fn ffn_sparse_and_ffn_dense_match_reference() {
        for team in teams() {
            for (f, c) in [(1, 1), (7, 3), (33, 17), (256, 64), (300, 129), (1030, 40)] {
                for density in [0.0, 0.1, 0.5, 1.0] {
                    let ([gate, up, down_t], x) = ffn(f, c, density);
                    let weights = FfnWeights { gate: &gate, up: &up, down_t: &down_t };
                    let (y_ref, abs) = reference::ffn_relu(&gate, &up, &down_t, &x);
                    // Two dots of C terms each, their product, and a dot of F terms: the relative errors add up.
                    let bound = |i: usize| ((c + 4) + (c + 4) + 1 + (f + 4)) as f64 * ROUNDING * abs[i];
                    let mut scratch = FfnScratch::default();
                    let mut y = vec![f32::NAN; c];
                    let active = ffn_sparse(&team, weights, &x, &mut scratch, &mut y);
                    let what = format!("{} {}t [{f}, {c}] density {density}", team.level(), team.threads());
                    assert_within(&format!("ffn_sparse {what}"), &y, &y_ref, bound);
                    let positive =
                        gate.chunks(c).filter(|row| row.iter().zip(&x).map(|(w, x)| w * x).sum::<f32>() > 0.0);
                    assert_eq!(active, positive.count(), "ffn_sparse {what}: active neurons");
                    y.fill(f32::NAN);
                    ffn_dense(&team, weights, Activation::Relu, &x, &mut scratch, &mut y);
                    assert_within(&format!("ffn_dense {what}"), &y, &y_ref, bound);
                }
            }
        }
    }

    /// ffn_dense is gemv, gated_activation and a product with down_proj, under an activation without zeros too.
    #[test]
    fn ffn_dense_applies_the_activation() {
        let site = crate::MaskSite { seed: 3, first_token: 4, layer: 5, stream: 6, step: 7 };
        for team in teams() {
            for act in [Activation::Silu, Activation::stochastic(0.5, site)] {
                let (f, c) = (530, 24);
                let ([gate, up, down_t], x) = ffn(f, c, 0.5);
                let weights = FfnWeights { gate: &gate, up: &up, down_t: &down_t };
                let mut y = vec![f32::NAN; c];
                ffn_dense(&team, weights, act, &x, &mut FfnScratch::default(), &mut y);
                let (mut g, mut u, mut h) = (vec![0.0; f], vec![0.0; f], vec![0.0; f]);
                gemv(&team, &gate, &x, &mut g);
                gemv(&team, &up, &x, &mut u);
                gated_activation(&team, act, &g, &u, f, &mut h);
                let rows: Vec<u32> = (0..f as u32).collect();
                let mut expected = vec![0.0; c];
                super::super::rows_axpy(&team, &down_t, &rows, &h, &mut expected, &mut Vec::new());
                assert_eq!(bits(&y), bits(&expected), "ffn_dense {} {act:?}", team.level());
            }
        }
    }

    /// The exactness that sparse decoding is sold with: every bit, any sparsity, any number of threads.
    fn sparse_is_dense(level: Level, f: usize, c: usize, density: f32) {
        let ([gate, up, down_t], x) = ffn(f, c, density);
        let weights = FfnWeights { gate: &gate, up: &up, down_t: &down_t };
        let mut scratch = FfnScratch::default();
        let mut dense = vec![f32::NAN; c];
        ffn_dense(&Team::serial(level), weights, Activation::Relu, &x, &mut scratch, &mut dense);
        for threads in 1..=3 {
            let team = Team::new(level, threads);
            for stale in [f32::NAN, 1.0] {
                scratch.partial.fill(stale);
                let mut sparse = vec![f32::NAN; c];
                ffn_sparse(&team, weights, &x, &mut scratch, &mut sparse);
                let what = format!("{level} [{f}, {c}] density {density} {threads} threads");
                assert_eq!(bits(&sparse), bits(&dense), "ffn_sparse {what} against ffn_dense");
                let mut again = vec![f32::NAN; c];
                ffn_dense(&team, weights, Activation::Relu, &x, &mut scratch, &mut again);
                assert_eq!(bits(&again), bits(&dense), "ffn_dense {what} against one thread");
            }
        }
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
        for level in Level::available() {
            for scale in [0.0, 1e-20, 1e-38, 1e-44] {
                let (f, c) = (600, 20);
                let ([gate, up, down_t], mut x) = ffn(f, c, 0.1);
                x.iter_mut().for_each(|x| *x *= scale);
                let weights = FfnWeights { gate: &gate, up: &up, down_t: &down_t };
                let (mut sparse, mut dense) = (vec![f32::NAN; c], vec![f32::NAN; c]);
                let (team, mut scratch) = (Team::serial(level), FfnScratch::default());
                ffn_sparse(&team, weights, &x, &mut scratch, &mut sparse);
                ffn_dense(&team, weights, Activation::Relu, &x, &mut scratch, &mut dense);
                assert_eq!(bits(&sparse), bits(&dense), "ffn_sparse {level} x * {scale:e}");
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
