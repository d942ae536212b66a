//! The file: a header with a hash for each 4 MiB of what follows, and from byte 2 Mi on the parts one after the other: parameters, or the
//! filters of the layers. In one of packed bf16, a byte for each parameter comes before them: 1 if it is kept as plain bf16.

use super::{MappedFile, Parameter, Path, WeightFormat};
use bytemuck::{Pod, Zeroable, bytes_of, cast_slice, pod_read_unaligned};
use kernels::Team;
use kernels::row_format::LAYOUT_VERSION;
use kernels::sparse::{FILTER_VERSION, FilterLine, gate_filter_lines};
use model::Config;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// What a file holds.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// The parameters.
    Weights,
    /// The memory of the filter of each layer's gate.
    Filters,
}

impl Kind {
    /// The first bytes of a file.
    fn magic(self) -> [u8; 8] {
        match self {
            Kind::Weights => *b"SILRESID",
            Kind::Filters => *b"SILFILTR",
        }
    }

    fn in_words(self) -> &'static str {
        match self {
            Kind::Weights => "weights in decode layout",
            Kind::Filters => "filters of the gate",
        }
    }

    /// Bytes of each part. The parameters that `plain` names, by their number, are kept as bf16.
    pub fn parts(self, config: &Config, format: WeightFormat, plain: &[bool]) -> Vec<usize> {
        let format_of = |index: usize| if plain.get(index) == Some(&true) { WeightFormat::Bf16 } else { format };
        match self {
            Kind::Weights => Parameter::all(config).iter().map(|p| p.bytes(format_of(p.index))).collect(),
            Kind::Filters => {
                vec![gate_filter_lines(config.d_ff, config.d_model) * size_of::<FilterLine>(); config.n_layers]
            }
        }
    }
}

/// Changes with the form of the file; [`LAYOUT_VERSION`] and [`FILTER_VERSION`] change with what is in it.
const VERSION: u32 = 1;

/// Where the parts begin, and the unit in which they are written: a system that keeps files in huge pages takes one for each
/// aligned 2 MiB of a write. The rest of the header's place is a hole.
const START: usize = 2 << 20;

/// Bytes of parts that are written at once, and that have a hash of their own: work for a thread.
const PIECE: usize = 4 << 20;

/// Parts begin on a cache line, as in memory of the process.
const ALIGNMENT: usize = 64;

/// The first bytes; behind them a hash (u64) for each piece.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: u32,
    layout_version: u32,
    /// The first 8 bytes of the format's name, with zeros behind it.
    format: [u8; 8],
    /// Of the model's own files.
    source: [u64; 2],
    /// Bytes of all parts, with what aligns them.
    len: u64,
    /// XXH3 of the fields above and the hashes of the pieces.
    hash: u64,
    /// [`FILTER_VERSION`] in a file of filters; their rows are of `layout_version`. 0 in one of weights.
    filter_version: u64,
}

/// What a file must be.
pub(super) struct Layout {
    kind: Kind,
    /// With a hash of 0.
    header: Header,
    /// Of a file of packed bf16, for each parameter whether it is kept as plain bf16; else empty.
    pub plain: Vec<bool>,
    /// Of each part.
    pub bytes: Vec<Range<usize>>,
}

impl Layout {
    /// That of a model whose files have the hash `source`. `plain` is looked at in a file of packed bf16, for each parameter.
    pub fn new(kind: Kind, config: &Config, format: WeightFormat, source: u128, plain: &[bool]) -> Layout {
        let plain = match (kind, format) {
            (Kind::Weights, WeightFormat::Bf16Packed) => plain.to_vec(),
            _ => Vec::new(),
        };
        let mut end = START + plain.len();
        let place = |bytes: usize| {
            let start = end.next_multiple_of(ALIGNMENT);
            end = start + bytes;
            start..end
        };
        let bytes = kind.parts(config, format, &plain).into_iter().map(place).collect();
        let mut name = [0; 8];
        name.iter_mut().zip(format.to_string().bytes()).for_each(|(to, byte)| *to = byte);
        let header = Header {
            magic: kind.magic(),
            version: VERSION,
            layout_version: LAYOUT_VERSION,
            format: name,
            source: [source as u64, (source >> 64) as u64],
            len: (end - START) as u64,
            hash: 0,
            filter_version: match kind {
                Kind::Weights => 0,
                Kind::Filters => FILTER_VERSION.into(),
            },
        };
        Layout { kind, header, plain, bytes }
    }

    /// That of the file at `path`, if it is one: [`open`](Layout::open) finds out.
    pub fn of_file(kind: Kind, config: &Config, format: WeightFormat, source: u128, path: &Path) -> Layout {
        let mut plain = vec![0; Parameter::all(config).len()];
        let mut read = || -> io::Result<()> {
            let mut file = File::open(path)?;
            file.seek(SeekFrom::Start(START as u64))?;
            file.read_exact(&mut plain)
        };
        if read().is_err() {
            // A file that is too short or cannot be read, which `open` says.
            plain.fill(0);
        }
        Layout::new(kind, config, format, source, &plain.iter().map(|&plain| plain == 1).collect::<Vec<_>>())
    }

    fn pieces(&self) -> usize {
        (self.header.len as usize).div_ceil(PIECE)
    }

