use super::{Place, place, with_float};
use crate::Tensor;
use crate::check::{reads, reads_float};
use kernels::rope::RopeShape;
pub use kernels::rope::Rotation;

/// Rotates each head by its position (half-rotation form); [`Rotation::Backward`] is the transpose, for gradients.
/// Row t of a sequence is at position `first_position + t`.
///
/// Shapes: float x and the result `[B, T, H, D]`; cos, sin `[max_seq, D / 2]` of f32. Panics if the table ends before the last position.
#[track_caller]
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor, first_position: usize, rotation: Rotation) -> Tensor {
    let &[_, seq_len, n_heads, head_dim] = &*x.shape else { panic!("rope: x has shape {}, not [B, T, H, D]", x.shape) };
    let fits = cos.shape == sin.shape && cos.shape.rank() == 2 && cos.shape[1] * 2 == head_dim;
    assert!(fits, "rope: tables {} and {} for heads of {head_dim}", cos.shape, sin.shape);
    let end = first_position + seq_len;
    assert!(end <= cos.shape[0], "rope: position {} of x {} in a table of {}", end - 1, x.shape, cos.shape[0]);
    let place = place("rope", &[reads_float("x", x), reads("cos", cos), reads("sin", sin)]);
    let mut y = place.stale(x.shape, x.dtype);
    let shape = RopeShape { n_heads, head_dim, seq_len, first_position };
    let (x, cos, sin) = (x.contiguous(), cos.contiguous(), sin.contiguous());
    match place {
        Place::Cpu(team) => {
            kernels::rope::rope(&team, x.slice(), cos.slice(), sin.slice(), shape, rotation, y.slice_mut())
        }
        Place::Cuda(gpu) => with_float!(x.dtype, T => {
            let (x, cos, sin) = (x.cuda_slice::<T>(), cos.cuda_slice(), sin.cuda_slice());
            gpu.done(cuda::ops::rope::rope(x, cos, sin, shape, rotation, y.cuda_slice_mut()));
        }),
    }
    y
}
