//! A GPU: its memory, its kernels, and the one stream that all work goes through.

use crate::driver::{Driver, Failure, FailureKind, Geometry, Handle, Params, Properties};
use crate::pool::{Pool, size_class};
use crate::{Error, Stats};
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

/// Committed PTX, loaded on a device when the first of its kernels is launched there.
#[derive(Debug)]
pub struct Module {
    /// The file of kernels.
    pub name: &'static str,
    /// Its text.
    pub ptx: &'static str,
}

/// A kernel of a module. Make it a `static`: a device remembers it by its address.
#[derive(Debug)]
pub struct Kernel {
    /// Where it is.
    pub module: &'static Module,
    /// Its name there.
    pub entry: &'static str,
}

/// A GPU. Clones are the same GPU.
#[derive(Clone)]
pub struct Device(Arc<Inner>);

struct Inner {
    name: String,
    driver: Box<dyn Driver>,
    pool: Mutex<Pool>,
    poison: AtomicBool,
    modules: Mutex<HashMap<&'static str, Handle>>,
    functions: Mutex<HashMap<usize, Handle>>,
    /// Wait for each launch, so that a failure is that launch's: `KERNELS_CUDA_SYNC`.
    wait_for_each: bool,
    launches: AtomicU64,
    last_launch: Mutex<Option<(&'static Kernel, Geometry, u64)>>,
    /// Number of the last launch that is known to have succeeded.
    succeeded: AtomicU64,
    recording: Mutex<Option<Recording>>,
}

/// A graph in the making.
struct Recording {
    thread: ThreadId,
    /// Memory that its calls use.
    holds: Vec<Arc<Block>>,
}

/// The variable that makes every launch wait for its end. It slows everything down.
pub const SYNC_VARIABLE: &str = "KERNELS_CUDA_SYNC";

impl Device {
    /// The device behind a driver. `name` is what messages call it.
    ///
    /// The environment's `KERNELS_CUDA_SYNC=1` makes every launch wait for its end, so that the launch that failed is named.
    pub fn with_driver(name: impl Into<String>, driver: Box<dyn Driver>) -> Result<Device, Error> {
        let properties = driver.properties();
        if properties.compute_capability < (8, 0) {
            return Err(Error::GpuTooOld { name: properties.name.clone(), found: properties.compute_capability });
        }
        let wait_for_each = std::env::var(SYNC_VARIABLE).is_ok_and(|value| value != "0" && !value.is_empty());
        Ok(Device(Arc::new(Inner {
            name: name.into(),
            wait_for_each: wait_for_each || driver.is_immediate(),
            driver,
            pool: Mutex::default(),
            poison: AtomicBool::new(false),
            modules: Mutex::default(),
            functions: Mutex::default(),
            launches: AtomicU64::new(0),
            last_launch: Mutex::default(),
            succeeded: AtomicU64::new(0),
            recording: Mutex::default(),
        })))
    }

    /// What it is.
    pub fn properties(&self) -> &Properties {
        self.0.driver.properties()
    }

    /// What messages call it: `cuda:0 (NVIDIA H200)`.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// What this program's buffers take of its memory.
    pub fn memory(&self) -> Stats {
        lock(&self.0.pool).stats()
    }

    /// Bytes that buffers can still take: those that the driver has free, also for other programs, and those that wait to be used again.
    pub fn free_memory(&self) -> Result<usize, Error> {
        let free = self.0.driver.free_memory().map_err(|f| self.error(f, || "asking for its free memory".into()))?;
        Ok(free + self.memory().waiting)
    }

    /// Whether buffers are filled with NaN (all bits set) before they are handed out stale. Off at first: it costs a pass over the memory. Tests
    /// turn it on, so that a kernel that reads what it should have written shows.
    pub fn set_poison(&self, on: bool) {
        self.0.poison.store(on, Ordering::Relaxed);
    }

    /// Gives the blocks that wait to be used again back to the driver.
    pub fn trim(&self) -> Result<(), Error> {
        let waiting = lock(&self.0.pool).drain();
        // What still runs may use them.
        let synchronized = self.synchronize();
        for address in waiting {
            // SAFETY: a waiting block is used by no buffer, and the stream has passed; or the device has failed and runs nothing.
            unsafe { self.0.driver.free(address) };
        }
        synchronized
    }

    /// Waits until everything that was asked of it is done.
    pub fn synchronize(&self) -> Result<(), Error> {
        self.not_while_recording("waiting for it")?;
        let launches = self.0.launches.load(Ordering::Relaxed);
        self.0.driver.synchronize().map_err(|f| self.error(f, || "waiting for it".into()))?;
        self.0.succeeded.fetch_max(launches, Ordering::Relaxed);
        Ok(())
    }

