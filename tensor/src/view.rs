//! Views: other shapes on the same storage, and the copy that makes a view contiguous.

use crate::{DType, Shape, Storage, Tensor};

impl Tensor {
    /// The same elements in another shape. Copies only if the tensor is not contiguous.
    /// Panics if the numbers of elements differ.
    #[track_caller]
    pub fn reshape(&self, shape: impl Into<Shape>) -> Tensor {
        let shape = shape.into();
        let fits = shape.elements() == self.elements();
        assert!(fits, "reshape: {} ({} elements) to {shape} ({})", self.shape, self.elements(), shape.elements());
        let mut out = self.contiguous();
        (out.shape, out.strides) = (shape, shape.row_major_strides());
        out
    }

    /// Axes `a` and `b` exchanged. Panics if there is no such axis.
    #[track_caller]
    pub fn transpose(&self, a: usize, b: usize) -> Tensor {
        let rank = self.shape.rank();
        assert!(a < rank && b < rank, "transpose: axes {a} and {b} of shape {}", self.shape);
        let (shape, strides) = (self.shape, self.strides);
        let mut out = self.clone();
        out.shape = shape.with(a, shape[b]).with(b, shape[a]);
        out.strides = strides.with(a, strides[b]).with(b, strides[a]);
        out
    }

    /// The transposed matrix. Panics unless there are two axes.
    #[track_caller]
    pub fn t(&self) -> Tensor {
        assert_eq!(self.shape.rank(), 2, "t: shape {} is not a matrix", self.shape);
        self.transpose(0, 1)
    }

    /// Elements `start .. start + len` along `axis`. Panics if they reach beyond it.
    #[track_caller]
    pub fn narrow(&self, axis: usize, start: usize, len: usize) -> Tensor {
        let fits = axis < self.shape.rank() && start + len <= self.shape[axis];
        assert!(fits, "narrow: {start}..{} along axis {axis} of shape {}", start + len, self.shape);
        let mut out = self.clone();
        out.offset += start * self.strides[axis];
        out.shape = self.shape.with(axis, len);
        out
    }

    /// The tensor repeated, without copying, to a larger shape: axes are matched from the last one, and an axis of extent 1
    /// (or none) may become any (NumPy's rule). Panics if an axis does not match.
    #[track_caller]
    pub fn broadcast_to(&self, shape: impl Into<Shape>) -> Tensor {
        let shape = shape.into();
        let lead = shape.rank().checked_sub(self.shape.rank());
        let lead = lead.unwrap_or_else(|| panic!("broadcast_to: {} to fewer axes, {shape}", self.shape));
        let mut strides = shape.row_major_strides();
        for axis in 0..shape.rank() {
            let (extent, stride) =
                if axis < lead { (1, 0) } else { (self.shape[axis - lead], self.strides[axis - lead]) };
            let matches = extent == shape[axis] || extent == 1;
            assert!(
                matches,
                "broadcast_to: {} to {shape}: axis {axis} is {extent}, not 1 or {}",
                self.shape, shape[axis]
            );
            strides = strides.with(axis, if extent == 1 { 0 } else { stride });
        }
        Tensor { shape, strides, ..self.clone() }
    }

    /// The same tensor with its elements row by row without gaps: itself if it is so already, else a copy.
    #[track_caller]
    pub fn contiguous(&self) -> Tensor {
        if self.is_contiguous() {
            return self.clone();
        }
        let mut out = Tensor::stale(self.shape, self.dtype);
        let Storage::Cpu(block) = &self.storage else {
            panic!("contiguous: views of {self:?} are copied on the cpu only so far")
        };
        // Both element types are four bytes: moved as such.
        debug_assert!(DType::F32.size() == DType::U32.size());
        let src: &[u32] = block.elements();
        let (shape, strides, offset) = (self.shape, self.strides, self.offset);
        let as_bits = std::mem::replace(&mut out.dtype, DType::U32);
        gather(src, offset, &shape, &strides, out.slice_mut::<u32>());
        out.dtype = as_bits;
        out
    }
}

/// Copies the strided window row by row into `dst`.
fn gather(src: &[u32], offset: usize, shape: &[usize], strides: &[usize], dst: &mut [u32]) {
    match (shape, strides) {
        ([n], [1]) => dst.copy_from_slice(&src[offset..offset + n]),
        ([_], [stride]) => dst.iter_mut().enumerate().for_each(|(i, d)| *d = src[offset + i * stride]),
        ([_, shape @ ..], [stride, strides @ ..]) => {
            let inner = shape.iter().product();
            if inner > 0 {
                for (i, dst) in dst.chunks_exact_mut(inner).enumerate() {
                    gather(src, offset + i * stride, shape, strides, dst);
                }
            }
        }
        _ => dst.copy_from_slice(&src[offset..offset + 1]),
    }
}
