//! Global memory: allocations with their bounds, and which of their bytes were ever written.

use crate::error::{Error, Result};
use crate::module::Module;
use std::collections::HashMap;

/// Allocations begin at multiples of this, as those of the driver do; the gap after each is at least as large.
const ALIGNMENT: u64 = 256;

/// Address of the first allocation: an address that a driver might give, and far from zero.
const FIRST: u64 = 0x7f00_0000_0000;

/// A device's memory. Addresses are never given out twice, so that a freed one stays recognisable.
#[derive(Debug, Default)]
pub struct Memory {
    /// By address.
    allocations: Vec<Allocation>,
    /// Where each module's `.global` variables lie, by the module's number.
    modules: HashMap<u64, u64>,
    live_bytes: u64,
}

#[derive(Debug)]
struct Allocation {
    address: u64,
    bytes: usize,
    /// None once freed.
    data: Option<Box<Data>>,
}

#[derive(Debug)]
struct Data {
    bytes: Vec<u8>,
    written: Written,
}

/// One bit a byte: whether it was ever written.
#[derive(Debug, Clone, Default)]
pub(crate) struct Written(Vec<u64>);

impl Written {
    pub fn none(bytes: usize) -> Self {
        Self(vec![0; bytes.div_ceil(64)])
    }

    /// Sets or clears `bytes` bits from `at`.
    pub fn set(&mut self, at: usize, bytes: usize, written: bool) {
        let mut change = |word: usize, bits: u64| if written { self.0[word] |= bits } else { self.0[word] &= !bits };
        let (first, last) = (at / 64, (at + bytes) / 64);
        let (from_first, below_last) = (u64::MAX << (at % 64), (1 << ((at + bytes) % 64)) - 1);
        if first == last {
            if bytes > 0 {
                change(first, from_first & below_last);
            }
            return;
        }
        change(first, from_first);
        (first + 1..last).for_each(|word| change(word, u64::MAX));
        if below_last != 0 {
            change(last, below_last);
        }
    }

    /// The first of `bytes` bytes from `at` that was not written.
    pub fn first_unwritten(&self, at: usize, bytes: usize) -> Option<usize> {
        // Nearly all calls: a few aligned bytes, within one word.
        if at % 64 + bytes <= 64 {
            let missing = !(self.0[at / 64] >> (at % 64)).to_owned() & (u64::MAX >> (64 - bytes.max(1)));
            return (missing != 0 && bytes > 0).then(|| at + missing.trailing_zeros() as usize);
        }
        (at..at + bytes).find(|&i| self.0[i / 64] >> (i % 64) & 1 == 0)
    }
}

impl Memory {
    /// Empty.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes of all live allocations.
    pub fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    /// A new allocation, whose bytes count as never written. Of zero bytes: a valid address of which nothing may be
    /// accessed.
    pub fn alloc(&mut self, bytes: usize) -> u64 {
        let address = self
            .allocations
            .last()
            .map_or(FIRST, |last| (last.address + last.bytes as u64 + ALIGNMENT).next_multiple_of(ALIGNMENT));
        let data = Data { bytes: vec![0; bytes], written: Written::none(bytes) };
        self.allocations.push(Allocation { address, bytes, data: Some(Box::new(data)) });
        self.live_bytes += bytes as u64;
        address
    }

    /// Ends an allocation. Its address must be the one that `alloc` gave.
    pub fn free(&mut self, address: u64) -> Result<()> {
        let error = |what: String| Error::Host { access: "free", address, bytes: 0, what };
        let index = self.allocations.partition_point(|a| a.address <= address);
        let nearest = self.describe(address);
        let live = self.allocations[..index].last_mut().filter(|a| a.address == address && a.data.is_some());
        let allocation = live.ok_or_else(|| error(nearest))?;
        allocation.data = None;
        self.live_bytes -= allocation.bytes as u64;
        Ok(())
    }

    /// Host to device.
    pub fn write(&mut self, address: u64, from: &[u8]) -> Result<()> {
        let (index, at) = self.host("write", address, from.len())?;
        let data = self.data(index);
        data.bytes[at..][..from.len()].copy_from_slice(from);
        data.written.set(at, from.len(), true);
        Ok(())
    }

    /// Device to host. Bytes that were never written are an error.
    pub fn read(&self, address: u64, to: &mut [u8]) -> Result<()> {
        let (index, at) = self.host("read", address, to.len())?;
        if let Some(data) = &self.allocations[index].data {
            if let Some(i) = data.written.first_unwritten(at, to.len()) {
                let what = format!("byte {} of allocation {:#x} was never written", i, self.allocations[index].address);
                return Err(Error::Host { access: "read", address, bytes: to.len(), what });
            }
            to.copy_from_slice(&data.bytes[at..][..to.len()]);
        }
        Ok(())
    }

