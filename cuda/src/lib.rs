//! NVIDIA GPUs: the probe, the device, and its buffers.
//!
//! The driver is opened at run time; building needs no toolkit and running needs no GPU. A machine without one says so in
//! a sentence ([`probe`]) and nothing panics.

mod buffer;
mod probe;

pub use buffer::Buffer;
pub use probe::{Device, Error, probe};
