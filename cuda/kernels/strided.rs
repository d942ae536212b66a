//! Copies from windows with strides, and sums into them.

use super::THREADS;
use crate::stream::Launch;
use crate::{Error, Kernel, Module, Slice, SliceMut};
use bytemuck::Pod;

static MODULE: Module = Module { name: "strided", ptx: include_str!("strided.ptx") };
static GATHER: Kernel = Kernel { module: &MODULE, entry: "gather" };
static GATHER_16: Kernel = Kernel { module: &MODULE, entry: "gather_16" };
static ADD_TO_RANGE: Kernel = Kernel { module: &MODULE, entry: "add_to_range" };

/// Axes of a window. Of the .cu.
const AXES: usize = 5;

/// Copies a window row by row: `dst[i] = src[sum of index * stride]` for the indices of i in `extents`. Any elements of two or four bytes.
///
/// Shapes: dst `extents`; strides in elements, one for each of at most 5 axes, 0 for one that repeats. Bytes: an element written; read, whole
/// sectors of 32 bytes wherever the last axis has gaps. Axes that lie together count as one, so most views take one or two divisions an element.
#[track_caller]
pub fn gather<T: Pod>(src: Slice<T>, extents: &[usize], strides: &[usize], dst: SliceMut<T>) -> Result<(), Error> {
    let kernel = match size_of::<T>() {
        2 => &GATHER_16,
        4 => &GATHER,
        size => panic!("gather: elements of {size} bytes, not 2 or 4"),
    };
    assert!(
        extents.len() == strides.len() && extents.len() <= AXES && extents.iter().product::<usize>() == dst.len(),
        "gather: extents {extents:?} with strides {strides:?} into {} elements, at most {AXES} axes",
        dst.len()
    );
    if dst.is_empty() {
        return Ok(());
    }
    let last: usize = extents.iter().zip(strides).map(|(n, stride)| (n - 1) * stride).sum();
    assert!(last < src.len(), "gather: extents {extents:?} with strides {strides:?} of {} elements", src.len());
    // From the last place on: an axis that continues the one behind it joins it.
    let (mut n, mut step, mut used) = ([1; AXES], [0; AXES], 0);
    for (&extent, &stride) in extents.iter().zip(strides).rev().filter(|&(&extent, _)| extent > 1) {
        if used > 0 && stride == n[used - 1] * step[used - 1] {
            n[used - 1] *= extent;
        } else {
            (n[used], step[used]) = (extent, stride);
            used += 1;
        }
    }
    let launch = Launch::new(kernel, dst.len().div_ceil(THREADS), THREADS as u32).arg(src).arg(dst.len());
    // The first axis is what the division by the others leaves.
    let launch = n[..AXES - 1].iter().rev().fold(launch, |launch, &n| launch.arg(n));
    let launch = step.iter().rev().fold(launch, |launch, &step| launch.arg(step));
    // SAFETY: the parameters are those of the kernel; no index reaches beyond the last element, which was checked.
    unsafe { launch.arg(&dst).run() }
}

/// `dst[row * stride + j] += x[row * len + j]` for `j < len`: rows of x, added to the beginnings of rows that are `stride` apart. Each sum is rounded once.
/// Bytes: 12 an element of x.
#[track_caller]
pub fn add_to_range(x: Slice<f32>, len: usize, stride: usize, dst: SliceMut<f32>) -> Result<(), Error> {
    if x.is_empty() {
        return Ok(());
    }
    let fits = len > 0 && len <= stride && x.len().is_multiple_of(len);
    assert!(
        fits && (x.len() / len - 1) * stride + len <= dst.len(),
        "add_to_range: x {} elements in rows of {len}, {stride} apart in {} elements",
        x.len(),
        dst.len()
    );
    let launch = Launch::new(&ADD_TO_RANGE, x.len().div_ceil(THREADS), THREADS as u32).arg(x).arg(x.len());
    // SAFETY: the parameters are those of the kernel; the last row ends within dst, and no two meet.
    unsafe { launch.arg(len).arg(stride).arg(&dst).run() }
}
