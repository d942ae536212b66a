//! What the packed panels hold, and the step that multiplies it: f32 and `mul_add`, or pairs of bf16 and their dot product.
//! Blocks, panels and tiles are the same for both: an element of a panel is 4 bytes.

use crate::simd::{DotBf16, Kernel, Simd};
use crate::{Level, Weight};

/// Lanes of the widest level.
const MAX_LANES: usize = 16;

/// How an operand lies in a panel.
pub(super) trait Operands: Copy + Send + Sync {
    /// Values of k in one element of a panel.
    const VALUES: usize;

    /// Runs `kernel` compiled for the level and for [`mul_add`](Operands::mul_add). Panics if the level does not have it.
    fn dispatch<K: Kernel>(self, level: Level, kernel: K) -> K::Output;

    /// `acc + a b`, over the values of k that an element holds.
    fn mul_add<S: Simd>(self, s: S, a: S::F32, b: S::F32, acc: S::F32) -> S::F32;

    /// [`Simd::transpose`] of elements: `cols` counts values, at most `VALUES * LANES`; where they end inside an element, 0 fills it
    /// up.
    #[allow(clippy::too_many_arguments)] // Those of `Simd::transpose`.
    fn transpose<S: Simd, W: Weight>(
        self,
        s: S,
        src: &[W],
        src_stride: usize,
        rows: usize,
        cols: usize,
        dst: &mut [f32],
        dst_stride: usize,
    );

    /// The elements of `LANES` rows from row `r` on, whose values for the first k are `src[0]`, and for the next, if an element holds
    /// two, `src[1]`. Beyond the ends of both they are 0.
    fn column<S: Simd, W: Weight>(self, s: S, src: [&[W]; 2], r: usize) -> S::F32;

    /// The element with these values.
    fn element(self, values: [f32; 2]) -> f32;
}

/// f32, whatever the matrices are.
#[derive(Clone, Copy)]
pub(super) struct Exact;

impl Operands for Exact {
    const VALUES: usize = 1;

    fn dispatch<K: Kernel>(self, level: Level, kernel: K) -> K::Output {
        level.dispatch(kernel)
    }
    #[inline(always)]
    fn mul_add<S: Simd>(self, s: S, a: S::F32, b: S::F32, acc: S::F32) -> S::F32 {
        s.mul_add(a, b, acc)
    }
    #[inline(always)]
    fn transpose<S: Simd, W: Weight>(
        self,
        s: S,
        src: &[W],
        src_stride: usize,
        rows: usize,
        cols: usize,
        dst: &mut [f32],
        dst_stride: usize,
    ) {
        W::transpose(s, src, src_stride, rows, cols, dst, dst_stride);
    }
    #[inline(always)]
    fn column<S: Simd, W: Weight>(self, s: S, [src, _]: [&[W]; 2], r: usize) -> S::F32 {
        lanes(s, src, r)
    }
    #[inline(always)]
    fn element(self, [value, _]: [f32; 2]) -> f32 {
        value
    }
}

/// Values rounded to bf16, those of k and k + 1 in one element: see [`DotBf16`].
#[derive(Clone, Copy)]
pub(super) struct Pairs;

impl Operands for Pairs {
    const VALUES: usize = 2;

    fn dispatch<K: Kernel>(self, level: Level, kernel: K) -> K::Output {
        level.dispatch_dot_bf16(kernel)
    }
    #[inline(always)]
    fn mul_add<S: Simd>(self, s: S, a: S::F32, b: S::F32, acc: S::F32) -> S::F32 {
        dot_bf16(s).dot(a, b, acc)
    }
    #[inline(always)]
    fn transpose<S: Simd, W: Weight>(
        self,
        s: S,
        src: &[W],
        src_stride: usize,
        rows: usize,
        cols: usize,
        dst: &mut [f32],
        dst_stride: usize,
    ) {
        // Paired first, into a block that stays in L1.
        let mut block = [0.0; MAX_LANES * MAX_LANES];
        for (i, pairs) in block.chunks_exact_mut(S::LANES).enumerate().take(rows) {
            W::pair_neighbours(s, dot_bf16(s), &src[i * src_stride..][..cols], pairs);
        }
        s.transpose(&block, S::LANES, rows, cols.div_ceil(2), dst, dst_stride);
    }
    #[inline(always)]
    fn column<S: Simd, W: Weight>(self, s: S, src: [&[W]; 2], r: usize) -> S::F32 {
        dot_bf16(s).pair_lanes(lanes(s, src[0], r), lanes(s, src[1], r))
    }
    #[inline(always)]
    fn element(self, values: [f32; 2]) -> f32 {
        // As the instruction rounds: subnormal numbers become 0.
        let bits = values.map(|x| if x.is_subnormal() { 0 } else { half::bf16::from_f32(x).to_bits() as u32 });
        f32::from_bits(bits[0] | bits[1] << 16)
    }
}

/// `LANES` values from `at` on; beyond the end of `src` they are 0.
#[inline(always)]
fn lanes<S: Simd, W: Weight>(s: S, src: &[W], at: usize) -> S::F32 {
    let src = &src[at.min(src.len())..];
    if src.len() >= S::LANES { W::load(s, src) } else { W::load_partial(s, src) }
}

#[inline(always)]
fn dot_bf16<S: Simd>(s: S) -> impl DotBf16<S> {
    s.dot_bf16().expect("gemm: pairs are dispatched to where their dot product is")
}
