//! Root-mean-square normalisation, forward and backward.

use super::{Float, reduce, rows_aligned, threads_for};
use crate::stream::Launch;
use crate::{Buffer, Error, Kernel, Module, Slice, SliceMut};
use kernels::Beta;
use kernels::rms_norm::{check, check_backward};

static MODULE: Module = Module { name: "rms_norm", ptx: include_str!("rms_norm.ptx") };

const fn kernel(entry: &'static str) -> Kernel {
    Kernel { module: &MODULE, entry }
}

static FORWARD: [Kernel; 2] = [kernel("rms_norm"), kernel("rms_norm_bf16")];
static BACKWARD: [Kernel; 2] = [kernel("rms_norm_backward"), kernel("rms_norm_backward_bf16")];

/// Of the .cu.
const MAX_THREADS: usize = 512;
/// Columns whose gain gradients fit into the shared memory that every block may have (48 KiB, less what the sums of a block take).
const MAX_COLUMNS: usize = 12_000;
/// Blocks of the backward, at most: some seven for each multiprocessor of the largest GPU. A function of the shape alone, because it decides the
/// order of the sum of d_weight.
const MAX_BLOCKS: usize = 1024;

/// `y = x * inv_rms * weight` with `inv_rms = 1 / sqrt(mean(x^2) + eps)`, row by row, as [`kernels::rms_norm::rms_norm`].
///
/// Shapes: x, y `[N, C]`; weight `[C]`; inv_rms `[N]`. Accuracy: that of the CPU kernel; y in bf16 is rounded once more.
/// Bytes: x read once from memory (4 N C), y written (4 N C, or 2 N C in bf16).
#[track_caller]
pub fn rms_norm<Y: Float>(
    x: Slice<f32>,
    weight: Slice<f32>,
    eps: f32,
    y: SliceMut<Y>,
    inv_rms: SliceMut<f32>,
) -> Result<(), Error> {
    let (c, n) = (weight.len(), inv_rms.len());
    check([x.len(), y.len()], [n, c]);
    let aligned = rows_aligned(x, c) && rows_aligned(y.as_slice(), c) && weight.is_aligned();
    let launch = Launch::new(Y::of(&FORWARD), n, threads_for(c, MAX_THREADS)).arg(x).arg(weight).arg(eps);
    // SAFETY: the parameters are those of the kernels; block n touches row n.
    unsafe { launch.arg(c).arg(aligned).arg(&y).arg(&inv_rms).run() }
}

/// The gradients of [`rms_norm`], as [`kernels::rms_norm::rms_norm_backward`]: dx overwritten or added to, d_weight added to.
///
/// Shapes: dy, x, dx `[N, C]`; weight, d_weight `[C]`; inv_rms `[N]`. C is at most 12000. The sum of d_weight over rows runs in at most 1024
/// blocks of equal numbers of rows, then over the blocks as [`reduce::sum_rows`] does: the bits depend on the shape alone.
/// Bytes: dy and x read once from memory, dx written: 12 N C, 10 N C with dy in bf16.
#[track_caller]
pub fn rms_norm_backward<Y: Float>(
    dy: Slice<Y>,
    x: Slice<f32>,
    weight: Slice<f32>,
    inv_rms: Slice<f32>,
    dx_beta: Beta,
    dx: SliceMut<f32>,
    d_weight: SliceMut<f32>,
) -> Result<(), Error> {
    let (c, n) = (weight.len(), inv_rms.len());
    check_backward([dy.len(), x.len(), dx.len(), d_weight.len()], [n, c]);
    assert!(c <= MAX_COLUMNS, "rms_norm_backward: rows of {c}, at most {MAX_COLUMNS} on a GPU");
    if n == 0 {
        return Ok(());
    }
    let aligned = rows_aligned(dy, c) && [x, dx.as_slice()].iter().all(|&x| rows_aligned(x, c)) && weight.is_aligned();
    let rows_per_block = n.div_ceil(MAX_BLOCKS);
    let blocks = n.div_ceil(rows_per_block);
    let mut partial = Buffer::<f32>::stale(x.device(), blocks * c)?;
    let sums = partial.as_mut();
    let launch = Launch::new(Y::of(&BACKWARD), blocks, threads_for(c, MAX_THREADS)).shared(c * size_of::<f32>());
    let launch = launch.arg(dy).arg(x).arg(weight).arg(inv_rms).arg(dx_beta == Beta::One).arg(n).arg(c);
    // SAFETY: the parameters are those of the kernels; block b touches its rows, and row b of the sums.
    unsafe { launch.arg(rows_per_block).arg(aligned).arg(&dx).arg(&sums).run()? };
    reduce::sum_rows(partial.as_slice(), d_weight)
}
