//! The plan: how a product is cut into blocks that fit the caches, and into tasks. No arithmetic, and nothing but shapes goes
//! in, so the same product is always cut in the same way.
//!
//! ```text
//! for k in blocks of kb                       \  one copy of B, packed by all threads and read by all,
//!   for j in blocks of nb                      > at most B_LEN elements (L3)
//!     for every panel of B[k, j]: pack        /    <- tasks; and of A[k], if tasks share it, for the first j
//!     for every task (rows i, columns j)           <- tasks: a grid of row_blocks x col_blocks
//!       for p in blocks of kc inside kb
//!         pack A[i, p]                        - at most A_LEN elements (L2 of the core that packs it)
//!         for every panel of B[p, j]          - kc x nr (L1 and L2)
//!           for every panel of A[i, p]        - kc x mr, streamed from L2
//!             tile: C[mr, nr] (+)= panel x panel, in registers
//! ```
//!
//! (Van Zee and van de Geijn, BLIS, ACM TOMS 41(3), 2015. Departure: all blocks of k that fit are packed in one go, so that
//! threads meet twice a product and not twice a block.)

use super::micro::TileShape;
use std::ops::Range;

/// Largest block of K. The panel of B, 64 KiB at 32 columns, is then more than L1 holds; but L2 delivers it faster than the
/// tile needs it (one row of 128 bytes in 14 cycles), and C is read and written half as often as with 256, the block that L1
/// would hold. Measured on one thread of a Zen 5, 1024^3 and 2048^3: 223 and 192 GFLOP/s with 256, 231 and 206 with 384, 235
/// and 206 with 512.
const KC: usize = 512;

/// The block of a K of `k`. Equal blocks: a last one of a few k would read and write C for next to nothing.
pub(super) fn k_block(k: usize) -> usize {
    k.div_ceil(k.div_ceil(KC))
}

/// Fewest blocks of K packed at once, if there are as many: C is read and written once for every such group, and A is packed
/// once for every [`B_LEN`] of columns, so more of the one is less of the other. See there.
const KC_BLOCKS: usize = 2;

/// Most elements of packed B: 4 MiB, so that it stays in an L3 that others use too. Percent of peak at 2048^3 and 4096^3 on one
/// thread of a busy Zen 5 with 32 MiB, with at least (or exactly) so many blocks of K:
///
/// | packed B, blocks | `avx512` | `avx2`   |
/// |------------------|----------|----------|
/// | 8 MiB, 6         | 79 and 79 | 81 and 76 |
/// | 4 MiB, 6         | 81 and 79 | 83 and 79 |
/// | 4 MiB, 2         | 84 and 83 | 85 and 84 |
/// | 4 MiB, 1         | 81 and 81 | 85 and 85 |
/// | 2 MiB, 2         | 82 and 82 | 83 and 84 |
const B_LEN: usize = 1 << 20;

/// Most elements of packed A in a task: 256 KiB, a quarter of an L2 of 1 MiB; the rest is for B and C passing through.
const A_LEN: usize = 64 << 10;

/// Fewest panels of A in a task, if there are enough for [`TASKS`]: a panel of B that was fetched from L3 is used at least four
/// times. With six, TN at 768 x 768 x 2048 has too few tasks for rows of its own and runs at 221 instead of 237 GFLOP/s.
const TASK_PANELS: usize = 4;

/// Number of tasks that row blocks come in multiples of, once there are as many: 2, 3, 4, 6 and 12 threads get equal shares.
const TASKS: usize = 12;

/// Panels that one task packs, if that leaves [`PACK_TASKS`]: a row of the source is then 672 bytes (A) or 1536 (B), long
/// enough for the prefetchers. With 4 panels of A, 768 x 256 x 2048 TN ran at 182 GFLOP/s instead of 228.
const PACK_PANELS: usize = 12;

/// Panels that one task packs otherwise.
const PACK_PANELS_SMALL: usize = 4;

/// Fewest tasks of [`PACK_PANELS`] for one operand.
const PACK_TASKS: usize = 8;

