//! The weights in decode layout on disk: read back to the last bit, and never used when anything about them is wrong.

mod common;

use common::{bits, configs, engine_on, options, tokens, weights};
use infer::{ActivationFormat, CpuEngine, Engine, EngineOptions, FfnMode, Residence, Resident, WeightFormat};
use infer::{filter_bytes, resident_bytes, resident_filter_path, resident_path};
use kernels::{Level, Team};
use model::hf::{self, Meta};
use model::{Config, Psi, Weights, parameter_specs};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

/// A model's folder, of sizes that no format's row length divides.
fn place(seed: u64) -> (TempDir, Weights) {
    let dir = tempfile::tempdir().unwrap();
    let weights = weights(&configs()[1], seed);
    hf::save(dir.path(), &weights, &Meta::new(Psi::Relu)).unwrap();
    (dir, weights)
}

/// The logits of a prompt and of tokens after it.
fn logits(engine: &mut CpuEngine) -> Vec<Vec<u32>> {
    let ids = tokens(engine.config(), 0, 12);
    let mut all = vec![bits(engine.prefill(&ids[..5]).unwrap())];
    all.extend(ids[5..].iter().map(|&token| bits(engine.decode(token).unwrap())));
    all
}

/// Opens the model; what it computes, where its weights lie, and what was told.
#[track_caller]
fn open(dir: &Path, options: &EngineOptions) -> (Vec<Vec<u32>>, Residence, String) {
    let mut notes = String::new();
    let mut engine =
        CpuEngine::open(dir, options.clone(), Resident::From(0), &mut |note| notes += &format!("{note}\n")).unwrap();
    (logits(&mut engine), engine.residence(), notes)
}

fn of_format(weights: WeightFormat, activations: ActivationFormat) -> EngineOptions {
    EngineOptions { weights, activations, ..options(Psi::Relu, FfnMode::Sparse) }
}

fn bf16() -> EngineOptions {
    of_format(WeightFormat::Bf16, ActivationFormat::Exact)
}

fn filtered(weights: WeightFormat) -> EngineOptions {
    EngineOptions { ffn: FfnMode::Filtered, ..of_format(weights, ActivationFormat::Exact) }
}

/// Everything in the folder of the layouts.
fn listing(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir.join("resident")).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn every_format_reads_back_to_the_last_bit() {
    let (dir, weights) = place(1);
    let dir = dir.path();
    for (format, activations) in [
        (WeightFormat::F32, ActivationFormat::Exact),
        (WeightFormat::Bf16, ActivationFormat::Exact),
        (WeightFormat::Bf16Packed, ActivationFormat::Exact),
        (WeightFormat::Q8, ActivationFormat::Exact),
        (WeightFormat::Q8, ActivationFormat::Q8),
        (WeightFormat::Q4, ActivationFormat::Exact),
        (WeightFormat::Q4, ActivationFormat::Q8),
    ] {
        let options = of_format(format, activations);
        let expected = logits(&mut CpuEngine::new(&weights, options.clone()).unwrap());
        let (first, residence, notes) = open(dir, &options);
        let written = activations == ActivationFormat::Exact;
        assert_eq!(residence == Residence::Converted, written, "{format}: rows of q8 and q4 serve both activations");
        assert_eq!(
            notes.contains(&format!("{format}.bin: ")) && notes.contains(" MiB written in "),
            written,
            "{notes}"
        );
        let (second, residence, notes) = open(dir, &options);
        assert_ne!(residence, Residence::Converted, "{format}");
        assert_eq!(notes, "", "{format}");
        assert!(first == expected && second == expected, "{format} x {activations}: logits of the file");
        let bytes = fs::metadata(resident_path(dir, format)).unwrap().len();
        let most = (2 << 20)
            + resident_bytes(weights.config(), format)
            + 64 * parameter_specs(weights.config()).count() as u64;
        assert!(bytes <= most, "{format}: {bytes} bytes");
    }
    assert_eq!(listing(dir), ["bf16-packed.bin", "bf16.bin", "f32.bin", "q4.bin", "q8.bin", "source.json"]);
}