    /// A block for at least `bytes` bytes, stale.
    pub(crate) fn block(&self, bytes: usize) -> Result<Arc<Block>, Error> {
        let class = if self.0.driver.is_immediate() { bytes.max(1) } else { size_class(bytes) };
        let waiting = lock(&self.0.pool).take(class);
        let address = match waiting {
            Some(address) => address,
            None => {
                let address = self.fresh(class)?;
                lock(&self.0.pool).took_fresh(class);
                address
            }
        };
        let block = Arc::new(Block { device: self.clone(), address, class });
        if self.0.poison.load(Ordering::Relaxed) {
            // SAFETY: the range is the block's.
            unsafe { self.driver().fill(address, 0xFF, class) }
                .map_err(|f| self.error(f, || format!("filling {class} bytes")))?;
        }
        Ok(block)
    }

    fn fresh(&self, class: usize) -> Result<u64, Error> {
        match self.0.driver.alloc(class) {
            // What waits may be what lacks. While a graph is recorded nothing can be waited for, and so nothing freed.
            Err(f) if f.kind == FailureKind::OutOfMemory && lock(&self.0.recording).is_none() => {
                self.trim()?;
                self.0.driver.alloc(class)
            }
            outcome => outcome,
        }
        .map_err(|f| match f.kind {
            FailureKind::OutOfMemory => Error::OutOfMemory {
                device: self.name().into(),
                asked: class,
                free: self.0.driver.free_memory().unwrap_or(0),
                total: self.properties().total_memory,
                in_use: self.memory().in_use,
            },
            _ => self.error(f, || format!("asking for {class} bytes")),
        })
    }

    pub(crate) fn driver(&self) -> &dyn Driver {
        &*self.0.driver
    }

    /// The handle of a kernel, whose module is loaded if it is not yet.
    fn function(&self, kernel: &'static Kernel) -> Result<Handle, Error> {
        let key = kernel as *const Kernel as usize;
        if let Some(&function) = lock(&self.0.functions).get(&key) {
            return Ok(function);
        }
        let mut modules = lock(&self.0.modules);
        let module = match modules.get(kernel.module.name) {
            Some(&module) => module,
            None => {
                let module = self.0.driver.load(kernel.module.ptx).map_err(|f| self.module_error(kernel.module, f))?;
                modules.insert(kernel.module.name, module);
                module
            }
        };
        let function = self.0.driver.function(module, kernel.entry).map_err(|f| Error::Module {
            module: format!("{}: {}", kernel.module.name, kernel.entry),
            reason: f.reason,
            log: f.log,
        })?;
        lock(&self.0.functions).insert(key, function);
        Ok(function)
    }

    fn module_error(&self, module: &Module, failure: Failure) -> Error {
        let version = module.ptx.lines().find_map(|line| line.strip_prefix(".version ")).unwrap_or("of no version");
        match failure.kind {
            FailureKind::PtxTooNew => Error::DriverTooOld {
                module: module.name.into(),
                needed: version.trim().into(),
                driver: first_driver(version),
                found: self.properties().driver_version,
            },
            _ => Error::Module { module: module.name.into(), reason: failure.reason, log: failure.log },
        }
    }

    /// # Safety
    /// As [`Driver::launch`]; `holds` are the blocks that the parameters point to.
    pub(crate) unsafe fn launch<'a>(
        &self,
        kernel: &'static Kernel,
        geometry: Geometry,
        params: &Params,
        holds: impl Iterator<Item = &'a Arc<Block>>,
    ) -> Result<(), Error> {
        let function = self.function(kernel)?;
        let recording = self.hold(holds)?;
        let number = self.0.launches.fetch_add(1, Ordering::Relaxed) + 1;
        *lock(&self.0.last_launch) = Some((kernel, geometry, number));
        // SAFETY: the caller's contract.
        let outcome = unsafe { self.0.driver.launch(function, geometry, params) };
        let outcome = if self.0.wait_for_each && !recording {
            outcome.and_then(|()| self.0.driver.synchronize())
        } else {
            outcome
        };
        outcome.map_err(|f| {
            let action = format!("launching {}", describe(kernel, geometry, number));
            self.error(f, || action)
        })?;
        if self.0.wait_for_each && !recording {
            self.0.succeeded.fetch_max(number, Ordering::Relaxed);
        }
        Ok(())
    }

