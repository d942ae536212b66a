//! Files read in place: the one module of this crate with `unsafe`.
//!
//! # Contract
//!
//! A [`MappedFile`] is read-only, and its length is what it was when it was opened.
//!
//! - **Replaced** by a rename, as everything that Silurian writes is: no effect. The old contents stay until the last
//!   reader is gone.
//! - **Truncated** under us: every [`as_slice`](MappedFile::as_slice) asks for the length first, if the path still leads to
//!   the file, and returns [`Error::Shrunk`]. A truncation after that, while the slice is read, ends the process by SIGBUS,
//!   as it does for any program that maps files. (Windows refuses to truncate a mapped file.) Files below
//!   [`IN_MEMORY_BELOW`] are read into memory when opened and do not run this risk.
//! - **Written in place** by another program: the elements change as they are read. All bit patterns are valid elements
//!   ([`Pod`]), so this gives wrong numbers, no wild access. Nothing notices: do not do it.
//! - **Unaligned** elements (a safetensors header may have any length) are copied; aligned ones are borrowed.
//!
//! Numbers in files are little-endian, and so must the machine be.

#![allow(unsafe_code)]

use bytemuck::Pod;
use memmap2::Mmap;
use std::borrow::Cow;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

const _: () = assert!(cfg!(target_endian = "little"), "elements are taken from files as they lie there");

/// Files smaller than this, in bytes, are read into memory: a copy cannot be truncated, and of so little it costs no more
/// than mapping and the first page fault (which brings 64 KiB on Linux).
pub const IN_MEMORY_BELOW: u64 = 64 << 10;

/// Why a file, or a part of it, cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be opened, read or mapped.
    #[error("{}: cannot be read: {reason}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's words.
        reason: io::Error,
    },
    /// The part reaches beyond the end.
    #[error("{}: bytes {}..{} of a file of {len} bytes", path.display(), range.start, range.end)]
    OutOfRange {
        /// The file.
        path: PathBuf,
        /// The bytes asked for.
        range: Range<usize>,
        /// Those that there are.
        len: usize,
    },
    /// The part does not hold a whole number of elements.
    #[error("{}: bytes {}..{} are no whole number of elements of {size} bytes", path.display(), range.start, range.end)]
    PartialElement {
        /// The file.
        path: PathBuf,
        /// The bytes asked for.
        range: Range<usize>,
        /// Bytes of an element.
        size: usize,
    },
    /// It was truncated after it was opened.
    #[error("{}: truncated while in use: {now} bytes, {opened} when it was opened", path.display())]
    Shrunk {
        /// The file.
        path: PathBuf,
        /// Its length in bytes now.
        now: u64,
        /// And when it was opened.
        opened: usize,
    },
}

/// The contents of a file, which need not stay open, as slices of any element type. See the [module](self) for what may
/// happen to the file meanwhile.
#[derive(Debug)]
pub struct MappedFile {
    path: PathBuf,
    contents: Contents,
}

#[derive(Debug)]
enum Contents {
    InMemory(Vec<u8>),
    Mapped(Mmap, Identity),
}

/// Tells a file from another one that has taken its path: device and inode.
#[derive(Debug, PartialEq)]
struct Identity(u64, u64);

impl Identity {
    #[cfg(unix)]
    fn of(file: &Metadata) -> Identity {
        use std::os::unix::fs::MetadataExt;
        Identity(file.dev(), file.ino())
    }

    /// Where mapped files cannot be truncated, nothing need tell them apart.
    #[cfg(not(unix))]
    fn of(_file: &Metadata) -> Identity {
        Identity(0, 0)
    }
}

impl MappedFile {
    /// Opens and maps the file, or reads it if it is smaller than [`IN_MEMORY_BELOW`].
    pub fn open(path: impl AsRef<Path>) -> Result<MappedFile, Error> {
        let path = path.as_ref();
        let contents = Contents::of(path).map_err(|reason| Error::Io { path: path.to_path_buf(), reason })?;
        Ok(MappedFile { path: path.to_path_buf(), contents })
    }

    /// The path that it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.contents.bytes().len()
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of it, without asking whether the file was truncated meanwhile: for what is read again and again. The
    /// [module](self) says what a truncation does then.
    pub fn bytes(&self) -> &[u8] {
        self.contents.bytes()
    }

