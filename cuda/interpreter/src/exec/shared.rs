//! A block's shared memory: bounds, bytes never written, and races.

use crate::memory::Written;

pub(super) struct Shared {
    bytes: Vec<u8>,
    written: Written,
    races: Option<Races>,
}

/// Who touches shared memory, and in which stretch between barriers: the block's and its warp's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Accessor {
    pub thread: u16,
    pub block_phase: u32,
    /// Counts `bar.warp.sync` of its warp.
    pub warp_phase: u32,
    /// Which of the four bytes of a word.
    pub bytes: u8,
}

impl Accessor {
    /// Whether nothing orders the two.
    fn races_with(self, other: Self) -> bool {
        let same_warp = self.thread / 32 == other.thread / 32;
        self.thread != other.thread
            && self.bytes & other.bytes != 0
            && self.block_phase == other.block_phase
            && !(same_warp && self.warp_phase != other.warp_phase)
    }
}

/// For each word of four bytes who wrote it last and who read it last. One reader is remembered, and a second beside
/// it: of two threads that read, a writer races with at least one. Of threads that share a word without sharing a byte
/// the last counts.
struct Races {
    writers: Vec<Accessor>,
    readers: Vec<[Accessor; 2]>,
}

impl Shared {
    pub fn new(bytes: u32, races: bool) -> Self {
        let (n, words) = (bytes as usize, bytes.div_ceil(4) as usize);
        let races = races.then(|| Races {
            writers: vec![Accessor::default(); words],
            readers: vec![[Accessor::default(); 2]; words],
        });
        Self { bytes: vec![0; n], written: Written::none(n), races }
    }

    /// For the next block: nothing is written. Phases begin at 1, so that phase 0 is nobody.
    pub fn restart(&mut self) {
        self.written.set(0, self.bytes.len(), false);
        if let Some(races) = &mut self.races {
            races.writers.fill(Accessor::default());
            races.readers.fill([Accessor::default(); 2]);
        }
    }

    fn within(&self, access: &str, address: u64, bytes: usize) -> Result<usize, String> {
        let size = self.bytes.len() as u64;
        if address > size || bytes as u64 > size - address {
            return Err(format!(
                "out-of-bounds {access} of {bytes} bytes at shared {address:#x}; the block has {size} bytes"
            ));
        }
        Ok(address as usize)
    }

    pub fn load(&mut self, address: u64, bytes: u32, who: Accessor) -> Result<[u8; 16], String> {
        let n = bytes as usize;
        let at = self.within("read", address, n)?;
        if let Some(i) = self.written.first_unwritten(at, n) {
            return Err(format!(
                "reads {bytes} bytes at shared {address:#x} of which byte {i:#x} was never written, or is still being copied"
            ));
        }
        if let Some(races) = &mut self.races {
            for (word, who) in words(at, n, who) {
                if races.writers[word].races_with(who) {
                    return Err(race("reads", at, races.writers[word], "wrote"));
                }
                let [first, second] = &mut races.readers[word];
                if first.thread != who.thread {
                    *second = *first;
                }
                *first = who;
            }
        }
        let mut value = [0; 16];
        value[..n].copy_from_slice(&self.bytes[at..at + n]);
        Ok(value)
    }

    /// Two threads that write the same value are no race: nobody can tell their order.
    pub fn store(&mut self, address: u64, from: &[u8], who: Accessor) -> Result<(), String> {
        let at = self.within("write", address, from.len())?;
        if let Some(races) = &mut self.races {
            let same = self.bytes[at..at + from.len()] == *from;
            for (word, who) in words(at, from.len(), who) {
                let writer = races.writers[word];
                if writer.races_with(who) && !same {
                    return Err(race("writes", at, writer, "wrote"));
                }
                if let Some(reader) = races.readers[word].into_iter().find(|r| r.races_with(who)) {
                    return Err(race("writes", at, reader, "read"));
                }
                races.writers[word] = who;
            }
        }
        self.bytes[at..at + from.len()].copy_from_slice(from);
        self.written.set(at, from.len(), true);
        Ok(())
    }

