//! Dot products of bf16, which some CPUs have as an instruction at twice the rate of `mul_add`.

use super::Simd;

/// An instruction that adds two products of bf16 to each lane: a token besides that of the level S, to be had from
/// [`Simd::dot_bf16`].
///
/// A vector of `LANES` pairs of bf16 travels as an `S::F32`: in every lane the first of the pair in the low half of the bits, the
/// second in the high half. It is loaded, stored and broadcast as `f32` are, which keeps all bits; nothing else may be done with it.
///
/// The instruction of x86-64 (`vdpbf16ps`) takes subnormal numbers for 0, in its operands and its results; so does its rounding
/// (`vcvtne2ps2bf16`). A product of two bf16 is exact, so a sum of K of them in any order has the bound of a sum in `f32`,
/// `(K + 4) 2^-24 sum |a_i b_i|`, and 2^-126 for each term.
pub trait DotBf16<S: Simd>: Copy + Send + Sync + 'static {
    /// `acc + a_second b_second + a_first b_first` in each lane, of pairs in a and b, in an order of the CPU's own.
    fn dot(self, a: S::F32, b: S::F32, acc: S::F32) -> S::F32;

    /// The pairs `(low[i], high[i])`, rounded to the nearest bf16, ties to even.
    fn pair_lanes(self, low: S::F32, high: S::F32) -> S::F32;

    /// The pairs `(x[2 i], x[2 i + 1])` of the `2 LANES` values x of both vectors, rounded likewise.
    fn pair_neighbours(self, first: S::F32, second: S::F32) -> S::F32;
}

/// The token of levels that have none.
#[derive(Clone, Copy, Debug)]
pub(super) enum Absent {}

impl<S: Simd> DotBf16<S> for Absent {
    fn dot(self, _: S::F32, _: S::F32, _: S::F32) -> S::F32 {
        match self {}
    }
    fn pair_lanes(self, _: S::F32, _: S::F32) -> S::F32 {
        match self {}
    }
    fn pair_neighbours(self, _: S::F32, _: S::F32) -> S::F32 {
        match self {}
    }
}
