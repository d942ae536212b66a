//! A decode step makes no system call. Shown by `strace`, so only on Linux and where that is installed:
//! `cargo test --release -p infer --test syscalls -- --ignored`.
#![cfg(target_os = "linux")]

mod common;

use common::{engine_on, options};
use infer::{ActivationFormat, CacheMemory, Engine, EngineOptions, FfnMode, KvFormat, Sampler, Sampling, WeightFormat};
use kernels::Level;
use model::{Psi, Weights, preset};
use std::fs::File;
use std::io::Write;
use std::process::Command;
use std::time::{Duration, SystemTime};

/// Tells the program that it is the one that is watched.
const WATCHED: &str = "SILURIAN_TEST_WATCHED";

/// Steps of a round, those before them that are not looked at, and rounds that threads may take to meet without sleeping: on a busy machine one may wait for a core longer than
/// another spins.
const STEPS: usize = 50;
const WAKING: usize = 20;
const ROUNDS: usize = 100;

#[test]
#[ignore = "needs strace: cargo test --release -p infer --test syscalls -- --ignored --nocapture"]
fn a_decode_step_makes_no_system_call() {
    if std::env::var_os(WATCHED).is_some() {
        return decode();
    }
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let watched = Command::new("strace")
        .args(["-f", "-qq", "-ttt", "-s", "200", "-o", log.to_str().unwrap()])
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "a_decode_step_makes_no_system_call"])
        .env(WATCHED, "1")
        .output()
        .expect("strace is needed");
    assert!(watched.status.success(), "{}", String::from_utf8_lossy(&watched.stdout));

    // For each BEGIN what ... END time the lines between, from that time on.
    let (mut inside, mut rounds) = (None::<(String, Vec<&str>)>, Vec::new());
    let log = std::fs::read_to_string(&log).unwrap();
    for line in log.lines() {
        match (line.split_once("\"BEGIN ").map(|(_, rest)| rest.split('"').next().unwrap()), &mut inside) {
            (Some(what), _) => inside = Some((what.to_string(), Vec::new())),
            (None, Some((_, calls))) => match line.split_once("\"END ") {
                Some((_, rest)) => {
                    let start: f64 = rest.split('"').next().unwrap().parse().unwrap();
                    calls.retain(|line| time_of(line) >= start);
                    rounds.extend(inside.take());
                }
                None => calls.push(line),
            },
            (None, None) => {}
        }
    }
    let mut names: Vec<&String> = rounds.iter().map(|(what, _)| what).collect();
    names.dedup();
    assert_eq!(names.len(), 2 * CASES.len(), "one round and more of each case: {names:?}");
    for name in names {
        let of_case = || rounds.iter().filter(|(what, _)| what == name).map(|(_, calls)| calls);
        let best = of_case().min_by_key(|calls| calls.len()).unwrap();
        let without = of_case().filter(|calls| calls.is_empty()).count();
        println!("{name}: {without} of {} rounds of {STEPS} steps without a system call", of_case().count());
        assert!(best.is_empty(), "decode {name}: the best round of {STEPS} steps has {best:#?}");
        if name.ends_with("1 thread") {
            // The scratch memory of a first round is not steady state.
            let calls = of_case().skip(1).find(|calls| !calls.is_empty());
            assert!(calls.is_none(), "decode {name}: {calls:#?}");
        }
    }
}

/// Of a line `pid seconds call ...`.
fn time_of(line: &str) -> f64 {
    line.split_whitespace().nth(1).and_then(|time| time.parse().ok()).unwrap_or_else(|| panic!("strace wrote {line:?}"))
}

const CASES: [(FfnMode, WeightFormat, ActivationFormat, KvFormat); 5] = [
    (FfnMode::Dense, WeightFormat::F32, ActivationFormat::Exact, KvFormat::F32),
    (FfnMode::Filtered, WeightFormat::Bf16, ActivationFormat::Exact, KvFormat::Bf16),
    (FfnMode::Auto, WeightFormat::Bf16, ActivationFormat::Exact, KvFormat::Bf16),
    (FfnMode::Sparse, WeightFormat::Q8, ActivationFormat::Exact, KvFormat::Bf16),
    (FfnMode::Sparse, WeightFormat::Q4, ActivationFormat::Q8, KvFormat::F32),
];

/// Rounds between marks: writes that the log shows.
fn decode() {
    let weights = Weights::init(&preset("5m", 256).unwrap(), 1);
    let mut marks = File::create("/dev/null").unwrap();
    let mut mark = |text: &str| marks.write_all(text.as_bytes()).unwrap();
    for (ffn, format, activations, kv) in CASES {
        for threads in [1, 2] {
            let mut options = EngineOptions { weights: format, activations, kv, ..options(Psi::Relu, ffn) };
            options.cache = CacheMemory::Fixed;
            let mut engine = engine_on(Level::best(), threads, &weights, options);
            let mut sampler = Sampler::new(Sampling { temperature: 0.8, ..Sampling::GREEDY }).unwrap();
            engine.prefill(&[1, 2, 3]).unwrap();
            let what = format!("{ffn} {format} x {activations}, KV {kv}, {threads} thread");
            let what = if threads > 1 { what + "s" } else { what };
            for _ in 0..if threads == 1 { 3 } else { ROUNDS } {
                engine.truncate(3);
                mark(&format!("BEGIN {what}"));
                // strace holds a thread up at a mark for so long that the others go to sleep: the first steps wake them.
                let mut start = Duration::ZERO;
                for step in 0..WAKING + STEPS {
                    if step == WAKING {
                        start = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
                    }
                    let position = engine.position();
                    let logits = engine.decode(position as u32 % 256).unwrap();
                    sampler.sample(logits, position, 0).unwrap();
                }
                mark(&format!("END {:.6}", start.as_secs_f64()));
            }
        }
    }
}
