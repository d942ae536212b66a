//! Configurations: written, read back, completed, and refused by file, line, key, value and what was expected.

use std::path::{Path, PathBuf};
use train::TrainConfig;

fn parse(text: &str) -> Result<TrainConfig, String> {
    TrainConfig::from_toml(text, Path::new("run.toml")).map_err(|e| e.to_string())
}

/// What is said of `text` when it is read, or completed for bytes.
fn refused(text: &str) -> String {
    let with_data =
        if text.contains("[data]") { text.to_string() } else { format!("{text}\n[data]\npaths = [\"x\"]\n") };
    match parse(&with_data) {
        Err(e) => e,
        Ok(config) => config.resolve(256, None).map(|_| String::new()).unwrap_or_else(|e| e.to_string()),
    }
}

#[test]
fn what_is_written_reads_back_the_same() {
    let text = r#"
        [model]
        preset = "5m"
        n_layers = 3
        rope_theta = 50000.0
        [activation]
        kind = "stochastic"
        p = 0.3
        [data]
        paths = ["a.txt", "b"]
        val_fraction = 0.05
        [train]
        steps = 10
        lr = 0.001
        switch = { to = "relu", alpha = 0.1 }
        sample_prompt = "ROMEO:\n\"x\""
    "#;
    let given = parse(text).unwrap();
    assert_eq!(parse(&given.to_toml()).unwrap(), given);
    let (resolved, sizes) = given.resolve(256, None).unwrap();
    assert_eq!((sizes.n_layers, sizes.d_model, sizes.rope_theta), (3, 256, 50_000.0));
    assert_eq!(
        (resolved.model.d_ff, resolved.train.seq_len, resolved.train.batch_tokens),
        (Some(768), Some(256), Some(2048))
    );
    let back = parse(&resolved.to_toml()).unwrap();
    assert_eq!(back, resolved);
    assert_eq!(back.resolve(256, None).unwrap(), (resolved, sizes), "a resolved configuration is left as it is");
}

#[test]
fn precision_is_f32_or_bf16() {
    let precision = |text: &str| parse(text).unwrap().train.precision;
    assert_eq!(precision("[train]\nsteps = 3"), model::Precision::F32, "as runs from before there were others have it");
    assert_eq!(precision("[train]\nprecision = \"bf16\""), model::Precision::Bf16);
    let error = refused("[train]\nprecision = \"fp16\"");
    assert!(error.trim_end().ends_with("unknown variant `fp16`, expected `f32` or `bf16`"), "{error}");
}

#[test]
fn defaults_are_the_papers_activation_and_a_small_model() {
    let mut config = parse("").unwrap();
    assert_eq!(config, TrainConfig::default());
    config.data.paths = vec![PathBuf::from("x")];
    let (config, sizes) = config.resolve(256, None).unwrap();
    assert_eq!(sizes, model::preset("tiny", 256).unwrap());
    assert_eq!(config.activation.psi(), model::Psi::stochastic(0.5));
    // Resolved, it says everything.
    let text = config.to_toml();
    assert!(text.contains("negative = [\"relu\", \"silu\"]\npositive = \"identity\""), "{text}");
}

#[test]
fn every_activation_can_be_named() {
    use model::{HiddenAct, Positive, Psi};
    for act in HiddenAct::ALL {
        let config = parse(&format!(
            "[activation]\nkind = \"{0}\"\n[train]\nswitch = {{ to = \"{0}\", alpha = 0.1 }}",
            act.name()
        ));
        let config = config.unwrap();
        assert_eq!((config.activation.psi(), config.train.switch.unwrap().to), (act.into(), act));
    }
    let text = "[activation]\nkind = \"stochastic\"\np = 0.3\nnegative = [\"tanh\", \"gelu\"]\npositive = \"silu\"";
    let negative = [HiddenAct::Tanh, HiddenAct::Gelu];
    assert_eq!(parse(text).unwrap().activation.psi(), Psi::Stochastic { p: 0.3, negative, positive: Positive::Silu });
}

#[test]
fn a_changed_width_changes_the_width_of_heads() {
    let sizes = |text| {
        let mut config = parse(text).unwrap();
        config.data.paths = vec![PathBuf::from("x")];
        config.resolve(256, None).unwrap().1
    };
    assert_eq!(sizes("[model]\nd_model = 64").head_dim, 16);
    assert_eq!(sizes("[model]\nd_model = 64\nhead_dim = 32").head_dim, 32);
}