    /// Opens a file and looks at all of it. None if there is none; or what is wrong with it.
    pub fn open(&self, path: &Path) -> Result<Option<MappedFile>, String> {
        match path.try_exists() {
            Ok(false) => return Ok(None),
            Ok(true) => {}
            Err(e) => return Err(format!("cannot be read: {e}")),
        }
        let file = MappedFile::open(path).map_err(|e| match e {
            tensor::mapped_file::Error::Io { reason, .. } => format!("cannot be read: {reason}"),
            other => other.to_string(),
        })?;
        let bytes = file.bytes();
        let Some(header) = bytes.get(..size_of::<Header>()) else {
            return Err(format!("{} bytes, shorter than its header", bytes.len()));
        };
        let header: Header = pod_read_unaligned(header);
        let expected = &self.header;
        if header.magic != expected.magic {
            return Err(format!("not a file of {}", self.kind.in_words()));
        }
        let versions = |header: &Header| (header.version, header.layout_version, header.filter_version);
        if versions(&header) != versions(expected) {
            return Err("of another version of Silurian".to_string());
        }
        if header.format != expected.format {
            return Err("of another weight format".to_string());
        }
        if header.source != expected.source {
            return Err("made from other weights than those that are here now".to_string());
        }
        if header.len != expected.len || bytes.len() as u64 != START as u64 + expected.len {
            let expected = START as u64 + expected.len;
            return Err(format!("{} bytes, expected {expected}: truncated", bytes.len()));
        }
        let table = &bytes[size_of::<Header>()..][..self.pieces() * size_of::<u64>()];
        if hash_of(&header, table) != header.hash {
            return Err("its header is damaged".to_string());
        }
        file.populate();
        let expected: Vec<u64> = table.chunks_exact(size_of::<u64>()).map(pod_read_unaligned).collect();
        let mut found = vec![0; expected.len()];
        Team::current().run_chunks_mut(&mut found, 1, |piece, found| {
            let start = START + piece * PIECE;
            found[0] = xxh3_64(&bytes[start..bytes.len().min(start + PIECE)]);
        });
        match expected.iter().zip(&found).position(|(expected, found)| expected != found) {
            Some(piece) => {
                let start = START + piece * PIECE;
                Err(format!("damaged in bytes {start} to {}", bytes.len().min(start + PIECE)))
            }
            None => Ok(Some(file)),
        }
    }

    /// Writes the `parts`, in their order, and gives the bytes of the file. Not synced: a file that a crash of the system cuts short is
    /// found to be damaged, and made again.
    pub fn write(&self, path: &Path, parts: &[&[u8]]) -> io::Result<u64> {
        let dir = path.parent().expect("a file is in a folder");
        fs::create_dir_all(dir)?;
        let mut temporary = Temporary::new(dir, path)?;
        temporary.file.seek(SeekFrom::Start(START as u64))?;
        let (mut piece, mut hashes) = (Vec::with_capacity(PIECE), Vec::with_capacity(self.pieces()));
        let mut write = |piece: &mut Vec<u8>| {
            hashes.push(xxh3_64(piece));
            temporary.file.write_all(piece)?;
            piece.clear();
            io::Result::Ok(())
        };
        let mut at = START;
        let plain: Vec<u8> = self.plain.iter().map(|&plain| plain.into()).collect();
        let before = (&plain[..], START..START + plain.len());
        let parts = parts.iter().copied().zip(self.bytes.iter().cloned());
        for (mut bytes, range) in std::iter::once(before).chain(parts) {
            assert_eq!(bytes.len(), range.len(), "resident layout: bytes of a part");
            piece.resize(piece.len() + range.start - at, 0);
            at = range.end;
            while !bytes.is_empty() {
                // The bytes before a part may have filled a piece.
                let (now, rest) = bytes.split_at(bytes.len().min(PIECE.saturating_sub(piece.len())));
                piece.extend_from_slice(now);
                bytes = rest;
                if piece.len() >= PIECE {
                    write(&mut piece)?;
                }
            }
        }
        if !piece.is_empty() {
            write(&mut piece)?;
        }
        let table = cast_slice(&hashes);
        let header = Header { hash: hash_of(&self.header, table), ..self.header };
        temporary.file.seek(SeekFrom::Start(0))?;
        temporary.file.write_all(&[bytes_of(&header), table].concat())?;
        temporary.rename(path)?;
        Ok(at as u64)
    }
}

fn hash_of(header: &Header, table: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(bytes_of(&Header { hash: 0, ..*header }));
    hash.update(table);
    hash.digest()
}

/// Ends the name of a file that is being written.
const WRITING: &str = ".writing";

/// A file under another name, until it is whole. Locked, so that a file that a killed process left can be told from one that is
/// being written.
struct Temporary {
    path: PathBuf,
    file: File,
    renamed: bool,
}

impl Temporary {
    /// Fails if another process is writing such a file now. Removes what killed ones left.
    fn new(dir: &Path, target: &Path) -> io::Result<Temporary> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = target.file_name().expect("a file has a name").to_string_lossy().into_owned();
        for entry in fs::read_dir(dir)?.flatten() {
            let other = entry.file_name().to_string_lossy().into_owned();
            if other.starts_with(&name) && other.ends_with(WRITING) {
                let locked = File::open(entry.path()).and_then(|file| match file.try_lock() {
                    Err(TryLockError::WouldBlock) => Ok(true),
                    Err(TryLockError::Error(e)) => Err(e),
                    Ok(()) => Ok(false),
                });
                match locked {
                    Ok(true) => return Err(io::Error::other("another process is writing it")),
                    Ok(false) => drop(fs::remove_file(entry.path())),
                    // Gone meanwhile, or none that can be judged.
                    Err(_) => {}
                }
            }
        }
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = dir.join(format!("{name}.{}-{number}{WRITING}", std::process::id()));
        let file = File::create_new(&path)?;
        let temporary = Temporary { path, file, renamed: false };
        temporary.file.lock()?;
        Ok(temporary)
    }

    fn rename(mut self, to: &Path) -> io::Result<()> {
        fs::rename(&self.path, to)?;
        self.renamed = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.renamed {
            // What is reported is why it was not renamed.
            let _ = fs::remove_file(&self.path);
        }
    }
}
