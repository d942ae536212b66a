//! Barriers, and operations of a warp together.

use super::Builder;
use super::opcode::Opcode;
use crate::error::Result;
use crate::parse::{Operand, Space};
use crate::program::{BarrierReduce, Collective, Mma, MmaElement, Op, Reduce, Register, Shuffle, Slot, Vote};
use crate::types::Type;

/// Members of an operation that is `.aligned`: the whole warp.
const WARP: u64 = u32::MAX as u64;

impl<'t> Builder<'_, 't> {
    /// Lowers an instruction of this file; false if the opcode is not one.
    pub(super) fn collective(&mut self, opcode: &mut Opcode<'t>, operands: &[Operand<'t>]) -> Result<bool> {
        match opcode.name {
            "bar" | "barrier" => self.barrier(opcode, operands)?,
            "shfl" => {
                self.sync(opcode)?;
                let mode = opcode.take_one(&[
                    ("up", Shuffle::Up),
                    ("down", Shuffle::Down),
                    ("bfly", Shuffle::Xor),
                    ("idx", Shuffle::Index),
                ]);
                let (Some(mode), Some(Type::B32)) = (mode, opcode.take_type()) else {
                    return Err(self.error("shfl of this form is not known"));
                };
                let [to, from, lane, clamp, members] = self.exactly(operands)?;
                let (to, valid) = self.with_predicate(to)?;
                let [from, lane, clamp] = [self.b32(from)?, self.b32(lane)?, self.b32(clamp)?];
                self.emit_collective(members, Collective::Shuffle { mode, to, valid, from, lane, clamp })?;
            }
            "vote" => {
                self.sync(opcode)?;
                let mode = opcode.take_one(&[
                    ("all", Vote::All),
                    ("any", Vote::Any),
                    ("uni", Vote::Uniform),
                    ("ballot", Vote::Ballot),
                ]);
                let mode = mode.ok_or_else(|| self.error("vote of this form is not known"))?;
                self.type_of(opcode)?;
                let [to, from, members] = self.exactly(operands)?;
                let to = self.destination(to)?;
                let (from, negated) = self.condition(from)?;
                self.emit_collective(members, Collective::Vote { mode, to, from, negated })?;
            }
            "match" => {
                self.sync(opcode)?;
                let is_all = opcode.take_one(&[("all", true), ("any", false)]);
                let is_all = is_all.ok_or_else(|| self.error("match of this form is not known"))?;
                let ty = self.type_of(opcode)?;
                let [to, from, members] = self.exactly(operands)?;
                let (to, all) = self.with_predicate(to)?;
                let from = self.operand(from, ty)?;
                self.emit_collective(members, Collective::Match { is_all, to, all, from, mask: ty.mask() })?;
            }
            "redux" => {
                self.sync(opcode)?;
                let ty = self.type_of(opcode)?;
                let mode = match (opcode.take_one(&["add", "min", "max", "and", "or", "xor"].map(|m| (m, m))), ty) {
                    (Some("add"), Type::U32 | Type::S32) => Reduce::AddU32,
                    (Some("min"), Type::U32) => Reduce::MinU32,
                    (Some("max"), Type::U32) => Reduce::MaxU32,
                    (Some("min"), Type::S32) => Reduce::MinS32,
                    (Some("max"), Type::S32) => Reduce::MaxS32,
                    (Some("and"), Type::B32) => Reduce::And,
                    (Some("or"), Type::B32) => Reduce::Or,
                    (Some("xor"), Type::B32) => Reduce::Xor,
                    _ => return Err(self.error("redux of this form is not known")),
                };
                let [to, from, members] = self.exactly(operands)?;
                let (to, from) = (self.destination(to)?, self.b32(from)?);
                self.emit_collective(members, Collective::Reduce { mode, to, from })?;
            }
            "ldmatrix" => self.load_matrix(opcode, operands)?,
            "mma" => self.mma(opcode, operands)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn sync(&self, opcode: &mut Opcode) -> Result<()> {
        if opcode.take("sync") { Ok(()) } else { Err(self.error(format!("{} without .sync", opcode.name))) }
    }

    fn b32(&mut self, operand: &Operand<'t>) -> Result<Slot> {
        self.operand(operand, Type::B32)
    }

    /// `d` or `d|p`.
    fn with_predicate(&mut self, operand: &Operand<'t>) -> Result<(Register, Option<Register>)> {
        match operand {
            Operand::Pair(pair) => Ok((self.destination(&pair[0])?, Some(self.destination(&pair[1])?))),
            single => Ok((self.destination(single)?, None)),
        }
    }

    fn emit_collective(&mut self, members: &Operand<'t>, op: Collective) -> Result<()> {
        let members = self.b32(members)?;
        self.emit(Op::Collective { members, op });
        Ok(())
    }

    fn barrier(&mut self, opcode: &mut Opcode<'t>, operands: &[Operand<'t>]) -> Result<()> {
        if opcode.take("warp") {
            self.sync(opcode)?;
            let [members] = self.exactly(operands)?;
            return self.emit_collective(members, Collective::Barrier);
        }
        opcode.take("cta");
        // `bar` is short for `barrier.aligned`.
        let aligned = opcode.take("aligned") || opcode.name == "bar";
        if opcode.take("arrive") {
            let [id, threads] = self.exactly(operands)?;
            let (id, threads) = (self.b32(id)?, self.b32(threads)?);
            self.emit(Op::BarrierArrive { id, threads });
            return Ok(());
        }
        if opcode.take("red") {
            let reduce = opcode.take_one(&[
                ("popc", BarrierReduce::Count),
                ("and", BarrierReduce::And),
                ("or", BarrierReduce::Or),
            ]);
            let reduce = reduce.ok_or_else(|| self.error("bar.red of this form is not known"))?;
            self.type_of(opcode)?;
            let (to, id, threads, from) = match operands {
                [to, id, from] => (to, id, None, from),
                [to, id, threads, from] => (to, id, Some(self.b32(threads)?), from),
                _ => return Err(self.error(format!("{} operands", operands.len()))),
            };
            let (to, id) = (self.destination(to)?, self.b32(id)?);
            let (from, negated) = self.condition(from)?;
            self.emit(Op::Barrier { id, threads, aligned, reduce: Some((reduce, to, from, negated)) });
            return Ok(());
        }
        self.sync(opcode)?;
        let (id, threads) = match operands {
            [id] => (id, None),
            [id, threads] => (id, Some(self.b32(threads)?)),
            _ => return Err(self.error(format!("{} operands", operands.len()))),
        };
        let id = self.b32(id)?;
        self.emit(Op::Barrier { id, threads, aligned, reduce: None });
        Ok(())
    }

    fn load_matrix(&mut self, opcode: &mut Opcode<'t>, operands: &[Operand<'t>]) -> Result<()> {
        self.sync(opcode)?;
        let count = opcode.take_one(&[("x1", 1), ("x2", 2), ("x4", 4)]);
        let transposed = opcode.take("trans");
        let known = opcode.take("aligned") && opcode.take("m8n8") && opcode.take_type() == Some(Type::B16);
        let shared = opcode.take("shared") || opcode.take("shared::cta");
        let (Some(count), true, true) = (count, known, shared) else {
            return Err(self.error("ldmatrix of this form is not known"));
        };
        let [to, from] = self.exactly(operands)?;
        let to = match to {
            Operand::Vector(to) => to.as_slice(),
            single => std::slice::from_ref(single),
        };
        if to.len() != count {
            return Err(self.error(format!("{} registers for {count} matrices", to.len())));
        }
        let to = to.iter().map(|r| self.destination(r)).collect::<Result<_>>()?;
        let from = self.address(from, Space::Shared)?;
        let members = self.constant(WARP);
        self.emit(Op::Collective { members, op: Collective::LoadMatrix { to, transposed, from } });
        Ok(())
    }

    fn mma(&mut self, opcode: &mut Opcode<'t>, operands: &[Operand<'t>]) -> Result<()> {
        self.sync(opcode)?;
        let unknown = || self.error("mma of this form is not known");
        let layout = opcode.take("aligned") && opcode.take("row") && opcode.take("col");
        let k = opcode.take_one(&[("m16n8k4", 4), ("m16n8k8", 8), ("m16n8k16", 16), ("m16n8k32", 32)]);
        let k = k.filter(|_| layout).ok_or_else(unknown)?;
        // d.a.b.c, the last first; the sums of bytes may wrap, or saturate, which is not known here.
        let types = [(); 4].map(|_| opcode.take_type());
        let element = |ty, sums| match (ty, sums) {
            (Some(Type::F16), Type::F32) => Some(MmaElement::F16),
            (Some(Type::Bf16), Type::F32) => Some(MmaElement::Bf16),
            (Some(Type::Tf32), Type::F32) => Some(MmaElement::Tf32),
            (Some(Type::S8), Type::S32) => Some(MmaElement::S8),
            (Some(Type::U8), Type::S32) => Some(MmaElement::U8),
            _ => None,
        };
        let [Some(sums), b, a, d] = types else { return Err(unknown()) };
        let (Some(a_element), Some(b_element)) = (element(a, sums), element(b, sums)) else { return Err(unknown()) };
        let same = a_element == b_element || sums == Type::S32;
        let elements_in_register = match a_element {
            MmaElement::F16 | MmaElement::Bf16 if matches!(k, 8 | 16) => 2,
            MmaElement::Tf32 if matches!(k, 4 | 8) => 1,
            MmaElement::S8 | MmaElement::U8 if matches!(k, 16 | 32) => 4,
            _ => return Err(unknown()),
        };
        if d != Some(sums) || !same {
            return Err(unknown());
        }
        let [d, a, b, c] = self.exactly(operands)?;
        let c = self.mma_operand(c, 4, sums)?;
        let (a, b) = (
            self.mma_operand(a, 16 * k / 32 / elements_in_register, Type::B32)?,
            self.mma_operand(b, 8 * k / 32 / elements_in_register, Type::B32)?,
        );
        let d = match d {
            Operand::Vector(d) => d.iter().map(|r| self.destination(r)).collect::<Result<Vec<_>>>()?,
            _ => Vec::new(),
        };
        let (Ok(d), Ok(c)) = (d.try_into(), c.as_ref().try_into()) else {
            return Err(self.error("four registers are expected"));
        };
        let members = self.constant(WARP);
        let op = Collective::Mma(Mma { a_element, b_element, k, d, a, b, c });
        self.emit(Op::Collective { members, op });
        Ok(())
    }

    fn mma_operand(&mut self, operand: &Operand<'t>, registers: usize, ty: Type) -> Result<Box<[Slot]>> {
        let parts = match operand {
            Operand::Vector(parts) => parts.as_slice(),
            single => std::slice::from_ref(single),
        };
        if parts.len() != registers {
            return Err(self.error(format!("{} registers instead of {registers}", parts.len())));
        }
        parts.iter().map(|p| self.operand(p, ty)).collect()
    }
}
