//! The LM head fused with the cross-entropy: products and [`softmax_loss`] by chunks of rows, so that all logits never exist.

use super::gemm::{Mat, gemm};
use super::gemm_bf16::gemm_bf16;
use super::softmax_loss::{softmax_loss, softmax_loss_backward, softmax_loss_backward_bf16};
use super::{Float, reduce};
use crate::{Buffer, Error, Slice, SliceMut};
use half::bf16;
use kernels::Beta;
use kernels::lm_head_loss::{check_gradients, check_lengths};

/// Most logits of a chunk, if that leaves [`MIN_ROWS`]: 256 MiB, little beside a GPU's memory. Not measured.
const CHUNK_LEN: usize = 64 << 20;

/// Least rows of a chunk: the tiles of the products are 128 rows high.
const MIN_ROWS: usize = 128;

/// Most rows of a chunk: what [`CHUNK_LEN`] leaves at V = 32000; at small V the logits then stay in the L2. Not measured.
const MAX_ROWS: usize = 2048;

/// The sum over rows of `logsumexp(z) - z[target]` with `z = W x`, in `loss[0]`, as [`kernels::lm_head_loss::lm_head_loss`].
///
/// Shapes: x `[N, C]`, C = `d_model`; w `[V, C]`; targets `[N]`; loss has one element. A target that is not below V makes it NaN. Nothing waits: the loss stays on the device.
///
/// x and w are both f32, with the accuracy of the CPU; or both bf16, whose products are exact and whose sums, the logits among them, are f32
/// ([`gemm_bf16`]). Memory: logits of a chunk, at most 2048 rows and 64 Mi logits (or 128 rows).
#[track_caller]
pub fn lm_head_loss<T: Factor>(
    x: Slice<T>,
    w: Slice<T>,
    targets: Slice<u32>,
    d_model: usize,
    loss: SliceMut<f64>,
) -> Result<(), Error> {
    by_chunks("lm_head_loss", x, w, targets, d_model, None, loss)
}

/// [`lm_head_loss`] and, from the same logits, the gradients of `scale` times it, as [`kernels::lm_head_loss::lm_head_loss_backward`]:
/// dx is overwritten, dw overwritten or added to. Shapes: dx as x, dw as w. With x and w in bf16 the gradient of the logits is rounded to bf16
/// before its products, and dx behind its own; dw stays f32. Memory: in bf16, half as much as the logits once more.
#[allow(clippy::too_many_arguments)] // the tensors of the formula
#[track_caller]
pub fn lm_head_loss_backward<T: Factor>(
    x: Slice<T>,
    w: Slice<T>,
    targets: Slice<u32>,
    d_model: usize,
    scale: f32,
    dx: SliceMut<T>,
    dw_beta: Beta,
    mut dw: SliceMut<f32>,
    loss: SliceMut<f64>,
) -> Result<(), Error> {
    check_gradients([dx.len(), dw.len()], [x.len(), w.len()]);
    if targets.is_empty() && dw_beta == Beta::Zero {
        dw.fill_bytes(0)?;
    }
    let gradients = Gradients { scale, dx, dw_beta, dw };
    by_chunks("lm_head_loss_backward", x, w, targets, d_model, Some(gradients), loss)
}

/// The element type of x and of the LM head, and how it is multiplied.
pub trait Factor: Float {
    /// `C = A B`, or `C += A B` with [`Beta::One`], in f32.
    fn product(a: Mat<Self>, b: Mat<Self>, beta: Beta, c: SliceMut<f32>) -> Result<(), Error>;

    /// `C = A B` in this type: f32 sums, rounded to it.
    fn rounded_product(a: Mat<Self>, b: Mat<Self>, c: SliceMut<Self>) -> Result<(), Error>;

    /// Elements of working memory that [`d_logits`](Factor::d_logits) needs for so many logits.
    fn room(logits: usize) -> usize;

    /// The losses of rows of logits, and `scale` times their gradients for these: in the place of the logits, or in `room`.
    fn d_logits<'a>(
        z: &'a mut SliceMut<f32>,
        vocab_size: usize,
        targets: Slice<u32>,
        scale: f32,
        losses: SliceMut<f64>,
        room: &'a mut Buffer<Self>,
    ) -> Result<Slice<'a, Self>, Error>;
}