    /// Every one of `bytes` bytes becomes `byte`.
    pub fn fill(&mut self, address: u64, byte: u8, bytes: usize) -> Result<()> {
        let (index, at) = self.host("fill", address, bytes)?;
        let data = self.data(index);
        data.bytes[at..][..bytes].fill(byte);
        data.written.set(at, bytes, true);
        Ok(())
    }

    /// Device to device; what was never written stays so. The ranges must not overlap.
    pub fn copy(&mut self, to: u64, from: u64, bytes: usize) -> Result<()> {
        let (source, source_at) = self.host("copy", from, bytes)?;
        let (target, target_at) = self.host("copy", to, bytes)?;
        if source == target && source_at.abs_diff(target_at) < bytes {
            let what = format!("overlaps with {from:#x}, from which it copies");
            return Err(Error::Host { access: "copy", address: to, bytes, what });
        }
        let (piece, unwritten): (Vec<u8>, Vec<usize>) = {
            let data = self.data(source);
            let unwritten = (source_at..source_at + bytes).filter(|&i| data.written.first_unwritten(i, 1).is_some());
            let unwritten = unwritten.map(|i| i - source_at).collect();
            (data.bytes[source_at..][..bytes].to_vec(), unwritten)
        };
        let data = self.data(target);
        data.bytes[target_at..][..bytes].copy_from_slice(&piece);
        data.written.set(target_at, bytes, true);
        unwritten.into_iter().for_each(|i| data.written.set(target_at + i, 1, false));
        Ok(())
    }

    /// From here on the bytes count as never written: for an allocator above this one that gives memory out again.
    pub fn poison(&mut self, address: u64, bytes: usize) -> Result<()> {
        let (index, at) = self.host("poison", address, bytes)?;
        self.data(index).written.set(at, bytes, false);
        Ok(())
    }

    /// Address and size of a module's `.global` variable.
    pub fn variable(&mut self, module: &Module, name: &str) -> Option<(u64, usize)> {
        let (offset, bytes) = module.global_variable(name)?;
        Some((self.module_base(module) + offset, bytes))
    }

    /// Where the module's variables lie; they are made at its first launch.
    pub(crate) fn module_base(&mut self, module: &Module) -> u64 {
        if let Some(&base) = self.modules.get(&module.number()) {
            return base;
        }
        let initial = module.global_bytes();
        let base = self.alloc(initial.len());
        if let Some(data) = self.allocations.last_mut().and_then(|a| a.data.as_mut()) {
            data.bytes.copy_from_slice(initial);
            data.written.set(0, initial.len(), true);
        }
        self.modules.insert(module.number(), base);
        base
    }

    fn data(&mut self, index: usize) -> &mut Data {
        self.allocations[index].data.as_mut().expect("located allocations are live")
    }

    fn host(&self, access: &'static str, address: u64, bytes: usize) -> Result<(usize, usize)> {
        let found = self.locate(address, bytes, &mut usize::MAX.clone());
        found.ok_or_else(|| Error::Host { access, address, bytes, what: self.describe(address) })
    }

    /// The allocation that holds all of `bytes` bytes from `address`, and the offset in it. `last` is where the search
    /// begins.
    fn locate(&self, address: u64, bytes: usize, last: &mut usize) -> Option<(usize, usize)> {
        let within = |a: &Allocation| {
            let at = address.checked_sub(a.address)?;
            let fits = at <= a.bytes as u64 && bytes as u64 <= a.bytes as u64 - at;
            (fits && a.data.is_some()).then_some(at as usize)
        };
        if let Some(at) = self.allocations.get(*last).and_then(within) {
            return Some((*last, at));
        }
        let index = self.allocations.partition_point(|a| a.address <= address).checked_sub(1)?;
        let at = within(&self.allocations[index])?;
        *last = index;
        Some((index, at))
    }

    /// Where an address lies, in words.
    pub(crate) fn describe(&self, address: u64) -> String {
        let index = self.allocations.partition_point(|a| a.address <= address);
        let name = |a: &Allocation| {
            let state = if a.data.is_some() { "allocation" } else { "freed allocation" };
            format!("{state} {:#x} of {} bytes", a.address, a.bytes)
        };
        let before = self.allocations[..index].last();
        let after = self.allocations.get(index);
        match (before, after) {
            (Some(a), _) if address - a.address <= a.bytes as u64 => {
                format!("byte {} of {}", address - a.address, name(a))
            }
            (Some(a), after) => {
                let past = address - a.address - a.bytes as u64;
                match after.filter(|b| b.address - address < past) {
                    Some(b) => format!("{} bytes before {}", b.address - address, name(b)),
                    None => format!("{past} bytes past the end of {}", name(a)),
                }
            }
            (None, Some(b)) => format!("{} bytes before {}", b.address - address, name(b)),
            (None, None) => "nothing is allocated".to_string(),
        }
    }

