//! NVIDIA GPUs: the probe, the device, its memory, and the kernels.
//!
//! The driver is opened at run time; building needs no toolkit and running needs no GPU. A machine without one says so in
//! a sentence ([`probe`]) and nothing panics.
//!
//! - [`Device`]: a GPU with the one stream that all work goes through, in the order of the calls; nothing waits until data are read.
//! - [`Buffer`], [`Slice`], [`SliceMut`]: its memory, typed. It comes from a pool of blocks that are used again.
//! - [`ops`]: the kernels, each beside its CUDA source and the PTX that is committed, with the name and the arguments of the CPU's.
//! - [`driver`]: the seam below all that. The tests put an interpreter of PTX there, and so run all of it on any machine.

mod buffer;
mod device;
pub mod driver;
mod error;
mod nvidia;
#[path = "../kernels/mod.rs"]
pub mod ops;
mod pool;
mod stream;

pub use buffer::{Buffer, Pinned, Slice, SliceMut};
pub use device::{Device, Kernel, Module, SYNC_VARIABLE};
pub use error::Error;
pub use nvidia::probe;
pub use pool::Stats;
pub use stream::{Event, Graph};
