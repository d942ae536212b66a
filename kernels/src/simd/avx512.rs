//! Sixteen lanes: x86-64 with AVX-512 F, BW, DQ and VL (Skylake-X, Ice Lake, Zen 4 and later), and VNNI and BF16 where they are
//! there.

use super::{DotBf16, Isa, Kernel, Simd, check_transpose};
use crate::gemv::LINE;
use crate::packed;
use core::arch::x86_64::*;
use half::{bf16, f16};

/// The token of level `avx512`. It exists only where the CPU has the features, which is what makes the methods sound. With
/// `VNNI`, the CPU has AVX-512 VNNI too, and [`Simd::dot_i8`] is one instruction. With `BF16`, the CPU has AVX512-BF16 too, and there
/// is [`Simd::dot_bf16`].
#[derive(Clone, Copy, Debug)]
pub struct Avx512<const VNNI: bool, const BF16: bool>(());

impl<const VNNI: bool, const BF16: bool> Avx512<VNNI, BF16> {
    /// # Safety
    /// The CPU has AVX-512 F, BW, DQ and VL, and where the flags are set, VNNI and BF16.
    pub(super) const unsafe fn new_unchecked() -> Self {
        Avx512(())
    }
}

/// All the safe methods below rest on one argument, given once: `self` exists, so `Avx512::new_unchecked` was called, so
/// the CPU has the features that the intrinsics need.
macro_rules! by_token {
    ($e:expr) => {
        // SAFETY: the token proves the CPU features (see `Avx512::new_unchecked`); no pointer is involved.
        unsafe { $e }
    };
}

#[inline(always)]
fn tail_mask(len: usize) -> __mmask16 {
    if len >= 16 { !0 } else { (1u16 << len) - 1 }
}

/// Sixteen bf16 as the upper halves of sixteen floats.
///
/// # Safety
/// The CPU has AVX-512 F.
#[inline(always)]
unsafe fn widen(bits: __m256i) -> __m512 {
    // SAFETY: the caller's contract.
    unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits))) }
}

