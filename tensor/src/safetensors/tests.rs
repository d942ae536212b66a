use super::*;
use ::safetensors::SafeTensors;
use proptest::prelude::*;
use std::collections::HashMap;

/// A file with this header, as text, and `data_len` bytes of data that count up.
fn with_header(dir: &tempfile::TempDir, header: &str, data_len: usize) -> PathBuf {
    let path = dir.path().join("made.safetensors");
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend((0..data_len).map(|i| i as u8));
    fs::write(&path, bytes).unwrap();
    path
}

/// What `File::open` says of a file with this header; the path must be named, and is cut off.
fn refusal(header: &str, data_len: usize) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = with_header(&dir, header, data_len);
    let message = File::open(&path).err().unwrap_or_else(|| panic!("accepted: {header}")).to_string();
    message.strip_prefix(&format!("{}: ", path.display())).unwrap_or_else(|| panic!("no path: {message}")).to_string()
}

fn metadata_of(texts: &[(&str, &str)]) -> BTreeMap<String, String> {
    texts.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
}

#[test]
fn a_file_holds_what_was_written_and_the_formats_own_crate_agrees() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let weight = Tensor::from_slice(&[1.0f32, -0.0, f32::INFINITY, 4.0, 5.5, f32::MIN_POSITIVE / 2.0], [2, 3]);
    let tokens = Tensor::from_slice(&[0u32, u32::MAX], [2]);
    let (transposed, scalar, empty) = (weight.t(), Tensor::scalar(7.0), Tensor::zeros([3, 0]));
    let names = ["model.layers.0.mlp.gate_proj.weight", "tokens", "a \"quoted\" näme", "scalar", "empty"];
    let tensors = [&weight, &tokens, &transposed, &scalar, &empty];
    let metadata = metadata_of(&[("format", "pt"), ("step", "12")]);
    write(&path, names.into_iter().zip(tensors), &metadata).unwrap();

    let file = File::open(&path).unwrap();
    assert_eq!(file.metadata(), &metadata);
    let mut sorted = names.to_vec();
    sorted.sort();
    assert_eq!(file.names().collect::<Vec<_>>(), sorted);
    let bytes = fs::read(&path).unwrap();
    let peer = SafeTensors::deserialize(&bytes).unwrap();
    for (name, tensor) in names.into_iter().zip(tensors) {
        let loaded = file.load_shaped(name, tensor.shape()).unwrap();
        assert_eq!(loaded.dtype(), tensor.dtype());
        assert_eq!(loaded.bytes(), tensor.contiguous().bytes(), "{name}");
        assert_eq!(peer.tensor(name).unwrap().data(), tensor.contiguous().bytes(), "{name}");
        assert_eq!(peer.tensor(name).unwrap().shape(), &*tensor.shape(), "{name}");
    }
    // Again: the same bytes.
    let again = dir.path().join("again");
    write(&again, names.into_iter().zip(tensors), &metadata).unwrap();
    assert_eq!(fs::read(&again).unwrap(), bytes);
}