    /// Brings the file into memory and maps all of it, in huge pages where the system's cache of the file has them. Returns whether
    /// it has: for nine tenths of the file at least. False where that cannot be known (other systems than Linux), and for a file
    /// that was read into memory.
    ///
    /// A pass over a file in pages of 4 KiB runs at three quarters of the speed (33 against 42 GB/s on one thread of a Zen 5). Linux has
    /// huge pages of files since 5.18 on XFS and since 6.16 on ext4, if the file was written, or is read for the first time, in large
    /// pieces.
    pub fn populate(&self) -> bool {
        match &self.contents {
            Contents::InMemory(_) => false,
            #[cfg(target_os = "linux")]
            Contents::Mapped(map, _) => {
                // Advice: a refusal (an old kernel) leaves the pages to be mapped as they are touched.
                let _ = map.advise(memmap2::Advice::HugePage);
                let _ = map.advise(memmap2::Advice::PopulateRead);
                let huge = huge_kib(map.as_ptr() as usize).unwrap_or(0);
                huge * 1024 >= map.len() as u64 / 10 * 9
            }
            #[cfg(not(target_os = "linux"))]
            Contents::Mapped(..) => false,
        }
    }

    /// The elements in the bytes `range`: borrowed where they are aligned for `T`, else copied.
    pub fn as_slice<T: Pod>(&self, range: Range<usize>) -> Result<Cow<'_, [T]>, Error> {
        if let Contents::Mapped(map, identity) = &self.contents
            && let Ok(metadata) = self.path.metadata()
            && Identity::of(&metadata) == *identity
            && metadata.len() < map.len() as u64
        {
            return Err(Error::Shrunk { path: self.path.clone(), now: metadata.len(), opened: map.len() });
        }
        let Some(bytes) = self.contents.bytes().get(range.clone()) else {
            return Err(Error::OutOfRange { path: self.path.clone(), range, len: self.len() });
        };
        let size = size_of::<T>();
        if size == 0 || !bytes.len().is_multiple_of(size) {
            return Err(Error::PartialElement { path: self.path.clone(), range, size });
        }
        Ok(match bytemuck::try_cast_slice(bytes) {
            Ok(elements) => Cow::Borrowed(elements),
            // Whole elements, so alignment is what is wrong.
            Err(_) => Cow::Owned(bytes.chunks_exact(size).map(bytemuck::pod_read_unaligned).collect()),
        })
    }
}

/// KiB of the mapping at `address` that lie in huge pages of a file, as the system counts them.
#[cfg(target_os = "linux")]
fn huge_kib(address: usize) -> Option<u64> {
    let smaps = std::fs::read_to_string("/proc/self/smaps").ok()?;
    // A line `7f0000000000-7f0000200000 r--s ...`, then one `Name: value kB` for each figure.
    let begins = |line: &str| {
        let (start, end) = line.split_once(' ')?.0.split_once('-')?;
        Some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
    };
    let mut lines = smaps.lines().skip_while(|line| !begins(line).is_some_and(|range| range.contains(&address)));
    lines.next()?;
    let figures = lines.take_while(|line| begins(line).is_none());
    let huge =
        figures.filter_map(|line| line.split_once("PmdMapped:")).filter(|(of, _)| matches!(*of, "File" | "Shmem"));
    huge.map(|(_, value)| value.trim().trim_end_matches(" kB").parse::<u64>().ok()).sum()
}

impl Contents {
    fn of(path: &Path) -> io::Result<Contents> {
        let mut file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.len() < IN_MEMORY_BELOW {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?; // a folder fails here, in the system's words; a pipe has no length and is read
            return Ok(Contents::InMemory(bytes));
        }
        // SAFETY: the map is private to this module and read-only. What other programs may do to the file meanwhile, and
        // what then happens, is the contract of the module; its users are told, and elements are `Pod`.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Contents::Mapped(map, Identity::of(&metadata)))
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Contents::InMemory(bytes) => bytes,
            Contents::Mapped(map, _) => map,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A file of `len` bytes, byte i being `i % 251`.
    fn file_of(len: usize) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        fs::write(&path, (0..len).map(|i| (i % 251) as u8).collect::<Vec<u8>>()).unwrap();
        (dir, path)
    }

