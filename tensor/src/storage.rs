//! Where the elements lie.

use crate::pool::Block;
use std::fmt;
use std::sync::Arc;

/// A place where tensors live.
#[derive(Clone, PartialEq)]
pub enum Device {
    /// The processor and its memory.
    Cpu,
    /// A GPU.
    Cuda(cuda::Device),
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(device) => device.fmt(f),
        }
    }
}

/// The memory of a tensor, shared by its views. Written only while one tensor holds it.
#[derive(Clone)]
pub enum Storage {
    /// A block of the pool.
    Cpu(Arc<Block>),
    /// Memory of a GPU.
    Cuda(Arc<cuda::Buffer>),
}

impl Storage {
    /// Where it is.
    pub fn device(&self) -> Device {
        match self {
            Storage::Cpu(_) => Device::Cpu,
            Storage::Cuda(buffer) => Device::Cuda(buffer.device().clone()),
        }
    }
}
