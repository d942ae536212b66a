//! Views: other shapes on the same storage, and the copy that makes a view contiguous.

use crate::check::{expect_axis, expect_broadcast, expect_matrix};
use crate::{DType, Element, Shape, Storage, Tensor, failure};
use half::bf16;

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
        expect_axis("transpose", self.shape, a);
        expect_axis("transpose", self.shape, b);
        let (shape, strides) = (self.shape, self.strides);
        let mut out = self.clone();
        out.shape = shape.with(a, shape[b]).with(b, shape[a]);
        out.strides = strides.with(a, strides[b]).with(b, strides[a]);
        out
    }

    /// The transposed matrix. Panics unless there are two axes.
    #[track_caller]
    pub fn t(&self) -> Tensor {
        expect_matrix("t", "the tensor", self);
        self.transpose(0, 1)
    }

    /// Elements `start .. start + len` along `axis`. Panics if they reach beyond it.
    #[track_caller]
    pub fn narrow(&self, axis: usize, start: usize, len: usize) -> Tensor {
        expect_axis("narrow", self.shape, axis);
        let fits = start.checked_add(len).is_some_and(|end| end <= self.shape[axis]);
        assert!(fits, "narrow: {len} from {start} on along axis {axis} of shape {}", self.shape);
        let mut out = self.clone();
        out.shape = self.shape.with(axis, len);
        if out.elements() > 0 {
            // An empty tensor keeps its offset: its elements, which it has not, might begin behind the storage.
            out.offset += start * self.strides[axis];
        }
        out
    }

    /// The tensor repeated, without copying, to a larger shape: axes are matched from the last one, and an axis of extent 1
    /// (or none) may become any (NumPy's rule). Panics if an axis does not match.
    #[track_caller]
    pub fn broadcast_to(&self, shape: impl Into<Shape>) -> Tensor {
        let shape = shape.into();
        expect_broadcast("broadcast_to", self.shape, shape);
        let lead = shape.rank() - self.shape.rank();
        let mut strides = shape;
        for axis in 0..shape.rank() {
            let repeated = axis < lead || self.shape[axis - lead] == 1;
            strides = strides.with(axis, if repeated { 0 } else { self.strides[axis - lead] });
        }
        Tensor { shape, strides, ..self.clone() }
    }

    /// The same tensor with its elements row by row without gaps: itself if it is so already, else a copy on its device.
    /// Panics if a GPU fails.
    #[track_caller]
    pub fn contiguous(&self) -> Tensor {
        self.try_contiguous().unwrap_or_else(|e| failure::raise("contiguous", e))
    }

    /// [`contiguous`](Tensor::contiguous), with the GPU's failure as an error.
    pub(crate) fn try_contiguous(&self) -> Result<Tensor, cuda::Error> {
        if self.is_contiguous() {
            return Ok(self.clone());
        }
        match self.dtype {
            DType::F32 => self.dense_copy::<f32>(),
            DType::Bf16 => self.dense_copy::<bf16>(),
            DType::U32 => self.dense_copy::<u32>(),
        }
    }

    fn dense_copy<T: Element>(&self) -> Result<Tensor, cuda::Error> {
        let mut out = Tensor::try_stale_on(&self.device(), self.shape, T::DTYPE)?;
        let to = &mut out;
        match &self.storage {
            Storage::Cpu(block) => {
                gather(block.elements(), self.offset, &self.shape, &self.strides, to.slice_mut::<T>());
            }
            Storage::Cuda(buffer) => {
                let elements = buffer.as_slice().cast::<T>();
                let window = elements.part(self.offset..elements.len());
                cuda::ops::strided::gather(window, &self.shape, &self.strides, to.cuda_slice_mut())?;
            }
        }
        Ok(out)
    }
}

