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
    match place("adamw", &[writes("param", param), reads("grad", grad), writes("m", m), writes("v", v)]) {
        Place::Cpu(team) => {
            let grad = grad.contiguous();
            kernels::adamw::adamw(&team, args, param.slice_mut(), grad.slice(), m.slice_mut(), v.slice_mut());
        }
    }
}
