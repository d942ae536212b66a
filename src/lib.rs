//! Silurian trains, sparsifies and runs transformers with *stochastic activations* (arXiv 2509.22358), from hand-written
//! kernels up, with no ML framework underneath.
//!
//! This crate joins the others under one name; the program `silurian` is its command line. Start with [`model`] and
//! [`autograd`] to read how it works, with [`kernels`] to see how it is fast. `ARCHITECTURE.md` has the map.
#![forbid(unsafe_code)]

pub mod device;
pub mod synthetic;

pub use autograd;
pub use cuda;
pub use infer;
pub use kernels;
pub use model;
pub use tensor;
pub use train;