#[test]
fn filters_read_back_to_the_last_bit() {
    let (dir, weights) = place(13);
    let dir = dir.path();
    let bits_of = |options: &EngineOptions| logits(&mut CpuEngine::new(&weights, options.clone()).unwrap());
    for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Bf16Packed] {
        let path = resident_filter_path(dir, format);
        let (options, mut files) = (filtered(format), Vec::new());
        let expected = bits_of(&options);
        assert!(expected == bits_of(&of_format(format, ActivationFormat::Exact)), "{format}: filtered is sparse");
        // Made beside converted weights, read, made beside weights that were read, read.
        for (removed, written) in
            [(true, vec![".bin: ", "-filter.bin: "]), (false, vec![]), (true, vec!["-filter.bin: "]), (false, vec![])]
        {
            if removed && path.exists() {
                fs::remove_file(&path).unwrap();
            }
            let (found, _, notes) = open(dir, &options);
            assert!(found == expected, "{format}: logits, {notes}");
            assert_eq!(notes.lines().count(), written.len(), "{notes}");
            for (line, name) in notes.lines().zip(written) {
                assert!(line.contains(&format!("{format}{name}")) && line.contains(" MiB written in "), "{notes}");
            }
            files.push(fs::read(&path).unwrap());
        }
        assert!(files.iter().all(|file| *file == files[0]), "{format}: the same bytes every time");
        let auto = EngineOptions { ffn: FfnMode::AutoFiltered, ..options };
        assert_eq!(open(dir, &auto).2, "", "{format}: one file for all ways of filtering");
    }
    let bytes = fs::metadata(resident_filter_path(dir, WeightFormat::Bf16)).unwrap().len();
    assert_eq!(bytes, DATA as u64 + filter_bytes(weights.config()), "whole lines follow each other");
    let names = ["bf16-filter.bin", "bf16-packed-filter.bin", "bf16-packed.bin", "bf16.bin"];
    assert_eq!(listing(dir), [&names[..], &["f32-filter.bin", "f32.bin", "source.json"]].concat());
    // Who does not filter neither reads nor writes filters.
    fs::write(resident_filter_path(dir, WeightFormat::Bf16), "no filter").unwrap();
    assert_eq!(open(dir, &bf16()).2, "");
    assert!(open(dir, &of_format(WeightFormat::Q8, ActivationFormat::Exact)).2.contains("q8.bin: "));
    assert!(!resident_filter_path(dir, WeightFormat::Q8).exists());
}

/// Of which some stay plain: told at every start, and what they are is in the file.
#[test]
fn matrices_that_cannot_be_packed_are_told_and_read_back() {
    let (dir, config) = (tempfile::tempdir().unwrap(), &configs()[0]);
    let mut tensors = weights(config, 3).tensors().to_vec();
    let (gate, last) = (model::LayerNames::new(1).gate_proj, model::LayerNames::new(0).o_proj);
    for parameter in [gate, last] {
        let (mut values, cols) = (tensors[parameter].to_vec::<f32>().unwrap(), tensors[parameter].dim(1));
        (0..cols).for_each(|j| values[5 * cols + j] *= f32::powi(2.0, -2 * j as i32));
        tensors[parameter] = tensor::Tensor::from_slice(&values, tensors[parameter].shape());
    }
    let weights = Weights::from_tensors(config, tensors);
    hf::save(dir.path(), &weights, &Meta::new(Psi::Relu)).unwrap();
    let expected = logits(&mut CpuEngine::new(&weights, bf16()).unwrap());
    let options = of_format(WeightFormat::Bf16Packed, ActivationFormat::Exact);
    for written in [true, false, false] {
        let (found, residence, notes) = open(dir.path(), &options);
        assert!(found == expected, "bf16-packed: logits");
        assert_eq!(residence == Residence::Converted, written, "{notes}");
        assert!(notes.contains(": 5 of 7 groups of matrices are packed; the exponents"), "{notes}");
        assert_eq!(notes.lines().count(), 1 + written as usize, "{notes}");
    }
    let path = resident_path(dir.path(), WeightFormat::Bf16Packed);
    let good = fs::read(&path).unwrap();
    let changed = |place: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[place] = value;
        bytes
    };
    // The byte of gate_proj says what it is.
    assert_eq!((good[DATA + gate], good[DATA + gate + 1], good[DATA]), (1, 1, 0));
    for (bytes, why) in [
        (changed(DATA + gate, 0), "truncated"),
        (changed(DATA, 1), "truncated"),
        (changed(DATA + gate - 1, 7), "damaged in bytes"),
        (good[..DATA + 3].to_vec(), "truncated"),
    ] {
        fs::write(&path, bytes).unwrap();
        let (found, _, notes) = open(dir.path(), &options);
        assert!(found == expected && notes.contains(why), "{why}: {notes}");
        assert!(fs::read(&path).unwrap() == good, "{why}: made again");
    }
}

