//! The bound of the gate filter, its two halves: what is known of a row of the gate, and what is known of a token. The proof is in
//! docs/sparse-ffn.md; the names are those used there.
//!
//! A row w is `scale q + e`, q in 8 bits; x is `scale p + d`, p in 16 bits. With a direction m and any split of e and of the rounded
//! `x^ = scale p` along it, `e = along m + across`:
//!
//! ```text
//! w . x = scale scale (q . p) + along (m . x^) + across . x^ + w . d
//! ```
//!
//! The first two terms are computed, the last two are at most the products of norms. All here is f64, where the roundings are 2^-29
//! of those that the f32 dot of the row is allowed; `SLACK` takes them in.

use crate::Weight;
use bytemuck::{Pod, Zeroable};

/// Half an ULP of 1 as `f32`.
const U: f64 = 1.0 / (1 << 24) as f64;

/// What norms are raised by for the rounding of their sums: `C 2^-53` at most, and [`MAX_COLUMNS`] bounds C.
const RAISE: f64 = 1.0 + 1.0 / (1 << 30) as f64;

/// In units of `U ||w|| ||x||`: 4 for `||across||` not being at a right angle to m (see [`RowBound::norm`]), and 4 for all roundings
/// in f64, which together are below `40 C 2^-53`.
const SLACK: f64 = 8.0;

/// Above this, `||w|| ||x||` does not rule out that a sum in the f32 dot overflows: every row survives. (The sum of absolute values
/// is at most that product, and with its roundings below 2^127.)
const OVERFLOW: f64 = (1u128 << 126) as f64;

/// Most columns. The roundings in f64 and in f32 are bounded for as many.
pub(super) const MAX_COLUMNS: usize = 1 << 20;

/// The 8-bit copy of a row, but for its quants; 16 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub(super) struct RowBound {
    /// `max |w| / 127`.
    pub scale: f32,
    /// The part of e along m.
    pub along: f32,
    /// `>= ||e - along m||`.
    across: f32,
    /// `>= ||w||`, and `>= 2^22 |(e - along m) . m|`, which `along` in f32 leaves over.
    norm: f32,
}

/// A token in 16 bits, but for its quants.
#[derive(Clone, Copy, Debug)]
pub(super) struct TokenBound {
    /// `max |x| / 32767`.
    scale: f64,
    /// `m . x^`.
    along: f64,
    /// `>= ||x^ - its part along m||`.
    across: f64,
    /// `>= ||x||` and `>= ||x^||`.
    norm: f64,
    /// Times the norm of a row: `||d||`, and all roundings.
    loss: f64,
    /// What underflow may cost the f32 dot: half of the smallest number at each product, and again in the sum.
    underflow: f64,
}

impl RowBound {
    /// Quantises a row. A value that is not finite makes a norm that is not, so that the row always survives.
    pub fn new<W: Weight>(w: &[W], m: &[f32], m_square: f64, quants: &mut [i8]) -> RowBound {
        let max = max_abs(w.len(), |j| w[j].widen());
        let scale = max / 127.0;
        let inverse = inverse(scale as f64);
        for (q, w) in quants.iter_mut().zip(w) {
            *q = nearest(w.widen() as f64 * inverse, 127.0) as i8;
        }
        // Exact: a product of 24 bits with 7, close to a number of 24.
        let error = |j: usize| w[j].widen() as f64 - scale as f64 * quants[j] as f64;
        let along = (sum(w.len(), |j| error(j) * m[j] as f64) * inverse_square(m_square)) as f32;
        let across = |j: usize| error(j) - along as f64 * m[j] as f64;
        let not_square = sum(w.len(), |j| across(j) * m[j] as f64).abs() * (1 << 22) as f64;
        let norm = norm(w.len(), |j| w[j].widen() as f64);
        RowBound {
            scale,
            along,
            across: up(self::norm(w.len(), across)),
            // If either is NaN, the result is.
            norm: up(if not_square <= norm { norm } else { not_square + norm }),
        }
    }
}

