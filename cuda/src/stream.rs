//! What goes on a device's stream besides copies: launches, events, graphs.

use crate::Error;
use crate::buffer::{Slice, SliceMut};
use crate::device::{Block, Device, Kernel};
use crate::driver::{Geometry, Handle, Params};
use bytemuck::Pod;
use std::fmt;
use std::sync::Arc;

/// Most parameters of a launch that are device memory.
const MAX_SLICES: usize = 16;

/// A launch in the making: [`arg`](Launch::arg) for each parameter in its order, then [`run`](Launch::run).
pub(crate) struct Launch<'a> {
    kernel: &'static Kernel,
    geometry: Geometry,
    params: Params,
    device: Option<&'a Device>,
    holds: [Option<&'a Arc<Block>>; MAX_SLICES],
    held: usize,
}

/// What a kernel takes as a parameter.
pub(crate) trait Arg<'a> {
    #[track_caller]
    fn push(self, launch: &mut Launch<'a>);
}

impl<'a> Launch<'a> {
    /// With blocks in a row, of threads in a row.
    pub(crate) fn new(kernel: &'static Kernel, grid: impl Into<Grid>, threads: u32) -> Launch<'a> {
        let geometry = Geometry { grid: grid.into().0, block: [threads, 1, 1], shared: 0 };
        Launch { kernel, geometry, params: Params::new(), device: None, holds: [None; _], held: 0 }
    }

    /// With this many bytes of dynamic shared memory for a block.
    pub(crate) fn shared(mut self, bytes: usize) -> Launch<'a> {
        self.geometry.shared = u32::try_from(bytes).expect("shared memory of a block");
        self
    }

    /// The next parameter.
    #[track_caller]
    pub(crate) fn arg(mut self, arg: impl Arg<'a>) -> Launch<'a> {
        arg.push(&mut self);
        self
    }

    /// Puts it on the stream; a grid of no blocks is nothing to do. Panics if the slices lie on different devices.
    ///
    /// # Safety
    /// The parameters are those that the kernel declares, and with them it stays within the slices.
    pub(crate) unsafe fn run(self) -> Result<(), Error> {
        let Some(device) = self.device.filter(|_| !self.geometry.grid.contains(&0)) else { return Ok(()) };
        let holds = self.holds[..self.held].iter().flatten().copied();
        // SAFETY: the caller's contract; `holds` are the blocks of all slices among the parameters.
        unsafe { device.launch(self.kernel, self.geometry, &self.params, holds) }
    }
}

/// Blocks along x, y and z.
pub(crate) struct Grid([u32; 3]);

impl From<usize> for Grid {
    fn from(blocks: usize) -> Grid {
        Grid([blocks, 1, 1].map(|n| u32::try_from(n).expect("a grid of at most 2^32 blocks")))
    }
}

impl From<[usize; 2]> for Grid {
    fn from([x, y]: [usize; 2]) -> Grid {
        Grid::from([x, y, 1])
    }
}

impl From<[usize; 3]> for Grid {
    fn from(blocks: [usize; 3]) -> Grid {
        Grid(blocks.map(|n| u32::try_from(n).expect("a grid of at most 2^32 blocks")))
    }
}

impl<'a, T: Pod> Arg<'a> for Slice<'a, T> {
    #[track_caller]
    fn push(self, launch: &mut Launch<'a>) {
        let device = self.device();
        let first = *launch.device.get_or_insert(device);
        assert!(first == device, "{}: operands on {first:?} and {device:?}", launch.kernel.entry);
        launch.holds[launch.held] = Some(self.block);
        launch.held += 1;
        launch.params.push(&self.address.to_ne_bytes());
    }
}

impl<'a, T: Pod> Arg<'a> for &'a SliceMut<'_, T> {
    #[track_caller]
    fn push(self, launch: &mut Launch<'a>) {
        self.as_slice().push(launch);
    }
}

impl<'a> Arg<'a> for u32 {
    fn push(self, launch: &mut Launch<'a>) {
        launch.params.push(&self.to_ne_bytes());
    }
}

impl<'a> Arg<'a> for u64 {
    fn push(self, launch: &mut Launch<'a>) {
        launch.params.push(&self.to_ne_bytes());
    }
}