/// Rows are the same whatever level rounds them, so a file serves all.
#[test]
fn a_file_of_one_level_serves_the_others() {
    for format in WeightFormat::ALL {
        let (dir, weights) = place(2);
        let options = of_format(format, ActivationFormat::Exact);
        for (number, level) in Level::available().enumerate() {
            let expected = logits(&mut engine_on(level, 1, &weights, options.clone()));
            let (found, _, notes) = Arc::new(Team::new(level, 2)).install(|| open(dir.path(), &options));
            assert_eq!(notes.is_empty(), number > 0, "{notes}");
            assert!(found == expected, "{format} at {level}");
        }
    }
}

#[test]
fn off_and_small_models_touch_nothing() {
    let (dir, weights) = place(1);
    let bytes = resident_bytes(weights.config(), WeightFormat::Bf16);
    for resident in [Resident::Off, Resident::From(bytes + 1), Resident::DEFAULT] {
        let mut note = |note| panic!("{note}");
        let engine = CpuEngine::open(dir.path(), bf16(), resident, &mut note).unwrap();
        assert_eq!(engine.residence(), Residence::Converted);
        assert!(!dir.path().join("resident").exists(), "{resident:?}");
    }
    let mut told = 0;
    CpuEngine::open(dir.path(), bf16(), Resident::From(bytes), &mut |_| told += 1).unwrap();
    assert!(told == 1 && resident_path(dir.path(), WeightFormat::Bf16).exists());
}

/// Opens the model with each of these contents at `path`: each is told in these words, and made `good` again.
fn each_is_made_again(dir: &Path, options: &EngineOptions, path: &Path, cases: Vec<(Vec<u8>, &str)>) {
    let (good, (expected, ..)) = (fs::read(path).unwrap(), open(dir, options));
    let name = format!("{}: ", path.file_name().unwrap().display());
    for (bytes, words) in cases {
        fs::write(path, &bytes).unwrap();
        let (logits, residence, notes) = open(dir, options);
        let weights_are_bad = path == resident_path(dir, options.weights);
        assert_eq!(residence == Residence::Converted, weights_are_bad, "{notes}");
        assert!(notes.contains(words) && notes.contains(&name) && notes.contains("it is made again"), "{notes}");
        assert!(logits == expected, "{words}: logits");
        assert!(fs::read(path).unwrap() == good, "{words}: the file that was made again");
    }
}

/// Where the parts begin.
const DATA: usize = 2 << 20;

/// What may be wrong with a file of any kind.
fn damages(good: &[u8]) -> Vec<(Vec<u8>, &'static str)> {
    let with = |at: usize| {
        let mut bytes = good.to_vec();
        bytes[at] ^= 1;
        bytes
    };
    vec![
        (good[..good.len() - 1].to_vec(), "expected"),
        (good[..DATA + 1].to_vec(), "truncated"),
        (good[..30].to_vec(), "30 bytes, shorter than its header"),
        (Vec::new(), "0 bytes, shorter than its header"),
        ([good, &[0; 64]].concat(), "expected"),
        (vec![7; good.len()], "not a file of "),
        (with(0), "not a file of "),
        (with(8), "of another version of Silurian"),
        (with(12), "of another version of Silurian"),
        (with(16), "of another weight format"),
        (with(24), "made from other weights"),
        (with(40), "bytes, expected"),
        (with(48), "its header is damaged"),
        (with(56), "of another version of Silurian"),
        (with(64), "its header is damaged"),
        (with(DATA), "damaged in bytes 2097152 to"),
        (with(DATA + (good.len() - DATA) / 2), "damaged in bytes 2097152 to"),
        (with(good.len() - 1), "damaged in bytes"),
    ]
}

#[test]
fn a_file_with_anything_wrong_is_made_again() {
    let (dir, _) = place(3);
    let dir = dir.path();
    open(dir, &of_format(WeightFormat::Q8, ActivationFormat::Exact));
    for format in [WeightFormat::F32, WeightFormat::Bf16] {
        open(dir, &filtered(format));
    }
    let read = |path: PathBuf| fs::read(path).unwrap();
    let (weights, filters) = (resident_path(dir, WeightFormat::Bf16), resident_filter_path(dir, WeightFormat::Bf16));
    let mut cases = damages(&read(weights.clone()));
    cases.push((read(resident_path(dir, WeightFormat::Q8)), "of another weight format"));
    cases.push((read(filters.clone()), "not a file of weights in decode layout"));
    each_is_made_again(dir, &bf16(), &weights, cases);
    let mut cases = damages(&read(filters.clone()));
    cases.push((read(resident_filter_path(dir, WeightFormat::F32)), "of another weight format"));
    cases.push((read(weights), "not a file of filters of the gate"));
    // Of the same model with other weights.
    let (other, _) = place(14);
    open(other.path(), &filtered(WeightFormat::Bf16));
    cases.push((read(resident_filter_path(other.path(), WeightFormat::Bf16)), "made from other weights"));
    each_is_made_again(dir, &filtered(WeightFormat::Bf16), &filters, cases);
}