#[test]
fn every_bf16_and_f16_is_widened_exactly() {
    let dir = tempfile::tempdir().unwrap();
    for (dtype, reference) in [
        ("BF16", (|bits| bf16::from_bits(bits).to_f64()) as fn(u16) -> f64),
        ("F16", |bits| f16::from_bits(bits).to_f64()),
    ] {
        let header = format!(r#"{{"w":{{"dtype":"{dtype}","shape":[256,256],"data_offsets":[0,131072]}}}}"#);
        let path = with_header(&dir, &header, 0);
        let mut bytes = fs::read(&path).unwrap();
        bytes.extend((0..=u16::MAX).flat_map(u16::to_le_bytes));
        fs::write(&path, bytes).unwrap();
        let widened = File::open(&path).unwrap().load("w").unwrap().to_vec::<f32>().unwrap();
        for (bits, x) in (0..=u16::MAX).zip(widened) {
            let expected = reference(bits);
            assert!(
                x as f64 == expected || x.is_nan() && expected.is_nan(),
                "{dtype} {bits:#06x}: {x}, not {expected}"
            );
        }
    }
}

#[test]
fn integers_become_tokens_only_if_they_fit() {
    let dir = tempfile::tempdir().unwrap();
    let file_of = |dtype: &str, elements: &[u8], n: usize| {
        let end = elements.len();
        let header = format!(r#"{{"ids":{{"dtype":"{dtype}","shape":[{n}],"data_offsets":[0,{end}]}}}}"#);
        let path = with_header(&dir, &header, 0);
        let mut bytes = fs::read(&path).unwrap();
        bytes.extend(elements);
        fs::write(&path, bytes).unwrap();
        File::open(&path).unwrap()
    };
    let i64s = |x: [i64; 3]| x.into_iter().flat_map(i64::to_le_bytes).collect::<Vec<u8>>();
    let i32s = |x: [i32; 3]| x.into_iter().flat_map(i32::to_le_bytes).collect::<Vec<u8>>();
    let load = |file: File| file.load("ids").map(|t| t.to_vec::<u32>().unwrap()).map_err(|e| e.to_string());

    assert_eq!(load(file_of("I64", &i64s([0, 5, u32::MAX as i64]), 3)).unwrap(), [0, 5, u32::MAX]);
    assert_eq!(load(file_of("I32", &i32s([0, 5, i32::MAX]), 3)).unwrap(), [0, 5, i32::MAX as u32]);
    let error = load(file_of("I64", &i64s([0, 5, 1 << 32]), 3)).unwrap_err();
    assert!(error.ends_with("tensor ids: element 2 is 4294967296, which is no u32"), "{error}");
    let error = load(file_of("I32", &i32s([0, -1, 3]), 3)).unwrap_err();
    assert!(error.ends_with("tensor ids: element 1 is -1, which is no u32"), "{error}");
    let error = load(file_of("F64", &[0; 16], 2)).unwrap_err();
    assert!(error.ends_with("tensor ids: its type is F64, expected one of F32, BF16, F16, U32, I32, I64"), "{error}");
}

#[test]
fn wrong_headers_are_refused_with_the_tensor_and_what_was_expected() {
    let entry = |name: &str, rest: &str| format!(r#""{name}":{{"dtype":"F32",{rest}}}"#);
    let a = entry("a", r#""shape":[2],"data_offsets":[0,8]"#);
    let with = |b: &str| format!("{{{a},{b}}}");
    for (header, data_len, expected) in [
        (
            with(&entry("b", r#""shape":[1],"data_offsets":[4,8]"#)),
            8,
            "tensor b: begins at byte 4 of the data, expected 8: it overlaps the tensor before it",
        ),
        (
            with(&entry("b", r#""shape":[1],"data_offsets":[12,16]"#)),
            16,
            "tensor b: begins at byte 12 of the data, expected 8: it leaves a gap before it",
        ),
        (
            with(&entry("b", r#""shape":[1],"data_offsets":[8,12]"#)),
            10,
            "tensor b: ends at byte 12 of the data, which has 10: the file is truncated",
        ),
        (
            with(&entry("b", r#""shape":[3],"data_offsets":[8,12]"#)),
            12,
            "tensor b: 4 bytes, which is not what shape [3] of F32 needs",
        ),
        (
            with(&entry("b", r#""shape":[4294967296,4294967296,4],"data_offsets":[8,12]"#)),
            12,
            "tensor b: 4 bytes, which is not what shape [4294967296, 4294967296, 4] of F32 needs",
        ),
        (with(&entry("b", r#""shape":[1],"data_offsets":[12,8]"#)), 12, "tensor b: its data_offsets are 12..8"),
        (with(&a), 8, "tensor a: header: the name comes twice"),
        (with(""), 8, "not a valid safetensors file: header: "),
        (with(r#""b":{"dtype":"F32","data_offsets":[8,12]}"#), 12, "tensor b: header: missing field `shape`"),
        (
            with(r#""b":{"dtype":"F33","shape":[1],"data_offsets":[8,12]}"#),
            12,
            "tensor b: header: unknown variant `F33`, expected one of `BOOL`",
        ),
        (
            with(r#""b":{"dtype":"F32","shape":[-1],"data_offsets":[8,12]}"#),
            12,
            "tensor b: header: invalid value: integer `-1`, expected usize",
        ),
        (with(r#""b":7"#), 12, "tensor b: header: invalid type"),
        (
            with(r#""__metadata__":{"a":1}"#),
            8,
            "not a valid safetensors file: header: invalid type: integer `1`, expected a string",
        ),
        (
            with(r#""__metadata__":{},"__metadata__":{}"#),
            8,
            "not a valid safetensors file: header: the name comes twice",
        ),
        (format!("{{{a}}}"), 12, "not a valid safetensors file: 12 bytes of data, but its tensors end at 8"),
        (format!("{{{a}}} x"), 8, "not a valid safetensors file: header: trailing characters"),
        (format!("{{{a}"), 8, "not a valid safetensors file: header: EOF while parsing an object"),
        (
            "[]".into(),
            0,
            "not a valid safetensors file: header: invalid type: sequence, expected an object with one entry for each tensor",
        ),
        (String::new(), 0, "not a valid safetensors file: header: EOF"),
    ] {
        let message = refusal(&header, data_len);
        assert!(message.starts_with(expected), "{header}\n says: {message}\n not: {expected}");
    }
}

#[test]
fn files_that_are_cut_or_no_safetensors_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let says = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        File::open(&path).unwrap_err().to_string()
    };
    let tensor = Tensor::from_slice(&[1.0f32, 2.0], [2]);
    write(&path, [("w", &tensor)], &BTreeMap::new()).unwrap();
    let whole = fs::read(&path).unwrap();
    for len in 0..whole.len() {
        let message = says(&whole[..len]);
        assert!(message.contains("model.safetensors"), "{message}");
        let cut_at_header = message.contains("expected at least the 8 of the header's length");
        assert!(cut_at_header || message.contains("the file is truncated"), "cut to {len}: {message}");
    }
    assert!(says(b"hello, this is no tensor file").contains("expected at most 100000000"));
    let mut not_utf8 = whole.clone();
    not_utf8[10] = 0xFF;
    assert!(says(&not_utf8).contains("the header is not UTF-8: invalid utf-8 sequence"), "{}", says(&not_utf8));
    let missing = File::open(dir.path().join("absent")).unwrap_err().to_string();
    assert!(missing.contains("absent: cannot be read: "), "{missing}");
}

#[test]
fn loading_names_the_tensor_the_file_and_both_shapes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m");
    write(&path, [("w", &Tensor::zeros([2, 3]))], &BTreeMap::new()).unwrap();
    let file = File::open(&path).unwrap();
    let error = file.load_shaped("w", [3, 2]).unwrap_err();
    assert!(matches!(error, Error::Shape { .. }));
    assert_eq!(error.to_string(), format!("{}: tensor w has shape [2, 3], expected [3, 2]", path.display()));
    let error = file.load("v").unwrap_err();
    assert!(matches!(error, Error::Missing { .. }));
    assert_eq!(error.to_string(), format!("{}: has no tensor v", path.display()));

    let header = r#"{"w":{"dtype":"F32","shape":[0,1099511627776,1099511627776],"data_offsets":[0,0]}}"#;
    assert_eq!(File::open(with_header(&dir, header, 0)).unwrap().load("w").unwrap().elements(), 0);

    let header = r#"{"w":{"dtype":"F32","shape":[1,1,1,1,1,1],"data_offsets":[0,4]}}"#;
    let error = File::open(with_header(&dir, header, 4)).unwrap().load("w").unwrap_err();
    assert!(error.to_string().ends_with("tensor w: shape [1, 1, 1, 1, 1, 1] has more than 5 axes"), "{error}");
}

#[test]
fn writing_fails_with_the_path_or_the_name() {
    let dir = tempfile::tempdir().unwrap();
    let tensor = Tensor::scalar(1.0);
    let error = write(dir.path().join("absent/m"), [("w", &tensor)], &BTreeMap::new()).unwrap_err();
    assert!(error.to_string().contains("absent/m: cannot be written: "), "{error}");
    let error = write(dir.path().join("m"), [("w", &tensor), ("w", &tensor)], &BTreeMap::new()).unwrap_err();
    assert!(error.to_string().ends_with("m: tensor w: written twice"), "{error}");
    let error = write(dir.path().join("m"), [(METADATA, &tensor)], &BTreeMap::new()).unwrap_err();
    assert!(error.to_string().ends_with("m: tensor __metadata__: the name is reserved"), "{error}");
    assert!(!dir.path().join("m").exists(), "nothing is created for what cannot be written");
}

/// `/dev/full` answers every write as a full disk does.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error() {
    for elements in [1, 1 << 20] {
        let error = write("/dev/full", [("w", &Tensor::zeros([elements]))], &BTreeMap::new()).unwrap_err();
        assert!(error.to_string().starts_with("/dev/full: cannot be written: "), "{error}");
    }
}

fn a_tensor() -> impl Strategy<Value = Tensor> {
    proptest::collection::vec(0usize..4, 0..=MAX_RANK).prop_flat_map(|dims| {
        let n = dims.iter().product::<usize>();
        (Just(dims), any::<bool>(), proptest::collection::vec(any::<u32>(), n)).prop_map(|(dims, is_f32, bits)| {
            let shape = Shape::new(&dims);
            if is_f32 {
                Tensor::from_slice(&bits.into_iter().map(f32::from_bits).collect::<Vec<_>>(), shape)
            } else {
                Tensor::from_slice(&bits, shape)
            }
        })
    })
}

fn some_tensors() -> impl Strategy<Value = HashMap<String, Tensor>> {
    proptest::collection::hash_map("[a-z.\"\\\\é]{0,12}", a_tensor(), 0..6)
}

/// Loads everything that a file offers; what matters is that nothing panics.
fn load_all(path: &Path) -> Result<usize, Error> {
    let file = File::open(path)?;
    file.names().map(|name| file.load(name).map(|t| t.elements())).sum()
}

proptest! {
    #[test]
    fn tensors_survive_the_file(tensors in some_tensors(), key in ".{0,8}", value in ".{0,20}") {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        let metadata = BTreeMap::from([(key, value)]);
        write(&path, &tensors, &metadata).unwrap();
        let file = File::open(&path).unwrap();
        prop_assert_eq!(file.metadata(), &metadata);
        prop_assert_eq!(file.names().count(), tensors.len());
        for (name, tensor) in &tensors {
            let loaded = file.load_shaped(name, tensor.shape()).unwrap();
            prop_assert_eq!(loaded.dtype(), tensor.dtype());
            prop_assert_eq!(loaded.bytes(), tensor.bytes());
        }
        prop_assert!(SafeTensors::deserialize(&fs::read(&path).unwrap()).is_ok());
    }

    /// Bits flipped, bytes removed or added anywhere: an error or tensors, never a panic; and whatever this module accepts,
    /// the format's own crate accepts too.
    #[test]
    fn a_damaged_file_never_panics(
        tensors in some_tensors(),
        flips in proptest::collection::vec((any::<proptest::sample::Index>(), 0u8..8), 0..4),
        cut in proptest::option::of(any::<proptest::sample::Index>()),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        write(&path, &tensors, &BTreeMap::new()).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        for (at, bit) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len() + 1));
        }
        fs::write(&path, &bytes).unwrap();
        let _ = load_all(&path);
        if File::open(&path).is_ok() {
            prop_assert!(SafeTensors::deserialize(&bytes).is_ok());
        }
    }

    /// Headers put together from the format's own words, most of them wrong.
    #[test]
    fn a_tampered_header_never_panics(
        entries in proptest::collection::vec(
            ("[ab]|__metadata__", "F32|BF16|F4|I64|F33|U32", proptest::collection::vec(0u64..5, 0..7),
             prop_oneof![0u64..40, any::<u64>()], prop_oneof![0u64..40, any::<u64>()]), 0..4),
        data_len in 0usize..64,
    ) {
        let entry = |(name, dtype, shape, begin, end): &(String, String, Vec<u64>, u64, u64)| {
            format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#)
        };
        let header = format!("{{{}}}", entries.iter().map(entry).collect::<Vec<_>>().join(","));
        let dir = tempfile::tempdir().unwrap();
        let path = with_header(&dir, &header, data_len);
        let _ = load_all(&path);
        if File::open(&path).is_ok() {
            prop_assert!(SafeTensors::deserialize(&fs::read(&path).unwrap()).is_ok(), "{}", header);
        }
    }
}