    /// A copy into these bytes is under way: who reads them now gets anything.
    pub fn poison(&mut self, address: u64, bytes: usize, who: Accessor) -> Result<(), String> {
        let at = self.within("write", address, bytes)?;
        if let Some(races) = &mut self.races {
            for (word, who) in words(at, bytes, who) {
                let [writer, first, second] = [races.writers[word], races.readers[word][0], races.readers[word][1]];
                if let Some(other) = [writer, first, second].into_iter().find(|o| o.races_with(who)) {
                    return Err(race("writes", at, other, "used"));
                }
                races.writers[word] = who;
            }
        }
        self.written.set(at, bytes, false);
        Ok(())
    }

    /// A read and a write in one, which races with nobody.
    pub fn atomic(&mut self, address: u64, bytes: u32, f: impl FnOnce(u64) -> u64) -> Result<u64, String> {
        let n = bytes as usize;
        let at = self.within("atomic access", address, n)?;
        if let Some(i) = self.written.first_unwritten(at, n) {
            return Err(format!("an atomic operation on shared {address:#x} of which byte {i:#x} was never written"));
        }
        let mut old = [0; 8];
        old[..n].copy_from_slice(&self.bytes[at..at + n]);
        let old = u64::from_le_bytes(old);
        self.bytes[at..at + n].copy_from_slice(&f(old).to_le_bytes()[..n]);
        Ok(old)
    }
}

/// The words of an access, each with who touches which of its bytes.
fn words(at: usize, bytes: usize, who: Accessor) -> impl Iterator<Item = (usize, Accessor)> {
    (at / 4..(at + bytes).div_ceil(4)).map(move |word| {
        let (first, end) = (at.max(4 * word) - 4 * word, (at + bytes).min(4 * word + 4) - 4 * word);
        (word, Accessor { bytes: ((1 << end) - (1 << first)) as u8, ..who })
    })
}

fn race(does: &str, address: usize, other: Accessor, did: &str) -> String {
    format!(
        "race: {does} shared {address:#x}, which thread {} of the block {did} with no barrier between",
        other.thread
    )
}

/// How often a warp's access of shared memory has to be repeated. The device serves 128 bytes at a time: 32 threads
/// with 4 bytes, 16 with 8, 8 with 16; of these it repeats what wants different words of the same bank (32 banks of 4
/// bytes).
pub(super) fn bank_conflicts(addresses: &[u64], bytes: u32) -> u64 {
    let at_a_time = (128 / bytes.max(4)) as usize;
    addresses.chunks(at_a_time).map(|phase| phase_conflicts(phase, bytes.div_ceil(4))).sum()
}

fn phase_conflicts(addresses: &[u64], words: u32) -> u64 {
    let word_of = |a: u64, i: u32| (a / 4) as u32 + i;
    let mut first = [u32::MAX; 32];
    let all = || addresses.iter().flat_map(|&a| (0..words).map(move |i| word_of(a, i)));
    let clash = all().any(|word| {
        let bank = &mut first[word as usize % 32];
        let clash = *bank != u32::MAX && *bank != word;
        *bank = word;
        clash
    });
    if !clash {
        return 0;
    }
    let mut distinct: Vec<u32> = all().collect();
    distinct.sort_unstable();
    distinct.dedup();
    let mut banks = [0u64; 32];
    distinct.iter().for_each(|&word| banks[word as usize % 32] += 1);
    banks.into_iter().max().unwrap_or(1) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn banks() {
        let row = |stride: u64, bytes| bank_conflicts(&(0..32).map(|l| l * stride).collect::<Vec<_>>(), bytes);
        assert_eq!([row(4, 4), row(8, 8), row(16, 16), row(0, 4), row(2, 2)], [0; 5]);
        assert_eq!([row(8, 4), row(128, 4), row(33 * 4, 4)], [1, 31, 0]);
        // Eight rows of 16 bytes: 80 apart they meet no bank twice, 128 apart all the same four.
        assert_eq!([row(80, 16), row(128, 16)], [0, 4 * 7]);
    }
}
