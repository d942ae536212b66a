//! Statements, branches and calls.

use super::opcode::Opcode;
use super::{Builder, Scope, Symbol};
use crate::error::Result;
use crate::parse::{Instruction, Operand, Space, Statement, Variable};
use crate::program::Op;
use crate::types::Type;

impl<'t> Builder<'_, 't> {
    /// The statements of a body; its parameters are in the innermost scope.
    pub(super) fn body(&mut self, statements: &[Statement<'t>]) -> Result<()> {
        self.declare_labels(statements)?;
        for (i, statement) in statements.iter().enumerate() {
            match statement {
                Statement::Open => {
                    self.scopes.push(Scope::default());
                    self.declare_labels(&statements[i + 1..])?;
                }
                Statement::Close => drop(self.scopes.pop()),
                Statement::Register { ty, name, count } => {
                    let mask = ty.mask();
                    let register = if count.is_none() { Some(self.new_register(mask)) } else { None };
                    let scope = self.innermost();
                    match (register, count) {
                        (Some(register), _) => drop(scope.names.insert(name, Symbol::Register(register))),
                        (None, count) => drop(scope.families.insert(name, (mask, count.unwrap_or(0)))),
                    }
                }
                Statement::Variable(variable) => self.declare(variable)?,
                Statement::Label { line, name } => {
                    self.line = *line;
                    let label = self.label(name)?;
                    self.bind(label);
                }
                Statement::Targets { name, labels } => {
                    self.innermost().tables.insert(name, labels.clone());
                }
                Statement::Instruction(instruction) => self.instruction(instruction)?,
            }
        }
        Ok(())
    }

    fn innermost(&mut self) -> &mut Scope<'t> {
        self.scopes.last_mut().expect("the module's scope is always there")
    }

    /// Labels and branch tables of the innermost scope may be used before they stand.
    fn declare_labels(&mut self, statements: &[Statement<'t>]) -> Result<()> {
        let mut depth = 0;
        for statement in statements {
            match statement {
                Statement::Open => depth += 1,
                Statement::Close if depth == 0 => return Ok(()),
                Statement::Close => depth -= 1,
                Statement::Label { line, name } if depth == 0 => {
                    let label = self.new_label();
                    if self.innermost().labels.insert(name, label).is_some() {
                        return Err(self.source.error(*line, format!("a second label {name}")));
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn label(&self, name: &str) -> Result<usize> {
        let label = self.scopes.iter().rev().find_map(|s| s.labels.get(name));
        label.copied().ok_or_else(|| self.error(format!("no label {name}")))
    }

    fn declare(&mut self, variable: &Variable<'t>) -> Result<()> {
        self.line = variable.line;
        let Variable { space, name, align, bytes, .. } = *variable;
        let symbol = match (space, bytes) {
            (Space::Shared, None) => Symbol::DynamicShared,
            (Space::Shared, Some(bytes)) => {
                Symbol::Variable { space: Space::Shared, offset: self.place_shared(bytes, align) }
            }
            // Parameters of a call live in local memory: the call is inlined.
            (Space::Local | Space::Param, Some(bytes)) => {
                let offset = self.local_bytes.next_multiple_of(align);
                self.local_bytes = offset + bytes;
                Symbol::Variable { space: Space::Local, offset: offset.into() }
            }
            _ => return Err(self.error(format!("{space:?} variable {name} in a body"))),
        };
        self.innermost().names.insert(name, symbol);
        Ok(())
    }

    fn instruction(&mut self, instruction: &Instruction<'t>) -> Result<()> {
        self.line = instruction.line;
        self.guard = match instruction.guard {
            Some((name, negated)) => Some((self.predicate(name)?, negated)),
            None => None,
        };
        let mut opcode = Opcode::new(instruction.opcode);
        let operands = instruction.operands.as_slice();
        match opcode.name {
            "bra" => {
                opcode.take("uni");
                let [Operand::Name(name, 0)] = operands else { return Err(self.error("expected a label")) };
                let target = self.label(name)? as u32;
                self.emit(Op::Branch { target });
            }
            "brx" => {
                opcode.take("uni");
                if !opcode.take("idx") {
                    return Err(self.error("brx without .idx"));
                }
                let [index, Operand::Name(table, 0)] = operands else { return Err(self.error("expected a table")) };
                let index = self.operand(index, Type::U32)?;
                let labels = self.scopes.iter().rev().find_map(|s| s.tables.get(table)).cloned();
                let labels = labels.ok_or_else(|| self.error(format!("no table {table}")))?;
                let targets = labels.iter().map(|l| Ok(self.label(l)? as u32)).collect::<Result<_>>()?;
                self.emit(Op::BranchIndexed { targets, index });
            }
            "ret" => {
                opcode.take("uni");
                match self.return_label {
                    Some(label) => self.emit(Op::Branch { target: label as u32 }),
                    None => self.emit(Op::Exit),
                }
            }
            "exit" => self.emit(Op::Exit),
            "trap" => self.emit(Op::Trap),
            "call" => {
                opcode.take("uni");
                self.call(operands)?;
            }
            // Waiting a while changes nothing here: other warps run when this one's turn ends.
            "nanosleep" => {
                self.type_of(&mut opcode)?;
            }
            // Memory is sequentially consistent here.
            "membar" | "fence" => {
                opcode.take_all(|m| matches!(m, "cta" | "gl" | "sys" | "gpu" | "sc" | "acq_rel"));
            }
            _ => {
                let known = self.compute(&mut opcode, operands)?
                    || self.memory_access(&mut opcode, operands)?
                    || self.collective(&mut opcode, operands)?;
                if !known {
                    return Err(self.error(format!("unknown instruction {}", opcode.name)));
                }
            }
        }
        self.finish(&opcode)
    }

    /// `call (results), function, (arguments)`: the function's body, with its parameters where the caller put them.
    fn call(&mut self, operands: &[Operand<'t>]) -> Result<()> {
        let (results, name, arguments) = match operands {
            [Operand::List(r), Operand::Name(f, 0), Operand::List(a)] => (r.as_slice(), *f, a.as_slice()),
            [Operand::List(r), Operand::Name(f, 0)] => (r.as_slice(), *f, [].as_slice()),
            [Operand::Name(f, 0), Operand::List(a)] => ([].as_slice(), *f, a.as_slice()),
            [Operand::Name(f, 0)] => ([].as_slice(), *f, [].as_slice()),
            _ => return Err(self.error("a call of this form is not known")),
        };
        let tree = self.tree;
        let function = tree.functions.iter().find(|f| f.name == name && !f.is_entry && f.body.is_some());
        let function = function.ok_or_else(|| self.error(format!("call of {name}, which has no body here")))?;
        if self.calls.contains(&name) {
            return Err(self.error(format!("{name} calls itself; only calls that can be inlined are known")));
        }
        if (results.len(), arguments.len()) != (function.results.len(), function.params.len()) {
            return Err(self.error(format!("{name} takes {} arguments", function.params.len())));
        }
        let mut scope = Scope::default();
        for (value, param) in results.iter().chain(arguments).zip(function.results.iter().chain(&function.params)) {
            let symbol = match value {
                Operand::Name(v, 0) => self.scopes.iter().rev().find_map(|s| s.names.get(v)).copied(),
                _ => None,
            };
            match symbol {
                Some(symbol @ Symbol::Variable { space: Space::Local, .. }) => scope.names.insert(param.name, symbol),
                _ => return Err(self.error("only .param variables are passed")),
            };
        }
        let after = self.new_label();
        if let Some((slot, negated)) = self.guard {
            self.guard = Some((slot, !negated));
            self.emit(Op::Branch { target: after as u32 });
        }
        let line = self.line;
        let outer = self.scopes.split_off(1);
        let return_label = self.return_label.replace(after);
        self.calls.push(name);
        self.scopes.push(scope);
        let body = function.body.as_deref().unwrap_or_default();
        self.body(body)?;
        self.scopes.truncate(1);
        self.scopes.extend(outer);
        self.calls.pop();
        self.return_label = return_label;
        (self.line, self.guard) = (line, None);
        self.bind(after);
        Ok(())
    }
}
