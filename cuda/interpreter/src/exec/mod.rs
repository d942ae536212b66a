//! Running a kernel: a grid of blocks, one after another or several side by side, in an order that depends on a seed.

mod access;
mod block;
mod collective;
mod mma;
mod random;
mod shared;
mod warp;

use crate::error::{Error, Fault, Result};
use crate::memory::Memory;
use crate::module::Module;
use crate::program::Kernel;
use block::Block;
use random::Random;

/// What a launch may do, and in which order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Decides the order of blocks, and the order of warps and threads between barriers. A kernel without races gives
    /// the same bits for every seed (atomics on floating-point numbers apart). None: all in the order of their numbers,
    /// and no warp is split that has not diverged, so that the sectors and bank conflicts of the report are those of
    /// the kernel.
    pub seed: Option<u64>,
    /// Whether two threads that touch the same byte of shared memory between the same barriers, one of them writing,
    /// are an error.
    pub races: bool,
    /// Blocks that run side by side, their warps mixed.
    pub resident_blocks: u32,
    /// Bytes of shared memory that a block may have.
    pub shared_limit: u32,
    /// Instructions of warps after which the launch ends with an error: a loop without end would hang a test. 2^28 if not said
    /// otherwise, some ten seconds.
    pub instruction_limit: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seed: Some(0),
            races: true,
            resident_blocks: 2,
            // The least of the devices that run compute_80 code: 99 KiB for a block with compute capability 8.6 and
            // 8.9.
            shared_limit: 99 << 10,
            instruction_limit: 1 << 28,
        }
    }
}

/// What a launch did. Counts are of threads where they say nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Report {
    /// Blocks that ran.
    pub blocks: u64,
    /// Instructions of warps: a branch that both sides take counts each side.
    pub warp_instructions: u64,
    /// Instructions of threads whose guard held.
    pub thread_instructions: u64,
    /// Bytes that threads read from global memory.
    pub global_read_bytes: u64,
    /// Bytes that threads wrote to global memory.
    pub global_written_bytes: u64,
    /// Pieces of 32 bytes that loads and `cp.async` touch, each counted once for a warp's instruction: 32 times this is
    /// what the memory system moves when no cache helps.
    pub global_read_sectors: u64,
    /// The same for stores.
    pub global_written_sectors: u64,
    /// Bytes that threads read from shared memory.
    pub shared_read_bytes: u64,
    /// Bytes that threads wrote to shared memory.
    pub shared_written_bytes: u64,
    /// Times that a warp's access of shared memory has to be repeated because threads want different words of one bank.
    pub bank_conflicts: u64,
    /// Atomic operations.
    pub atomics: u64,
    /// `mma` instructions of warps.
    pub mma: u64,
    /// Barriers that blocks passed.
    pub barriers: u64,
}

/// What a launch shares among its blocks.
struct Launch<'a> {
    module: &'a Module,
    kernel: &'a Kernel,
    grid: [u32; 3],
    block: [u32; 3],
    params: &'a [u8],
    shared_bytes: u32,
    dynamic_shared: u32,
    /// Where the module's `.global` variables lie.
    global_base: u64,
    memory: &'a mut Memory,
    /// The allocation that was used last.
    last_allocation: usize,
    random: Random,
    report: Report,
    options: Options,
}

/// What a thread did wrong; `lane` of the warp at work.
struct Problem {
    lane: u32,
    pc: u32,
    what: String,
}

type Outcome<T> = std::result::Result<T, Box<Problem>>;

