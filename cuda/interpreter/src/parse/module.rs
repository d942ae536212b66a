//! Directives outside of bodies: variables, entries, functions.

use super::{Function, Parser, Space, Token, Tree, Variable, integer};
use crate::error::Result;
use crate::types::Type;

impl<'t> Parser<'_, 't> {
    pub fn module(mut self) -> Result<Tree<'t>> {
        let mut tree = Tree { variables: Vec::new(), functions: Vec::new() };
        while self.peek().is_some() {
            let line = self.line();
            match self.word()? {
                ".version" => drop(self.word()?),
                ".target" => {
                    self.word()?;
                    while self.takes(',') {
                        self.word()?;
                    }
                }
                ".address_size" => {
                    if self.unsigned()? != 64 {
                        return Err(self.source.error(line, "only 64-bit addresses"));
                    }
                }
                ".file" => self.skip_line(line),
                ".pragma" => {
                    self.next()?;
                    self.expect(';')?;
                }
                ".visible" | ".extern" | ".weak" | ".common" => {}
                ".entry" => tree.functions.push(self.function(true)?),
                ".func" => tree.functions.push(self.function(false)?),
                ".global" => tree.variables.push(self.statement_variable(Space::Global)?),
                ".const" => tree.variables.push(self.statement_variable(Space::Const)?),
                ".shared" => tree.variables.push(self.statement_variable(Space::Shared)?),
                other => return Err(self.source.error(line, format!("unknown directive {other}"))),
            }
        }
        Ok(tree)
    }

    fn function(&mut self, is_entry: bool) -> Result<Function<'t>> {
        let results = if !is_entry && self.peek() == Some(Token::Mark('(')) { self.params()? } else { Vec::new() };
        let line = self.line();
        let name = self.word()?;
        let params = if self.peek() == Some(Token::Mark('(')) { self.params()? } else { Vec::new() };
        let mut function =
            Function { name, line, is_entry, results, params, max_threads: None, required_threads: None, body: None };
        loop {
            match self.next()? {
                Token::Mark(';') => return Ok(function),
                Token::Mark('{') => {
                    function.body = Some(self.body()?);
                    return Ok(function);
                }
                Token::Word(".maxntid") => function.max_threads = Some(self.dimensions()?.iter().product()),
                Token::Word(".reqntid") => function.required_threads = Some(self.dimensions()?),
                // How many blocks or registers the assembler should aim at: nothing to do here.
                Token::Word(".minnctapersm" | ".maxnctapersm" | ".maxnreg") => drop(self.unsigned()?),
                Token::Word(".noreturn") => {}
                Token::Word(".pragma") => {
                    self.next()?;
                    self.expect(';')?;
                }
                _ => {
                    self.at -= 1;
                    return Err(self.error(format!("unknown directive of {name}")));
                }
            }
        }
    }

    fn dimensions(&mut self) -> Result<[u32; 3]> {
        let mut dimensions = [self.unsigned()?, 1, 1];
        for d in &mut dimensions[1..] {
            if self.takes(',') {
                *d = self.unsigned()?;
            }
        }
        Ok(dimensions)
    }

    fn params(&mut self) -> Result<Vec<Variable<'t>>> {
        self.expect('(')?;
        let mut params = Vec::new();
        while !self.takes(')') {
            if !self.takes_word(".param") {
                return Err(self.error("expected .param"));
            }
            params.push(self.variable(Space::Param)?);
            self.takes(',');
        }
        Ok(params)
    }

    /// A variable and the semicolon after it; the directive of its space has been taken.
    pub fn statement_variable(&mut self, space: Space) -> Result<Variable<'t>> {
        let variable = self.variable(space)?;
        self.expect(';')?;
        Ok(variable)
    }

    fn variable(&mut self, space: Space) -> Result<Variable<'t>> {
        let line = self.line();
        let (mut align, mut ty, mut lanes) = (None, None, 1);
        let name = loop {
            let word = self.word()?;
            match word.strip_prefix('.') {
                Some("align") => align = Some(self.unsigned()?),
                // `.param .u64 .ptr .global .align 16 name`: the alignment is that of what the pointer points at.
                Some("ptr") => {
                    while let Some(Token::Word(".global" | ".shared" | ".const" | ".local" | ".align")) = self.peek() {
                        if self.word()? == ".align" {
                            self.unsigned()?;
                        }
                    }
                }
                Some("v2") => lanes = 2,
                Some("v4") => lanes = 4,
                Some(name) => {
                    ty = Some(
                        Type::parse(name).ok_or_else(|| self.error(format!("unknown type or attribute .{name}")))?,
                    );
                }
                None => break word,
            }
        };
        let ty = ty.ok_or_else(|| self.error(format!("{name} has no type")))?;
        let mut bytes = Some(ty.bytes() * lanes);
        let align = align.unwrap_or(ty.bytes() * lanes);
        if !align.is_power_of_two() {
            return Err(self.error(format!("alignment {align} of {name} is no power of two")));
        }
        while self.takes('[') {
            bytes = if self.peek() == Some(Token::Mark(']')) {
                None
            } else {
                let count = self.unsigned()?;
                Some(bytes.and_then(|b| b.checked_mul(count)).ok_or_else(|| self.error(format!("size of {name}")))?)
            };
            self.expect(']')?;
        }
        let mut initial = Vec::new();
        if self.takes('=') {
            self.initial(ty, &mut initial)?;
            // `.b8 x[] = {1, 2}` takes its size from its values.
            bytes = bytes.or(Some(initial.len() as u32));
        }
        if bytes.is_some_and(|b| initial.len() > b as usize) {
            return Err(self.error(format!("more values than {name} holds")));
        }
        Ok(Variable { line, space, name, align, bytes, initial })
    }

    fn initial(&mut self, ty: Type, to: &mut Vec<u8>) -> Result<()> {
        if self.takes('{') {
            while !self.takes('}') {
                self.initial(ty, to)?;
                self.takes(',');
            }
            return Ok(());
        }
        let negative = self.takes('-');
        let word = self.word()?;
        let bits = if let Some(hex) = word.strip_prefix("0f").or(word.strip_prefix("0d")).filter(|_| ty.is_float()) {
            u64::from_str_radix(hex, 16).ok()
        } else {
            integer(word).map(|i| if negative { i.wrapping_neg() } else { i } as u64)
        };
        let bits = bits.ok_or_else(|| self.error(format!("initial value {word}: only numbers")))?;
        to.extend(&bits.to_le_bytes()[..ty.bytes() as usize]);
        Ok(())
    }
}
