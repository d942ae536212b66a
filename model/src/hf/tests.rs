use super::*;
use crate::{Positive, RopeScaling, preset};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::sync::OnceLock;
use tempfile::TempDir;
use tensor::Tensor;

fn small() -> Config {
    Config { d_model: 16, n_layers: 2, d_ff: 24, head_dim: 6, n_kv_heads: 2, ..preset("tiny", 40).unwrap() }
}

fn stochastic() -> Meta {
    let switch = Some(Switch { to: HiddenAct::Relu, alpha: 0.05 });
    Meta { psi: Psi::stochastic(0.3), switch, bos_token_id: Some(1), eos_token_ids: vec![2, 39] }
}

fn bits(weights: &Weights) -> Vec<Vec<u32>> {
    let bits = |t: &Tensor| t.to_vec::<f32>().unwrap().iter().map(|x| x.to_bits()).collect();
    weights.tensors().iter().map(bits).collect()
}

/// A saved small model whose config.json was edited.
fn folder(edit: impl Fn(&mut Value)) -> TempDir {
    let dir = TempDir::new().unwrap();
    save(&dir, &Weights::init(&small(), 7), &Meta::new(Psi::Silu)).unwrap();
    edit_config(&dir, edit);
    dir
}

fn edit_config(dir: &TempDir, edit: impl Fn(&mut Value)) {
    let path = dir.path().join(CONFIG);
    let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut json);
    fs::write(path, json.to_string()).unwrap();
}

/// The weights' file written again, with these tensors.
fn rewrite(dir: &TempDir, tensors: &[(String, Tensor)]) {
    let tensors = tensors.iter().map(|(name, tensor)| (name, tensor));
    tensor::safetensors::write(dir.path().join(WEIGHTS), tensors, &BTreeMap::new()).unwrap();
}

fn named(weights: &Weights) -> Vec<(String, Tensor)> {
    parameter_specs(weights.config()).map(|spec| spec.name).zip(weights.tensors().iter().cloned()).collect()
}

#[track_caller]
fn assert_refused(dir: &TempDir, words: &[&str]) {
    let message = load(dir).err().expect("hf: loaded what it must refuse").to_string();
    for word in words.iter().chain([&dir.path().to_str().unwrap()]) {
        assert!(message.contains(word), "hf: the message does not say {word:?}: {message}");
    }
}

#[test]
fn hf_round_trip_is_exact() {
    let scaling =
        Some(RopeScaling { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_seq_len: 64 });
    let plain = small();
    let untied = Config { tie_embeddings: false, rope_theta: 500_000.0, norm_eps: 3e-6, ..small() };
    let scaled = Config { rope_scaling: scaling, n_kv_heads: 1, ..small() };
    for config in [plain, untied, scaled] {
        let pair = Psi::Stochastic { p: 0.5, negative: [HiddenAct::Gelu, HiddenAct::Tanh], positive: Positive::Silu };
        let switch = Some(Switch { to: HiddenAct::Relu2, alpha: 0.1 });
        let fixed = HiddenAct::ALL.map(|act| Meta::new(act.into()));
        let drawn = [stochastic(), Meta::new(pair), Meta { switch, ..Meta::new(pair) }];
        for meta in fixed.into_iter().chain(drawn) {
            let (dir, weights) = (TempDir::new().unwrap(), Weights::init(&config, 3));
            save(&dir, &weights, &meta).unwrap();
            let loaded = load(&dir).unwrap();
            assert_eq!(loaded.weights.config(), &config, "hf: config");
            assert_eq!(loaded.meta, meta, "hf: meta");
            assert!(bits(&loaded.weights) == bits(&weights), "hf: the bits of a parameter changed");
        }
    }
}

