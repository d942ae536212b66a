//! Eight lanes: x86-64 with AVX2, FMA and F16C (Haswell, Zen and later).

use super::{Isa, Kernel, Simd, check_transpose};
use crate::gemv::LINE;
use crate::packed;
use core::arch::x86_64::*;
use half::{bf16, f16};

/// The token of level `avx2`. It exists only where the CPU has the features, which is what makes the methods sound.
#[derive(Clone, Copy, Debug)]
pub struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The CPU has AVX2, FMA and F16C.
    pub(super) const unsafe fn new_unchecked() -> Self {
        Avx2(())
    }
}

/// All the safe methods below rest on one argument, given once: `self` exists, so `Avx2::new_unchecked` was called, so
/// the CPU has the features that the intrinsics need.
macro_rules! by_token {
    ($e:expr) => {
        // SAFETY: the token proves the CPU features (see `Avx2::new_unchecked`); no pointer is involved.
        unsafe { $e }
    };
}

/// All bits of the first `len` lanes, at most 8.
#[inline(always)]
fn tail_mask(len: usize) -> __m256i {
    const EDGE: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    // SAFETY: the start is 0 to 8, and eight values follow each of them; a token exists where this is called.
    unsafe { _mm256_loadu_si256(EDGE.as_ptr().add(8 - len.min(8)).cast()) }
}

/// Eight bf16 as the upper halves of eight floats.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn widen(bits: __m128i) -> __m256 {
    // SAFETY: the caller's contract.
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits))) }
}

/// For each mask its lanes in order, then any: the permutation that compresses. Bytes, widened when read: 2 KiB of L1.
static COMPRESS: [[u8; 8]; 256] = {
    let mut table = [[0; 8]; 256];
    let mut mask = 0;
    while mask < 256 {
        let (mut lane, mut n) = (0, 0);
        while lane < 8 {
            if mask >> lane & 1 == 1 {
                table[mask][n] = lane as u8;
                n += 1;
            }
            lane += 1;
        }
        mask += 1;
    }
    table
};

/// The permutation of `COMPRESS` for a mask, and how many lanes it keeps.
#[inline(always)]
fn compression(mask: __m256) -> (__m256i, usize) {
    let bits = by_token!(_mm256_movemask_ps(mask)) as usize;
    // SAFETY: a row of the table has eight bytes; a mask, which only the token's methods make, exists.
    let order = unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(COMPRESS[bits].as_ptr().cast())) };
    (order, bits.count_ones() as usize)
}

/// `2^n` for `n` in `-126..=127`.
#[inline(always)]
fn pow2(n: __m256i) -> __m256 {
    by_token!(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n, _mm256_set1_epi32(127)))))
}