/// The cuts of one product. See the module for what they are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) tile: TileShape,
    /// Whether A is packed like B, once for all tasks, and not by each task for itself.
    pub(super) shared_a: bool,
    m: usize,
    n: usize,
    k: usize,
    kc: usize,
    kb: usize,
    nb: usize,
    row_blocks: usize,
    col_blocks: usize,
}

impl Plan {
    /// The plan for `[m, k] x [k, n]`, none of them 0, for many threads.
    pub(super) fn parallel(tile: TileShape, m: usize, n: usize, k: usize) -> Plan {
        let plan = Plan::serial(tile, m, n, k);
        let row_panels = m.div_ceil(tile.mr);
        let wanted = (row_panels / TASK_PANELS).max(1);
        if wanted < TASKS {
            // Too few rows to share: columns are cut as well, and no task has rows of A to itself.
            let col_blocks = TASKS.div_ceil(wanted).min(plan.nb / tile.nr);
            return Plan { row_blocks: wanted.max(plan.row_blocks), col_blocks, shared_a: col_blocks > 1, ..plan };
        }
        Plan { row_blocks: (wanted / TASKS * TASKS).max(plan.row_blocks), ..plan }
    }

    /// The plan for one thread: as few tasks as the caches allow.
    pub(super) fn serial(tile: TileShape, m: usize, n: usize, k: usize) -> Plan {
        let kc = k_block(k);
        let columns = n.next_multiple_of(tile.nr);
        let kb = k.min((B_LEN / columns / kc).max(KC_BLOCKS) * kc);
        let nb = (B_LEN / kb / tile.nr * tile.nr).max(tile.nr).min(columns);
        let row_blocks = m.div_ceil(tile.mr).div_ceil((A_LEN / kc / tile.mr).max(1));
        Plan { tile, shared_a: false, m, n, k, kc, kb, nb, row_blocks, col_blocks: 1 }
    }

    /// The outer blocks, in order: B is packed for each.
    pub(super) fn outer(self) -> impl Iterator<Item = Outer> {
        blocks(0..self.k, self.kb)
            .flat_map(move |k| blocks(0..self.n, self.nb).map(move |n| Outer { plan: self, k: k.clone(), n }))
    }

    /// Elements that an outer block needs at most for what all tasks share: B and perhaps A.
    pub(super) fn shared_len(self) -> usize {
        self.shared_a_len() + self.kb.div_ceil(self.kc) * (self.nb / self.tile.nr) * self.tile.b_panel(self.kc)
    }

    /// Those for A.
    fn shared_a_len(self) -> usize {
        let panels = if self.shared_a { self.m.div_ceil(self.tile.mr) } else { 0 };
        self.kb.div_ceil(self.kc) * panels * self.tile.a_panel(self.kc)
    }

    /// Elements that a task needs at most for itself.
    pub(super) fn task_len(self) -> usize {
        let panels = self.m.div_ceil(self.tile.mr).div_ceil(self.row_blocks);
        if self.shared_a { 0 } else { panels * self.tile.a_panel(self.kc) }
    }
}

/// An outer block: the values of k and the columns for which B is packed at once.
///
/// The memory that tasks share is, if A is shared, `[block of k][panel of A][k][mr]`, and then `[block of k][panel of B][k][nr]`. A is
/// packed for the first columns and stays for the others.
#[derive(Clone, Debug)]
pub(super) struct Outer {
    plan: Plan,
    k: Range<usize>,
    n: Range<usize>,
}

/// Something to pack into shared memory: the values of k, the rows of A or the columns of B, and the place.
#[derive(Debug)]
pub(super) enum Packing {
    A { k: Range<usize>, rows: Range<usize>, place: Range<usize> },
    B { k: Range<usize>, cols: Range<usize>, place: Range<usize> },
}

impl Packing {
    /// Where in shared memory the panels go.
    pub(super) fn place(&self) -> Range<usize> {
        match self {
            Packing::A { place, .. } | Packing::B { place, .. } => place.clone(),
        }
    }
}

impl Outer {
    /// The blocks of at most `kc` values of k, in order.
    pub(super) fn k_blocks(&self) -> impl Iterator<Item = Range<usize>> {
        blocks(self.k.clone(), self.plan.kc)
    }