#[test]
fn hf_writes_what_transformers_reads() {
    let dir = TempDir::new().unwrap();
    save(&dir, &Weights::init(&small(), 7), &stochastic()).unwrap();
    let json: Value = serde_json::from_slice(&fs::read(dir.path().join(CONFIG)).unwrap()).unwrap();
    for (field, expected) in [
        ("architectures", json!(["LlamaForCausalLM"])),
        ("model_type", json!("llama")),
        ("hidden_size", json!(16)),
        ("num_key_value_heads", json!(2)),
        ("head_dim", json!(6)),
        ("hidden_act", json!("relu")), // StochA is meant to run with RELU
        ("rms_norm_eps", json!(1e-5)),
        ("rope_theta", json!(10_000.0)),
        ("rope_parameters", json!({ "rope_type": "default", "rope_theta": 10_000.0 })),
        ("tie_word_embeddings", json!(true)),
        ("bos_token_id", json!(1)),
        ("eos_token_id", json!([2, 39])),
        (
            "silurian",
            json!({
                "version": 1,
                "psi": { "kind": "stochastic", "p": 0.3, "negative": ["relu", "silu"], "positive": "identity" },
                "switch": { "to": "relu", "alpha": 0.05 },
                "philox_rounds": 7,
            }),
        ),
    ] {
        assert_eq!(json[field], expected, "hf: {field}");
    }
    let file = tensor::safetensors::File::open(dir.path().join(WEIGHTS)).unwrap();
    assert_eq!(file.metadata()["format"], "pt");
    assert!(!file.contains("lm_head.weight"), "hf: a tied head was written");
    // Another pair is meant to run with what it switches to, or else with its first member.
    let pair = Psi::Stochastic { p: 0.5, negative: [HiddenAct::Gelu, HiddenAct::Tanh], positive: Positive::Silu };
    for (alpha, meant) in [(None, "gelu"), (Some(0.0), "gelu"), (Some(0.1), "relu2")] {
        let switch = alpha.map(|alpha| Switch { to: HiddenAct::Relu2, alpha });
        save(&dir, &Weights::init(&small(), 7), &Meta { switch, ..Meta::new(pair) }).unwrap();
        let json: Value = serde_json::from_slice(&fs::read(dir.path().join(CONFIG)).unwrap()).unwrap();
        assert_eq!(json["hidden_act"], meant, "hf: {alpha:?}");
    }
    // A fixed activation needs no further key.
    let dir = folder(|_| ());
    let json: Value = serde_json::from_slice(&fs::read(dir.path().join(CONFIG)).unwrap()).unwrap();
    assert!(json.get("silurian").is_none() && json["hidden_act"] == "silu");
}

#[test]
fn hf_reads_each_hidden_act() {
    let read = |name: &str| load_config(folder(|c| c["hidden_act"] = json!(name))).unwrap().1.psi;
    for (name, psi) in [
        ("relu", Psi::Relu),
        ("silu", Psi::Silu),
        ("swish", Psi::Silu),
        ("gelu", Psi::Gelu),
        ("relu2", Psi::Relu2),
        ("tanh", Psi::Tanh),
    ] {
        assert_eq!(read(name), psi, "hf: {name}");
    }
    // As it was written before there were other pairs.
    let older = folder(|c| {
        c["hidden_act"] = json!("relu");
        c["silurian"] = json!({ "version": 1, "psi": { "kind": "stochastic", "p": 0.25 }, "philox_rounds": 7 });
    });
    assert_eq!(load_config(&older).unwrap().1.psi, Psi::stochastic(0.25));
}

#[test]
fn hf_reads_both_spellings_of_rope() {
    let llama3 = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64 });
    let scaling = RopeScaling { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_seq_len: 64 };
    let old = folder(|c| {
        c.as_object_mut().unwrap().remove("rope_parameters");
        c["rope_theta"] = json!(5e5);
        c["rope_scaling"] = llama3.clone();
    });
    let new = folder(|c| {
        c.as_object_mut().unwrap().remove("rope_theta");
        c.as_object_mut().unwrap().remove("rope_scaling");
        c["rope_parameters"] = llama3.clone();
        c["rope_parameters"]["rope_theta"] = json!(5e5);
    });
    for dir in [old, new] {
        let (config, _) = load_config(&dir).unwrap();
        assert_eq!((config.rope_theta, config.rope_scaling), (5e5, Some(scaling)));
    }
    assert_refused(&folder(|c| c["rope_theta"] = json!(5e5)), &[CONFIG, "rope_theta", "500000", "rope_parameters"]);
    assert_refused(&folder(|c| c["rope_scaling"] = llama3.clone()), &[CONFIG, "rope_scaling", "rope_parameters"]);
    let yarn = folder(|c| c["rope_parameters"]["rope_type"] = json!("yarn"));
    assert_refused(&yarn, &[CONFIG, "rope_parameters.rope_type", "yarn", "llama3"]);
}