impl Simd for Avx2 {
    type F32 = __m256;
    type U32 = __m256i;
    /// All bits of a lane, or none.
    type Mask = __m256;
    type Unpacked = [__m256; 8];
    /// The upper seven bits of each exponent, and its last one as the highest bit of a byte.
    type ExponentTable = [__m256i; 2];
    const ISA: Isa = Isa::Avx2;
    const LANES: usize = 8;

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        by_token!(_mm256_set1_ps(x))
    }
    #[inline(always)]
    unsafe fn load_ptr(self, src: *const f32) -> __m256 {
        // SAFETY: the caller's contract: eight values can be read; the token proves the features.
        unsafe { _mm256_loadu_ps(src) }
    }
    #[inline(always)]
    unsafe fn store_ptr(self, v: __m256, dst: *mut f32) {
        // SAFETY: the caller's contract: eight values can be written; the token proves the features.
        unsafe { _mm256_storeu_ps(dst, v) }
    }
    #[inline(always)]
    fn load_partial(self, src: &[f32]) -> __m256 {
        // SAFETY: the mask keeps the load within the slice (masked-off lanes are not accessed); the token proves the features.
        unsafe { _mm256_maskload_ps(src.as_ptr(), tail_mask(src.len())) }
    }
    #[inline(always)]
    unsafe fn load_bf16_ptr(self, src: *const bf16) -> __m256 {
        // SAFETY: the caller's contract: eight values can be read; the token proves the features.
        unsafe { widen(_mm_loadu_si128(src.cast())) }
    }
    #[inline(always)]
    fn load_bf16_partial(self, src: &[bf16]) -> __m256 {
        // There is no masked load of 16 bits.
        let mut lanes = [bf16::ZERO; 8];
        let n = src.len().min(8);
        lanes[..n].copy_from_slice(&src[..n]);
        // SAFETY: the array has eight values; the token proves the features.
        unsafe { self.load_bf16_ptr(lanes.as_ptr()) }
    }
    #[inline(always)]
    unsafe fn load_i8_ptr(self, src: *const i8) -> __m256 {
        // SAFETY: the caller's contract: eight values can be read; the token proves the features.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(src.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_u4_pair_ptr(self, src: *const u8) -> [__m256; 2] {
        // SAFETY: the caller's contract: eight bytes can be read; the token proves the features.
        unsafe {
            let bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(src.cast()));
            let less_8 = |a| _mm256_cvtepi32_ps(_mm256_sub_epi32(a, _mm256_set1_epi32(8)));
            [less_8(_mm256_and_si256(bytes, _mm256_set1_epi32(15))), less_8(_mm256_srli_epi32::<4>(bytes))]
        }
    }
    #[inline(always)]
    unsafe fn load_by_4_ptr(self, src: *const f32, at: usize) -> __m256 {
        // SAFETY: the caller's contract: the two values that the lanes from a multiple of 4 on have can be read; the token
        // proves the features.
        unsafe {
            let src = src.add(at / 4);
            _mm256_set_m128(_mm_broadcast_ss(&*src.add(1)), _mm_broadcast_ss(&*src))
        }
    }
    #[inline(always)]
    fn exponent_table(self, exponents: &[u8; 16]) -> [__m256i; 2] {
        // SAFETY: there are 16 bytes; the token proves the features.
        unsafe {
            let exponents = _mm256_broadcastsi128_si256(_mm_loadu_si128(exponents.as_ptr().cast()));
            let upper = _mm256_and_si256(_mm256_srli_epi16::<1>(exponents), _mm256_set1_epi8(0x7F));
            let last = _mm256_and_si256(_mm256_slli_epi16::<7>(exponents), _mm256_set1_epi8(-128));
            [upper, last]
        }
    }
    #[inline(always)]
    fn unpack_bf16<const SECOND: bool>(self, group: &packed::Group, [upper, last]: [__m256i; 2]) -> [__m256; 8] {
        let rest = &group.signs_and_fractions[SECOND as usize];
        let mut weights = [self.splat(0.0); 8];
        // 32 bytes have of each run of 16 weights the first eight or the last.
        for half in 0..2 {
            // SAFETY: there are 64 bytes of each; the token proves the features.
            unsafe {
                let rest = _mm256_loadu_si256(rest.as_ptr().add(32 * half).cast());
                let codes = _mm256_loadu_si256(group.codes.as_ptr().add(32 * half).cast());
                let codes = if SECOND { _mm256_srli_epi16::<4>(codes) } else { codes };
                let codes = _mm256_and_si256(codes, _mm256_set1_epi8(15));
                let sign = _mm256_and_si256(rest, _mm256_set1_epi8(-128));
                let high = _mm256_or_si256(sign, _mm256_shuffle_epi8(upper, codes));
                let low = _mm256_or_si256(_mm256_xor_si256(rest, sign), _mm256_shuffle_epi8(last, codes));
                let words = [_mm256_unpacklo_epi8(low, high), _mm256_unpackhi_epi8(low, high)];
                for (k, words) in words.into_iter().enumerate() {
                    let zero = _mm256_setzero_si256();
                    weights[4 * k + half] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, words));
                    weights[4 * k + 2 + half] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, words));
                }
            }
        }
        weights
    }
    #[inline(always)]
    fn load_f16_partial(self, src: &[f16]) -> __m256 {
        // There is no masked load of 16 bits.
        let mut lanes = [f16::ZERO; 8];
        let n = src.len().min(8);
        lanes[..n].copy_from_slice(&src[..n]);
        // SAFETY: the array has eight values; the token proves the features.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(lanes.as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_u32_partial(self, src: &[u32]) -> __m256i {
        // SAFETY: the mask keeps the load within the slice (masked-off lanes are not accessed); the token proves the features.
        unsafe { _mm256_maskload_epi32(src.as_ptr().cast(), tail_mask(src.len())) }
    }
    #[inline(always)]
    fn store_partial(self, v: __m256, dst: &mut [f32]) {
        // SAFETY: the mask keeps the store within the slice (masked-off lanes are not accessed); the token proves the features.
        unsafe { _mm256_maskstore_ps(dst.as_mut_ptr(), tail_mask(dst.len()), v) }
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        by_token!(_mm256_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        by_token!(_mm256_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        by_token!(_mm256_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        by_token!(_mm256_div_ps(a, b))
    }
    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        by_token!(_mm256_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        by_token!(_mm256_min_ps(a, b))
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        by_token!(_mm256_max_ps(a, b))
    }
    #[inline(always)]
    fn sqrt(self, a: __m256) -> __m256 {
        by_token!(_mm256_sqrt_ps(a))
    }
    #[inline(always)]
    fn round(self, a: __m256) -> __m256 {
        by_token!(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a))
    }
    #[inline(always)]
    fn mul_pow2(self, v: __m256, n: __m256) -> __m256 {
        // In two steps, so that each factor is a normal number; the first product is exact.
        by_token!({
            let n = _mm256_cvtps_epi32(n);
            let half = _mm256_srai_epi32::<1>(n);
            _mm256_mul_ps(_mm256_mul_ps(v, pow2(half)), pow2(_mm256_sub_epi32(n, half)))
        })
    }
    #[inline(always)]
    fn lt(self, a: __m256, b: __m256) -> __m256 {
        by_token!(_mm256_cmp_ps::<_CMP_LT_OQ>(a, b))
    }
    #[inline(always)]
    fn select(self, mask: __m256, yes: __m256, no: __m256) -> __m256 {
        by_token!(_mm256_blendv_ps(no, yes, mask))
    }
    #[inline(always)]
    fn mask_bits(self, mask: __m256) -> u32 {
        by_token!(_mm256_movemask_ps(mask)) as u32
    }
    #[inline(always)]
    fn reduce_sum(self, v: __m256) -> f32 {
        by_token!({
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        })
    }
    #[inline(always)]
    fn reduce_max(self, v: __m256) -> f32 {
        by_token!({
            let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
        })
    }
    #[inline(always)]
    fn dot_i8_i16(self, a: &[i8], b: &[i16], hint: *const i8) -> i64 {
        /// Accumulators, taking turns.
        const A: usize = 4;
        /// Elements that are added up in 32 bits: 256 products of at most 2^22 a lane, over all accumulators.
        const PANEL: usize = 2048;
        const STEP: usize = 16;
        assert_eq!(a.len(), b.len(), "dot_i8_i16: lengths differ");
        let whole = a.len() / (A * STEP) * (A * STEP);
        let mut sum = by_token!(_mm256_setzero_si256());
        for start in (0..whole).step_by(PANEL) {
            let mut acc = [by_token!(_mm256_setzero_si256()); A];
            for at in (start..whole.min(start + PANEL)).step_by(A * STEP) {
                (0..A * STEP).step_by(LINE).for_each(|line| self.prefetch(hint.wrapping_add(at + line).cast()));
                for (i, acc) in acc.iter_mut().enumerate() {
                    // SAFETY: at + A * STEP <= whole, at most the length of a and, by the assert, of b; the token proves the features.
                    unsafe {
                        let a = _mm256_cvtepi8_epi16(_mm_loadu_si128(a.as_ptr().add(at + i * STEP).cast()));
                        let b = _mm256_loadu_si256(b.as_ptr().add(at + i * STEP).cast());
                        *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(a, b));
                    }
                }
            }
            sum = by_token!({
                let acc = _mm256_add_epi32(_mm256_add_epi32(acc[0], acc[1]), _mm256_add_epi32(acc[2], acc[3]));
                let low = _mm256_cvtepi32_epi64(_mm256_castsi256_si128(acc));
                let high = _mm256_cvtepi32_epi64(_mm256_extracti128_si256::<1>(acc));
                _mm256_add_epi64(sum, _mm256_add_epi64(low, high))
            });
        }
        let sums = by_token!(_mm_add_epi64(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum)));
        let sums: [i64; 2] = bytemuck::cast(sums);
        sums[0] + sums[1] + super::exact_dot(&a[whole..], &b[whole..])
    }
    #[inline(always)]
    fn splat_u32(self, x: u32) -> __m256i {
        by_token!(_mm256_set1_epi32(x as i32))
    }
    #[inline(always)]
    fn iota_u32(self, start: u32) -> __m256i {
        by_token!(_mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(start as i32)))
    }
    #[inline(always)]
    fn xor_u32(self, a: __m256i, b: __m256i) -> __m256i {
        by_token!(_mm256_xor_si256(a, b))
    }
    #[inline(always)]
    fn u4_pair(self, a: __m256i) -> [__m256i; 2] {
        by_token!({
            let low = _mm256_set1_epi8(0x0F);
            [_mm256_and_si256(a, low), _mm256_and_si256(_mm256_srli_epi32::<4>(a), low)]
        })
    }
    #[inline(always)]
    fn dot_i8(self, sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
        by_token!({
            // Bytes of even and of odd places, as 16-bit numbers; products of both fit, sums of two of them fill 32 bits.
            let even = _mm256_madd_epi16(
                _mm256_and_si256(a, _mm256_set1_epi16(0xFF)),
                _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(b)),
            );
            let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(a), _mm256_srai_epi16::<8>(b));
            _mm256_add_epi32(sum, _mm256_add_epi32(even, odd))
        })
    }
    #[inline(always)]
    fn i32_to_f32(self, a: __m256i) -> __m256 {
        by_token!(_mm256_cvtepi32_ps(a))
    }
    #[inline(always)]
    fn mul_wide_u32(self, a: __m256i, m: u32) -> (__m256i, __m256i) {
        by_token!({
            // The instruction multiplies the even lanes only: once as they are, once with the odd lanes moved down. Each
            // product fills two lanes, high half in the odd one.
            let m = _mm256_set1_epi32(m as i32);
            let even = _mm256_mul_epu32(a, m);
            let odd = _mm256_mul_epu32(_mm256_srli_epi64::<32>(a), m);
            let high = _mm256_blend_epi32::<0b1010_1010>(_mm256_srli_epi64::<32>(even), odd);
            let low = _mm256_blend_epi32::<0b1010_1010>(even, _mm256_slli_epi64::<32>(odd));
            (high, low)
        })
    }
    #[inline(always)]
    fn lt_u32(self, a: __m256i, b: __m256i) -> __m256 {
        by_token!({
            // The comparison is of signed numbers: moving both ranges down by 2^31 keeps their order.
            let sign = _mm256_set1_epi32(i32::MIN);
            _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_xor_si256(b, sign), _mm256_xor_si256(a, sign)))
        })
    }
    #[inline(always)]
    fn store_interleaved4_u16(self, words: [__m256i; 4], dst: &mut [u16]) {
        assert!(dst.len() >= 64);
        let [w0, w1, w2, w3] = words;
        let pairs: [__m256i; 4];
        by_token!({
            // Transpose 4x4 inside each half: a..d hold lanes i and i + 4 of all four words. Then pair the lanes as they follow.
            let (lo01, hi01) = (_mm256_unpacklo_epi32(w0, w1), _mm256_unpackhi_epi32(w0, w1));
            let (lo23, hi23) = (_mm256_unpacklo_epi32(w2, w3), _mm256_unpackhi_epi32(w2, w3));
            let (a, b) = (_mm256_unpacklo_epi64(lo01, lo23), _mm256_unpackhi_epi64(lo01, lo23));
            let (c, d) = (_mm256_unpacklo_epi64(hi01, hi23), _mm256_unpackhi_epi64(hi01, hi23));
            pairs = [
                _mm256_permute2x128_si256::<0x20>(a, b),
                _mm256_permute2x128_si256::<0x20>(c, d),
                _mm256_permute2x128_si256::<0x31>(a, b),
                _mm256_permute2x128_si256::<0x31>(c, d),
            ];
        });
        for (p, v) in pairs.into_iter().enumerate() {
            // SAFETY: the assert above proves 64 places, 16 for each pair; the token proves the features. x86-64 stores the
            // low half of a word first.
            unsafe { _mm256_storeu_si256(dst.as_mut_ptr().add(16 * p).cast(), v) }
        }
    }
    #[inline(always)]
    fn load_u16_as_u32(self, src: &[u16]) -> __m256i {
        assert!(src.len() >= 8);
        // SAFETY: the assert proves 16 bytes; the token proves the features.
        unsafe { _mm256_cvtepu16_epi32(_mm_loadu_si128(src.as_ptr().cast())) }
    }
    #[inline(always)]
    fn compress_store_u32(self, mask: __m256, values: __m256i, dst: &mut [u32]) -> usize {
        assert!(dst.len() >= 8);
        let (order, n) = compression(mask);
        // SAFETY: the assert proves 8 places; the token proves the features.
        unsafe { _mm256_storeu_si256(dst.as_mut_ptr().cast(), _mm256_permutevar8x32_epi32(values, order)) };
        n
    }
    #[inline(always)]
    fn compress_store(self, mask: __m256, values: __m256, dst: &mut [f32]) -> usize {
        assert!(dst.len() >= 8);
        let (order, n) = compression(mask);
        // SAFETY: the assert proves 8 places; the token proves the features.
        unsafe { _mm256_storeu_ps(dst.as_mut_ptr(), _mm256_permutevar8x32_ps(values, order)) };
        n
    }
    #[inline(always)]
    fn transpose(self, src: &[f32], src_stride: usize, rows: usize, cols: usize, dst: &mut [f32], dst_stride: usize) {
        check_transpose::<Self>(src, src_stride, rows, cols, dst, dst_stride);
        let mut r = [self.splat(0.0); 8];
        let mask = tail_mask(cols);
        for (i, r) in r.iter_mut().enumerate() {
            if i < rows {
                // SAFETY: `check_transpose` proves `cols` values from here; the mask leaves out the others.
                *r = unsafe { _mm256_maskload_ps(src.as_ptr().add(i * src_stride), mask) };
            }
        }
        // Three stages: pairs and quadruples of rows inside each half, then the halves.
        let mut t = r;
        by_token!({
            for i in 0..4 {
                t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
            }
            for i in 0..2 {
                let (a, b) = (_mm256_castps_pd(t[4 * i]), _mm256_castps_pd(t[4 * i + 1]));
                let (c, d) = (_mm256_castps_pd(t[4 * i + 2]), _mm256_castps_pd(t[4 * i + 3]));
                r[4 * i] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, c));
                r[4 * i + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, c));
                r[4 * i + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(b, d));
                r[4 * i + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(b, d));
            }
            // r[4 q + j] holds, in half p, rows 4 q .. 4 q + 4 of column 4 p + j.
            for j in 0..4 {
                t[j] = _mm256_permute2f128_ps::<0x20>(r[j], r[4 + j]);
                t[4 + j] = _mm256_permute2f128_ps::<0x31>(r[j], r[4 + j]);
            }
        });
        for (j, &t) in t.iter().enumerate() {
            if j < cols {
                // SAFETY: `check_transpose` proves eight places from the start of each destination row.
                unsafe { _mm256_storeu_ps(dst.as_mut_ptr().add(j * dst_stride), t) }
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
        unsafe { super::dispatch::run_avx2(kernel) }
    }
}
