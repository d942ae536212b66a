use super::{Place, place};
use crate::Tensor;
use crate::check::{expect_shape, reads, writes};
pub use kernels::adamw::AdamW;

/// One step of AdamW on a parameter and its moments, in place (arXiv 1711.05101, algorithm 2).
/// Panics unless all four have one shape and the written ones are contiguous and unshared.
#[track_caller]
pub fn adamw(args: &AdamW, param: &mut Tensor, grad: &Tensor, m: &mut Tensor, v: &mut Tensor) {
    for (name, x) in [("grad", grad), ("m", &*m), ("v", &*v)] {
        expect_shape("adamw", name, x, &param.shape);
    }
    let place = place("adamw", &[writes("param", param), reads("grad", grad), writes("m", m), writes("v", v)]);
    let grad = grad.contiguous();
    match place {
        Place::Cpu(team) => {
            kernels::adamw::adamw(&team, args, param.slice_mut(), grad.slice(), m.slice_mut(), v.slice_mut())
        }
        Place::Cuda(gpu) => {
            let (param, m, v) = (param.cuda_slice_mut(), m.cuda_slice_mut(), v.cuda_slice_mut());
            gpu.done(cuda::ops::adamw::adamw(args, param, grad.cuda_slice(), m, v));
        }
    }
}