impl<'a> Arg<'a> for f32 {
    fn push(self, launch: &mut Launch<'a>) {
        launch.params.push(&self.to_ne_bytes());
    }
}

/// A double. A type of its own, so that a number without a type stays an f32.
pub(crate) struct Double(pub f64);

impl<'a> Arg<'a> for Double {
    fn push(self, launch: &mut Launch<'a>) {
        launch.params.push(&self.0.to_ne_bytes());
    }
}

/// 1 or 0.
impl<'a> Arg<'a> for bool {
    fn push(self, launch: &mut Launch<'a>) {
        u32::from(self).push(launch);
    }
}

/// A length or extent, which the kernel has as u32. Panics beyond.
impl<'a> Arg<'a> for usize {
    #[track_caller]
    fn push(self, launch: &mut Launch<'a>) {
        let Ok(n) = u32::try_from(self) else {
            panic!("{}: an extent of {self} does not fit 32 bits", launch.kernel.entry)
        };
        n.push(launch);
    }
}

/// A point on the stream of a device.
pub struct Event {
    device: Device,
    handle: Handle,
}

impl Device {
    /// A point behind all that was asked of the device so far.
    pub fn record(&self) -> Result<Event, Error> {
        self.not_while_recording("setting an event")?;
        let failed = |f| self.error(f, || "setting an event".into());
        let handle = self.driver().event().map_err(failed)?;
        let event = Event { device: self.clone(), handle };
        self.driver().record(handle).map_err(failed)?;
        Ok(event)
    }

    /// Records what `work` asks of the device, instead of doing it, as a graph. Everything `work` does must be launches and copies within
    /// the device; it runs once before, by itself, so that kernels are loaded and the memory is there.
    ///
    /// While it is recorded, other threads cannot use the device. The graph keeps the memory that its calls use. Their parameters are fixed:
    /// what changes from one run to the next (a position, a token) must lie in device memory.
    pub fn graph(&self, mut work: impl FnMut() -> Result<(), Error>) -> Result<Graph, Error> {
        work()?;
        self.begin_recording()?;
        let ending = EndRecording(Some(self));
        let outcome = work();
        let (handle, holds) = ending.end()?;
        let graph = Graph { device: self.clone(), handle, _holds: holds };
        outcome.map(|()| graph)
    }
}

/// Ends a recording, if a panic comes first.
struct EndRecording<'a>(Option<&'a Device>);

impl EndRecording<'_> {
    fn end(mut self) -> Result<(Handle, Vec<Arc<Block>>), Error> {
        self.0.take().expect("ended once").end_recording()
    }
}

impl Drop for EndRecording<'_> {
    fn drop(&mut self) {
        if let Some(Ok((handle, _))) = self.0.map(Device::end_recording) {
            self.0.expect("it was there").driver().forget_graph(handle);
        }
    }
}

impl Event {
    /// Waits until the device has come to it.
    pub fn wait(&self) -> Result<(), Error> {
        self.device.driver().wait(self.handle).map_err(|f| self.device.error(f, || "waiting for an event".into()))
    }

    /// Milliseconds on the device from `earlier` to this. Waits for it. Panics if they are of different devices.
    #[track_caller]
    pub fn milliseconds_since(&self, earlier: &Event) -> Result<f32, Error> {
        assert!(self.device == earlier.device, "events of {:?} and {:?}", earlier.device, self.device);
        self.wait()?;
        let elapsed = self.device.driver().elapsed(earlier.handle, self.handle);
        elapsed.map_err(|f| self.device.error(f, || "timing".into()))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        self.device.driver().forget_event(self.handle);
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an event on {:?}", self.device)
    }
}

/// Launches and copies that run as one, without a call of the driver for each. See [`Device::graph`].
pub struct Graph {
    device: Device,
    handle: Handle,
    _holds: Vec<Arc<Block>>,
}

impl Graph {
    /// Puts it on the stream.
    pub fn launch(&self) -> Result<(), Error> {
        self.device.not_while_recording("running a graph")?;
        // SAFETY: the memory that its calls use is held.
        unsafe { self.device.driver().launch_graph(self.handle) }
            .map_err(|f| self.device.error(f, || "running a graph".into()))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        self.device.driver().forget_graph(self.handle);
    }
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a graph on {:?}", self.device)
    }
}
