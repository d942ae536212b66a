//! Writing to a terminal, a file or a pipe that may close.

use indicatif::{ProgressBar, ProgressStyle};
use std::fmt;
use std::io::{self, Write};

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
    let style = "{bar:32} {pos}/{len} {percent:>3} %  {per_sec}  {eta} left";
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

/// `1234567` as `1,234,567`.
pub fn grouped(n: impl TryInto<u128>) -> String {
    let digits = n.try_into().unwrap_or_default().to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in the unit that fits: `1.5 GiB`.
pub fn bytes(n: impl TryInto<u128>) -> String {
    let n = n.try_into().unwrap_or_default() as f64;
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = (0..units.len()).rev().find(|&u| n >= 1024f64.powi(u as i32)).unwrap_or(0);
    if unit == 0 { format!("{n} B") } else { format!("{:.1} {}", n / 1024f64.powi(unit as i32), units[unit]) }
}

/// Seconds as people say them: `48 s`, `6 min 40 s`, `2 h 5 min`.
pub fn duration(seconds: f64) -> String {
    let s = seconds.round() as u64;
    match s {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        _ => format!("{} h {} min", s / 3600, s % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(
            ["1", "12", "123", "1234", "1234567"].map(|n| grouped(n.parse::<u64>().unwrap())),
            ["1", "12", "123", "1,234", "1,234,567"]
        );
        assert_eq!([0u64, 1023, 1536, 3 << 30].map(bytes), ["0 B", "1023 B", "1.5 KiB", "3.0 GiB"]);
        assert_eq!([0.42, 59.0, 61.0, 3725.0].map(duration), ["0.4 s", "59.0 s", "1 min 1 s", "1 h 2 min"]);
    }
}