#[test]
fn hf_refuses_a_config_by_field() {
    type Edit = fn(&mut Value);
    let cases: [(Edit, &[&str]); 16] = [
        (|c| c["hidden_act"] = json!("gelu_new"), &["hidden_act", "gelu_new", "relu", "relu2", "exact"]),
        (|c| c["hidden_act"] = json!(null), &["hidden_act", "missing"]),
        (|c| c["model_type"] = json!("mistral"), &["model_type", "mistral", "llama"]),
        (|c| c["architectures"] = json!(["LlamaModel"]), &["architectures", "LlamaModel", "LlamaForCausalLM"]),
        (|c| c["attention_bias"] = json!(true), &["attention_bias", "true"]),
        (|c| c["mlp_bias"] = json!(true), &["mlp_bias", "true"]),
        (|c| c["quantization_config"] = json!({ "bits": 4 }), &["quantization_config"]),
        (|c| c["hidden_size"] = json!("16"), &["hidden_size", "\"16\"", "a whole number"]),
        (|c| c["num_hidden_layers"] = json!(-1), &["num_hidden_layers", "-1"]),
        (|c| c["vocab_size"] = json!(0), &["vocab_size", "0", "1 to"]),
        (|c| c["num_key_value_heads"] = json!(3), &["num_key_value_heads", "3", "divide"]),
        (|c| c["head_dim"] = json!(5), &["head_dim", "5", "even"]),
        (|c| c["hidden_size"] = json!(1u64 << 60), &["hidden_size", "1 to 1048576"]),
        (|c| c["rms_norm_eps"] = json!(0.0), &["rms_norm_eps", "positive"]),
        (|c| c["tie_word_embeddings"] = json!(1), &["tie_word_embeddings", "true or false"]),
        (|c| c["eos_token_id"] = json!([1, -2]), &["eos_token_id", "-2"]),
    ];
    for (edit, words) in cases {
        assert_refused(&folder(edit), &[&[CONFIG], words].concat());
    }
    let missing = folder(|c| {
        c.as_object_mut().unwrap().remove("intermediate_size");
    });
    assert_refused(&missing, &[CONFIG, "intermediate_size", "missing"]);
}

#[test]
fn hf_refuses_what_silurian_does_not_know() {
    type Edit = fn(&mut Value);
    let cases: [(Edit, &[&str]); 9] = [
        (|c| c["silurian"]["version"] = json!(2), &["silurian.version", "2"]),
        (|c| c["silurian"]["philox_rounds"] = json!(10), &["silurian.philox_rounds", "10", "7"]),
        (|c| c["silurian"]["psi"]["p"] = json!(1.5), &["silurian.psi", "1.5", "0..=1"]),
        (|c| c["silurian"]["psi"]["kind"] = json!("mish"), &["silurian", "mish"]),
        (|c| c["silurian"]["psi"]["negative"] = json!(["relu", "mish"]), &["silurian", "mish", "relu2"]),
        (|c| c["silurian"]["psi"]["positive"] = json!("gelu"), &["silurian", "gelu", "identity"]),
        (|c| c["silurian"]["switch"]["alpha"] = json!(-0.1), &["silurian.switch", "-0.1"]),
        (|c| c["silurian"]["gamma"] = json!(1), &["silurian", "gamma"]),
        (|c| c["hidden_act"] = json!("silu"), &["hidden_act", "relu", "StochA(0.3)"]),
    ];
    for (edit, words) in cases {
        let dir = TempDir::new().unwrap();
        save(&dir, &Weights::init(&small(), 7), &stochastic()).unwrap();
        edit_config(&dir, edit);
        assert_refused(&dir, &[&[CONFIG], words].concat());
    }
}

#[test]
fn hf_lists_the_tensors_that_do_not_fit() {
    let dir = folder(|_| ());
    let weights = Weights::init(&small(), 7);
    let mut tensors = named(&weights);
    tensors.retain(|(name, _)| !name.contains("layers.1."));
    tensors[1].1 = Tensor::zeros([17]);
    tensors.push(("model.extra.bias".into(), Tensor::zeros([2])));
    rewrite(&dir, &tensors);
    let name = "model.layers.0.input_layernorm.weight";
    let missing = "9 missing (model.layers.1.input_layernorm.weight, model.layers.1.self_attn.q_proj.weight";
    assert_refused(&dir, &[WEIGHTS, missing, "...)", "1 unexpected (model.extra.bias)", name, "[17], not [16]"]);

    // What transformers ignores is ignored here.
    let mut tensors = named(&weights);
    tensors.push(("model.layers.0.self_attn.rotary_emb.inv_freq".into(), Tensor::zeros([3])));
    rewrite(&dir, &tensors);
    assert!(bits(&load(&dir).unwrap().weights) == bits(&weights));
}

#[test]
fn hf_ties_as_transformers_does() {
    let weights = Weights::init(&small(), 7);
    let dir = folder(|_| ());
    let with_head = |head: Tensor| {
        let mut tensors = named(&weights);
        tensors.push((crate::LM_HEAD.into(), head));
        rewrite(&dir, &tensors);
        load(&dir).unwrap().weights
    };
    let equal = with_head(weights.embed_tokens().clone());
    assert!(equal.config().tie_embeddings && bits(&equal) == bits(&weights), "hf: an equal head unties");
    let other = with_head(Tensor::full(0.5, weights.embed_tokens().shape()));
    assert!(!other.config().tie_embeddings, "hf: another head is dropped");
    assert!(other.lm_head().to_vec::<f32>().unwrap().iter().all(|&x| x == 0.5));
    // The other way round there is nothing to choose from.
    let untied = folder(|c| c["tie_word_embeddings"] = json!(false));
    assert_refused(&untied, &[WEIGHTS, "1 missing (lm_head.weight)"]);
}

