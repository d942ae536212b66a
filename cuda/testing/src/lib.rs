//! A [`cuda::Device`] for tests on any machine: its kernels are the committed PTX, run by the interpreter `ptx`.
//!
//! Whatever runs on a `Device` runs on this one by the same code, from the launches to whole training steps. Each buffer is an allocation of just
//! its size, so an access beyond it, or of what nobody wrote, fails and names the kernel, the thread and the line of PTX.

use bytemuck::Pod;
use cuda::driver::{Driver, Failure, FailureKind, Geometry, Handle, Params, Properties};
use cuda::{Buffer, Device};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The variable that names a GPU for [`device`] by its number.
pub const GPU_VARIABLE: &str = "KERNELS_CUDA_TEST";

/// A device as large as a real one, whose calls are done when they return. With `KERNELS_CUDA_TEST=0` in the environment it is GPU number 0
/// of this machine instead, and the same tests run there. Panics if there is no such GPU.
pub fn device() -> Device {
    let Ok(index) = std::env::var(GPU_VARIABLE) else { return Interpreter::default().device() };
    let index = index.parse().unwrap_or_else(|_| panic!("{GPU_VARIABLE}={index}: expected the number of a GPU"));
    Device::new(index).unwrap_or_else(|e| panic!("{GPU_VARIABLE}={index}: {e}"))
}

/// These elements on a device. Panics if it fails.
#[track_caller]
pub fn on<T: Pod>(device: &Device, elements: &[T]) -> Buffer<T> {
    Buffer::from_slice(device, elements).unwrap_or_else(|e| panic!("{e}"))
}

/// Elements on a device that nobody has written. Panics if it fails.
#[track_caller]
pub fn stale<T: Pod>(device: &Device, len: usize) -> Buffer<T> {
    Buffer::stale(device, len).unwrap_or_else(|e| panic!("{e}"))
}

/// The bits of the elements: two NaN are the same here.
pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }).collect()
}

/// What the launches on a device moved since it was last asked, in whole sectors of 32 bytes, as if there were no cache: each load and store of a warp
/// counts the sectors that its lanes touch.
#[derive(Clone, Debug, Default)]
pub struct Traffic(Arc<Mutex<(u64, u64)>>);

