//! Runs that are killed, stopped, or spread over threads end with the bits of those that are not.

mod common;

use common::{Place, final_bits, said, succeed};
use kernels::testing::uniform;
use std::process::Stdio;
use std::time::{Duration, Instant};

const STEPS: usize = 400;

/// Checkpoints so often that a kill meets the writing of one now and then.
const FLAGS: &[&str] =
    &["--steps", "400", "--alpha", "0.25", "--set", "train.checkpoint_every=7", "--set", "train.eval_every=60"];

/// The records of `metrics.jsonl` without what a clock measured.
fn losses(run: &std::path::Path) -> Vec<(u64, String)> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let record = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
    text.lines().map(record).map(|r| (r["step"].as_u64().unwrap(), r["loss"].to_string())).collect()
}

#[test]
fn a_run_killed_at_random_moments_ends_with_the_same_bits() {
    let place = Place::new();
    let begin = Instant::now();
    succeed(&mut place.train(&[FLAGS, &["--name", "whole"]].concat()));
    let length = begin.elapsed();
    let whole = place.path("runs/whole");
    let expected = final_bits(&whole, STEPS);

    for seed in 0..3 {
        let name = format!("killed-{seed}");
        let run = place.path("runs").join(&name);
        let mut kills = 0;
        // From before the first step to a fifth of the time that the whole run took.
        for moment in uniform(100 + seed, 12) {
            let mut command = if run.join("config.toml").exists() {
                place.silurian(&["train", "--resume", run.to_str().unwrap()])
            } else {
                place.train(&[FLAGS, &["--name", &name]].concat())
            };
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(length.mul_f64(0.02 + 0.1 * (moment as f64 + 1.0)));
            if child.try_wait().unwrap().is_some() {
                break;
            }
            child.kill().unwrap();
            child.wait().unwrap();
            kills += 1;
        }
        println!("seed {seed}: {kills} kills");
        if !run.join(format!("checkpoints/step-{STEPS}")).exists() {
            succeed(&mut place.silurian(&["train", "--resume", run.to_str().unwrap()]));
        }
        assert!(kills > 0, "seed {seed}: no kill met the run");
        assert!(final_bits(&run, STEPS) == expected, "seed {seed}: {kills} kills changed the bits");
        assert_eq!(losses(&run), losses(&whole), "seed {seed}: metrics.jsonl");
    }
}

#[test]
fn one_and_two_threads_give_the_same_bits() {
    let place = Place::new();
    for threads in ["1", "2"] {
        let flags = ["--steps", "30", "--alpha", "0.5", "-t", threads, "--name", threads];
        succeed(&mut place.train(&flags));
    }
    let [one, two] = ["runs/1", "runs/2"].map(|run| final_bits(&place.path(run), 30));
    assert!(one == two, "the bits depend on the number of threads");
}

#[cfg(unix)]
#[test]
fn ctrl_c_saves_and_the_resumed_run_ends_with_the_same_bits() {
    let place = Place::new();
    let flags = ["--steps", "400", "--alpha", "0.25", "--set", "train.checkpoint_every=100000"];
    succeed(&mut place.train(&[&flags[..], &["--name", "whole"]].concat()));
    let mut command = place.train(&[&flags[..], &["--name", "stopped"]].concat());
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let run = place.path("runs/stopped");
    // The run is under way once it has a record.
    while std::fs::metadata(run.join("metrics.jsonl")).map_or(0, |m| m.len()) == 0 {
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", said(&output));
    assert!(said(&output).contains("--resume"), "{}", said(&output));
    succeed(&mut place.silurian(&["train", "--resume", run.to_str().unwrap()]));
    assert!(final_bits(&run, STEPS) == final_bits(&place.path("runs/whole"), STEPS));
}
