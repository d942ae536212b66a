//! A warp: 32 threads, each with its own program counter; those that stand at the same instruction run it together.

use super::access::Copies;
use super::block::State;
use super::{Launch, Outcome, Problem};
use crate::arithmetic::{LANES, Lanes, Map};
use crate::program::{Collective, Op, Register, Row, Slot, Special};

pub(super) struct Warp {
    number: u32,
    pub registers: Vec<Lanes>,
    /// Each lane's local memory, one after another.
    pub local: Vec<u8>,
    pub pcs: [u32; LANES],
    /// Lanes that are threads of the block.
    pub existing: u32,
    /// Lanes that can run.
    pub ready: u32,
    /// Lanes that wait for others of the warp, and the members that each named.
    at_collective: u32,
    members: [u32; LANES],
    /// Lanes that wait at a barrier of the block, and which.
    pub at_barrier: u32,
    barrier_ids: [u64; LANES],
    /// Counts `bar.warp.sync`.
    pub phase: u32,
    /// Each lane's `cp.async` under way.
    pub copies: Vec<Copies>,
}

/// Lanes whose bit is set.
pub(super) fn lanes(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lane = (mask != 0).then(|| mask.trailing_zeros() as usize);
        mask &= mask.wrapping_sub(1);
        lane
    })
}

/// How a group of lanes goes on.
enum Next {
    /// To the following instruction.
    Following,
    /// All of the group to this one.
    Jump(u32),
    /// The lanes have been told apart; their program counters are set.
    Apart,
}

impl Warp {
    pub fn new(launch: &Launch, number: u32, threads: u32) -> Self {
        let existing = if threads - number * 32 >= 32 { u32::MAX } else { (1 << (threads % 32)) - 1 };
        let kernel = launch.kernel;
        let mut warp = Self {
            number,
            registers: kernel.rows.iter().map(|_| [0; LANES]).collect(),
            // Local variables start as something that is not zero.
            local: vec![0xff; kernel.local_bytes as usize * LANES],
            pcs: [0; LANES],
            existing,
            ready: 0,
            at_collective: 0,
            members: [0; LANES],
            at_barrier: 0,
            barrier_ids: [0; LANES],
            phase: 0,
            copies: vec![Copies::default(); LANES],
        };
        for (row, registers) in kernel.rows.iter().zip(&mut warp.registers) {
            match *row {
                Row::Constant(value) => registers.fill(value),
                Row::GlobalVariable(offset) => registers.fill(launch.global_base + offset),
                Row::DynamicShared => registers.fill(kernel.dynamic_shared_at.into()),
                Row::Special(special) => *registers = launch.special(special, number, [0; 3]),
                // Registers start as anything; what a block leaves there is what the next one finds.
                Row::Register { mask } => registers.fill(0xa5a5_a5a5_a5a5_a5a5 & mask),
            }
        }
        warp
    }

    /// For the block at `index`.
    pub fn start(&mut self, launch: &Launch, index: [u32; 3]) {
        for (row, registers) in launch.kernel.rows.iter().zip(&mut self.registers) {
            if let Row::Special(special @ Special::Ctaid(_)) = *row {
                *registers = launch.special(special, self.number, index);
            }
        }
        self.pcs = [0; LANES];
        self.ready = self.existing;
        (self.at_collective, self.at_barrier) = (0, 0);
        self.copies.iter_mut().for_each(Copies::clear);
    }

    /// Its place in the block.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Lanes that have not ended.
    pub fn live(&self) -> u32 {
        self.ready | self.at_collective | self.at_barrier
    }

    pub fn is_at_barrier(&self, lane: u32, id: u64) -> bool {
        self.at_barrier >> lane & 1 != 0 && self.barrier_ids[lane as usize] == id
    }

    /// The members that a waiting lane named, or the barrier where it is.
    pub fn waits_for(&self, lane: u32) -> Result<u32, u64> {
        if self.at_collective >> lane & 1 != 0 {
            Ok(self.members[lane as usize])
        } else {
            Err(self.barrier_ids[lane as usize])
        }
    }

    /// Lanes that wait at the same instruction as `lane`, with the same members.
    pub fn waiting_with(&self, lane: u32) -> u32 {
        let l = lane as usize;
        let same = |&o: &usize| self.pcs[o] == self.pcs[l] && self.members[o] == self.members[l];
        lanes(self.at_collective).filter(same).fold(0, |m, o| m | 1 << o)
    }

    /// Lanes for which a predicate holds.
    pub fn holds(&self, slot: Slot, negated: bool) -> u32 {
        let row = &self.registers[slot as usize];
        let set = (0..LANES).fold(0, |m, l| m | ((row[l] & 1) as u32) << l);
        if negated { !set } else { set }
    }

    pub fn write(&mut self, to: Register, active: u32, value: &Lanes) {
        let row = &mut self.registers[to.slot as usize];
        if active == u32::MAX {
            for l in 0..LANES {
                row[l] = value[l] & to.mask;
            }
        } else {
            lanes(active).for_each(|l| row[l] = value[l] & to.mask);
        }
    }

