//! Long-lived memory of an engine.

use crate::Error;
use bytemuck::Pod;
use kernels::row_format::round_rows;
use kernels::{RowFormat, Team};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use tensor::Tensor;
use tensor::pool::Block;

/// A slice in a block of the tensor pool: aligned to 64 bytes and, when large, in huge pages. Decoding reads every weight once a
/// token, so it runs at the speed of memory, and huge pages are worth a third of that.
pub(crate) struct Buffer<T = f32> {
    block: Block,
    len: usize,
    elements: PhantomData<T>,
}

impl<T: Pod> Buffer<T> {
    /// `len` units with stale contents.
    pub fn stale(len: usize) -> Buffer<T> {
        Buffer { block: Block::new(len * size_of::<T>()), len, elements: PhantomData }
    }
}

impl<W: RowFormat> Buffer<W> {
    /// The rows of an f32 tensor, which run along its last axis, each rounded to the format: exact if that is f32, or if they were of
    /// the format before.
    pub fn from_tensor(tensor: &Tensor) -> Result<Buffer<W>, Error> {
        let (data, cols) = (tensor.to_vec::<f32>()?, *tensor.shape().last().expect("a parameter has an axis"));
        let mut buffer = Buffer::stale(data.len() / cols * W::row_len(cols));
        round_rows(&Team::current(), &data, cols, &mut buffer);
        Ok(buffer)
    }
}

impl<T: Pod> Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.block.elements()[..self.len]
    }
}

impl<T: Pod> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.block.elements_mut()[..self.len]
    }
}
