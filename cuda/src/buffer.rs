//! Memory of a GPU: buffers, parts of them, and host memory that it copies from and to by itself.

use crate::Error;
use crate::device::{Block, Device};
use crate::driver::Handle;
use bytemuck::Pod;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

/// Elements in the memory of a GPU. When dropped, the memory is used for later buffers.
pub struct Buffer<T = u8> {
    block: Arc<Block>,
    len: usize,
    of: PhantomData<T>,
}

impl<T: Pod> Buffer<T> {
    /// Room for `len` elements, with stale contents. Fails when the memory does not suffice.
    pub fn stale(device: &Device, len: usize) -> Result<Buffer<T>, Error> {
        // As many bytes as there is memory for fit into usize; others are refused by the driver.
        let bytes = len.saturating_mul(size_of::<T>()).min(isize::MAX as usize / 2);
        Ok(Buffer { block: device.block(bytes)?, len, of: PhantomData })
    }

    /// All bits 0.
    pub fn zeros(device: &Device, len: usize) -> Result<Buffer<T>, Error> {
        let mut buffer = Buffer::stale(device, len)?;
        buffer.as_mut().fill_bytes(0)?;
        Ok(buffer)
    }

    /// A copy of `elements` on `device`. Fails when the memory does not suffice.
    pub fn from_slice(device: &Device, elements: &[T]) -> Result<Buffer<T>, Error> {
        let mut buffer = Buffer::stale(device, elements.len())?;
        buffer.as_mut().copy_from_host(elements)?;
        Ok(buffer)
    }

    /// A copy of the contents in host memory. Waits for the work that writes them.
    pub fn to_vec(&self) -> Result<Vec<T>, Error> {
        self.as_slice().to_vec()
    }

    /// All of it, to be read.
    pub fn as_slice(&self) -> Slice<'_, T> {
        Slice { block: &self.block, address: self.block.address, len: self.len, of: PhantomData }
    }

    /// All of it, to be written.
    pub fn as_mut(&mut self) -> SliceMut<'_, T> {
        SliceMut(Slice { block: &self.block, address: self.block.address, len: self.len, of: PhantomData })
    }
}

impl<T> Buffer<T> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where it lies.
    pub fn device(&self) -> &Device {
        &self.block.device
    }
}

impl<T> fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} elements of {} on {:?}", self.len, std::any::type_name::<T>(), self.device())
    }
}

/// Some of the elements of a [`Buffer`], to be read.
pub struct Slice<'a, T> {
    pub(crate) block: &'a Arc<Block>,
    pub(crate) address: u64,
    len: usize,
    of: PhantomData<T>,
}

impl<T> Clone for Slice<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Slice<'_, T> {}

impl<'a, T: Pod> Slice<'a, T> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where it lies.
    pub fn device(&self) -> &'a Device {
        &self.block.device
    }

    /// Whether it begins at a multiple of 16 bytes, as loads of four f32 need it.
    pub(crate) fn is_aligned(&self) -> bool {
        self.address.is_multiple_of(16)
    }

    /// A part. Panics if it is outside.
    #[track_caller]
    pub fn part(self, range: Range<usize>) -> Slice<'a, T> {
        assert!(range.start <= range.end && range.end <= self.len, "the part {range:?} of {} elements", self.len);
        Slice { address: self.address + (range.start * size_of::<T>()) as u64, len: range.len(), ..self }
    }

    /// The same bytes as elements of another type. Panics if they do not begin at a multiple of its size, or are no whole number of them.
    #[track_caller]
    pub fn cast<U: Pod>(self) -> Slice<'a, U> {
        let bytes = self.len * size_of::<T>();
        assert!(
            bytes.is_multiple_of(size_of::<U>()) && self.address.is_multiple_of(align_of::<U>() as u64),
            "{bytes} bytes of device memory at {:#x} as {}",
            self.address,
            std::any::type_name::<U>()
        );
        Slice { block: self.block, address: self.address, len: bytes / size_of::<U>(), of: PhantomData }
    }

    /// A copy in host memory. Waits for the work that writes it.
    pub fn to_vec(self) -> Result<Vec<T>, Error> {
        let mut host = vec![T::zeroed(); self.len];
        self.copy_to_host(&mut host)?;
        Ok(host)
    }

    /// Copies to host memory. Waits for the work that writes it. Panics if the lengths differ.
    #[track_caller]
    pub fn copy_to_host(self, host: &mut [T]) -> Result<(), Error> {
        assert!(host.len() == self.len, "{} elements of device memory copied to {}", self.len, host.len());
        let (device, bytes) = (self.device(), size_of_val(host));
        let action = || format!("copying {bytes} bytes from it");
        device.not_while_recording(&action())?;
        if bytes > 0 {
            // SAFETY: both ranges are of `bytes` bytes, and `host` is borrowed until the stream has passed, below.
            unsafe { device.driver().download(self.address, host.as_mut_ptr().cast(), bytes) }
                .map_err(|f| device.error(f, action))?;
        }
        device.synchronize()
    }
}

