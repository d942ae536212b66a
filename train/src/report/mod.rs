//! A run, or several, as one HTML file: what was learnt, how sparse it became, how fast, and what it writes.
//!
//! The file stands alone: no script, no font and no picture from elsewhere. It is light or dark as its reader's screen is, and can be
//! printed. Everything that a run says of itself is shown as text: see `html::Text`.
//!
//! ```no_run
//! train::report::write(&["runs/book"], "runs/book/report.html".as_ref())?;
//! # Ok::<(), train::report::ReportError>(())
//! ```
//!
//! [`write()`] reads the folders (`run`), `page` says what is shown, `charts` and `tables` choose it, [`html`] draws it.

mod charts;
mod page;
mod results;
mod run;
mod tables;

pub use results::{Decoding, Example, Kind, Questions, Results};

use crate::config::ConfigError;
use crate::files;
use crate::html;
use crate::records::RecordsError;
use run::Run;
use std::path::{Path, PathBuf};

/// The report's name in a run's folder.
pub const FILE: &str = "report.html";

/// By this a file is known as a report, which a later one may replace.
const GENERATOR: &str = "silurian report";

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// Not a run, or not one yet.
    #[error("{}: {why}", path.display())]
    NotARun {
        /// The folder.
        path: PathBuf,
        /// What is missing.
        why: &'static str,
    },
    /// The same run more than once.
    #[error("{}: named twice", path.display())]
    Twice {
        /// The folder.
        path: PathBuf,
    },
    /// `config.toml`.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Metrics, samples or sessions.
    #[error(transparent)]
    Records(#[from] RecordsError),
    /// `results.json`.
    #[error("{}: {reason}", path.display())]
    Results {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
    /// What is to be read.
    #[error(transparent)]
    File(#[from] files::Error),
    /// The page.
    #[error(transparent)]
    Page(#[from] html::PageError),
}

/// Writes the report of the runs in these folders. Several are drawn over each other; differences are to the first. An earlier
/// report in `output` is replaced, at once; any other file is kept.
///
/// Errors: see [`ReportError`]. Panics if there is no run.
pub fn write<P: AsRef<Path>>(runs: &[P], output: &Path) -> Result<(), ReportError> {
    assert!(!runs.is_empty(), "report: no run");
    let mut read: Vec<Run> = Vec::new();
    for path in runs {
        let run = Run::read(path.as_ref())?;
        let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        if read.iter().any(|other| real(&other.path) == real(&run.path)) {
            return Err(ReportError::Twice { path: run.path });
        }
        read.push(run);
    }
    run::name(&mut read);
    Ok(html::write(output, GENERATOR, &page::page(&read))?)
}

/// Where a report goes if the user does not say: into the folder of a single run, beside several.
pub fn default_output<P: AsRef<Path>>(runs: &[P]) -> PathBuf {
    match runs {
        [run] => run.as_ref().join(FILE),
        [first, ..] => first.as_ref().parent().unwrap_or(Path::new("")).join(FILE),
        [] => PathBuf::from(FILE),
    }
}
