//! A block: its warps take turns; barriers and deadlocks are seen from here.

use super::shared::Shared;
use super::warp::{Warp, lanes};
use super::{Launch, Outcome, Problem, unflatten};
use crate::error::{Error, Result};
use crate::program::{BarrierReduce, Op};

/// Named barriers of a block.
const BARRIERS: usize = 16;

pub(super) struct Block {
    index: [u32; 3],
    warps: Vec<Warp>,
    state: State,
}

/// What the warps of a block share.
pub(super) struct State {
    pub shared: Shared,
    barriers: [Barrier; BARRIERS],
    /// Counts barriers passed, from 1.
    pub phase: u32,
}

#[derive(Debug, Clone, Copy, Default)]
struct Barrier {
    arrived: u32,
    /// Threads that it waits for; none: all that have not ended.
    threads: Option<u32>,
}

impl State {
    /// Counts threads that come to a barrier.
    pub fn arrive(&mut self, id: u64, threads: Option<u64>, count: u32) -> std::result::Result<(), String> {
        let barrier =
            self.barriers.get_mut(id as usize).ok_or_else(|| format!("barrier {id}; there are {BARRIERS}"))?;
        let threads = threads.map(|t| t as u32);
        if let Some(t) = threads.filter(|&t| t == 0 || t % 32 != 0) {
            return Err(format!("a barrier of {t} threads: whole warps are wanted"));
        }
        if barrier.arrived > 0 && barrier.threads != threads {
            let name = |t: Option<u32>| t.map_or("all".to_string(), |t| t.to_string());
            return Err(format!(
                "barrier {id} of {} threads, where others came for {}",
                name(threads),
                name(barrier.threads)
            ));
        }
        barrier.threads = threads;
        barrier.arrived += count;
        match threads.filter(|&t| barrier.arrived > t) {
            Some(t) => Err(format!("barrier {id}: {} threads come, of {t} expected", barrier.arrived)),
            None => Ok(()),
        }
    }
}

impl Block {
    pub fn new(launch: &Launch, threads: u32) -> Self {
        let warps = (0..threads.div_ceil(32)).map(|w| Warp::new(launch, w, threads)).collect();
        let shared = Shared::new(launch.shared_bytes, launch.options.races);
        let state = State { shared, barriers: [Barrier::default(); BARRIERS], phase: 1 };
        Self { index: [0; 3], warps, state }
    }

    /// Begins block `number` of the grid.
    pub fn start(&mut self, launch: &Launch, number: u64) {
        self.index = unflatten(number, launch.grid);
        self.state.shared.restart();
        self.state.barriers = [Barrier::default(); BARRIERS];
        self.state.phase = 1;
        self.warps.iter_mut().for_each(|w| w.start(launch, self.index));
    }

    /// Gives one warp a turn. True once every thread has ended.
    pub fn run(&mut self, launch: &mut Launch) -> Result<bool> {
        let runnable = self.warps.iter().enumerate().filter(|(_, w)| w.ready != 0).fold(0u32, |m, (i, _)| m | 1 << i);
        if runnable == 0 {
            if self.warps.iter().all(|w| w.live() == 0) {
                return Ok(true);
            }
            return Err(self.deadlock(launch));
        }
        // From one instruction to a few thousand: races show at either end.
        let (turn, quantum) = match launch.options.seed {
            Some(_) => (launch.random.bit_of(runnable) as usize, 1 << launch.random.below(13)),
            None => (runnable.trailing_zeros() as usize, 1 << 12),
        };
        let outcome = self.warps[turn].run(launch, &mut self.state, quantum);
        outcome.map_err(|problem| launch.fault(self.index, turn as u32, *problem))?;
        if launch.report.warp_instructions > launch.options.instruction_limit {
            let what = format!("does not end within {} instructions of warps", launch.options.instruction_limit);
            return Err(Error::Launch { kernel: launch.kernel.name.clone(), what });
        }
        self.release(launch)?;
        Ok(false)
    }

    /// Lets threads pass the barriers that are complete.
    fn release(&mut self, launch: &mut Launch) -> Result<()> {
        for id in 0..BARRIERS {
            let Barrier { arrived, threads } = self.state.barriers[id];
            if arrived == 0 {
                continue;
            }
            let expected = threads.unwrap_or_else(|| self.warps.iter().map(|w| w.live().count_ones()).sum());
            if arrived < expected {
                continue;
            }
            self.state.barriers[id] = Barrier::default();
            self.state.phase += 1;
            launch.report.barriers += 1;
            let mut count = 0;
            for w in 0..self.warps.len() {
                let outcome = self.warps[w].check_barrier(launch, id as u64);
                count += outcome.map_err(|problem| launch.fault(self.index, w as u32, *problem))?;
            }
            self.warps.iter_mut().for_each(|warp| warp.pass_barrier(launch, id as u64, count, arrived));
        }
        Ok(())
    }