/// Some of the elements of a [`Buffer`], to be written.
pub struct SliceMut<'a, T>(Slice<'a, T>);

impl<'a, T: Pod> SliceMut<'a, T> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// Where it lies.
    pub fn device(&self) -> &'a Device {
        self.0.device()
    }

    /// The same elements, to be read.
    pub fn as_slice(&self) -> Slice<'_, T> {
        self.0
    }

    /// The same elements, for as long as this is borrowed.
    pub fn reborrow(&mut self) -> SliceMut<'_, T> {
        SliceMut(self.0)
    }

    /// A part. Panics if it is outside.
    #[track_caller]
    pub fn part(self, range: Range<usize>) -> SliceMut<'a, T> {
        SliceMut(self.0.part(range))
    }

    /// The elements before number `at`, and those from it on. Panics if there are fewer.
    #[track_caller]
    pub fn split_at(self, at: usize) -> (SliceMut<'a, T>, SliceMut<'a, T>) {
        (SliceMut(self.0.part(0..at)), SliceMut(self.0.part(at..self.0.len)))
    }

    /// As [`Slice::cast`].
    #[track_caller]
    pub fn cast<U: Pod>(self) -> SliceMut<'a, U> {
        SliceMut(self.0.cast())
    }

    /// Copies from host memory. Panics if the lengths differ.
    #[track_caller]
    pub fn copy_from_host(&mut self, host: &[T]) -> Result<(), Error> {
        assert!(host.len() == self.len(), "{} elements copied to {} of device memory", host.len(), self.len());
        let (device, bytes) = (self.device(), size_of_val(host));
        let action = || format!("copying {bytes} bytes to it");
        // A graph would read the host's memory again each time it runs, when it may be gone.
        device.not_while_recording(&action())?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: both ranges are of `bytes` bytes; slices of the host are not pinned, so they are read when this returns.
        unsafe { device.driver().upload(self.0.address, host.as_ptr().cast(), bytes) }
            .map_err(|f| device.error(f, action))
    }

    /// Copies within the device. Panics if the lengths or the devices differ.
    #[track_caller]
    pub fn copy_from(&mut self, from: Slice<T>) -> Result<(), Error> {
        let device = self.device();
        assert!(from.len == self.len(), "{} elements copied to {} of device memory", from.len, self.len());
        assert!(from.device() == device, "elements on {:?} copied to {device:?}", from.device());
        let bytes = self.len() * size_of::<T>();
        device.hold([self.0.block, from.block].into_iter())?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: both ranges are of `bytes` bytes, and do not meet: one is borrowed to be written.
        unsafe { device.driver().copy(self.0.address, from.address, bytes) }
            .map_err(|f| device.error(f, || format!("copying {bytes} bytes within it")))
    }

    /// Sets every byte.
    pub fn fill_bytes(&mut self, byte: u8) -> Result<(), Error> {
        let (device, bytes) = (self.device(), self.len() * size_of::<T>());
        device.hold([self.0.block].into_iter())?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the range is that of the slice.
        unsafe { device.driver().fill(self.0.address, byte, bytes) }
            .map_err(|f| device.error(f, || format!("filling {bytes} bytes")))
    }
}

impl<T> fmt::Debug for Slice<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} elements of {} on {:?}", self.len, std::any::type_name::<T>(), self.block.device)
    }
}

