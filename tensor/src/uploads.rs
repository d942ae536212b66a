//! Data that go to a device again and again.

use crate::{Device, Element, Shape, Tensor};
use cuda::Pinned;

/// Brings tensors to a device. To a GPU they go through memory that it copies from by itself, so that the program goes on meanwhile; it waits
/// only where it is more than four tensors ahead of the copies.
pub struct Uploads {
    device: Device,
    slots: [Option<Pinned<u8>>; IN_FLIGHT],
    next: usize,
}

/// Inputs and targets of two micro-batches: one that is computed, one that follows it.
const IN_FLIGHT: usize = 4;

impl Uploads {
    /// To `device`.
    pub fn new(device: &Device) -> Uploads {
        Uploads { device: device.clone(), slots: Default::default(), next: 0 }
    }

    /// The tensor with these elements, row by row, on the device. Fails when its memory, or the host's for copies, does not suffice.
    /// Panics if the number of elements does not fit the shape.
    #[track_caller]
    pub fn tensor<T: Element>(&mut self, data: &[T], shape: impl Into<Shape>) -> Result<Tensor, cuda::Error> {
        let shape = shape.into();
        let Device::Cuda(gpu) = &self.device else { return Ok(Tensor::from_slice(data, shape)) };
        assert!(data.len() == shape.elements(), "Uploads: {} elements for shape {shape}", data.len());
        let mut tensor = Tensor::try_stale_on(&self.device, shape, T::DTYPE)?;
        let bytes: &[u8] = bytemuck::cast_slice(data);
        let slot = &mut self.slots[self.next];
        self.next = (self.next + 1) % IN_FLIGHT;
        let pinned = match slot.take().filter(|pinned| pinned.len() == bytes.len()) {
            Some(pinned) => pinned,
            None => Pinned::zeros(gpu, bytes.len())?,
        };
        let pinned = slot.insert(pinned);
        pinned.as_mut_slice()?.copy_from_slice(bytes); // waits for the copy before
        pinned.copy_to(tensor.cuda_slice_mut::<T>().cast())?;
        Ok(tensor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uploads_are_the_data_in_any_number_and_size() {
        for device in [Device::Cpu, Device::Cuda(cuda_testing::device())] {
            let mut uploads = Uploads::new(&device);
            let data =
                |i: u32| (0..[6, 6, 6, 4, 6, 2, 6, 0, 6, 6][i as usize]).map(|j| 10 * i + j).collect::<Vec<u32>>();
            let sent: Vec<Tensor> =
                (0..10).map(|i| uploads.tensor(&data(i), [data(i).len() / 2, 2]).unwrap()).collect();
            for (i, tensor) in sent.iter().enumerate() {
                assert!(tensor.device() == device && tensor.is_unique());
                assert_eq!(tensor.to_vec::<u32>().unwrap(), data(i as u32), "tensor {i} on {device:?}");
            }
            assert_eq!(uploads.tensor(&[1.5f32], []).unwrap().item(), 1.5);
        }
    }
}
