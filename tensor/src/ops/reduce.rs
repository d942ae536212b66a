use super::{Place, place};
use crate::check::{expect_broadcast, expect_shape, reads, rows_and_cols, writes_u32};
use crate::{Shape, Tensor};
use kernels::reduce as kernel;

/// The sum of all elements, as a scalar tensor. Fixed order: the same bits for any number of threads.
#[track_caller]
pub fn sum(x: &Tensor) -> Tensor {
    match place("sum", &[reads("x", x)]) {
        Place::Cpu(team) => Tensor::scalar(kernel::sum(&team, x.contiguous().slice()) as f32),
    }
}

/// The sum of the absolute values of all elements (for the penalty on the latent). Fixed order.
#[track_caller]
pub fn sum_abs(x: &Tensor) -> f64 {
    match place("sum_abs", &[reads("x", x)]) {
        Place::Cpu(team) => kernel::sum_abs(&team, x.contiguous().slice()),
    }
}

/// The sum of the squares of all elements (for the norm of gradients). Fixed order.
#[track_caller]
pub fn sum_squares(x: &Tensor) -> f64 {
    match place("sum_squares", &[reads("x", x)]) {
        Place::Cpu(team) => kernel::sum_squares(&team, x.contiguous().slice()),
    }
}

/// Sums over the axes that broadcasting `shape` to x's shape would repeat: the transpose of `broadcast_to`.
/// Panics if `shape` does not broadcast to x's.
#[track_caller]
pub fn sum_to(x: &Tensor, shape: impl Into<Shape>) -> Tensor {
    let shape = shape.into();
    expect_broadcast("sum_to", shape, x.shape);
    let lead = x.shape.rank() - shape.rank();
    match place("sum_to", &[reads("x", x)]) {
        Place::Cpu(_) if x.elements() == 0 => Tensor::zeros(shape), // sums of nothing, if there are any
        Place::Cpu(team) => {
            let mut x = x.clone();
            for axis in 0..x.shape.rank() {
                let extent = x.shape[axis];
                if extent == 1 || axis >= lead && shape[axis - lead] == extent {
                    continue;
                }
                // The axis to the front; what is left is a matrix whose rows are summed.
                let (before, after) = (x.shape[..axis].iter().product(), x.shape[axis + 1..].iter().product());
                let rows = x.reshape([before, extent, after]).transpose(0, 1).contiguous();
                let mut sums = Tensor::zeros(x.shape.with(axis, 1));
                kernel::sum_rows(&team, rows.slice(), sums.slice_mut());
                x = sums;
            }
            x.reshape(shape)
        }
    }
}

/// `counts[f] += number of rows of g whose element f is positive`. Shapes: g `[.., F]`; counts `[F]` of u32.
#[track_caller]
pub fn count_positive(g: &Tensor, counts: &mut Tensor) {
    let (_, cols) = rows_and_cols("count_positive", "g", g);
    expect_shape("count_positive", "counts", counts, &[cols]);
    match place("count_positive", &[reads("g", g), writes_u32("counts", counts)]) {
        Place::Cpu(team) => kernel::count_positive(&team, g.contiguous().slice(), counts.slice_mut()),
    }
}

/// The position of the first element that is infinite or NaN, in row-major order.
#[track_caller]
pub fn first_non_finite(x: &Tensor) -> Option<usize> {
    match place("first_non_finite", &[reads("x", x)]) {
        Place::Cpu(_) => x.contiguous().slice::<f32>().iter().position(|x| !x.is_finite()),
    }
}
