//! Text, tokens, batches.

pub mod batches;
pub mod cache;
pub mod documents;
pub mod tokenizer;

pub use batches::{Batch, Batches};
pub use cache::Tokens;
pub use documents::Documents;
pub use tokenizer::Tokenizer;

use crate::files;
use std::path::PathBuf;

/// Why there are no data to train on.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A path of `data.paths` cannot be read.
    #[error("data: {}: cannot be read: {reason}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The system's words.
        reason: std::io::Error,
    },
    /// A file cannot be read, or was truncated meanwhile.
    #[error("data: {0}")]
    Mapped(#[from] tensor::mapped_file::Error),
    /// A folder without text.
    #[error("data: {}: no file in it ends in {}", path.display(), documents::EXTENSIONS.map(|e| format!(".{e}")).join(", "))]
    NoText {
        /// The folder.
        path: PathBuf,
    },
    /// Not a byte in any file.
    #[error("data: {}: empty", paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "))]
    Empty {
        /// As configured.
        paths: Vec<PathBuf>,
    },
    /// A line that is no text, or a record that has none.
    #[error("data: {} line {line}: {reason}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// A file that is known not to hold UTF-8 text.
    #[error("data: {}: is {found}, not UTF-8 text: {remedy}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: &'static str,
        /// What to do about it.
        remedy: &'static str,
    },
    /// Too few tokens for one sequence.
    #[error(
        "data: {have} tokens for {part}, need at least {need}: one sequence of seq_len = {seq_len} and the token after it"
    )]
    TooShort {
        /// `training` or `validation`.
        part: &'static str,
        /// Tokens that there are.
        have: usize,
        /// Tokens that one sequence takes.
        need: usize,
        /// T.
        seq_len: usize,
    },
    /// A cache cannot be written.
    #[error("data cache: {0}; --set data.cache=FOLDER or XDG_CACHE_HOME chooses another place")]
    Write(#[from] files::Error),
    /// A cache that was just written does not read back.
    #[error("data cache: {}: {reason}", path.display())]
    Cache {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}
