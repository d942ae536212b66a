//! A loaded module.

use crate::error::Result;
use crate::lower;
use crate::parse::{self, Source};
use crate::program::{Kernel, Param};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// PTX text that has been checked and made ready to run.
pub struct Module {
    name: String,
    /// Tells modules apart in a [`crate::Memory`].
    number: u64,
    lines: Vec<String>,
    kernels: Vec<Kernel>,
    /// `.global` variables: initial bytes, and offset and size by name.
    global: Vec<u8>,
    global_names: HashMap<String, (u64, usize)>,
    constants: Vec<u8>,
}

impl Module {
    /// Loads `text`. Every directive, instruction and modifier must be known: the first that is not is the error, with
    /// its line. `name` is used in errors.
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let source = Source::new(name, text)?;
        let tree = parse::parse(&source)?;
        let lowered = lower::lower(&source, &tree)?;
        Ok(Self {
            name: name.to_string(),
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            lines: source.lines.iter().map(|l| l.trim().to_string()).collect(),
            kernels: lowered.kernels,
            global: lowered.global,
            global_names: lowered.global_names,
            constants: lowered.constants,
        })
    }

    /// As given to [`Module::parse`].
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The names of its entries, in the order of the text.
    pub fn entries(&self) -> impl Iterator<Item = &str> {
        self.kernels.iter().map(|k| k.name.as_str())
    }

    /// The parameters of an entry, with their places in the parameter block; none if there is no such entry.
    pub fn params(&self, entry: &str) -> Option<&[Param]> {
        self.kernel(entry).map(|k| k.params.as_slice())
    }

    /// Bytes of shared memory that an entry has without any dynamic ones.
    pub fn static_shared(&self, entry: &str) -> Option<u32> {
        self.kernel(entry).map(|k| k.static_shared)
    }

    pub(crate) fn kernel(&self, entry: &str) -> Option<&Kernel> {
        self.kernels.iter().find(|k| k.name == entry)
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn line(&self, line: u32) -> &str {
        &self.lines[line as usize - 1]
    }

    pub(crate) fn global_variable(&self, name: &str) -> Option<(u64, usize)> {
        self.global_names.get(name).copied()
    }

    pub(crate) fn global_bytes(&self) -> &[u8] {
        &self.global
    }

    pub(crate) fn constants(&self) -> &[u8] {
        &self.constants
    }
}

impl std::fmt::Debug for Module {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Module")
            .field("name", &self.name)
            .field("entries", &self.entries().collect::<Vec<_>>())
            .finish()
    }
}
