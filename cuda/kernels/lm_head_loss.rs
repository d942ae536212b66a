//! The LM head fused with the cross-entropy: products and [`softmax_loss`] by chunks of rows, so that all logits never exist.

use super::gemm::{Mat, gemm};
use super::reduce;
use super::softmax_loss::{softmax_loss, softmax_loss_backward};
use crate::{Buffer, Error, Slice, SliceMut};
use kernels::Beta;

/// Most logits of a chunk, if that leaves [`MIN_ROWS`]: 256 MiB, little beside a GPU's memory. Not measured.
const CHUNK_LEN: usize = 64 << 20;

/// Least rows of a chunk: the tiles of the products are 128 rows high.
const MIN_ROWS: usize = 128;

/// Most rows of a chunk: what [`CHUNK_LEN`] leaves at V = 32000; at small V the logits then stay in the L2. Not measured.
const MAX_ROWS: usize = 2048;

/// The sum over rows of `logsumexp(z) - z[target]` with `z = W x`, in `loss[0]`, as [`kernels::lm_head_loss::lm_head_loss`].
///
/// Shapes: x `[N, C]`, C = `d_model`; w `[V, C]`; targets `[N]`; loss has one element. A target that is not below V makes it NaN. Products are in f32;
/// accuracy as on the CPU. Memory: logits of a chunk, at most 2048 rows and 64 Mi logits (or 128 rows). Nothing waits: the loss stays on the device.
#[track_caller]
pub fn lm_head_loss(
    x: Slice<f32>,
    w: Slice<f32>,
    targets: Slice<u32>,
    d_model: usize,
    loss: SliceMut<f64>,
) -> Result<(), Error> {
    by_chunks("lm_head_loss", x, w, targets, d_model, None, loss)
}

/// [`lm_head_loss`] and, from the same logits, the gradients of `scale` times it, as [`kernels::lm_head_loss::lm_head_loss_backward`]:
/// dx is overwritten, dw overwritten or added to. Shapes: dx as x, dw as w.
#[allow(clippy::too_many_arguments)] // the tensors of the formula
#[track_caller]
pub fn lm_head_loss_backward(
    x: Slice<f32>,
    w: Slice<f32>,
    targets: Slice<u32>,
    d_model: usize,
    scale: f32,
    dx: SliceMut<f32>,
    dw_beta: Beta,
    mut dw: SliceMut<f32>,
    loss: SliceMut<f64>,
) -> Result<(), Error> {
    assert!(
        dx.len() == x.len() && dw.len() == w.len(),
        "lm_head_loss_backward: dx {} for x {}, dw {} for w {} elements",
        dx.len(),
        x.len(),
        dw.len(),
        w.len()
    );
    if targets.is_empty() && dw_beta == Beta::Zero {
        dw.fill_bytes(0)?;
    }
    let gradients = Gradients { scale, dx, dw_beta, dw };
    by_chunks("lm_head_loss_backward", x, w, targets, d_model, Some(gradients), loss)
}

struct Gradients<'a> {
    scale: f32,
    dx: SliceMut<'a, f32>,
    dw_beta: Beta,
    dw: SliceMut<'a, f32>,
}

#[track_caller]
fn by_chunks(
    op: &str,
    x: Slice<f32>,
    w: Slice<f32>,
    targets: Slice<u32>,
    c: usize,
    mut gradients: Option<Gradients>,
    loss: SliceMut<f64>,
) -> Result<(), Error> {
    let n = targets.len();
    assert!(c > 0 && w.len().is_multiple_of(c), "{op}: w has {} elements, not [V, {c}]", w.len());
    assert_eq!(x.len(), n * c, "{op}: x has {} elements for [{n}, {c}]", x.len());
    let v = w.len() / c;
    let most_rows = (CHUNK_LEN / v.max(1)).clamp(MIN_ROWS, MAX_ROWS).min(n);
    let mut logits = Buffer::<f32>::stale(x.device(), most_rows * v)?;
    let mut losses = Buffer::<f64>::stale(x.device(), n)?;
    let w = Mat::new(w, v, c);
    for first in (0..n).step_by(most_rows.max(1)) {
        let rows = most_rows.min(n - first);
        let (x_at, of_rows) = (first * c..(first + rows) * c, first..first + rows);
        let x = Mat::new(x.part(x_at.clone()), rows, c);
        let (targets, losses) = (targets.part(of_rows.clone()), losses.as_mut().part(of_rows));
        let mut z = logits.as_mut().part(0..rows * v);
        gemm(x, w.t(), Beta::Zero, z.reborrow())?;
        let Some(Gradients { scale, dx, dw_beta, dw }) = &mut gradients else {
            softmax_loss(z.as_slice(), v, targets, losses)?;
            continue;
        };
        softmax_loss_backward(z.reborrow(), v, targets, *scale, losses)?;
        let dz = Mat::new(z.as_slice(), rows, v);
        gemm(dz, w, Beta::Zero, dx.reborrow().part(x_at))?;
        gemm(dz.t(), x, *dw_beta, dw.reborrow())?;
        *dw_beta = Beta::One;
    }
    reduce::sum_f64(losses.as_slice(), Beta::Zero, loss)
}
