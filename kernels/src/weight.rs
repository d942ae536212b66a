//! The element types that weights are stored in. A kernel of the token path is written once for all of them: it loads
//! weights as `f32` vectors, and everything after the load is the same.

use crate::simd::{DotBf16, Simd};
use bytemuck::Pod;
use half::bf16;
use std::fmt::Debug;

/// An element of a weight matrix: `f32`, or [`bf16`] (the upper half of an `f32`: 8 exponent and 7 fraction bits), which
/// halves the bytes that decoding reads.
///
/// Loading is exact: every bf16 is an `f32`. So a kernel over bf16 weights has the bits of the same kernel over the
/// [widened](Weight::widen) ones. `x`, sums and results stay `f32`.
pub trait Weight: sealed::Sealed + Pod + Debug + PartialEq + Send + Sync {
    /// `f32` or `bf16`.
    const NAME: &'static str;

    /// The value; exact.
    fn widen(self) -> f32;

    /// The nearest value that there is, ties to even; beyond the largest, infinity.
    fn round(x: f32) -> Self;

    /// The values as they are, if they are f32.
    fn as_f32(values: &[Self]) -> Option<&[f32]>;

    /// Reads `LANES` values.
    ///
    /// # Safety
    /// `src` is valid for reading `LANES` values. No alignment beyond that of the type is needed.
    unsafe fn load_ptr<S: Simd>(s: S, src: *const Self) -> S::F32;

    /// The first `LANES` values of `src`. Panics if there are fewer.
    #[inline(always)]
    fn load<S: Simd>(s: S, src: &[Self]) -> S::F32 {
        assert!(src.len() >= S::LANES);
        // SAFETY: the assert proves that LANES values can be read.
        unsafe { Self::load_ptr(s, src.as_ptr()) }
    }

    /// The values of `src`, at most `LANES`; the lanes beyond them are 0.
    fn load_partial<S: Simd>(s: S, src: &[Self]) -> S::F32;

    /// [`Simd::transpose`] of weights.
    fn transpose<S: Simd>(
        s: S,
        src: &[Self],
        src_stride: usize,
        rows: usize,
        cols: usize,
        dst: &mut [f32],
        dst_stride: usize,
    );

    /// [`DotBf16::pair_neighbours`] of `src`, at most `2 LANES` values, into the `LANES` places of `pairs`; 0 where `src` ends. Values
    /// that are bf16 are copied as they are.
    fn pair_neighbours<S: Simd>(s: S, dot: impl DotBf16<S>, src: &[Self], pairs: &mut [f32]);
}

/// Lanes of the widest level.
const MAX_LANES: usize = 16;

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::bf16 {}
}

impl Weight for f32 {
    const NAME: &'static str = "f32";

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    #[inline(always)]
    fn round(x: f32) -> f32 {
        x
    }
    #[inline(always)]
    fn as_f32(values: &[f32]) -> Option<&[f32]> {
        Some(values)
    }
    #[inline(always)]
    unsafe fn load_ptr<S: Simd>(s: S, src: *const f32) -> S::F32 {
        // SAFETY: the caller's contract.
        unsafe { s.load_ptr(src) }
    }
    #[inline(always)]
    fn load_partial<S: Simd>(s: S, src: &[f32]) -> S::F32 {
        s.load_partial(src)
    }
    #[inline(always)]
    fn transpose<S: Simd>(
        s: S,
        src: &[f32],
        src_stride: usize,
        rows: usize,
        cols: usize,
        dst: &mut [f32],
        dst_stride: usize,
    ) {
        s.transpose(src, src_stride, rows, cols, dst, dst_stride);
    }
    #[inline(always)]
    fn pair_neighbours<S: Simd>(s: S, dot: impl DotBf16<S>, src: &[f32], pairs: &mut [f32]) {
        let v = if src.len() == 2 * S::LANES {
            dot.pair_neighbours(s.load(src), s.load(&src[S::LANES..]))
        } else {
            let (first, second) = src.split_at(src.len().min(S::LANES));
            dot.pair_neighbours(s.load_partial(first), s.load_partial(second))
        };
        s.store(v, pairs);
    }
}

impl Weight for bf16 {
    const NAME: &'static str = "bf16";

