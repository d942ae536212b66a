//! Memory as threads use it.

use super::Launch;
use super::block::State;
use super::shared::{Accessor, bank_conflicts};
use super::warp::{Warp, lanes};
use crate::parse::Space;
use crate::program::{Address, AtomicOp, CONST_WINDOW, LOCAL_WINDOW, Op, Register, SHARED_WINDOW, Slot};
use crate::types::Type;
use std::collections::VecDeque;

/// A problem of a lane.
pub(super) type LaneResult<T> = Result<T, (usize, String)>;

/// A thread's `cp.async` under way. What it copies arrives in shared memory when the thread waits for it, not before:
/// who reads earlier finds bytes that were never written.
#[derive(Debug, Clone, Default)]
pub(super) struct Copies {
    under_way: VecDeque<CopyUnderWay>,
    /// Groups that were committed.
    committed: u32,
}

#[derive(Debug, Clone)]
struct CopyUnderWay {
    group: u32,
    to: u64,
    bytes: u32,
    data: [u8; 16],
}

impl Copies {
    pub fn clear(&mut self) {
        self.under_way.clear();
        self.committed = 0;
    }

    pub fn commit(&mut self) {
        self.committed += 1;
    }
}

/// The sectors of 32 bytes and the banks that a warp's access touches.
#[derive(Default)]
struct Touched {
    global: Vec<u64>,
    shared: Vec<u64>,
}

impl Touched {
    /// A thread's access lies within one sector.
    fn global(&mut self, address: u64) {
        let sector = address / 32;
        if self.global.last() != Some(&sector) && !self.global.contains(&sector) {
            self.global.push(sector);
        }
    }
}

fn address_of(base: u64, at: Address) -> (Space, u64) {
    let address = base.wrapping_add_signed(at.offset) & at.mask;
    match at.space {
        Space::Generic if address >= CONST_WINDOW => (Space::Const, address - CONST_WINDOW),
        Space::Generic if address >= LOCAL_WINDOW => (Space::Local, address - LOCAL_WINDOW),
        Space::Generic if address >= SHARED_WINDOW => (Space::Shared, address - SHARED_WINDOW),
        Space::Generic => (Space::Global, address),
        space => (space, address),
    }
}

fn aligned(address: u64, bytes: u32) -> Result<(), String> {
    if address.is_multiple_of(bytes.into()) {
        Ok(())
    } else {
        Err(format!("misaligned address {address:#x}: an access of {bytes} bytes wants a multiple of {bytes}"))
    }
}

/// A piece of memory that is simply there: constants, parameters, a thread's local memory.
fn slice_range(what: &str, size: usize, address: u64, bytes: u32) -> Result<std::ops::Range<usize>, String> {
    match usize::try_from(address).ok().and_then(|a| a.checked_add(bytes as usize)).filter(|&end| end <= size) {
        Some(end) => Ok(end - bytes as usize..end),
        None => Err(format!("out-of-bounds access of {bytes} bytes at {what} {address:#x}; there are {size} bytes")),
    }
}

impl Warp {
    pub(super) fn accessor(&self, state: &State, lane: usize) -> Accessor {
        let thread = (self.number() * 32 + lane as u32) as u16;
        Accessor { thread, block_phase: state.phase, warp_phase: self.phase, bytes: 0 }
    }

