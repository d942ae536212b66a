//! A kernel as it is run: registers are rows, labels are indices, opcodes are what they do.

use crate::arithmetic::Map;
use crate::parse::Space;

/// Index of a row of the register file.
pub(crate) type Slot = u32;

/// Where a result goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Register {
    pub slot: Slot,
    /// The bits that it holds.
    pub mask: u64,
}

/// A memory operand: base register and offset.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Address {
    pub space: Space,
    pub base: Slot,
    pub offset: i64,
    /// Addresses wrap at the width of the base register.
    pub mask: u64,
}

/// What a row of the register file holds when a warp starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Row {
    /// Whatever was there.
    Register {
        mask: u64,
    },
    Constant(u64),
    Special(Special),
    /// An offset in the module's `.global` variables.
    GlobalVariable(u64),
    /// Where `.extern .shared` begins.
    DynamicShared,
}

/// Special registers that do not change while a thread runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    LaneId,
    WarpId,
    NWarpId,
    LaneMaskEqual,
    LaneMaskLess,
    LaneMaskLessEqual,
    LaneMaskGreater,
    LaneMaskGreaterEqual,
    DynamicSharedSize,
    TotalSharedSize,
}

/// One instruction.
pub(crate) struct Instruction {
    /// Line of the text.
    pub line: u32,
    /// The predicate under which it runs, and whether that is negated.
    pub guard: Option<(Slot, bool)>,
    pub op: Op,
}

/// Lanes that share an operation of the warp.
pub(crate) enum Collective {
    /// `bar.warp.sync`
    Barrier,
    Shuffle {
        mode: Shuffle,
        to: Register,
        valid: Option<Register>,
        from: Slot,
        lane: Slot,
        clamp: Slot,
    },
    Vote {
        mode: Vote,
        to: Register,
        from: Slot,
        negated: bool,
    },
    /// `match.any.sync`, and `match.all.sync` with what it says in `all`.
    Match {
        is_all: bool,
        to: Register,
        all: Option<Register>,
        from: Slot,
        mask: u64,
    },
    Reduce {
        mode: Reduce,
        to: Register,
        from: Slot,
    },
    /// `ldmatrix`: as many 8 x 8 matrices as registers.
    LoadMatrix {
        to: Box<[Register]>,
        transposed: bool,
        from: Address,
    },
    Mma(Mma),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shuffle {
    Up,
    Down,
    Xor,
    Index,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vote {
    All,
    Any,
    Uniform,
    Ballot,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reduce {
    AddU32,
    MinU32,
    MaxU32,
    MinS32,
    MaxS32,
    And,
    Or,
    Xor,
}

/// Element types of `mma` that are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MmaElement {
    F16,
    Bf16,
    Tf32,
    S8,
    U8,
}

/// `mma.sync.m16n8k*`: D = A B + C with f32 sums, or s32 for bytes.
pub(crate) struct Mma {
    pub a_element: MmaElement,
    pub b_element: MmaElement,
    pub k: usize,
    pub d: [Register; 4],
    pub a: Box<[Slot]>,
    pub b: Box<[Slot]>,
    pub c: [Slot; 4],
}

/// Read-modify-write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AtomicOp {
    Exchange,
    CompareAndSwap,
    Add,
    And,
    Or,
    Xor,
    Min,
    Max,
    /// `inc`: back to 0 past the operand.
    Increment,
    /// `dec`: back to the operand from 0 or from above it.
    Decrement,
}

/// What the threads of `bar.red` find out about a predicate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BarrierReduce {
    Count,
    And,
    Or,
}

pub(crate) enum Op {
    Map {
        map: Map,
        to: Register,
        args: [Slot; 4],
    },
    Load {
        to: Box<[Register]>,
        bytes: u32,
        signed: bool,
        from: Address,
    },
    Store {
        from: Box<[Slot]>,
        bytes: u32,
        to: Address,
    },
    Atomic {
        op: AtomicOp,
        ty: crate::types::Type,
        to: Option<Register>,
        at: Address,
        operand: Slot,
        second: Slot,
    },
    /// `cp.async`: of `bytes` bytes the first `source_bytes` are read, the others are zero.
    CopyAsync {
        bytes: u32,
        source_bytes: Option<Slot>,
        to: Address,
        from: Address,
    },
    CopyCommit,
    /// Waits until at most so many of a thread's groups are under way; none: for everything.
    CopyWait {
        left: Option<u32>,
    },
    Collective {
        members: Slot,
        op: Collective,
    },
    ActiveMask {
        to: Register,
    },
    Barrier {
        id: Slot,
        threads: Option<Slot>,
        aligned: bool,
        reduce: Option<(BarrierReduce, Register, Slot, bool)>,
    },
    BarrierArrive {
        id: Slot,
        threads: Slot,
    },
    Clock {
        to: Register,
    },
    Branch {
        target: u32,
    },
    BranchIndexed {
        targets: Box<[u32]>,
        index: Slot,
    },
    Exit,
    Trap,
    /// A label at the end of a body, or an instruction that has no effect here.
    Nothing,
}

/// A parameter of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Param {
    /// Its name in the PTX text.
    pub name: String,
    /// Its first byte in the parameter block.
    pub offset: u32,
    /// Bytes.
    pub size: u32,
    /// Alignment of `offset`.
    pub align: u32,
}

/// An entry of a module.
pub(crate) struct Kernel {
    pub name: String,
    pub params: Vec<Param>,
    pub code: Vec<Instruction>,
    pub rows: Vec<Row>,
    /// Bytes of one thread's local memory.
    pub local_bytes: u32,
    /// Bytes of `.shared` variables with a size, and the alignment of the block's shared memory.
    pub static_shared: u32,
    /// Where `.extern .shared` begins.
    pub dynamic_shared_at: u32,
    pub max_threads: Option<u32>,
    pub required_threads: Option<[u32; 3]>,
}

impl Kernel {
    /// Size of the parameter block.
    pub fn param_bytes(&self) -> u32 {
        self.params.last().map_or(0, |p| p.offset + p.size)
    }
}

/// Generic addresses of shared memory, local memory and constants are offsets from these; global addresses are far
/// below.
pub(crate) const SHARED_WINDOW: u64 = 1 << 60;
pub(crate) const LOCAL_WINDOW: u64 = 2 << 60;
pub(crate) const CONST_WINDOW: u64 = 3 << 60;
/// Each window's size.
pub(crate) const WINDOW: u64 = 1 << 32;
