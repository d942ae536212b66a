//! bf16 weights in 12 bits instead of 16, with nothing lost: for decoding, whose time is that of the bytes it reads.
//!
//! A bf16 has a sign, 8 bits of exponent and 7 of fraction. The weights of a row are of similar size: 2048 of them have some thirteen
//! different exponents. So a block of 2048 has a table of 16 exponents, those that occur most, and a weight is a byte with its sign and its
//! fraction, and 4 bits that say which exponent. Up to 16 weights of a block may have others, which are written down one by one; a block that
//! has more of them cannot be [packed](pack_rows). What can be has every value as it was: subnormals, zeros of both signs, infinities, and NaN
//! with its payload.
//!
//! Since the values are those of bf16 rows and are added in their order, every result has the bits that it has with bf16 rows, at each
//! level.
//!
//! # Layout
//!
//! A row is a whole number of cache lines: a head for each 2048 weights, then 3 for each 128. At 2048 columns that is 3136 bytes where
//! bf16 has 4096: a ceiling of 1.31 times.
//!
//! ```text
//! row      head of block 0 | head of block 1 | .. | group 0 | group 1 | ..       a group has 128 weights, the last of a row perhaps fewer;
//!                                                                                block b has the groups 16 b .. 16 b + 15
//! head     16 bytes: exponents | 16 exceptions of 3 bytes: the weight's number in the block, its exponent; from the first on with
//!                                number 0xFFFF they are none
//! group    64 bytes: sign and fraction of weights 0 .. 63          s f f f f f f f
//!          64 bytes: sign and fraction of weights 64 .. 127        s f f f f f f f
//!          64 bytes: codes of weights i and 64 + i, in a byte      c c c c of 64 + i, c c c c of i
//! ```
//!
//! Within its 64 bytes, weight `16 k + 4 l + i` is byte `16 l + 4 k + i` (k, l and i below 4): a transpose of words of four bytes. So two rounds
//! of interleaving within lanes of 128 bits, sign and fraction with exponent and the result with zeros, give vectors of f32 with the
//! weights in their order. 64 weights with exceptions among them are corrected by way of L1.

mod loops;
#[cfg(test)]
mod tests;

use crate::simd::{Kernel, Level, Simd};
use crate::{RowFormat, Team, Weight};
use bytemuck::{Pod, Zeroable, cast_slice, cast_slice_mut};
use half::bf16;
use std::sync::atomic::{AtomicBool, Ordering};

/// Weights that share a [`Head`].
const BLOCK: usize = 2048;

/// Exponents of a table, as many as 4 bits tell apart.
const CODES: usize = 16;

/// Weights of a [`Group`].
const GROUP: usize = 128;

/// Groups of a block.
const BLOCK_GROUPS: usize = BLOCK / GROUP;

/// Weights that [`Simd::unpack_bf16`] gives at once.
pub(crate) const HALF: usize = GROUP / 2;

/// 64 bytes of a row of packed bf16 weights. See the [module](self) for the layout, [`RowFormat`] for its use.
///
/// Rounding to the format panics for a row that it cannot hold: [`pack_rows`] asks. Dots and sums are those of bf16 rows, bit for bit.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct PackedBf16([u8; LINE]);

/// Bytes of a unit, a cache line.
const LINE: usize = 64;

/// 128 weights of a row, but for their exponents' table.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct Group {
    /// The sign of a weight in the highest bit, its fraction in the others; of the first 64 weights and of the others, each by [`place`].
    pub(crate) signs_and_fractions: [[u8; HALF]; 2],
    /// The codes of both, in the low and the high half of each byte.
    pub(crate) codes: [u8; HALF],
}

/// What the weights of a block have in common.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
struct Head {
    /// The exponent of each code, rising; 0 behind the last.
    exponents: [u8; CODES],
    exceptions: [Exception; Exception::MOST],
}

/// A weight whose exponent is not in the table. Its sign and its fraction are where those of others are.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
struct Exception {
    /// Its number in the block, little-endian.
    index: [u8; 2],
    exponent: u8,
}

impl Exception {
    /// What fits a line beside the table.
    const MOST: usize = (LINE - CODES) / size_of::<Exception>();
    const NONE: Exception = Exception { index: [0xFF; 2], exponent: 0 };

    fn index(self) -> usize {
        u16::from_le_bytes(self.index) as usize
    }
}

/// Units of a group.
const GROUP_LINES: usize = size_of::<Group>() / LINE;

/// The byte that weight `i` of 64 has among theirs; and the weight whose byte is `i`.
#[inline(always)]
pub(crate) fn place(i: usize) -> usize {
    i / 4 % 4 * 16 + i / 16 * 4 + i % 4
}

