//! PTX text to a syntax tree. No names are resolved and no opcodes are looked at here; `lower` does that.

mod body;
mod lexer;
mod module;

pub(crate) use lexer::Source;
use lexer::Token;

use crate::error::{Error, Result};
use crate::types::Type;

/// Where a variable lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Space {
    Generic,
    Global,
    Shared,
    Local,
    Const,
    Param,
}

/// A `.global`, `.const`, `.shared`, `.local` or `.param` variable.
#[derive(Debug, Clone)]
pub(crate) struct Variable<'t> {
    pub line: u32,
    pub space: Space,
    pub name: &'t str,
    pub align: u32,
    /// Of an unsized array (`.extern .shared .b8 x[]`): none.
    pub bytes: Option<u32>,
    /// Little-endian bytes, shorter than `bytes` or equal: the rest is zero.
    pub initial: Vec<u8>,
}

/// A `.entry` or `.func`.
#[derive(Debug)]
pub(crate) struct Function<'t> {
    pub name: &'t str,
    pub line: u32,
    pub is_entry: bool,
    pub results: Vec<Variable<'t>>,
    pub params: Vec<Variable<'t>>,
    /// `.maxntid`: threads of a block at most.
    pub max_threads: Option<u32>,
    /// `.reqntid`: threads of a block exactly.
    pub required_threads: Option<[u32; 3]>,
    /// None of a declaration.
    pub body: Option<Vec<Statement<'t>>>,
}

/// One statement of a body.
#[derive(Debug)]
pub(crate) enum Statement<'t> {
    Open,
    Close,
    /// `.reg .b32 %r<9>` (with a count) or `.reg .b32 a`.
    Register {
        ty: Type,
        name: &'t str,
        count: Option<u32>,
    },
    Variable(Variable<'t>),
    Label {
        line: u32,
        name: &'t str,
    },
    /// `table: .branchtargets a, b;`
    Targets {
        name: &'t str,
        labels: Vec<&'t str>,
    },
    Instruction(Instruction<'t>),
}

/// `@guard opcode operands;`
#[derive(Debug)]
pub(crate) struct Instruction<'t> {
    pub line: u32,
    /// The predicate, and whether it is negated.
    pub guard: Option<(&'t str, bool)>,
    /// With its modifiers.
    pub opcode: &'t str,
    pub operands: Vec<Operand<'t>>,
}

/// An operand as it is written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Operand<'t> {
    /// A register or variable, and what is added to its address.
    Name(&'t str, i64),
    /// `!%p1`
    Not(&'t str),
    Integer(i64),
    /// Bits of `0f...`
    F32(u32),
    /// `0d...` and decimal fractions
    F64(f64),
    /// `{a, b}`
    Vector(Vec<Operand<'t>>),
    /// `[a+4]`: base (none: zero) and offset
    Address(Option<&'t str>, i64),
    /// `a|b`
    Pair(Box<[Operand<'t>; 2]>),
    /// `(a, b)` of a call
    List(Vec<Operand<'t>>),
}

/// A module's syntax tree.
#[derive(Debug)]
pub(crate) struct Tree<'t> {
    pub variables: Vec<Variable<'t>>,
    pub functions: Vec<Function<'t>>,
}

/// The tree of a module.
pub(crate) fn parse<'t>(source: &Source<'t>) -> Result<Tree<'t>> {
    Parser { source, at: 0 }.module()
}

struct Parser<'s, 't> {
    source: &'s Source<'t>,
    at: usize,
}

impl<'t> Parser<'_, 't> {
    fn peek(&self) -> Option<Token<'t>> {
        self.source.tokens.get(self.at).map(|t| t.1)
    }

    fn line(&self) -> u32 {
        let tokens = &self.source.tokens;
        tokens.get(self.at).or(tokens.last()).map_or(1, |t| t.0)
    }

    fn error(&self, what: impl Into<String>) -> Error {
        self.source.error(self.line(), what)
    }

    fn next(&mut self) -> Result<Token<'t>> {
        let token = self.peek().ok_or_else(|| self.error("the text ends too early"))?;
        self.at += 1;
        Ok(token)
    }

    /// Takes the mark if it is next.
    fn takes(&mut self, mark: char) -> bool {
        let found = self.peek() == Some(Token::Mark(mark));
        self.at += usize::from(found);
        found
    }

    fn takes_word(&mut self, word: &str) -> bool {
        let found = self.peek() == Some(Token::Word(word));
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, mark: char) -> Result<()> {
        if self.takes(mark) { Ok(()) } else { Err(self.error(format!("expected `{mark}`"))) }
    }

    fn word(&mut self) -> Result<&'t str> {
        match self.next()? {
            Token::Word(word) => Ok(word),
            _ => {
                self.at -= 1;
                Err(self.error("expected a name"))
            }
        }
    }

    fn unsigned(&mut self) -> Result<u32> {
        let word = self.word()?;
        integer(word)
            .and_then(|i| u32::try_from(i).ok())
            .ok_or_else(|| self.error(format!("expected a number, not {word}")))
    }

    /// Skips what is left of a line (`.loc`, `.file`).
    fn skip_line(&mut self, line: u32) {
        while self.source.tokens.get(self.at).is_some_and(|t| t.0 == line) {
            self.at += 1;
        }
    }
}

/// A decimal, hexadecimal, octal or binary integer; a `U` may follow. Above i64::MAX: the bits of a u64.
fn integer(word: &str) -> Option<i64> {
    let word = word.strip_suffix('U').unwrap_or(word);
    let (digits, radix) = match word.as_bytes() {
        [b'0', b'x' | b'X', ..] => (&word[2..], 16),
        [b'0', b'b' | b'B', ..] => (&word[2..], 2),
        [b'0', _, ..] => (&word[1..], 8),
        _ => (word, 10),
    };
    u64::from_str_radix(digits, radix).ok().map(|u| u as i64)
}
