//! The NVIDIA driver, opened at run time; and whether there is one that can be used: an honest answer, whatever the machine lacks.

use crate::device::{WeakDevice, lock};
use crate::driver::{Driver, Failure, FailureKind, Geometry, Handle, Params, Properties};
use crate::{Device, Error};
use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};
use std::cell::Cell;
use std::ffi::{CString, c_void};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, Once, OnceLock};

/// One GPU of this machine.
struct Nvidia {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    properties: Properties,
}

impl Device {
    /// GPU number `index`, from 0; the same device each time.
    pub fn new(index: usize) -> Result<Device, Error> {
        static OPEN: Mutex<Vec<(usize, WeakDevice)>> = Mutex::new(Vec::new());
        let count = probe()?;
        if index >= count {
            return Err(Error::NoSuchDevice { index, count });
        }
        let mut open = lock(&OPEN);
        open.retain(|(_, device)| device.upgrade().is_some());
        if let Some(device) = open.iter().find_map(|(i, device)| device.upgrade().filter(|_| *i == index)) {
            return Ok(device);
        }
        let driver = guarded(|| Nvidia::open(index).map_err(|e| Error::Unusable(e.to_string())))?;
        let name = format!("cuda:{index} ({})", driver.properties.name);
        let device = Device::with_driver(name, Box::new(driver))?;
        open.push((index, device.downgrade()));
        Ok(device)
    }
}

impl Nvidia {
    fn open(index: usize) -> Result<Nvidia, DriverError> {
        use sys::CUdevice_attribute::*;
        let context = CudaContext::new(index)?;
        // SAFETY: cudarc's own tracking of who uses which memory is not needed: there is one stream, and no memory of cudarc's on it.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream()?;
        let attribute = |attribute| context.attribute(attribute).map(|value| value as u32);
        let mut version = 0;
        // SAFETY: writes one number.
        unsafe { sys::cuDriverGetVersion(&mut version) }.result()?;
        let properties = Properties {
            name: context.name()?,
            compute_capability: (
                attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            multiprocessors: attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            // SAFETY: the device is the context's.
            total_memory: unsafe { result::device::total_mem(context.cu_device()) }?,
            driver_version: (version as u32 / 1000, version as u32 % 1000 / 10),
        };
        Ok(Nvidia { context, stream, properties })
    }

    /// Makes the context that of this thread, which every call of the driver needs.
    fn bind(&self) -> Result<(), Failure> {
        self.context.bind_to_thread().map_err(failure)
    }

    fn stream(&self) -> sys::CUstream {
        self.stream.cu_stream()
    }
}

impl fmt::Debug for Nvidia {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.properties.fmt(f)
    }
}

fn failure(error: DriverError) -> Failure {
    use sys::CUresult::*;
    let kind = match error.0 {
        CUDA_ERROR_OUT_OF_MEMORY => FailureKind::OutOfMemory,
        CUDA_ERROR_UNSUPPORTED_PTX_VERSION => FailureKind::PtxTooNew,
        CUDA_ERROR_ILLEGAL_ADDRESS
        | CUDA_ERROR_MISALIGNED_ADDRESS
        | CUDA_ERROR_INVALID_ADDRESS_SPACE
        | CUDA_ERROR_INVALID_PC
        | CUDA_ERROR_ILLEGAL_INSTRUCTION
        | CUDA_ERROR_HARDWARE_STACK_ERROR
        | CUDA_ERROR_LAUNCH_TIMEOUT
        | CUDA_ERROR_LAUNCH_FAILED
        | CUDA_ERROR_ASSERT => FailureKind::Kernel,
        _ => FailureKind::Other,
    };
    Failure::new(kind, error.to_string())
}

/// What compilers write at most.
const LOG_BYTES: usize = 16 * 1024;

impl Driver for Nvidia {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn is_immediate(&self) -> bool {
        false
    }

    fn free_memory(&self) -> Result<usize, Failure> {
        self.bind()?;
        result::mem_get_info().map(|(free, _)| free).map_err(failure)
    }

    fn alloc(&self, bytes: usize) -> Result<u64, Failure> {
        self.bind()?;
        // SAFETY: memory that is only ever read by kernels and copies, of bytes.
        unsafe { result::malloc_sync(bytes) }.map_err(failure)
    }

    unsafe fn free(&self, address: u64) {
        // An error here is one of an earlier call, which will be reported, or has been.
        // SAFETY: the caller's contract.
        let _ = self.bind().map(|()| unsafe { result::free_sync(address) });
    }

    fn alloc_host(&self, bytes: usize) -> Result<*mut u8, Failure> {
        self.bind()?;
        // Flags 0: cached. Write-combined memory is slow to read.
        // SAFETY: the caller writes it before it is read.
        unsafe { result::malloc_host(bytes, 0) }.map(|memory| memory.cast()).map_err(failure)
    }

    unsafe fn free_host(&self, memory: *mut u8) {
        // SAFETY: the caller's contract.
        let _ = self.bind().map(|()| unsafe { result::free_host(memory.cast()) });
    }

