//! What the tests of kernels share: inputs, derived bounds, and readable failures. Public, because the crates above and the
//! CUDA twins are held to the same references by the same rules.

use crate::row_format::{RowFormat, round_rows, widen_rows};
use crate::simd::Level;
use crate::team::Team;
use half::bf16;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Half the distance between 1 and the next `f32`: the largest relative error of one rounding, 2^-24.
pub const ROUNDING: f64 = 1.0 / (1 << 24) as f64;

/// Teams that a kernel is tested on: every level this CPU has, with 1 and with 3 threads.
pub fn teams() -> Vec<Team> {
    teams_of(&[1, 3])
}

/// Every level this CPU has, with each of these numbers of threads.
pub fn teams_of(threads: &[usize]) -> Vec<Team> {
    Level::available().flat_map(|level| threads.iter().map(move |&threads| Team::new(level, threads))).collect()
}

/// Reproducible values, uniform in `-1 .. 1` with 24 bits: for element `i`, a hash of `(seed, i)` (SplitMix64's finaliser).
pub fn uniform(seed: u64, len: usize) -> Vec<f32> {
    (0..len as u64)
        .map(|i| {
            let mut z = (seed << 32 | 0x5851).wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// Reproducible values, normally distributed (mean 0, deviation 1), by the method of Box and Muller.
pub fn normal(seed: u64, len: usize) -> Vec<f32> {
    let draws = uniform(seed, len.next_multiple_of(2));
    let pairs = draws.chunks_exact(2).flat_map(|pair| {
        // 0 to 1, without 0.
        let share = (1.0 - pair[0] as f64) / 2.0;
        let (radius, angle) = ((-2.0 * share.ln()).sqrt(), std::f64::consts::PI * pair[1] as f64);
        [radius * angle.cos(), radius * angle.sin()].map(|x| x as f32)
    });
    pairs.take(len).collect()
}

/// Tokens as a sparse FFN sees them: noise of deviation 1, eight channels of which are twelve times as large (then all are scaled
/// back), and a common direction, half as large as the noise.
pub struct SparseInputs {
    d_model: usize,
    direction: Vec<f32>,
    independent: bool,
    /// `[tokens, d_model]`.
    pub x: Vec<f32>,
}

impl SparseInputs {
    /// Reproducible tokens.
    pub fn new(seed: u64, d_model: usize, tokens: usize) -> SparseInputs {
        SparseInputs::with_channels(12.0, seed, d_model, tokens)
    }

    /// Tokens whose neurons are independent: no channels are larger than others, [`gate`](SparseInputs::gate) shifts all rows alike, and the
    /// direction decides nothing else. With a share s of zeros, n tokens together use a share 1 - s^n of the neurons: the most.
    pub fn independent(seed: u64, d_model: usize, tokens: usize) -> SparseInputs {
        SparseInputs { independent: true, ..SparseInputs::with_channels(1.0, seed, d_model, tokens) }
    }

    fn with_channels(size: f32, seed: u64, d_model: usize, tokens: usize) -> SparseInputs {
        let mut direction = normal(seed << 1, d_model);
        let norm = sum_squares(&direction).sqrt();
        direction.iter_mut().for_each(|m| *m = (*m as f64 / norm) as f32);
        let mut x = normal(seed << 1 | 1, tokens * d_model);
        for x in x.chunks_mut(d_model) {
            x.iter_mut().step_by((d_model / 8).max(1)).for_each(|x| *x *= size);
            let (scale, common) = ((d_model as f64 / sum_squares(x)).sqrt(), 0.5 * (d_model as f64).sqrt());
            x.iter_mut().zip(&direction).for_each(|(x, &m)| *x = (*x as f64 * scale + common * m as f64) as f32);
        }
        SparseInputs { d_model, direction, independent: false, x }
    }

    /// A gate `[d_ff, d_model]` that RELU leaves a share `zeros` of 0 over these tokens (the first eight of them): normal rows of norm 1,
    /// shifted against the common direction, each by its own amount, the largest 3.3 times the smallest.
    pub fn gate(&self, seed: u64, d_ff: usize, zeros: f64) -> Vec<f32> {
        let c = self.d_model;
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| a as f64 * b as f64).sum::<f64>();
        let mut gate = normal(seed << 1, d_ff * c);
        let scale = 1.0 / (c as f32).sqrt();
        gate.iter_mut().for_each(|w| *w *= scale);
        let spread = if self.independent { 0.0 } else { 0.7 };
        let shifts: Vec<f64> = uniform(seed << 1 | 1, d_ff).into_iter().map(|u| 1.3 + spread * u as f64).collect();
        if self.independent {
            // What a row has of the direction would make its neuron more active, or less, for all tokens.
            for row in gate.chunks_mut(c) {
                let along = dot(row, &self.direction) as f32;
                row.iter_mut().zip(&self.direction).for_each(|(w, &m)| *w -= along * m);
            }
        }
        // The shift at which a neuron is 0, as a multiple of its own.
        let mut edges: Vec<f64> = Vec::new();
        for x in self.x.chunks(c).take(8) {
            let along = dot(x, &self.direction);
            edges.extend(gate.chunks(c).zip(&shifts).map(|(w, shift)| dot(w, x) / (shift * along)));
        }
        edges.sort_by(f64::total_cmp);
        let at = (zeros * edges.len() as f64).round() as usize;
        // Between two edges, or beyond all of them.
        let below = at.checked_sub(1).map_or(edges[0] - 1.0, |i| edges[i]);
        let shift = (below + edges.get(at).copied().unwrap_or(below + 2.0)) / 2.0;
        for (row, of_row) in gate.chunks_mut(c).zip(shifts) {
            row.iter_mut().zip(&self.direction).for_each(|(w, &m)| *w -= (shift * of_row) as f32 * m);
        }
        gate
    }
}

fn sum_squares(x: &[f32]) -> f64 {
    x.iter().map(|&x| x as f64 * x as f64).sum()
}

/// [`uniform`], each value rounded to bf16.
pub fn uniform_bf16(seed: u64, len: usize) -> Vec<bf16> {
    uniform(seed, len).into_iter().map(bf16::from_f32).collect()
}

/// The same values as `f32`.
pub fn widened(weights: &[bf16]) -> Vec<f32> {
    weights.iter().map(|w| w.to_f32()).collect()
}

/// The rows of a matrix of `cols` columns, rounded to a format.
pub fn rounded_rows<W: RowFormat>(matrix: &[f32], cols: usize) -> Vec<W> {
    let mut rows = vec![W::zeroed(); matrix.len() / cols * W::row_len(cols)];
    round_rows(&Team::serial(Level::best()), matrix, cols, &mut rows);
    rows
}

/// The values of such rows.
pub fn widened_rows<W: RowFormat>(rows: &[W], cols: usize) -> Vec<f32> {
    let mut matrix = vec![f32::NAN; rows.len() / W::row_len(cols) * cols];
    widen_rows(&Team::serial(Level::best()), rows, cols, &mut matrix);
    matrix
}

/// The bound of a dot product of `k` terms computed in `f32` in any order, fused or not: `(k + 4) 2^-24 sum |a_i b_i|`.
/// (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1; the 4 covers the final scaling and storing.)
pub fn dot_bound(k: usize, sum_abs: f64) -> f64 {
    (k + 4) as f64 * ROUNDING * sum_abs
}

/// What [`dot_bound`] leaves out: subnormal numbers have no relative error. In a sum of `terms` products of a number computed
/// to 2 ULP with one of at most `size`, the number and each product may be off by 2 ULP of 2^-149 instead.
pub fn underflow_bound(terms: usize, size: f64) -> f64 {
    terms as f64 * (1.0 + size) * f64::powi(2.0, -148)
}

/// Distance between `actual` and `expected` in units of the last place of `expected` as an `f32`.
/// Equal infinities and two NaNs are 0 apart; a NaN or an infinity against anything else is infinitely far.
pub fn ulps(actual: f32, expected: f64) -> f64 {
    let nearest = expected as f32;
    if actual == nearest || (actual.is_nan() && expected.is_nan()) {
        // Also the case of two infinities. Within half an ULP it is rounding, which counts below.
        return if actual.is_finite() { (actual as f64 - expected).abs() / ulp(expected) } else { 0.0 };
    }
    if !actual.is_finite() || !nearest.is_finite() {
        return f64::INFINITY;
    }
    (actual as f64 - expected).abs() / ulp(expected)
}

/// The unit in the last place of an `f32` of the size of `x`; 2^-149 in the subnormal range.
fn ulp(x: f64) -> f64 {
    let exponent = ((x.to_bits() >> 52 & 0x7FF) as i32 - 1023).clamp(-126, 127);
    f64::powi(2.0, exponent - 23)
}

/// Panics unless every `|actual - expected| <= bound`, naming `what`, the worst element and both values.
/// `what` begins with the kernel's name, so that a failure names the kernel.
#[track_caller]
pub fn assert_within(what: &str, actual: &[f32], expected: &[f64], bound: impl Fn(usize) -> f64) {
    assert_eq!(actual.len(), expected.len(), "{what}: lengths differ");
    let mut worst: Option<(usize, f64)> = None;
    for (i, (&a, &e)) in actual.iter().zip(expected).enumerate() {
        let error = (a as f64 - e).abs();
        let limit = bound(i);
        if error > limit || error.is_nan() {
            let excess = if error.is_nan() { f64::INFINITY } else { error / limit };
            if worst.is_none_or(|(_, w)| excess > w) {
                worst = Some((i, excess));
            }
        }
    }
    if let Some((i, excess)) = worst {
        panic!(
            "{what}: element {i} of {} is {:e}, expected {:e}: off by {:e}, bound {:e} ({excess:.1} times)",
            actual.len(),
            actual[i],
            expected[i],
            (actual[i] as f64 - expected[i]).abs(),
            bound(i)
        );
    }
}

/// Lengths that reach every tail of every level: 0 to 2 vectors of the widest level and 3 more, and a few long ones.
pub fn lengths() -> impl Iterator<Item = usize> {
    (0..=35).chain([63, 64, 65, 127, 129, 255, 257, 1000])
}

/// The system's allocator, counting: a test that declares it as `#[global_allocator]` can show that a call allocates nothing.
#[derive(Debug)]
pub struct CountingAllocator {
    allocations: AtomicUsize,
}

impl CountingAllocator {
    /// One that has counted nothing.
    pub const fn new() -> Self {
        CountingAllocator { allocations: AtomicUsize::new(0) }
    }

    /// Allocations and reallocations so far, of all threads.
    pub fn allocations(&self) -> usize {
        self.allocations.load(Ordering::SeqCst)
    }
}

impl Default for CountingAllocator {
    fn default() -> Self {
        CountingAllocator::new()
    }
}

// SAFETY: every call goes to the system's allocator as it came; counting touches no memory of it.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.allocations.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's contract, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract, passed on.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.allocations.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's contract, passed on.
        unsafe { System.realloc(ptr, layout, size) }
    }
}
