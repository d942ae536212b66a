//! Files with one JSON record a line: appended while a run goes on, cut back when it is resumed, read by whoever looks at it.

use crate::files;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

/// Why records cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    /// The file.
    #[error(transparent)]
    File(#[from] files::Error),
    /// A whole line that is no such record.
    #[error("{} line {line}: not a record: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What the parser says, with the column.
        reason: String,
    },
}

/// A file of records, open for more.
#[derive(Debug)]
pub(crate) struct Records<T> {
    path: PathBuf,
    file: File,
    of: PhantomData<T>,
}

impl<T: Serialize + DeserializeOwned> Records<T> {
    /// Opens the file, or makes an empty one.
    pub fn open(path: PathBuf) -> Result<Records<T>, files::Error> {
        let file = open(&path)?;
        Ok(Records { path, file, of: PhantomData })
    }

    /// Appends a record.
    pub fn append(&mut self, record: &T) -> Result<(), files::Error> {
        let mut line = serde_json::to_vec(record).expect("a record is made of numbers and strings");
        line.push(b'\n');
        self.file.write_all(&line).map_err(|reason| files::Error::new("written", &self.path, reason))
    }

    /// Waits until all records are on the disk.
    pub fn sync(&self) -> Result<(), files::Error> {
        self.file.sync_data().map_err(|reason| files::Error::new("synced", &self.path, reason))
    }

    /// Drops the records that `keep` refuses, and lines that are none: the last one may have been half written when a process
    /// ended. Returns how many are left.
    pub fn cut(&mut self, keep: impl Fn(&T) -> bool) -> Result<usize, files::Error> {
        let text = std::fs::read(&self.path).map_err(|reason| files::Error::new("read", &self.path, reason))?;
        let mut kept = Vec::new();
        let mut records = 0;
        for line in text.split_inclusive(|&b| b == b'\n') {
            let whole = line.ends_with(b"\n");
            if whole && serde_json::from_slice::<T>(line).is_ok_and(|record| keep(&record)) {
                kept.extend_from_slice(line);
                records += 1;
            }
        }
        if kept.len() != text.len() {
            files::replace(&self.path, &kept)?;
            self.file = open(&self.path)?;
        }
        Ok(records)
    }
}

/// The records of a file, in order. A last line without its end is left out: a process was killed while it wrote, or writes
/// it now. Any other line must be a record.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, RecordsError> {
    let text = std::fs::read(path).map_err(|reason| files::Error::new("read", path, reason))?;
    let whole = text.iter().rposition(|&b| b == b'\n').map_or(0, |end| end + 1);
    text[..whole]
        .split_inclusive(|&b| b == b'\n')
        .enumerate()
        .map(|(i, line)| {
            serde_json::from_slice(line).map_err(|e| {
                // The parser saw one line and calls it the first.
                let reason = e.to_string();
                let reason = reason.split(" at line ").next().unwrap_or_default();
                let reason = format!("{reason} at column {}", e.column());
                RecordsError::Line { path: path.to_path_buf(), line: i + 1, reason }
            })
        })
        .collect()
}

fn open(path: &Path) -> Result<File, files::Error> {
    let opened = OpenOptions::new().append(true).create(true).open(path);
    opened.map_err(|reason| files::Error::new("opened", path, reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_was_half_written_is_cut_and_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("numbers.jsonl");
        let mut records = Records::<u32>::open(path.clone()).unwrap();
        for n in 0..5 {
            records.append(&n).unwrap();
        }
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"17").unwrap();
        assert_eq!(read::<u32>(&path).unwrap(), [0, 1, 2, 3, 4]);
        let mut records = Records::<u32>::open(path.clone()).unwrap();
        assert_eq!(records.cut(|&n| n < 3).unwrap(), 3);
        records.append(&9).unwrap();
        assert_eq!(read::<u32>(&path).unwrap(), [0, 1, 2, 9]);
        // In the middle it is an error that says where.
        std::fs::write(&path, "1\n2 2\n3\n").unwrap();
        let error = read::<u32>(&path).unwrap_err().to_string();
        assert!(error.contains("numbers.jsonl line 2: not a record: trailing characters at column 3"), "{error}");
    }
}
