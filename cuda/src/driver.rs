//! The lowest seam: what this crate asks of a driver. The real one is NVIDIA's; the tests have one that runs the
//! kernels in a PTX interpreter. Everything above, from the allocator to the launches, is the same for both.

use std::fmt;

/// What a GPU is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Properties {
    /// Its name, as the driver gives it.
    pub name: String,
    /// Major and minor.
    pub compute_capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of memory.
    pub total_memory: usize,
    /// The CUDA version that the driver supports, major and minor.
    pub driver_version: (u32, u32),
}

/// What kind of failure a driver reports, as far as it makes a difference above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// An allocation that the memory does not suffice for.
    OutOfMemory,
    /// The PTX is of a later version than the driver knows.
    PtxTooNew,
    /// A kernel that was launched before has failed; the device is unusable from then on.
    Kernel,
    /// Anything else.
    Other,
}

/// A failure, in the driver's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Which kind.
    pub kind: FailureKind,
    /// The driver's words.
    pub reason: String,
    /// What the compiler of a module wrote.
    pub log: String,
}

impl Failure {
    /// A failure without a log.
    pub fn new(kind: FailureKind, reason: impl Into<String>) -> Failure {
        Failure { kind, reason: reason.into(), log: String::new() }
    }
}

/// What a driver gives out for something that it keeps: a module, a function, an event, a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle(pub u64);

/// How a kernel is laid over the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Blocks along x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block along x, y, z.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory of a block.
    pub shared: u32,
}

/// The parameters of a kernel, packed as its PTX has them: each at the next multiple of its size.
#[derive(Clone, Copy)]
pub struct Params {
    bytes: [u8; Params::MAX_BYTES],
    fields: [(u16, u16); Params::MAX_FIELDS],
    len: usize,
    count: usize,
}

impl Params {
    const MAX_BYTES: usize = 256;
    pub(crate) const MAX_FIELDS: usize = 32;

    /// None yet.
    pub fn new() -> Params {
        Params { bytes: [0; _], fields: [(0, 0); _], len: 0, count: 0 }
    }

    /// Adds one, of a size that is its alignment (1, 2, 4 or 8 bytes). Panics beyond 32 parameters or 256 bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        let at = self.len.next_multiple_of(bytes.len());
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.fields[self.count] = (at as u16, bytes.len() as u16);
        (self.len, self.count) = (at + bytes.len(), self.count + 1);
    }

    /// The packed block.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Offset and size of each parameter in it.
    pub fn fields(&self) -> impl Iterator<Item = (usize, usize)> {
        self.fields[..self.count].iter().map(|&(at, size)| (at as usize, size as usize))
    }
}

impl Default for Params {
    fn default() -> Params {
        Params::new()
    }
}

/// A device, its memory, and the one stream that all work goes through in the order of the calls.
///
/// Calls that put something on the stream may return before it is done. A failure of a kernel may be reported by any later call.
pub trait Driver: Send + Sync + fmt::Debug {
    /// What the GPU is.
    fn properties(&self) -> &Properties;
    /// Whether everything is done when its call returns. Then memory that is freed is given back at once instead of kept for later buffers, and
    /// a buffer is an allocation of just its size: an interpreter sees each access beyond it.
    fn is_immediate(&self) -> bool;
    /// Bytes free now.
    fn free_memory(&self) -> Result<usize, Failure>;

    /// The address of fresh memory, a multiple of 256. Not on the stream.
    fn alloc(&self, bytes: usize) -> Result<u64, Failure>;
    /// Gives memory back.
    ///
    /// # Safety
    /// `address` comes from [`alloc`](Driver::alloc), was not freed, and nothing on the stream uses it: see
    /// [`synchronize`](Driver::synchronize).
    unsafe fn free(&self, address: u64);
    /// Host memory that the device reads and writes by itself, so that copies run beside the program. A multiple of 64.
    fn alloc_host(&self, bytes: usize) -> Result<*mut u8, Failure>;
    /// Gives such memory back.
    ///
    /// # Safety
    /// As [`free`](Driver::free), for [`alloc_host`](Driver::alloc_host).
    unsafe fn free_host(&self, memory: *mut u8);

    /// Copies from the host.
    ///
    /// # Safety
    /// Both ranges exist. If `from` was allocated with [`alloc_host`](Driver::alloc_host), it stays as it is until the stream has passed;
    /// other memory may change as soon as this returns.
    unsafe fn upload(&self, to: u64, from: *const u8, bytes: usize) -> Result<(), Failure>;
    /// Copies to the host.
    ///
    /// # Safety
    /// Both ranges exist, and nothing reads or writes `to` until the stream has passed.
    unsafe fn download(&self, from: u64, to: *mut u8, bytes: usize) -> Result<(), Failure>;
    /// Copies within the device.
    ///
    /// # Safety
    /// Both ranges exist and do not meet.
    unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), Failure>;
    /// Fills with one byte.
    ///
    /// # Safety
    /// The range exists.
    unsafe fn fill(&self, to: u64, byte: u8, bytes: usize) -> Result<(), Failure>;

    /// A module from PTX. It stays until the driver is dropped.
    fn load(&self, ptx: &str) -> Result<Handle, Failure>;
    /// A kernel of a module. A block of it has at most 48 KiB of shared memory, what drivers give without being asked for more.
    fn function(&self, module: Handle, entry: &str) -> Result<Handle, Failure>;
    /// Runs a kernel.
    ///
    /// # Safety
    /// The kernel stays within the memory that its parameters point to, and the parameters are those that it declares.
    unsafe fn launch(&self, function: Handle, geometry: Geometry, params: &Params) -> Result<(), Failure>;
    /// Waits until the stream has passed.
    fn synchronize(&self) -> Result<(), Failure>;

    /// A point on the stream, to be set.
    fn event(&self) -> Result<Handle, Failure>;
    /// Sets it behind what is on the stream now.
    fn record(&self, event: Handle) -> Result<(), Failure>;
    /// Waits until the stream has passed it.
    fn wait(&self, event: Handle) -> Result<(), Failure>;
    /// Milliseconds from one to another that the stream has both passed.
    fn elapsed(&self, from: Handle, to: Handle) -> Result<f32, Failure>;
    /// Forgets an event.
    fn forget_event(&self, event: Handle);

    /// From here on, what goes on the stream is recorded instead of run.
    fn begin_capture(&self) -> Result<(), Failure>;
    /// Ends that; what was recorded can be launched as one graph.
    fn end_capture(&self) -> Result<Handle, Failure>;
    /// Runs a graph: its calls in their order, with the same parameters.
    ///
    /// # Safety
    /// The memory that the calls use still exists.
    unsafe fn launch_graph(&self, graph: Handle) -> Result<(), Failure>;
    /// Forgets a graph.
    fn forget_graph(&self, graph: Handle);
}
