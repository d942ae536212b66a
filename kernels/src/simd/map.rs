//! Loops over slices that own the tails, so that elementwise kernels have no remainder loop and no `unsafe`.
//!
//! ```text
//! for at in spans(s, y.len()) {
//!     let sum = s.add(at.load(s, x), at.load(s, y));
//!     at.store(s, sum, y);
//! }
//! ```
//!
//! Loops instead of closures, on purpose: a closure that LLVM declines to inline would be compiled without the level's
//! instructions, while the methods here are `#[inline(always)]`.

use super::Simd;
use crate::Weight;

/// A place in slices of one length: a whole vector, or the shorter rest at their end.
///
/// `start < total`: only [`spans`] makes one. A load or store compares the slice with `total`, which does not change from
/// turn to turn, and is in bounds by that: the loops carry no bounds check that depends on the place.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    start: usize,
    total: usize,
}

impl Span {
    /// The elements of `src` at this place; lanes beyond the end of a short span are 0.
    /// Panics if `src` is shorter than the length given to [`spans`].
    #[inline(always)]
    pub fn load<S: Simd, W: Weight>(self, s: S, src: &[W]) -> S::F32 {
        assert!(src.len() >= self.total, "span: a slice of {} in a loop over {}", src.len(), self.total);
        if self.is_whole::<S>() {
            // SAFETY: start + LANES <= total <= src.len().
            unsafe { W::load_ptr(s, src.as_ptr().add(self.start)) }
        } else {
            // SAFETY: start <= total <= src.len().
            W::load_partial(s, unsafe { src.get_unchecked(self.start..self.total) })
        }
    }

    /// Writes the lanes of `v` to this place of `dst`; lanes beyond the end are dropped.
    /// Panics if `dst` is shorter than the length given to [`spans`].
    #[inline(always)]
    pub fn store<S: Simd>(self, s: S, v: S::F32, dst: &mut [f32]) {
        assert!(dst.len() >= self.total, "span: a slice of {} in a loop over {}", dst.len(), self.total);
        if self.is_whole::<S>() {
            // SAFETY: start + LANES <= total <= dst.len().
            unsafe { s.store_ptr(v, dst.as_mut_ptr().add(self.start)) }
        } else {
            // SAFETY: start <= total <= dst.len().
            s.store_partial(v, unsafe { dst.get_unchecked_mut(self.start..self.total) })
        }
    }

    #[inline(always)]
    fn is_whole<S: Simd>(self) -> bool {
        self.total - self.start >= S::LANES
    }

    /// Index of the first element.
    #[inline(always)]
    pub fn start(self) -> usize {
        self.start
    }
}

/// The spans of slices of `len` elements, in order: all whole vectors, but perhaps the last.
#[inline(always)]
pub fn spans<S: Simd>(_: S, len: usize) -> impl Iterator<Item = Span> {
    (0..len).step_by(S::LANES).map(move |start| Span { start, total: len })
}

/// Number of independent accumulators of the reductions: enough to cover the latency of an FMA (4 cycles on two pipes
/// needs 8), few enough to stay in registers at every level.
const ACCUMULATORS: usize = 8;

/// `sum_i a_i b_i`. Panics if the lengths differ.
///
/// Eight vector accumulators take turns and are added as a tree: the order depends on the level and the length only.
#[inline(always)]
pub fn dot<S: Simd>(s: S, a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "dot: lengths differ");
    let mut acc = [s.splat(0.0); ACCUMULATORS];
    let block = S::LANES * ACCUMULATORS;
    let whole = a.len() / block * block;
    for i in (0..whole).step_by(block) {
        let (a, b) = (&a[i..i + block], &b[i..i + block]);
        for (j, acc) in acc.iter_mut().enumerate() {
            *acc = s.mul_add(s.load(&a[j * S::LANES..]), s.load(&b[j * S::LANES..]), *acc);
        }
    }
    let (a, b) = (&a[whole..], &b[whole..]);
    for (acc, at) in acc.iter_mut().zip(spans(s, a.len())) {
        *acc = s.mul_add(at.load(s, a), at.load(s, b), *acc);
    }
    add_accumulators(s, acc)
}

/// `sum_i a_i`, in the order of [`dot`].
#[inline(always)]
pub fn sum<S: Simd>(s: S, a: &[f32]) -> f32 {
    sum_terms::<S, false>(s, a)
}

/// `sum_i |a_i|`, in the order of [`dot`].
#[inline(always)]
pub fn sum_abs<S: Simd>(s: S, a: &[f32]) -> f32 {
    sum_terms::<S, true>(s, a)
}

#[inline(always)]
fn sum_terms<S: Simd, const ABS: bool>(s: S, a: &[f32]) -> f32 {
    let mut acc = [s.splat(0.0); ACCUMULATORS];
    let block = S::LANES * ACCUMULATORS;
    let mut blocks = a.chunks_exact(block);
    for a in &mut blocks {
        for (j, acc) in acc.iter_mut().enumerate() {
            *acc = s.add(term::<S, ABS>(s, s.load(&a[j * S::LANES..])), *acc);
        }
    }
    let a = blocks.remainder();
    for (acc, at) in acc.iter_mut().zip(spans(s, a.len())) {
        *acc = s.add(term::<S, ABS>(s, at.load(s, a)), *acc);
    }
    add_accumulators(s, acc)
}

#[inline(always)]
fn term<S: Simd, const ABS: bool>(s: S, x: S::F32) -> S::F32 {
    // `max` returns its second operand for NaN, which is NaN.
    if ABS { s.max(x, s.sub(s.splat(0.0), x)) } else { x }
}

#[inline(always)]
fn add_accumulators<S: Simd>(s: S, acc: [S::F32; ACCUMULATORS]) -> f32 {
    let [a, b, c, d, e, f, g, h] = acc;
    let (ae, bf, cg, dh) = (s.add(a, e), s.add(b, f), s.add(c, g), s.add(d, h));
    s.reduce_sum(s.add(s.add(ae, cg), s.add(bf, dh)))
}