/// Replaces the weights by others of the same size, with the same modification time.
fn rewrite(dir: &Path, seed: u64) -> Weights {
    let path = dir.join(hf::WEIGHTS);
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    let len = fs::metadata(&path).unwrap().len();
    let weights = weights(&configs()[1], seed);
    hf::save(dir, &weights, &Meta::new(Psi::Relu)).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), len);
    weights
}

fn memo(dir: &Path) -> Value {
    serde_json::from_slice(&fs::read(dir.join("resident/source.json")).unwrap()).unwrap()
}

#[test]
fn rewritten_weights_are_noticed() {
    let (dir, _) = place(4);
    let dir = dir.path();
    for (seed, settled) in [(5, true), (6, false)] {
        open(dir, &filtered(WeightFormat::Bf16));
        // As if the files had rested for two seconds before they were hashed.
        let mut memo = memo(dir);
        memo["settled"] = settled.into();
        fs::write(dir.join("resident/source.json"), memo.to_string()).unwrap();
        let weights = rewrite(dir, seed);
        let (found, residence, notes) = open(dir, &filtered(WeightFormat::Bf16));
        assert_eq!(residence, Residence::Converted);
        for name in ["bf16.bin", "bf16-filter.bin"] {
            let words = format!("{name}: made from other weights than those that are here now; it is made again");
            assert!(notes.contains(&words), "{notes}");
        }
        assert!(found == logits(&mut CpuEngine::new(&weights, bf16()).unwrap()), "logits of the new weights");
    }
    // The same sizes, with another rotation.
    let path = dir.join(hf::CONFIG);
    let config = fs::read_to_string(&path).unwrap();
    assert!(config.contains("500.0"));
    fs::write(&path, config.replace("500.0", "600.0")).unwrap();
    assert!(open(dir, &bf16()).2.contains("made from other weights"), "config.json");
    // The same contents at another time.
    fs::write(&path, fs::read(&path).unwrap()).unwrap();
    let (_, residence, notes) = open(dir, &bf16());
    assert!(residence != Residence::Converted && notes.is_empty(), "{notes}");
}

#[test]
fn the_hash_is_taken_once_of_files_that_rest() {
    let (dir, _) = place(7);
    let dir = dir.path();
    open(dir, &bf16());
    assert_eq!(memo(dir)["settled"], false, "written a moment ago");
    std::thread::sleep(std::time::Duration::from_millis(2100));
    open(dir, &bf16());
    let known = memo(dir);
    assert_eq!(known["settled"], true, "{known:#}");
    // From here on it is believed: another hash there means other weights.
    let mut wrong = known.clone();
    wrong["hash"] = json!(format!("{:032x}", 1));
    fs::write(dir.join("resident/source.json"), wrong.to_string()).unwrap();
    let (_, residence, notes) = open(dir, &bf16());
    assert!(residence == Residence::Converted && notes.contains("made from other weights"), "{notes}");
    // And not when it cannot be read, or is of other states.
    for text in ["", "{", "[1]", "{\"version\":1}", "null"] {
        fs::write(dir.join("resident/source.json"), text).unwrap();
        open(dir, &bf16());
        assert_eq!(memo(dir), known, "after {text:?}");
    }
}

#[test]
fn shards_are_hashed_too() {
    let (dir, weights) = place(8);
    let dir = dir.path();
    fs::remove_file(dir.join(hf::WEIGHTS)).unwrap();
    let names: Vec<String> = parameter_specs(weights.config()).map(|spec| spec.name).collect();
    let half = names.len() / 2;
    let write = |weights: &Weights| {
        for (file, range) in [("a.safetensors", 0..half), ("b.safetensors", half..names.len())] {
            let tensors = names[range.clone()].iter().zip(&weights.tensors()[range]);
            tensor::safetensors::write(dir.join(file), tensors, &BTreeMap::new()).unwrap();
        }
    };
    write(&weights);
    let shard = |i| if i < half { "a.safetensors" } else { "b.safetensors" };
    let map: serde_json::Map<_, _> =
        names.iter().enumerate().map(|(i, name)| (name.clone(), shard(i).into())).collect();
    fs::write(dir.join(hf::INDEX), json!({ "weight_map": map }).to_string()).unwrap();
    let (expected, ..) = open(dir, &bf16());
    let (found, residence, notes) = open(dir, &bf16());
    assert!(found == expected && residence != Residence::Converted && notes.is_empty(), "{notes}");
    let files = memo(dir)["files"].as_array().unwrap().clone();
    let listed: Vec<&str> = files.iter().map(|file| file["name"].as_str().unwrap()).collect();
    assert_eq!(listed, ["config.json", hf::INDEX, "a.safetensors", "b.safetensors"]);
    write(&common::weights(weights.config(), 9));
    let (_, residence, notes) = open(dir, &bf16());
    assert!(residence == Residence::Converted && notes.contains("made from other weights"), "{notes}");
}