    /// A thread's read of `bytes` (at most 16) bytes.
    pub(crate) fn load(&self, address: u64, bytes: u32, last: &mut usize) -> std::result::Result<[u8; 16], String> {
        let n = bytes as usize;
        let (index, at) = self.device("read", address, n, last)?;
        let mut value = [0; 16];
        if let Some(data) = &self.allocations[index].data {
            if let Some(i) = data.written.first_unwritten(at, n) {
                let place = self.describe(self.allocations[index].address + i as u64);
                return Err(format!("reads {bytes} bytes at {address:#x} of which one was never written: {place}"));
            }
            value[..n].copy_from_slice(&data.bytes[at..at + n]);
        }
        Ok(value)
    }

    /// A thread's write.
    pub(crate) fn store(&mut self, address: u64, from: &[u8], last: &mut usize) -> std::result::Result<(), String> {
        let (index, at) = self.device("write", address, from.len(), last)?;
        let data = self.data(index);
        data.bytes[at..at + from.len()].copy_from_slice(from);
        data.written.set(at, from.len(), true);
        Ok(())
    }

    fn device(
        &self,
        access: &str,
        address: u64,
        bytes: usize,
        last: &mut usize,
    ) -> std::result::Result<(usize, usize), String> {
        self.locate(address, bytes, last).ok_or_else(|| {
            format!("out-of-bounds {access} of {bytes} bytes at {address:#x}: {}", self.describe(address))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_bits_at_every_offset() {
        for at in 0..130 {
            for bytes in 0..70 {
                let mut written = Written::none(200);
                written.set(at, bytes, true);
                for i in 0..200 {
                    assert_eq!(
                        written.first_unwritten(i, 1).is_none(),
                        (at..at + bytes).contains(&i),
                        "{at} {bytes} {i}"
                    );
                }
                assert_eq!(written.first_unwritten(at, bytes), None);
                assert_eq!(written.first_unwritten(at, bytes + 1), Some(at + bytes));
                written.set(at, bytes, false);
                assert!((0..200).all(|i| written.first_unwritten(i, 1) == Some(i)));
            }
        }
    }

    #[test]
    fn host_accesses_are_checked() {
        let mut memory = Memory::new();
        let (a, b) = (memory.alloc(10), memory.alloc(300));
        assert_eq!((a % 256, b % 256, memory.live_bytes()), (0, 0, 310));
        memory.write(a + 2, &[1, 2, 3]).unwrap();
        let mut three = [0; 3];
        memory.read(a + 2, &mut three).unwrap();
        assert_eq!(three, [1, 2, 3]);
        let message = |e: Result<()>| e.unwrap_err().to_string();
        assert_eq!(
            message(memory.read(a + 1, &mut three)),
            format!("host read of 3 bytes at {:#x}: byte 1 of allocation {a:#x} was never written", a + 1)
        );
        let at = a + 8;
        assert_eq!(
            message(memory.write(at, &[0; 4])),
            format!("host write of 4 bytes at {at:#x}: byte 8 of allocation {a:#x} of 10 bytes")
        );
        memory.copy(b + 64, a, 5).unwrap();
        memory.read(b + 66, &mut three).unwrap();
        assert!(memory.read(b + 65, &mut three).is_err(), "a copy must carry over what was never written");
        memory.fill(b, 7, 300).unwrap();
        memory.poison(b + 5, 1).unwrap();
        assert!(memory.read(b + 4, &mut three).is_err() && memory.read(b + 6, &mut three).is_ok());
        memory.free(a).unwrap();
        assert_eq!(
            message(memory.free(a)),
            format!("host free of 0 bytes at {a:#x}: byte 0 of freed allocation {a:#x} of 10 bytes")
        );
        assert!(message(memory.free(b + 1)).ends_with(&format!("byte 1 of allocation {b:#x} of 300 bytes")));
        assert!(
            message(memory.fill(b + 310, 0, 1))
                .ends_with(&format!("10 bytes past the end of allocation {b:#x} of 300 bytes"))
        );
        assert_eq!(memory.live_bytes(), 300);
    }
}