#[test]
fn hf_reads_shards() {
    let dir = folder(|_| ());
    let weights = Weights::init(&small(), 7);
    fs::remove_file(dir.path().join(WEIGHTS)).unwrap();
    let mut map = serde_json::Map::new();
    for (number, part) in named(&weights).chunks(8).enumerate() {
        let file = format!("model-0000{}-of-00003.safetensors", number + 1);
        let tensors = part.iter().map(|(name, tensor)| (name, tensor));
        tensor::safetensors::write(dir.path().join(&file), tensors, &BTreeMap::new()).unwrap();
        map.extend(part.iter().map(|(name, _)| (name.clone(), json!(file))));
    }
    let write_index = |map: &serde_json::Map<String, Value>| {
        fs::write(dir.path().join(INDEX), json!({ "metadata": {}, "weight_map": map }).to_string()).unwrap();
    };
    write_index(&map);
    assert!(bits(&load(&dir).unwrap().weights) == bits(&weights));

    for (file, words) in [
        ("../elsewhere.safetensors", &[INDEX, "weight_map.model.norm.weight", "../elsewhere"][..]),
        ("model-00009-of-00003.safetensors", &["model-00009-of-00003.safetensors"]),
        ("model-00001-of-00003.safetensors", &["model-00001-of-00003.safetensors", "model.norm.weight"]),
    ] {
        let mut wrong = map.clone();
        wrong[crate::NORM] = json!(file);
        write_index(&wrong);
        assert_refused(&dir, words);
    }
    fs::write(dir.path().join(INDEX), "{}").unwrap();
    assert_refused(&dir, &[INDEX, "weight_map", "missing"]);
}

#[test]
fn hf_refuses_files_that_are_missing_or_damaged() {
    let dir = TempDir::new().unwrap();
    assert_refused(&dir, &[CONFIG, "cannot be read"]);
    let dir = folder(|_| ());
    let weights = dir.path().join(WEIGHTS);
    let whole = fs::read(&weights).unwrap();
    fs::write(&weights, &whole[..whole.len() - 5]).unwrap();
    assert_refused(&dir, &[WEIGHTS, "truncated"]);
    fs::remove_file(&weights).unwrap();
    assert_refused(&dir, &[WEIGHTS, INDEX]);
    fs::write(dir.path().join(CONFIG), "{\n\"hidden_size\": ").unwrap();
    assert_refused(&dir, &[CONFIG, "line 2"]);
    fs::write(dir.path().join(CONFIG), "[]").unwrap();
    assert_refused(&dir, &[CONFIG, "not a JSON object"]);
    let nowhere = save(dir.path().join("nowhere"), &Weights::init(&small(), 7), &Meta::new(Psi::Silu));
    assert!(nowhere.unwrap_err().to_string().contains("nowhere/config.json: cannot be written"));
}

/// A device that is always full, in the place of each file.
#[cfg(target_os = "linux")]
#[test]
fn hf_names_the_file_that_a_full_disk_refuses() {
    for file in [CONFIG, WEIGHTS] {
        let dir = TempDir::new().unwrap();
        std::os::unix::fs::symlink("/dev/full", dir.path().join(file)).unwrap();
        let message = save(&dir, &Weights::init(&small(), 7), &Meta::new(Psi::Silu)).unwrap_err().to_string();
        assert!(message.contains(file) && message.contains("cannot be written"), "hf: {message}");
    }
}

proptest! {
    /// A damaged file is refused, or read as something valid; nothing panics.
    #[test]
    fn hf_survives_any_damage(file in 0..2usize, at in any::<prop::sample::Index>(), byte: u8, cut: bool) {
        static WHOLE: OnceLock<[Vec<u8>; 2]> = OnceLock::new();
        let whole = WHOLE.get_or_init(|| {
            let dir = folder(|_| ());
            [CONFIG, WEIGHTS].map(|file| fs::read(dir.path().join(file)).unwrap())
        });
        let dir = TempDir::new().unwrap();
        let paths = [CONFIG, WEIGHTS].map(|file| dir.path().join(file));
        fs::write(&paths[1 - file], &whole[1 - file]).unwrap();
        let (path, mut bytes) = (&paths[file], whole[file].clone());
        // The header, where the structure is: of the elements any value is valid.
        let at = at.index(bytes.len().min(2000));
        if cut {
            bytes.truncate(at);
        } else {
            bytes[at] = byte;
        }
        fs::write(path, bytes).unwrap();
        match load(&dir) {
            Ok(_) => prop_assert!(!cut, "hf: loaded a {} of {at} bytes", path.display()),
            Err(e) => prop_assert!(e.to_string().contains(dir.path().to_str().unwrap()), "hf: {e}"),
        }
    }
}