    unsafe fn upload(&self, to: u64, from: *const u8, bytes: usize) -> Result<(), Failure> {
        self.bind()?;
        // Memory that is not pinned has been read when this returns (CUDA driver API, "API synchronization behavior").
        // SAFETY: the caller's contract.
        unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.cast(), bytes, self.stream()) }.result().map_err(failure)
    }

    unsafe fn download(&self, from: u64, to: *mut u8, bytes: usize) -> Result<(), Failure> {
        self.bind()?;
        // SAFETY: the caller's contract.
        unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast(), from, bytes, self.stream()) }.result().map_err(failure)
    }

    unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), Failure> {
        self.bind()?;
        // SAFETY: the caller's contract.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream()) }.map_err(failure)
    }

    unsafe fn fill(&self, to: u64, byte: u8, bytes: usize) -> Result<(), Failure> {
        self.bind()?;
        // SAFETY: the caller's contract.
        unsafe { result::memset_d8_async(to, byte, bytes, self.stream()) }.map_err(failure)
    }

    fn load(&self, ptx: &str) -> Result<Handle, Failure> {
        use sys::CUjit_option::*;
        self.bind()?;
        let text = CString::new(ptx).map_err(|e| Failure::new(FailureKind::Other, e.to_string()))?;
        let mut log = vec![0u8; LOG_BYTES];
        let mut options = [CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        let mut values = [log.as_mut_ptr().cast::<c_void>(), std::ptr::without_provenance_mut(LOG_BYTES)];
        let mut module = std::ptr::null_mut();
        // SAFETY: the text ends with a zero; two options with their values, a buffer and its length, which outlive the call.
        let code = unsafe {
            sys::cuModuleLoadDataEx(&mut module, text.as_ptr().cast(), 2, options.as_mut_ptr(), values.as_mut_ptr())
        };
        code.result().map_err(|e| {
            let end = log.iter().position(|&byte| byte == 0).unwrap_or(LOG_BYTES);
            Failure { log: String::from_utf8_lossy(&log[..end]).trim().into(), ..failure(e) }
        })?;
        Ok(Handle(module.expose_provenance() as u64))
    }

    fn function(&self, module: Handle, entry: &str) -> Result<Handle, Failure> {
        self.bind()?;
        let name = CString::new(entry).map_err(|e| Failure::new(FailureKind::Other, e.to_string()))?;
        // SAFETY: modules are never unloaded.
        let function = unsafe { result::module::get_function(pointer(module), name) }.map_err(failure)?;
        Ok(Handle(function.expose_provenance() as u64))
    }

    unsafe fn launch(&self, function: Handle, geometry: Geometry, params: &Params) -> Result<(), Failure> {
        self.bind()?;
        let Geometry { grid: [x, y, z], block: [a, b, c], shared } = geometry;
        let bytes = params.bytes();
        let mut pointers = [std::ptr::null_mut(); Params::MAX_FIELDS];
        let mut count = 0;
        for (at, _) in params.fields() {
            pointers[count] = bytes[at..].as_ptr().cast_mut().cast();
            count += 1;
        }
        // SAFETY: the caller's contract; the driver copies the parameters, and only reads them.
        unsafe {
            let pointers = &mut pointers[..count];
            result::launch_kernel(pointer(function), (x, y, z), (a, b, c), shared, self.stream(), pointers)
        }
        .map_err(failure)
    }

    fn synchronize(&self) -> Result<(), Failure> {
        self.bind()?;
        // SAFETY: the stream lives as long as this.
        unsafe { result::stream::synchronize(self.stream()) }.map_err(failure)
    }

    fn event(&self) -> Result<Handle, Failure> {
        self.bind()?;
        // The default, unlike what cudarc's contexts give: with timing.
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map_err(failure)?;
        Ok(Handle(event.expose_provenance() as u64))
    }

    fn record(&self, event: Handle) -> Result<(), Failure> {
        self.bind()?;
        // SAFETY: handles are of events that exist: `Event` and `Pinned` keep them until they are dropped.
        unsafe { result::event::record(pointer(event), self.stream()) }.map_err(failure)
    }

    fn wait(&self, event: Handle) -> Result<(), Failure> {
        self.bind()?;
        // SAFETY: as in `record`.
        unsafe { result::event::synchronize(pointer(event)) }.map_err(failure)
    }

    fn elapsed(&self, from: Handle, to: Handle) -> Result<f32, Failure> {
        self.bind()?;
        // SAFETY: as in `record`.
        unsafe { result::event::elapsed(pointer(from), pointer(to)) }.map_err(failure)
    }

    fn forget_event(&self, event: Handle) {
        // SAFETY: as in `record`, and this is the last use.
        let _ = self.bind().map(|()| unsafe { result::event::destroy(pointer(event)) });
    }

    fn begin_capture(&self) -> Result<(), Failure> {
        self.bind()?;
        // Relaxed: memory that the pool does not have may be asked for meanwhile; that is no work of the stream.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream lives as long as this.
        unsafe { result::stream::begin_capture(self.stream(), mode) }.map_err(failure)
    }

    fn end_capture(&self) -> Result<Handle, Failure> {
        self.bind()?;
        // SAFETY: the stream lives as long as this; the graph is there if the call succeeds, and is not used after it is destroyed.
        let executable = unsafe {
            let graph = result::stream::end_capture(self.stream()).map_err(failure)?;
            let mut executable = std::ptr::null_mut();
            let code = sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0);
            let _ = result::graph::destroy(graph);
            code.result().map_err(failure)?;
            executable
        };
        Ok(Handle(executable.expose_provenance() as u64))
    }

    unsafe fn launch_graph(&self, graph: Handle) -> Result<(), Failure> {
        self.bind()?;
        // SAFETY: the caller's contract; a `Graph` keeps its handle until it is dropped.
        unsafe { result::graph::launch(pointer(graph), self.stream()) }.map_err(failure)
    }

    fn forget_graph(&self, graph: Handle) {
        // SAFETY: as in `launch_graph`, and this is the last use.
        let _ = self.bind().map(|()| unsafe { result::graph::exec_destroy(pointer(graph)) });
    }
}