impl TokenBound {
    /// Quantises x. If it is not finite, its norm is not either, and every row survives.
    pub fn new(x: &[f32], m: &[f32], m_square: f64, quants: &mut [i16]) -> TokenBound {
        let c = x.len();
        let max = max_abs(x.len(), |j| x[j]);
        let scale = (max / 32767.0) as f64;
        let inverse = inverse(scale);
        for (p, x) in quants.iter_mut().zip(x) {
            *p = nearest(*x as f64 * inverse, 32767.0) as i16;
        }
        let rounded = |j: usize| scale * quants[j] as f64;
        let along = sum(c, |j| rounded(j) * m[j] as f64);
        let share = along * inverse_square(m_square);
        let across = norm(c, |j| rounded(j) - share * m[j] as f64);
        let lost = norm(c, |j| x[j] as f64 - rounded(j));
        let norm = (norm(c, |j| x[j] as f64) + lost) * RAISE;
        // Higham's gamma for the dot of C terms in f32, in any order: C roundings on the way of a term at most.
        let roundings = (c + 4) as f64 * U;
        let gamma = roundings / (1.0 - roundings);
        let loss = lost + (gamma + SLACK * U) * norm;
        TokenBound { scale, along, across, norm, loss, underflow: c as f64 * f64::powi(2.0, -149) }
    }

    /// Whether the dot of the row with x, as computed in f32, may be above 0. `dot` is that of the quants.
    #[inline(always)]
    pub fn survives(&self, row: &RowBound, dot: i64) -> bool {
        let norm = row.norm as f64;
        let most = row.scale as f64 * self.scale * dot as f64
            + row.along as f64 * self.along
            + row.across as f64 * self.across
            + norm * self.loss
            + self.underflow;
        // A NaN in any of them survives.
        !(most <= 0.0 && norm * self.norm <= OVERFLOW)
    }
}

/// `1 / scale`; 0 if there is nothing to scale, or it is not finite.
fn inverse(scale: f64) -> f64 {
    if scale > 0.0 { 1.0 / scale } else { 0.0 }
}

/// `1 / m^2`; 0 without a direction.
fn inverse_square(m_square: f64) -> f64 {
    if m_square > 0.0 { 1.0 / m_square } else { 0.0 }
}

/// The nearest whole number within `-limit ..= limit`; NaN stays. `f64::round_ties_even` is a call where SSE 4.1 is not a given.
#[inline(always)]
fn nearest(x: f64, limit: f64) -> f64 {
    /// Where the unit is one ULP.
    const SHIFT: f64 = 1.5 * (1u64 << 52) as f64;
    (x.clamp(-limit, limit) + SHIFT) - SHIFT
}

/// Sums that take turns, so that the compiler can keep them in vectors.
const LANES: usize = 8;

/// `sum_j f(j)`, in eight sums that the compiler can keep in vectors: the same at every level.
#[inline(always)]
fn sum(len: usize, f: impl Fn(usize) -> f64) -> f64 {
    let mut sums = [0.0; LANES];
    let whole = len / LANES * LANES;
    for j in (0..whole).step_by(LANES) {
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum += f(j + lane);
        }
    }
    (whole..len).map(f).sum::<f64>() + sums.iter().sum::<f64>()
}

/// The largest `|f(j)|`; NaN does not count. In lanes, as [`sum`]: one after the other they are 3 microseconds of a token at 2048 columns.
#[inline(always)]
fn max_abs(len: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let whole = len / LANES * LANES;
    for j in (0..whole).step_by(LANES) {
        for (lane, max) in lanes.iter_mut().enumerate() {
            *max = max.max(f(j + lane).abs());
        }
    }
    (whole..len).map(|j| f(j).abs()).chain(lanes).fold(0.0, f32::max)
}

/// At least the 2-norm of the f(j).
#[inline(always)]
fn norm(len: usize, f: impl Fn(usize) -> f64) -> f64 {
    sum(len, |j| f(j) * f(j)).sqrt() * RAISE
}

/// The least f32 that is not below x. NaN stays.
fn up(x: f64) -> f32 {
    let nearest = x as f32;
    if (nearest as f64) < x { nearest.next_up() } else { nearest }
}
