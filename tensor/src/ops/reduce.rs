use super::{Place, cast, place};
use crate::check::{expect_broadcast, expect_shape, reads, rows_and_cols, writes_u32};
use crate::{Beta, DType, Shape, Tensor};
use cuda::ops::reduce as gpu;
use kernels::reduce as kernel;

/// bf16 as f32, in a tensor of its own: for what is computed now and then. Other types as they are.
#[track_caller]
fn widened(x: &Tensor) -> Tensor {
    if x.dtype == DType::Bf16 { cast(x, DType::F32) } else { x.clone() }
}

/// The sum of all elements, as a scalar tensor. Fixed order: the same bits for any number of threads.
#[track_caller]
pub fn sum(x: &Tensor) -> Tensor {
    let place = place("sum", &[reads("x", x)]);
    let x = x.contiguous();
    let sum = match &place {
        Place::Cpu(team) => kernel::sum(team, x.slice()),
        // Waits: no kernel rounds the f64 on the device.
        Place::Cuda(gpu) => gpu.number(|total| gpu::sum(x.cuda_slice(), Beta::Zero, total)),
    };
    place.full(sum as f32, [])
}

/// The sum of the absolute values of all elements (for the penalty on the latent). Fixed order. bf16 is widened first.
#[track_caller]
pub fn sum_abs(x: &Tensor) -> f64 {
    let x = &widened(x);
    let place = place("sum_abs", &[reads("x", x)]);
    let x = x.contiguous();
    match place {
        Place::Cpu(team) => kernel::sum_abs(&team, x.slice()),
        Place::Cuda(gpu) => gpu.number(|total| gpu::sum_abs(x.cuda_slice(), Beta::Zero, total)),
    }
}

/// The sum of the squares of all elements (for the norm of gradients). Fixed order.
#[track_caller]
pub fn sum_squares(x: &Tensor) -> f64 {
    let place = place("sum_squares", &[reads("x", x)]);
    let x = x.contiguous();
    match place {
        Place::Cpu(team) => kernel::sum_squares(&team, x.slice()),
        Place::Cuda(gpu) => gpu.number(|total| gpu::sum_squares(x.cuda_slice(), Beta::Zero, total)),
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