impl<const VNNI: bool, const BF16: bool> Simd for Avx512<VNNI, BF16> {
    type F32 = __m512;
    type U32 = __m512i;
    type Mask = __mmask16;
    type Unpacked = [__m512; 4];
    /// The upper seven bits of each exponent, and its last one as the highest bit of a byte.
    type ExponentTable = [__m512i; 2];
    const ISA: Isa = Isa::Avx512;
    const LANES: usize = 16;
    const HAS_DOT_I8: bool = VNNI;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        by_token!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    unsafe fn load_ptr(self, src: *const f32) -> __m512 {
        // SAFETY: the caller's contract: sixteen values can be read; the token proves the features.
        unsafe { _mm512_loadu_ps(src) }
    }
    #[inline(always)]
    unsafe fn store_ptr(self, v: __m512, dst: *mut f32) {
        // SAFETY: the caller's contract: sixteen values can be written; the token proves the features.
        unsafe { _mm512_storeu_ps(dst, v) }
    }
    #[inline(always)]
    fn load_partial(self, src: &[f32]) -> __m512 {
        // SAFETY: the mask keeps the load within the slice (masked-off lanes are not accessed); the token proves the features.
        unsafe { _mm512_maskz_loadu_ps(tail_mask(src.len()), src.as_ptr()) }
    }
    #[inline(always)]
    unsafe fn load_bf16_ptr(self, src: *const bf16) -> __m512 {
        // SAFETY: the caller's contract: sixteen values can be read; the token proves the features.
        unsafe { widen(_mm256_loadu_si256(src.cast())) }
    }
    #[inline(always)]
    fn load_bf16_partial(self, src: &[bf16]) -> __m512 {
        // SAFETY: the mask keeps the load within the slice (masked-off lanes are not accessed); the token proves the features.
        unsafe { widen(_mm256_maskz_loadu_epi16(tail_mask(src.len()), src.as_ptr().cast())) }
    }
    #[inline(always)]
    unsafe fn load_i8_ptr(self, src: *const i8) -> __m512 {
        // SAFETY: the caller's contract: sixteen values can be read; the token proves the features.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(src.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_u4_pair_ptr(self, src: *const u8) -> [__m512; 2] {
        // SAFETY: the caller's contract: sixteen bytes can be read; the token proves the features.
        unsafe {
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(src.cast()));
            // A table look-up: the permutation goes by the low four bits of each lane and ignores the others.
            let value = _mm512_setr_ps(-8., -7., -6., -5., -4., -3., -2., -1., 0., 1., 2., 3., 4., 5., 6., 7.);
            [_mm512_permutexvar_ps(bytes, value), _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(bytes), value)]
        }
    }
    #[inline(always)]
    unsafe fn load_by_4_ptr(self, src: *const f32, at: usize) -> __m512 {
        // SAFETY: the caller's contract: the four values that the lanes from a multiple of 4 on have can be read; the token
        // proves the features.
        unsafe {
            let four = _mm512_broadcast_f32x4(_mm_loadu_ps(src.add(at / 4)));
            _mm512_permutevar_ps(four, _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3))
        }
    }
    #[inline(always)]
    fn exponent_table(self, exponents: &[u8; 16]) -> [__m512i; 2] {
        // SAFETY: there are 16 bytes; the token proves the features.
        unsafe {
            let exponents = _mm512_broadcast_i32x4(_mm_loadu_si128(exponents.as_ptr().cast()));
            let upper = _mm512_and_si512(_mm512_srli_epi16::<1>(exponents), _mm512_set1_epi8(0x7F));
            let last = _mm512_and_si512(_mm512_slli_epi16::<7>(exponents), _mm512_set1_epi8(-128));
            [upper, last]
        }
    }
    #[inline(always)]
    fn unpack_bf16<const SECOND: bool>(self, group: &packed::Group, [upper, last]: [__m512i; 2]) -> [__m512; 4] {
        /// `(a & b) | c`.
        const AND_OR: i32 = 0b1110_1010;
        // SAFETY: there are 64 bytes of each; the token proves the features.
        unsafe {
            let rest = _mm512_loadu_si512(group.signs_and_fractions[SECOND as usize].as_ptr().cast());
            let codes = _mm512_loadu_si512(group.codes.as_ptr().cast());
            let codes = if SECOND { _mm512_srli_epi16::<4>(codes) } else { codes };
            let codes = _mm512_and_si512(codes, _mm512_set1_epi8(15));
            let (sign, fraction) = (_mm512_set1_epi8(-128), _mm512_set1_epi8(0x7F));
            let high = _mm512_ternarylogic_epi32::<AND_OR>(rest, sign, _mm512_shuffle_epi8(upper, codes));
            let low = _mm512_ternarylogic_epi32::<AND_OR>(rest, fraction, _mm512_shuffle_epi8(last, codes));
            let (first, second) = (_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high));
            let zero = _mm512_setzero_si512();
            [
                _mm512_castsi512_ps(_mm512_unpacklo_epi16(zero, first)),
                _mm512_castsi512_ps(_mm512_unpackhi_epi16(zero, first)),
                _mm512_castsi512_ps(_mm512_unpacklo_epi16(zero, second)),
                _mm512_castsi512_ps(_mm512_unpackhi_epi16(zero, second)),
            ]
        }
    }
    #[inline(always)]
    fn load_f16_partial(self, src: &[f16]) -> __m512 {
        // SAFETY: the mask keeps the load within the slice (masked-off lanes are not accessed); the token proves the features.
        unsafe { _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(tail_mask(src.len()), src.as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_cyclic(self, src: &[f32]) -> __m512 {
        match src.len() {
            // SAFETY: there are so many values; the token proves the features.
            8 => unsafe { _mm512_broadcast_f32x8(_mm256_loadu_ps(src.as_ptr())) },
            // SAFETY: as above.
            4 => unsafe { _mm512_broadcast_f32x4(_mm_loadu_ps(src.as_ptr())) },
            n if n >= 16 => self.load(src),
            _ => {
                let mut lanes = [0.0; 16];
                lanes.iter_mut().zip(src.iter().cycle()).for_each(|(lane, x)| *lane = *x);
                self.load(&lanes)
            }
        }
    }
    #[inline(always)]
    fn load_f16_cyclic(self, src: &[f16]) -> __m512 {
        match src.len() {
            // SAFETY: there are so many values; the token proves the features.
            8 => unsafe { _mm512_cvtph_ps(_mm256_broadcastsi128_si256(_mm_loadu_si128(src.as_ptr().cast()))) },
            // SAFETY: as above.
            4 => unsafe { _mm512_cvtph_ps(_mm256_set1_epi64x(src.as_ptr().cast::<i64>().read_unaligned())) },
            n if n >= 16 => self.load_f16_partial(src),
            _ => {
                let mut lanes = [f16::ZERO; 16];
                lanes.iter_mut().zip(src.iter().cycle()).for_each(|(lane, x)| *lane = *x);
                self.load_f16_partial(&lanes)
            }
        }
    }
    #[inline(always)]
    fn load_u32_partial(self, src: &[u32]) -> __m512i {
        // SAFETY: the mask keeps the load within the slice (masked-off lanes are not accessed); the token proves the features.
        unsafe { _mm512_maskz_loadu_epi32(tail_mask(src.len()), src.as_ptr().cast()) }
    }
    #[inline(always)]
    fn store_partial(self, v: __m512, dst: &mut [f32]) {
        // SAFETY: the mask keeps the store within the slice (masked-off lanes are not accessed); the token proves the features.
        unsafe { _mm512_mask_storeu_ps(dst.as_mut_ptr(), tail_mask(dst.len()), v) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        by_token!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        by_token!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        by_token!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        by_token!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        by_token!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        by_token!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        by_token!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn sqrt(self, a: __m512) -> __m512 {
        by_token!(_mm512_sqrt_ps(a))
    }
    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        by_token!(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a))
    }
    #[inline(always)]
    fn mul_pow2(self, v: __m512, n: __m512) -> __m512 {
        by_token!(_mm512_scalef_ps(v, n))
    }
    #[inline(always)]
    fn lt(self, a: __m512, b: __m512) -> __mmask16 {
        by_token!(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b))
    }
    #[inline(always)]
    fn select(self, mask: __mmask16, yes: __m512, no: __m512) -> __m512 {
        by_token!(_mm512_mask_blend_ps(mask, no, yes))
    }
    #[inline(always)]
    fn mask_bits(self, mask: __mmask16) -> u32 {
        mask as u32
    }
    #[inline(always)]
    fn reduce_sum(self, v: __m512) -> f32 {
        by_token!({
            let v = _mm512_add_ps(v, _mm512_shuffle_f32x4::<0b01_00_11_10>(v, v));
            let v = _mm512_add_ps(v, _mm512_shuffle_f32x4::<0b10_11_00_01>(v, v));
            let v = _mm512_castps512_ps128(v);
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        })
    }
    #[inline(always)]
    fn reduce_max(self, v: __m512) -> f32 {
        by_token!(_mm512_reduce_max_ps(v))
    }
    #[inline(always)]
    fn dot_i8_i16(self, a: &[i8], b: &[i16], hint: *const i8) -> i64 {
        /// Accumulators, taking turns.
        const A: usize = 4;
        /// Elements that are added up in 32 bits: 256 products of at most 2^22 a lane, over all accumulators.
        const PANEL: usize = 4096;
        const STEP: usize = 32;
        assert_eq!(a.len(), b.len(), "dot_i8_i16: lengths differ");
        let whole = a.len() / (A * STEP) * (A * STEP);
        let mut sum = by_token!(_mm512_setzero_si512());
        for start in (0..whole).step_by(PANEL) {
            let mut acc = [by_token!(_mm512_setzero_si512()); A];
            for at in (start..whole.min(start + PANEL)).step_by(A * STEP) {
                (0..A * STEP).step_by(LINE).for_each(|line| self.prefetch(hint.wrapping_add(at + line).cast()));
                for (i, acc) in acc.iter_mut().enumerate() {
                    // SAFETY: at + A * STEP <= whole, at most the length of a and, by the assert, of b; the token proves the features.
                    unsafe {
                        let a = _mm512_cvtepi8_epi16(_mm256_loadu_si256(a.as_ptr().add(at + i * STEP).cast()));
                        let b = _mm512_loadu_si512(b.as_ptr().add(at + i * STEP).cast());
                        *acc = _mm512_add_epi32(*acc, _mm512_madd_epi16(a, b));
                    }
                }
            }
            sum = by_token!({
                let acc = _mm512_add_epi32(_mm512_add_epi32(acc[0], acc[1]), _mm512_add_epi32(acc[2], acc[3]));
                let low = _mm512_cvtepi32_epi64(_mm512_castsi512_si256(acc));
                let high = _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64::<1>(acc));
                _mm512_add_epi64(sum, _mm512_add_epi64(low, high))
            });
        }
        by_token!(_mm512_reduce_add_epi64(sum)) + super::exact_dot(&a[whole..], &b[whole..])
    }
    #[inline(always)]
    fn splat_u32(self, x: u32) -> __m512i {
        by_token!(_mm512_set1_epi32(x as i32))
    }
    #[inline(always)]
    fn iota_u32(self, start: u32) -> __m512i {
        by_token!(_mm512_add_epi32(
            _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
            _mm512_set1_epi32(start as i32)
        ))
    }
    #[inline(always)]
    fn xor_u32(self, a: __m512i, b: __m512i) -> __m512i {
        by_token!(_mm512_xor_si512(a, b))
    }
    #[inline(always)]
    fn u4_pair(self, a: __m512i) -> [__m512i; 2] {
        by_token!({
            let low = _mm512_set1_epi8(0x0F);
            [_mm512_and_si512(a, low), _mm512_and_si512(_mm512_srli_epi32::<4>(a), low)]
        })
    }
    #[inline(always)]
    fn dot_i8(self, sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
        if VNNI {
            return by_token!(_mm512_dpbusd_epi32(sum, a, b));
        }
        by_token!({
            // Bytes of even and of odd places, as 16-bit numbers; products of both fit, sums of two of them fill 32 bits.
            let even = _mm512_madd_epi16(
                _mm512_and_si512(a, _mm512_set1_epi16(0xFF)),
                _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(b)),
            );
            let odd = _mm512_madd_epi16(_mm512_srli_epi16::<8>(a), _mm512_srai_epi16::<8>(b));
            _mm512_add_epi32(sum, _mm512_add_epi32(even, odd))
        })
    }
    #[inline(always)]
    fn i32_to_f32(self, a: __m512i) -> __m512 {
        by_token!(_mm512_cvtepi32_ps(a))
    }
    #[inline(always)]
    fn mul_wide_u32(self, a: __m512i, m: u32) -> (__m512i, __m512i) {
        by_token!({
            // The instruction multiplies the even lanes only: once as they are, once with the odd lanes moved down. Each
            // product fills two lanes, high half in the odd one; a masked shuffle moves and merges in one step.
            let m = _mm512_set1_epi32(m as i32);
            let even = _mm512_mul_epu32(a, m);
            let odd = _mm512_mul_epu32(_mm512_srli_epi64::<32>(a), m);
            let high = _mm512_mask_shuffle_epi32::<_MM_PERM_DDBB>(odd, 0x5555, even);
            let low = _mm512_mask_shuffle_epi32::<_MM_PERM_CCAA>(even, 0xAAAA, odd);
            (high, low)
        })
    }
    #[inline(always)]
    fn lt_u32(self, a: __m512i, b: __m512i) -> __mmask16 {
        by_token!(_mm512_cmplt_epu32_mask(a, b))
    }
    #[inline(always)]
    fn store_interleaved4_u16(self, words: [__m512i; 4], dst: &mut [u16]) {
        assert!(dst.len() >= 128);
        let [w0, w1, w2, w3] = words;
        // Transpose 4x4 inside each 128-bit part (a..d hold lanes i, i+4, i+8, i+12 of all four words), then bring the
        // four parts of each lane group together.
        let (a, b, c, d);
        by_token!({
            let (lo01, hi01) = (_mm512_unpacklo_epi32(w0, w1), _mm512_unpackhi_epi32(w0, w1));
            let (lo23, hi23) = (_mm512_unpacklo_epi32(w2, w3), _mm512_unpackhi_epi32(w2, w3));
            a = _mm512_unpacklo_epi64(lo01, lo23);
            b = _mm512_unpackhi_epi64(lo01, lo23);
            c = _mm512_unpacklo_epi64(hi01, hi23);
            d = _mm512_unpackhi_epi64(hi01, hi23);
        });
        let quarters: [__m512i; 4];
        by_token!({
            let (ab_low, ab_high) =
                (_mm512_shuffle_i32x4::<0b01_00_01_00>(a, b), _mm512_shuffle_i32x4::<0b11_10_11_10>(a, b));
            let (cd_low, cd_high) =
                (_mm512_shuffle_i32x4::<0b01_00_01_00>(c, d), _mm512_shuffle_i32x4::<0b11_10_11_10>(c, d));
            // ab_low = a0 a1 b0 b1, cd_low = c0 c1 d0 d1: lanes 0-3 are a0 b0 c0 d0, lanes 4-7 are a1 b1 c1 d1.
            quarters = [
                _mm512_shuffle_i32x4::<0b10_00_10_00>(ab_low, cd_low),
                _mm512_shuffle_i32x4::<0b11_01_11_01>(ab_low, cd_low),
                _mm512_shuffle_i32x4::<0b10_00_10_00>(ab_high, cd_high),
                _mm512_shuffle_i32x4::<0b11_01_11_01>(ab_high, cd_high),
            ];
        });
        for (q, v) in quarters.into_iter().enumerate() {
            // SAFETY: the assert above proves 128 places, 32 for each quarter; the token proves the features. x86-64 stores the
            // low half of a word first.
            unsafe { _mm512_storeu_si512(dst.as_mut_ptr().add(32 * q).cast(), v) }
        }
    }
    #[inline(always)]
    fn load_u16_as_u32(self, src: &[u16]) -> __m512i {
        assert!(src.len() >= 16);
        // SAFETY: the assert proves 32 bytes; the token proves the features.
        unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(src.as_ptr().cast())) }
    }
    #[inline(always)]
    fn compress_store_u32(self, mask: __mmask16, values: __m512i, dst: &mut [u32]) -> usize {
        assert!(dst.len() >= 16);
        // Compress in register, then one full store: the compressing store to memory is microcoded on Zen 4 and Zen 5.
        // SAFETY: the assert proves 16 places; the token proves the features.
        unsafe { _mm512_storeu_si512(dst.as_mut_ptr().cast(), _mm512_maskz_compress_epi32(mask, values)) };
        mask.count_ones() as usize
    }
    #[inline(always)]
    fn compress_store(self, mask: __mmask16, values: __m512, dst: &mut [f32]) -> usize {
        assert!(dst.len() >= 16);
        // SAFETY: the assert proves 16 places; the token proves the features.
        unsafe { _mm512_storeu_ps(dst.as_mut_ptr(), _mm512_maskz_compress_ps(mask, values)) };
        mask.count_ones() as usize
    }
    #[inline(always)]
    fn transpose(self, src: &[f32], src_stride: usize, rows: usize, cols: usize, dst: &mut [f32], dst_stride: usize) {
        check_transpose::<Self>(src, src_stride, rows, cols, dst, dst_stride);
        let mut r = [self.splat(0.0); 16];
        let mask = tail_mask(cols);
        for (i, r) in r.iter_mut().enumerate() {
            if i < rows {
                // SAFETY: `check_transpose` proves `cols` values from here; the mask leaves out the others.
                *r = unsafe { _mm512_maskz_loadu_ps(mask, src.as_ptr().add(i * src_stride)) };
            }
        }
        // Four stages: pairs and quadruples of rows inside each 128-bit part, then the parts, by quarters and by halves.
        let mut t = r;
        by_token!({
            for i in 0..8 {
                t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
            }
            for i in 0..4 {
                let (a, b) = (_mm512_castps_pd(t[4 * i]), _mm512_castps_pd(t[4 * i + 1]));
                let (c, d) = (_mm512_castps_pd(t[4 * i + 2]), _mm512_castps_pd(t[4 * i + 3]));
                r[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
                r[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
                r[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
                r[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
            }
            // r[4 q + j] holds, in part p, rows 4 q .. 4 q + 4 of column 4 p + j.
            for j in 0..4 {
                t[j] = _mm512_shuffle_f32x4::<0b10_00_10_00>(r[j], r[4 + j]);
                t[4 + j] = _mm512_shuffle_f32x4::<0b11_01_11_01>(r[j], r[4 + j]);
                t[8 + j] = _mm512_shuffle_f32x4::<0b10_00_10_00>(r[8 + j], r[12 + j]);
                t[12 + j] = _mm512_shuffle_f32x4::<0b11_01_11_01>(r[8 + j], r[12 + j]);
            }
            // t[j] = parts (q0 p0, q0 p2, q1 p0, q1 p2), t[8 + j] the same of q2 and q3: take p0, then p2; t[4 + j]: p1, p3.
            for j in 0..4 {
                r[j] = _mm512_shuffle_f32x4::<0b10_00_10_00>(t[j], t[8 + j]);
                r[8 + j] = _mm512_shuffle_f32x4::<0b11_01_11_01>(t[j], t[8 + j]);
                r[4 + j] = _mm512_shuffle_f32x4::<0b10_00_10_00>(t[4 + j], t[12 + j]);
                r[12 + j] = _mm512_shuffle_f32x4::<0b11_01_11_01>(t[4 + j], t[12 + j]);
            }
        });
        for (j, &r) in r.iter().enumerate() {
            if j < cols {
                // SAFETY: `check_transpose` proves sixteen places from the start of each destination row.
                unsafe { _mm512_storeu_ps(dst.as_mut_ptr().add(j * dst_stride), r) }
            }
        }
    }
    #[inline(always)]
    fn prefetch(self, p: *const f32) {
        // SAFETY: a prefetch never faults, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: the token proves the features.
        unsafe {
            match (VNNI, BF16) {
                (_, true) => super::dispatch::run_avx512_bf16(kernel),
                (true, false) => super::dispatch::run_avx512_vnni(kernel),
                (false, false) => super::dispatch::run_avx512(kernel),
            }
        }
    }
    #[inline(always)]
    fn dot_bf16(self) -> Option<impl DotBf16<Self>> {
        BF16.then_some(Avx512Bf16(()))
    }
}

/// The token of AVX512-BF16, made only from an [`Avx512`] that has it.
#[derive(Clone, Copy, Debug)]
struct Avx512Bf16(());

/// Sixteen pairs as the operand that the intrinsics want.
#[inline(always)]
fn pairs(v: __m512) -> __m512bh {
    // SAFETY: both are 64 bytes, any of which are valid.
    unsafe { core::mem::transmute(v) }
}

/// The other way.
#[inline(always)]
fn carried(v: __m512bh) -> __m512 {
    // SAFETY: as above.
    unsafe { core::mem::transmute(v) }
}

impl<const VNNI: bool, const BF16: bool> DotBf16<Avx512<VNNI, BF16>> for Avx512Bf16 {
    #[inline(always)]
    fn dot(self, a: __m512, b: __m512, acc: __m512) -> __m512 {
        by_token!(_mm512_dpbf16_ps(acc, pairs(a), pairs(b)))
    }
    #[inline(always)]
    fn pair_lanes(self, low: __m512, high: __m512) -> __m512 {
        by_token!({
            // One rounding instruction gives 16 low ones, then 16 high ones; a shuffle brings them together.
            let separate = carried(_mm512_cvtne2ps_pbh(high, low));
            let order = _mm512_set_epi16(
                31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2,
                17, 1, 16, 0,
            );
            _mm512_castsi512_ps(_mm512_permutexvar_epi16(order, _mm512_castps_si512(separate)))
        })
    }
    #[inline(always)]
    fn pair_neighbours(self, first: __m512, second: __m512) -> __m512 {
        by_token!(carried(_mm512_cvtne2ps_pbh(second, first)))
    }
}
