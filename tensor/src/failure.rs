//! A GPU that fails, or has no memory left, in the middle of a computation.
//!
//! Operations have no `Result`: nothing goes on from there, and every signature of `autograd` and `model` would have one for this
//! alone. They [`raise`], which panics; whoever has something to save, as training does, runs the whole computation in [`catch`].

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// What a GPU could not do, and what wanted it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{of}: {error}")]
pub struct Failure {
    /// The operation, or the tensor.
    pub of: String,
    /// The GPU's failure. After [`OutOfMemory`](cuda::Error::OutOfMemory) it works on.
    pub error: cuda::Error,
}

thread_local! {
    /// Whether a [`catch`] of this thread waits for failures.
    static AWAITED: Cell<bool> = const { Cell::new(false) };
}

/// Ends the computation: with a panic that says what failed, or silently in the [`catch`] around it.
#[track_caller]
pub fn raise(of: impl Into<String>, error: cuda::Error) -> ! {
    let failure = Failure { of: of.into(), error };
    if AWAITED.get() {
        resume_unwind(Box::new(failure)); // past the hook that would report a panic
    }
    panic!("{failure}")
}

/// The result of `f`, or the failure of a GPU that ended it. Other panics go through.
///
/// What `f` was changing may be half changed then: it is for the caller to know what of it still counts.
pub fn catch<T>(f: impl FnOnce() -> T) -> Result<T, Failure> {
    let before = AWAITED.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(f));
    AWAITED.set(before);
    outcome.map_err(|payload| match payload.downcast::<Failure>() {
        Ok(failure) => *failure,
        Err(other) => resume_unwind(other),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Device, Tensor, ops};
    use cuda::driver::Properties;
    use cuda_testing::Interpreter;

    fn small_gpu() -> Device {
        let properties = Properties { total_memory: 1 << 10, ..Interpreter::default().properties };
        Device::Cuda(Interpreter { properties, ..Interpreter::default() }.device())
    }

    #[test]
    fn a_failure_ends_in_the_catch_around_it_and_the_device_works_on() {
        let device = small_gpu();
        let x = Tensor::full_on(&device, 1.0, [100]);
        let failure = catch(|| ops::add(&ops::add(&x, &x), &ops::scale(2.0, &x)).item()).unwrap_err();
        assert_eq!(failure.of, "scale"); // the sum has found room
        assert!(matches!(failure.error, cuda::Error::OutOfMemory { asked: 400, .. }), "{failure}");
        assert_eq!(catch(|| ops::sum(&x).item()), Ok(100.0));
    }

    #[test]
    #[should_panic(expected = "scale: out of memory on the interpreter: asked for 400 bytes")]
    fn a_failure_that_nobody_awaits_is_a_panic_with_its_words() {
        let x = Tensor::full_on(&small_gpu(), 1.0, [100]);
        assert_eq!(catch(|| 1), Ok(1), "the one before this is over");
        let _ = (ops::scale(1.0, &x), ops::scale(1.0, &x));
    }

    #[test]
    fn other_panics_go_through() {
        let outcome = std::panic::catch_unwind(|| catch(|| resume_unwind(Box::new("mine"))));
        let payload = outcome.map(|_: Result<(), Failure>| ()).unwrap_err();
        assert_eq!(payload.downcast_ref::<&str>(), Some(&"mine"));
        assert!(!AWAITED.get());
    }
}
