//! Working memory of kernels: kept by each thread and used again, so that a call in steady state allocates nothing.

use std::cell::RefCell;

thread_local! {
    static FREE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Alignment in elements: one cache line of 64 bytes, which is also one AVX-512 vector.
const LINE: usize = 16;

/// Calls `f` with `len` elements of stale but initialised memory, aligned to 64 bytes. Calls nest.
pub(crate) fn with<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut buffer = FREE.with(|free| free.borrow_mut().pop()).unwrap_or_default();
    if buffer.len() < len + LINE {
        buffer.resize(len + LINE, 0.0);
    }
    let skip = buffer.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
    let result = f(&mut buffer[skip..skip + len]);
    FREE.with(|free| free.borrow_mut().push(buffer));
    result
}