    /// Nobody can run and somebody has not ended: says who waits for whom.
    fn deadlock(&self, launch: &Launch) -> Error {
        let (w, warp) = self.warps.iter().enumerate().find(|(_, w)| w.live() != 0).expect("a thread waits");
        let lane = warp.live().trailing_zeros();
        let pc = warp.pcs[lane as usize];
        let what = match warp.waits_for(lane) {
            Ok(members) => {
                let missing = members & !warp.waiting_with(lane);
                let other = missing.trailing_zeros();
                format!("deadlock: waits for lane {other} of its warp, which {}", self.whereabouts(launch, w, other))
            }
            Err(id) => {
                let Barrier { arrived, threads } = self.state.barriers[id as usize];
                let of = threads.map_or("all".to_string(), |t| t.to_string());
                let others = (0..self.warps.len()).flat_map(|w| (0..32).map(move |l| (w, l)));
                let elsewhere = others.filter(|&(w, l)| self.warps[w].existing >> l & 1 != 0);
                let mut elsewhere = elsewhere.filter(|&(w, l)| !self.warps[w].is_at_barrier(l, id));
                let example = elsewhere.next().map_or(String::new(), |(w, l)| {
                    let [x, y, z] = launch.thread(w as u32 * 32 + l);
                    format!("; thread ({x}, {y}, {z}) {}", self.whereabouts(launch, w, l))
                });
                format!("deadlock: waits at barrier {id}, where {arrived} of {of} threads have come{example}")
            }
        };
        launch.fault(self.index, w as u32, Problem { lane, pc, what })
    }

    fn whereabouts(&self, launch: &Launch, warp: usize, lane: u32) -> String {
        let warp = &self.warps[warp];
        let line = launch.kernel.code[warp.pcs[lane as usize] as usize].line;
        let text = launch.module.line(line);
        if warp.existing >> lane & 1 == 0 {
            "is no thread of the block".to_string()
        } else if warp.live() >> lane & 1 == 0 {
            format!("has ended at line {line} `{text}`")
        } else {
            format!("waits at line {line} `{text}`")
        }
    }
}

impl Warp {
    /// Before a barrier opens: an aligned one wants the whole warp at one instruction. Gives the threads whose
    /// predicate holds, for `bar.red`.
    fn check_barrier(&self, launch: &Launch, id: u64) -> Outcome<u32> {
        let mut count = 0;
        let lanes = (0..32).filter(|&l| self.is_at_barrier(l, id));
        for lane in lanes {
            let pc = self.pcs[lane as usize];
            let problem = |what: String| Box::new(Problem { lane, pc, what });
            let Op::Barrier { aligned, reduce, .. } = &launch.kernel.code[pc as usize].op else { continue };
            if *aligned {
                let apart = self.live()
                    & !(0..32)
                        .filter(|&l| self.is_at_barrier(l, id) && self.pcs[l as usize] == pc)
                        .fold(0, |m, l| m | 1 << l);
                if apart != 0 {
                    return Err(problem(format!(
                        "an aligned barrier in divergent code: lane {} of the warp is not at this instruction",
                        apart.trailing_zeros()
                    )));
                }
            }
            if let Some((_, _, from, negated)) = reduce {
                count += u32::from((self.registers[*from as usize][lane as usize] != 0) != *negated);
            }
        }
        Ok(count)
    }

    /// The barrier opens: `holds` of the `arrived` threads had a true predicate.
    fn pass_barrier(&mut self, launch: &Launch, id: u64, holds: u32, arrived: u32) {
        for l in lanes(self.at_barrier) {
            let lane = l as u32;
            if !self.is_at_barrier(lane, id) {
                continue;
            }
            if let Op::Barrier { reduce: Some((reduce, to, _, _)), .. } = &launch.kernel.code[self.pcs[l] as usize].op {
                let value: u64 = match reduce {
                    BarrierReduce::Count => holds.into(),
                    BarrierReduce::And => (holds == arrived).into(),
                    BarrierReduce::Or => (holds > 0).into(),
                };
                self.registers[to.slot as usize][l] = value & to.mask;
            }
            self.pcs[l] += 1;
            self.at_barrier &= !(1 << lane);
            self.ready |= 1 << lane;
        }
    }
}
