//! Is there a GPU that can be used? An honest answer, whatever the machine lacks.

use cudarc::driver::{CudaContext, CudaStream, result, sys};
use std::cell::Cell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Once, OnceLock};

/// What stands in the way of a GPU, as a sentence for the user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The driver library is not on this machine.
    #[error("no NVIDIA driver on this machine (the library libcuda was not found)")]
    NoDriver,
    /// The driver is there and knows no GPU.
    #[error("the NVIDIA driver is installed, but it finds no GPU ({0})")]
    NoDevice(String),
    /// The driver is there and does not work.
    #[error("the NVIDIA driver is installed, but it cannot be used: {0}")]
    Unusable(String),
    /// A device was asked for beyond those that exist.
    #[error("there is no GPU {index}: this machine has {count} (numbered from 0)")]
    NoSuchDevice {
        /// The number asked for.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// A call to the driver failed.
    #[error("GPU {action}: {reason}")]
    Call {
        /// What was being done, with its size.
        action: String,
        /// The driver's words.
        reason: String,
    },
}

/// A GPU: its context and the one stream that all work goes through.
#[derive(Clone)]
pub struct Device {
    index: usize,
    name: String,
    stream: Arc<CudaStream>,
}

impl Device {
    /// GPU number `index`, from 0.
    pub fn new(index: usize) -> Result<Device, Error> {
        let count = probe()?;
        if index >= count {
            return Err(Error::NoSuchDevice { index, count });
        }
        guarded(|| {
            let context = CudaContext::new(index).map_err(|e| Error::Unusable(e.to_string()))?;
            let name = context.name().map_err(|e| Error::Unusable(e.to_string()))?;
            let stream = context.new_stream().map_err(|e| Error::Unusable(e.to_string()))?;
            Ok(Device { index, name, stream })
        })
    }

    /// Its number, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Its name, as the driver gives it.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }
}

impl PartialEq for Device {
    fn eq(&self, other: &Device) -> bool {
        self.index == other.index
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cuda:{} ({})", self.index, self.name)
    }
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
                assert!(Device::new(0).is_ok());
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
