//! Instructions that compute registers from registers.

use super::Builder;
use super::opcode::Opcode;
use crate::arithmetic::float::{self, Mode};
use crate::arithmetic::integer::{self, Comparison, Part};
use crate::arithmetic::small_float::Rounding;
use crate::arithmetic::{Map, bits, convert, four, one, three, two};
use crate::error::Result;
use crate::parse::{Operand, Space};
use crate::program::{CONST_WINDOW, LOCAL_WINDOW, Op, Register, SHARED_WINDOW, Slot, WINDOW};
use crate::types::Type;

impl<'t> Builder<'_, 't> {
    /// Lowers an instruction of this file; false if the opcode is not one.
    pub(super) fn compute(&mut self, opcode: &mut Opcode<'t>, operands: &[Operand<'t>]) -> Result<bool> {
        match opcode.name {
            "add" | "addc" | "sub" | "subc" | "mul" | "mad" | "madc" | "fma" | "div" | "rem" | "min" | "max"
            | "abs" | "neg" | "sad" | "shl" | "shr" | "and" | "or" | "xor" | "not" | "cnot" | "rcp" | "sqrt"
            | "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh" | "copysign" => self.arithmetic(opcode, operands)?,
            "setp" | "set" => self.set(opcode, operands)?,
            "selp" => {
                let ty = self.type_of(opcode)?;
                let [to, a, b, p] = self.exactly(operands)?;
                let (to, a, b) = (self.destination(to)?, self.operand(a, ty)?, self.operand(b, ty)?);
                let (p, negated) = self.condition(p)?;
                let map = three(move |a, b, p| if (p != 0) != negated { a } else { b });
                self.map(map, to, &[a, b, p]);
            }
            "slct" => {
                let condition = self.type_of(opcode)?;
                let ty = self.type_of(opcode)?;
                opcode.take("ftz");
                let not_negative: fn(u64) -> bool = match condition {
                    Type::S32 => |c| c as i32 >= 0,
                    // -0 counts as 0; subnormals keep their sign's side only without .ftz, which nvcc does not ask for.
                    Type::F32 => |c| f32::from_bits(c as u32) >= 0.0,
                    _ => return Err(self.error("slct on this type is not known")),
                };
                let map = three(move |a, b, c| if not_negative(c) { a } else { b });
                self.typed(map, operands, &[ty, ty, condition])?;
            }
            "mov" => self.mov(opcode, operands)?,
            "cvt" => self.cvt(opcode, operands)?,
            "cvta" => self.cvta(opcode, operands)?,
            "isspacep" => {
                let space = self.space(opcode)?.ok_or_else(|| self.error("isspacep without a space"))?;
                let within = move |a: u64, window: u64| (window..window + WINDOW).contains(&a);
                let map = one(move |a| match space {
                    Space::Shared => within(a, SHARED_WINDOW),
                    Space::Local => within(a, LOCAL_WINDOW),
                    Space::Const => within(a, CONST_WINDOW),
                    _ => a < SHARED_WINDOW,
                } as u64);
                self.typed(map, operands, &[Type::U64])?;
            }
            "lop3" => {
                let ty = self.type_of(opcode)?;
                let (Some((Operand::Integer(table @ 0..=255), rest)), Type::B32) = (operands.split_last(), ty) else {
                    return Err(self.error("lop3 without a table, or not of .b32"));
                };
                self.typed(bits::lop3(*table as u8), rest, &[ty; 3])?;
            }
            "shf" => {
                let left = opcode.take_one(&[("l", true), ("r", false)]);
                let wrap = opcode.take_one(&[("wrap", true), ("clamp", false)]);
                let (Some(left), Some(wrap), Some(Type::B32)) = (left, wrap, opcode.take_type()) else {
                    return Err(self.error("shf of this form is not known"));
                };
                self.typed(bits::funnel_shift(left, wrap), operands, &[Type::B32; 3])?;
            }
            "prmt" => {
                let ty = self.type_of(opcode)?;
                self.typed(bits::permute(), operands, &[ty; 3])?;
            }
            "bfe" => {
                let ty = self.type_of(opcode)?;
                let map = self.known(bits::extract(ty), opcode)?;
                self.typed(map, operands, &[ty, Type::U32, Type::U32])?;
            }
            "bfi" => {
                let ty = self.type_of(opcode)?;
                let map = self.known(bits::insert(ty), opcode)?;
                self.typed(map, operands, &[ty, ty, Type::U32, Type::U32])?;
            }
            "popc" | "clz" | "brev" | "bfind" => {
                let ty = self.type_of(opcode)?;
                let shift_amount = opcode.name == "bfind" && opcode.take("shiftamt");
                let map = self.known(bits::count(opcode.name, ty, shift_amount), opcode)?;
                self.typed(map, operands, &[ty])?;
            }
            "dp4a" => {
                let (b, a) = (self.type_of(opcode)?, self.type_of(opcode)?);
                let known = |t| matches!(t, Type::U32 | Type::S32);
                if !known(a) || !known(b) {
                    return Err(self.error("dp4a of this type is not known"));
                }
                self.typed(bits::dot_bytes(a.is_signed(), b.is_signed()), operands, &[Type::U32; 3])?;
            }
            "testp" => {
                let ty = self.type_of(opcode)?;
                let class = opcode.take_one(
                    &["finite", "infinite", "number", "notanumber", "normal", "subnormal"].map(|class| (class, class)),
                );
                let map = self.known(class.and_then(|class| float::classify(class, ty)), opcode)?;
                self.typed(map, operands, &[ty])?;
            }
            "activemask" => {
                self.type_of(opcode)?;
                let [to] = self.exactly(operands)?;
                let to = self.destination(to)?;
                self.emit(Op::ActiveMask { to });
            }
            // A hint for the cache: any value will do.
            "createpolicy" => {
                opcode.take_all(|_| true);
                let to = operands.first().ok_or_else(|| self.error("createpolicy without a result"))?;
                let (to, zero) = (self.destination(to)?, self.constant(0));
                self.map(one(|a| a), to, &[zero]);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The operands, of which there must be N.
    pub(super) fn exactly<'o, const N: usize>(&self, operands: &'o [Operand<'t>]) -> Result<&'o [Operand<'t>; N]> {
        operands.try_into().map_err(|_| self.error(format!("{} operands instead of {N}", operands.len())))
    }

    fn known<T>(&self, map: Option<T>, opcode: &Opcode) -> Result<T> {
        map.ok_or_else(|| self.error(format!("{} of this form is not known", opcode.name)))
    }

    pub(super) fn map(&mut self, map: Map, to: Register, from: &[Slot]) {
        debug_assert_eq!(map.arity(), from.len());
        let mut args = [0; 4];
        args[..from.len()].copy_from_slice(from);
        self.emit(Op::Map { map, to, args });
    }

    /// A map whose first operand is its result and whose others have the given types.
    fn typed(&mut self, map: Map, operands: &[Operand<'t>], types: &[Type]) -> Result<()> {
        if operands.len() != types.len() + 1 {
            return Err(self.error(format!("{} operands instead of {}", operands.len(), types.len() + 1)));
        }
        let to = self.destination(&operands[0])?;
        let from = operands[1..].iter().zip(types).map(|(o, &ty)| self.operand(o, ty)).collect::<Result<Vec<_>>>()?;
        self.map(map, to, &from);
        Ok(())
    }

    fn arithmetic(&mut self, opcode: &mut Opcode<'t>, operands: &[Operand<'t>]) -> Result<()> {
        let ty = self.type_of(opcode)?;
        let name = opcode.name;
        if ty.is_float() {
            // Division in full range is approximate too; approximate functions have no rounding.
            let approximate = opcode.take("approx") || opcode.take("full");
            let mode = Mode {
                ftz: opcode.take("ftz"),
                saturate: opcode.take("sat"),
                relu: opcode.take("relu"),
                nan: opcode.take("NaN"),
                approximate,
                rounding: opcode.take_rounding().unwrap_or(Rounding::Nearest),
            };
            let name = if name == "mad" { "fma" } else { name };
            let map = self.known(float::float(name, ty, mode), opcode)?;
            let types = vec![ty; map.arity()];
            return self.typed(map, operands, &types);
        }
        // Predicates: `and or xor not`.
        let ty = if ty == Type::Pred { Type::B8 } else { ty };
        let is_predicate = ty == Type::B8;
        let part = opcode.take_one(&[("lo", Part::Low), ("hi", Part::High), ("wide", Part::Wide)]);
        if opcode.take("cc") || matches!(name, "addc" | "subc" | "madc") {
            return self.carry_step(opcode, ty, part, operands);
        }
        let saturate = opcode.take("sat");
        let map = self.known(integer::integer(name, ty, part, saturate), opcode)?;
        let ty = if is_predicate { Type::Pred } else { ty };
        let mut types = vec![ty; map.arity()];
        match (name, part) {
            ("shl" | "shr", _) => types[1] = Type::U32,
            ("mad", Some(Part::Wide)) => types[2] = if ty.bytes() == 2 { Type::B32 } else { Type::B64 },
            _ => {}
        }
        self.typed(map, operands, &types)
    }

    /// The carry is computed first, into a register of its own: the result may overwrite an operand.
    fn carry_step(
        &mut self,
        opcode: &mut Opcode<'t>,
        ty: Type,
        part: Option<Part>,
        operands: &[Operand<'t>],
    ) -> Result<()> {
        let step = self.known(integer::carry(opcode.name, ty, part), opcode)?;
        let code = match self.carry {
            Some(code) => code,
            None => *self.carry.insert(Register { slot: self.rows.len() as Slot, mask: 1 }),
        };
        if code.slot as usize == self.rows.len() {
            self.new_register(1);
        }
        let next = self.new_register(1);
        let to = self.destination(operands.first().ok_or_else(|| self.error("no operands"))?)?;
        let mut from = operands[1..].iter().map(|o| self.operand(o, ty)).collect::<Result<Vec<_>>>()?;
        if from.len() + 1 != step.value.arity() {
            return Err(self.error(format!("{} operands instead of {}", operands.len(), step.value.arity())));
        }
        from.push(if step.takes_carry { code.slot } else { self.constant(0) });
        self.map(step.carry, next, &from);
        self.map(step.value, to, &from);
        self.map(one(|a| a), code, &[next.slot]);
        Ok(())
    }

    fn set(&mut self, opcode: &mut Opcode<'t>, operands: &[Operand<'t>]) -> Result<()> {
        use Comparison::*;
        let ty = self.type_of(opcode)?;
        let result = if opcode.name == "set" { Some(self.type_of(opcode)?) } else { None };
        let ftz = opcode.take("ftz");
        let comparison = opcode.take_one(&[
            ("eq", (Equal, false)),
            ("ne", (NotEqual, false)),
            ("lt", (Less, false)),
            ("le", (LessEqual, false)),
            ("gt", (Greater, false)),
            ("ge", (GreaterEqual, false)),
            ("lo", (Less, false)),
            ("ls", (LessEqual, false)),
            ("hi", (Greater, false)),
            ("hs", (GreaterEqual, false)),
            ("equ", (Equal, true)),
            ("neu", (NotEqual, true)),
            ("ltu", (Less, true)),
            ("leu", (LessEqual, true)),
            ("gtu", (Greater, true)),
            ("geu", (GreaterEqual, true)),
        ]);
        let test = match comparison {
            Some((comparison, unordered)) if ty.is_float() => float::compare(comparison, unordered, ty, ftz),
            Some((comparison, false)) => integer::compare(comparison, ty),
            Some(_) => None,
            None => {
                let numbers = opcode.take_one(&[("num", true), ("nan", false)]);
                numbers.and_then(|numbers| float::compare_numbers(numbers, ty))
            }
        };
        let test = self.known(test, opcode)?;
        let join: Option<fn(u64, u64) -> u64> = opcode.take_one::<fn(u64, u64) -> u64>(&[
            ("and", |t, c| t & c),
            ("or", |t, c| t | c),
            ("xor", |t, c| t ^ c),
        ]);
        let (to, a, b, c) = match (operands, join) {
            ([to, a, b], None) => (to, a, b, None),
            ([to, a, b, c], Some(_)) => (to, a, b, Some(self.condition(c)?)),
            _ => return Err(self.error(format!("{} operands", operands.len()))),
        };
        let from = [self.operand(a, ty)?, self.operand(b, ty)?];
        // The test is made first, into a register of its own, then what the results are: they may overwrite an operand.
        let t = self.new_register(1);
        self.map(test, t, &from);
        let (c, negated) = c.unwrap_or((t.slot, false));
        let join = join.unwrap_or(|t, _| t);
        match (to, result) {
            (Operand::Pair(pair), None) => {
                let [p, q] = [self.destination(&pair[0])?, self.destination(&pair[1])?];
                let (kept_c, guard) = (self.new_register(1), self.guard.map(|g| g.0));
                if guard == Some(p.slot) {
                    return Err(self.error("setp whose first result is its own guard"));
                }
                self.map(one(move |c| c ^ u64::from(negated)), kept_c, &[c]);
                self.map(two(join), p, &[t.slot, kept_c.slot]);
                self.map(two(move |t, c| join(1 - t, c)), q, &[t.slot, kept_c.slot]);
            }
            (to, None) => {
                let to = self.destination(to)?;
                self.map(two(move |t, c| join(t, c ^ u64::from(negated))), to, &[t.slot, c]);
            }
            (to, Some(result)) => {
                let to = self.destination(to)?;
                let yes: u64 = match result {
                    Type::U32 | Type::S32 => u32::MAX.into(),
                    Type::F32 => 1f32.to_bits().into(),
                    _ => return Err(self.error("set to this type is not known")),
                };
                self.map(two(move |t, c| join(t, c ^ u64::from(negated)) * yes), to, &[t.slot, c]);
            }
        }
        Ok(())
    }

    fn mov(&mut self, opcode: &mut Opcode<'t>, operands: &[Operand<'t>]) -> Result<()> {
        let ty = self.type_of(opcode)?;
        let [to, from] = self.exactly(operands)?;
        match (to, from) {
            (to, Operand::Name("%clock" | "%clock64" | "%clock_hi" | "%globaltimer" | "%globaltimer_lo", 0)) => {
                let to = self.destination(to)?;
                self.emit(Op::Clock { to });
            }
            (Operand::Vector(to), from) => {
                let width = 8 * ty.bytes() / to.len().max(1) as u32;
                let from = self.operand(from, ty)?;
                for (i, to) in to.iter().enumerate() {
                    let mut to = self.destination(to)?;
                    // `_` has no width of its own.
                    to.mask &= u64::MAX >> (64 - width);
                    self.map(one(move |a| a >> (i as u32 * width)), to, &[from]);
                }
            }
            (to, Operand::Vector(from)) => {
                let to = self.destination(to)?;
                let width = 8 * ty.bytes() / from.len().max(1) as u32;
                let part = match width {
                    8 => Type::B8,
                    16 => Type::B16,
                    32 => Type::B32,
                    _ => return Err(self.error("parts of this width")),
                };
                let low = move |x: u64| x & part.mask();
                let slots = from.iter().map(|o| self.operand(o, part)).collect::<Result<Vec<_>>>()?;
                let map = match slots.len() {
                    2 => two(move |a, b| low(a) | low(b) << width),
                    4 => {
                        four(move |a, b, c, d| low(a) | low(b) << width | low(c) << (2 * width) | low(d) << (3 * width))
                    }
                    _ => return Err(self.error("two or four parts are known")),
                };
                self.map(map, to, &slots);
            }
            (_, from) => {
                let a = self.operand(from, ty)?;
                let to = self.destination(to)?;
                self.map(one(|a| a), to, &[a]);
            }
        }
        Ok(())
    }

    fn cvt(&mut self, opcode: &mut Opcode<'t>, operands: &[Operand<'t>]) -> Result<()> {
        let (from, to) = (self.type_of(opcode)?, self.type_of(opcode)?);
        let mode = convert::Mode {
            ftz: opcode.take("ftz"),
            saturate: opcode.take("sat"),
            relu: opcode.take("relu"),
            rounding: opcode.take_rounding(),
            integral: opcode.take_integral_rounding(),
        };
        if matches!(to, Type::F16x2 | Type::Bf16x2) {
            let map = self.known((from == Type::F32).then(|| convert::convert_pair(to, mode)).flatten(), opcode)?;
            return self.typed(map, operands, &[from; 2]);
        }
        let map = self.known(convert::convert(to, from, mode), opcode)?;
        self.typed(map, operands, &[from])
    }

    /// Windows are added and subtracted; a global address is its own generic address.
    fn cvta(&mut self, opcode: &mut Opcode<'t>, operands: &[Operand<'t>]) -> Result<()> {
        let to_space = opcode.take("to");
        let space = self.space(opcode)?;
        let ty = self.type_of(opcode)?;
        let window = match space {
            Some(Space::Global) => 0,
            Some(Space::Shared) => SHARED_WINDOW,
            Some(Space::Local) => LOCAL_WINDOW,
            Some(Space::Const) => CONST_WINDOW,
            _ => return Err(self.error("cvta of this space is not known")),
        };
        let map = if to_space { one(move |a| a.wrapping_sub(window)) } else { one(move |a| a.wrapping_add(window)) };
        self.typed(map, operands, &[ty])
    }
}
