//! The tensor: a window of some shape on shared storage.

use crate::check;
use crate::pool::Block;
use crate::{DType, Device, Shape, Storage, failure};
use bytemuck::Pod;
use half::bf16;
use std::ops::Range;
use std::sync::Arc;

/// Elements of one [`DType`] in a [`Shape`], at strides in a [`Storage`]. Cloning and making views share the storage.
#[derive(Clone)]
pub struct Tensor {
    pub(crate) storage: Storage,
    pub(crate) dtype: DType,
    pub(crate) shape: Shape,
    /// In elements; 0 along a broadcast axis.
    pub(crate) strides: Shape,
    /// Of the first element, in elements.
    pub(crate) offset: usize,
}

/// A Rust type that is the element type of tensors.
pub trait Element: Pod {
    /// Its name among the element types.
    const DTYPE: DType;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
}

impl Element for bf16 {
    const DTYPE: DType = DType::Bf16;
}

impl Element for u32 {
    const DTYPE: DType = DType::U32;
}

impl Tensor {
    /// A tensor on the CPU with stale contents, to be overwritten. Panics if the shape has too many elements for any memory.
    #[track_caller]
    pub fn stale(shape: impl Into<Shape>, dtype: DType) -> Tensor {
        Tensor::stale_on(&Device::Cpu, shape, dtype)
    }

    /// [`stale`](Tensor::stale) on a device. Panics if its memory does not suffice.
    #[track_caller]
    pub fn stale_on(device: &Device, shape: impl Into<Shape>, dtype: DType) -> Tensor {
        let shape = shape.into();
        Tensor::try_stale_on(device, shape, dtype)
            .unwrap_or_else(|e| failure::raise(format!("a tensor of shape {shape}"), e))
    }

    /// [`stale_on`](Tensor::stale_on), with the GPU's failure as an error.
    #[track_caller]
    pub(crate) fn try_stale_on(device: &Device, shape: Shape, dtype: DType) -> Result<Tensor, cuda::Error> {
        let bytes = shape.iter().try_fold(dtype.size(), |n, &extent| n.checked_mul(extent));
        let Some(bytes) = bytes.filter(|&n| n <= isize::MAX as usize) else {
            panic!("Tensor::stale: shape {shape} has too many elements")
        };
        let storage = match device {
            Device::Cpu => Storage::Cpu(Arc::new(Block::new(bytes))),
            Device::Cuda(gpu) => Storage::Cuda(Arc::new(cuda::Buffer::stale(gpu, bytes)?)),
        };
        Ok(Tensor { storage, dtype, shape, strides: shape.row_major_strides(), offset: 0 })
    }

    /// The tensor with these elements, row by row, on the CPU. Panics if their number does not fit the shape.
    #[track_caller]
    pub fn from_slice<T: Element>(data: &[T], shape: impl Into<Shape>) -> Tensor {
        let shape = shape.into();
        assert!(data.len() == shape.elements(), "from_slice: {} elements for shape {shape}", data.len());
        let mut tensor = Tensor::stale(shape, T::DTYPE);
        tensor.slice_mut::<T>().copy_from_slice(data);
        tensor
    }

    /// All elements `value`, on the CPU.
    #[track_caller]
    pub fn full(value: f32, shape: impl Into<Shape>) -> Tensor {
        Tensor::full_on(&Device::Cpu, value, shape)
    }

    /// All elements `value`, on a device. Panics if its memory does not suffice.
    #[track_caller]
    pub fn full_on(device: &Device, value: f32, shape: impl Into<Shape>) -> Tensor {
        let mut tensor = Tensor::stale_on(device, shape, DType::F32);
        if let Device::Cpu = device {
            tensor.slice_mut::<f32>().fill(value);
            return tensor;
        }
        let mut elements = tensor.cuda_slice_mut::<f32>();
        let filled = match value.to_bits() {
            0 => elements.fill_bytes(0),
            _ => elements.copy_from_host(&vec![value; elements.len()]),
        };
        filled.unwrap_or_else(|e| failure::raise(format!("a tensor of shape {}", tensor.shape), e));
        tensor
    }

    /// All elements 0, on the CPU.
    #[track_caller]
    pub fn zeros(shape: impl Into<Shape>) -> Tensor {
        Tensor::full(0.0, shape)
    }

    /// All elements 0, on a device. Panics if its memory does not suffice.
    #[track_caller]
    pub fn zeros_on(device: &Device, shape: impl Into<Shape>) -> Tensor {
        Tensor::full_on(device, 0.0, shape)
    }

    /// A single number (no axes), on the CPU.
    pub fn scalar(value: f32) -> Tensor {
        Tensor::full(value, [])
    }

