//! Matrix product with bf16 operands, on tensor cores.

use super::Float;
use super::gemm::{Layout, Mat, TILE};
use crate::stream::{Arg, Launch};
use crate::{Buffer, Error, Kernel, Module, Slice, SliceMut};
use half::bf16;
use kernels::Beta;

static MODULE: Module = Module { name: "gemm_bf16", ptx: include_str!("gemm_bf16.ptx") };

const fn kernel(entry: &'static str) -> Kernel {
    Kernel { module: &MODULE, entry }
}

/// For C of f32 and of bf16; first those for operands whose rows all begin at multiples of 16 bytes, then those for all others.
type Kernels = [[Kernel; 2]; 2];
static NN: Kernels = [
    [kernel("gemm_bf16_nn"), kernel("gemm_bf16_nn_bf16")],
    [kernel("gemm_bf16_nn_anywhere"), kernel("gemm_bf16_nn_bf16_anywhere")],
];
static NT: Kernels = [
    [kernel("gemm_bf16_nt"), kernel("gemm_bf16_nt_bf16")],
    [kernel("gemm_bf16_nt_anywhere"), kernel("gemm_bf16_nt_bf16_anywhere")],
];
static TN: Kernels = [
    [kernel("gemm_bf16_tn"), kernel("gemm_bf16_tn_bf16")],
    [kernel("gemm_bf16_tn_anywhere"), kernel("gemm_bf16_tn_bf16_anywhere")],
];
static TN_PARTS: Kernel = kernel("gemm_bf16_tn_parts");
static JOIN: [Kernel; 2] = [kernel("gemm_bf16_join"), kernel("gemm_bf16_join_bf16")];

/// Of a tile of the operands, along K.
const TILE_K: usize = 32;
/// Parts of K at most.
const MAX_PARTS: usize = 32;
/// Threads of a block.
pub(super) const THREADS: u32 = 128;

/// `C = A B` or, with [`Beta::One`], `C += A B`; as [`kernels::gemm::gemm_bf16`].
///
/// Shapes: A `[M, K]`, B `[K, N]`, c `[M, N]` row-major, in f32 or bf16. The transposes are those of a linear layer:
/// forward `Y = X W^T` (NT), backward `dX = dY W` (NN) and `dW += dY^T X` (TN); none is made in memory. With K = 0 the
/// product is zero.
///
/// Panics if the shapes do not fit, or if both operands are transposed, which no layer needs.
///
/// Accuracy: `(K + 4) 2^-23 (|A| |B|)` for each element, in which `|C|` joins with [`Beta::One`], and 2^-8 of the
/// result more if C is bf16: tensor cores cut off where the CPU rounds, so the bound is twice the CPU's. Products of
/// bf16 are exact, sums are f32, in blocks of 16 along K in order: the bits of an element depend on its row of A, its
/// column of B, and the generation of the GPU, whose order within a block is its own. In TN they depend on the shape
/// too: where M and N make few tiles, up to 32 parts of K are summed apart, in memory of their own, and then in order.
///
/// Bytes: A is read `N / 128` times and B `M / 128` times, mostly from the L2: blocks that run side by side share them.
/// Any shape and place is taken; if not all rows of A and B begin at multiples of 16 bytes (K of X and W no multiple of
/// 8, say), both are copied element by element, far slower.
#[track_caller]
pub fn gemm_bf16<C: Float>(a: Mat<bf16>, b: Mat<bf16>, beta: Beta, c: SliceMut<C>) -> Result<(), Error> {
    run("gemm_bf16", a, b, (beta == Beta::One).then_some(c.as_slice()), &c)
}

/// `C = D + A B`: a residual connection in the launch of its product, which reads D and writes C once.
///
/// Shapes: d `[M, N]` row-major and of C's type, the others as in [`gemm_bf16`], as are panics and accuracy, where `|D|` joins: the bits are
/// those of [`gemm_bf16`] with [`Beta::One`] on a copy of D.
#[track_caller]
pub fn gemm_bf16_add<C: Float>(a: Mat<bf16>, b: Mat<bf16>, d: Slice<C>, c: SliceMut<C>) -> Result<(), Error> {
    assert!(d.len() == c.len(), "gemm_bf16_add: D {} elements, C {}", d.len(), c.len());
    run("gemm_bf16_add", a, b, Some(d), &c)
}