    #[inline(always)]
    fn widen(self) -> f32 {
        // Not bf16::to_f32, which quietens a signalling NaN: the vector loads do not.
        f32::from_bits((self.to_bits() as u32) << 16)
    }
    #[inline(always)]
    fn round(x: f32) -> bf16 {
        bf16::from_f32(x)
    }
    #[inline(always)]
    fn as_f32(_: &[bf16]) -> Option<&[f32]> {
        None
    }
    #[inline(always)]
    unsafe fn load_ptr<S: Simd>(s: S, src: *const bf16) -> S::F32 {
        // SAFETY: the caller's contract.
        unsafe { s.load_bf16_ptr(src) }
    }
    #[inline(always)]
    fn load_partial<S: Simd>(s: S, src: &[bf16]) -> S::F32 {
        s.load_bf16_partial(src)
    }
    #[inline(always)]
    fn transpose<S: Simd>(
        s: S,
        src: &[bf16],
        src_stride: usize,
        rows: usize,
        cols: usize,
        dst: &mut [f32],
        dst_stride: usize,
    ) {
        // Widened first, into a block that stays in L1.
        let mut block = [0.0; MAX_LANES * MAX_LANES];
        for (i, row) in block.chunks_exact_mut(S::LANES).enumerate().take(rows) {
            let src = &src[i * src_stride..][..cols];
            s.store(if cols == S::LANES { Self::load(s, src) } else { Self::load_partial(s, src) }, row);
        }
        s.transpose(&block, S::LANES, rows, cols, dst, dst_stride);
    }
    #[inline(always)]
    fn pair_neighbours<S: Simd>(_: S, _: impl DotBf16<S>, src: &[bf16], pairs: &mut [f32]) {
        let pairs: &mut [bf16] = bytemuck::cast_slice_mut(&mut pairs[..S::LANES]);
        if src.len() == 2 * S::LANES {
            pairs[..2 * S::LANES].copy_from_slice(&src[..2 * S::LANES]);
        } else {
            let (copied, rest) = pairs.split_at_mut(src.len());
            copied.copy_from_slice(src);
            rest.fill(bf16::ZERO);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Level;
    use crate::simd::Kernel;

    /// The bits of `src`, loaded as whole vectors from each place where one fits and as partial ones of every length.
    struct Load<'a>(&'a [bf16]);

    impl Kernel for Load<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let src = self.0;
            let expected = |at: usize, n: usize| -> Vec<u32> {
                let bits = src[at..].iter().take(n).map(|w| (w.to_bits() as u32) << 16);
                bits.chain(std::iter::repeat(0)).take(S::LANES).collect()
            };
            let mut dst = vec![0.0f32; S::LANES];
            for at in 0..=src.len() - S::LANES {
                // SAFETY: LANES values from `at` on are in the slice.
                s.store(unsafe { bf16::load_ptr(s, src.as_ptr().add(at)) }, &mut dst);
                let bits: Vec<u32> = dst.iter().map(|x| x.to_bits()).collect();
                assert_eq!(bits, expected(at, S::LANES), "load_bf16_ptr: {} lanes at {at}", S::LANES);
            }
            for n in 0..=S::LANES + 1 {
                s.store(bf16::load_partial(s, &src[3..3 + n]), &mut dst);
                let bits: Vec<u32> = dst.iter().map(|x| x.to_bits()).collect();
                assert_eq!(bits, expected(3, n), "load_bf16_partial: {n} of {} lanes", S::LANES);
            }
        }
    }

    #[test]
    fn every_bf16_loads_as_the_f32_that_it_is() {
        // 65536 values in an order that puts unlike ones side by side (40503 is odd, so all occur).
        let all: Vec<bf16> = (0..1u32 << 16).map(|i| bf16::from_bits((i * 40503) as u16)).collect();
        for level in Level::available() {
            level.dispatch(Load(&all));
        }
        for &w in &all {
            assert_eq!(w.widen().to_bits(), (w.to_bits() as u32) << 16);
            assert!(w.is_nan() || bf16::round(w.widen()) == w, "round of {w:?}");
        }
    }

    #[test]
    fn round_goes_to_nearest_even() {
        for (bits, rounded) in [
            (0x3F80_8000u32, 0x3F80u16), // a tie goes to the even neighbour: down
            (0x3F81_8000, 0x3F82),       // and up
            (0x3F80_8001, 0x3F81),
            (0x3F80_7FFF, 0x3F80),
            (0x7F7F_FFFF, 0x7F80), // the largest f32 is beyond the largest bf16 by more than half a unit
            (0x8000_8000, 0x8000),
            (0x0000_8001, 0x0001),
        ] {
            let actual = bf16::round(f32::from_bits(bits));
            assert_eq!(actual.to_bits(), rounded, "round of {bits:#010x}");
        }
    }
}