    /// If a graph is being recorded, by this thread, it keeps these blocks; says whether one is.
    pub(crate) fn hold<'a>(&self, blocks: impl Iterator<Item = &'a Arc<Block>>) -> Result<bool, Error> {
        match &mut *lock(&self.0.recording) {
            None => Ok(false),
            Some(recording) if recording.thread == std::thread::current().id() => {
                recording.holds.extend(blocks.cloned());
                Ok(true)
            }
            Some(_) => Err(self.refused("work", "another thread is recording a graph")),
        }
    }

    pub(crate) fn not_while_recording(&self, action: &str) -> Result<(), Error> {
        match &*lock(&self.0.recording) {
            None => Ok(()),
            Some(_) => Err(self.refused(action, "not possible while a graph is being recorded")),
        }
    }

    pub(crate) fn begin_recording(&self) -> Result<(), Error> {
        let mut recording = lock(&self.0.recording);
        if recording.is_some() {
            return Err(self.refused("recording a graph", "one is being recorded already"));
        }
        self.0.driver.begin_capture().map_err(|f| self.error(f, || "recording a graph".into()))?;
        *recording = Some(Recording { thread: std::thread::current().id(), holds: Vec::new() });
        Ok(())
    }

    /// The graph, and the memory that it uses.
    pub(crate) fn end_recording(&self) -> Result<(Handle, Vec<Arc<Block>>), Error> {
        let holds = lock(&self.0.recording).take().map(|recording| recording.holds).unwrap_or_default();
        let graph = self.0.driver.end_capture().map_err(|f| self.error(f, || "recording a graph".into()))?;
        Ok((graph, holds))
    }

    pub(crate) fn refused(&self, action: &str, reason: &str) -> Error {
        Error::Call { device: self.name().into(), action: action.into(), reason: reason.into() }
    }

    /// The error for a failure of a call, or of a kernel that was launched before it.
    pub(crate) fn error(&self, failure: Failure, action: impl FnOnce() -> String) -> Error {
        let device = self.name().into();
        if failure.kind != FailureKind::Kernel {
            return Error::Call { device, action: action(), reason: failure.reason };
        }
        let succeeded = self.0.succeeded.load(Ordering::Relaxed);
        let launch = match *lock(&self.0.last_launch) {
            None => "no kernel was launched".into(),
            Some((kernel, geometry, number)) if number <= succeeded + 1 => describe(kernel, geometry, number),
            Some((kernel, geometry, number)) => format!(
                "one of the launches {} to {number}, the last of which was {}; {SYNC_VARIABLE}=1 tells which",
                succeeded + 1,
                describe(kernel, geometry, number)
            ),
        };
        Error::Kernel { device, launch, reason: failure.reason }
    }
}

/// `rms_norm (launch 17, grid 4 x 1 x 1, block 256 x 1 x 1)`.
fn describe(kernel: &Kernel, Geometry { grid: [x, y, z], block: [a, b, c], .. }: Geometry, number: u64) -> String {
    format!("{} (launch {number}, grid {x} x {y} x {z}, block {a} x {b} x {c})", kernel.entry)
}

/// The first driver branch whose compiler knows a PTX version. (NVIDIA, PTX ISA release history and CUDA release notes.)
fn first_driver(version: &str) -> &'static str {
    match version.trim() {
        "7.4" => "R470, CUDA 11.4",
        "7.8" => "R520, CUDA 11.8",
        "8.0" => "R525, CUDA 12.0",
        _ => "a later one",
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Errors have nobody to go to; a device that fails here is not used again.
        let _ = self.driver.synchronize();
        for address in lock(&self.pool).drain() {
            // SAFETY: no buffer is left (each holds the device), and the stream has passed.
            unsafe { self.driver.free(address) };
        }
    }
}

impl PartialEq for Device {
    fn eq(&self, other: &Device) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.name)
    }
}

/// Memory of a device. When the last that holds it is dropped, it waits in the pool to be used again.
pub(crate) struct Block {
    pub(crate) device: Device,
    pub(crate) address: u64,
    pub(crate) class: usize,
}

impl Drop for Block {
    fn drop(&mut self) {
        let immediate = self.device.0.driver.is_immediate();
        lock(&self.device.0.pool).put(self.class, self.address, !immediate);
        if immediate {
            // SAFETY: nothing holds the block any more, and nothing is on the stream.
            unsafe { self.device.0.driver.free(self.address) };
        }
    }
}

/// What the locks guard is whole between any two operations, so a panic elsewhere while one was held loses nothing.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Device {
    pub(crate) fn downgrade(&self) -> WeakDevice {
        WeakDevice(Arc::downgrade(&self.0))
    }
}

/// A device that may be gone.
pub(crate) struct WeakDevice(std::sync::Weak<Inner>);

impl WeakDevice {
    pub(crate) fn upgrade(&self) -> Option<Device> {
        self.0.upgrade().map(Device)
    }
}
