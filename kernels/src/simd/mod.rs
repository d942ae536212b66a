//! The SIMD layer: one small trait, one implementation per instruction set, one place that dispatches.
//!
//! A kernel is written once, generic over [`Simd`], as a struct of its arguments with a `run` method ([`Kernel`]).
//! [`Level::dispatch`] runs it on the instruction set that the level stands for. Everything below `run` is
//! `#[inline(always)]`; the only functions with `#[target_feature]` are those of the dispatcher, so that a whole kernel is
//! compiled once for each level. If a profile shows an intrinsic such as `_mm512_add_ps` as a function of its own, an
//! `#[inline(always)]` is missing on the way to it.
//!
//! | level      | lanes | fused `mul_add` | made of                                              |
//! |------------|-------|-----------------|------------------------------------------------------|
//! | `scalar`   | 1     | no              | plain `f32`; slow, for debugging                      |
//! | `portable` | 8     | no              | `wide::f32x8`; every target, SSE2 / NEON at build time |
//! | `avx2`     | 8     | yes             | x86-64 with AVX2, FMA, F16C, BMI, POPCNT and LZCNT   |
//! | `avx512`   | 16    | yes             | x86-64 with AVX-512 F, BW, DQ and VL                  |
//!
//! Kernels with dots of bytes also run on `avx512` with VNNI, which is the same level with the same bits:
//! [`Level::dispatch_dot_i8`].
//!
//! Bits are reproducible within a level; they differ between levels, because a fused `mul_add` rounds once and because
//! sums are split over another number of lanes.

mod dispatch;
mod dot_bf16;
pub mod map;
pub mod math;
mod portable;
mod scalar;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

pub use dispatch::{Isa, Kernel, Level, LevelError};
pub use dot_bf16::DotBf16;

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
pub use portable::Portable;
pub use scalar::Scalar;

use crate::gemv::LINE;
use crate::packed;
use half::{bf16, f16};

