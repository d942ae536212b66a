//! Long-lived memory of an engine.

use crate::Error;
use std::ops::{Deref, DerefMut};
use tensor::Tensor;
use tensor::pool::Block;

/// A slice of `f32` in a block of the tensor pool: aligned to 64 bytes and, when large, in huge pages. Decoding reads every
/// weight once a token, so it runs at the speed of memory, and huge pages are worth a third of that.
pub(crate) struct Buffer {
    block: Block,
    len: usize,
}

impl Buffer {
    /// `len` elements with stale contents.
    pub fn stale(len: usize) -> Buffer {
        Buffer { block: Block::new(len * size_of::<f32>()), len }
    }

    /// The elements of a tensor, row by row.
    pub fn from_tensor(tensor: &Tensor) -> Result<Buffer, Error> {
        let data = tensor.to_vec::<f32>()?;
        let mut buffer = Buffer::stale(data.len());
        buffer.copy_from_slice(&data);
        Ok(buffer)
    }
}

impl Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.block.elements()[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.block.elements_mut()[..self.len]
    }
}
