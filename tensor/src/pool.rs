//! Memory of CPU tensors and of inference's weights and caches: blocks that return to a pool and are used again.
//!
//! A training step asks for the same sizes in the same order as the step before, so after the first step no memory is
//! taken from the system ([`Stats::fresh`] stands still). Large blocks lie in huge pages, where the system has them.
//!
//! A block from the pool is initialised but stale. [`set_poison`] fills every block with NaN before it is handed out,
//! so that a kernel that reads what it should have written shows; tests turn it on.

use bytemuck::{Pod, Zeroable};
use memmap2::MmapMut;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// One cache line: the granularity and the alignment of blocks.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u32; 16]);

const LINE: usize = size_of::<Line>();

/// Blocks from this size on are mapped and advised to use huge pages. Below it they cannot fill one.
const MAPPED_FROM: usize = HUGE_PAGE;

/// Size of a huge page on x86-64 and (usually) aarch64.
const HUGE_PAGE: usize = 2 << 20;

/// The blocks that wait, by capacity.
type Free = HashMap<usize, Vec<Memory>>;

static FREE: Mutex<Option<Free>> = Mutex::new(None);
static POISON: AtomicBool = AtomicBool::new(cfg!(test)); // the tests of this crate all run poisoned
static FRESH: AtomicU64 = AtomicU64::new(0);
static FRESH_BYTES: AtomicU64 = AtomicU64::new(0);
static LIVE_BYTES: AtomicU64 = AtomicU64::new(0);
static PEAK_BYTES: AtomicU64 = AtomicU64::new(0);

/// What the pool has done since the program began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Blocks taken from the system.
    pub fresh: u64,
    /// Bytes taken from the system, in total.
    pub fresh_bytes: u64,
    /// Bytes of the blocks in use now.
    pub live_bytes: u64,
    /// The most bytes that were in use at once, since the program began or since [`trim`].
    pub peak_bytes: u64,
}

/// What the pool has done so far.
pub fn stats() -> Stats {
    Stats {
        fresh: FRESH.load(Ordering::Relaxed),
        fresh_bytes: FRESH_BYTES.load(Ordering::Relaxed),
        live_bytes: LIVE_BYTES.load(Ordering::Relaxed),
        peak_bytes: PEAK_BYTES.load(Ordering::Relaxed),
    }
}

/// Whether blocks are filled with NaN before they are handed out. Off by default: it costs a pass over the memory.
pub fn set_poison(on: bool) {
    POISON.store(on, Ordering::Relaxed);
}

/// Gives the blocks that wait back to the system, and counts [`Stats::peak_bytes`] anew from what is in use now. Between two
/// tasks that have no sizes in common.
pub fn trim() {
    *lock_free() = None;
    PEAK_BYTES.store(LIVE_BYTES.load(Ordering::Relaxed), Ordering::Relaxed);
}

/// The list is whole between any two of its operations, so a panic elsewhere while it was held loses nothing.
fn lock_free() -> MutexGuard<'static, Option<Free>> {
    FREE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where the bytes lie.
enum Memory {
    /// Small blocks.
    Lines(Vec<Line>),
    /// Large blocks; the slice begins at the first huge-page boundary.
    Mapped { map: MmapMut, start: usize },
}

impl Memory {
    fn new(capacity: usize) -> Memory {
        if capacity < MAPPED_FROM {
            return Memory::Lines(vec![Line::zeroed(); capacity / LINE]);
        }
        let map = MmapMut::map_anon(capacity + HUGE_PAGE)
            .unwrap_or_else(|e| panic!("out of memory: a tensor asked for {capacity} bytes: {e}"));
        // Without huge pages a single thread reads at 30 instead of 43 GB/s (Zen 5). Advice: a refusal changes no result.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let start = map.as_ptr().align_offset(HUGE_PAGE);
        Memory::Mapped { map, start }
    }

    fn bytes(&self, capacity: usize) -> &[u8] {
        match self {
            Memory::Lines(lines) => bytemuck::cast_slice(lines),
            Memory::Mapped { map, start } => &map[*start..*start + capacity],
        }
    }

    fn bytes_mut(&mut self, capacity: usize) -> &mut [u8] {
        match self {
            Memory::Lines(lines) => bytemuck::cast_slice_mut(lines),
            Memory::Mapped { map, start } => &mut map[*start..*start + capacity],
        }
    }
}

/// A piece of memory, aligned to 64 bytes, that returns to the pool when dropped.
pub struct Block {
    /// `None` only while dropping.
    memory: Option<Memory>,
    capacity: usize,
}

