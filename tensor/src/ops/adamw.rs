use super::{Place, expect_shape, place};
use crate::Tensor;
pub use kernels::adamw::AdamW;

/// One step of AdamW on a parameter and its moments, in place (arXiv 1711.05101, algorithm 2).
/// Panics unless all four have one shape and the written ones are contiguous and unshared.
#[track_caller]
pub fn adamw(args: &AdamW, param: &mut Tensor, grad: &Tensor, m: &mut Tensor, v: &mut Tensor) {
    for (name, x) in [("grad", grad), ("m", &*m), ("v", &*v)] {
        expect_shape("adamw", name, x, &param.shape);
    }
    match place("adamw", &[param, grad, m, v]) {
        Place::Cpu(team) => {
            let grad = grad.contiguous();
            kernels::adamw::adamw(&team, args, param.slice_mut(), grad.slice(), m.slice_mut(), v.slice_mut());
        }
    }
}
