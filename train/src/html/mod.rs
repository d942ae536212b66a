//! Pages that stand alone: no script, no font and no picture from elsewhere. Light or dark as the reader's screen is, and fit to be
//! printed.
//!
//! [`plot`] draws, with round numbers from [`scale`] and curves thinned by [`curve`]; whatever was said by somebody else goes through
//! [`text`].

pub mod curve;
pub mod plot;
pub mod scale;
pub mod text;

use crate::files;
use plot::Plot;
use std::io::Read;
use std::path::{Path, PathBuf};
use text::Text;

const STYLE: &str = include_str!("style.css");

/// The first bytes of a file, enough for the head of a page.
const HEAD: u64 = 1024;

/// Why a page was not written.
#[derive(Debug, thiserror::Error)]
pub enum PageError {
    /// Something else is where it would go.
    #[error("{}: is there already and is not by `{generator}`: choose another file", path.display())]
    Taken {
        /// The file.
        path: PathBuf,
        /// What would have written it.
        generator: &'static str,
    },
    /// There is no such folder.
    #[error("{}: {} is not a folder", path.display(), folder.display())]
    NoFolder {
        /// The file.
        path: PathBuf,
        /// Where it would go.
        folder: PathBuf,
    },
    /// The file.
    #[error(transparent)]
    File(#[from] files::Error),
}

/// Writes a page, at once or not at all. An earlier one by the same `generator` is replaced, any other file is kept.
///
/// Errors: see [`PageError`].
pub fn write(path: &Path, generator: &'static str, html: &str) -> Result<(), PageError> {
    check(path, generator)?;
    Ok(files::replace(path, html.as_bytes())?)
}

/// Whether [`write()`] can be expected to succeed: to be asked before long work.
///
/// Errors: [`PageError::Taken`], [`PageError::NoFolder`].
pub fn check(path: &Path, generator: &'static str) -> Result<(), PageError> {
    if path.symlink_metadata().is_ok() && !is_by(generator, path) {
        return Err(PageError::Taken { path: path.to_path_buf(), generator });
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        return Err(PageError::NoFolder { path: path.to_path_buf(), folder: folder.to_path_buf() });
    }
    Ok(())
}

fn is_by(generator: &str, path: &Path) -> bool {
    let (mut head, tag) = (Vec::new(), tag(generator));
    let read = std::fs::File::open(path).and_then(|file| file.take(HEAD).read_to_end(&mut head));
    read.is_ok() && head.windows(tag.len()).any(|bytes| bytes == tag.as_bytes())
}

fn tag(generator: &str) -> String {
    format!("<meta name=\"generator\" content=\"{}\"/>", Text(generator))
}

/// A page around `body`, which is HTML; `style` is CSS beside that of all pages.
pub fn document(generator: &str, title: impl std::fmt::Display, style: &str, body: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n{}\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n<title>{}</title>\n<style>\n{STYLE}{style}</style>\n\
         </head>\n<body>\n{body}<footer>Written by silurian {}.</footer>\n</body>\n</html>\n",
        tag(generator),
        Text(title),
        env!("CARGO_PKG_VERSION")
    )
}

/// Numbers the pictures of a page, and leaves out those of nothing: of evaluations before the first one.
#[derive(Default)]
pub struct Figures(usize);

impl Figures {
    /// The plots that have curves, as HTML.
    pub fn all(&mut self, plots: Vec<Plot>) -> String {
        let drawn = plots.into_iter().filter_map(|mut plot| {
            plot.curves.retain(|curve| !curve.points.is_empty());
            self.0 += 1;
            (!plot.curves.is_empty()).then(|| plot.figure(self.0))
        });
        drawn.collect()
    }
}

/// Figures under a heading; nothing if there are none.
pub fn section(title: &str, figures: &str) -> String {
    if figures.is_empty() {
        return String::new();
    }
    format!("<h2>{}</h2>\n<div class=\"plots\">\n{figures}</div>\n", Text(title))
}
