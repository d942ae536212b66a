//! The folder of a run:
//!
//! ```text
//! runs/<name>/config.toml            the resolved configuration
//! runs/<name>/metrics.jsonl          one record a step
//! runs/<name>/checkpoints/step-N/    see `checkpoint`
//! runs/<name>/lock                   held by the process that trains; its number is in it
//! ```

use crate::config::TrainConfig;
use crate::error::Error;
use crate::files;
use crate::metrics::StepMetrics;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

const CONFIG: &str = "config.toml";
const METRICS: &str = "metrics.jsonl";
const CHECKPOINTS: &str = "checkpoints";
const LOCK: &str = "lock";

/// A run's folder, locked for this process. The lock goes when this is dropped, and when the process ends in any way.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    metrics: File,
    _lock: File,
}

impl RunDir {
    /// Makes the folder, with the configuration in it. It appears at once and whole, under its name: a kill leaves at most a
    /// hidden folder beside it. Fails if the name is taken, also by another process at the same moment.
    pub fn create(path: &Path, config: &TrainConfig) -> Result<RunDir, Error> {
        let taken = || Error::Exists { path: path.to_path_buf() };
        if path.symlink_metadata().is_ok() {
            // Whether it is in use is what the user would ask next.
            return match lock(path, false) {
                Err(e @ Error::InUse { .. }) => Err(e),
                _ => Err(taken()),
            };
        }
        let parent = path.parent().unwrap_or(Path::new(""));
        let name = path.file_name().ok_or_else(taken)?.to_string_lossy();
        let temporary = parent.join(format!(".{name}.{}", std::process::id()));
        let made = (|| {
            if temporary.exists() {
                // Left by a killed process that had our number.
                remove_dir(&temporary)?;
            }
            files::create_dir_all(&temporary.join(CHECKPOINTS))?;
            files::write_synced(&temporary.join(CONFIG), config.to_toml().as_bytes())?;
            let lock = lock(&temporary, true)?;
            let metrics = open_metrics(&temporary)?;
            files::sync_dir(&temporary)?;
            match std::fs::rename(&temporary, path) {
                Ok(()) => {}
                Err(_) if path.exists() => return Err(taken()),
                Err(reason) => return Err(files::Error::new("renamed", &temporary, reason).into()),
            }
            files::sync_dir(parent)?;
            Ok(RunDir { path: path.to_path_buf(), metrics, _lock: lock })
        })();
        if made.is_err() {
            // What is reported is the error that led here.
            let _ = std::fs::remove_dir_all(&temporary);
        }
        made
    }

    /// Opens and locks the folder of an earlier run.
    pub fn open(path: &Path) -> Result<RunDir, Error> {
        if !path.join(CONFIG).is_file() {
            return Err(Error::NotARun { path: path.to_path_buf(), missing: CONFIG });
        }
        let lock = lock(path, true)?;
        files::create_dir_all(&path.join(CHECKPOINTS))?;
        let metrics = open_metrics(path)?;
        Ok(RunDir { path: path.to_path_buf(), metrics, _lock: lock })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where checkpoints are.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join(CHECKPOINTS)
    }

    /// The configuration that it was made with.
    pub fn config(&self) -> Result<TrainConfig, Error> {
        Ok(TrainConfig::read(self.path.join(CONFIG))?)
    }

    /// Replaces the configuration, at once.
    pub fn write_config(&self, config: &TrainConfig) -> Result<(), Error> {
        Ok(files::replace(&self.path.join(CONFIG), config.to_toml().as_bytes())?)
    }

    /// Appends a record.
    pub fn append(&mut self, record: &StepMetrics) -> Result<(), Error> {
        let mut line = serde_json::to_vec(record).expect("a record is made of numbers and strings");
        line.push(b'\n');
        let path = || self.path.join(METRICS);
        self.metrics.write_all(&line).map_err(|reason| files::Error::new("written", &path(), reason).into())
    }

    /// Waits until all records are on the disk.
    pub fn sync_metrics(&self) -> Result<(), Error> {
        let path = || self.path.join(METRICS);
        self.metrics.sync_data().map_err(|reason| files::Error::new("synced", &path(), reason).into())
    }

    /// Cuts `metrics.jsonl` back to the records of the first `steps_done` steps. Returns how many those are; fewer than the
    /// steps if records were lost. A line that was half written when a process ended is dropped.
    pub fn cut_metrics(&mut self, steps_done: usize) -> Result<usize, Error> {
        let path = self.path.join(METRICS);
        let text = std::fs::read(&path).map_err(|reason| files::Error::new("read", &path, reason))?;
        let mut kept = Vec::new();
        let mut records = 0;
        for line in text.split_inclusive(|&b| b == b'\n') {
            let whole = line.ends_with(b"\n");
            let record = serde_json::from_slice::<StepMetrics>(line).ok().filter(|r| whole && r.step < steps_done);
            if record.is_some() {
                kept.extend_from_slice(line);
                records += 1;
            }
        }
        if kept.len() != text.len() {
            files::replace(&path, &kept)?;
            self.metrics = open_metrics(&self.path)?;
        }
        Ok(records)
    }
}

/// Whether a folder is that of a run.
pub(crate) fn is_run(path: &Path) -> bool {
    path.join(CONFIG).is_file() && path.join(CHECKPOINTS).is_dir()
}

/// The records of a run, in order, as a reader of the folder has them. Lines that are none are skipped.
pub fn read_metrics(run: &Path) -> Result<Vec<StepMetrics>, files::Error> {
    let path = run.join(METRICS);
    let text = std::fs::read_to_string(&path).map_err(|reason| files::Error::new("read", &path, reason))?;
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

fn open_metrics(run: &Path) -> Result<File, Error> {
    let path = run.join(METRICS);
    let opened = OpenOptions::new().append(true).create(true).open(&path);
    opened.map_err(|reason| files::Error::new("opened", &path, reason).into())
}

/// Locks the run for this process, and writes its number into the lock file if `own`.
fn lock(run: &Path, own: bool) -> Result<File, Error> {
    let path = run.join(LOCK);
    let failed = |what| {
        let path = path.clone();
        move |reason| Error::from(files::Error::new(what, &path, reason))
    };
    let mut file =
        OpenOptions::new().read(true).write(true).create(own).truncate(false).open(&path).map_err(failed("opened"))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let pid = std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
            return Err(Error::InUse { path: run.to_path_buf(), pid });
        }
        Err(TryLockError::Error(reason)) => return Err(failed("locked")(reason)),
    }
    if own {
        file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(failed("written"))?;
    }
    Ok(file)
}

fn remove_dir(path: &Path) -> Result<(), files::Error> {
    std::fs::remove_dir_all(path).map_err(|reason| files::Error::new("removed", path, reason))
}
