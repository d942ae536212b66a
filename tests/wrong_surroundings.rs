//! A full disk, a listener that left, a folder in use, a loss that is not a number: an error that says so, and nothing half-written.

mod common;

use common::{Place, SMALL, refuse, said};
use std::fs;
use std::io::Read;
use std::process::Stdio;

#[test]
fn a_run_folder_in_use() {
    let place = Place::new();
    let mut command = place.train(&["--name", "m", "--steps", "1000000"]);
    let mut first = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let run = place.path("runs/m");
    while !run.join("metrics.jsonl").exists() {
        assert!(first.try_wait().unwrap().is_none(), "the first run ended");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    refuse(&mut place.silurian(&["train", "--resume", "runs/m"]), &["runs/m", "in use", &first.id().to_string()]);
    refuse(&mut place.train(&["--name", "m"]), &["runs/m", "in use"]);
    first.kill().unwrap();
    first.wait().unwrap();
}

/// The probe's sentence, with the flag, and nothing is made. Number 4000 is there on no machine.
#[test]
fn a_gpu_that_is_not_there() {
    let place = Place::new();
    let expected = cuda::probe().map_or_else(|e| e.to_string(), |count| format!("this machine has {count}"));
    refuse(&mut place.train(&["--name", "m", "--device", "cuda:4000"]), &["error: --device cuda:4000: ", &expected]);
    assert!(!place.path("runs").exists(), "a folder was made");
    let run = place.trained("m");
    refuse(&mut place.silurian(&["train", "--resume", "runs/m", "--device", "cuda:4000"]), &["--device cuda:4000: "]);
    assert_eq!(fs::read_to_string(run.join("sessions.jsonl")).unwrap().lines().count(), 1);
    place.write("questions.jsonl", "{\"prompt\": \"a\", \"answers\": [\"b\"]}\n");
    for command in [&["generate"][..], &["eval", "corpus.txt"], &["eval", "qa", "questions.jsonl"]] {
        let flags = [command, &["-m", "runs/m", "--device", "cuda:4000"]].concat();
        refuse(&mut place.silurian(&flags), &["error: --device cuda:4000: ", &expected]);
    }
    let output = place.train(&["--device", "gpu"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("'gpu' for '--device <DEVICE>': expected cpu, cuda or cuda:N"), "{}", said(&output));
}

#[test]
fn a_loss_that_is_not_a_number() {
    let place = Place::new();
    let mut command = place.train(&["--name", "m", "--steps", "50", "--lr", "1e30", "--set", "train.grad_clip=0.0"]);
    refuse(command.args(["--set", "train.checkpoint_every=1"]), &["step ", "not finite", "first in"]);
    // What was saved before is whole.
    let kept: Vec<_> = fs::read_dir(place.path("runs/m/checkpoints")).unwrap().collect();
    assert!(!kept.is_empty(), "no checkpoint was kept");
}

/// A limit on the size of files makes every write beyond it fail, as on a full disk.
#[cfg(unix)]
#[test]
fn a_full_disk() {
    let place = Place::new();
    let run = place.trained("m");
    let binary = env!("CARGO_BIN_EXE_silurian");
    let limited = |kib: u32, arguments: &str| {
        let mut command = std::process::Command::new("sh");
        // The signal that the limit sends is ignored, so that the write fails with an error; `exec` keeps both.
        let script = format!("trap '' XFSZ; ulimit -f {kib}; exec {binary} {arguments}");
        command.args(["-c", &script]).current_dir(place.path("")).env("XDG_CACHE_HOME", place.path("cache"));
        command
    };
    // The weights alone are larger than this.
    let flags = SMALL.join(" ");
    refuse(&mut limited(64, &format!("train text.txt {flags} --name full --steps 3")), &["safetensors", "runs/full"]);
    let left: Vec<_> = fs::read_dir(place.path("runs/full/checkpoints")).unwrap().collect();
    assert!(left.is_empty(), "something half-written was left: {left:?}");
    // A later checkpoint that does not fit leaves the earlier one.
    fs::remove_dir_all(place.path("runs/full")).unwrap();
    assert!(run.join("checkpoints/step-20/state.json").exists());
    fs::remove_file(run.join("checkpoints/step-20/state.json")).unwrap();
    refuse(&mut limited(64, "train --resume runs/m"), &["runs/m"]);
}

#[cfg(target_os = "linux")]
#[test]
fn an_output_that_is_full() {
    let place = Place::new();
    let full = || fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    refuse(place.silurian(&["inspect"]).stdout(full()), &["standard output cannot be written", "No space left"]);
}

#[cfg(unix)]
#[test]
fn a_closed_pipe() {
    let place = Place::new();
    let run = place.trained("m");
    let mut command = place.silurian(&["generate", "-m", run.to_str().unwrap(), "-p", "In ", "-n", "50"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 3];
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut first).unwrap();
    drop(out);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(141), "{}", said(&output));
    assert!(!said(&output).contains("error") && !said(&output).contains("panicked"), "{}", said(&output));

    // Training goes on without a listener: what counts is in the folder.
    let mut command = place.train(&["--name", "deaf", "--steps", "20"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    drop(child.stderr.take());
    assert!(child.wait().unwrap().success());
    assert!(place.path("runs/deaf/checkpoints/step-20/state.json").exists());
}
