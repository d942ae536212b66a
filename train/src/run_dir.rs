//! The folder of a run:
//!
//! ```text
//! runs/<name>/config.toml            the resolved configuration
//! runs/<name>/metrics.jsonl          one record a step: [`StepMetrics`]
//! runs/<name>/samples.jsonl          one record a text that the model wrote in training: [`Sample`]
//! runs/<name>/sessions.jsonl         one record each time that a process began or went on: [`Started`]
//! runs/<name>/results.json           what was measured after training, if it was: [`Results`](crate::report::Results)
//! runs/<name>/report.html            all of this as a page: see [`report`](mod@crate::report)
//! runs/<name>/checkpoints/step-N/    see `checkpoint`
//! runs/<name>/lock                   held by the process that trains; its number is in it
//! ```

use crate::config::TrainConfig;
use crate::error::Error;
use crate::events::{Sample, Started};
use crate::files;
use crate::metrics::StepMetrics;
use crate::records::{self, Records, RecordsError};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

pub(crate) const CONFIG: &str = "config.toml";
const METRICS: &str = "metrics.jsonl";
const SAMPLES: &str = "samples.jsonl";
const SESSIONS: &str = "sessions.jsonl";
const CHECKPOINTS: &str = "checkpoints";
const LOCK: &str = "lock";

/// A run's folder, locked for this process. The lock goes when this is dropped, and when the process ends in any way.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    metrics: Records<StepMetrics>,
    samples: Records<Sample>,
    sessions: Records<Started>,
    _lock: File,
}

impl RunDir {
    /// Makes the folder, with the configuration in it. It appears at once and whole, under its name: a kill leaves at most a
    /// hidden folder beside it. Fails if the name is taken, also by another process at the same moment.
    pub fn create(path: &Path, config: &TrainConfig) -> Result<RunDir, Error> {
        RunDir::expect_free(path)?;
        let taken = || Error::Exists { path: path.to_path_buf() };
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
            open_records(&temporary)?; // so that they are there from the first moment
            files::sync_dir(&temporary)?;
            match std::fs::rename(&temporary, path) {
                Ok(()) => {}
                Err(_) if path.exists() => return Err(taken()),
                Err(reason) => return Err(files::Error::new("renamed", &temporary, reason).into()),
            }
            files::sync_dir(parent)?;
            RunDir::with_lock(path, lock)
        })();
        if made.is_err() {
            // What is reported is the error that led here.
            let _ = std::fs::remove_dir_all(&temporary);
        }
        made
    }

    /// Fails if the name is taken: to know it before work that takes long.
    pub fn expect_free(path: &Path) -> Result<(), Error> {
        if path.symlink_metadata().is_err() {
            return Ok(());
        }
        // Whether it is in use is what the user would ask next.
        match lock(path, false) {
            Err(e @ Error::InUse { .. }) => Err(e),
            _ => Err(Error::Exists { path: path.to_path_buf() }),
        }
    }

    /// Opens and locks the folder of an earlier run.
    pub fn open(path: &Path) -> Result<RunDir, Error> {
        if !path.join(CONFIG).is_file() {
            return Err(Error::NotARun { path: path.to_path_buf(), missing: CONFIG });
        }
        let lock = lock(path, true)?;
        files::create_dir_all(&path.join(CHECKPOINTS))?;
        RunDir::with_lock(path, lock)
    }

    fn with_lock(path: &Path, lock: File) -> Result<RunDir, Error> {
        let (metrics, samples, sessions) = open_records(path)?;
        Ok(RunDir { path: path.to_path_buf(), metrics, samples, sessions, _lock: lock })
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

    /// Appends the record of a step.
    pub fn append(&mut self, record: &StepMetrics) -> Result<(), Error> {
        Ok(self.metrics.append(record)?)
    }

    /// Appends a text that the model wrote.
    pub fn append_sample(&mut self, sample: &Sample) -> Result<(), Error> {
        Ok(self.samples.append(sample)?)
    }

    /// Appends what a process is about to do here.
    pub fn append_session(&mut self, started: &Started) -> Result<(), Error> {
        Ok(self.sessions.append(started)?)
    }

    /// Waits until all records are on the disk.
    pub fn sync_records(&self) -> Result<(), Error> {
        self.metrics.sync()?;
        self.samples.sync()?;
        Ok(self.sessions.sync()?)
    }

    /// Cuts the records back to those of the first `steps_done` steps, which come again if they are done again. Returns how
    /// many steps are left; fewer than `steps_done` if records were lost. A line that was half written when a process ended is
    /// dropped.
    pub fn cut_records(&mut self, steps_done: usize) -> Result<usize, Error> {
        self.samples.cut(|sample| sample.steps_done <= steps_done)?;
        // A session from here or later left nothing that is kept.
        self.sessions.cut(|started| started.steps_done < steps_done)?;
        Ok(self.metrics.cut(|record| record.step < steps_done)?)
    }
}

/// Whether a folder is that of a run.
pub(crate) fn is_run(path: &Path) -> bool {
    path.join(CONFIG).is_file() && path.join(CHECKPOINTS).is_dir()
}

/// Whether a run's folder has a file for the records of its steps.
pub(crate) fn has_metrics(run: &Path) -> bool {
    run.join(METRICS).is_file()
}

/// The records of a run's steps, in order, as a reader of the folder has them: also while it goes on.
pub fn read_metrics(run: &Path) -> Result<Vec<StepMetrics>, RecordsError> {
    records::read(&run.join(METRICS))
}

/// The texts that the model wrote in training; none for a run from before they were kept.
pub fn read_samples(run: &Path) -> Result<Vec<Sample>, RecordsError> {
    read_if_there(&run.join(SAMPLES))
}

/// How the processes began that did the run's steps; none for a run from before that was kept.
pub fn read_sessions(run: &Path) -> Result<Vec<Started>, RecordsError> {
    read_if_there(&run.join(SESSIONS))
}

fn read_if_there<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Vec<T>, RecordsError> {
    if path.exists() { records::read(path) } else { Ok(Vec::new()) }
}

type OpenRecords = (Records<StepMetrics>, Records<Sample>, Records<Started>);

fn open_records(run: &Path) -> Result<OpenRecords, files::Error> {
    Ok((Records::open(run.join(METRICS))?, Records::open(run.join(SAMPLES))?, Records::open(run.join(SESSIONS))?))
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
