//! Tokens on disk: text is tokenised once, into a file that is mapped from then on.
//!
//! The file is named after the hash of the text and the tokenizer, so it can serve any number of runs, and another text
//! never meets it. It is written to a temporary name, synced and renamed: it is whole or absent. A damaged one (its length
//! or the hash of its tokens does not fit its header) is made again, and the caller is told.

use super::DataError;
use super::documents::Documents;
use super::tokenizer::Tokenizer;
use crate::files;
use crate::words::counted;
use bytemuck::{Pod, Zeroable};
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use tensor::mapped_file::MappedFile;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// The first bytes of a cache file.
const MAGIC: [u8; 8] = *b"SILTOKEN";

/// Changes with the layout, so that a file of another version is not read.
const VERSION: u32 = 1;

/// The first 64 bytes of a file; the tokens follow, u16 or u32, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: u32,
    /// Bytes of a token: 2 where the vocabulary allows, else 4.
    token_bytes: u32,
    /// Number of tokens.
    count: u64,
    /// XXH3 of the bytes of the tokens.
    hash: u64,
    /// See [`Tokens::key`].
    key: [u64; 2],
    /// To 64 bytes: tokens begin on a cache line.
    zero: [u64; 2],
}

const HEADER: usize = size_of::<Header>();

/// All tokens of a data set, on disk.
#[derive(Debug)]
pub struct Tokens {
    file: MappedFile,
    header: Header,
}

/// The folder for caches when the configuration names none: `$XDG_CACHE_HOME/silurian`, else `~/.cache/silurian`, else
/// `silurian` in the system's temporary folder.
pub fn default_dir() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    base.unwrap_or_else(std::env::temp_dir).join("silurian")
}

impl Tokens {
    /// The tokens of the documents, joined by the tokenizer's separator: from the cache in `dir`, or made and put there.
    /// `note` hears, in words, what was done.
    pub fn open(
        documents: &Documents,
        tokenizer: Tokenizer,
        dir: &Path,
        note: &mut dyn FnMut(String),
    ) -> Result<Tokens, DataError> {
        let key = Tokens::key(documents.content_hash()?, tokenizer);
        let path = dir.join(format!("{:016x}{:016x}.tokens", key[1], key[0]));
        if path.exists() {
            match Tokens::read(&path, key) {
                Ok(tokens) => return Ok(tokens),
                Err(reason) => note(format!("{}: {reason}; the data are tokenised again", path.display())),
            }
        }
        files::create_dir_all(dir)?;
        let temporary = dir.join(format!(".{:016x}{:016x}.{}", key[1], key[0], std::process::id()));
        let written = write(&temporary, documents, tokenizer, key, token_bytes(tokenizer.vocab_size()));
        let renamed = written.and_then(|()| Ok(files::rename(&temporary, &path)?));
        if renamed.is_err() {
            // The error that is reported is the first one.
            let _ = std::fs::remove_file(&temporary);
        }
        renamed?;
        let tokens = Tokens::read(&path, key).map_err(|reason| DataError::Cache { path: path.clone(), reason })?;
        note(format!("{} written to {}", counted(tokens.len() as u64, "token"), path.display()));
        Ok(tokens)
    }

    /// Identifies text, tokenizer and format.
    fn key(content: u128, tokenizer: Tokenizer) -> [u64; 2] {
        let mut hash = Xxh3::new();
        hash.update(&VERSION.to_le_bytes());
        hash.update(tokenizer.name().as_bytes());
        hash.update(&content.to_le_bytes());
        let key = hash.digest128();
        [key as u64, (key >> 64) as u64]
    }

