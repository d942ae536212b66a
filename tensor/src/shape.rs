//! Shapes and strides, held in place: making a view allocates nothing.

use std::fmt;
use std::ops::Deref;

/// The most axes a tensor may have: `[B, T, H, D]` and one to spare.
pub const MAX_RANK: usize = 5;

/// The extent of each axis. Dereferences to `[usize]`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    dims: [usize; MAX_RANK],
    rank: usize,
}

impl Shape {
    /// The shape with these extents. Panics beyond [`MAX_RANK`] axes.
    #[track_caller]
    pub fn new(dims: &[usize]) -> Shape {
        assert!(dims.len() <= MAX_RANK, "Shape::new: {} axes in {dims:?}, at most {MAX_RANK}", dims.len());
        let mut all = [1; MAX_RANK];
        all[..dims.len()].copy_from_slice(dims);
        Shape { dims: all, rank: dims.len() }
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of elements; 1 for a scalar (no axes).
    pub fn elements(&self) -> usize {
        self.iter().product()
    }

    /// The strides, in elements, of a row-major tensor of this shape.
    pub fn row_major_strides(&self) -> Shape {
        let mut strides = *self;
        let mut step = 1;
        for axis in (0..self.rank).rev() {
            strides.dims[axis] = step;
            step = step.saturating_mul(self.dims[axis]); // beyond an axis of extent 0 a stride may be absurd; it is not used
        }
        strides
    }

    /// The same with one more axis behind. Panics beyond [`MAX_RANK`] axes.
    #[track_caller]
    pub fn and(mut self, extent: usize) -> Shape {
        assert!(self.rank < MAX_RANK, "Shape::and: {self} and one of {extent} are more than {MAX_RANK} axes");
        self.dims[self.rank] = extent;
        self.rank += 1;
        self
    }

    /// The same with the extent of `axis` replaced. Panics if there is no such axis.
    #[track_caller]
    pub fn with(mut self, axis: usize, extent: usize) -> Shape {
        assert!(axis < self.rank, "Shape::with: axis {axis} of shape {self}");
        self.dims[axis] = extent;
        self
    }
}

impl Deref for Shape {
    type Target = [usize];
    fn deref(&self) -> &[usize] {
        &self.dims[..self.rank]
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    #[track_caller]
    fn from(dims: [usize; N]) -> Shape {
        Shape::new(&dims)
    }
}

impl From<&[usize]> for Shape {
    #[track_caller]
    fn from(dims: &[usize]) -> Shape {
        Shape::new(dims)
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}