#[track_caller]
fn run<C: Float>(op: &str, a: Mat<bf16>, b: Mat<bf16>, addend: Option<Slice<C>>, c: &SliceMut<C>) -> Result<(), Error> {
    let (layout, [m, n, k]) = Layout::of(op, a, b, c.len());
    let all_aligned = a.aligned() && b.aligned();
    let (kernels, parts) = match layout {
        Layout::NN => (&NN, 1),
        Layout::NT => (&NT, 1),
        Layout::TN => (&TN, if all_aligned { parts(m, n, k) } else { 1 }),
    };
    let tiles = m.div_ceil(TILE) * n.div_ceil(TILE);
    let c_aligned =
        |row_len| [addend, Some(c.as_slice())].into_iter().flatten().all(|x| super::rows_aligned(x, row_len));
    if parts == 1 {
        let launch = Launch::new(C::of(&kernels[usize::from(!all_aligned)]), tiles, THREADS);
        let launch = launch.arg(a.data).arg(b.data).arg(m).arg(n).arg(k).arg(c_aligned(n)).arg(OrNull(addend));
        // SAFETY: the parameters are those of the kernels, which read within [M, K], [K, N] and [M, N] and write within [M, N].
        return unsafe { launch.arg(c).run() };
    }
    let part_k = k.div_ceil(parts).next_multiple_of(TILE_K);
    let parts = k.div_ceil(part_k);
    let mut sums = Buffer::<f32>::stale(c.device(), parts * m * n)?;
    let launch = Launch::new(&TN_PARTS, [tiles, parts], THREADS).arg(a.data).arg(b.data).arg(m).arg(n).arg(k);
    // SAFETY: the parameters are those of the kernel, which reads within [K, M] and [K, N] and writes within [parts, M, N].
    unsafe { launch.arg(part_k).arg(&sums.as_mut()).run() }?;
    let launch = Launch::new(C::of(&JOIN), (m * n).div_ceil(4 * super::THREADS), super::THREADS as u32);
    let launch = launch.arg(sums.as_slice()).arg(parts).arg(m * n).arg(c_aligned(m * n));
    // SAFETY: the parameters are those of the kernels, which read [parts, M, N] and [M, N] and write [M, N].
    unsafe { launch.arg(OrNull(addend)).arg(c).run() }
}

/// In how many parts of K `A^T B` is made. A weight gradient has few tiles, M and N being a layer's widths, and K is all tokens: to give every multiprocessor
/// something, blocks share a tile and each sums a part. The shape alone says in how many, so that the bits do not depend on the GPU.
fn parts(m: usize, n: usize, k: usize) -> usize {
    /// Blocks that an H200 holds at a time, two on each of its 132 multiprocessors.
    const SLOTS: usize = 264;
    // In steps of a block along K, each about half a microsecond where all slots are taken: what a block takes besides its steps; a launch more, and the
    // writing and reading of 16 tiles of sums.
    const AROUND: usize = 8;
    const JOINING: usize = 6;
    const TILES_A_STEP: usize = 16;
    let (tiles, steps) = (m.div_ceil(TILE) * n.div_ceil(TILE), k.div_ceil(TILE_K));
    let cost = |&parts: &usize| {
        let joining = if parts > 1 { JOINING + parts * tiles / TILES_A_STEP } else { 0 };
        (parts * tiles).div_ceil(SLOTS) * (steps.div_ceil(parts) + AROUND) + joining
    };
    (1..=steps.clamp(1, MAX_PARTS)).min_by_key(cost).expect("one part at least")
}

/// What is added to a product, or null.
struct OrNull<'a, C: Float>(Option<Slice<'a, C>>);

impl<'a, C: Float> Arg<'a> for OrNull<'a, C> {
    #[track_caller]
    fn push(self, launch: &mut Launch<'a>) {
        match self.0 {
            Some(slice) => slice.push(launch),
            None => 0u64.push(launch),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::parts;

    /// With 16384 tokens: a square projection and an FFN's of 125m, the same of 1.5B, the head of 125m; and a few tokens.
    #[test]
    fn k_is_cut_where_tiles_are_few() {
        let shapes = [[768, 768], [2048, 768], [2048, 2048], [5632, 2048], [32000, 768]];
        assert_eq!(shapes.map(|[m, n]| parts(m, n, 16384)), [7, 5, 1, 1, 1]);
        assert_eq!([parts(768, 768, 64), parts(0, 8, 0), parts(8, 8, 1 << 20)], [1, 1, 32]);
    }
}