    fn local_range(&self, lane: usize, address: u64, bytes: u32) -> Result<std::ops::Range<usize>, String> {
        let size = self.local.len() / 32;
        let range = slice_range("local", size, address, bytes)?;
        Ok(lane * size + range.start..lane * size + range.end)
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one instruction")]
    pub(super) fn load(
        &mut self,
        launch: &mut Launch,
        state: &mut State,
        active: u32,
        to: &[Register],
        bytes: u32,
        signed: bool,
        from: Address,
    ) -> LaneResult<()> {
        let bases = self.registers[from.base as usize];
        let total = bytes * to.len() as u32;
        let mut touched = Touched::default();
        for lane in lanes(active) {
            let (space, address) = address_of(bases[lane], from);
            let value =
                self.read(launch, state, lane, space, address, total, &mut touched).map_err(|what| (lane, what))?;
            let value = u128::from_le_bytes(value);
            for (i, register) in to.iter().enumerate() {
                let bits = 64 - 8 * bytes;
                let part = ((value >> (8 * bytes * i as u32)) as u64) << bits;
                let part = if signed { (part as i64 >> bits) as u64 } else { part >> bits };
                self.registers[register.slot as usize][lane] = part & register.mask;
            }
        }
        launch.report.global_read_sectors += touched.global.len() as u64;
        launch.report.bank_conflicts += bank_conflicts(&touched.shared, total);
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "where, and what to count")]
    fn read(
        &self,
        launch: &mut Launch,
        state: &mut State,
        lane: usize,
        space: Space,
        address: u64,
        bytes: u32,
        touched: &mut Touched,
    ) -> Result<[u8; 16], String> {
        aligned(address, bytes)?;
        let from_slice = |slice: &[u8], range: std::ops::Range<usize>| {
            let mut value = [0; 16];
            value[..range.len()].copy_from_slice(&slice[range]);
            value
        };
        match space {
            Space::Global | Space::Generic => {
                touched.global(address);
                launch.report.global_read_bytes += u64::from(bytes);
                launch.memory.load(address, bytes, &mut launch.last_allocation)
            }
            Space::Shared => {
                touched.shared.push(address);
                launch.report.shared_read_bytes += u64::from(bytes);
                state.shared.load(address, bytes, self.accessor(state, lane))
            }
            Space::Local => Ok(from_slice(&self.local, self.local_range(lane, address, bytes)?)),
            Space::Const => {
                let constants = launch.module.constants();
                Ok(from_slice(constants, slice_range("constant", constants.len(), address, bytes)?))
            }
            Space::Param => {
                Ok(from_slice(launch.params, slice_range("parameter", launch.params.len(), address, bytes)?))
            }
        }
    }