/// A token that stands for an instruction set, with the vector operations that the kernels need.
///
/// A value can only be had from [`Level::dispatch`], on a CPU that has the features. The trait follows the need of the
/// kernels, not the instruction set: an operation is added when a second kernel needs it.
///
/// Vectors hold [`LANES`](Simd::LANES) elements. `load` and `store` panic if their slice holds fewer; the `_partial`
/// methods are for slices that do.
pub trait Simd: Copy + Send + Sync + 'static {
    /// A vector of `LANES` `f32`.
    type F32: Copy + Send + Sync;
    /// A vector of `LANES` `u32`.
    type U32: Copy + Send + Sync;
    /// One truth value a lane.
    type Mask: Copy + Send + Sync;
    /// 64 `f32`, in vectors.
    type Unpacked: Copy + AsRef<[Self::F32]> + AsMut<[Self::F32]>;
    /// A table of [`packed`](mod@crate::packed) weights.
    type ExponentTable: Copy;

    /// The instruction set, for choices that go by the number of registers (tiles).
    const ISA: Isa;

    /// Number of elements in a vector.
    const LANES: usize;

    /// Whether [`dot_i8`](Simd::dot_i8) is one instruction.
    const HAS_DOT_I8: bool = false;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::F32;

    /// Reads `LANES` values.
    ///
    /// # Safety
    /// `src` is valid for reading `LANES` values. No alignment beyond that of `f32` is needed.
    unsafe fn load_ptr(self, src: *const f32) -> Self::F32;

    /// Writes `LANES` values.
    ///
    /// # Safety
    /// `dst` is valid for writing `LANES` values. No alignment beyond that of `f32` is needed.
    unsafe fn store_ptr(self, v: Self::F32, dst: *mut f32);

    /// The first `LANES` values of `src`. Panics if there are fewer.
    #[inline(always)]
    fn load(self, src: &[f32]) -> Self::F32 {
        assert!(src.len() >= Self::LANES);
        // SAFETY: the assert proves that LANES values can be read.
        unsafe { self.load_ptr(src.as_ptr()) }
    }

    /// Writes `v` to the first `LANES` places of `dst`. Panics if there are fewer.
    #[inline(always)]
    fn store(self, v: Self::F32, dst: &mut [f32]) {
        assert!(dst.len() >= Self::LANES);
        // SAFETY: the assert proves that LANES values can be written.
        unsafe { self.store_ptr(v, dst.as_mut_ptr()) }
    }

    /// The values of `src`, at most `LANES`; the lanes beyond them are 0.
    fn load_partial(self, src: &[f32]) -> Self::F32;

    /// Reads `LANES` bf16 values and widens them; exact.
    ///
    /// # Safety
    /// `src` is valid for reading `LANES` values. No alignment beyond that of `bf16` is needed.
    unsafe fn load_bf16_ptr(self, src: *const bf16) -> Self::F32;

    /// The values of `src`, at most `LANES`, widened; the lanes beyond them are 0.
    fn load_bf16_partial(self, src: &[bf16]) -> Self::F32;

    /// Reads `LANES` signed bytes and widens them; exact.
    ///
    /// # Safety
    /// `src` is valid for reading `LANES` bytes.
    unsafe fn load_i8_ptr(self, src: *const i8) -> Self::F32;

    /// Reads `LANES` bytes of two 4-bit numbers each, 8 too large: first the low halves less 8, then the high ones less 8.
    ///
    /// # Safety
    /// `src` is valid for reading `LANES` bytes.
    unsafe fn load_u4_pair_ptr(self, src: *const u8) -> [Self::F32; 2];

    /// Lane i is `src[(at + i) / 4]`: a number for every four lanes.
    ///
    /// # Safety
    /// `src` is valid for reading those values, and `at` is a multiple of `LANES`.
    unsafe fn load_by_4_ptr(self, src: *const f32, at: usize) -> Self::F32;

    /// The exponents of a block of packed weights, for [`unpack_bf16`](Simd::unpack_bf16).
    fn exponent_table(self, exponents: &[u8; 16]) -> Self::ExponentTable;

    /// The first or the `SECOND` 64 weights of a group, in their order.
    fn unpack_bf16<const SECOND: bool>(self, group: &packed::Group, table: Self::ExponentTable) -> Self::Unpacked;

    /// The values of `src`, at most `LANES`, widened; the lanes beyond them are 0.
    fn load_f16_partial(self, src: &[f16]) -> Self::F32;

    /// Lane i is `src[i % src.len()]`, for lengths that divide the lanes; of a longer `src`, the first `LANES`.
    #[inline(always)]
    fn load_cyclic(self, src: &[f32]) -> Self::F32 {
        let mut lanes = [0.0; MAX_LANES];
        lanes.iter_mut().zip(src.iter().cycle()).for_each(|(lane, x)| *lane = *x);
        self.load(&lanes)
    }

    /// As [`load_cyclic`](Simd::load_cyclic), widened.
    #[inline(always)]
    fn load_f16_cyclic(self, src: &[f16]) -> Self::F32 {
        let mut lanes = [f16::ZERO; MAX_LANES];
        lanes.iter_mut().zip(src.iter().cycle()).for_each(|(lane, x)| *lane = *x);
        self.load_f16_partial(&lanes[..Self::LANES])
    }

    /// The values of `src`, at most `LANES`; the lanes beyond them are 0.
    fn load_u32_partial(self, src: &[u32]) -> Self::U32;

    /// Writes the first `dst.len()` lanes, at most `LANES`.
    fn store_partial(self, v: Self::F32, dst: &mut [f32]);

    /// `a + b`.
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a - b`.
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a * b`.
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a / b`, correctly rounded.
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a * b + c`; rounded once on levels with a fused instruction, else twice.
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// The smaller of `a` and `b`; `b` if either is NaN.
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// The larger of `a` and `b`; `b` if either is NaN.
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// Square root, correctly rounded.
    fn sqrt(self, a: Self::F32) -> Self::F32;
    /// Nearest integer, ties to even. Defined for `|a| < 2^22`.
    fn round(self, a: Self::F32) -> Self::F32;
    /// `v * 2^n` for `|v|` in `0.5..=2` and integer-valued `n` in `-200..=200`, rounded once: into the subnormals, to 0 and to
    /// infinity. A NaN in `v` stays NaN whatever `n`; other values give an unspecified result.
    fn mul_pow2(self, v: Self::F32, n: Self::F32) -> Self::F32;

    /// `a < b` in each lane; false if either is NaN.
    fn lt(self, a: Self::F32, b: Self::F32) -> Self::Mask;
    /// `yes` where `mask` is set, else `no`.
    fn select(self, mask: Self::Mask, yes: Self::F32, no: Self::F32) -> Self::F32;
    /// Bit `i` is lane `i` of the mask.
    fn mask_bits(self, mask: Self::Mask) -> u32;

    /// Sum of the lanes, as a tree: neighbours at distance LANES/2 first, then LANES/4, down to 1.
    fn reduce_sum(self, v: Self::F32) -> f32;
    /// Largest lane. No lane may be NaN.
    fn reduce_max(self, v: Self::F32) -> f32;

    /// `sum_i a_i b_i`, exact. Meanwhile the lines of as many bytes from `hint` on are prefetched, wherever it points. Panics if the
    /// lengths differ.
    #[inline(always)]
    fn dot_i8_i16(self, a: &[i8], b: &[i16], hint: *const i8) -> i64 {
        (0..a.len()).step_by(LINE).for_each(|at| self.prefetch(hint.wrapping_add(at).cast()));
        exact_dot(a, b)
    }

    /// All lanes `x`.
    fn splat_u32(self, x: u32) -> Self::U32;
    /// Lane `i` is `start + i`, wrapping.
    fn iota_u32(self, start: u32) -> Self::U32;
    /// `a ^ b`.
    fn xor_u32(self, a: Self::U32, b: Self::U32) -> Self::U32;
    /// The low and the high four bits of each byte, as bytes.
    fn u4_pair(self, a: Self::U32) -> [Self::U32; 2];
    /// `sum + a0 b0 + a1 b1 + a2 b2 + a3 b3` in each lane, of the four unsigned bytes of `a` and the four signed ones of `b`;
    /// exact, modulo 2^32.
    fn dot_i8(self, sum: Self::U32, a: Self::U32, b: Self::U32) -> Self::U32;
    /// The lanes as signed integers, to nearest, ties to even.
    fn i32_to_f32(self, a: Self::U32) -> Self::F32;
    /// The high and the low half of the 64-bit product `a * m`.
    fn mul_wide_u32(self, a: Self::U32, m: u32) -> (Self::U32, Self::U32);
    /// `a < b` as unsigned integers.
    fn lt_u32(self, a: Self::U32, b: Self::U32) -> Self::Mask;
    /// Writes the half-words of four vectors lane by lane: `dst[8 * i + 2 * w]` is the low half of lane `i` of `words[w]`, and
    /// the place behind it is the high half. Panics if `dst` holds fewer than `8 * LANES`.
    fn store_interleaved4_u16(self, words: [Self::U32; 4], dst: &mut [u16]);
    /// Reads `LANES` 16-bit values and widens them. Panics if `src` holds fewer.
    fn load_u16_as_u32(self, src: &[u16]) -> Self::U32;

    /// Writes the lanes of `values` whose mask is set to the front of `dst`, in order, and returns how many they are.
    /// The places of `dst` behind them, up to `LANES`, are overwritten with unspecified values.
    /// Panics if `dst` holds fewer than `LANES`.
    fn compress_store_u32(self, mask: Self::Mask, values: Self::U32, dst: &mut [u32]) -> usize;
    /// As [`compress_store_u32`](Simd::compress_store_u32), for `f32`.
    fn compress_store(self, mask: Self::Mask, values: Self::F32, dst: &mut [f32]) -> usize;

    /// Transposes a block of `rows x cols`, both at most `LANES`: `dst[j * dst_stride + i] = src[i * src_stride + j]`.
    ///
    /// Whole vectors are written, row `j = 0` of the destination first: lanes from `rows` up to `LANES` become 0, and where
    /// `dst_stride` is less than `LANES` they are overwritten by the rows that follow. So `dst` must reach `LANES` beyond the
    /// start of its last row. Panics if it does not, or if `src` ends inside the block.
    fn transpose(self, src: &[f32], src_stride: usize, rows: usize, cols: usize, dst: &mut [f32], dst_stride: usize);

    /// Hints that the cache line at `p` is read soon. Never faults, whatever the address.
    fn prefetch(self, p: *const f32);

    /// Runs `kernel` as a function of its own, compiled for this level. For a large kernel with several call sites, so that
    /// there is one copy of it, and for calls from inside a closure, which may itself be compiled for the baseline.
    fn call<K: Kernel>(self, kernel: K) -> K::Output;

    /// The level's dot product of bf16, in code that is compiled for it: where
    /// [`Level::has_dot_bf16`], and a kernel asked to run so.
    #[inline(always)]
    fn dot_bf16(self) -> Option<impl DotBf16<Self>> {
        None::<dot_bf16::Absent>
    }
}

