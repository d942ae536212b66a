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

/// A place in a slice: a whole vector, or the shorter rest at its end.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    start: usize,
    len: usize,
}

impl Span {
    /// The elements of `src` at this place; lanes beyond the end of a short span are 0. Panics if `src` ends before it.
    #[inline(always)]
    pub fn load<S: Simd>(self, s: S, src: &[f32]) -> S::F32 {
        let src = &src[self.start..self.start + self.len];
        if self.len == S::LANES { s.load(src) } else { s.load_partial(src) }
    }

    /// Writes the lanes of `v` to this place of `dst`; lanes beyond the end are dropped. Panics if `dst` ends before it.
    #[inline(always)]
    pub fn store<S: Simd>(self, s: S, v: S::F32, dst: &mut [f32]) {
        let dst = &mut dst[self.start..self.start + self.len];
        if self.len == S::LANES { s.store(v, dst) } else { s.store_partial(v, dst) }
    }

    /// Index of the first element.
    #[inline(always)]
    pub fn start(self) -> usize {
        self.start
    }

    /// Number of elements, `1..=LANES`.
    #[inline(always)]
    #[allow(clippy::len_without_is_empty)] // a span is never empty
    pub fn len(self) -> usize {
        self.len
    }
}

/// The spans of a slice of `len` elements, in order: all whole vectors, but perhaps the last.
#[inline(always)]
pub fn spans<S: Simd>(_: S, len: usize) -> impl Iterator<Item = Span> {
    (0..len).step_by(S::LANES).map(move |start| Span { start, len: S::LANES.min(len - start) })
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
    let mut acc = [s.splat(0.0); ACCUMULATORS];
    let block = S::LANES * ACCUMULATORS;
    let mut blocks = a.chunks_exact(block);
    for a in &mut blocks {
        for (j, acc) in acc.iter_mut().enumerate() {
            *acc = s.add(s.load(&a[j * S::LANES..]), *acc);
        }
    }
    let a = blocks.remainder();
    for (acc, at) in acc.iter_mut().zip(spans(s, a.len())) {
        *acc = s.add(at.load(s, a), *acc);
    }
    add_accumulators(s, acc)
}

#[inline(always)]
fn add_accumulators<S: Simd>(s: S, acc: [S::F32; ACCUMULATORS]) -> f32 {
    let [a, b, c, d, e, f, g, h] = acc;
    let (ae, bf, cg, dh) = (s.add(a, e), s.add(b, f), s.add(c, g), s.add(d, h));
    s.reduce_sum(s.add(s.add(ae, cg), s.add(bf, dh)))
}
