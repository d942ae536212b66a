//! Statements and operands.

use super::{Instruction, Operand, Parser, Space, Statement, Token, integer};
use crate::error::Result;
use crate::types::Type;

impl<'t> Parser<'_, 't> {
    /// The statements up to the brace that closes the body; the opening one has been taken.
    pub fn body(&mut self) -> Result<Vec<Statement<'t>>> {
        let (mut statements, mut depth) = (Vec::new(), 0);
        loop {
            let line = self.line();
            if self.takes('{') {
                depth += 1;
                statements.push(Statement::Open);
            } else if self.takes('}') {
                if depth == 0 {
                    return Ok(statements);
                }
                depth -= 1;
                statements.push(Statement::Close);
            } else if self.takes(';') {
                // An empty statement: inline assembly that ends in one semicolon too many.
            } else if self.takes('@') {
                let negated = self.takes('!');
                let guard = Some((self.word()?, negated));
                let opcode = self.word()?;
                statements.push(Statement::Instruction(self.instruction(line, guard, opcode)?));
            } else {
                let word = self.word()?;
                match word {
                    ".reg" => self.registers(&mut statements)?,
                    ".local" => statements.push(Statement::Variable(self.statement_variable(Space::Local)?)),
                    ".shared" => statements.push(Statement::Variable(self.statement_variable(Space::Shared)?)),
                    ".param" => statements.push(Statement::Variable(self.statement_variable(Space::Param)?)),
                    ".const" => statements.push(Statement::Variable(self.statement_variable(Space::Const)?)),
                    ".loc" | ".file" => self.skip_line(line),
                    ".pragma" => {
                        self.next()?;
                        self.expect(';')?;
                    }
                    _ if word.starts_with('.') => {
                        return Err(self.source.error(line, format!("unknown directive {word}")));
                    }
                    _ if self.takes(':') => statements.push(self.label(line, word)?),
                    _ => statements.push(Statement::Instruction(self.instruction(line, None, word)?)),
                }
            }
        }
    }

    fn registers(&mut self, statements: &mut Vec<Statement<'t>>) -> Result<()> {
        let word = self.word()?;
        let ty = word.strip_prefix('.').and_then(Type::parse);
        let ty = ty.ok_or_else(|| self.error(format!("unknown register type {word}")))?;
        loop {
            let name = self.word()?;
            let mut count = None;
            if self.takes('<') {
                count = Some(self.unsigned()?);
                self.expect('>')?;
            }
            statements.push(Statement::Register { ty, name, count });
            if !self.takes(',') {
                return self.expect(';');
            }
        }
    }

    fn label(&mut self, line: u32, name: &'t str) -> Result<Statement<'t>> {
        if !self.takes_word(".branchtargets") {
            return Ok(Statement::Label { line, name });
        }
        let mut labels = vec![self.word()?];
        while self.takes(',') {
            labels.push(self.word()?);
        }
        self.expect(';')?;
        Ok(Statement::Targets { name, labels })
    }

    fn instruction(&mut self, line: u32, guard: Option<(&'t str, bool)>, opcode: &'t str) -> Result<Instruction<'t>> {
        let mut operands = Vec::new();
        if !self.takes(';') {
            loop {
                operands.push(self.operand()?);
                if !self.takes(',') {
                    self.expect(';')?;
                    break;
                }
            }
        }
        Ok(Instruction { line, guard, opcode, operands })
    }

    fn operand(&mut self) -> Result<Operand<'t>> {
        let operand = match self.next()? {
            Token::Mark('{') => Operand::Vector(self.list('}')?),
            Token::Mark('(') => Operand::List(self.list(')')?),
            Token::Mark('!') => Operand::Not(self.word()?),
            Token::Mark('[') => self.address()?,
            Token::Mark('-') => self.number(true)?,
            Token::Word(word) if word.starts_with(|c: char| c.is_ascii_digit()) => {
                self.at -= 1;
                self.number(false)?
            }
            Token::Word(word) => Operand::Name(word, self.offset()?),
            _ => {
                self.at -= 1;
                return Err(self.error("expected an operand"));
            }
        };
        if self.takes('|') {
            return Ok(Operand::Pair(Box::new([operand, self.operand()?])));
        }
        Ok(operand)
    }

    fn list(&mut self, end: char) -> Result<Vec<Operand<'t>>> {
        let mut list = Vec::new();
        while !self.takes(end) {
            list.push(self.operand()?);
            self.takes(',');
        }
        Ok(list)
    }

    fn address(&mut self) -> Result<Operand<'t>> {
        let word = self.word()?;
        let (base, offset) = match integer(word) {
            Some(address) => (None, address),
            None => (Some(word), self.offset()?),
        };
        self.expect(']')?;
        Ok(Operand::Address(base, offset))
    }

    /// `+4`, `+-4`, `-4`, or nothing.
    fn offset(&mut self) -> Result<i64> {
        let plus = self.takes('+');
        let minus = self.takes('-');
        if !plus && !minus {
            return Ok(0);
        }
        let word = self.word()?;
        let offset = integer(word).ok_or_else(|| self.error(format!("expected an offset, not {word}")))?;
        Ok(if minus { offset.wrapping_neg() } else { offset })
    }

    fn number(&mut self, negative: bool) -> Result<Operand<'t>> {
        let word = self.word()?;
        let f32_bits = word.strip_prefix("0f").or(word.strip_prefix("0F")).map(|hex| u32::from_str_radix(hex, 16));
        let f64_bits = word.strip_prefix("0d").or(word.strip_prefix("0D")).map(|hex| u64::from_str_radix(hex, 16));
        let sign = if negative { -1.0 } else { 1.0 };
        if let Some(Ok(bits)) = f32_bits {
            return Ok(Operand::F32(bits ^ u32::from(negative) << 31));
        }
        if let Some(Ok(bits)) = f64_bits {
            return Ok(Operand::F64(sign * f64::from_bits(bits)));
        }
        if let Some(i) = integer(word) {
            return Ok(Operand::Integer(if negative { i.wrapping_neg() } else { i }));
        }
        match word.parse::<f64>() {
            Ok(x) => Ok(Operand::F64(sign * x)),
            Err(_) => Err(self.error(format!("expected a number, not {word}"))),
        }
    }
}