/// Lanes of the widest level.
const MAX_LANES: usize = 16;

/// [`Simd::dot_i8_i16`] in plain code, and the end of it at the other levels.
#[inline(always)]
fn exact_dot(a: &[i8], b: &[i16]) -> i64 {
    /// Products are at most 2^22: so many fit an i32.
    const PANEL: usize = 256;
    assert_eq!(a.len(), b.len(), "dot_i8_i16: lengths differ");
    let panels = a.chunks(PANEL).zip(b.chunks(PANEL));
    panels.map(|(a, b)| a.iter().zip(b).map(|(&a, &b)| a as i32 * b as i32).sum::<i32>() as i64).sum()
}

/// The bounds that [`Simd::transpose`] promises to check.
#[inline(always)]
fn check_transpose<S: Simd>(src: &[f32], src_stride: usize, rows: usize, cols: usize, dst: &[f32], dst_stride: usize) {
    assert!(rows <= S::LANES && cols <= S::LANES, "transpose: {rows} x {cols} in one block");
    assert!(rows_fit(src.len(), rows, src_stride, cols), "transpose: source too short");
    assert!(rows_fit(dst.len(), cols, dst_stride, S::LANES), "transpose: destination too short");
}

/// Whether `rows` rows of `row_len`, `stride` apart, lie in a slice of `len`; a place that wraps does not.
#[inline(always)]
fn rows_fit(len: usize, rows: usize, stride: usize, row_len: usize) -> bool {
    rows == 0 || (rows - 1).checked_mul(stride).is_some_and(|start| start <= len && row_len <= len - start)
}