    /// Runs lanes until `quantum` instructions are done or none is ready.
    pub fn run(&mut self, launch: &mut Launch, state: &mut State, mut quantum: u32) -> Outcome<()> {
        while self.ready != 0 && quantum > 0 {
            let group = self.choose(launch);
            self.run_group(launch, state, group, &mut quantum)?;
        }
        Ok(())
    }

    /// Lanes at one instruction. Usually those that are furthest behind, so that the warp comes together again; now and
    /// then others, or only some of them: nothing but the warp's barriers orders its threads.
    fn choose(&self, launch: &mut Launch) -> u32 {
        let behind = lanes(self.ready).map(|l| self.pcs[l]).min().unwrap_or(0);
        // All bits set: neither of the odd ways below.
        let dice = if launch.options.seed.is_some() { launch.random.next() } else { u64::MAX };
        let pc = if dice & 7 == 0 { self.pcs[launch.random.bit_of(self.ready) as usize] } else { behind };
        let group = lanes(self.ready).filter(|&l| self.pcs[l] == pc).fold(0, |m, l| m | 1 << l);
        let some = group & (dice >> 32) as u32;
        if dice & 0xf0 == 0 && some != 0 { some } else { group }
    }

    fn run_group(&mut self, launch: &mut Launch, state: &mut State, mut group: u32, quantum: &mut u32) -> Outcome<()> {
        let kernel = launch.kernel;
        let others = self.ready & !group;
        let mut pc = self.pcs[group.trailing_zeros() as usize];
        // Where it meets lanes that are ahead.
        let meeting = lanes(others).map(|l| self.pcs[l]).filter(|&p| p > pc).min().unwrap_or(u32::MAX);
        loop {
            let instruction = &kernel.code[pc as usize];
            let active = match instruction.guard {
                None => group,
                Some((slot, negated)) => group & self.holds(slot, negated),
            };
            launch.report.warp_instructions += 1;
            launch.report.thread_instructions += u64::from(active.count_ones());
            *quantum -= 1;
            let next = if active == 0 { Next::Following } else { self.step(launch, state, pc, group, active)? };
            match next {
                Next::Following => pc += 1,
                Next::Jump(target) => pc = target,
                Next::Apart => return Ok(()),
            }
            // A jump may pass lanes that wait to be met.
            let jumped = matches!(next, Next::Jump(_)) && others != 0;
            group &= self.ready;
            if *quantum == 0 || jumped || pc == meeting {
                lanes(group).for_each(|l| self.pcs[l] = pc);
                return Ok(());
            }
        }
    }

    /// One instruction, for the lanes of `active`; those of `group` that are not active skip it.
    fn step(&mut self, launch: &mut Launch, state: &mut State, pc: u32, group: u32, active: u32) -> Outcome<Next> {
        let instruction = &launch.kernel.code[pc as usize];
        let problem = |(lane, what): (usize, String)| Box::new(Problem { lane: lane as u32, pc, what });
        let r = |slot: Slot| slot as usize;
        match &instruction.op {
            Op::Map { map, to, args } => {
                let row = |i: usize| &self.registers[args[i] as usize];
                let value = match map {
                    Map::One(f) => f(row(0)),
                    Map::Two(f) => f(row(0), row(1)),
                    Map::Three(f) => f(row(0), row(1), row(2)),
                    Map::Four(f) => f(row(0), row(1), row(2), row(3)),
                };
                self.write(*to, active, &value);
            }
            Op::Load { to, bytes, signed, from } => {
                self.load(launch, state, active, to, *bytes, *signed, *from).map_err(problem)?;
            }
            Op::Store { from, bytes, to } => self.store(launch, state, active, from, *bytes, *to).map_err(problem)?,
            Op::Atomic { .. } => self.atomic(launch, state, active, &instruction.op).map_err(problem)?,
            Op::CopyAsync { bytes, source_bytes, to, from } => {
                self.copy_async(launch, state, active, *bytes, *source_bytes, *to, *from).map_err(problem)?;
            }
            Op::CopyCommit => lanes(active).for_each(|l| self.copies[l].commit()),
            Op::CopyWait { left } => self.copy_wait(state, active, *left).map_err(problem)?,
            Op::ActiveMask { to } => self.write(*to, active, &[active.into(); LANES]),
            Op::Clock { to } => self.write(*to, active, &[launch.report.warp_instructions; LANES]),
            Op::Nothing => {}
            Op::Trap => return Err(problem((active.trailing_zeros() as usize, "trap".to_string()))),
            Op::Branch { target } => {
                if active == group {
                    return Ok(Next::Jump(*target));
                }
                lanes(group & !active).for_each(|l| self.pcs[l] = pc + 1);
                lanes(active).for_each(|l| self.pcs[l] = *target);
                return Ok(Next::Apart);
            }
            Op::BranchIndexed { targets, index } => {
                lanes(group & !active).for_each(|l| self.pcs[l] = pc + 1);
                for l in lanes(active) {
                    let i = self.registers[r(*index)][l] as u32 as usize;
                    let what = || format!("branch {i} of a table of {}", targets.len());
                    self.pcs[l] = *targets.get(i).ok_or_else(|| problem((l, what())))?;
                }
                return Ok(Next::Apart);
            }
            Op::Exit => {
                lanes(active).for_each(|l| self.pcs[l] = pc);
                self.ready &= !active;
                if active == group {
                    return Ok(Next::Apart);
                }
            }
            Op::Barrier { id, threads, .. } => {
                let first = active.trailing_zeros() as usize;
                let id = self.uniform(*id, active).map_err(problem)?;
                let threads = threads.map(|t| self.uniform(t, active)).transpose().map_err(problem)?;
                state.arrive(id, threads, active.count_ones()).map_err(|what| problem((first, what)))?;
                lanes(group).for_each(|l| self.pcs[l] = pc + u32::from(active >> l & 1 == 0));
                lanes(active).for_each(|l| self.barrier_ids[l] = id);
                self.ready &= !active;
                self.at_barrier |= active;
                return Ok(Next::Apart);
            }
            Op::BarrierArrive { id, threads } => {
                let first = active.trailing_zeros() as usize;
                let (id, threads) =
                    (self.uniform(*id, active).map_err(problem)?, self.uniform(*threads, active).map_err(problem)?);
                state.arrive(id, Some(threads), active.count_ones()).map_err(|what| problem((first, what)))?;
            }
            Op::Collective { members, op } => return self.arrive(launch, state, pc, group, active, *members, op),
        }
        Ok(Next::Following)
    }