impl<T> fmt::Debug for SliceMut<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Host memory that the device copies from and to by itself, while the program goes on. Reading and writing it waits for such copies.
pub struct Pinned<T> {
    device: Device,
    memory: *mut T,
    len: usize,
    /// Set behind the last copy.
    copied: Handle,
    of: PhantomData<T>,
}

// SAFETY: it is the only owner of its memory, as a Vec is.
unsafe impl<T: Send> Send for Pinned<T> {}

impl<T: Pod> Pinned<T> {
    /// Room for `len` elements, all bits 0. Fails when the system does not give the memory.
    pub fn zeros(device: &Device, len: usize) -> Result<Pinned<T>, Error> {
        let bytes = (len * size_of::<T>()).max(1);
        let failed = |f| device.error(f, || format!("asking for {bytes} bytes of pinned host memory"));
        let copied = device.driver().event().map_err(failed)?;
        let memory = device.driver().alloc_host(bytes).map_err(|f| {
            device.driver().forget_event(copied);
            failed(f)
        })?;
        // SAFETY: `bytes` bytes of fresh memory.
        unsafe { memory.write_bytes(0, bytes) };
        Ok(Pinned { device: device.clone(), memory: memory.cast(), len, copied, of: PhantomData })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn wait(&self) -> Result<(), Error> {
        self.device.driver().wait(self.copied).map_err(|f| self.device.error(f, || "waiting for a copy".into()))
    }

    fn copying(&self, of: &Device, len: usize, action: &str) -> Result<(), Error> {
        assert!(len == self.len, "{action} {len} elements of device memory, and {} pinned ones", self.len);
        assert!(*of == self.device, "{action} memory of {of:?}, pinned for {:?}", self.device);
        self.device.not_while_recording(action)
    }

    fn record(&self) -> Result<(), Error> {
        self.device.driver().record(self.copied).map_err(|f| self.device.error(f, || "copying".into()))
    }

    /// Puts a copy to the device on the stream, and does not wait. Panics if the lengths or devices differ.
    #[track_caller]
    pub fn copy_to(&mut self, to: SliceMut<T>) -> Result<(), Error> {
        self.copying(to.device(), to.len(), "copying to")?;
        // SAFETY: both ranges are of that length; whoever reads, writes or frees this memory waits for the event first.
        unsafe { self.device.driver().upload(to.0.address, self.memory.cast(), self.len * size_of::<T>()) }
            .map_err(|f| self.device.error(f, || "copying to it".into()))?;
        self.record()
    }

    /// Puts a copy from the device on the stream, and does not wait. Panics if the lengths or devices differ.
    #[track_caller]
    pub fn copy_from(&mut self, from: Slice<T>) -> Result<(), Error> {
        self.copying(from.device(), from.len(), "copying from")?;
        // SAFETY: as in `copy_to`.
        unsafe { self.device.driver().download(from.address, self.memory.cast(), self.len * size_of::<T>()) }
            .map_err(|f| self.device.error(f, || "copying from it".into()))?;
        self.record()
    }

    /// The elements, when copies are done.
    pub fn as_slice(&self) -> Result<&[T], Error> {
        self.wait()?;
        // SAFETY: `len` elements, all written; no copy is under way, and none begins while this is borrowed.
        Ok(unsafe { std::slice::from_raw_parts(self.memory, self.len) })
    }

    /// The elements, to be written, when copies are done.
    pub fn as_mut_slice(&mut self) -> Result<&mut [T], Error> {
        self.wait()?;
        // SAFETY: as in `as_slice`, and borrowed alone.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.memory, self.len) })
    }
}

impl<T> Drop for Pinned<T> {
    fn drop(&mut self) {
        // If waiting fails, the device has failed and copies no more.
        let _ = self.device.driver().wait(self.copied);
        self.device.driver().forget_event(self.copied);
        // SAFETY: from alloc_host, and no copy is under way.
        unsafe { self.device.driver().free_host(self.memory.cast()) };
    }
}

impl<T> fmt::Debug for Pinned<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pinned elements of {} for {:?}", self.len, std::any::type_name::<T>(), self.device)
    }
}
