//! Rotary position embedding, in the half-rotation form of Hugging Face Llama.

use super::{Float, THREADS, rows_aligned};
use crate::stream::Launch;
use crate::{Error, Kernel, Module, Slice, SliceMut};
use kernels::rope::{RopeShape, Rotation};

static MODULE: Module = Module { name: "rope", ptx: include_str!("rope.ptx") };
static ROPE: [Kernel; 2] = [Kernel { module: &MODULE, entry: "rope" }, Kernel { module: &MODULE, entry: "rope_bf16" }];

/// Pairs that a thread turns.
const PAIRS: usize = 4;

/// With halves `a = x[.., i]` and `b = x[.., i + D/2]`: `y = (a cos - b sin, b cos + a sin)`, as [`kernels::rope::rope`], with its bits in f32.
///
/// Shapes: x, y `[N, H, D]`; cos, sin `[max_seq, D / 2]`. Bytes: 8 an element, 4 in bf16.
#[track_caller]
pub fn rope<T: Float>(
    x: Slice<T>,
    cos: Slice<f32>,
    sin: Slice<f32>,
    shape: RopeShape,
    rotation: Rotation,
    y: SliceMut<T>,
) -> Result<(), Error> {
    shape.check([x.len(), cos.len(), sin.len(), y.len()]);
    let RopeShape { n_heads, head_dim, seq_len, first_position } = shape;
    let half = head_dim / 2;
    let aligned =
        [x, y.as_slice()].iter().all(|&x| rows_aligned(x, half)) && [cos, sin].iter().all(|&t| rows_aligned(t, half));
    let groups = y.len() / head_dim * half.div_ceil(PAIRS);
    let sign = if rotation == Rotation::Forward { 1.0 } else { -1.0 };
    let launch = Launch::new(T::of(&ROPE), groups.div_ceil(THREADS), THREADS as u32).arg(x).arg(cos).arg(sin);
    // SAFETY: the parameters are those of the kernels; each thread stays within its pairs of [N, H, D], and within the rows of the tables
    // whose number was checked.
    unsafe {
        launch
            .arg(n_heads)
            .arg(head_dim)
            .arg(seq_len)
            .arg(first_position)
            .arg(sign)
            .arg(groups)
            .arg(aligned)
            .arg(&y)
            .run()
    }
}
