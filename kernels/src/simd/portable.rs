//! Eight lanes on the `wide` crate: every target, with the instructions that the build was allowed to use.

use super::{Isa, Kernel, Simd, check_transpose, dot_i8_of};
use crate::packed;
use half::{bf16, f16};
use wide::{f32x8, u32x8};

/// The token of level `portable`.
#[derive(Clone, Copy, Debug)]
pub struct Portable(());

impl Portable {
    pub(super) const fn new() -> Self {
        Portable(())
    }
}

/// Lanes as plain values: the operations below that `wide` lacks go through arrays, which the compiler turns back into vectors.
type Lanes<T> = [T; 8];

impl Simd for Portable {
    type F32 = f32x8;
    type U32 = u32x8;
    type Mask = f32x8;
    type Unpacked = [f32x8; 8];
    type ExponentTable = [u8; 16];
    const ISA: Isa = Isa::Portable;
    const LANES: usize = 8;

    #[inline(always)]
    fn splat(self, x: f32) -> f32x8 {
        f32x8::splat(x)
    }
    #[inline(always)]
    unsafe fn load_ptr(self, src: *const f32) -> f32x8 {
        // SAFETY: the caller's contract: eight values can be read; an array of f32 has the alignment of f32.
        f32x8::from(unsafe { src.cast::<Lanes<f32>>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store_ptr(self, v: f32x8, dst: *mut f32) {
        // SAFETY: the caller's contract: eight values can be written.
        unsafe { dst.cast::<Lanes<f32>>().write_unaligned(v.to_array()) }
    }
    #[inline(always)]
    fn load_partial(self, src: &[f32]) -> f32x8 {
        let mut lanes = [0.0; 8];
        let n = src.len().min(8);
        lanes[..n].copy_from_slice(&src[..n]);
        f32x8::from(lanes)
    }
    #[inline(always)]
    unsafe fn load_bf16_ptr(self, src: *const bf16) -> f32x8 {
        // SAFETY: the caller's contract: eight values can be read; bf16 is a u16 in memory.
        widen(unsafe { src.cast::<Lanes<u16>>().read_unaligned() })
    }
    #[inline(always)]
    fn load_bf16_partial(self, src: &[bf16]) -> f32x8 {
        let mut lanes = [0; 8];
        lanes.iter_mut().zip(src).for_each(|(lane, w)| *lane = w.to_bits());
        widen(lanes)
    }
    #[inline(always)]
    unsafe fn load_i8_ptr(self, src: *const i8) -> f32x8 {
        // SAFETY: the caller's contract: eight values can be read.
        f32x8::from(unsafe { src.cast::<Lanes<i8>>().read() }.map(|q| q as f32))
    }
    #[inline(always)]
    unsafe fn load_u4_pair_ptr(self, src: *const u8) -> [f32x8; 2] {
        // SAFETY: the caller's contract: eight bytes can be read.
        let bytes = unsafe { src.cast::<Lanes<u8>>().read() };
        [bytes.map(|b| (b & 15) as f32 - 8.0), bytes.map(|b| (b >> 4) as f32 - 8.0)].map(f32x8::from)
    }
    #[inline(always)]
    unsafe fn load_by_4_ptr(self, src: *const f32, at: usize) -> f32x8 {
        // SAFETY: the caller's contract: the two values that the lanes from a multiple of 4 on have can be read.
        let [a, b] = unsafe { *src.add(at / 4).cast::<[f32; 2]>() };
        f32x8::from([a, a, a, a, b, b, b, b])
    }
    #[inline(always)]
    fn exponent_table(self, exponents: &[u8; 16]) -> [u8; 16] {
        *exponents
    }
    #[inline(always)]
    fn unpack_bf16<const SECOND: bool>(self, group: &packed::Group, table: [u8; 16]) -> [f32x8; 8] {
        let weights = packed::unpack::<SECOND>(group, &table);
        let (vectors, _) = weights.as_chunks();
        std::array::from_fn(|v| f32x8::from(vectors[v]))
    }
    #[inline(always)]
    fn load_f16_partial(self, src: &[f16]) -> f32x8 {
        let mut lanes = [0.0; 8];
        lanes.iter_mut().zip(src).for_each(|(lane, x)| *lane = x.to_f32());
        f32x8::from(lanes)
    }
    #[inline(always)]
    fn load_u32_partial(self, src: &[u32]) -> u32x8 {
        let mut lanes = [0; 8];
        let n = src.len().min(8);
        lanes[..n].copy_from_slice(&src[..n]);
        u32x8::from(lanes)
    }
    #[inline(always)]
    fn store_partial(self, v: f32x8, dst: &mut [f32]) {
        let n = dst.len().min(8);
        dst[..n].copy_from_slice(&v.to_array()[..n]);
    }
    #[inline(always)]
    fn add(self, a: f32x8, b: f32x8) -> f32x8 {
        a + b
    }
    #[inline(always)]
    fn sub(self, a: f32x8, b: f32x8) -> f32x8 {
        a - b
    }
    #[inline(always)]
    fn mul(self, a: f32x8, b: f32x8) -> f32x8 {
        a * b
    }
    #[inline(always)]
    fn div(self, a: f32x8, b: f32x8) -> f32x8 {
        a / b
    }
    #[inline(always)]
    fn mul_add(self, a: f32x8, b: f32x8, c: f32x8) -> f32x8 {
        a * b + c
    }
    #[inline(always)]
    fn min(self, a: f32x8, b: f32x8) -> f32x8 {
        a.simd_lt(b).select(a, b)
    }
    #[inline(always)]
    fn max(self, a: f32x8, b: f32x8) -> f32x8 {
        b.simd_lt(a).select(a, b)
    }
    #[inline(always)]
    fn sqrt(self, a: f32x8) -> f32x8 {
        a.sqrt()
    }
    #[inline(always)]
    fn round(self, a: f32x8) -> f32x8 {
        // Adding 1.5 * 2^23 pushes the fraction out of the mantissa under round-to-nearest-even; valid for |a| < 2^22.
        let magic = f32x8::splat(12_582_912.0);
        (a + magic) - magic
    }
    #[inline(always)]
    fn mul_pow2(self, v: f32x8, n: f32x8) -> f32x8 {
        // In two steps, so that each factor is a normal number; the first product is exact.
        let half = self.round(n * f32x8::splat(0.5));
        v * pow2(half) * pow2(n - half)
    }
    #[inline(always)]
    fn lt(self, a: f32x8, b: f32x8) -> f32x8 {
        a.simd_lt(b)
    }
    #[inline(always)]
    fn select(self, mask: f32x8, yes: f32x8, no: f32x8) -> f32x8 {
        mask.select(yes, no)
    }
    #[inline(always)]
    fn mask_bits(self, mask: f32x8) -> u32 {
        mask.to_bitmask()
    }
    #[inline(always)]
    fn reduce_sum(self, v: f32x8) -> f32 {
        let l = v.to_array();
        let (a, b, c, d) = (l[0] + l[4], l[1] + l[5], l[2] + l[6], l[3] + l[7]);
        (a + c) + (b + d)
    }
    #[inline(always)]
    fn reduce_max(self, v: f32x8) -> f32 {
        v.to_array().into_iter().fold(f32::NEG_INFINITY, |m, x| if x > m { x } else { m })
    }
    #[inline(always)]
    fn splat_u32(self, x: u32) -> u32x8 {
        u32x8::splat(x)
    }
    #[inline(always)]
    fn iota_u32(self, start: u32) -> u32x8 {
        u32x8::from([0, 1, 2, 3, 4, 5, 6, 7]) + u32x8::splat(start)
    }
    #[inline(always)]
    fn xor_u32(self, a: u32x8, b: u32x8) -> u32x8 {
        a ^ b
    }
    #[inline(always)]
    fn u4_pair(self, a: u32x8) -> [u32x8; 2] {
        let low = u32x8::splat(0x0F0F_0F0F);
        [a & low, (a >> 4) & low]
    }
    #[inline(always)]
    fn dot_i8(self, sum: u32x8, a: u32x8, b: u32x8) -> u32x8 {
        let (mut sum, a, b) = (sum.to_array(), a.to_array(), b.to_array());
        for i in 0..8 {
            sum[i] = dot_i8_of(sum[i], a[i], b[i]);
        }
        u32x8::from(sum)
    }
    #[inline(always)]
    fn i32_to_f32(self, a: u32x8) -> f32x8 {
        f32x8::from(a.to_array().map(|a| a as i32 as f32))
    }
    #[inline(always)]
    fn mul_wide_u32(self, a: u32x8, m: u32) -> (u32x8, u32x8) {
        let (mut high, mut low) = ([0; 8], [0; 8]);
        for (i, x) in a.to_array().into_iter().enumerate() {
            let product = x as u64 * m as u64;
            (high[i], low[i]) = ((product >> 32) as u32, product as u32);
        }
        (u32x8::from(high), u32x8::from(low))
    }
    #[inline(always)]
    fn lt_u32(self, a: u32x8, b: u32x8) -> f32x8 {
        let (a, b) = (a.to_array(), b.to_array());
        let mut lanes = [0.0f32; 8];
        for i in 0..8 {
            lanes[i] = f32::from_bits(if a[i] < b[i] { u32::MAX } else { 0 });
        }
        f32x8::from(lanes)
    }
    #[inline(always)]
    fn store_interleaved4_u16(self, words: [u32x8; 4], dst: &mut [u16]) {
        let words = words.map(|w| w.to_array());
        for (i, group) in dst[..64].chunks_exact_mut(8).enumerate() {
            for w in 0..4 {
                (group[2 * w], group[2 * w + 1]) = (words[w][i] as u16, (words[w][i] >> 16) as u16);
            }
        }
    }
    #[inline(always)]
    fn load_u16_as_u32(self, src: &[u16]) -> u32x8 {
        let mut lanes = [0; 8];
        for (lane, &x) in lanes.iter_mut().zip(&src[..8]) {
            *lane = x as u32;
        }
        u32x8::from(lanes)
    }
    #[inline(always)]
    fn compress_store_u32(self, mask: f32x8, values: u32x8, dst: &mut [u32]) -> usize {
        compress(self.mask_bits(mask), values.to_array(), dst)
    }
    #[inline(always)]
    fn compress_store(self, mask: f32x8, values: f32x8, dst: &mut [f32]) -> usize {
        compress(self.mask_bits(mask), values.to_array(), dst)
    }
    #[inline(always)]
    fn transpose(self, src: &[f32], src_stride: usize, rows: usize, cols: usize, dst: &mut [f32], dst_stride: usize) {
        check_transpose::<Self>(src, src_stride, rows, cols, dst, dst_stride);
        let mut block = [f32x8::splat(0.0); 8];
        for (i, row) in block.iter_mut().enumerate().take(rows) {
            let src = &src[i * src_stride..][..cols];
            *row = if cols == 8 { self.load(src) } else { self.load_partial(src) };
        }
        for (j, column) in f32x8::transpose(block).into_iter().enumerate().take(cols) {
            self.store(column, &mut dst[j * dst_stride..]);
        }
    }
    #[inline(always)]
    fn prefetch(self, _p: *const f32) {}
    #[inline(never)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }
}

/// The floats whose upper halves are given: bf16 to f32.
#[inline(always)]
fn widen(bits: Lanes<u16>) -> f32x8 {
    f32x8::from(bits.map(|bits| f32::from_bits((bits as u32) << 16)))
}

/// `2^n` for integer-valued `n` in `-126..=127`. The sum has its integer in the low bits of the mantissa (see `round`);
/// the shift moves it into the exponent and everything else out.
#[inline(always)]
fn pow2(n: f32x8) -> f32x8 {
    let biased = n + f32x8::splat(12_582_912.0 + 127.0);
    f32x8::from(biased.to_array().map(|x| f32::from_bits(x.to_bits() << 23)))
}

/// Branch-free: every lane is stored, and the cursor moves past those that are kept.
#[inline(always)]
fn compress<T: Copy>(bits: u32, lanes: Lanes<T>, dst: &mut [T]) -> usize {
    let dst = &mut dst[..8];
    let mut n = 0;
    for (i, &x) in lanes.iter().enumerate() {
        dst[n] = x;
        n += (bits >> i & 1) as usize;
    }
    n
}