    fn read(path: &Path, key: [u64; 2]) -> Result<Tokens, String> {
        let file = MappedFile::open(path).map_err(|e| e.to_string())?;
        if file.len() < HEADER {
            return Err(format!("a cache of {} bytes, shorter than its header", file.len()));
        }
        let header = file.as_slice::<u8>(0..HEADER).map_err(|e| e.to_string())?;
        let header: Header = bytemuck::pod_read_unaligned(&header);
        if header.magic != MAGIC || header.version != VERSION || header.key != key {
            return Err("not a cache of these data".to_string());
        }
        let bytes = (file.len() - HEADER) as u64;
        if !matches!(header.token_bytes, 2 | 4) || header.count.checked_mul(header.token_bytes as u64) != Some(bytes) {
            let expected = header.count as u128 * header.token_bytes as u128;
            return Err(format!("a cache with {bytes} bytes of tokens, expected {expected}"));
        }
        let body = file.as_slice::<u8>(HEADER..file.len()).map_err(|e| e.to_string())?;
        if xxh3_64(&body) != header.hash {
            return Err("the tokens of the cache are damaged".to_string());
        }
        drop(body);
        Ok(Tokens { file, header })
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.header.count as usize
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Names the tokens: equal for equal text, tokenizer and format.
    pub fn hash(&self) -> String {
        format!("{:016x}{:016x}", self.header.key[1], self.header.key[0])
    }

    /// Copies the tokens from `start` on into `out`. Panics if there are not so many.
    pub fn copy(&self, start: usize, out: &mut [u32]) -> Result<(), DataError> {
        assert!(start + out.len() <= self.len(), "Tokens::copy: {} from {start} of {}", out.len(), self.len());
        let size = self.header.token_bytes as usize;
        let range = HEADER + start * size..HEADER + (start + out.len()) * size;
        match size {
            2 => out.iter_mut().zip(&*self.file.as_slice::<u16>(range)?).for_each(|(o, &t)| *o = t as u32),
            _ => out.copy_from_slice(&self.file.as_slice::<u32>(range)?),
        }
        Ok(())
    }
}

/// Bytes of a token: two where they hold all of the vocabulary.
fn token_bytes(vocab_size: usize) -> u32 {
    if vocab_size <= 1 << 16 { 2 } else { 4 }
}

fn write(
    path: &Path,
    documents: &Documents,
    tokenizer: Tokenizer,
    key: [u64; 2],
    token_bytes: u32,
) -> Result<(), DataError> {
    let failed = |reason| DataError::from(files::Error::new("written", path, reason));
    let mut header = Header { magic: MAGIC, version: VERSION, token_bytes, count: 0, hash: 0, key, zero: [0; 2] };
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).map_err(failed)?);
    file.write_all(bytemuck::bytes_of(&header)).map_err(failed)?;
    let mut hash = Xxh3::new();
    let mut push = |token: u32| {
        debug_assert!((token as usize) < tokenizer.vocab_size());
        let bytes = &token.to_le_bytes()[..token_bytes as usize];
        header.count += 1;
        hash.update(bytes);
        file.write_all(bytes).map_err(failed)
    };
    let mut first = true;
    documents.for_each(|text| {
        if !std::mem::take(&mut first) {
            push(tokenizer.separator())?;
        }
        tokenizer.encode_with(text, &mut push)
    })?;
    header.hash = hash.digest();
    let mut file = file.into_inner().map_err(|e| failed(e.into_error()))?;
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    file.write_all(bytemuck::bytes_of(&header)).map_err(failed)?;
    file.sync_all().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_two_and_of_four_bytes_read_back() {
        assert_eq!([256, 65_536, 65_537, 128_256].map(token_bytes), [2, 2, 4, 4]);
        let dir = tempfile::tempdir().unwrap();
        let text = dir.path().join("a.txt");
        std::fs::write(&text, "0123456789").unwrap();
        let documents = Documents::open(&[text], "text").unwrap();
        for bytes in [2, 4] {
            let path = dir.path().join(bytes.to_string());
            write(&path, &documents, Tokenizer::Bytes, [1, 2], bytes).unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().len(), 64 + 10 * bytes as u64);
            let tokens = Tokens::read(&path, [1, 2]).unwrap();
            let mut out = [0; 4];
            tokens.copy(3, &mut out).unwrap();
            assert_eq!((tokens.len(), out), (10, [51, 52, 53, 54]), "tokens of {bytes} bytes");
            assert_eq!(Tokens::read(&path, [1, 3]).unwrap_err(), "not a cache of these data");
        }
    }
}
