//! The cross-entropy of a chunk of logits and its gradient: what `lm_head_loss` does between its products.

use super::{Float, rows_aligned, threads_for};
use crate::stream::Launch;
use crate::{Error, Kernel, Module, Slice, SliceMut};
use bytemuck::Pod;
use half::bf16;

static MODULE: Module = Module { name: "softmax_loss", ptx: include_str!("softmax_loss.ptx") };
static KERNELS: [Kernel; 2] =
    [Kernel { module: &MODULE, entry: "softmax_loss" }, Kernel { module: &MODULE, entry: "softmax_loss_bf16" }];

/// Of the .cu.
const MAX_THREADS: usize = 512;

/// `losses[n] = logsumexp(z[n]) - z[n, targets[n]]` (natural logarithm).
///
/// Shapes: z `[N, stride]`, of which the first V = `vocab_size` columns count; targets `[N]`; losses `[N]`. A target that is not below V makes its
/// loss NaN, and so does a NaN among the logits. Accuracy: as [`kernels::lm_head_loss::lm_head_loss`], for logits without error.
/// Bytes: 4 N V from memory; a row is read again from the L2.
#[track_caller]
pub fn softmax_loss(z: Slice<f32>, vocab_size: usize, targets: Slice<u32>, losses: SliceMut<f64>) -> Result<(), Error> {
    let stride = check("softmax_loss", z.len(), vocab_size, targets, &losses);
    // SAFETY: without a gradient nothing is written but the losses.
    unsafe { launch::<f32>(z, stride, vocab_size, targets, None, z, losses) }
}

/// [`softmax_loss`], and in the place of z the gradient of `scale` times the sum of the losses: `scale (softmax(z) - onehot(target))`.
/// What is beyond V in a row stays as it is. Bytes: 8 N V.
#[track_caller]
pub fn softmax_loss_backward(
    z: SliceMut<f32>,
    vocab_size: usize,
    targets: Slice<u32>,
    scale: f32,
    losses: SliceMut<f64>,
) -> Result<(), Error> {
    let stride = check("softmax_loss_backward", z.len(), vocab_size, targets, &losses);
    // SAFETY: z may be written; a block reads a row before it writes it.
    unsafe { launch::<f32>(z.as_slice(), stride, vocab_size, targets, Some(scale), z.as_slice(), losses) }
}

/// [`softmax_loss_backward`] with the gradient rounded to bf16, in `dz` of the shape of z, for the products that read it. Bytes: 6 N V.
#[track_caller]
pub fn softmax_loss_backward_bf16(
    z: Slice<f32>,
    vocab_size: usize,
    targets: Slice<u32>,
    scale: f32,
    dz: SliceMut<bf16>,
    losses: SliceMut<f64>,
) -> Result<(), Error> {
    let stride = check("softmax_loss_backward_bf16", z.len(), vocab_size, targets, &losses);
    assert_eq!(dz.len(), z.len(), "softmax_loss_backward_bf16: dz {} elements, z {}", dz.len(), z.len());
    // SAFETY: dz may be written.
    unsafe { launch(z, stride, vocab_size, targets, Some(scale), dz.as_slice(), losses) }
}

#[track_caller]
fn check(name: &str, len: usize, vocab_size: usize, targets: Slice<u32>, losses: &SliceMut<f64>) -> usize {
    let n = targets.len();
    let stride = len.checked_div(n).unwrap_or(vocab_size);
    assert!(
        vocab_size > 0 && len == n * stride && stride >= vocab_size && losses.len() == n,
        "{name}: z {len} elements and losses {} for {n} rows of at least {vocab_size} logits",
        losses.len()
    );
    stride
}

/// # Safety
/// The lengths were checked, and `dz` may be written if there is a scale.
unsafe fn launch<D: Float + Pod>(
    z: Slice<f32>,
    stride: usize,
    vocab_size: usize,
    targets: Slice<u32>,
    scale: Option<f32>,
    dz: Slice<D>,
    losses: SliceMut<f64>,
) -> Result<(), Error> {
    let aligned = rows_aligned(z, stride) && rows_aligned(dz, stride);
    let launch = Launch::new(D::of(&KERNELS), targets.len(), threads_for(vocab_size, MAX_THREADS)).arg(z).arg(stride);
    let launch = launch.arg(vocab_size).arg(targets).arg(scale.unwrap_or(0.0)).arg(scale.is_some()).arg(aligned);
    // SAFETY: the parameters are those of the kernels; block n touches row n of z and dz, and losses[n].
    unsafe { launch.arg(dz).arg(&losses).run() }
}