    /// Where the shared panels of `rows` of A lie for the block `k`. `rows` begins at a panel.
    pub(super) fn a_place(&self, k: &Range<usize>, rows: &Range<usize>) -> Range<usize> {
        let Plan { tile, kc, m, .. } = self.plan;
        let before = (k.start - self.k.start) / kc * m.div_ceil(tile.mr) * tile.a_panel(kc);
        let panel = |row: usize| before + row.div_ceil(tile.mr) * tile.a_panel(k.len());
        panel(rows.start)..panel(rows.end)
    }

    /// Where the panels of the columns `cols` of B lie for the block `k`. `cols` begins at a panel.
    pub(super) fn b_place(&self, k: &Range<usize>, cols: &Range<usize>) -> Range<usize> {
        let Plan { tile, kc, .. } = self.plan;
        let before = self.plan.shared_a_len() + (k.start - self.k.start) / kc * self.col_panels() * tile.b_panel(kc);
        let panel = |column: usize| before + (column - self.n.start).div_ceil(tile.nr) * tile.b_panel(k.len());
        panel(cols.start)..panel(cols.end)
    }

    /// Number of tasks that pack.
    pub(super) fn pack_tasks(&self) -> usize {
        let groups = |panels| usize::div_ceil(panels, self.pack_panels(panels));
        self.k_blocks().count() * (groups(self.col_panels()) + groups(self.shared_row_panels()))
    }

    /// What a pack task does: the groups of panels of B and then those of A, for each block of k.
    pub(super) fn pack_task(&self, task: usize) -> Packing {
        let Plan { tile, kc, m, .. } = self.plan;
        let k_blocks = self.k_blocks().count();
        let k = self.k.start + task % k_blocks * kc;
        let k = k..self.k.end.min(k + kc);
        let b_width = self.pack_panels(self.col_panels()) * tile.nr;
        let (group, b_groups) = (task / k_blocks, self.n.len().div_ceil(b_width));
        if group < b_groups {
            let start = self.n.start + group * b_width;
            let cols = start..self.n.end.min(start + b_width);
            Packing::B { place: self.b_place(&k, &cols), k, cols }
        } else {
            let a_width = self.pack_panels(self.shared_row_panels()) * tile.mr;
            let start = (group - b_groups) * a_width;
            let rows = start..m.min(start + a_width);
            Packing::A { place: self.a_place(&k, &rows), k, rows }
        }
    }

    /// Panels that one task packs, of an operand with `panels` for each block of k.
    fn pack_panels(&self, panels: usize) -> usize {
        let enough = self.k_blocks().count() * panels >= PACK_TASKS * PACK_PANELS;
        if enough { PACK_PANELS } else { PACK_PANELS_SMALL }
    }

    /// Panels of A that tasks share and that are not packed yet, for each block of k.
    fn shared_row_panels(&self) -> usize {
        if self.plan.shared_a && self.n.start == 0 { self.plan.m.div_ceil(self.plan.tile.mr) } else { 0 }
    }

    /// Number of tasks that multiply.
    pub(super) fn tasks(&self) -> usize {
        self.plan.row_blocks * self.plan.col_blocks
    }

    /// The rows and the columns of C that a task computes.
    pub(super) fn task(&self, task: usize) -> (Range<usize>, Range<usize>) {
        let Plan { tile, m, row_blocks, col_blocks, .. } = self.plan;
        let rows = share(m.div_ceil(tile.mr), row_blocks, task % row_blocks);
        let cols = share(self.col_panels(), col_blocks, task / row_blocks);
        let column = |panel: usize| self.n.end.min(self.n.start + panel * tile.nr);
        (rows.start * tile.mr..m.min(rows.end * tile.mr), column(cols.start)..column(cols.end))
    }

    fn col_panels(&self) -> usize {
        self.n.len().div_ceil(self.plan.tile.nr)
    }
}

/// `range` in blocks of `len`, the last perhaps shorter.
fn blocks(range: Range<usize>, len: usize) -> impl Iterator<Item = Range<usize>> {
    range.clone().step_by(len).map(move |start| start..range.end.min(start + len))
}

/// Part `i` of `0..total` cut into `parts` that differ by one at most.
fn share(total: usize, parts: usize, i: usize) -> Range<usize> {
    i * total / parts..(i + 1) * total / parts
}
