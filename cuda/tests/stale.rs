//! The committed PTX is what its sources were last compiled to: told by hashes in the head of each file, without a compiler.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

/// 64-bit FNV-1a, as in compile.py.
fn fnv1a(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xCBF2_9CE4_8422_2325, |h, byte| (h ^ byte as u64).wrapping_mul(0x100_0000_01B3))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A source and the headers that it includes, each once, in the order in which they are met.
fn sources(path: PathBuf, found: &mut Vec<PathBuf>) {
    if found.contains(&path) {
        return;
    }
    let text = read(&path);
    found.push(path);
    for name in text.lines().filter_map(|line| line.strip_prefix("#include \"")?.strip_suffix('"')) {
        sources(found[0].with_file_name(name), found);
    }
}

fn kernels(extension: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let entries = fs::read_dir(folder).expect("cuda/kernels").map(|entry| entry.expect("an entry").path());
    entries.filter(|path| path.extension().is_some_and(|e| e == extension)).collect()
}

#[test]
fn every_ptx_is_that_of_its_sources() {
    let compiled = kernels("cu");
    assert!(!compiled.is_empty());
    for cu in &compiled {
        let name = cu.file_stem().unwrap().to_string_lossy();
        let mut all = Vec::new();
        sources(cu.clone(), &mut all);
        let source = fnv1a(all.iter().flat_map(|path| read(path).into_bytes()));

        let ptx = read(&cu.with_extension("ptx"));
        let (stamp, body) = ptx
            .split_once("\n// source ")
            .and_then(|(_, rest)| rest.split_once('\n'))
            .unwrap_or_else(|| panic!("{name}.ptx: no line of hashes in its head"));
        assert_eq!(
            stamp,
            format!("{source:016x} body {:016x}", fnv1a(body.bytes())),
            "{name}.ptx is stale: {name}.cu, a header or the file itself has changed since; run cuda/compile.py"
        );
        assert!(
            body.contains("\n.version 7.4\n") && body.contains("\n.target sm_80\n"),
            "{name}.ptx: version or target"
        );
    }
    let stems = |paths: &[PathBuf]| paths.iter().map(|p| p.with_extension("")).collect::<HashSet<_>>();
    assert_eq!(stems(&compiled), stems(&kernels("ptx")), "a .ptx without its .cu, or the other way round");
}

/// What the tests compute is what a GPU computes only if every instruction is defined to the bit.
#[test]
fn no_kernel_has_an_approximate_instruction() {
    for path in kernels("ptx") {
        for (i, line) in read(&path).lines().enumerate() {
            let approximate = [".approx", ".full.f32", ".ftz", "red.global.add.f", "atom.global.add.f"];
            assert!(!approximate.iter().any(|word| line.contains(word)), "{}:{}: {line}", path.display(), i + 1);
        }
    }
}
