use super::{Place, cast, place};
use crate::check::{expect_broadcast, expect_shape, reads, rows_and_cols, writes_u32};
use crate::total::At;
use crate::{Beta, DType, Shape, Tensor, Total};
use cuda::ops::reduce as gpu;
use kernels::{Team, reduce as kernel};

/// bf16 as f32, in a tensor of its own: for what is computed now and then. Other types as they are.
#[track_caller]
fn widened(x: &Tensor) -> Tensor {
    if x.dtype == DType::Bf16 { cast(x, DType::F32) } else { x.clone() }
}

/// The sum of all elements, as a scalar tensor. Fixed order: the same bits for any number of threads.
#[track_caller]
pub fn sum(x: &Tensor) -> Tensor {
    let mut total = Total::zero(&x.device());
    add_sum("sum", (kernel::sum, gpu::sum), x, &mut total);
    total.scaled(1.0)
}

/// Adds the absolute values of all elements to `total` (for the penalty on the latent). Fixed order. bf16 is widened first.
/// Panics if they lie on different devices.
#[track_caller]
pub fn sum_abs(x: &Tensor, total: &mut Total) {
    add_sum("sum_abs", (kernel::sum_abs, gpu::sum_abs), &widened(x), total);
}

/// Adds the squares of all elements to `total` (for the norm of gradients). Fixed order. Panics if they lie on different devices.
#[track_caller]
pub fn sum_squares(x: &Tensor, total: &mut Total) {
    add_sum("sum_squares", (kernel::sum_squares, gpu::sum_squares), x, total);
}

/// The kernels of a sum, for the CPU and for a GPU.
type Sum = (fn(&Team, &[f32]) -> f64, fn(cuda::Slice<f32>, Beta, cuda::SliceMut<f64>) -> Result<(), cuda::Error>);

#[track_caller]
fn add_sum(op: &str, kernels: Sum, x: &Tensor, total: &mut Total) {
    let place = place(op, &[reads("x", x)]);
    let x = x.contiguous();
    match (place, &mut total.0) {
        (Place::Cpu(team), At::Cpu(total)) => *total += kernels.0(&team, x.slice()),
        (Place::Cuda(gpu), At::Cuda(total)) => gpu.done(kernels.1(x.cuda_slice(), Beta::One, total.as_mut())),
        (_, _) => panic!("{op}: x on {:?} and the total elsewhere", x.device()),
    }
}

/// Sums over the axes that broadcasting `shape` to x's shape would repeat: the transpose of `broadcast_to`.
/// Panics if `shape` does not broadcast to x's.
#[track_caller]
pub fn sum_to(x: &Tensor, shape: impl Into<Shape>) -> Tensor {
    let shape = shape.into();
    expect_broadcast("sum_to", shape, x.shape);
    let lead = x.shape.rank() - shape.rank();
    let place = place("sum_to", &[reads("x", x)]);
    if x.elements() == 0 {
        return place.full(0.0, shape); // sums of nothing, if there are any
    }
    let mut x = x.clone();
    for axis in 0..x.shape.rank() {
        let extent = x.shape[axis];
        if extent == 1 || axis >= lead && shape[axis - lead] == extent {
            continue;
        }
        // The axis to the front; what is left is a matrix whose rows are summed.
        let (before, after) = (x.shape[..axis].iter().product(), x.shape[axis + 1..].iter().product());
        let rows = x.reshape([before, extent, after]).transpose(0, 1).contiguous();
        let mut sums = place.full(0.0, x.shape.with(axis, 1));
        match &place {
            Place::Cpu(team) => kernel::sum_rows(team, rows.slice(), sums.slice_mut()),
            Place::Cuda(gpu) => gpu.done(gpu::sum_rows(rows.cuda_slice(), sums.cuda_slice_mut())),
        }
        x = sums;
    }
    x.reshape(shape)
}

/// `counts[f] += number of rows of g whose element f is positive`. Shapes: g `[.., F]`; counts `[F]` of u32.
/// bf16 is widened first.
#[track_caller]
pub fn count_positive(g: &Tensor, counts: &mut Tensor) {
    let (_, cols) = rows_and_cols("count_positive", "g", g);
    let g = &widened(g);
    expect_shape("count_positive", "counts", counts, &[cols]);
    let place = place("count_positive", &[reads("g", g), writes_u32("counts", counts)]);
    let g = g.contiguous();
    match place {
        Place::Cpu(team) => kernel::count_positive(&team, g.slice(), counts.slice_mut()),
        Place::Cuda(gpu) => gpu.done(gpu::count_positive(g.cuda_slice(), counts.cuda_slice_mut())),
    }
}

/// The position of the first element that is infinite or NaN, in row-major order. bf16 is widened first.
#[track_caller]
pub fn first_non_finite(x: &Tensor) -> Option<usize> {
    let x = &widened(x);
    let place = place("first_non_finite", &[reads("x", x)]);
    let x = x.contiguous();
    match place {
        Place::Cpu(_) => x.slice::<f32>().iter().position(|x| !x.is_finite()),
        Place::Cuda(gpu) => {
            let found = cuda::Buffer::from_slice(&gpu.device, &[u64::MAX]).and_then(|mut position| {
                gpu::first_non_finite(x.cuda_slice(), position.as_mut())?;
                position.to_vec()
            });
            Some(gpu.done(found)[0]).filter(|&position| position != u64::MAX).map(|position| position as usize)
        }
    }
}
