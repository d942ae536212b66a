//! Loads, stores, atomics and copies.

use super::Builder;
use super::opcode::Opcode;
use crate::error::Result;
use crate::parse::{Operand, Space};
use crate::program::{AtomicOp, Op, Register, Slot};
use crate::types::Type;

/// Ordering, scope, and hints for caches: memory here is sequentially consistent and has none.
fn is_hint(modifier: &str) -> bool {
    matches!(
        modifier,
        "weak" | "volatile" | "relaxed" | "acquire" | "release" | "acq_rel" | "cta" | "cluster" | "gpu" | "sys"
    ) || matches!(modifier, "ca" | "cg" | "cs" | "lu" | "cv" | "wb" | "wt" | "nc")
        || modifier.starts_with("L1::")
        || (modifier.starts_with("L2::") && modifier != "L2::cache_hint")
}

impl<'t> Builder<'_, 't> {
    /// Lowers an instruction of this file; false if the opcode is not one.
    pub(super) fn memory_access(&mut self, opcode: &mut Opcode<'t>, operands: &[Operand<'t>]) -> Result<bool> {
        match opcode.name {
            "ld" | "ldu" | "st" => self.load_or_store(opcode, operands)?,
            "atom" | "red" => self.atomic(opcode, operands)?,
            "cp" => self.copy_async(opcode, operands)?,
            // A hint that may name any address.
            "prefetch" | "prefetchu" | "applypriority" => {
                opcode.take_all(|m| matches!(m, "global" | "local" | "L1" | "L2") || m.starts_with("L2::"));
                self.emit(Op::Nothing);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The state space among the modifiers.
    pub(super) fn space(&self, opcode: &mut Opcode) -> Result<Option<Space>> {
        let space = opcode.take_one(&[
            ("global", Space::Global),
            ("shared", Space::Shared),
            ("shared::cta", Space::Shared),
            ("local", Space::Local),
            ("const", Space::Const),
            ("param", Space::Param),
            ("param::entry", Space::Param),
            ("param::func", Space::Param),
        ]);
        Ok(space)
    }

    /// A cache policy may follow the operands.
    fn without_policy<'o>(&self, opcode: &mut Opcode, operands: &'o [Operand<'t>]) -> Result<&'o [Operand<'t>]> {
        match (opcode.take("L2::cache_hint"), operands.split_last()) {
            (true, Some((_, rest))) => Ok(rest),
            (true, None) => Err(self.error("a cache hint without a policy")),
            (false, _) => Ok(operands),
        }
    }

    fn load_or_store(&mut self, opcode: &mut Opcode<'t>, operands: &[Operand<'t>]) -> Result<()> {
        let ty = self.type_of(opcode)?;
        let space = self.space(opcode)?.unwrap_or(Space::Generic);
        opcode.take_all(is_hint);
        let lanes = opcode.take_one(&[("v2", 2), ("v4", 4)]).unwrap_or(1);
        let [a, b] = self.exactly(self.without_policy(opcode, operands)?)?;
        let (value, address) = if opcode.name == "st" { (b, a) } else { (a, b) };
        let values = match value {
            Operand::Vector(values) => values.as_slice(),
            single => std::slice::from_ref(single),
        };
        if values.len() != lanes || ty == Type::Pred {
            return Err(self.error(format!("{} values of {ty:?}", values.len())));
        }
        let at = self.address(address, space)?;
        let bytes = ty.bytes();
        if opcode.name == "st" {
            if matches!(at.space, Space::Const | Space::Param) {
                return Err(self.error(format!("a store to {:?} memory", at.space)));
            }
            let from = values.iter().map(|v| self.operand(v, ty)).collect::<Result<Box<[Slot]>>>()?;
            self.emit(Op::Store { from, bytes, to: at });
        } else {
            let to = values.iter().map(|v| self.destination(v)).collect::<Result<Box<[Register]>>>()?;
            if to.iter().any(|r| r.mask < ty.mask()) {
                return Err(self.error(format!("a register narrower than {ty:?}")));
            }
            self.emit(Op::Load { to, bytes, signed: ty.is_signed(), from: at });
        }
        Ok(())
    }

    fn atomic(&mut self, opcode: &mut Opcode<'t>, operands: &[Operand<'t>]) -> Result<()> {
        let ty = self.type_of(opcode)?;
        let space = self.space(opcode)?.unwrap_or(Space::Generic);
        let op = opcode.take_one(&[
            ("exch", AtomicOp::Exchange),
            ("cas", AtomicOp::CompareAndSwap),
            ("add", AtomicOp::Add),
            ("and", AtomicOp::And),
            ("or", AtomicOp::Or),
            ("xor", AtomicOp::Xor),
            ("min", AtomicOp::Min),
            ("max", AtomicOp::Max),
            ("inc", AtomicOp::Increment),
            ("dec", AtomicOp::Decrement),
        ]);
        opcode.take_all(is_hint);
        let known = match op {
            Some(AtomicOp::Exchange | AtomicOp::CompareAndSwap) => {
                matches!(ty, Type::B32 | Type::U32 | Type::S32 | Type::F32 | Type::B64 | Type::U64)
            }
            Some(AtomicOp::Add) => matches!(ty, Type::U32 | Type::S32 | Type::U64 | Type::F32 | Type::F64),
            Some(AtomicOp::And | AtomicOp::Or | AtomicOp::Xor) => matches!(ty, Type::B32 | Type::B64),
            Some(AtomicOp::Min | AtomicOp::Max) => matches!(ty, Type::U32 | Type::S32 | Type::U64 | Type::S64),
            Some(AtomicOp::Increment | AtomicOp::Decrement) => ty == Type::U32,
            None => false,
        };
        let (Some(op), true) = (op, known) else {
            return Err(self.error(format!("{} of this form is not known", opcode.name)));
        };
        let operands = self.without_policy(opcode, operands)?;
        let (to, rest) = match (opcode.name, operands) {
            ("atom", [to, rest @ ..]) => (Some(self.destination(to)?), rest),
            (_, rest) => (None, rest),
        };
        let (address, operand, second) = match (op, rest) {
            (AtomicOp::CompareAndSwap, [address, b, c]) => (address, b, c),
            (AtomicOp::CompareAndSwap, _) => return Err(self.error("cas takes two values")),
            (_, [address, b]) => (address, b, b),
            _ => return Err(self.error(format!("{} operands", operands.len()))),
        };
        let at = self.address(address, space)?;
        if !matches!(at.space, Space::Generic | Space::Global | Space::Shared) {
            return Err(self.error(format!("an atomic on {:?} memory", at.space)));
        }
        let (operand, second) = (self.operand(operand, ty)?, self.operand(second, ty)?);
        self.emit(Op::Atomic { op, ty, to, at, operand, second });
        Ok(())
    }

    fn copy_async(&mut self, opcode: &mut Opcode<'t>, operands: &[Operand<'t>]) -> Result<()> {
        if !opcode.take("async") {
            return Err(self.error("only cp.async is known"));
        }
        if opcode.take("commit_group") {
            self.exactly::<0>(operands)?;
            self.emit(Op::CopyCommit);
            return Ok(());
        }
        if opcode.take("wait_all") {
            self.exactly::<0>(operands)?;
            self.emit(Op::CopyWait { left: None });
            return Ok(());
        }
        if opcode.take("wait_group") {
            let [Operand::Integer(left)] = operands else { return Err(self.error("expected a number of groups")) };
            self.emit(Op::CopyWait { left: Some(*left as u32) });
            return Ok(());
        }
        let bypass = opcode.take_one(&[("ca", false), ("cg", true)]);
        let shared = opcode.take("shared") || opcode.take("shared::cta");
        let (Some(bypass), true, true) = (bypass, shared, opcode.take("global")) else {
            return Err(self.error("cp.async of this form is not known"));
        };
        opcode.take_all(|m| m.starts_with("L2::") && m != "L2::cache_hint");
        let operands = self.without_policy(opcode, operands)?;
        let (to, from, bytes, source_bytes) = match operands {
            [to, from, Operand::Integer(bytes)] => (to, from, *bytes as u32, None),
            [to, from, Operand::Integer(bytes), size] => {
                (to, from, *bytes as u32, Some(self.operand(size, Type::U32)?))
            }
            _ => return Err(self.error("cp.async takes two addresses and a size")),
        };
        if !(bytes == 16 || !bypass && matches!(bytes, 4 | 8)) {
            return Err(self.error(format!("cp.async of {bytes} bytes")));
        }
        let (to, from) = (self.address(to, Space::Shared)?, self.address(from, Space::Global)?);
        self.emit(Op::CopyAsync { bytes, source_bytes, to, from });
        Ok(())
    }
}
