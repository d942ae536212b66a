//! Breaks kernels on purpose, one at a time, and demands that a test says so by the kernel's name.
//!
//! A copy of the sources gets one sign flipped: the result of one arithmetic operation of one kernel, on one level (of plain code, on all).
//! Then the kernels' tests run, and at least one whose output names the kernel must fail.

use kernels::testing::uniform;
use kernels::{Isa, Level};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Pairs of kernel and level that one run breaks.
const PAIRS: usize = 10;

/// A kernel family: the words of which its tests must say one, and the files its arithmetic is in.
const KERNELS: &[(&[&str], &[&str])] = &[
    (&["adamw"], &["adamw.rs"]),
    (&["attention"], &["attention/forward.rs", "attention/block.rs"]),
    (&["attention_backward"], &["attention/backward.rs"]),
    (&["attention_decode"], &["attention/decode.rs"]),
    (&["embedding"], &["embedding.rs"]),
    (&["ffn_filtered"], &["sparse/filter/bound.rs", "sparse/filter/mod.rs"]),
    (&["ffn_sparse"], &["sparse/ffn.rs"]),
    (&["ffn_sparse_prompt"], &["sparse/prompt.rs"]),
    (&["gated_activation"], &["activation/mod.rs"]),
    (&["gemm"], &["gemm/micro.rs"]),
    (&["gemm", "gemm_bf16"], &["gemm/operands.rs"]),
    (&["gemm_i8"], &["quant/gemm.rs"]),
    (&["gemv"], &["gemv.rs"]),
    (&["gemv_batch", "ffn_sparse_batch", "ffn_dense_batch"], &["panel.rs", "sparse/batch.rs"]),
    (&["lm_head_loss"], &["lm_head_loss.rs"]),
    (&["bf16-packed"], &["packed/loops.rs"]),
    (&["rms_norm"], &["rms_norm.rs"]),
    (&["rope"], &["rope.rs"]),
    (&["gemv q8", "gemv q4", "rows_axpy q8", "rows_axpy q4"], &["quant/exact.rs", "quant/int_dot.rs"]),
    (&["rows_axpy"], &["sparse/rows_axpy.rs"]),
    (&["sum"], &["reduce.rs"]),
];

/// What is flipped, and how it is said in the copy: the result of a call that begins so, or what stands behind such an operator.
const OPERATIONS: &[(&str, Flip)] = &[
    ("s.add(", Flip::Vector),
    ("s.sub(", Flip::Vector),
    ("s.mul(", Flip::Vector),
    ("s.div(", Flip::Vector),
    ("s.mul_add(", Flip::Vector),
    ("dot_bf16(s).dot(", Flip::Vector),
    ("s.dot_i8(", Flip::Integers),
    ("s.reduce_sum(", Flip::Number),
    ("s.dot_i8_i16(", Flip::Number),
    (" *= ", Flip::Number),
    ("*sum += ", Flip::Plain),
    // A term on a line of its own.
    ("\n            + ", Flip::Plain),
];

/// How a flipped result is written.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Flip {
    /// A vector, on the level.
    Vector,
    /// A vector of integers, on the level: all bits flipped.
    Integers,
    /// A number, on the level.
    Number,
    /// A number in code that knows no level.
    Plain,
}

/// Something to break: an expression in a file.
struct Site {
    file: PathBuf,
    expression: Range<usize>,
    flip: Flip,
}

