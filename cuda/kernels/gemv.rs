//! Matrix times vector, for decoding.

use super::{Float, THREADS, WARP, rows_aligned};
use crate::stream::Launch;
use crate::{Error, Kernel, Module, Slice, SliceMut};

static MODULE: Module = Module { name: "gemv", ptx: include_str!("gemv.ptx") };
static GEMV: [Kernel; 2] = [Kernel { module: &MODULE, entry: "gemv" }, Kernel { module: &MODULE, entry: "gemv_bf16" }];

/// `y = W x`: `y[i] = dot(W[i, :], x)`, as [`kernels::gemv::gemv`].
///
/// Shapes: w `[M, K]`, x `[K]`, y `[M]`. Accuracy: `(K + 4) 2^-24 sum_k |w_ik x_k|`. The bits of an element depend on its row, x and whether rows
/// are aligned to 16 bytes, and are those of the sparse FFN's dots. Bytes: 4 M K, or 2 M K in bf16: eight loads of 16 bytes in flight for each
/// lane of a warp, which takes a row.
#[track_caller]
pub fn gemv<W: Float>(w: Slice<W>, x: Slice<f32>, y: SliceMut<f32>) -> Result<(), Error> {
    let (k, m) = (x.len(), y.len());
    assert_eq!(w.len(), m * k, "gemv: w has {} elements of {} for [{m}, {k}]", w.len(), W::NAME);
    let aligned = rows_aligned(w, k) && x.is_aligned();
    let launch = Launch::new(W::of(&GEMV), m.div_ceil(THREADS / WARP), THREADS as u32).arg(w).arg(x);
    // SAFETY: the parameters are those of the kernels; a warp touches its row, x and an element of y.
    unsafe { launch.arg(m).arg(k).arg(aligned).arg(&y).run() }
}
