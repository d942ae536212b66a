//! Long-lived memory of an engine.

use crate::Error;
use kernels::Weight;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use tensor::Tensor;
use tensor::pool::Block;

/// A slice in a block of the tensor pool: aligned to 64 bytes and, when large, in huge pages. Decoding reads every weight once a
/// token, so it runs at the speed of memory, and huge pages are worth a third of that.
pub(crate) struct Buffer<W = f32> {
    block: Block,
    len: usize,
    elements: PhantomData<W>,
}

impl<W: Weight> Buffer<W> {
    /// `len` elements with stale contents.
    pub fn stale(len: usize) -> Buffer<W> {
        Buffer { block: Block::new(len * size_of::<W>()), len, elements: PhantomData }
    }

    /// The elements of an f32 tensor, row by row, each rounded to `W`: exact if that is f32, or if they were bf16 before.
    pub fn from_tensor(tensor: &Tensor) -> Result<Buffer<W>, Error> {
        let data = tensor.to_vec::<f32>()?;
        let mut buffer = Buffer::stale(data.len());
        buffer.iter_mut().zip(&data).for_each(|(w, &x)| *w = W::round(x));
        Ok(buffer)
    }
}

impl<W: Weight> Deref for Buffer<W> {
    type Target = [W];
    fn deref(&self) -> &[W] {
        &self.block.elements()[..self.len]
    }
}

impl<W: Weight> DerefMut for Buffer<W> {
    fn deref_mut(&mut self) -> &mut [W] {
        &mut self.block.elements_mut()[..self.len]
    }
}
