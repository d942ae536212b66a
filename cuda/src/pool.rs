//! Which blocks of device memory wait to be used again. Asking the driver costs a millisecond and stops the stream; a training step asks for
//! the same sizes as the step before.

use std::collections::HashMap;

/// Smallest block; addresses stay multiples of it.
const LEAST: usize = 512;
/// From here on, sizes are rounded up to multiples of it: the pages of the driver.
const PAGE: usize = 2 << 20;

/// The size of the block that serves a request: four steps for each power of two up to 2 MiB, so that sizes that differ a little share
/// blocks, and whole pages above, so that weights waste nothing.
pub(crate) fn size_class(bytes: usize) -> usize {
    match bytes {
        0..=LEAST => LEAST,
        _ if bytes >= PAGE => bytes.next_multiple_of(PAGE),
        _ => bytes.next_multiple_of((bytes.next_power_of_two() / 8).max(LEAST)),
    }
}

/// The free blocks, by size. Work on the stream that still uses a block comes before any work that uses it again.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    free: HashMap<usize, Vec<u64>>,
    stats: Stats,
}

/// Memory of a device, as this program uses it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Blocks taken from the driver since the beginning. In a steady state it stands still.
    pub fresh: u64,
    /// Bytes of the blocks in use.
    pub in_use: usize,
    /// The most bytes that were in use at once.
    pub peak: usize,
    /// Bytes of the blocks that wait.
    pub waiting: usize,
}

impl Pool {
    /// A block of exactly this class, if one waits.
    pub(crate) fn take(&mut self, class: usize) -> Option<u64> {
        let address = self.free.get_mut(&class)?.pop()?;
        self.stats.waiting -= class;
        self.count(class);
        Some(address)
    }

    /// A block has come from the driver.
    pub(crate) fn took_fresh(&mut self, class: usize) {
        self.stats.fresh += 1;
        self.count(class);
    }

    fn count(&mut self, class: usize) {
        self.stats.in_use += class;
        self.stats.peak = self.stats.peak.max(self.stats.in_use);
    }

    /// A block is no longer used, and waits to be used again if it is to be kept.
    pub(crate) fn put(&mut self, class: usize, address: u64, keep: bool) {
        self.stats.in_use -= class;
        if keep {
            self.stats.waiting += class;
            self.free.entry(class).or_default().push(address);
        }
    }

    /// All blocks that wait, to be freed.
    pub(crate) fn drain(&mut self) -> Vec<u64> {
        self.stats.waiting = 0;
        std::mem::take(&mut self.free).into_values().flatten().collect()
    }

    pub(crate) fn stats(&self) -> Stats {
        self.stats
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_classes_waste_a_quarter_at_most_and_keep_alignment() {
        for bytes in (0..70_000).chain([PAGE - 1, PAGE, PAGE + 1, 5 * PAGE + 3]) {
            let class = size_class(bytes);
            assert!(class >= bytes.max(LEAST) && class.is_multiple_of(LEAST), "{bytes}: {class}");
            assert!(
                class <= LEAST.max(bytes + bytes / 4 + LEAST).max(bytes.next_multiple_of(PAGE)),
                "{bytes}: {class}"
            );
            assert_eq!(size_class(class), class, "{bytes}");
        }
    }
}