    #[test]
    fn small_and_large_files_give_their_elements_at_any_offset() {
        for len in [0, 1, 1000, IN_MEMORY_BELOW as usize - 1, IN_MEMORY_BELOW as usize, IN_MEMORY_BELOW as usize + 13] {
            let (_dir, path) = file_of(len);
            let file = MappedFile::open(&path).unwrap();
            assert_eq!(file.len(), len);
            assert_eq!(matches!(file.contents, Contents::Mapped(..)), len >= IN_MEMORY_BELOW as usize);
            for start in 0..=8.min(len) {
                let end = start + (len - start) / 4 * 4;
                let words = file.as_slice::<u32>(start..end).unwrap();
                let byte = |i: usize| (i % 251) as u8;
                for (i, &word) in words.iter().enumerate() {
                    let at = start + 4 * i;
                    assert_eq!(word, u32::from_le_bytes([byte(at), byte(at + 1), byte(at + 2), byte(at + 3)]));
                }
                if matches!(file.contents, Contents::Mapped(..)) {
                    assert_eq!(matches!(words, Cow::Borrowed(_)), start % 4 == 0, "offset {start}");
                }
            }
        }
    }

    #[test]
    fn populating_changes_nothing_and_files_in_memory_have_no_huge_pages() {
        for len in [100, IN_MEMORY_BELOW as usize, 5 << 20] {
            let (_dir, path) = file_of(len);
            let file = MappedFile::open(&path).unwrap();
            let huge = file.populate();
            assert!(!huge || len > 2 << 20, "{len} bytes fill no huge page");
            assert!(file.bytes().iter().enumerate().all(|(i, &byte)| byte == (i % 251) as u8));
        }
    }

    /// The system's figures of a mapping that is known to lie in huge pages, and of one that is not.
    #[cfg(target_os = "linux")]
    #[test]
    fn huge_pages_are_counted_for_the_mapping_asked_about() {
        let (_dir, path) = file_of(1 << 20);
        let file = MappedFile::open(&path).unwrap();
        file.populate();
        assert_eq!(huge_kib(file.bytes().as_ptr() as usize), Some(0), "1 MiB");
        assert_eq!(huge_kib(file.bytes().as_ptr() as usize + 8192), Some(0), "an address within");
        assert_eq!(huge_kib(1), None, "no mapping holds address 1");
    }

    #[test]
    fn ranges_that_do_not_fit_are_errors() {
        let (_dir, path) = file_of(100);
        let file = MappedFile::open(&path).unwrap();
        assert!(matches!(file.as_slice::<u16>(90..102), Err(Error::OutOfRange { len: 100, .. })));
        assert!(matches!(file.as_slice::<u16>(usize::MAX - 1..usize::MAX), Err(Error::OutOfRange { .. })));
        #[allow(clippy::reversed_empty_ranges)]
        let reversed = 8..4;
        assert!(matches!(file.as_slice::<u16>(reversed), Err(Error::OutOfRange { .. })));
        let error = file.as_slice::<u32>(0..7).unwrap_err();
        assert!(error.to_string().ends_with("bytes 0..7 are no whole number of elements of 4 bytes"), "{error}");
    }

    #[test]
    fn a_truncated_file_is_an_error_and_a_replaced_one_keeps_its_contents() {
        let len = 2 * IN_MEMORY_BELOW as usize;
        let (dir, path) = file_of(len);
        let file = MappedFile::open(&path).unwrap();
        let other = dir.path().join("other");
        fs::write(&other, vec![7; 10]).unwrap();
        fs::rename(&other, &path).unwrap();
        assert_eq!(file.as_slice::<u8>(len - 1..len).unwrap()[0], ((len - 1) % 251) as u8);
        fs::remove_file(&path).unwrap();
        assert_eq!(file.as_slice::<u8>(len - 2..len).unwrap()[0], ((len - 2) % 251) as u8);

        let (_dir, path) = file_of(len);
        let file = MappedFile::open(&path).unwrap();
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(100).unwrap();
        let error = file.as_slice::<u8>(0..1).unwrap_err();
        assert!(matches!(error, Error::Shrunk { now: 100, .. }), "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }

    #[test]
    fn a_missing_file_and_a_folder_are_errors_with_the_path() {
        let dir = tempfile::tempdir().unwrap();
        for path in [dir.path().join("absent"), dir.path().to_path_buf()] {
            let error = MappedFile::open(&path).unwrap_err();
            assert!(matches!(error, Error::Io { .. }), "{error}");
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        }
    }
}
