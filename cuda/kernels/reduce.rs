//! Reductions in a fixed order. Results stay on the device, so that nothing waits for them.

use super::THREADS;
use crate::stream::{Double, Launch};
use crate::{Buffer, Error, Kernel, Module, Slice, SliceMut};
use kernels::Beta;

static MODULE: Module = Module { name: "reduce", ptx: include_str!("reduce.ptx") };

const fn kernel(entry: &'static str) -> Kernel {
    Kernel { module: &MODULE, entry }
}

/// Elements of a block: 32 to a thread, which adds them in f32.
const PER_BLOCK: usize = 32 * THREADS;
/// Columns of a block of sums over rows.
const COLUMNS: usize = 32;
/// Rows of a block of sums over rows: 32 to a thread.
const ROWS: usize = 256;

/// `total[0] (+)= sum x`, as [`kernels::reduce::sum`]: 32 elements at a time in f32, their sums in f64. Accuracy: within `32 2^-24 sum |x|`.
/// total has one element. Bytes: 4 an element.
#[track_caller]
pub fn sum(x: Slice<f32>, beta: Beta, total: SliceMut<f64>) -> Result<(), Error> {
    static KERNEL: Kernel = kernel("sum");
    sum_blocks("sum", &KERNEL, x, beta, total)
}

/// `total[0] (+)= sum |x|`, in the order of [`sum`].
#[track_caller]
pub fn sum_abs(x: Slice<f32>, beta: Beta, total: SliceMut<f64>) -> Result<(), Error> {
    static KERNEL: Kernel = kernel("sum_abs");
    sum_blocks("sum_abs", &KERNEL, x, beta, total)
}

/// `total[0] (+)= sum x^2`, in the order of [`sum`]. The norm of all gradients is one such sum, added to for each.
#[track_caller]
pub fn sum_squares(x: Slice<f32>, beta: Beta, total: SliceMut<f64>) -> Result<(), Error> {
    static KERNEL: Kernel = kernel("sum_squares");
    sum_blocks("sum_squares", &KERNEL, x, beta, total)
}

#[track_caller]
fn sum_blocks(
    name: &str,
    kernel: &'static Kernel,
    x: Slice<f32>,
    beta: Beta,
    total: SliceMut<f64>,
) -> Result<(), Error> {
    assert_eq!(total.len(), 1, "{name}: a total of {} elements", total.len());
    let blocks = x.len().div_ceil(PER_BLOCK);
    let mut partial = Buffer::<f64>::stale(total.device(), blocks)?;
    let sums = partial.as_mut();
    let launch = Launch::new(kernel, blocks, THREADS as u32).arg(x).arg(x.len() as u64).arg(x.is_aligned());
    // SAFETY: the parameters are those of the kernels, which touch elements below the length, and a sum for each block.
    unsafe { launch.arg(&sums).run()? };
    sum_f64(partial.as_slice(), beta, total)
}

/// `total[0] (+)= sum x` of f64, in the order of the threads of one block: element i goes to thread i % 256. total has one element.
#[track_caller]
pub fn sum_f64(x: Slice<f64>, beta: Beta, total: SliceMut<f64>) -> Result<(), Error> {
    static KERNEL: Kernel = kernel("sum_f64");
    assert_eq!(total.len(), 1, "sum_f64: a total of {} elements", total.len());
    let launch = Launch::new(&KERNEL, 1, THREADS as u32).arg(x).arg(x.len() as u64);
    // SAFETY: the parameters are those of the kernel, which touches elements below the length, and total[0].
    unsafe { launch.arg(beta == Beta::One).arg(&total).run() }
}

/// `y[0] = scale total[0]`, the product rounded to f64 and then to f32. Both have one element.
#[track_caller]
pub fn round_total(total: Slice<f64>, scale: f64, y: SliceMut<f32>) -> Result<(), Error> {
    static KERNEL: Kernel = kernel("round_total");
    assert!(total.len() == 1 && y.len() == 1, "round_total: {} totals for {} elements", total.len(), y.len());
    // SAFETY: the parameters are those of the kernel, which touches the one element of each.
    unsafe { Launch::new(&KERNEL, 1, super::WARP as u32).arg(total).arg(Double(scale)).arg(&y).run() }
}

/// `sums[c] += sum_n x[n, c]`, as [`kernels::reduce::sum_rows`]. Shapes: x `[N, C]`, C the length of `sums`.
///
/// Rows are added 256 at a time, in eight lanes that take turns, and their sums likewise: a function of the shape alone.
/// Accuracy: within `(N + 8) 2^-24 sum_n |x[n, c]|` (and the old value). Bytes: 4 N C.
#[track_caller]
pub fn sum_rows(x: Slice<f32>, sums: SliceMut<f32>) -> Result<(), Error> {
    static KERNEL: Kernel = kernel("sum_rows");
    let c = sums.len();
    assert!(c > 0 && x.len().is_multiple_of(c), "sum_rows: x {} elements for rows of {c}", x.len());
    let n = x.len() / c;
    let parts = n.div_ceil(ROWS);
    let launch = Launch::new(&KERNEL, [c.div_ceil(COLUMNS), parts], THREADS as u32).arg(x).arg(n).arg(c).arg(ROWS);
    if parts <= 1 {
        // SAFETY: the parameters are those of the kernel; a block touches its columns of its rows, and of row blockIdx.y of the sums.
        return unsafe { launch.arg(true).arg(&sums).run() };
    }
    let mut partial = Buffer::<f32>::stale(x.device(), parts * c)?;
    let part = partial.as_mut();
    // SAFETY: as above, with as many rows of sums as parts.
    unsafe { launch.arg(false).arg(&part).run()? };
    sum_rows(partial.as_slice(), sums)
}

/// `counts[f] += number of rows n with g[n, f] > 0`, as [`kernels::reduce::count_positive`]. Exact.
///
/// Shapes: g `[N, F]`, F the length of `counts`. Bytes: 4 N F.
#[track_caller]
pub fn count_positive(g: Slice<f32>, counts: SliceMut<u32>) -> Result<(), Error> {
    static KERNEL: Kernel = kernel("count_positive");
    let f = counts.len();
    assert!(f > 0 && g.len().is_multiple_of(f), "count_positive: g {} elements for rows of {f}", g.len());
    let n = g.len() / f;
    let grid = [f.div_ceil(COLUMNS), n.div_ceil(ROWS)];
    let launch = Launch::new(&KERNEL, grid, THREADS as u32).arg(g).arg(n).arg(f).arg(ROWS);
    // SAFETY: as in `sum_rows`; counts are added to by atomics.
    unsafe { launch.arg(&counts).run() }
}

/// `position[0]` = the least i for which `x[i]` is infinite or NaN, if that is less than what is there (put `u64::MAX`). Exact.
/// position has one element. Bytes: 4 an element.
#[track_caller]
pub fn first_non_finite(x: Slice<f32>, position: SliceMut<u64>) -> Result<(), Error> {
    static KERNEL: Kernel = kernel("first_non_finite");
    assert_eq!(position.len(), 1, "first_non_finite: {} positions", position.len());
    let launch = Launch::new(&KERNEL, x.len().div_ceil(PER_BLOCK), THREADS as u32).arg(x).arg(x.len() as u64);
    // SAFETY: the parameters are those of the kernel, which reads below the length; the position is written by atomics.
    unsafe { launch.arg(&position).run() }
}
