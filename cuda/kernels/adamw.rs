//! AdamW in one pass.

use super::THREADS;
use crate::stream::{Double, Launch};
use crate::{Error, Kernel, Module, Slice, SliceMut};
use kernels::adamw::{AdamW, Factors};

static MODULE: Module = Module { name: "adamw", ptx: include_str!("adamw.ptx") };
static ADAMW: Kernel = Kernel { module: &MODULE, entry: "adamw" };

/// Elements of a thread.
const PER_THREAD: usize = 4;

/// `factor[0] = min(1, max_norm / sqrt(squares[0]))`, as [`kernels::adamw::clip_factor`], with its bits: NaN unless `squares[0]` and `loss[0]` are
/// finite. All slices have one element. Nothing waits.
#[track_caller]
pub fn clip_factor(squares: Slice<f64>, loss: Slice<f64>, max_norm: f64, factor: SliceMut<f32>) -> Result<(), Error> {
    static KERNEL: Kernel = Kernel { module: &MODULE, entry: "clip_factor" };
    let lens = [squares.len(), loss.len(), factor.len()];
    assert!(lens == [1; 3], "clip_factor: {lens:?} elements of squares, loss and factor, not one of each");
    let launch = Launch::new(&KERNEL, 1, super::WARP as u32).arg(squares).arg(loss).arg(Double(max_norm));
    // SAFETY: the parameters are those of the kernel, which touches the one element of each.
    unsafe { launch.arg(&factor).run() }
}

/// One step, in place, as [`kernels::adamw::adamw`], with the bits of the CPU's levels that have fused multiply-adds.
///
/// `grad_scale` has one element, read on the device: the [`clip_factor`]; where that is NaN nothing changes. All other slices have the
/// length of `param`; `args.step` counts from 1. Bytes: 28 an element.
#[track_caller]
pub fn adamw(
    args: &AdamW,
    grad_scale: Slice<f32>,
    param: SliceMut<f32>,
    grad: Slice<f32>,
    m: SliceMut<f32>,
    v: SliceMut<f32>,
) -> Result<(), Error> {
    let len = param.len();
    args.check([len, grad.len(), m.len(), v.len()]);
    let aligned = [param.as_slice(), grad, m.as_slice(), v.as_slice()].iter().all(|x| x.is_aligned());
    assert_eq!(grad_scale.len(), 1, "adamw: a factor on the gradient of {} elements", grad_scale.len());
    let Factors { beta1, one_minus_beta1, beta2, one_minus_beta2, decay, minus_step_size, root_correction, eps } =
        Factors::of(args);
    let launch = Launch::new(&ADAMW, len.div_ceil(THREADS * PER_THREAD), THREADS as u32);
    let launch = launch.arg(grad_scale).arg(beta1).arg(one_minus_beta1).arg(beta2).arg(one_minus_beta2);
    let launch = launch.arg(decay).arg(minus_step_size).arg(root_correction).arg(eps).arg(len as u64).arg(aligned);
    // SAFETY: the parameters are those of the kernel, which touches elements below the length that was checked.
    unsafe { launch.arg(&param).arg(grad).arg(&m).arg(&v).run() }
}
