//! Breaks kernels on purpose, one at a time, and demands that a test says so by the kernel's name.
//!
//! A copy of the sources gets one sign flipped: the result of one arithmetic operation of one kernel, on one level. Then the
//! kernels' tests run, and at least one whose output names the kernel must fail.

use kernels::testing::uniform;
use kernels::{Isa, Level};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Pairs of kernel and level that one run breaks.
const PAIRS: usize = 10;

/// A kernel family: the word that its tests must say, and the files its arithmetic is in.
const KERNELS: &[(&str, &[&str])] = &[
    ("adamw", &["adamw.rs"]),
    ("attention", &["attention/forward.rs", "attention/block.rs"]),
    ("attention_backward", &["attention/backward.rs"]),
    ("attention_decode", &["attention/decode.rs"]),
    ("embedding", &["embedding.rs"]),
    ("gated_activation", &["activation/mod.rs"]),
    ("gemm", &["gemm/micro.rs"]),
    ("gemv", &["gemv.rs"]),
    ("lm_head_loss", &["lm_head_loss.rs"]),
    ("rms_norm", &["rms_norm.rs"]),
    ("rope", &["rope.rs"]),
    ("quant", &["quant/exact.rs", "quant/i8_dot.rs"]),
    ("rows_axpy", &["sparse/rows_axpy.rs"]),
    ("sum", &["reduce.rs"]),
];

/// What is flipped: the result of one of these.
const OPERATIONS: &[&str] = &["s.add(", "s.sub(", "s.mul(", "s.div(", "s.mul_add("];

#[test]
#[ignore = "builds the kernels eleven times, about three minutes: cargo test --release --test sabotage -- --ignored --nocapture"]
fn every_flipped_sign_is_caught_by_a_test_that_names_the_kernel() {
    let seed =
        std::env::var("SABOTAGE_SEED").ok().map_or(2509_22358, |s| s.parse().expect("SABOTAGE_SEED is a number"));
    println!("SABOTAGE_SEED={seed}");
    let copy = tempfile::tempdir().unwrap();
    copy_sources(copy.path());
    assert!(run_tests(copy.path()).is_ok(), "the tests fail before anything is broken");

    let levels: Vec<Level> = Level::available().collect();
    let mut missed = Vec::new();
    for (i, draw) in uniform(seed, 3 * PAIRS).chunks(3).enumerate() {
        let pick = |x: f32, n: usize| (((x as f64 + 1.0) / 2.0) * n as f64) as usize;
        let (name, files) = KERNELS[(i + pick(draw[0], KERNELS.len())) % KERNELS.len()];
        let level = levels[pick(draw[1], levels.len())];
        let sites: Vec<(PathBuf, usize)> =
            files.iter().flat_map(|file| sites(&copy.path().join("kernels/src").join(file))).collect();
        let (file, at) = &sites[pick(draw[2], sites.len())];

        let whole = fs::read_to_string(file).unwrap();
        fs::write(file, flipped(&whole, *at)).unwrap();
        let line = whole[..*at].lines().count();
        let place = format!("{name} at {level}: {} line {line}", file.strip_prefix(copy.path()).unwrap().display());
        write_sabotage(copy.path(), Some(level.isa()));
        let verdict = match run_tests(copy.path()) {
            Ok(()) => "NOT CAUGHT".to_string(),
            Err(output) => {
                let failures: Vec<&str> =
                    output.lines().filter(|l| l.starts_with("test ") && l.ends_with("FAILED")).collect();
                let names_it =
                    output.lines().any(|l| !l.starts_with("test ") && l.contains(name)) && !failures.is_empty();
                format!("{} by {}", if names_it { "caught" } else { "NOT NAMED" }, failures.join(", "))
            }
        };
        println!("{place}: {verdict}");
        if !verdict.starts_with("caught") {
            missed.push(format!("{place}: {verdict}"));
        }
        fs::write(file, whole).unwrap();
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

/// The workspace's sources, without what was built.
fn copy_sources(to: &Path) {
    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let (name, path) = (entry.file_name(), entry.path());
            let skipped = ["target", ".git", "runs"].iter().any(|s| name == *s);
            if path.is_dir() && !skipped {
                copy(&path, &to.join(name));
            } else if path.is_file() {
                fs::copy(&path, to.join(name)).unwrap();
            }
        }
    }
    copy(Path::new(env!("CARGO_MANIFEST_DIR")), to);
    let module = to.join("kernels/src/simd/mod.rs");
    let mut text = fs::read_to_string(&module).unwrap();
    text.push_str("\n#[allow(missing_docs)]\npub(crate) mod sabotage;\n");
    fs::write(&module, text).unwrap();
    write_sabotage(to, None);
}

/// Writes the function `flip`, which flips on one level or on none.
fn write_sabotage(copy: &Path, isa: Option<Isa>) {
    let condition = isa.map_or("false".to_string(), |isa| format!("S::ISA == super::Isa::{isa:?}"));
    let text = format!(
        "use super::Simd;\n#[allow(dead_code)]\n#[inline(always)]\npub(crate) fn flip<S: Simd>(s: S, v: S::F32) -> S::F32 {{\n    \
         if {condition} {{ s.sub(s.splat(0.0), v) }} else {{ v }}\n}}\n"
    );
    fs::write(copy.join("kernels/src/simd/sabotage.rs"), text).unwrap();
}

/// Every operation in a file's code (not in its tests or comments).
fn sites(file: &Path) -> Vec<(PathBuf, usize)> {
    let text = fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let code = text.split("#[cfg(test)]").next().unwrap();
    let found: Vec<_> = OPERATIONS.iter().flat_map(|op| code.match_indices(op)).map(|(at, _)| at).collect();
    let in_comment = |at: usize| code[..at].lines().next_back().is_some_and(|line| line.trim_start().starts_with("//"));
    let starts_a_word = |at: usize| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '.');
    let mut sites: Vec<_> = found.into_iter().filter(|&at| !in_comment(at) && starts_a_word(at)).collect();
    sites.sort_unstable();
    assert!(!sites.is_empty(), "{}: no arithmetic to break", file.display());
    sites.into_iter().map(|at| (file.to_path_buf(), at)).collect()
}

/// `text` with the call that begins at `at` wrapped in `flip`.
fn flipped(text: &str, at: usize) -> String {
    let mut depth = 0;
    let end = text[at..]
        .char_indices()
        .find_map(|(i, c)| {
            depth += match c {
                '(' => 1,
                ')' => -1,
                _ => 0,
            };
            (c == ')' && depth == 0).then_some(at + i + 1)
        })
        .expect("parentheses balance");
    format!("{}crate::simd::sabotage::flip(s, {}){}", &text[..at], &text[at..end], &text[end..])
}

/// Runs the kernels' tests of a copy; the output if they fail. Panics if they do not build.
fn run_tests(copy: &Path) -> Result<(), String> {
    let output = Command::new(env!("CARGO"))
        .args(["test", "--release", "-p", "kernels", "--lib", "--no-fail-fast"])
        .env("CARGO_TARGET_DIR", copy.join("target"))
        .env("RUST_BACKTRACE", "0")
        .current_dir(copy)
        .output()
        .unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("test result:"), "the tests do not build:\n{text}");
    if output.status.success() { Ok(()) } else { Err(text) }
}
