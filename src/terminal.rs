//! Writing to a terminal, a file or a pipe that may close.

use indicatif::{ProgressBar, ProgressStyle};
use std::fmt;
use std::io::{self, Write};
use std::path::Path;

pub use train::words::{bytes, counted, duration, grouped};

/// Exit code when the reader of our output went away: 128 + SIGPIPE, as shells report it.
pub const CLOSED_PIPE: u8 = 141;

/// Whether an error says that the reader of standard output went away, which needs no message.
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|e| e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe))
}

/// An error and its causes, each said once: some errors quote their cause, some leave it to the chain.
pub fn in_words(error: &anyhow::Error) -> String {
    error
        .chain()
        .map(ToString::to_string)
        .reduce(|all, cause| if all.ends_with(&cause) { all } else { format!("{all}: {cause}") })
        .unwrap_or_default()
}

/// A bar on standard error for `n` things, with rate and time left; none if nobody watches or there is nothing to count.
pub fn progress_bar(n: u64) -> ProgressBar {
    if n == 0 {
        return ProgressBar::hidden();
    }
    let style = "{pos}/{len} {percent:>3} %  {per_sec}  {eta} left {wide_bar}";
    ProgressBar::new(n).with_style(ProgressStyle::with_template(style).expect("the template is valid"))
}

/// One line on standard error; nothing if nobody reads it.
pub fn complain(line: fmt::Arguments) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// One line on standard output. Fails when it cannot be written: see [`is_closed_pipe`].
pub fn say(line: impl fmt::Display) -> io::Result<()> {
    print(format_args!("{line}\n"))
}

/// Text on standard output, at once. The error keeps its kind and says where it arose.
pub fn print(text: impl fmt::Display) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let printed = write!(out, "{text}").and_then(|()| out.flush());
    printed.map_err(|e| io::Error::new(e.kind(), format!("standard output cannot be written: {e}")))
}

/// A path as a shell's word: in quotes if it needs them.
pub fn quoted(path: &Path) -> String {
    let path = path.display().to_string();
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+,:@%".contains(c);
    if path.chars().all(is_plain) && !path.is_empty() { path } else { format!("'{}'", path.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_quoted_where_a_shell_needs_it() {
        let words = ["runs/quick-start_2", "my runs/a", "it's", "~/a", ""].map(|path| quoted(Path::new(path)));
        assert_eq!(words, ["runs/quick-start_2", "'my runs/a'", r"'it'\''s'", "'~/a'", "''"]);
    }
}
