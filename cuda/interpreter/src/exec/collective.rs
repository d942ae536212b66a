//! What the lanes of a warp do together.

use super::Launch;
use super::access::LaneResult;
use super::block::State;
use super::shared::bank_conflicts;
use super::warp::{Warp, lanes};
use crate::arithmetic::{LANES, Lanes};
use crate::program::{Address, Collective, Reduce, Register, Shuffle, Slot, Vote};

impl Warp {
    /// `members` are all there.
    pub(super) fn collective(
        &mut self,
        launch: &mut Launch,
        state: &mut State,
        members: u32,
        op: &Collective,
    ) -> LaneResult<()> {
        match op {
            Collective::Barrier => self.phase += 1,
            Collective::Shuffle { mode, to, valid, from, lane, clamp } => {
                let (value, is_valid) = self.shuffle(members, *mode, [*from, *lane, *clamp])?;
                self.write(*to, members, &value);
                if let Some(valid) = valid {
                    self.write(*valid, members, &is_valid);
                }
            }
            Collective::Vote { mode, to, from, negated } => {
                let votes = self.holds(*from, *negated) & members;
                let value = match mode {
                    Vote::All => (votes == members).into(),
                    Vote::Any => (votes != 0).into(),
                    Vote::Uniform => (votes == 0 || votes == members).into(),
                    Vote::Ballot => votes.into(),
                };
                self.write(*to, members, &[value; LANES]);
            }
            Collective::Match { is_all, to, all, from, mask } => {
                let row = self.registers[*from as usize].map(|x| x & mask);
                let equal = |l: usize| lanes(members).filter(|&o| row[o] == row[l]).fold(0u32, |m, o| m | 1 << o);
                let first = equal(members.trailing_zeros() as usize);
                let value = std::array::from_fn(|l| match is_all {
                    true if first == members => members.into(),
                    true => 0,
                    false => equal(l).into(),
                });
                self.write(*to, members, &value);
                if let Some(all) = all {
                    self.write(*all, members, &[(first == members).into(); LANES]);
                }
            }
            Collective::Reduce { mode, to, from } => {
                let row = self.registers[*from as usize];
                let value = lanes(members).map(|l| row[l] as u32).reduce(|a, b| match mode {
                    Reduce::AddU32 => a.wrapping_add(b),
                    Reduce::MinU32 => a.min(b),
                    Reduce::MaxU32 => a.max(b),
                    Reduce::MinS32 => (a as i32).min(b as i32) as u32,
                    Reduce::MaxS32 => (a as i32).max(b as i32) as u32,
                    Reduce::And => a & b,
                    Reduce::Or => a | b,
                    Reduce::Xor => a ^ b,
                });
                self.write(*to, members, &[value.unwrap_or(0).into(); LANES]);
            }
            Collective::LoadMatrix { to, transposed, from } => {
                self.load_matrix(launch, state, to, *transposed, *from)?;
            }
            Collective::Mma(mma) => {
                launch.report.mma += 1;
                self.mma(mma);
            }
        }
        Ok(())
    }

    /// `shfl.sync`, as the manual's pseudo-code has it: c holds a clamp in its low bits and a mask of segments from bit
    /// 8 on.
    fn shuffle(&self, members: u32, mode: Shuffle, [from, b, c]: [Slot; 3]) -> LaneResult<(Lanes, Lanes)> {
        let row = |slot: Slot| &self.registers[slot as usize];
        let (mut value, mut valid) = ([0; LANES], [0; LANES]);
        for lane in lanes(members) {
            let (by, c) = (row(b)[lane] as i32 & 31, row(c)[lane] as i32);
            let (clamp, segment) = (c & 31, c >> 8 & 31);
            let (at, last) = (lane as i32, (lane as i32 & segment) | (clamp & !segment));
            let first = at & segment;
            let (source, is_valid) = match mode {
                Shuffle::Up => (at - by, at - by >= last),
                Shuffle::Down => (at + by, at + by <= last),
                Shuffle::Xor => (at ^ by, (at ^ by) <= last),
                Shuffle::Index => (first | (by & !segment), first | (by & !segment) <= last),
            };
            let source = if is_valid { source } else { at } as usize;
            if members >> source & 1 == 0 {
                return Err((
                    lane,
                    format!("takes from lane {source}, which is not in the member mask {members:#010x}"),
                ));
            }
            (value[lane], valid[lane]) = (row(from)[source], is_valid.into());
        }
        Ok((value, valid))
    }

    /// `ldmatrix`: lane `8 i + r` has the address of row r of matrix i (16 bytes, aligned); lane l gets elements `2 (l
    /// % 4)` and the next of row `l / 4` of each matrix, or, transposed, of its columns.
    fn load_matrix(
        &mut self,
        launch: &mut Launch,
        state: &mut State,
        to: &[Register],
        transposed: bool,
        from: Address,
    ) -> LaneResult<()> {
        let bases = self.registers[from.base as usize];
        for (i, &register) in to.iter().enumerate() {
            let mut rows = [[0; 16]; 8];
            let mut addresses = [0; 8];
            for (r, row) in rows.iter_mut().enumerate() {
                let lane = 8 * i + r;
                let address = bases[lane].wrapping_add_signed(from.offset) & from.mask;
                if !address.is_multiple_of(16) {
                    return Err((
                        lane,
                        format!("misaligned address {address:#x}: a row of ldmatrix wants a multiple of 16"),
                    ));
                }
                *row = state.shared.load(address, 16, self.accessor(state, lane)).map_err(|what| (lane, what))?;
                addresses[r] = address;
            }
            launch.report.shared_read_bytes += 128;
            launch.report.bank_conflicts += bank_conflicts(&addresses, 16);
            let element = |row: usize, column: usize| {
                let (row, column) = if transposed { (column, row) } else { (row, column) };
                u64::from(u16::from_le_bytes([rows[row][2 * column], rows[row][2 * column + 1]]))
            };
            let value = std::array::from_fn(|l| element(l / 4, 2 * (l % 4)) | element(l / 4, 2 * (l % 4) + 1) << 16);
            self.write(register, u32::MAX, &value);
        }
        Ok(())
    }
}