/// Runs `kernel` of `module` over `grid` blocks of `block` threads, with `dynamic_shared` bytes of `.extern .shared`
/// memory.
///
/// `params` is the parameter block: each parameter little-endian at the offset that [`Module::params`] gives, no byte
/// more.
///
/// Errors: an unknown kernel, a launch that no device would accept, and every fault of a thread (see the crate's
/// description), after which memory holds what was written until then.
#[expect(clippy::too_many_arguments, reason = "a launch has this many")]
pub fn launch(
    module: &Module,
    kernel: &str,
    grid: [u32; 3],
    block: [u32; 3],
    dynamic_shared: u32,
    params: &[u8],
    memory: &mut Memory,
    options: Options,
) -> Result<Report> {
    let refuse = |what: String| Error::Launch { kernel: kernel.to_string(), what };
    let found = module.kernel(kernel).ok_or_else(|| {
        let entries: Vec<_> = module.entries().collect();
        refuse(format!("{} has no such entry, only {}", module.name(), entries.join(", ")))
    })?;
    let threads = block.iter().map(|&n| u64::from(n)).product::<u64>();
    check_launch(found, grid, block, threads, params).map_err(refuse)?;
    let shared_bytes = if dynamic_shared > 0 { found.dynamic_shared_at + dynamic_shared } else { found.static_shared };
    if shared_bytes > options.shared_limit {
        return Err(refuse(format!("{shared_bytes} bytes of shared memory; {} is the most", options.shared_limit)));
    }
    let global_base = memory.module_base(module);
    let mut launch = Launch {
        module,
        kernel: found,
        grid,
        block,
        params,
        shared_bytes,
        dynamic_shared,
        global_base,
        memory,
        last_allocation: usize::MAX,
        random: Random::new(options.seed.unwrap_or(0)),
        report: Report::default(),
        options,
    };
    launch.run(threads as u32)?;
    Ok(launch.report)
}

fn check_launch(
    kernel: &Kernel,
    grid: [u32; 3],
    block: [u32; 3],
    threads: u64,
    params: &[u8],
) -> std::result::Result<(), String> {
    if threads == 0 || threads > 1024 || block[2] > 64 {
        return Err(format!("a block of {block:?} threads; 1 to 1024, at most 64 in z"));
    }
    if grid.contains(&0) || grid[0] > i32::MAX as u32 || grid[1].max(grid[2]) > 65535 {
        return Err(format!("a grid of {grid:?} blocks; at least 1, at most 2^31 - 1 in x and 65535 in y and z"));
    }
    if let Some(most) = kernel.max_threads.filter(|&most| threads > most.into()) {
        return Err(format!("{threads} threads in a block; .maxntid says {most}"));
    }
    if let Some(exactly) = kernel.required_threads.filter(|&exactly| block != exactly) {
        return Err(format!("a block of {block:?} threads; .reqntid says {exactly:?}"));
    }
    if params.len() != kernel.param_bytes() as usize {
        return Err(format!("{} bytes of parameters instead of {}", params.len(), kernel.param_bytes()));
    }
    Ok(())
}

impl Launch<'_> {
    fn run(&mut self, threads: u32) -> Result<()> {
        let blocks = self.grid.iter().map(|&n| u64::from(n)).product::<u64>();
        let side_by_side = u64::from(self.options.resident_blocks.max(1)).min(blocks);
        let mut resident: Vec<Block> = (0..side_by_side).map(|_| Block::new(self, threads)).collect();
        // An order of all blocks without a list of them: steps of a number without common divisor.
        let shuffled = self.options.seed.is_some();
        let first = if shuffled { self.random.next() % blocks } else { 0 };
        let steps = if shuffled { self.random.next() % blocks.. } else { 1.. };
        let step = steps.into_iter().find(|&s| gcd(s, blocks) == 1).unwrap_or(1);
        let mut order =
            (0..blocks).map(|i| (u128::from(first) + u128::from(i) * u128::from(step)) % u128::from(blocks));
        for block in &mut resident {
            if let Some(number) = order.next() {
                block.start(self, number as u64);
            }
        }
        while !resident.is_empty() {
            let i = self.random.below(resident.len() as u32) as usize;
            if !resident[i].run(self)? {
                continue;
            }
            self.report.blocks += 1;
            match order.next() {
                Some(number) => resident[i].start(self, number as u64),
                None => drop(resident.swap_remove(i)),
            }
        }
        Ok(())
    }

    /// The error of a problem in a thread.
    fn fault(&self, block: [u32; 3], warp: u32, problem: Problem) -> Error {
        let Problem { lane, pc, what } = problem;
        let line = self.kernel.code[pc as usize].line;
        Error::Fault(Box::new(Fault {
            kernel: self.kernel.name.clone(),
            block,
            thread: self.thread(warp * 32 + lane),
            line,
            text: self.module.line(line).to_string(),
            what,
        }))
    }

    /// The index of a block's thread.
    fn thread(&self, number: u32) -> [u32; 3] {
        unflatten(number.into(), self.block)
    }
}

fn unflatten(number: u64, of: [u32; 3]) -> [u32; 3] {
    let [x, y] = [u64::from(of[0]), u64::from(of[1])];
    [(number % x) as u32, (number / x % y) as u32, (number / (x * y)) as u32]
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
