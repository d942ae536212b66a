//! Operands: registers, constants, special registers, addresses.

use super::{Builder, Symbol};
use crate::error::Result;
use crate::parse::{Operand, Space};
use crate::program::{Address, Register, Row, Slot, Special};
use crate::types::Type;

impl<'t> Builder<'_, 't> {
    /// What a name stands for, innermost scope first; registers of a family (`%r<9>`) are made at their first use.
    fn lookup(&mut self, name: &'t str) -> Option<Symbol> {
        let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let number = name[stem.len()..].parse::<u32>().ok();
        for i in (0..self.scopes.len()).rev() {
            if let Some(&symbol) = self.scopes[i].names.get(name) {
                return Some(match symbol {
                    Symbol::ModuleShared { bytes, align } => {
                        let placed = Symbol::Variable { space: Space::Shared, offset: self.place_shared(bytes, align) };
                        self.scopes[i].names.insert(name, placed);
                        placed
                    }
                    other => other,
                });
            }
            match (self.scopes[i].families.get(stem), number) {
                (Some(&(mask, count)), Some(number)) if number < count => {
                    let symbol = Symbol::Register(self.new_register(mask));
                    self.scopes[i].names.insert(name, symbol);
                    return Some(symbol);
                }
                _ => {}
            }
        }
        None
    }

    pub(super) fn place_shared(&mut self, bytes: u32, align: u32) -> u64 {
        let offset = self.shared_bytes.next_multiple_of(align);
        self.shared_bytes = offset + bytes;
        offset.into()
    }

    /// A register that an instruction writes. `_` is one that nobody reads.
    pub(super) fn destination(&mut self, operand: &Operand<'t>) -> Result<Register> {
        match operand {
            Operand::Name("_", 0) => Ok(self.new_register(u64::MAX)),
            Operand::Name(name, 0) => match self.lookup(name) {
                Some(Symbol::Register(register)) => Ok(register),
                _ => Err(self.error(format!("{name} is no register"))),
            },
            _ => Err(self.error("a result must be a register")),
        }
    }

    /// A predicate register.
    pub(super) fn predicate(&mut self, name: &'t str) -> Result<Slot> {
        match self.lookup(name) {
            Some(Symbol::Register(Register { slot, mask: 1 })) => Ok(slot),
            _ => Err(self.error(format!("{name} is no predicate"))),
        }
    }

    /// `%p`, `!%p` or a constant: the row and whether it is negated.
    pub(super) fn condition(&mut self, operand: &Operand<'t>) -> Result<(Slot, bool)> {
        match operand {
            Operand::Name(name, 0) => Ok((self.predicate(name)?, false)),
            Operand::Not(name) => Ok((self.predicate(name)?, true)),
            Operand::Integer(i) => Ok((self.constant((*i != 0).into()), false)),
            _ => Err(self.error("expected a predicate")),
        }
    }

    /// An operand that is read as `ty`.
    pub(super) fn operand(&mut self, operand: &Operand<'t>, ty: Type) -> Result<Slot> {
        match *operand {
            Operand::Integer(i) if ty == Type::F32 && i == 0 => Ok(self.constant(0)),
            Operand::Integer(_) if ty.is_float() && ty.bytes() >= 4 && !matches!(ty, Type::F16x2 | Type::Bf16x2) => {
                Err(self.error("an integer where a floating-point number is expected"))
            }
            Operand::Integer(i) => Ok(self.constant(i as u64)),
            Operand::F32(bits) if ty.bytes() == 4 => Ok(self.constant(bits.into())),
            Operand::F64(x) => match ty {
                Type::F32 => Ok(self.constant((x as f32).to_bits().into())),
                Type::F64 | Type::B64 | Type::U64 | Type::S64 => Ok(self.constant(x.to_bits())),
                _ => Err(self.error("a fraction where none is expected")),
            },
            Operand::Name("WARP_SZ", 0) => Ok(self.constant(32)),
            Operand::Name(name, offset) => match (self.lookup(name), offset) {
                (Some(Symbol::Register(register)), 0) => {
                    // ptxas would refuse it: an operand may be wider than its type only in ld, st and cvt, which come
                    // another way.
                    if ty != Type::Pred && register.mask < ty.mask() {
                        return Err(self.error(format!("register {name} is narrower than {ty:?}")));
                    }
                    Ok(register.slot)
                }
                (Some(Symbol::Register(_)), _) => Err(self.error("a sum is no operand")),
                (Some(symbol), _) => {
                    let row = self.variable_row(symbol, offset)?;
                    Ok(self.fixed(row))
                }
                (None, 0) => match special(name) {
                    Some(row) => Ok(self.fixed(row)),
                    None => Err(self.error(format!("{name} is not known"))),
                },
                (None, _) => Err(self.error(format!("{name} is not known"))),
            },
            _ => Err(self.error(format!("an operand that is no {ty:?}"))),
        }
    }

    /// The address of a variable in its own space.
    fn variable_row(&self, symbol: Symbol, plus: i64) -> Result<Row> {
        match symbol {
            Symbol::Variable { space: Space::Global, offset } => {
                Ok(Row::GlobalVariable(offset.wrapping_add_signed(plus)))
            }
            Symbol::Variable { offset, .. } => Ok(Row::Constant(offset.wrapping_add_signed(plus))),
            Symbol::DynamicShared if plus == 0 => Ok(Row::DynamicShared),
            _ => Err(self.error("an address that is not known at load")),
        }
    }

    /// `[a+4]` in `space`. Parameters of inlined functions lie in local memory.
    pub(super) fn address(&mut self, operand: &Operand<'t>, space: Space) -> Result<Address> {
        let Operand::Address(base, offset) = *operand else {
            return Err(self.error("expected an address in brackets"));
        };
        let Some(name) = base else {
            return Ok(Address { space, base: self.constant(0), offset, mask: u64::MAX });
        };
        match self.lookup(name) {
            Some(Symbol::Register(register)) if register.mask > u16::MAX.into() => {
                Ok(Address { space, base: register.slot, offset, mask: register.mask })
            }
            Some(Symbol::Register(_)) => Err(self.error(format!("register {name} is too narrow for an address"))),
            Some(symbol) => {
                let home = match symbol {
                    Symbol::Variable { space, .. } => space,
                    _ => Space::Shared,
                };
                if home != space && space != Space::Generic && (home, space) != (Space::Local, Space::Param) {
                    return Err(self.error(format!("{name} is {home:?}, not {space:?}")));
                }
                let row = self.variable_row(symbol, 0)?;
                Ok(Address { space: home, base: self.fixed(row), offset, mask: u64::MAX })
            }
            None => Err(self.error(format!("{name} is not known"))),
        }
    }
}

fn special(name: &str) -> Option<Row> {
    let axis = |name: &str| match name {
        "x" => Some(0),
        "y" => Some(1),
        "z" => Some(2),
        _ => None,
    };
    let special = match name.split_once('.') {
        Some(("%tid", a)) => Special::Tid(axis(a)?),
        Some(("%ntid", a)) => Special::Ntid(axis(a)?),
        Some(("%ctaid", a)) => Special::Ctaid(axis(a)?),
        Some(("%nctaid", a)) => Special::Nctaid(axis(a)?),
        Some(_) => return None,
        None => match name {
            "%laneid" => Special::LaneId,
            "%warpid" => Special::WarpId,
            "%nwarpid" => Special::NWarpId,
            "%lanemask_eq" => Special::LaneMaskEqual,
            "%lanemask_lt" => Special::LaneMaskLess,
            "%lanemask_le" => Special::LaneMaskLessEqual,
            "%lanemask_gt" => Special::LaneMaskGreater,
            "%lanemask_ge" => Special::LaneMaskGreaterEqual,
            "%dynamic_smem_size" => Special::DynamicSharedSize,
            "%total_smem_size" => Special::TotalSharedSize,
            _ => return None,
        },
    };
    Some(Row::Special(special))
}