#[test]
fn unknown_keys_and_wrong_types_are_named_with_their_line() {
    for (text, parts) in [
        ("[model]\npreset = \"tiny\"\n[train]\nlearning_rate = 1.0", ["line 4", "learning_rate", "`lr`"]),
        ("[modle]", ["line 1", "modle", "`model`"]),
        ("[train]\nsteps = \"many\"", ["line 2", "\"many\"", "usize"]),
        ("[train]\nswitch = { to = \"mish\", alpha = 0.1 }", ["line 2", "mish", "`relu`"]),
        (
            "[activation]\nkind = \"stochastic\"\np = 0.5\nnegative = [\"relu\", \"mish\"]",
            ["line 4", "mish", "`relu2`"],
        ),
        ("[activation]\nkind = \"stochastic\"\np = 0.5\nnegative = [\"relu\"]", ["line 4", "length 1", "length 2"]),
        ("[activation]\nkind = \"stochastic\"\np = 0.5\npositive = \"relu\"", ["line 4", "relu", "`identity`"]),
        ("[train]\nswitch = { to = \"relu\", share = 0.1 }", ["line 2", "share", "`alpha`"]),
        ("[activation]\nkind = \"swish\"", ["line 2", "swish", "`stochastic`"]),
        ("[train]\nsteps = -1", ["line 2", "-1", "steps"]),
        ("[train\n", ["line 1", "run.toml", "]"]),
    ] {
        let message = refused(text);
        assert!(message.starts_with("run.toml: "), "{message}");
        for part in parts {
            assert!(message.contains(part), "{text:?} should be refused with {part}: {message}");
        }
    }
}

#[test]
fn values_out_of_range_are_named_with_what_was_expected() {
    for (text, message) in [
        ("[activation]\nkind = \"stochastic\"\np = 1.5", "run.toml line 3: activation.p = 1.5: must be from 0 to 1"),
        ("[activation]\nkind = \"stochastic\"\np = nan", "run.toml line 3: activation.p = NaN: must be from 0 to 1"),
        (
            "[activation]\nkind = \"stochastic\"",
            "run.toml: activation.p = (none): kind = \"stochastic\" needs the probability of the second of the pair, 0 to 1",
        ),
        (
            "[activation]\nkind = \"silu\"\np = 0.5",
            "run.toml line 3: activation.p = 0.5: goes with kind = \"stochastic\" only",
        ),
        (
            "[train]\nswitch = { to = \"relu\", alpha = -0.1 }",
            "run.toml line 2: train.switch.alpha = -0.1: must be from 0 to 1",
        ),
        (
            "[activation]\nkind = \"gelu\"\nnegative = [\"relu\", \"silu\"]",
            "run.toml line 3: activation.negative = [\"relu\", \"silu\"]: goes with kind = \"stochastic\" only",
        ),
        (
            "[activation]\nkind = \"relu2\"\npositive = \"silu\"",
            "run.toml line 3: activation.positive = \"silu\": goes with kind = \"stochastic\" only",
        ),
        ("[train]\nl1 = -1e-4", "run.toml line 2: train.l1 = -0.0001: must be 0 or more"),
        ("[train]\nlr = 0.0", "run.toml line 2: train.lr = 0: must be above 0"),
        ("[train]\nlr = inf", "run.toml line 2: train.lr = inf: must be above 0"),
        ("[train]\nsteps = 0", "run.toml line 2: train.steps = 0: must be at least 1"),
        ("[train]\nbeta2 = 1.0", "run.toml line 2: train.beta2 = 1: must be from 0 to below 1"),
        ("[train]\nweight_decay = -1.0", "run.toml line 2: train.weight_decay = -1: must be 0 or more"),
        ("[train]\nmin_lr_ratio = 2.0", "run.toml line 2: train.min_lr_ratio = 2: must be from 0 to 1"),
        ("[train]\nkeep_last = 0", "run.toml line 2: train.keep_last = 0: must be at least 1"),
        (
            "[data]\npaths = [\"x\"]\nval_fraction = 1.0",
            "run.toml line 3: data.val_fraction = 1: must be above 0 and below 1",
        ),
        ("[data]\npaths = []", "data.paths = []: must name at least one file or folder"),
        (
            "[train]\nbatch_tokens = 1000",
            "train.batch_tokens = 1000: must be a multiple of micro_batch * seq_len = 8 * 256 = 2048",
        ),
        ("[train]\nseq_len = 300", "train.seq_len = 300: must be at most model.max_seq_len = 256"),
        (
            "[model]\npreset = \"huge\"",
            "model.preset = \"huge\": must be one of tiny, 5m, 15m, 60m, 125m, 350m, 1.5b, 3b",
        ),
        ("[model]\nn_kv_heads = 3", "model.n_kv_heads = 3: must divide n_heads = 4"),
        ("[model]\nn_heads = 5", "model.n_heads = 5: must divide d_model = 128, or head_dim must be given"),
        ("[model]\nhead_dim = 7", "model.head_dim = 7: must be even: RoPE turns pairs"),
        ("[model]\nn_layers = 0", "model.n_layers = 0: must be 1 to 65535"),
    ] {
        assert_eq!(refused(text), message);
    }
}

#[test]
fn a_missing_file_is_named() {
    let message = TrainConfig::read("/nowhere/run.toml").unwrap_err().to_string();
    assert!(message.starts_with("/nowhere/run.toml: cannot be read: "), "{message}");
}