/// Copies the strided window row by row into `dst`.
fn gather<T: Copy>(src: &[T], offset: usize, shape: &[usize], strides: &[usize], dst: &mut [T]) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Device, MAX_RANK};
    use proptest::prelude::*;
    use std::sync::OnceLock;

    /// A tensor as the plainest thing that can be right: its elements in row-major order.
    #[derive(Clone)]
    struct Model {
        shape: Vec<usize>,
        data: Vec<u32>,
    }

    impl Model {
        /// Element by element, from the index in the result to the index here.
        fn map(&self, shape: Vec<usize>, index: impl Fn(&[usize]) -> Vec<usize>) -> Model {
            let n = shape.iter().product();
            let data = (0..n).map(|i| self.data[ravel(&index(&unravel(i, &shape)), &self.shape)]).collect();
            Model { shape, data }
        }
    }

    fn unravel(mut i: usize, shape: &[usize]) -> Vec<usize> {
        let mut index = vec![0; shape.len()];
        for axis in (0..shape.len()).rev() {
            index[axis] = i % shape[axis];
            i /= shape[axis];
        }
        index
    }

    fn ravel(index: &[usize], shape: &[usize]) -> usize {
        index.iter().zip(shape).fold(0, |at, (i, n)| at * n + i)
    }

    /// One view, chosen by four numbers, of both.
    fn step(x: &Tensor, model: &Model, (kind, p, q, r): (u8, usize, usize, usize)) -> (Tensor, Model) {
        let rank = model.shape.len();
        match kind {
            0 if rank > 0 => {
                let (a, b) = (p % rank, q % rank);
                let mut shape = model.shape.clone();
                shape.swap(a, b);
                let swapped = |index: &[usize]| {
                    let mut index = index.to_vec();
                    index.swap(a, b);
                    index
                };
                (x.transpose(a, b), model.map(shape, swapped))
            }
            1 if rank > 0 => {
                let axis = p % rank;
                let start = q % (model.shape[axis] + 1);
                let len = r % (model.shape[axis] - start + 1);
                let mut shape = model.shape.clone();
                shape[axis] = len;
                let shifted = |index: &[usize]| {
                    let mut index = index.to_vec();
                    index[axis] += start;
                    index
                };
                (x.narrow(axis, start, len), model.map(shape, shifted))
            }
            2 => {
                // To more axes, and along those of extent 1 to more elements (or none).
                let lead = p % (MAX_RANK - rank + 1);
                let mut shape = vec![q % 3; lead];
                shape.extend(model.shape.iter().map(|&n| if n == 1 { r % 4 } else { n }));
                if shape.iter().product::<usize>() > 5000 {
                    return (x.clone(), model.clone());
                }
                let repeated = |index: &[usize]| {
                    index[lead..].iter().zip(&model.shape).map(|(&i, &n)| if n == 1 { 0 } else { i }).collect()
                };
                (x.broadcast_to(&shape[..]), model.map(shape.clone(), repeated))
            }
            3 => {
                // All in one axis, or that split by a divisor.
                let n = model.data.len();
                let divisor = (1..=p % 6 + 1).rev().find(|&d| n.is_multiple_of(d)).unwrap_or(1);
                let shape = if q % 2 == 0 { vec![n] } else { vec![divisor, n / divisor] };
                (x.reshape(&shape[..]), Model { shape, data: model.data.clone() })
            }
            _ => (x.contiguous(), model.clone()),
        }
    }

    fn gpu() -> &'static Device {
        static GPU: OnceLock<Device> = OnceLock::new();
        GPU.get_or_init(|| Device::Cuda(cuda_testing::device()))
    }

    proptest! {
        #[test]
        fn views_agree_with_the_index_model(
            dims in proptest::collection::vec(0usize..5, 0..=4),
            steps in proptest::collection::vec((0u8..5, any::<usize>(), any::<usize>(), any::<usize>()), 0..8),
        ) {
            let n = dims.iter().product::<usize>();
            let mut model = Model { shape: dims.clone(), data: (0..n as u32).collect() };
            let mut x = Tensor::from_slice(&model.data, &dims[..]);
            let mut there = x.to_device(gpu()).unwrap();
            for at in steps {
                (there, _) = step(&there, &model, at);
                (x, model) = step(&x, &model, at);
                prop_assert_eq!(there.to_vec::<u32>().unwrap(), model.data.clone(), "on a GPU, after {:?}", at);
                prop_assert_eq!(&*x.shape(), &model.shape[..], "after {:?}", at);
                prop_assert_eq!(x.to_vec::<u32>().unwrap(), model.data.clone(), "after {:?}", at);
                prop_assert!(x.contiguous().is_contiguous());
                if x.is_contiguous() {
                    prop_assert_eq!(x.slice::<u32>(), &model.data[..], "after {:?}", at);
                }
            }
        }
    }

    #[test]
    fn views_share_the_storage_and_copies_do_not() {
        let x = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0], [3, 2]);
        assert!(x.is_unique());
        let rows = x.narrow(0, 1, 2);
        assert!(rows.is_contiguous(), "whole rows lie together");
        assert_eq!(rows.slice::<f32>(), [3.0, 4.0, 5.0, 6.0]);
        assert!(!x.narrow(1, 0, 1).is_contiguous());
        assert!(!x.is_unique() && !rows.is_unique());
        assert!(x.t().contiguous().is_unique());
        drop(rows);
        assert!(x.is_unique());
        assert!(!x.reshape([6]).is_unique());
    }

    #[test]
    fn an_empty_tensor_has_no_place_to_leave() {
        let x = Tensor::zeros([64, 16]);
        let nothing = x.narrow(1, 16, 0).narrow(0, 64, 0);
        assert_eq!(nothing.to_vec::<f32>().unwrap(), [0.0; 0]);
        assert_eq!(nothing.broadcast_to([2, 0, 0]).contiguous().shape(), [2, 0, 0].into());
        assert_eq!(x.narrow(0, 64, 0).t().reshape([0]).elements(), 0);
    }
}
