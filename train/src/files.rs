//! Files that are whole or absent: written under a temporary name, synced, renamed, their folder synced.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A file or folder on which the system refused something.
#[derive(Debug, thiserror::Error)]
#[error("{}: cannot be {what}: {reason}", path.display())]
pub struct Error {
    /// The file or folder.
    pub path: PathBuf,
    /// What was tried: `written`.
    pub what: &'static str,
    /// The system's words.
    pub reason: io::Error,
}

impl Error {
    pub(crate) fn new(what: &'static str, path: &Path, reason: io::Error) -> Error {
        Error { path: path.to_path_buf(), what, reason }
    }
}

pub(crate) fn create_dir_all(path: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(path).map_err(|reason| Error::new("created", path, reason))
}

/// Writes a file and waits until it is on the disk.
pub(crate) fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|reason| Error::new("written", path, reason))
}

/// Replaces a file at once: readers, and a kill at any instant, leave the old or the new contents.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let done = write_synced(&temporary, bytes).and_then(|()| rename(&temporary, path));
    if done.is_err() {
        // What is reported is the error that led here.
        let _ = std::fs::remove_file(&temporary);
    }
    // The user named the file, not the temporary one.
    done.map_err(|e| Error { path: path.to_path_buf(), what: "written", ..e })
}

/// Renames a file or folder and waits until its folder knows.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    std::fs::rename(from, to).map_err(|reason| Error::new("renamed", from, reason))?;
    sync_dir(to.parent().unwrap_or(Path::new(".")))
}

/// Waits until the entries of a folder are on the disk.
pub(crate) fn sync_dir(path: &Path) -> Result<(), Error> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    File::open(path).and_then(|dir| dir.sync_all()).map_err(|reason| Error::new("synced", path, reason))
}

/// Syncs every file of a folder (not of its folders) and the folder.
pub(crate) fn sync_files(path: &Path) -> Result<(), Error> {
    let failed = |reason| Error::new("synced", path, reason);
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        File::open(&path).and_then(|file| file.sync_all()).map_err(|reason| Error::new("synced", &path, reason))?;
    }
    sync_dir(path)
}
