use super::{Place, place};
use crate::check::{expect_shape, reads, writes};
use crate::total::At;
use crate::{DType, Device, Tensor, Total, failure};
use cuda::ops::adamw as gpu;
pub use kernels::adamw::AdamW;

/// The factor that clips a gradient whose squares sum to `squares` to the norm `max_norm`, or does nothing if that is 0: `min(1, max_norm / norm)`,
/// a tensor without axes. NaN unless the sum and the loss are finite: then [`adamw`] changes nothing. Nothing waits for it.
/// Panics if the totals lie on different devices.
#[track_caller]
pub fn clip_factor(squares: &Total, loss: &Total, max_norm: f64) -> Tensor {
    match (&squares.0, &loss.0) {
        (&At::Cpu(squares), &At::Cpu(loss)) => Tensor::scalar(kernels::adamw::clip_factor(squares, loss, max_norm)),
        (At::Cuda(squares), At::Cuda(loss)) => {
            let mut factor = Tensor::stale_on(&Device::Cuda(squares.device().clone()), [], DType::F32);
            let made = gpu::clip_factor(squares.as_slice(), loss.as_slice(), max_norm, factor.cuda_slice_mut());
            made.unwrap_or_else(|e| failure::raise("clip_factor", e));
            factor
        }
        _ => panic!("clip_factor: a total on the cpu and one on a GPU"),
    }
}

/// One step of AdamW on a parameter and its moments, in place (arXiv 1711.05101, algorithm 2). `grad_scale`, one number, is the
/// [`clip_factor`]: where it is NaN nothing changes.
/// Panics unless the other four have one shape and the written ones are contiguous and unshared.
#[track_caller]
pub fn adamw(args: &AdamW, grad_scale: &Tensor, param: &mut Tensor, grad: &Tensor, m: &mut Tensor, v: &mut Tensor) {
    for (name, x) in [("grad", grad), ("m", &*m), ("v", &*v)] {
        expect_shape("adamw", name, x, &param.shape);
    }
    expect_shape("adamw", "grad_scale", grad_scale, &[]);
    let (scale, operand) = (reads("grad_scale", grad_scale), reads("grad", grad));
    let place = place("adamw", &[scale, writes("param", param), operand, writes("m", m), writes("v", v)]);
    let grad = grad.contiguous();
    match place {
        Place::Cpu(team) => {
            let [grad_scale] = *grad_scale.slice() else { unreachable!("one element, by its shape") };
            let (param, m, v) = (param.slice_mut(), m.slice_mut(), v.slice_mut());
            kernels::adamw::adamw(&team, args, grad_scale, param, grad.slice(), m, v)
        }
        Place::Cuda(on) => {
            let (param, m, v) = (param.cuda_slice_mut(), m.cuda_slice_mut(), v.cuda_slice_mut());
            on.done(gpu::adamw(args, grad_scale.cuda_slice(), param, grad.cuda_slice(), m, v));
        }
    }
}