    pub(super) fn store(
        &mut self,
        launch: &mut Launch,
        state: &mut State,
        active: u32,
        from: &[Slot],
        bytes: u32,
        to: Address,
    ) -> LaneResult<()> {
        let total = bytes * from.len() as u32;
        let mut touched = Touched::default();
        for lane in lanes(active) {
            let mut value = [0; 16];
            for (part, &slot) in value.chunks_exact_mut(bytes as usize).zip(from) {
                part.copy_from_slice(&self.registers[slot as usize][lane].to_le_bytes()[..bytes as usize]);
            }
            let (space, address) = address_of(self.registers[to.base as usize][lane], to);
            let value = &value[..total as usize];
            self.write_memory(launch, state, lane, space, address, value, &mut touched).map_err(|what| (lane, what))?;
        }
        launch.report.global_written_sectors += touched.global.len() as u64;
        launch.report.bank_conflicts += bank_conflicts(&touched.shared, total);
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "where, and what to count")]
    fn write_memory(
        &mut self,
        launch: &mut Launch,
        state: &mut State,
        lane: usize,
        space: Space,
        address: u64,
        value: &[u8],
        touched: &mut Touched,
    ) -> Result<(), String> {
        let bytes = value.len() as u32;
        aligned(address, bytes)?;
        match space {
            Space::Global | Space::Generic => {
                touched.global(address);
                launch.report.global_written_bytes += u64::from(bytes);
                launch.memory.store(address, value, &mut launch.last_allocation)
            }
            Space::Shared => {
                touched.shared.push(address);
                launch.report.shared_written_bytes += u64::from(bytes);
                let who = self.accessor(state, lane);
                state.shared.store(address, value, who)
            }
            Space::Local => {
                let range = self.local_range(lane, address, bytes)?;
                self.local[range].copy_from_slice(value);
                Ok(())
            }
            Space::Const | Space::Param => Err(format!("a store to {space:?} memory at {address:#x}")),
        }
    }

    /// Lanes take their turns in the order of their numbers rotated by chance: the device promises none.
    pub(super) fn atomic(&mut self, launch: &mut Launch, state: &mut State, active: u32, op: &Op) -> LaneResult<()> {
        let Op::Atomic { op, ty, to, at, operand, second } = op else { return Ok(()) };
        let bytes = ty.bytes();
        let start = launch.random.below(32);
        for lane in lanes(active.rotate_right(start)).map(|l| (l + start as usize) % 32) {
            let row = |slot: &Slot| self.registers[*slot as usize][lane] & ty.mask();
            let (b, c) = (row(operand), row(second));
            let (space, address) = address_of(self.registers[at.base as usize][lane], *at);
            launch.report.atomics += 1;
            let change = |old: u64| combine(*op, *ty, old, b, c) & ty.mask();
            let old = aligned(address, bytes).and_then(|()| match space {
                Space::Global => {
                    let last = &mut launch.last_allocation;
                    let old = u128::from_le_bytes(launch.memory.load(address, bytes, last)?) as u64;
                    launch.memory.store(address, &change(old).to_le_bytes()[..bytes as usize], last)?;
                    Ok(old)
                }
                Space::Shared => state.shared.atomic(address, bytes, change),
                _ => Err(format!("an atomic operation on {space:?} memory at {address:#x}")),
            });
            let old = old.map_err(|what| (lane, what))?;
            if let Some(to) = to {
                self.registers[to.slot as usize][lane] = old & to.mask;
            }
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one instruction")]
    pub(super) fn copy_async(
        &mut self,
        launch: &mut Launch,
        state: &mut State,
        active: u32,
        bytes: u32,
        source_bytes: Option<Slot>,
        to: Address,
        from: Address,
    ) -> LaneResult<()> {
        let mut touched = Touched::default();
        let mut targets = Vec::with_capacity(32);
        for lane in lanes(active) {
            let row = |slot: Slot| self.registers[slot as usize][lane];
            let ((_, target), (_, source)) = (address_of(row(to.base), to), address_of(row(from.base), from));
            let read = source_bytes.map_or(bytes, |slot| row(slot) as u32);
            let mut copy = || {
                if read > bytes {
                    return Err(format!("cp.async of {bytes} bytes is to read {read}"));
                }
                aligned(target, bytes)?;
                // Also where nothing is read: the device looks at the address.
                aligned(source, bytes)?;
                let mut data = [0; 16];
                if read > 0 {
                    touched.global(source);
                    data = launch.memory.load(source, read, &mut launch.last_allocation)?;
                }
                launch.report.global_read_bytes += u64::from(read);
                launch.report.shared_written_bytes += u64::from(bytes);
                state.shared.poison(target, bytes as usize, self.accessor(state, lane))?;
                Ok(data)
            };
            let data = copy().map_err(|what| (lane, what))?;
            targets.push(target);
            let copies = &mut self.copies[lane];
            copies.under_way.push_back(CopyUnderWay { group: copies.committed, to: target, bytes, data });
        }
        launch.report.global_read_sectors += touched.global.len() as u64;
        launch.report.bank_conflicts += bank_conflicts(&targets, bytes);
        Ok(())
    }

    /// What is waited for arrives.
    pub(super) fn copy_wait(&mut self, state: &mut State, active: u32, left: Option<u32>) -> LaneResult<()> {
        for lane in lanes(active) {
            let who = self.accessor(state, lane);
            let copies = &mut self.copies[lane];
            // wait_all waits for what was not committed, too.
            let below = left.map_or(u32::MAX, |left| copies.committed.saturating_sub(left));
            while let Some(copy) = copies.under_way.front().filter(|c| c.group < below) {
                let data = &copy.data[..copy.bytes as usize];
                state.shared.store(copy.to, data, who).map_err(|what| (lane, what))?;
                copies.under_way.pop_front();
            }
        }
        Ok(())
    }
}

fn combine(op: AtomicOp, ty: Type, old: u64, b: u64, c: u64) -> u64 {
    let signed = |x: u64| if ty.bytes() == 4 { x as i32 as i64 } else { x as i64 };
    match op {
        AtomicOp::Exchange => b,
        AtomicOp::CompareAndSwap => {
            if old == b {
                c
            } else {
                old
            }
        }
        // Atomics on f32 flush subnormals in global memory; the sums of tests have none.
        AtomicOp::Add => match ty {
            Type::F32 => (f32::from_bits(old as u32) + f32::from_bits(b as u32)).to_bits().into(),
            Type::F64 => (f64::from_bits(old) + f64::from_bits(b)).to_bits(),
            _ => old.wrapping_add(b),
        },
        AtomicOp::And => old & b,
        AtomicOp::Or => old | b,
        AtomicOp::Xor => old ^ b,
        AtomicOp::Min if ty.is_signed() => signed(old).min(signed(b)) as u64,
        AtomicOp::Max if ty.is_signed() => signed(old).max(signed(b)) as u64,
        AtomicOp::Min => old.min(b),
        AtomicOp::Max => old.max(b),
        AtomicOp::Increment => {
            if old >= b {
                0
            } else {
                old + 1
            }
        }
        AtomicOp::Decrement => {
            if old == 0 || old > b {
                b
            } else {
                old - 1
            }
        }
    }
}