/// [`Simd::unpack_bf16`] in plain code.
#[inline(always)]
pub(crate) fn unpack<const SECOND: bool>(group: &Group, exponents: &[u8; CODES]) -> [f32; HALF] {
    let mut weights = [0.0; HALF];
    for (byte, (rest, codes)) in group.signs_and_fractions[SECOND as usize].iter().zip(&group.codes).enumerate() {
        let code = if SECOND { codes >> 4 } else { codes & 15 };
        let (rest, exponent) = (*rest as u32, exponents[code as usize] as u32);
        weights[place(byte)] = f32::from_bits((rest & 0x80) << 24 | exponent << 23 | (rest & 0x7F) << 16);
    }
    weights
}

/// Units of the heads of a row.
const fn head_len(cols: usize) -> usize {
    cols.div_ceil(BLOCK)
}

/// The exponent of a bf16.
fn exponent(bits: u16) -> u8 {
    (bits >> 7) as u8
}

impl Head {
    /// The head of a block, and the code of each exponent in its table. None if too many weights have others.
    fn of(block: impl ExactSizeIterator<Item = u16> + Clone) -> Option<(Head, [Option<u8>; 256])> {
        let mut counts = [0usize; 256];
        block.clone().for_each(|bits| counts[exponent(bits) as usize] += 1);
        let mut occurring: Vec<u8> = (0..=255).filter(|&exponent| counts[exponent as usize] > 0).collect();
        // The most frequent ones; of equals the lower.
        occurring.sort_by_key(|&exponent| std::cmp::Reverse(counts[exponent as usize]));
        occurring.truncate(CODES);
        occurring.sort();
        let mut head = Head { exponents: [0; CODES], exceptions: [Exception::NONE; Exception::MOST] };
        let mut codes = [None; 256];
        for (code, exponent) in occurring.into_iter().enumerate() {
            head.exponents[code] = exponent;
            codes[exponent as usize] = Some(code as u8);
        }
        if counts.iter().zip(&codes).all(|(&count, code)| count == 0 || code.is_some()) {
            return Some((head, codes));
        }
        let mut free = head.exceptions.iter_mut();
        for (i, bits) in block.enumerate() {
            if codes[exponent(bits) as usize].is_none() {
                *free.next()? = Exception { index: (i as u16).to_le_bytes(), exponent: exponent(bits) };
            }
        }
        Some((head, codes))
    }
}

impl Head {
    fn exceptions(&self) -> impl Iterator<Item = &Exception> {
        self.exceptions.iter().take_while(|&&exception| exception != Exception::NONE)
    }

    /// As in a [`Table`].
    #[cold]
    #[inline(never)]
    fn exceptional(&self) -> u32 {
        self.exceptions().fold(0, |halves, exception| halves | 1 << (exception.index() / HALF))
    }

    /// Gives the exceptions among the weights of half number `half` their exponents.
    #[cold]
    #[inline(never)]
    fn correct(&self, half: usize, weights: &mut [f32; HALF]) {
        for exception in self.exceptions().filter(|exception| exception.index() / HALF == half) {
            let w = &mut weights[exception.index() % HALF];
            *w = f32::from_bits(w.to_bits() & 0x807F_FFFF | (exception.exponent as u32) << 23);
        }
    }
}

/// Packs a row of `cols` weights. False if a block has too many exceptions; the row then holds nothing of use.
fn pack(cols: usize, bits: impl Fn(usize) -> u16, row: &mut [PackedBf16]) -> bool {
    row.fill(PackedBf16::zeroed());
    let (heads, groups) = row.split_at_mut(head_len(cols));
    let (heads, groups): (&mut [Head], &mut [Group]) = (cast_slice_mut(heads), cast_slice_mut(groups));
    for (first, place_of_head) in (0..cols).step_by(BLOCK).zip(heads) {
        let block = first..cols.min(first + BLOCK);
        let Some((head, codes)) = Head::of(block.clone().map(&bits)) else { return false };
        *place_of_head = head;
        for i in block {
            let (group, second, at) = (&mut groups[i / GROUP], i % GROUP / HALF, place(i % HALF));
            let bits = bits(i);
            group.signs_and_fractions[second][at] = (bits >> 8 & 0x80) as u8 | (bits & 0x7F) as u8;
            group.codes[at] |= codes[exponent(bits) as usize].unwrap_or(0) << (4 * second);
        }
    }
    true
}

/// Packs the matrix `src` `[rows, cols]`, in parallel: exact. Whether it can be, which is unless of 2048 weights of a row, counted from its
/// start, more than 16 have other exponents than the 16 most frequent; else `rows` holds nothing of use.
///
/// Panics if a length does not fit.
#[track_caller]
pub fn pack_rows(team: &Team, src: &[bf16], cols: usize, rows: &mut [PackedBf16]) -> bool {
    /// Rows that a task takes.
    const ROWS: usize = 16;
    let row_len = PackedBf16::row_len(cols);
    assert!(
        cols > 0 && src.len().is_multiple_of(cols) && src.len() / cols * row_len == rows.len(),
        "pack_rows: {} elements in rows of {cols}, and {} units in rows of {row_len}",
        src.len(),
        rows.len()
    );
    let fits = AtomicBool::new(true);
    team.run_chunks_mut(rows, ROWS * row_len, |task, rows| {
        for (row, src) in rows.chunks_exact_mut(row_len).zip(src[task * ROWS * cols..].chunks_exact(cols)) {
            if !fits.load(Ordering::Relaxed) {
                return;
            }
            if !pack(cols, |i| src[i].to_bits(), row) {
                fits.store(false, Ordering::Relaxed);
            }
        }
    });
    fits.into_inner()
}

