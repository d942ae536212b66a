//! Tensors: a shape over shared storage, and every operation of the engine, dispatched by device.
//!
//! `autograd`, `model` and `train` see tensors only. An operation goes through [`ops`], which matches on [`Storage`];
//! data leaves a tensor by [`Tensor::to_vec`]. Adding a device touches `ops` and `cuda`, nothing above.
//!
//! ```
//! use tensor::{Tensor, ops};
//!
//! let x = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0], [2, 3]);
//! let y = ops::add(&ops::matmul(&x, &x.t()), &Tensor::from_slice(&[100.0f32, 0.0], [2])); // broadcast over rows
//! assert_eq!(format!("{y:.1}"), "[[114.0  32.0]\n [132.0  77.0]]");
//! assert_eq!(ops::sum_to(&y, [2]).to_vec::<f32>()?, [246.0, 109.0]);
//! # Ok::<(), cuda::Error>(())
//! ```
//!
//! Shape mistakes are programming errors and panic at the caller's line with the op, the shapes and the axis. What comes
//! from outside (a file, a driver) is a `Result`.

#![deny(unsafe_code)] // but for the mapping of files, in mapped_file.rs

mod check;
mod display;
mod dtype;
pub mod failure;
pub mod mapped_file;
pub mod ops;
pub mod pool;
pub mod safetensors;
mod shape;
mod storage;
mod tensor;
mod total;
mod uploads;
mod view;

pub use dtype::DType;
pub use kernels::{Activation, Beta, Fixed, MaskSite, Positive};
pub use shape::{MAX_RANK, Shape};
pub use storage::{Device, Storage};
pub use tensor::{Element, Tensor};
pub use total::Total;
pub use uploads::Uploads;
