//! An opcode and its modifiers, taken one by one: what is left over was not understood.

use super::Builder;
use crate::arithmetic::small_float::Rounding;
use crate::error::Result;
use crate::types::Type;

pub(super) struct Opcode<'t> {
    pub name: &'t str,
    modifiers: Vec<&'t str>,
}

impl<'t> Opcode<'t> {
    pub fn new(text: &'t str) -> Self {
        let mut parts = text.split('.');
        Self { name: parts.next().unwrap_or_default(), modifiers: parts.collect() }
    }

    /// Takes a modifier if it is there.
    pub fn take(&mut self, modifier: &str) -> bool {
        let found = self.modifiers.iter().position(|&m| m == modifier);
        if let Some(i) = found {
            self.modifiers.remove(i);
        }
        found.is_some()
    }

    /// Takes the first of `choices` that is there.
    pub fn take_one<T: Copy>(&mut self, choices: &[(&str, T)]) -> Option<T> {
        choices.iter().find(|c| self.take(c.0)).map(|c| c.1)
    }

    /// Takes all modifiers for which `is` holds.
    pub fn take_all(&mut self, is: impl Fn(&str) -> bool) {
        self.modifiers.retain(|m| !is(m));
    }

    /// Takes the type, which comes last.
    pub fn take_type(&mut self) -> Option<Type> {
        let ty = Type::parse(self.modifiers.last()?)?;
        self.modifiers.pop();
        Some(ty)
    }

    /// `.rn`, `.rz`, ...
    pub fn take_rounding(&mut self) -> Option<Rounding> {
        self.take_one(&[
            ("rn", Rounding::Nearest),
            ("rz", Rounding::Zero),
            ("rm", Rounding::Down),
            ("rp", Rounding::Up),
            ("rna", Rounding::NearestAway),
        ])
    }

    /// `.rni`, `.rzi`, ...
    pub fn take_integral_rounding(&mut self) -> Option<Rounding> {
        self.take_one(&[
            ("rni", Rounding::Nearest),
            ("rzi", Rounding::Zero),
            ("rmi", Rounding::Down),
            ("rpi", Rounding::Up),
        ])
    }
}

impl<'t> Builder<'_, 't> {
    /// The type of an instruction that must have one.
    pub(super) fn type_of(&self, opcode: &mut Opcode) -> Result<Type> {
        opcode.take_type().ok_or_else(|| self.error(format!("{} has no type that is known", opcode.name)))
    }

    /// Every modifier must have been taken.
    pub(super) fn finish(&self, opcode: &Opcode) -> Result<()> {
        match opcode.modifiers.first() {
            None => Ok(()),
            Some(modifier) => Err(self.error(format!("{} with .{modifier} is not known", opcode.name))),
        }
    }
}
