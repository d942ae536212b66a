//! What the tests of the binary share: a place, a text, a small run.
#![allow(dead_code)] // each test file uses a part

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

/// A folder of a test's own, with a text in it; the token cache goes there too.
pub struct Place {
    dir: TempDir,
}

/// Sizes and schedule of a run of about a second.
pub const SMALL: &[&str] = &[
    "--set",
    "model.d_model=32",
    "--set",
    "model.n_layers=2",
    "--set",
    "model.n_heads=2",
    "--set",
    "model.n_kv_heads=1",
    "--set",
    "model.d_ff=64",
    "--set",
    "train.warmup_steps=5",
    "--seq-len",
    "32",
    "--micro-batch",
    "4",
    "--set",
    "train.eval_tokens=512",
    "--set",
    "train.sample_every=0",
];

impl Place {
    pub fn new() -> Place {
        let place = Place { dir: tempfile::tempdir().unwrap() };
        let text = train::almanac::Almanac::new(5).text(20_000);
        std::fs::write(place.path("text.txt"), text).unwrap();
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, contents).unwrap();
        path
    }

    /// The binary, to be run in this place.
    pub fn silurian(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_silurian"));
        command
            .args(args)
            .current_dir(self.dir.path())
            .env("XDG_CACHE_HOME", self.path("cache"))
            .env("RUST_BACKTRACE", "0");
        command
    }

    /// `silurian train` on the text with the small sizes and these flags.
    pub fn train(&self, args: &[&str]) -> Command {
        let mut command = self.silurian(&["train", "text.txt"]);
        command.args(SMALL).args(args);
        command
    }

    /// A trained model in `runs/NAME`, 20 steps, the last 4 under RELU.
    pub fn trained(&self, name: &str) -> PathBuf {
        succeed(&mut self.train(&["--name", name, "--steps", "20", "--alpha", "0.2"]));
        self.path("runs").join(name)
    }
}

/// Runs it; panics with what it said unless it exits with 0.
#[track_caller]
pub fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, said(&output));
    output
}

/// Runs it; panics unless it exits with 1 and an error that contains every one of `words`, and does not panic itself.
#[track_caller]
pub fn refuse(command: &mut Command, words: &[&str]) {
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{command:?}: {}\n{}", output.status, said(&output));
    assert!(!error.contains("panicked"), "{command:?}: {error}");
    for word in words {
        assert!(error.contains(word), "{command:?}: the error does not say {word:?}:\n{error}");
    }
}

/// Everything that a process wrote.
pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The weights and the optimiser's moments of a run's last checkpoint, as bytes.
pub fn final_bits(run: &Path, steps: usize) -> [Vec<u8>; 2] {
    ["model.safetensors", "optimizer.safetensors"].map(|file| {
        let path = run.join(format!("checkpoints/step-{steps}")).join(file);
        std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    })
}