#[test]
fn a_folder_that_cannot_be_written_to_is_told_and_no_error() {
    let (dir, weights) = place(10);
    let dir = dir.path();
    let expected = logits(&mut CpuEngine::new(&weights, bf16()).unwrap());
    // A file where the folder should be: nobody can write into it, not even root.
    fs::write(dir.join("resident"), "").unwrap();
    let (found, residence, notes) = open(dir, &filtered(WeightFormat::Bf16));
    assert!(found == expected && residence == Residence::Converted);
    assert!(notes.contains("bf16.bin: not written: ") && notes.contains("the next start converts again"), "{notes}");
    assert!(notes.contains("bf16-filter.bin: not written: ") && notes.contains("makes the filters again"), "{notes}");
    fs::remove_file(dir.join("resident")).unwrap();
    // A folder where the file should be.
    fs::create_dir_all(resident_path(dir, WeightFormat::Bf16)).unwrap();
    let (found, _, notes) = open(dir, &bf16());
    assert!(found == expected && notes.contains("cannot be read") && notes.contains("not written"), "{notes}");
    assert_eq!(listing(dir), ["bf16.bin"], "nothing half-written is left");
}

#[test]
fn many_may_start_at_once() {
    let (dir, weights) = place(11);
    let dir = dir.path();
    let expected = logits(&mut CpuEngine::new(&weights, bf16()).unwrap());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..5 {
                    assert!(open(dir, &bf16()).0 == expected, "logits of one of many");
                    let _ = fs::remove_file(resident_path(dir, WeightFormat::Bf16));
                }
            });
        }
    });
    open(dir, &bf16());
    let (found, residence, notes) = open(dir, &bf16());
    assert!(found == expected && residence != Residence::Converted && notes.is_empty(), "{notes}");
    assert_eq!(listing(dir), ["bf16.bin", "source.json"]);
}

#[test]
fn what_a_killed_writer_left_is_removed_and_a_live_one_is_let_be() {
    let (dir, _) = place(12);
    let dir = dir.path();
    fs::create_dir(dir.join("resident")).unwrap();
    let left: PathBuf = dir.join("resident/bf16.bin.1-0.writing");
    fs::write(&left, "half").unwrap();
    let live = fs::File::open(&left).unwrap();
    live.lock().unwrap();
    let (_, _, notes) = open(dir, &bf16());
    assert!(notes.contains("another process is writing it") && left.exists(), "{notes}");
    drop(live);
    let (_, _, notes) = open(dir, &bf16());
    assert!(notes.contains("written in"), "{notes}");
    assert_eq!(listing(dir), ["bf16.bin", "source.json"]);
}

#[test]
fn sizes_are_those_of_the_parameters() {
    let config = Config {
        d_model: 128,
        n_heads: 2,
        n_kv_heads: 2,
        head_dim: 64,
        d_ff: 256,
        n_layers: 1,
        vocab_size: 10,
        ..configs()[0].clone()
    };
    // Of two layers three parts each: 256 quants of 128, 256 bounds of 16, 128 floats of 4.
    assert_eq!(filter_bytes(&Config { n_layers: 2, ..config.clone() }), 2 * (256 * (128 + 16) + 4 * 128));
    // Tied; of each row of 128 weights, 128 or 64 bytes and four scales of 2, in lines of 64.
    let gains = 4 * 3 * 128;
    let matrices = 10 + 4 * 128 + 3 * 256;
    for (format, row) in
        [(WeightFormat::F32, 512), (WeightFormat::Bf16, 256), (WeightFormat::Q8, 192), (WeightFormat::Q4, 128)]
            .into_iter()
            // A head and a group.
            .chain([(WeightFormat::Bf16Packed, 64 + 192)])
    {
        assert_eq!(resident_bytes(&config, format), gains + matrices * row, "{format}");
    }
}
