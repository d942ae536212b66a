use super::{Place, place};
use crate::check::reads_like;
use crate::{DType, Tensor};
use cuda::ops::elementwise as gpu;
use kernels::elementwise as kernel;

/// x in another element type: f32 is rounded to bf16 (to nearest, ties to even), bf16 widened to f32, exactly. x itself if it is
/// of that type. Panics from u32 or to it.
#[track_caller]
pub fn cast(x: &Tensor, dtype: DType) -> Tensor {
    if x.dtype == dtype {
        return x.clone();
    }
    let place = place("cast", &[reads_like("x", x, x.dtype)]);
    let x = x.contiguous();
    let mut out = place.stale(x.shape, dtype);
    match (x.dtype, dtype, place) {
        (DType::F32, DType::Bf16, Place::Cpu(team)) => kernel::narrow(&team, x.slice(), out.slice_mut()),
        (DType::Bf16, DType::F32, Place::Cpu(team)) => kernel::widen(&team, x.slice(), out.slice_mut()),
        (DType::F32, DType::Bf16, Place::Cuda(on)) => on.done(gpu::narrow(x.cuda_slice(), out.cuda_slice_mut())),
        (DType::Bf16, DType::F32, Place::Cuda(on)) => on.done(gpu::widen(x.cuda_slice(), out.cuda_slice_mut())),
        (from, to, _) => panic!("cast: x of shape {} from {from} to {to}", x.shape),
    }
    out
}

/// A contiguous copy that shares its storage with nothing. x is f32, or, on a GPU, bf16.
#[track_caller]
pub fn copy(x: &Tensor) -> Tensor {
    let place = place("copy", &[crate::check::reads_float("x", x)]);
    let x = x.contiguous();
    let mut out = place.stale(x.shape, x.dtype);
    match place {
        Place::Cpu(team) => kernel::scale(&team, 1.0, x.slice(), out.slice_mut()),
        Place::Cuda(gpu) => {
            super::with_float!(x.dtype, T => gpu.done(out.cuda_slice_mut::<T>().copy_from(x.cuda_slice())))
        }
    }
    out
}
