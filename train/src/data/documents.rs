//! Where text comes from: text files, folders of them, and `.jsonl` files with one record a line.
//!
//! - A file named `*.jsonl` holds a JSON object on each line, whose text is in one named field; blank lines are skipped.
//!   Each record is a document.
//! - Any other file is one document of UTF-8 text.
//! - Of a folder, and all folders in it, the files that end in [`EXTENSIONS`] are taken, in the order of their paths.
//!   Hidden files and folders are left out, and so are the folders of runs, whose metrics are no text to learn.

use super::DataError;
use crate::{jsonl, run_dir};
use rayon::prelude::*;
use serde_json::Value;
use std::path::{Path, PathBuf};
use tensor::mapped_file::MappedFile;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// The endings of the files that are taken from a folder.
pub const EXTENSIONS: [&str; 3] = ["jsonl", "md", "txt"];

/// Files, open and in order.
#[derive(Debug)]
pub struct Documents {
    files: Vec<MappedFile>,
    field: String,
}

impl Documents {
    /// Finds and opens the files. Fails if a path is missing, a folder holds no text, or there is not a byte in all of them.
    pub fn open(paths: &[PathBuf], field: &str) -> Result<Documents, DataError> {
        let mut found = Vec::new();
        for path in paths {
            let metadata = std::fs::metadata(path).map_err(|reason| DataError::Read { path: path.clone(), reason })?;
            if metadata.is_dir() {
                let before = found.len();
                walk(path, &mut found)?;
                if found.len() == before {
                    return Err(DataError::NoText { path: path.clone() });
                }
            } else {
                found.push(path.clone());
            }
        }
        let files: Vec<MappedFile> = found.iter().map(MappedFile::open).collect::<Result<_, _>>()?;
        if files.iter().all(MappedFile::is_empty) {
            return Err(DataError::Empty { paths: paths.to_vec() });
        }
        Ok(Documents { files, field: field.to_string() })
    }

    /// A hash of everything that decides the tokens but the tokenizer: the contents, in order, whether each is `.jsonl`, and
    /// the field. Names do not enter: moved data are the same data. XXH3, 128 bits: against accidents, not against malice.
    pub fn content_hash(&self) -> Result<u128, DataError> {
        let hashes: Vec<u128> = self
            .files
            .par_iter()
            .map(|file| Ok(xxh3_128(&file.as_slice::<u8>(0..file.len())?)))
            .collect::<Result<_, DataError>>()?;
        let mut all = Xxh3::new();
        for (file, hash) in self.files.iter().zip(hashes) {
            all.update(&[is_jsonl(file.path()) as u8]);
            all.update(&(file.len() as u64).to_le_bytes());
            all.update(&hash.to_le_bytes());
        }
        if self.files.iter().any(|file| is_jsonl(file.path())) {
            all.update(self.field.as_bytes());
        }
        Ok(all.digest128())
    }

    /// Calls `take` with each document, in order.
    pub fn for_each<E: From<DataError>>(&self, mut take: impl FnMut(&str) -> Result<(), E>) -> Result<(), E> {
        for file in &self.files {
            let bytes = file.as_slice::<u8>(0..file.len()).map_err(DataError::from)?;
            if !is_jsonl(file.path()) {
                take(as_text(&bytes, file.path())?)?;
                continue;
            }
            for (number, line) in jsonl::lines(&bytes) {
                let text = line.and_then(|line| self.text_of(line));
                let fail = |reason| DataError::Record { path: file.path().to_path_buf(), line: number, reason };
                take(&text.map_err(fail)?)?;
            }
        }
        Ok(())
    }

    /// The text of a record.
    fn text_of(&self, line: &str) -> Result<String, String> {
        let mut record = jsonl::object(line)?;
        match record.swap_remove(&self.field) {
            Some(Value::String(text)) => Ok(text),
            Some(other) => Err(format!("field \"{}\" is {}, expected a string", self.field, jsonl::kind(&other))),
            None => Err(format!("no field \"{}\"; its fields are {}", self.field, jsonl::fields(&record))),
        }
    }
}

fn is_jsonl(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "jsonl")
}

/// The text of a file, or the line where it is none.
fn as_text<'a>(bytes: &'a [u8], path: &Path) -> Result<&'a str, DataError> {
    std::str::from_utf8(bytes).map_err(|e| {
        let path = path.to_path_buf();
        if let Some((_, found, remedy)) = NO_TEXT.into_iter().find(|(start, ..)| bytes.starts_with(start)) {
            return DataError::Format { path, found, remedy };
        }
        let line = 1 + bytes[..e.valid_up_to()].iter().filter(|&&b| b == b'\n').count();
        DataError::Record { path, line, reason: "not UTF-8".to_string() }
    })
}

/// How files begin that people take for text, what they are, and what to do.
const NO_TEXT: [(&[u8], &str, &str); 5] = [
    (b"\x1f\x8b", "compressed (gzip)", "unpack it first: gunzip"),
    (b"PK\x03\x04", "an archive (zip, docx, epub)", "unpack it, or save it as plain text"),
    (b"%PDF-", "a PDF", "make a text file of it, as with pdftotext"),
    (b"\xff\xfe", "text in UTF-16", "save it as UTF-8"),
    (b"\xfe\xff", "text in UTF-16", "save it as UTF-8"),
];

/// Adds the text files under `folder`, in the order of their paths.
fn walk(folder: &Path, found: &mut Vec<PathBuf>) -> Result<(), DataError> {
    let read = |reason| DataError::Read { path: folder.to_path_buf(), reason };
    let mut entries: Vec<PathBuf> = std::fs::read_dir(folder)
        .map_err(read)?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<_, _>>()
        .map_err(read)?;
    entries.sort();
    for path in entries {
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if hidden || path.is_symlink() && path.is_dir() {
            continue; // a link to a folder can lead back here
        }
        if path.is_dir() {
            if !run_dir::is_run(&path) {
                walk(&path, found)?;
            }
        } else if path.extension().is_some_and(|e| EXTENSIONS.iter().any(|&known| e == known)) {
            found.push(path);
        }
    }
    Ok(())
}
