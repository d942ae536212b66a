//! One lane: the level for debugging, and the plainest reading of what each operation means.

use super::{Isa, Kernel, Simd, check_transpose, dot_i8_of};
use crate::packed;
use half::{bf16, f16};

/// The token of level `scalar`.
#[derive(Clone, Copy, Debug)]
pub struct Scalar(());

impl Scalar {
    pub(super) const fn new() -> Self {
        Scalar(())
    }
}

impl Simd for Scalar {
    type F32 = f32;
    type U32 = u32;
    type Mask = bool;
    type Unpacked = [f32; packed::HALF];
    type ExponentTable = [u8; 16];
    const ISA: Isa = Isa::Scalar;
    const LANES: usize = 1;

    #[inline(always)]
    fn splat(self, x: f32) -> f32 {
        x
    }
    #[inline(always)]
    unsafe fn load_ptr(self, src: *const f32) -> f32 {
        // SAFETY: the caller's contract: one value can be read.
        unsafe { src.read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store_ptr(self, v: f32, dst: *mut f32) {
        // SAFETY: the caller's contract: one value can be written.
        unsafe { dst.write_unaligned(v) }
    }
    #[inline(always)]
    fn load_partial(self, src: &[f32]) -> f32 {
        src.first().copied().unwrap_or(0.0)
    }
    #[inline(always)]
    unsafe fn load_bf16_ptr(self, src: *const bf16) -> f32 {
        // SAFETY: the caller's contract: one value can be read.
        f32::from_bits((unsafe { src.read() }.to_bits() as u32) << 16)
    }
    #[inline(always)]
    fn load_bf16_partial(self, src: &[bf16]) -> f32 {
        src.first().map_or(0.0, |w| f32::from_bits((w.to_bits() as u32) << 16))
    }
    #[inline(always)]
    unsafe fn load_i8_ptr(self, src: *const i8) -> f32 {
        // SAFETY: the caller's contract: one value can be read.
        unsafe { src.read() as f32 }
    }
    #[inline(always)]
    unsafe fn load_u4_pair_ptr(self, src: *const u8) -> [f32; 2] {
        // SAFETY: the caller's contract: one byte can be read.
        let byte = unsafe { src.read() };
        [(byte & 15) as f32 - 8.0, (byte >> 4) as f32 - 8.0]
    }
    #[inline(always)]
    unsafe fn load_by_4_ptr(self, src: *const f32, at: usize) -> f32 {
        // SAFETY: the caller's contract: the lane's value can be read.
        unsafe { *src.add(at / 4) }
    }
    #[inline(always)]
    fn exponent_table(self, exponents: &[u8; 16]) -> [u8; 16] {
        *exponents
    }
    #[inline(always)]
    fn unpack_bf16<const SECOND: bool>(self, group: &packed::Group, table: [u8; 16]) -> [f32; packed::HALF] {
        packed::unpack::<SECOND>(group, &table)
    }
    #[inline(always)]
    fn load_f16_partial(self, src: &[f16]) -> f32 {
        src.first().map_or(0.0, |x| x.to_f32())
    }
    #[inline(always)]
    fn load_u32_partial(self, src: &[u32]) -> u32 {
        src.first().copied().unwrap_or(0)
    }
    #[inline(always)]
    fn store_partial(self, v: f32, dst: &mut [f32]) {
        if let Some(first) = dst.first_mut() {
            *first = v;
        }
    }
    #[inline(always)]
    fn add(self, a: f32, b: f32) -> f32 {
        a + b
    }
    #[inline(always)]
    fn sub(self, a: f32, b: f32) -> f32 {
        a - b
    }
    #[inline(always)]
    fn mul(self, a: f32, b: f32) -> f32 {
        a * b
    }
    #[inline(always)]
    fn div(self, a: f32, b: f32) -> f32 {
        a / b
    }
    #[inline(always)]
    fn mul_add(self, a: f32, b: f32, c: f32) -> f32 {
        // Not f32::mul_add: without an FMA instruction that is a slow library call.
        a * b + c
    }
    #[inline(always)]
    fn min(self, a: f32, b: f32) -> f32 {
        if a < b { a } else { b }
    }
    #[inline(always)]
    fn max(self, a: f32, b: f32) -> f32 {
        if a > b { a } else { b }
    }
    #[inline(always)]
    fn sqrt(self, a: f32) -> f32 {
        a.sqrt()
    }
    #[inline(always)]
    fn round(self, a: f32) -> f32 {
        a.round_ties_even()
    }
    #[inline(always)]
    fn mul_pow2(self, v: f32, n: f32) -> f32 {
        // In two steps, so that each factor is a normal number; the first product is exact.
        let pow2 = |n: i32| f32::from_bits(((n + 127) as u32) << 23);
        let half = n as i32 / 2;
        v * pow2(half) * pow2(n as i32 - half)
    }
    #[inline(always)]
    fn lt(self, a: f32, b: f32) -> bool {
        a < b
    }
    #[inline(always)]
    fn select(self, mask: bool, yes: f32, no: f32) -> f32 {
        if mask { yes } else { no }
    }
    #[inline(always)]
    fn mask_bits(self, mask: bool) -> u32 {
        mask as u32
    }
    #[inline(always)]
    fn reduce_sum(self, v: f32) -> f32 {
        v
    }
    #[inline(always)]
    fn reduce_max(self, v: f32) -> f32 {
        v
    }
    #[inline(always)]
    fn splat_u32(self, x: u32) -> u32 {
        x
    }
    #[inline(always)]
    fn iota_u32(self, start: u32) -> u32 {
        start
    }
    #[inline(always)]
    fn xor_u32(self, a: u32, b: u32) -> u32 {
        a ^ b
    }
    #[inline(always)]
    fn u4_pair(self, a: u32) -> [u32; 2] {
        [a & 0x0F0F_0F0F, a >> 4 & 0x0F0F_0F0F]
    }
    #[inline(always)]
    fn dot_i8(self, sum: u32, a: u32, b: u32) -> u32 {
        dot_i8_of(sum, a, b)
    }
    #[inline(always)]
    fn i32_to_f32(self, a: u32) -> f32 {
        a as i32 as f32
    }
    #[inline(always)]
    fn mul_wide_u32(self, a: u32, m: u32) -> (u32, u32) {
        let product = a as u64 * m as u64;
        ((product >> 32) as u32, product as u32)
    }
    #[inline(always)]
    fn lt_u32(self, a: u32, b: u32) -> bool {
        a < b
    }
    #[inline(always)]
    fn store_interleaved4_u16(self, words: [u32; 4], dst: &mut [u16]) {
        for (pair, word) in dst[..8].chunks_exact_mut(2).zip(words) {
            (pair[0], pair[1]) = (word as u16, (word >> 16) as u16);
        }
    }
    #[inline(always)]
    fn load_u16_as_u32(self, src: &[u16]) -> u32 {
        src[0] as u32
    }
    #[inline(always)]
    fn compress_store_u32(self, mask: bool, values: u32, dst: &mut [u32]) -> usize {
        dst[0] = values;
        mask as usize
    }
    #[inline(always)]
    fn compress_store(self, mask: bool, values: f32, dst: &mut [f32]) -> usize {
        dst[0] = values;
        mask as usize
    }
    #[inline(always)]
    fn transpose(self, src: &[f32], src_stride: usize, rows: usize, cols: usize, dst: &mut [f32], dst_stride: usize) {
        check_transpose::<Self>(src, src_stride, rows, cols, dst, dst_stride);
        if cols == 1 {
            dst[0] = if rows == 1 { src[0] } else { 0.0 };
        }
    }
    #[inline(always)]
    fn prefetch(self, _p: *const f32) {}
    #[inline(never)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }
}
