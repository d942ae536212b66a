//! The hash of the model's own files.
//!
//! Hashing them takes as long as reading them, so it is done once: `source.json` says of which states of the files (size, times, inode)
//! the hash was taken, and as long as they are in these states it holds. The time of the last change of a file (`ctime`) cannot be set
//! back, so neither a rewritten file of the same size nor one with its old modification time passes for the old one. A file that
//! changed less than two seconds before it was hashed may change again within the grain of that time: then the hash is taken
//! anew at the next start.

use super::DIR;
use kernels::Team;
use model::hf::{CONFIG, Folder, INDEX, WEIGHTS};
use serde_json::{Value, json};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// The name of the file.
const NAME: &str = "source.json";

/// Changes with what is hashed, and how.
const VERSION: u32 = 1;

/// The coarsest grain of a file system's times, that of FAT, in nanoseconds.
const GRAIN: u128 = 2_000_000_000;

/// Bytes that a thread hashes at once.
const PIECE: usize = 16 << 20;

/// The files of a model in the states in which they were found.
pub(super) struct Source {
    dir: PathBuf,
    /// An array of objects, one for each file.
    states: Value,
    /// Nanoseconds since 1970.
    seen: u128,
    /// Of the youngest file.
    changed: u128,
    /// What was read or found, and whether it is yet to be written.
    hash: Option<(u128, bool)>,
}

impl Source {
    /// The files as they are now.
    pub fn now(dir: &Path) -> Result<Source, String> {
        let seen = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        let (states, changed) = states(dir)?;
        Ok(Source { dir: dir.to_path_buf(), states, seen, changed, hash: None })
    }

    /// The hash of names and contents: as it was written down, or of the files of `folder`, which was opened after
    /// [`now`](Source::now).
    pub fn hash(&mut self, folder: &Folder) -> u128 {
        let written = read(&self.dir.join(DIR).join(NAME))
            .filter(|memo| memo["version"] == VERSION && memo["files"] == self.states && memo["settled"] == true);
        let written = written.and_then(|memo| u128::from_str_radix(memo["hash"].as_str()?, 16).ok());
        let hash = written.map_or_else(|| (hash(folder), true), |hash| (hash, false));
        self.hash = Some(hash);
        hash.0
    }

    /// Whether the files are in other states now.
    pub fn changed(&self) -> bool {
        states(&self.dir).ok().is_none_or(|(states, _)| states != self.states)
    }

    /// Writes the hash down, if it was taken now and is not yet written.
    pub fn remember(&mut self, note: &mut dyn FnMut(String)) {
        let Some((hash, true)) = self.hash else { return };
        self.hash = Some((hash, false));
        if self.changed() {
            return;
        }
        let settled = self.changed.saturating_add(GRAIN) < self.seen;
        let memo = json!({
            "version": VERSION,
            "hash": format!("{hash:032x}"),
            "files": self.states,
            "settled": settled,
        });
        let dir = self.dir.join(DIR);
        let temporary = dir.join(format!(".{NAME}.{}", std::process::id()));
        let write = || -> io::Result<()> {
            fs::write(&temporary, format!("{memo:#}\n"))?;
            fs::rename(&temporary, dir.join(NAME))
        };
        if let Err(reason) = write() {
            let _ = fs::remove_file(&temporary);
            note(format!("{}: not written: {reason}; the next start hashes the model again", dir.join(NAME).display()));
        }
    }
}

fn read(path: &Path) -> Option<Value> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// The states of the files, and when the youngest changed.
fn states(dir: &Path) -> Result<(Value, u128), String> {
    let names: Vec<String> = if dir.join(WEIGHTS).exists() {
        vec![CONFIG.to_string(), WEIGHTS.to_string()]
    } else {
        let index = read(&dir.join(INDEX)).unwrap_or_default();
        let mut shards: Vec<String> = match &index["weight_map"] {
            Value::Object(map) => map.values().filter_map(Value::as_str).map(str::to_string).collect(),
            _ => Vec::new(),
        };
        shards.sort();
        shards.dedup();
        [CONFIG.to_string(), INDEX.to_string()].into_iter().chain(shards).collect()
    };
    let (mut states, mut youngest) = (Vec::new(), 0);
    for name in names {
        let path = dir.join(&name);
        let metadata = fs::metadata(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let (modified, changed, inode) = times(&metadata).map_err(|e| format!("{}: {e}", path.display()))?;
        youngest = youngest.max(changed).max(modified);
        states.push(json!({
            "name": name,
            "bytes": metadata.len(),
            "modified": modified.to_string(),
            "changed": changed.to_string(),
            "inode": inode,
        }));
    }
    Ok((Value::Array(states), youngest))
}

/// When a file was last written and last changed, in nanoseconds since 1970, and its inode.
#[cfg(unix)]
fn times(metadata: &fs::Metadata) -> io::Result<(u128, u128, u64)> {
    use std::os::unix::fs::MetadataExt;
    let nanoseconds = |s: i64, ns: i64| (s as i128 * 1_000_000_000 + ns as i128).max(0) as u128;
    let modified = nanoseconds(metadata.mtime(), metadata.mtime_nsec());
    Ok((modified, nanoseconds(metadata.ctime(), metadata.ctime_nsec()), metadata.ino()))
}

/// Other systems say less.
#[cfg(not(unix))]
fn times(metadata: &fs::Metadata) -> io::Result<(u128, u128, u64)> {
    let modified = metadata.modified()?.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    Ok((modified, modified, 0))
}

/// Of the config, the index if there is one, and the files with the parameters: names, lengths, and XXH3 of the hashes of all pieces.
fn hash(folder: &Folder) -> u128 {
    let mut hash = Xxh3::new();
    let mut add = |name: &str, bytes: &[u8]| {
        let mut pieces = vec![[0; 16]; bytes.len().div_ceil(PIECE)];
        Team::current().run_chunks_mut(&mut pieces, 1, |i, piece| {
            piece[0] = xxh3_128(&bytes[i * PIECE..bytes.len().min((i + 1) * PIECE)]).to_le_bytes();
        });
        hash.update(&(name.len() as u64).to_le_bytes());
        hash.update(name.as_bytes());
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(pieces.as_flattened());
    };
    for name in [CONFIG, INDEX] {
        // The index of a model in one file is not looked at, but does no harm here.
        if let Ok(bytes) = fs::read(folder.dir().join(name)) {
            add(name, &bytes);
        }
    }
    for file in folder.weight_files() {
        add(&file.path().file_name().unwrap_or_default().to_string_lossy(), file.bytes());
    }
    hash.digest128()
}