impl RowFormat for PackedBf16 {
    const NAME: &'static str = "bf16-packed";

    #[inline(always)]
    fn row_len(cols: usize) -> usize {
        head_len(cols) + cols.div_ceil(GROUP) * GROUP_LINES
    }

    /// Panics besides if the row, rounded to bf16, cannot be [packed](pack_rows): there is no row that is near it in each weight.
    fn round_row(_: Level, src: &[f32], row: &mut [Self]) {
        assert_eq!(row.len(), Self::row_len(src.len()), "round_row bf16-packed: a row of {}", src.len());
        assert!(
            pack(src.len(), |i| <bf16 as Weight>::round(src[i]).to_bits(), row),
            "round_row bf16-packed: {BLOCK} weights with too many exponents"
        );
    }

    fn widen_row(level: Level, row: &[Self], dst: &mut [f32]) {
        assert_eq!(row.len(), Self::row_len(dst.len()), "widen_row bf16-packed: a row of {}", dst.len());
        level.dispatch(WidenRow { row, dst });
    }
}

/// A row by its parts.
#[derive(Clone, Copy)]
struct Row<'a> {
    /// Of each block.
    heads: &'a [Head],
    groups: &'a [Group],
}

/// A head, ready for use.
#[derive(Clone, Copy)]
struct Table<S: Simd> {
    exponents: S::ExponentTable,
    /// The halves of groups with exceptions: bit `2 g` is the first half of the block's group g, the next bit the second.
    exceptional: u32,
}

impl<'a> Row<'a> {
    /// Panics if the row has another length.
    #[inline(always)]
    fn of(op: &str, row: &'a [PackedBf16], cols: usize) -> Row<'a> {
        assert_eq!(row.len(), PackedBf16::row_len(cols), "{op}: a row of another length");
        let (heads, groups) = row.split_at(head_len(cols));
        Row { heads: cast_slice(heads), groups: cast_slice(groups) }
    }

    /// The table of group number `at`, and of the others of its block.
    #[inline(always)]
    fn table<S: Simd>(&self, s: S, at: usize) -> Table<S> {
        let head = &self.heads[at / BLOCK_GROUPS];
        let none = head.exceptions[0] == Exception::NONE;
        Table { exponents: s.exponent_table(&head.exponents), exceptional: if none { 0 } else { head.exceptional() } }
    }

    /// The first or the `SECOND` 64 weights of group number `at`, whose table it is; behind those of the row there may be any.
    #[inline(always)]
    fn half<S: Simd, const SECOND: bool>(&self, s: S, at: usize, table: Table<S>) -> S::Unpacked {
        let mut weights = s.unpack_bf16::<SECOND>(&self.groups[at], table.exponents);
        let half = 2 * (at % BLOCK_GROUPS) + SECOND as usize;
        if table.exceptional >> half & 1 == 1 {
            let mut values = [0.0; HALF];
            for (v, &w) in weights.as_ref().iter().enumerate() {
                s.store(w, &mut values[v * S::LANES..]);
            }
            self.heads[at / BLOCK_GROUPS].correct(half, &mut values);
            for (v, w) in weights.as_mut().iter_mut().enumerate() {
                *w = s.load(&values[v * S::LANES..]);
            }
        }
        weights
    }

    /// The weights of group number `at`, as [`half`](Row::half) gives them.
    #[inline(always)]
    fn group<S: Simd>(&self, s: S, at: usize, dst: &mut [f32; GROUP]) {
        let table = self.table(s, at);
        let halves = [self.half::<S, false>(s, at, table), self.half::<S, true>(s, at, table)];
        for (dst, weights) in dst.chunks_exact_mut(HALF).zip(halves) {
            for (v, &w) in weights.as_ref().iter().enumerate() {
                s.store(w, &mut dst[v * S::LANES..]);
            }
        }
    }
}

struct WidenRow<'a> {
    row: &'a [PackedBf16],
    dst: &'a mut [f32],
}

impl Kernel for WidenRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let WidenRow { row, dst } = self;
        let row = Row::of("widen_row bf16-packed", row, dst.len());
        let (whole, rest) = dst.as_chunks_mut();
        for (at, dst) in whole.iter_mut().enumerate() {
            row.group(s, at, dst);
        }
        if !rest.is_empty() {
            let mut last = [0.0; GROUP];
            row.group(s, whole.len(), &mut last);
            rest.copy_from_slice(&last[..rest.len()]);
        }
    }
}