impl Traffic {
    /// Bytes read and written.
    pub fn take(&self) -> (u64, u64) {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What was asked of a device since it was last asked: how often, each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallCounts {
    /// Memory, of the device or pinned.
    pub allocations: u64,
    /// Copies from the host.
    pub uploads: u64,
    /// Copies to the host.
    pub downloads: u64,
    /// Launches by themselves, those that are recorded included.
    pub launches: u64,
    /// Launches of graphs.
    pub graphs: u64,
}

/// Counts the calls to a driver.
#[derive(Clone, Debug, Default)]
pub struct Calls(Arc<Mutex<CallCounts>>);

impl Calls {
    /// The counts so far, which begin anew.
    pub fn take(&self) -> CallCounts {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn count(calls: &Option<Calls>, count: impl Fn(&mut CallCounts) -> &mut u64) {
        if let Some(Calls(counts)) = calls {
            *count(&mut counts.lock().unwrap_or_else(PoisonError::into_inner)) += 1;
        }
    }
}

/// The driver, before it is made into a device.
#[derive(Clone, Debug)]
pub struct Interpreter {
    /// What the device says that it is.
    pub properties: Properties,
    /// Whether the pool above keeps what is freed, as it does for a real device. Buffers are then larger than what was asked for.
    pub pooled: bool,
    /// The PTX version that modules may have at most.
    pub ptx_version: (u32, u32),
    /// Where to count what launches move. Their threads then run in order, for the counts to be those of the kernel.
    pub traffic: Option<Traffic>,
    /// The launch, counted from 1, that fails as a kernel does that leaves its memory.
    pub fault_at: Option<u64>,
    /// Where to count what is asked of it.
    pub calls: Option<Calls>,
}

impl Default for Interpreter {
    fn default() -> Interpreter {
        let properties = Properties {
            name: "PTX interpreter".into(),
            compute_capability: (8, 0),
            multiprocessors: 132,
            total_memory: 1 << 40,
            driver_version: (11, 4),
        };
        Interpreter { properties, pooled: false, ptx_version: (7, 4), traffic: None, fault_at: None, calls: None }
    }
}

impl Interpreter {
    /// A device of its own. Panics if the device is refused.
    pub fn device(self) -> Device {
        Device::with_driver("the interpreter", self.driver()).unwrap_or_else(|e| panic!("{e}"))
    }

    /// The driver alone, for the errors of making a device.
    pub fn driver(self) -> Box<dyn Driver> {
        let state = State { traffic: self.traffic.clone(), fault_at: self.fault_at, ..State::default() };
        Box::new(TestDriver { setup: self, state: Mutex::new(state) })
    }
}

struct TestDriver {
    setup: Interpreter,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    memory: ptx::Memory,
    modules: Vec<Arc<ptx::Module>>,
    /// Module and entry.
    functions: Vec<(Arc<ptx::Module>, String)>,
    host: HashMap<usize, Layout>,
    /// The time at which each event was last set.
    events: Vec<u64>,
    /// Counts what was run.
    clock: u64,
    recording: Option<Vec<Call>>,
    graphs: Vec<Vec<Call>>,
    /// What a kernel did wrong: from then on every call fails, as on a device.
    fault: Option<String>,
    traffic: Option<Traffic>,
    launches: u64,
    fault_at: Option<u64>,
}

/// What goes on the stream, and into graphs.
#[derive(Clone)]
enum Call {
    Launch { module: Arc<ptx::Module>, entry: String, geometry: Geometry, params: Vec<u8> },
    Copy { to: u64, from: u64, bytes: usize },
    Fill { to: u64, byte: u8, bytes: usize },
}

impl State {
    /// Runs a call, or records it.
    fn submit(&mut self, call: Call) -> Result<(), Failure> {
        match &mut self.recording {
            Some(calls) => {
                calls.push(call);
                Ok(())
            }
            None => self.run(call),
        }
    }

    fn run(&mut self, call: Call) -> Result<(), Failure> {
        self.clock += 1;
        let outcome = match call {
            Call::Launch { module, entry, geometry: Geometry { grid, block, shared }, params } => {
                self.launches += 1;
                if self.fault_at == Some(self.launches) {
                    let fault = format!("{entry}: it was to fail");
                    self.fault = Some(fault.clone());
                    return Err(Failure::new(FailureKind::Kernel, fault));
                }
                // Another order of blocks, warps and threads for each launch.
                let seed = self.traffic.is_none().then_some(self.clock);
                let options = ptx::Options { seed, ..ptx::Options::default() };
                let done = ptx::launch(&module, &entry, grid, block, shared, &params, &mut self.memory, options);
                if let (Ok(report), Some(traffic)) = (&done, &self.traffic) {
                    let mut moved = traffic.0.lock().unwrap_or_else(PoisonError::into_inner);
                    moved.0 += 32 * report.global_read_sectors;
                    moved.1 += 32 * report.global_written_sectors;
                }
                done.map(|_| ())
            }
            Call::Copy { to, from, bytes } => self.memory.copy(to, from, bytes),
            Call::Fill { to, byte, bytes } => self.memory.fill(to, byte, bytes),
        };
        outcome.map_err(|error| self.failure(error))
    }

    fn failure(&mut self, error: ptx::Error) -> Failure {
        match error {
            ptx::Error::Fault(fault) => {
                self.fault = Some(fault.to_string());
                Failure::new(FailureKind::Kernel, fault.to_string())
            }
            error => Failure::new(FailureKind::Other, error.to_string()),
        }
    }
}

/// The module of a text: parsed once, for all tests of a program.
fn parse(ptx: &str) -> Result<Arc<ptx::Module>, Failure> {
    static PARSED: Mutex<Option<HashMap<String, Arc<ptx::Module>>>> = Mutex::new(None);
    let mut parsed = PARSED.lock().unwrap_or_else(PoisonError::into_inner);
    let parsed = parsed.get_or_insert_default();
    if let Some(module) = parsed.get(ptx) {
        return Ok(module.clone());
    }
    let module = ptx::Module::parse("module", ptx).map_err(|e| Failure {
        log: e.to_string(),
        ..Failure::new(FailureKind::Other, "the interpreter refuses it")
    })?;
    let module = Arc::new(module);
    parsed.insert(ptx.into(), module.clone());
    Ok(module)
}

impl TestDriver {
    fn state(&self) -> Result<MutexGuard<'_, State>, Failure> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match &state.fault {
            Some(fault) => Err(Failure::new(FailureKind::Kernel, fault.clone())),
            None => Ok(state),
        }
    }
}

impl fmt::Debug for TestDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.setup.fmt(f)
    }
}