#[test]
#[ignore = "builds the kernels eleven times, ten minutes and more: cargo test --release --test sabotage -- --ignored --nocapture"]
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
        let (names, files) = KERNELS[(i + pick(draw[0], KERNELS.len())) % KERNELS.len()];
        let level = levels[pick(draw[1], levels.len())];
        let sites: Vec<Site> =
            files.iter().flat_map(|file| sites(&copy.path().join("kernels/src").join(file), level)).collect();
        let Site { file, expression, flip } = &sites[pick(draw[2], sites.len())];

        let whole = fs::read_to_string(file).unwrap();
        fs::write(file, flipped(&whole, expression, *flip)).unwrap();
        let line = whole[..expression.start].lines().count();
        let file_name = file.strip_prefix(copy.path()).unwrap().display();
        let place = format!("{} at {level}: {file_name} line {line}, {flip:?}", names[0]);
        write_sabotage(copy.path(), Some(level.isa()));
        let verdict = match run_tests(copy.path()) {
            Ok(()) => "NOT CAUGHT".to_string(),
            Err(output) => {
                let failures: Vec<&str> =
                    output.lines().filter(|l| l.starts_with("test ") && l.ends_with("FAILED")).collect();
                // The names of tests, and of the files they are in, do not count.
                let says =
                    |line: &str| !line.starts_with("test ") && !line.contains("thread '") && !line.starts_with("    ");
                let names_it = output.lines().any(|line| says(line) && names.iter().any(|name| line.contains(name)))
                    && !failures.is_empty();
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

/// Writes the functions that flip, on one level or on none.
fn write_sabotage(copy: &Path, isa: Option<Isa>) {
    let condition = isa.map_or("false".to_string(), |isa| format!("S::ISA == super::Isa::{isa:?}"));
    let functions = [
        ("s: S, v: S::F32) -> S::F32", "s.sub(s.splat(0.0), v)"),
        ("s: S, v: S::U32) -> S::U32", "s.xor_u32(s.splat_u32(u32::MAX), v)"),
        ("_: S, v: T) -> T", "-v"),
    ];
    let names = ["vector<S: Simd>", "integers<S: Simd>", "number<S: Simd, T: std::ops::Neg<Output = T>>"];
    let mut text = "use super::Simd;\n".to_string();
    for ((signature, flipped), name) in functions.into_iter().zip(names) {
        text += &format!(
            "#[allow(dead_code)]\n#[inline(always)]\npub(crate) fn {name}({signature} {{\n    \
             if {condition} {{ {flipped} }} else {{ v }}\n}}\n"
        );
    }
    fs::write(copy.join("kernels/src/simd/sabotage.rs"), text).unwrap();
}

/// Every operation in a file's code (not in its tests or comments) that runs at a level.
fn sites(file: &Path, level: Level) -> Vec<Site> {
    let text = fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let code = text.split("#[cfg(test)]").next().unwrap();
    let in_comment = |at: usize| code[..at].lines().next_back().is_some_and(|line| line.trim_start().starts_with("//"));
    let starts_a_word = |at: usize| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '.');
    let mut sites = Vec::new();
    for &(operation, flip) in OPERATIONS {
        // Code that knows no level is all there is in its file.
        if (flip == Flip::Plain) == code.contains("S: Simd")
            || (operation.starts_with("dot_bf16") && !level.has_dot_bf16())
        {
            continue;
        }
        for (at, _) in code.match_indices(operation) {
            let is_call = operation.ends_with('(');
            if in_comment(at) || (is_call && !starts_a_word(at)) {
                continue;
            }
            let start = if is_call { at } else { at + operation.len() };
            let end = end_of(code, at + operation.len(), is_call);
            sites.push(Site { file: file.to_path_buf(), expression: start..end, flip });
        }
    }
    sites.sort_unstable_by_key(|site| site.expression.start);
    assert!(!sites.is_empty(), "{}: no arithmetic to break", file.display());
    sites
}

/// The end of an expression from somewhere inside of it: behind the bracket that closes a call, or before what ends a statement, an argument, or a
/// line.
fn end_of(code: &str, from: usize, is_call: bool) -> usize {
    let mut depth = 0;
    let ends = |(i, c): (usize, char)| {
        match c {
            '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            _ => {}
        }
        let closed = depth < 0;
        match is_call {
            true => closed.then_some(from + i + 1),
            false => (closed || (depth == 0 && (c == ';' || c == '\n'))).then_some(from + i),
        }
    };
    code[from..].char_indices().find_map(ends).expect("brackets balance")
}

/// `text` with an expression flipped.
fn flipped(text: &str, expression: &Range<usize>, flip: Flip) -> String {
    let (before, inner, after) = (&text[..expression.start], &text[expression.clone()], &text[expression.end..]);
    match flip {
        Flip::Vector => format!("{before}crate::simd::sabotage::vector(s, {inner}){after}"),
        Flip::Integers => format!("{before}crate::simd::sabotage::integers(s, {inner}){after}"),
        Flip::Number => format!("{before}crate::simd::sabotage::number(s, {inner}){after}"),
        Flip::Plain => format!("{before}-({inner}){after}"),
    }
}

/// Runs the kernels' tests of a copy; the output if they fail. Panics if they do not build.
fn run_tests(copy: &Path) -> Result<(), String> {
    let output = Command::new(env!("CARGO"))
        .args(["test", "--release", "-p", "kernels", "--lib", "--no-fail-fast"])
        // What the kernels depend on is built once, and of the kernels what a flip changes.
        .env("CARGO_TARGET_DIR", Path::new(env!("CARGO_TARGET_TMPDIR")).join("sabotage"))
        .env("CARGO_INCREMENTAL", "1")
        .env("RUST_BACKTRACE", "0")
        .current_dir(copy)
        .output()
        .unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("test result:"), "the tests do not build:\n{text}");
    if output.status.success() { Ok(()) } else { Err(text) }
}