/// The driver's pointer that a handle stands for.
fn pointer<T>(handle: Handle) -> *mut T {
    std::ptr::with_exposed_provenance_mut(handle.0 as usize)
}

/// The number of usable GPUs, at least 1, or the reason why there is none. Looked up once.
pub fn probe() -> Result<usize, Error> {
    static FOUND: OnceLock<Result<usize, Error>> = OnceLock::new();
    FOUND
        .get_or_init(|| {
            // SAFETY: opens the driver library, which runs its initialisers. That is what any CUDA program does at start.
            if !unsafe { sys::is_culib_present() } {
                return Err(Error::NoDriver);
            }
            guarded(|| {
                result::init().map_err(|e| match e.0 {
                    sys::CUresult::CUDA_ERROR_NO_DEVICE | sys::CUresult::CUDA_ERROR_STUB_LIBRARY => {
                        Error::NoDevice(format!("{:?}", e.0))
                    }
                    code => Error::Unusable(format!("cuInit returned {code:?}")),
                })?;
                match result::device::get_count() {
                    Ok(count) if count > 0 => Ok(count as usize),
                    Ok(_) => Err(Error::NoDevice("device count 0".into())),
                    Err(e) => Err(Error::Unusable(e.to_string())),
                }
            })
        })
        .clone()
}

thread_local! {
    /// Whether a panic of this thread is caught by [`guarded`] and says nothing by itself.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f`; a panic inside becomes an error. cudarc panics where a driver lacks a symbol that it wants.
/// The panic hook is silent meanwhile on this thread, so that the user sees the error and no backtrace. The hook is set once
/// and not put back: two threads that took and put it back at once would leave the program without one.
fn guarded<T>(f: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                hook(info);
            }
        }));
    });
    QUIET.set(true);
    let outcome = catch_unwind(AssertUnwindSafe(f));
    QUIET.set(false);
    outcome.unwrap_or_else(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or(payload.downcast_ref::<&str>().copied()).unwrap_or("the driver bindings panicked");
        Err(Error::Unusable(text.to_string()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    static REPORTED: AtomicUsize = AtomicUsize::new(0);

    /// Counts the panics of the second test that reach the hook. Every test calls it first: [`guarded`] keeps the hook it finds.
    fn count_reports() {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                if info.payload().downcast_ref::<&str>() == Some(&"a test of the panic hook") {
                    REPORTED.fetch_add(1, Ordering::Relaxed);
                } else {
                    before(info);
                }
            }));
        });
    }

    /// Holds on any machine: with a GPU the device opens, without one the error is a sentence.
    #[test]
    fn the_probe_answers_without_a_panic() {
        count_reports();
        match probe() {
            Ok(count) => {
                assert!(Device::new(0).unwrap() == Device::new(0).unwrap());
                assert_eq!(Device::new(count).unwrap_err(), Error::NoSuchDevice { index: count, count });
            }
            Err(error) => {
                assert!(error.to_string().contains("NVIDIA driver"), "{error}");
                assert_eq!(Device::new(0).unwrap_err(), error);
            }
        }
    }

    /// Panics of other threads, and those that come later, are reported; the caught ones are not.
    #[test]
    fn guarded_silences_the_panics_that_it_catches_and_no_others() {
        count_reports();
        let panic = || -> Result<(), Error> { panic!("a test of the panic hook") };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        let error = guarded(panic).unwrap_err();
                        assert_eq!(error, Error::Unusable("a test of the panic hook".into()));
                    }
                });
            }
        });
        assert_eq!(REPORTED.load(Ordering::Relaxed), 0, "cuda: a panic that was caught was reported");
        assert!(catch_unwind(panic).is_err());
        assert_eq!(REPORTED.load(Ordering::Relaxed), 1, "cuda: the program lost its panic hook");
    }
}
