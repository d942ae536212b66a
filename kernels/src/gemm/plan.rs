//! The plan: how a product is cut into blocks that fit the caches, and into tasks. No arithmetic, and nothing but shapes goes
//! in, so the same product is always cut in the same way.
//!
//! ```text
//! for k in blocks of kb                       \  one copy of B, packed by all threads and read by all,
//!   for j in blocks of nb                      > at most B_LEN elements (L3)
//!     for every panel of B[k, j]: pack        /    <- tasks
//!     for every task (rows i, columns j)           <- tasks: a grid of row_blocks x col_blocks
//!       for p in blocks of kc inside kb
//!         pack A[i, p]                        - at most A_LEN elements (L2 of the core that packs it)
//!         for every panel of B[p, j]          - kc x nr (L1)
//!           for every panel of A[i, p]        - kc x mr, streamed from L2
//!             tile: C[mr, nr] (+)= panel x panel, in registers
//! ```
//!
//! (Van Zee and van de Geijn, BLIS, ACM TOMS 41(3), 2015. Departure: all blocks of k that fit are packed in one go, so that
//! threads meet twice a product and not twice a block.)

use super::micro::TileShape;
use std::ops::Range;

/// Largest block of K: a panel of B of 16 lanes x 2 is then 32 KiB of the 48 KiB of L1.
const KC: usize = 256;

/// Most blocks of K packed at once.
const KC_BLOCKS: usize = 12;

/// Most elements of packed B: 16 MiB, half of the L3 of the machine it was tuned on.
const B_LEN: usize = 4 << 20;

/// Most elements of packed A in a task: 256 KiB, a quarter of an L2 of 1 MiB; the rest is for B and C passing through.
const A_LEN: usize = 64 << 10;

/// Panels of A in a task, if there are enough for [`TASKS`]: a panel of B that was fetched from L3 is used six times.
const TASK_PANELS: usize = 6;

/// Number of tasks that row blocks come in multiples of, once there are as many: 2, 3, 4, 6 and 12 threads get equal shares.
const TASKS: usize = 12;

/// Panels of B that one task packs: rows of 512 bytes at 16 lanes, long enough to stream.
const PACK_PANELS: usize = 4;

/// The cuts of one product. See the module for what they are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) tile: TileShape,
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
    /// The plan for `[m, k] x [k, n]`, none of them 0.
    pub(super) fn new(tile: TileShape, m: usize, n: usize, k: usize) -> Plan {
        // Equal blocks: a last one of a few k would read and write C for next to nothing.
        let kc = k.div_ceil(k.div_ceil(KC));
        let kb = k.min(KC_BLOCKS * kc);
        let nb = (B_LEN / kb / tile.nr * tile.nr).max(tile.nr).min(n.next_multiple_of(tile.nr));
        let (row_panels, col_panels) = (m.div_ceil(tile.mr), nb / tile.nr);
        let wanted = (row_panels / TASK_PANELS).max(1);
        let wanted = if wanted > TASKS { wanted.next_multiple_of(TASKS) } else { wanted };
        let fitting = row_panels.div_ceil((A_LEN / kc / tile.mr).max(1));
        let row_blocks = wanted.max(fitting).min(row_panels);
        let col_blocks = TASKS.div_ceil(row_blocks).min(col_panels);
        Plan { tile, m, n, k, kc, kb, nb, row_blocks, col_blocks }
    }

    /// The outer blocks, in order: B is packed for each.
    pub(super) fn outer(self) -> impl Iterator<Item = Outer> {
        blocks(0..self.k, self.kb)
            .flat_map(move |k| blocks(0..self.n, self.nb).map(move |n| Outer { plan: self, k: k.clone(), n }))
    }

    /// Elements of packed B that an outer block needs at most.
    pub(super) fn b_len(self) -> usize {
        self.kb.div_ceil(self.kc) * (self.nb / self.tile.nr) * self.tile.b_panel(self.kc)
    }

    /// Elements of packed A that a task needs at most.
    pub(super) fn a_len(self) -> usize {
        self.m.div_ceil(self.tile.mr).div_ceil(self.row_blocks) * self.tile.a_panel(self.kc)
    }
}

/// An outer block: the values of k and the columns for which B is packed at once.
///
/// Packed B is `[block of k][panel of columns][k][nr]`.
#[derive(Clone, Debug)]
pub(super) struct Outer {
    plan: Plan,
    k: Range<usize>,
    n: Range<usize>,
}

impl Outer {
    /// The blocks of at most `kc` values of k, in order.
    pub(super) fn k_blocks(&self) -> impl Iterator<Item = Range<usize>> {
        blocks(self.k.clone(), self.plan.kc)
    }

    /// Where in packed B the panels of the columns `n` for the block `k` lie. `n` begins at a panel.
    pub(super) fn panels(&self, k: &Range<usize>, n: &Range<usize>) -> Range<usize> {
        let Plan { tile, kc, .. } = self.plan;
        let before = (k.start - self.k.start) / kc * self.col_panels() * tile.b_panel(kc);
        let panel = |column: usize| before + (column - self.n.start).div_ceil(tile.nr) * tile.b_panel(k.len());
        panel(n.start)..panel(n.end)
    }

    /// Number of tasks that pack B.
    pub(super) fn pack_tasks(&self) -> usize {
        self.k.len().div_ceil(self.plan.kc) * self.col_panels().div_ceil(PACK_PANELS)
    }

    /// The values of k and the columns that a pack task copies, and their [`panels`](Outer::panels).
    pub(super) fn pack_task(&self, task: usize) -> (Range<usize>, Range<usize>, Range<usize>) {
        let groups = self.col_panels().div_ceil(PACK_PANELS);
        let k = self.k.start + task / groups * self.plan.kc;
        let k = k..self.k.end.min(k + self.plan.kc);
        let width = PACK_PANELS * self.plan.tile.nr;
        let n = self.n.start + task % groups * width;
        let n = n..self.n.end.min(n + width);
        let place = self.panels(&k, &n);
        (k, n, place)
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