/// [`Simd::dot_i8`] of one lane.
#[inline(always)]
fn dot_i8_of(sum: u32, a: u32, b: u32) -> u32 {
    let products = a.to_le_bytes().into_iter().zip(b.to_le_bytes()).map(|(a, b)| a as i32 * b as i8 as i32);
    sum.wrapping_add(products.sum::<i32>() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::uniform;
    use std::panic::catch_unwind;

    /// Three rows (or columns) so far apart that the place of the last wraps to the first.
    struct Far {
        src_stride: usize,
        dst_stride: usize,
    }

    impl Kernel for Far {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            s.transpose(&[0.0; 16], self.src_stride, 3, 3, &mut [0.0; 64], self.dst_stride);
        }
    }

    /// The operations on bytes and half-bytes, against what they are said to mean, on bytes of every value.
    struct Bytes<'a>(&'a [u8]);

    impl Kernel for Bytes<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let lanes = S::LANES;
            let show = |v: S::F32| -> Vec<f32> {
                let mut out = vec![0.0; lanes];
                s.store(v, &mut out);
                out
            };
            for (at, src) in self.0.chunks_exact(4 * lanes).enumerate() {
                let halves: Vec<f16> =
                    src.chunks(2).map(|b| f16::from_bits(u16::from_le_bytes([b[0], b[1]]) & 0xBFFF)).collect();
                let floats: Vec<f32> = halves.iter().map(|half| half.to_f32()).collect();
                // SAFETY: there are 4 LANES bytes, and 2 LANES numbers.
                let (i8s, [low, high], by_4) = unsafe {
                    let by_4 = s.load_by_4_ptr(floats.as_ptr(), lanes);
                    (s.load_i8_ptr(src.as_ptr().cast()), s.load_u4_pair_ptr(src.as_ptr()), by_4)
                };
                let expected = |f: &dyn Fn(usize) -> f32| -> Vec<f32> { (0..lanes).map(f).collect() };
                assert_eq!(show(i8s), expected(&|i| src[i] as i8 as f32), "load_i8_ptr");
                assert_eq!(show(low), expected(&|i| (src[i] % 16) as f32 - 8.0), "load_u4_pair_ptr, low");
                assert_eq!(show(high), expected(&|i| (src[i] / 16) as f32 - 8.0), "load_u4_pair_ptr, high");
                assert_eq!(show(by_4), expected(&|i| floats[(lanes + i) / 4]), "load_by_4_ptr");
                let words = |shift: usize| -> Vec<u32> {
                    let words = src.chunks_exact(4).cycle().skip(shift).take(lanes);
                    words.map(|w| u32::from_le_bytes(w.try_into().unwrap())).collect()
                };
                let (a, b) = (words(0), words(1));
                let [va, vb] = [&a, &b].map(|w| s.load_u32_partial(w));
                let sum = s.dot_i8(s.splat_u32(at as u32 * 77), va, vb);
                let dot = |i: usize, bytes: &dyn Fn(u32) -> i32| -> f32 {
                    let bytes_of = |w: u32| (0..4).map(move |k| w >> (8 * k) & 0xFF);
                    let products = bytes_of(a[i]).zip(bytes_of(b[i])).map(|(a, b)| bytes(a) * b as u8 as i8 as i32);
                    (at as i32 * 77 + products.sum::<i32>()) as f32
                };
                assert_eq!(show(s.i32_to_f32(sum)), expected(&|i| dot(i, &|a| a as i32)), "dot_i8");
                for (half, shift) in s.u4_pair(va).into_iter().zip([0, 4]) {
                    let sum = s.i32_to_f32(s.dot_i8(s.splat_u32(at as u32 * 77), half, vb));
                    let nibble = |a: u32| (a >> shift & 15) as i32;
                    assert_eq!(show(sum), expected(&|i| dot(i, &nibble)), "u4_pair");
                }
                for n in (1..=lanes).filter(|n| lanes.is_multiple_of(*n)) {
                    let cyclic = [show(s.load_f16_cyclic(&halves[..n])), show(s.load_cyclic(&floats[..n]))];
                    cyclic
                        .iter()
                        .for_each(|cyclic| assert_eq!(*cyclic, expected(&|i| floats[i % n]), "load_cyclic {n}"));
                }
                for n in 0..=lanes {
                    let partial = show(s.load_f16_partial(&halves[..n]));
                    assert_eq!(
                        partial,
                        expected(&|i| if i < n { halves[i].to_f32() } else { 0.0 }),
                        "load_f16_partial"
                    );
                    let partial = show(s.i32_to_f32(s.load_u32_partial(&a[..n])));
                    assert_eq!(
                        partial,
                        expected(&|i| if i < n { a[i] as i32 as f32 } else { 0.0 }),
                        "load_u32_partial"
                    );
                }
            }
        }
    }

    #[test]
    fn operations_on_bytes_are_what_they_say() {
        let mut bytes: Vec<u8> = uniform(1, 1 << 14).into_iter().map(|x| ((x + 1.0) * 128.0) as u8).collect();
        bytes.extend([255, 128, 127, 0].into_iter().cycle().take(256));
        bytes.extend([128; 128]);
        bytes.extend([255; 128]);
        for level in Level::available() {
            level.dispatch(Bytes(&bytes));
            level.dispatch_dot_i8(Bytes(&bytes));
        }
    }

    /// The dot of all of `a` with all of `b`.
    struct DotInts<'a>(&'a [i8], &'a [i16]);

    impl Kernel for DotInts<'_> {
        type Output = i64;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> i64 {
            s.dot_i8_i16(self.0, self.1, std::ptr::null())
        }
    }

    #[test]
    fn dot_i8_i16_is_exact() {
        let draws = |seed, len| crate::testing::uniform(seed, len).into_iter();
        for len in crate::testing::lengths().chain([4095, 4096, 20_000]) {
            let a: Vec<i8> = draws(1, len).map(|x| (128.0 * x) as i8).collect();
            let b: Vec<i16> = draws(2, len).map(|x| (32768.0 * x) as i16).collect();
            // The largest products, all of one sign: where narrow sums would overflow.
            for (a, b) in [(a, b), (vec![-128; len], vec![-32768; len]), (vec![127; len], vec![-32768; len])] {
                let expected: i64 = a.iter().zip(&b).map(|(&a, &b)| a as i64 * b as i64).sum();
                for level in Level::available() {
                    assert_eq!(level.dispatch(DotInts(&a, &b)), expected, "dot_i8_i16 {level} len {len}");
                }
            }
        }
    }

    #[test]
    fn transpose_refuses_strides_that_wrap() {
        let half = 1 << (usize::BITS - 1);
        for level in Level::available() {
            for (src_stride, dst_stride) in [(half, 16), (3, half)] {
                let result = catch_unwind(|| level.dispatch(Far { src_stride, dst_stride }));
                assert!(result.is_err(), "transpose {level}: strides {src_stride} and {dst_stride}");
            }
        }
    }
}
