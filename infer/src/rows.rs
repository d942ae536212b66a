//! The parameters of an engine, wherever they lie.

use crate::Error;
use crate::buffer::Buffer;
use bytemuck::{Pod, cast_slice, cast_slice_mut};
use half::bf16;
use kernels::packed::{PackedBf16, pack_rows};
use kernels::{RowFormat, Team};
use model::{Config, LayerNames, parameter_specs};
use std::ops::{Deref, Range};
use std::sync::Arc;
use tensor::Tensor;
use tensor::mapped_file::MappedFile;

/// A parameter in decode layout: rows of a format, in memory of the process or in a mapped file.
pub(crate) enum Rows<W = f32> {
    Owned(Buffer<W>),
    Mapped { file: Arc<MappedFile>, bytes: Range<usize> },
}

impl<W: Pod> Deref for Rows<W> {
    type Target = [W];
    fn deref(&self) -> &[W] {
        match self {
            Rows::Owned(buffer) => buffer,
            Rows::Mapped { file, bytes } => cast_slice(&file.bytes()[bytes.clone()]),
        }
    }
}

impl<W: Pod> Rows<W> {
    /// As they lie there.
    pub fn bytes(&self) -> &[u8] {
        cast_slice(self)
    }
}

/// A parameter: its number in the fixed order, and its shape as decoding reads it. Of a vector, the one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Parameter {
    pub index: usize,
    pub rows: usize,
    pub cols: usize,
    /// Whether the checkpoint has it as `[cols, rows]`: down_proj.
    pub transposed: bool,
    /// A gain, which is kept in f32, or a matrix, which is kept in the format that was asked for.
    pub is_gain: bool,
}

impl Parameter {
    /// All of a model, in the fixed order.
    pub fn all(config: &Config) -> Vec<Parameter> {
        let down_projs: Vec<usize> = (0..config.n_layers).map(|layer| LayerNames::new(layer).down_proj).collect();
        let parameters = parameter_specs(config).enumerate().map(|(index, spec)| match *spec.shape {
            [cols, rows] if down_projs.contains(&index) => {
                Parameter { index, rows, cols, transposed: true, is_gain: false }
            }
            [rows, cols] => Parameter { index, rows, cols, transposed: false, is_gain: false },
            [cols] => Parameter { index, rows: 1, cols, transposed: false, is_gain: true },
            _ => unreachable!("a parameter is a vector or a matrix"),
        });
        parameters.collect()
    }
}

/// Where the parameters come from, one by one.
pub(crate) trait Parameters {
    /// A parameter in a format that fits it.
    fn rows<W: RowFormat>(&self, parameter: Parameter) -> Result<Rows<W>, Error>;

    /// A matrix as packed bf16; None if it cannot be.
    fn packed_rows(&self, parameter: Parameter) -> Result<Option<Rows<PackedBf16>>, Error>;
}

/// Tensors by their number: each is rounded to its format.
pub(crate) struct FromTensors<F>(pub F);

impl<F: Fn(usize) -> Result<Tensor, Error>> Parameters for FromTensors<F> {
    fn rows<W: RowFormat>(&self, parameter: Parameter) -> Result<Rows<W>, Error> {
        let tensor = self.0(parameter.index)?;
        Ok(Rows::Owned(Buffer::from_tensor(&if parameter.transposed { tensor.t() } else { tensor })?))
    }

    fn packed_rows(&self, parameter: Parameter) -> Result<Option<Rows<PackedBf16>>, Error> {
        let plain = self.rows::<bf16>(parameter)?;
        let mut packed = Buffer::stale(parameter.rows * PackedBf16::row_len(parameter.cols));
        let fits = pack_rows(&Team::current(), &plain, parameter.cols, &mut packed);
        Ok(fits.then_some(Rows::Owned(packed)))
    }
}

/// A file, and the bytes of each part in it: of each parameter, or of each layer's filter.
pub(crate) struct FromFile {
    pub file: Arc<MappedFile>,
    pub bytes: Vec<Range<usize>>,
    /// In a file of packed bf16, the parameters that it has as plain bf16, by their number.
    pub plain: Vec<bool>,
    /// Whether to copy them to memory of the process.
    pub copied: bool,
}

impl FromFile {
    /// A part, as units of any type that it is a whole number of.
    pub fn part<T: Pod>(&self, index: usize) -> Rows<T> {
        /// Bytes that a task copies.
        const TASK_BYTES: usize = 1 << 20;
        let bytes = self.bytes[index].clone();
        if !self.copied {
            return Rows::Mapped { file: self.file.clone(), bytes };
        }
        let mut buffer = Buffer::stale(bytes.len() / size_of::<T>());
        let source = &self.file.bytes()[bytes];
        Team::current().run_chunks_mut(cast_slice_mut::<T, u8>(&mut buffer), TASK_BYTES, |task, part| {
            part.copy_from_slice(&source[task * TASK_BYTES..][..part.len()]);
        });
        Rows::Owned(buffer)
    }
}

impl Parameters for FromFile {
    fn rows<W: RowFormat>(&self, parameter: Parameter) -> Result<Rows<W>, Error> {
        Ok(self.part(parameter.index))
    }

    fn packed_rows(&self, parameter: Parameter) -> Result<Option<Rows<PackedBf16>>, Error> {
        Ok((!self.plain[parameter.index]).then(|| self.part(parameter.index)))
    }
}