    /// The extents of the axes.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The extent of an axis. Panics if there is no such axis.
    #[track_caller]
    pub fn dim(&self, axis: usize) -> usize {
        check::expect_axis("dim", self.shape, axis);
        self.shape[axis]
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.elements()
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where the elements lie.
    pub fn device(&self) -> Device {
        self.storage.device()
    }

    /// The memory, for dispatch.
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// Whether the elements follow each other row by row without gaps. No elements do.
    pub fn is_contiguous(&self) -> bool {
        let row_major = self.shape.row_major_strides();
        self.elements() == 0
            || self.shape.iter().zip(self.strides.iter().zip(row_major.iter())).all(|(&n, (s, r))| n == 1 || s == r)
    }

    /// Whether no other tensor shares the storage, so that it may be written in place.
    pub fn is_unique(&self) -> bool {
        match &self.storage {
            Storage::Cpu(block) => Arc::strong_count(block) == 1,
            Storage::Cuda(buffer) => Arc::strong_count(buffer) == 1,
        }
    }

    /// The elements, row by row. This is how data leaves a tensor. Fails only if a GPU does.
    /// Panics if `T` is not the element type.
    #[track_caller]
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>, cuda::Error> {
        let (dtype, shape) = (self.dtype, self.shape);
        assert!(dtype == T::DTYPE, "to_vec: a tensor of {dtype}, shape {shape}, read as {}", T::DTYPE);
        match &self.storage {
            Storage::Cpu(_) => Ok(self.contiguous().slice::<T>().to_vec()),
            Storage::Cuda(_) => self.try_contiguous()?.cuda_slice::<T>().to_vec(),
        }
    }

    /// The one element of a tensor with one element. Panics if it has more, is not f32, or a GPU fails.
    #[track_caller]
    pub fn item(&self) -> f32 {
        assert!(self.elements() == 1, "item: a tensor of shape {} is not one number", self.shape);
        match self.to_vec::<f32>() {
            Ok(data) => data[0],
            Err(e) => failure::raise("item", e),
        }
    }

    /// The same tensor on `device`; itself if it is there. Fails when the device lacks the memory.
    pub fn to_device(&self, device: &Device) -> Result<Tensor, cuda::Error> {
        match (&self.storage, device) {
            (Storage::Cpu(_), Device::Cpu) => Ok(self.clone()),
            (Storage::Cpu(_), Device::Cuda(gpu)) => {
                let dense = self.contiguous();
                let buffer = cuda::Buffer::from_slice(gpu, dense.bytes())?;
                Ok(Tensor { storage: Storage::Cuda(Arc::new(buffer)), offset: 0, ..dense })
            }
            (Storage::Cuda(buffer), Device::Cuda(gpu)) if buffer.device() == gpu => Ok(self.clone()),
            (Storage::Cuda(_), _) => {
                let there = self.try_contiguous()?;
                let mut here = Tensor::stale(self.shape, self.dtype);
                match self.dtype {
                    DType::F32 => there.cuda_slice().copy_to_host(here.slice_mut::<f32>())?,
                    DType::Bf16 => there.cuda_slice().copy_to_host(here.slice_mut::<bf16>())?,
                    DType::U32 => there.cuda_slice().copy_to_host(here.slice_mut::<u32>())?,
                }
                here.to_device(device)
            }
        }
    }

    /// The elements of a contiguous CPU tensor.
    #[track_caller]
    pub(crate) fn slice<T: Element>(&self) -> &[T] {
        assert!(self.dtype == T::DTYPE, "a tensor of {} read as {}", self.dtype, T::DTYPE);
        assert!(self.is_contiguous(), "a tensor of shape {} and strides {} read as a slice", self.shape, self.strides);
        let Storage::Cpu(block) = &self.storage else { panic!("a tensor on {:?} read on the cpu", self.device()) };
        &block.elements()[self.offset..self.offset + self.elements()]
    }

    /// The elements of a contiguous CPU tensor that nothing else shares.
    #[track_caller]
    pub(crate) fn slice_mut<T: Element>(&mut self) -> &mut [T] {
        assert!(self.dtype == T::DTYPE, "a tensor of {} written as {}", self.dtype, T::DTYPE);
        assert!(self.is_contiguous(), "a tensor of shape {} and strides {} written", self.shape, self.strides);
        let range = self.offset..self.offset + self.elements();
        let Storage::Cpu(block) = &mut self.storage else { panic!("a tensor on a GPU written on the cpu") };
        let block = Arc::get_mut(block).expect("a tensor is written only while nothing else shares its storage");
        &mut block.elements_mut()[range]
    }

    /// Where the elements of a dense tensor lie in its storage. No elements lie anywhere.
    pub(crate) fn range(&self) -> Range<usize> {
        let start = if self.elements() == 0 { 0 } else { self.offset };
        start..start + self.elements()
    }

    /// The elements of a contiguous tensor on a GPU.
    #[track_caller]
    pub(crate) fn cuda_slice<T: Element>(&self) -> cuda::Slice<'_, T> {
        assert!(self.dtype == T::DTYPE, "a tensor of {} read as {}", self.dtype, T::DTYPE);
        assert!(self.is_contiguous(), "a tensor of shape {} and strides {} read as a slice", self.shape, self.strides);
        let Storage::Cuda(buffer) = &self.storage else { panic!("a tensor on the cpu read on a GPU") };
        buffer.as_slice().cast().part(self.range())
    }

    /// The elements of a contiguous tensor on a GPU that nothing else shares.
    #[track_caller]
    pub(crate) fn cuda_slice_mut<T: Element>(&mut self) -> cuda::SliceMut<'_, T> {
        assert!(self.dtype == T::DTYPE, "a tensor of {} written as {}", self.dtype, T::DTYPE);
        assert!(self.is_contiguous(), "a tensor of shape {} and strides {} written", self.shape, self.strides);
        let range = self.range();
        let Storage::Cuda(buffer) = &mut self.storage else { panic!("a tensor on the cpu written on a GPU") };
        let buffer = Arc::get_mut(buffer).expect("a tensor is written only while nothing else shares its storage");
        buffer.as_mut().cast().part(range)
    }

    /// The elements of a contiguous CPU tensor, as bytes.
    #[track_caller]
    pub(crate) fn bytes(&self) -> &[u8] {
        match self.dtype {
            DType::F32 => bytemuck::cast_slice(self.slice::<f32>()),
            DType::Bf16 => bytemuck::cast_slice(self.slice::<bf16>()),
            DType::U32 => bytemuck::cast_slice(self.slice::<u32>()),
        }
    }
}