impl Block {
    /// A block of at least `bytes` bytes, stale but initialised. Panics when the system has no memory left.
    pub fn new(bytes: usize) -> Block {
        let capacity = size_class(bytes);
        let reused = lock_free().get_or_insert_default().get_mut(&capacity).and_then(Vec::pop);
        let memory = reused.unwrap_or_else(|| {
            FRESH.fetch_add(1, Ordering::Relaxed);
            FRESH_BYTES.fetch_add(capacity as u64, Ordering::Relaxed);
            Memory::new(capacity)
        });
        let live = LIVE_BYTES.fetch_add(capacity as u64, Ordering::Relaxed) + capacity as u64;
        PEAK_BYTES.fetch_max(live, Ordering::Relaxed);
        let mut block = Block { memory: Some(memory), capacity };
        if POISON.load(Ordering::Relaxed) {
            block.elements_mut::<u32>().fill(u32::MAX); // a NaN as f32, and no valid token as u32
        }
        block
    }

    fn memory(&self) -> &Memory {
        self.memory.as_ref().expect("a block has memory until it is dropped")
    }

    /// All of it (a little more than was asked for, see [`Block::new`]), as elements.
    pub fn elements<T: Pod>(&self) -> &[T] {
        bytemuck::cast_slice(self.memory().bytes(self.capacity))
    }

    /// All of it, as elements.
    pub fn elements_mut<T: Pod>(&mut self) -> &mut [T] {
        let memory = self.memory.as_mut().expect("a block has memory until it is dropped");
        bytemuck::cast_slice_mut(memory.bytes_mut(self.capacity))
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        LIVE_BYTES.fetch_sub(self.capacity as u64, Ordering::Relaxed);
        if let Some(memory) = self.memory.take() {
            lock_free().get_or_insert_default().entry(self.capacity).or_default().push(memory);
        }
    }
}

/// Rounds up to a line, and above 4 KiB to one of four steps for each power of two: at most a quarter is wasted, and sizes
/// that differ a little share blocks.
fn size_class(bytes: usize) -> usize {
    let bytes = bytes.max(1).next_multiple_of(LINE);
    if bytes <= 4096 {
        return bytes;
    }
    let step = (bytes.next_power_of_two() / 8).max(LINE);
    bytes.next_multiple_of(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_classes_hold_what_is_asked_and_waste_a_quarter_at_most() {
        for bytes in (0..100_000).chain([1 << 20, (1 << 20) + 1, 123_456_789]) {
            let class = size_class(bytes);
            assert!(class >= bytes && class.is_multiple_of(LINE), "{bytes} -> {class}");
            assert!(bytes < 4096 || class <= bytes + bytes / 4, "{bytes} -> {class}");
        }
    }

    fn waiting(bytes: usize) -> usize {
        lock_free().get_or_insert_default().get(&size_class(bytes)).map_or(0, Vec::len)
    }

    #[test]
    fn blocks_are_aligned_hold_what_is_asked_and_come_back() {
        // Sizes that no other test of this crate has, since the pool is one for all threads.
        for bytes in [77 * 64, 77_777_777, (3 << 20) + 1] {
            let mut block = Block::new(bytes);
            assert_eq!(block.elements::<u8>().as_ptr() as usize % LINE, 0);
            assert!(block.elements::<u8>().len() >= bytes);
            block.elements_mut::<u8>().fill(1);
            assert_eq!(waiting(bytes), 0);
            drop(block);
            assert_eq!(waiting(bytes), 1);
            let again = Block::new(bytes);
            assert_eq!(waiting(bytes), 0, "the second block is the first one again");
            drop(again);
        }
    }

    #[test]
    fn a_recycled_block_is_poisoned() {
        let bytes = 79 * 64;
        for _ in 0..2 {
            let mut block = Block::new(bytes);
            assert!(block.elements::<f32>().iter().all(|x| x.is_nan()));
            block.elements_mut::<f32>().fill(1.0);
        }
    }

    #[test]
    fn a_panic_while_the_list_is_held_loses_nothing() {
        let bytes = 81 * 64;
        drop(Block::new(bytes));
        let panicked = std::thread::spawn(|| {
            let _held = FREE.lock();
            std::panic::resume_unwind(Box::new(())); // silent, unlike panic!
        });
        assert!(panicked.join().is_err());
        assert_eq!(waiting(bytes), 1);
        drop(Block::new(bytes));
        assert_eq!(waiting(bytes), 1);
    }

    #[test]
    fn threads_never_hold_the_same_block() {
        std::thread::scope(|scope| {
            for thread in 0..8u32 {
                scope.spawn(move || {
                    for round in 0..300 {
                        let mut held: Vec<Block> = (0..4).map(|i| Block::new(83 * 64 + i % 2 * 4096)).collect();
                        for (i, block) in held.iter_mut().enumerate() {
                            block.elements_mut::<u32>().fill(thread << 16 | round << 4 | i as u32);
                        }
                        std::thread::yield_now();
                        for (i, block) in held.iter().enumerate() {
                            let mark = thread << 16 | round << 4 | i as u32;
                            assert!(block.elements::<u32>().iter().all(|&x| x == mark));
                        }
                    }
                });
            }
        });
    }
}