impl Driver for TestDriver {
    fn properties(&self) -> &Properties {
        &self.setup.properties
    }

    fn is_immediate(&self) -> bool {
        !self.setup.pooled
    }

    fn free_memory(&self) -> Result<usize, Failure> {
        Ok(self.setup.properties.total_memory - self.state()?.memory.live_bytes() as usize)
    }

    fn alloc(&self, bytes: usize) -> Result<u64, Failure> {
        if bytes > self.free_memory()? {
            return Err(Failure::new(FailureKind::OutOfMemory, "out of memory"));
        }
        Calls::count(&self.setup.calls, |counts| &mut counts.allocations);
        Ok(self.state()?.memory.alloc(bytes))
    }

    unsafe fn free(&self, address: u64) {
        // After a fault nothing is freed, as on a device.
        if let Ok(mut state) = self.state() {
            state.memory.free(address).unwrap_or_else(|e| panic!("{e}"));
        }
    }

    fn alloc_host(&self, bytes: usize) -> Result<*mut u8, Failure> {
        Calls::count(&self.setup.calls, |counts| &mut counts.allocations);
        let layout =
            Layout::from_size_align(bytes.max(1), 64).map_err(|e| Failure::new(FailureKind::Other, e.to_string()))?;
        // SAFETY: of at least one byte.
        let memory = unsafe { alloc_zeroed(layout) };
        self.state()?.host.insert(memory as usize, layout);
        Ok(memory)
    }

    unsafe fn free_host(&self, memory: *mut u8) {
        let layout = self.state.lock().unwrap_or_else(PoisonError::into_inner).host.remove(&(memory as usize));
        let layout = layout.expect("host memory of alloc_host");
        // SAFETY: allocated with this layout, and freed once.
        unsafe { dealloc(memory, layout) };
    }

    unsafe fn upload(&self, to: u64, from: *const u8, bytes: usize) -> Result<(), Failure> {
        Calls::count(&self.setup.calls, |counts| &mut counts.uploads);
        let mut state = self.state()?;
        // SAFETY: the caller's contract.
        let from = unsafe { std::slice::from_raw_parts(from, bytes) };
        state.clock += 1;
        let outcome = state.memory.write(to, from);
        outcome.map_err(|e| state.failure(e))
    }

    unsafe fn download(&self, from: u64, to: *mut u8, bytes: usize) -> Result<(), Failure> {
        Calls::count(&self.setup.calls, |counts| &mut counts.downloads);
        let mut state = self.state()?;
        // SAFETY: the caller's contract; bytes need no initialising to be a slice of them that is only written.
        let to = unsafe { std::slice::from_raw_parts_mut(to, bytes) };
        state.clock += 1;
        let outcome = state.memory.read(from, to);
        outcome.map_err(|e| state.failure(e))
    }

    unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), Failure> {
        self.state()?.submit(Call::Copy { to, from, bytes })
    }

    unsafe fn fill(&self, to: u64, byte: u8, bytes: usize) -> Result<(), Failure> {
        self.state()?.submit(Call::Fill { to, byte, bytes })
    }

    fn load(&self, ptx: &str) -> Result<Handle, Failure> {
        let mut state = self.state()?;
        let version = ptx.lines().find_map(|line| line.strip_prefix(".version ")?.trim().split_once('.'));
        let number = |text: &str| text.parse().unwrap_or(0);
        if version.is_none_or(|(major, minor)| (number(major), number(minor)) > self.setup.ptx_version) {
            return Err(Failure::new(FailureKind::PtxTooNew, "unsupported PTX version"));
        }
        let module = parse(ptx)?;
        state.modules.push(module);
        Ok(Handle(state.modules.len() as u64 - 1))
    }

    fn function(&self, module: Handle, entry: &str) -> Result<Handle, Failure> {
        let mut state = self.state()?;
        let module = state.modules[module.0 as usize].clone();
        if module.params(entry).is_none() {
            return Err(Failure::new(FailureKind::Other, format!("no kernel {entry} in the module")));
        }
        state.functions.push((module, entry.into()));
        Ok(Handle(state.functions.len() as u64 - 1))
    }

    unsafe fn launch(&self, function: Handle, geometry: Geometry, params: &Params) -> Result<(), Failure> {
        Calls::count(&self.setup.calls, |counts| &mut counts.launches);
        let mut state = self.state()?;
        let (module, entry) = state.functions[function.0 as usize].clone();
        let expected: Vec<_> =
            module.params(&entry).into_iter().flatten().map(|p| (p.offset as usize, p.size as usize)).collect();
        let given: Vec<_> = params.fields().collect();
        if given != expected {
            let what = format!("{entry}: parameters (offset, bytes) {given:?}, the kernel declares {expected:?}");
            return Err(Failure::new(FailureKind::Other, what));
        }
        state.submit(Call::Launch { module, entry, geometry, params: params.bytes().to_vec() })
    }

    fn synchronize(&self) -> Result<(), Failure> {
        self.state().map(|_| ())
    }

    fn event(&self) -> Result<Handle, Failure> {
        let mut state = self.state()?;
        state.events.push(0);
        Ok(Handle(state.events.len() as u64 - 1))
    }

    fn record(&self, event: Handle) -> Result<(), Failure> {
        let mut state = self.state()?;
        let clock = state.clock;
        state.events[event.0 as usize] = clock;
        Ok(())
    }

    fn wait(&self, _: Handle) -> Result<(), Failure> {
        self.synchronize()
    }

    /// The number of calls in between.
    fn elapsed(&self, from: Handle, to: Handle) -> Result<f32, Failure> {
        let state = self.state()?;
        Ok((state.events[to.0 as usize] - state.events[from.0 as usize]) as f32)
    }

    fn forget_event(&self, _: Handle) {}

    fn begin_capture(&self) -> Result<(), Failure> {
        self.state()?.recording = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&self) -> Result<Handle, Failure> {
        let mut state = self.state()?;
        let calls =
            state.recording.take().ok_or_else(|| Failure::new(FailureKind::Other, "nothing is being recorded"))?;
        state.graphs.push(calls);
        Ok(Handle(state.graphs.len() as u64 - 1))
    }

    unsafe fn launch_graph(&self, graph: Handle) -> Result<(), Failure> {
        Calls::count(&self.setup.calls, |counts| &mut counts.graphs);
        let mut state = self.state()?;
        let calls = state.graphs[graph.0 as usize].clone();
        calls.into_iter().try_for_each(|call| state.run(call))
    }

    fn forget_graph(&self, graph: Handle) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).graphs[graph.0 as usize].clear();
    }
}
