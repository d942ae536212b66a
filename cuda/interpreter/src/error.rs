//! What can go wrong, at load and at run time.

use std::fmt;

/// A module that cannot be loaded, a launch that cannot start, or a kernel that did something wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The text is not PTX that this interpreter knows.
    #[error("{module}:{line}: {what}: `{text}`")]
    Load {
        /// Name of the module, as given to `Module::parse`.
        module: String,
        /// Line of the PTX text, from 1.
        line: u32,
        /// That line.
        text: String,
        /// What is wrong with it.
        what: String,
    },
    /// A launch that no device would accept.
    #[error("launch of {kernel}: {what}")]
    Launch {
        /// Entry asked for.
        kernel: String,
        /// What is wrong.
        what: String,
    },
    /// An instruction that a thread must not execute.
    #[error("{0}")]
    Fault(Box<Fault>),
    /// Host access to device memory that is not there.
    #[error("host {access} of {bytes} bytes at {address:#x}: {what}")]
    Host {
        /// `read`, `write`, `fill`, `copy`, `free`, ...
        access: &'static str,
        /// First address.
        address: u64,
        /// Length.
        bytes: usize,
        /// What is wrong.
        what: String,
    },
}

/// Where a kernel went wrong, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The entry that ran.
    pub kernel: String,
    /// Block index in the grid.
    pub block: [u32; 3],
    /// Thread index in the block.
    pub thread: [u32; 3],
    /// Line of the PTX text, from 1.
    pub line: u32,
    /// That line.
    pub text: String,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { kernel, block: [bx, by, bz], thread: [tx, ty, tz], line, text, what } = self;
        write!(f, "{kernel}: block ({bx}, {by}, {bz}) thread ({tx}, {ty}, {tz}), PTX line {line} `{text}`: {what}")
    }
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
