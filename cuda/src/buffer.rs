//! Memory of a GPU.

use crate::{Device, Error};
use cudarc::driver::CudaSlice;

/// Bytes in the memory of a GPU, freed when dropped.
#[derive(Debug)]
pub struct Buffer {
    device: Device,
    bytes: CudaSlice<u8>,
}

impl Buffer {
    /// A copy of `bytes` on `device`. Fails when the memory does not suffice.
    pub fn from_slice(device: &Device, bytes: &[u8]) -> Result<Buffer, Error> {
        let copy = device.stream().clone_htod(bytes).map_err(|e| Error::Call {
            action: format!("{}: copying {} bytes to it", device.index(), bytes.len()),
            reason: e.to_string(),
        })?;
        Ok(Buffer { device: device.clone(), bytes: copy })
    }

    /// A copy of the contents in host memory.
    pub fn to_vec(&self) -> Result<Vec<u8>, Error> {
        self.device.stream().clone_dtoh(&self.bytes).map_err(|e| Error::Call {
            action: format!("{}: copying {} bytes from it", self.device.index(), self.bytes.len()),
            reason: e.to_string(),
        })
    }

    /// Where it lies.
    pub fn device(&self) -> &Device {
        &self.device
    }
}
