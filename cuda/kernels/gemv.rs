//! Matrix times vector, for decoding: of one token or several, with one matrix or three.

use super::{Float, THREADS, WARP, rows_aligned};
use crate::stream::Launch;
use crate::{Error, Kernel, Module, Slice, SliceMut};
use kernels::Beta;

static MODULE: Module = Module { name: "gemv", ptx: include_str!("gemv.ptx") };

const fn kernel(entry: &'static str) -> Kernel {
    Kernel { module: &MODULE, entry }
}

/// By the element type, then for at most 1, 2, 4 and 8 tokens.
static GEMV: [[Kernel; 4]; 2] = [
    [kernel("gemv_1"), kernel("gemv_2"), kernel("gemv_4"), kernel("gemv_8")],
    [kernel("gemv_bf16_1"), kernel("gemv_bf16_2"), kernel("gemv_bf16_4"), kernel("gemv_bf16_8")],
];

/// Tokens that kernels of decoding take at once: with eight, the sums of a warp that takes a row fill its registers.
pub const MAX_TOKENS: usize = 8;

/// The one of four kernels that is for n tokens. Panics beyond [`MAX_TOKENS`].
#[track_caller]
pub(super) fn for_tokens<'a, K>(op: &str, of: &'a [K; 4], n: usize) -> &'a K {
    assert!((1..=MAX_TOKENS).contains(&n), "{op}: {n} tokens, 1 to {MAX_TOKENS} at once on a GPU");
    &of[n.next_power_of_two().trailing_zeros() as usize]
}

/// `y = W x`: `y[i] = dot(W[i, :], x)`, as [`kernels::gemv::gemv`].
///
/// Shapes: w `[M, K]`, x `[K]`, y `[M]`. Accuracy: `(K + 4) 2^-24 sum_k |w_ik x_k|`. The bits of an element depend on its row, x and whether rows
/// are aligned to 16 bytes, and are those of the sparse FFN's dots. Bytes: 4 M K, or 2 M K in bf16: eight loads of 16 bytes in flight for each
/// lane of a warp, which takes a row.
#[track_caller]
pub fn gemv<W: Float>(w: Slice<W>, x: Slice<f32>, y: SliceMut<f32>) -> Result<(), Error> {
    gemv_batch(w, x, 1, Beta::Zero, y)
}

/// [`gemv`] of each row of x, bit for bit, as [`kernels::gemv_batch::gemv_batch`]; `Y += ..` with [`Beta::One`].
///
/// Shapes: w `[M, K]`, x `[N, K]`, y `[N, M]`, N at most [`MAX_TOKENS`]. Bytes: those of the weights once, as for one token. For each 16 bytes of them a lane
/// reads 16 N bytes of x from the L1, or 32 N with bf16, which limits eight tokens to a half or so of what memory gives.
#[track_caller]
pub fn gemv_batch<W: Float>(w: Slice<W>, x: Slice<f32>, n: usize, beta: Beta, y: SliceMut<f32>) -> Result<(), Error> {
    run("gemv", [w], x, n, beta, [y])
}

/// [`gemv_batch`] of three matrices with the same x, bit for bit, in one launch, as [`kernels::gemv::gemv_each`].
///
/// Shapes: w `[M, K]` with an M each, x `[N, K]`, y `[N, M]`.
#[track_caller]
pub fn gemv_each<W: Float>(w: [Slice<W>; 3], x: Slice<f32>, n: usize, y: [SliceMut<f32>; 3]) -> Result<(), Error> {
    run("gemv_each", w, x, n, Beta::Zero, y)
}

#[track_caller]
fn run<W: Float, const MATRICES: usize>(
    op: &str,
    w: [Slice<W>; MATRICES],
    x: Slice<f32>,
    n: usize,
    beta: Beta,
    y: [SliceMut<f32>; MATRICES],
) -> Result<(), Error> {
    let kernel = for_tokens(op, W::of(&GEMV), n);
    assert!(x.len().is_multiple_of(n), "{op}: x has {} elements for {n} tokens", x.len());
    let k = x.len() / n;
    for (w, y) in w.iter().zip(&y) {
        let m = y.len() / n;
        assert!(
            y.len() == n * m && w.len() == m * k,
            "{op}: w has {} elements of {} for [{m}, {k}], y {} for {n} tokens",
            w.len(),
            W::NAME,
            y.len()
        );
    }
    let aligned = w.iter().all(|&w| rows_aligned(w, k)) && x.is_aligned();
    // Those that are not there have no rows.
    let at = |i: usize| i.min(MATRICES - 1);
    let rows = |i: usize| if i < MATRICES { y[i].len() / n } else { 0 };
    let all: usize = (0..MATRICES).map(rows).sum();
    let launch = Launch::new(kernel, all.div_ceil(THREADS / WARP), THREADS as u32).arg(w[at(0)]).arg(w[at(1)]);
    let launch = launch.arg(w[at(2)]).arg(x).arg(rows(0)).arg(rows(1)).arg(rows(2)).arg(n).arg(k).arg(aligned);
    let launch = launch.arg(beta == Beta::One).arg(&y[at(0)]).arg(&y[at(1)]).arg(&y[at(2)]);
    // SAFETY: the parameters are those of the kernels; a warp touches a row of one matrix, x, and the element of that row for each token.
    unsafe { launch.run() }
}
