//! Tensors: a shape over shared storage, and every operation of the engine, dispatched by device.
//!
//! `autograd`, `model` and `train` see tensors only. An operation goes through [`ops`], which matches on [`Storage`];
//! data leaves a tensor by [`Tensor::to_vec`]. Adding a device touches `ops` and `cuda`, nothing above.
//!
//! Shape mistakes are programming errors and panic at the caller's line with the op, the shapes and the axis. What comes
//! from outside (a file, a driver) is a `Result`.

#![deny(unsafe_code)] // but for the mapping of files, in mapped_file.rs

mod check;
mod display;
mod dtype;
pub mod mapped_file;
pub mod ops;
pub mod pool;
pub mod safetensors;
mod shape;
mod storage;
mod tensor;
mod view;

pub use dtype::DType;
pub use kernels::{Activation, Beta, MaskSite};
pub use shape::{MAX_RANK, Shape};
pub use storage::{Device, Storage};
pub use tensor::{Element, Tensor};