impl Factor for f32 {
    fn product(a: Mat<f32>, b: Mat<f32>, beta: Beta, c: SliceMut<f32>) -> Result<(), Error> {
        gemm(a, b, beta, c)
    }

    fn rounded_product(a: Mat<f32>, b: Mat<f32>, c: SliceMut<f32>) -> Result<(), Error> {
        gemm(a, b, Beta::Zero, c)
    }

    fn room(_: usize) -> usize {
        0
    }

    fn d_logits<'a>(
        z: &'a mut SliceMut<f32>,
        vocab_size: usize,
        targets: Slice<u32>,
        scale: f32,
        losses: SliceMut<f64>,
        _: &'a mut Buffer<f32>,
    ) -> Result<Slice<'a, f32>, Error> {
        softmax_loss_backward(z.reborrow(), vocab_size, targets, scale, losses)?;
        Ok(z.as_slice())
    }
}

impl Factor for bf16 {
    fn product(a: Mat<bf16>, b: Mat<bf16>, beta: Beta, c: SliceMut<f32>) -> Result<(), Error> {
        gemm_bf16(a, b, beta, c)
    }

    fn rounded_product(a: Mat<bf16>, b: Mat<bf16>, c: SliceMut<bf16>) -> Result<(), Error> {
        gemm_bf16(a, b, Beta::Zero, c)
    }

    fn room(logits: usize) -> usize {
        logits
    }

    fn d_logits<'a>(
        z: &'a mut SliceMut<f32>,
        vocab_size: usize,
        targets: Slice<u32>,
        scale: f32,
        losses: SliceMut<f64>,
        room: &'a mut Buffer<bf16>,
    ) -> Result<Slice<'a, bf16>, Error> {
        let dz = room.as_mut().part(0..z.len());
        softmax_loss_backward_bf16(z.as_slice(), vocab_size, targets, scale, dz, losses)?;
        Ok(room.as_slice().part(0..z.len()))
    }
}

struct Gradients<'a, T: Factor> {
    scale: f32,
    dx: SliceMut<'a, T>,
    dw_beta: Beta,
    dw: SliceMut<'a, f32>,
}

#[track_caller]
fn by_chunks<T: Factor>(
    op: &str,
    x: Slice<T>,
    w: Slice<T>,
    targets: Slice<u32>,
    c: usize,
    mut gradients: Option<Gradients<T>>,
    loss: SliceMut<f64>,
) -> Result<(), Error> {
    let n = targets.len();
    let v = check_lengths(op, [x.len(), w.len()], n, c);
    let most_rows = (CHUNK_LEN / v.max(1)).clamp(MIN_ROWS, MAX_ROWS).min(n);
    let mut logits = Buffer::<f32>::stale(x.device(), most_rows * v)?;
    let mut room = Buffer::stale(x.device(), if gradients.is_some() { T::room(most_rows * v) } else { 0 })?;
    let mut losses = Buffer::<f64>::stale(x.device(), n)?;
    let w = Mat::new(w, v, c);
    for first in (0..n).step_by(most_rows.max(1)) {
        let rows = most_rows.min(n - first);
        let (x_at, of_rows) = (first * c..(first + rows) * c, first..first + rows);
        let x = Mat::new(x.part(x_at.clone()), rows, c);
        let (targets, losses) = (targets.part(of_rows.clone()), losses.as_mut().part(of_rows));
        let mut z = logits.as_mut().part(0..rows * v);
        T::product(x, w.t(), Beta::Zero, z.reborrow())?;
        let Some(Gradients { scale, dx, dw_beta, dw }) = &mut gradients else {
            softmax_loss(z.as_slice(), v, targets, losses)?;
            continue;
        };
        let dz = Mat::new(T::d_logits(&mut z, v, targets, *scale, losses, &mut room)?, rows, v);
        T::rounded_product(dz, w, dx.reborrow().part(x_at))?;
        T::product(dz.t(), x, *dw_beta, dw.reborrow())?;
        *dw_beta = Beta::One;
    }
    reduce::sum_f64(losses.as_slice(), Beta::Zero, loss)
}