    /// The value of a register that must be the same in all lanes.
    fn uniform(&self, slot: Slot, active: u32) -> Result<u64, (usize, String)> {
        let row = &self.registers[slot as usize];
        let value = row[active.trailing_zeros() as usize];
        match lanes(active).find(|&l| row[l] != value) {
            Some(l) => Err((l, format!("threads of a warp name different barriers or counts: {value} and {}", row[l]))),
            None => Ok(value),
        }
    }

    /// Lanes come to an operation of the warp; it happens once all members that they name are there.
    #[expect(clippy::too_many_arguments, reason = "a step of the loop above")]
    fn arrive(
        &mut self,
        launch: &mut Launch,
        state: &mut State,
        pc: u32,
        group: u32,
        active: u32,
        members: Slot,
        op: &Collective,
    ) -> Outcome<Next> {
        let problem = |(lane, what): (usize, String)| Box::new(Problem { lane: lane as u32, pc, what });
        let named = |warp: &Self, l: usize| warp.registers[members as usize][l] as u32;
        let mut together = true;
        for l in lanes(active) {
            let mask = named(self, l);
            together &= mask == active;
            if mask >> l & 1 == 0 {
                return Err(problem((l, format!("lane {l} is not in its own member mask {mask:#010x}"))));
            }
            if let Some(gone) = lanes(mask & !self.live()).next() {
                let how = if self.existing >> gone & 1 == 0 {
                    "is no thread of the block".to_string()
                } else {
                    let line = launch.kernel.code[self.pcs[gone] as usize].line;
                    format!("has ended at line {line} `{}`", launch.module.line(line))
                };
                return Err(problem((l, format!("the member mask {mask:#010x} names lane {gone}, which {how}"))));
            }
        }
        if together && active == group {
            self.collective(launch, state, active, op).map_err(problem)?;
            return Ok(Next::Following);
        }
        lanes(group).for_each(|l| self.pcs[l] = pc + u32::from(active >> l & 1 == 0));
        lanes(active).for_each(|l| self.members[l] = named(self, l));
        self.ready &= !active;
        self.at_collective |= active;
        for l in lanes(active) {
            if self.at_collective >> l & 1 == 0 {
                continue;
            }
            let here = self.waiting_with(l as u32);
            if here == self.members[l] {
                self.collective(launch, state, here, op).map_err(problem)?;
                lanes(here).for_each(|l| self.pcs[l] = pc + 1);
                self.at_collective &= !here;
                self.ready |= here;
            }
        }
        Ok(Next::Apart)
    }
}

impl Launch<'_> {
    fn special(&self, special: Special, warp: u32, ctaid: [u32; 3]) -> Lanes {
        std::array::from_fn(|lane| {
            let lane = lane as u32;
            let thread = self.thread(warp * 32 + lane);
            let less = (1u32 << lane) - 1;
            u64::from(match special {
                Special::Tid(axis) => thread[axis as usize],
                Special::Ntid(axis) => self.block[axis as usize],
                Special::Ctaid(axis) => ctaid[axis as usize],
                Special::Nctaid(axis) => self.grid[axis as usize],
                Special::LaneId => lane,
                Special::WarpId => warp,
                Special::NWarpId => self.block.iter().product::<u32>().div_ceil(32),
                Special::LaneMaskEqual => 1 << lane,
                Special::LaneMaskLess => less,
                Special::LaneMaskLessEqual => less | 1 << lane,
                Special::LaneMaskGreater => !(less | 1 << lane),
                Special::LaneMaskGreaterEqual => !less,
                Special::DynamicSharedSize => self.dynamic_shared,
                Special::TotalSharedSize => self.shared_bytes,
            })
        })
    }
}
