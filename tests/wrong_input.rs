//! What comes from outside and is wrong gets an error that names it, exit code 1, and leaves nothing half-written.

mod common;

use common::{Place, SMALL, refuse, said, succeed};
use std::fs;
use std::path::Path;

#[test]
fn data() {
    let place = Place::new();
    let train = |path: &str| {
        let mut command = place.silurian(&["train", path, "--name", "r"]);
        command.args(SMALL);
        command
    };
    refuse(&mut train("missing.txt"), &["missing.txt", "No such file"]);
    place.write("empty.txt", "");
    refuse(&mut train("empty.txt"), &["empty.txt", "empty"]);
    place.write("short.txt", "Too short.");
    refuse(&mut train("short.txt"), &["training", "need at least 33", "seq_len = 32"]);
    place.write("latin1.txt", b"caf\xe9 au lait");
    refuse(&mut train("latin1.txt"), &["latin1.txt", "UTF-8"]);
    place.write("latin1.jsonl", b"{\"text\":\"ok\"}\n{\"text\":\"caf\xe9\"}\n");
    refuse(&mut train("latin1.jsonl"), &["latin1.jsonl line 2", "UTF-8"]);
    for (name, start, words) in [
        ("book.txt.gz", &b"\x1f\x8b\x08\x00"[..], "compressed (gzip), not UTF-8 text: unpack it"),
        ("book.docx", b"PK\x03\x04\xff", "an archive (zip, docx, epub)"),
        ("book.pdf", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", "a PDF"),
        ("notepad.txt", b"\xff\xfeA\x00", "text in UTF-16"),
    ] {
        place.write(name, start);
        refuse(&mut train(name), &[name, words]);
    }
    place.write("field.jsonl", "{\"text\":\"ok\"}\n\n{\"body\":\"no text\"}\n");
    refuse(&mut train("field.jsonl"), &["field.jsonl line 3", "text"]);
    place.write("type.jsonl", "{\"text\":7}\n");
    refuse(&mut train("type.jsonl"), &["type.jsonl line 1", "text"]);
    place.write("syntax.jsonl", "{\"text\":\n");
    refuse(&mut train("syntax.jsonl"), &["syntax.jsonl line 1"]);
    fs::create_dir(place.path("folder")).unwrap();
    refuse(&mut train("folder"), &["folder", ".txt"]);
    refuse(&mut place.silurian(&["train"]), &["no data"]);
    place.write(
        "third.jsonl",
        "\u{feff}{\"text\":\"a mark before the first record\"}\n{\"text\":\"b\"}\n{\"text\" 3}\n",
    );
    refuse(&mut train("third.jsonl"), &["third.jsonl line 3: not JSON: expected `:` at column 9\n"]);
    assert!(!place.path("runs").join("r").exists(), "a run folder was left behind");
}

#[test]
fn configuration() {
    let place = Place::new();
    let most = u64::MAX.to_string();
    let with = |text: &str| {
        place.write("run.toml", text);
        place.silurian(&["train", "text.txt", "--name", "r", "--config", "run.toml"])
    };
    refuse(&mut with("[train]\nstep = 3\n"), &["run.toml", "step", "steps"]);
    refuse(&mut with("[trane]\nsteps = 3\n"), &["run.toml", "trane"]);
    refuse(&mut with("[train]\nsteps = \"three\"\n"), &["run.toml", "steps", "line 2"]);
    refuse(
        &mut with("[activation]\nkind = \"stochastic\"\np = 1.5\n"),
        &["run.toml line 3", "activation.p = 1.5", "0 to 1"],
    );
    refuse(&mut with("[activation]\nkind = \"swish\"\n"), &["run.toml", "swish", "silu"]);
    refuse(&mut with("[train]\nswitch = { to = \"relu\", alpha = -0.1 }\n"), &["run.toml", "alpha", "-0.1"]);
    refuse(&mut with("[model]\nn_heads = 4\nn_kv_heads = 3\n"), &["n_kv_heads", "3", "must divide n_heads = 4"]);
    refuse(&mut with("[model]\nd_model = 100\nn_heads = 3\n"), &["n_heads", "100"]);
    refuse(&mut with("[model]\npreset = \"huge\"\n"), &["huge", "tiny"]);
    refuse(&mut with("[train]\nlr = 0.0\n"), &["run.toml line 2", "train.lr"]);
    refuse(&mut with("[train]\nl1 = -1.0\n"), &["run.toml line 2", "train.l1 = -1"]);
    refuse(&mut with("[train]\nbatch_tokens = 1000\n"), &["train.batch_tokens = 1000", "multiple"]);
    refuse(&mut with("[train]\nseq_len = 100000\n"), &["train.seq_len", "max_seq_len"]);
    let flag = |flags: &[&str]| place.silurian(&[&["train", "text.txt", "--name", "r"], flags].concat());
    refuse(&mut flag(&["--set", "train.setps=3"]), &["--set train.setps=3", "setps"]);
    refuse(
        &mut flag(&["--set", "steps=3"]),
        &["error: --set steps=3: unknown field `steps`", "; did you mean --set train.steps=3?\n"],
    );
    refuse(&mut flag(&["--set", "train.steps"]), &["--set train.steps", "KEY=VALUE"]);
    refuse(&mut flag(&["--set", "train.steps=3\nlr = 5"]), &["steps", "expected usize"]);
    refuse(&mut flag(&["--lr", "-1"]), &["train.lr = -1: must be above 0"]);
    for name in ["", ".", "../r", "/r"] {
        let output = place.train(&["--name", name]).output().unwrap();
        assert!(said(&output).contains("must name a folder below runs; --out takes any folder"), "{}", said(&output));
    }
    for alpha in ["2", "-0.1", "nan", "much"] {
        let output = place.train(&["--alpha", alpha]).output().unwrap();
        assert!(said(&output).contains("'--alpha <X>': expected a share, 0 to 1"), "{}", said(&output));
    }
    refuse(&mut flag(&["--set", "train.precision=fp16"]), &["train.precision", "`fp16`", "`f32` or `bf16`"]);
    refuse(
        &mut flag(&["--set", "train.precision=bf16"]),
        &["error: train.precision = \"bf16\": is for a GPU (--device cuda); on the CPU training is in f32"],
    );
    refuse(&mut flag(&["--set", "train.lr=nan"]), &["error: --set train.lr=nan: train.lr = NaN"]);
    for name in ["--steps", "--seq-len", "--micro-batch", "--batch-tokens", "--seed"] {
        let key = format!("error: train.{} = {most}: must be", &name[2..].replace('-', "_"));
        refuse(&mut flag(&[name, &most]), &[&key]);
        refuse(&mut flag(&[name, &most, "--set", "train.lr=0.1"]), &[&key]);
    }
    refuse(&mut place.silurian(&["inspect", "--preset", "tiny", "--micro-batch", &most]), &["--micro-batch", "2^32"]);
    let output = place.silurian(&["inspect", "runs/r", "--vocab-size", "3"]).output().unwrap();
    assert!(said(&output).contains("cannot be used with '--vocab-size <V>'"), "{}", said(&output));
    for flags in [&["generate", "-m", "runs/r"][..], &["eval", "-m", "runs/r", "text.txt", "--weights", "q8"]] {
        let output = place.silurian(&[flags, &["--kv", "q8"]].concat()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        assert!(said(&output).contains("'q8' for '--kv <FORMAT>': expected f32 or bf16"), "{}", said(&output));
        let output = place.silurian(&[flags, &["--disk-cache", "sometimes"]].concat()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        assert!(said(&output).contains("'sometimes' for '--disk-cache <WHEN>': expected auto, always or never"));
    }
    for flags in [["--seq-len", "5"], ["--micro-batch", "2"], ["--vocab-size", "300"]] {
        let output = place.silurian(&[&["inspect"], &flags[..]].concat()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "inspect {flags:?} of no model: {}", said(&output));
    }
    // Petabytes, which no system gives.
    let large = ["model.d_model=1048576", "model.n_heads=2", "model.n_kv_heads=1", "model.d_ff=1048576"];
    let large = large.iter().flat_map(|size| ["--set", *size]).chain(["--set", "model.n_layers=10000"]);
    refuse(&mut flag(&large.collect::<Vec<_>>()), &["takes about", "GiB of memory", "train.micro_batch"]);
    refuse(&mut flag(&["--config", "none.toml"]), &["none.toml"]);
    // clap's own: exit code 2.
    for (psi, word) in [
        ("stochastic:1.1", "1.1"),
        ("mish", "relu2"),
        ("stochastic:0.5:relu,mish", "mish"),
        ("stochastic:0.5:relu,gelu:tanh", "identity or silu"),
    ] {
        let output = flag(&["--activation", psi]).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(said(&output).contains(word), "{}", said(&output));
    }
    refuse(
        place.silurian(&["inspect", "--preset", "tiny"]).env("KERNELS_SIMD", "avx1024"),
        &["KERNELS_SIMD=avx1024", "portable"],
    );
    assert!(!place.path("runs").join("r").exists(), "a run folder was left behind");
}

#[test]
fn almanac() {
    let place = Place::new();
    let most = u64::MAX.to_string();
    let write = |flags: &[&str]| place.silurian(&[&["almanac"], flags].concat());
    refuse(&mut write(&["--bytes", "0"]), &["--bytes 0: must be 1 to 1073741824"]);
    refuse(&mut write(&["--bytes", &most]), &["--bytes 18446744073709551615: must be"]);
    assert!(!place.path("almanac").exists(), "a folder was left behind");
    // A file where the folder should be, and one above it.
    refuse(&mut write(&["--out", "text.txt"]), &["text.txt: cannot be created: "]);
    refuse(&mut write(&["--out", "text.txt/deep"]), &["text.txt/deep: cannot be created: Not a directory"]);
    // Any of its files is kept, and then none is written.
    fs::create_dir(place.path("mine")).unwrap();
    for file in ["almanac.txt", "questions.jsonl", "questions-seen.jsonl", "questions-cloze.jsonl"] {
        let path = place.write(&format!("mine/{file}"), "mine");
        refuse(&mut write(&["--out", "mine"]), &[&format!("mine/{file}: is there already"), "--out"]);
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
        assert_eq!(fs::read_dir(place.path("mine")).unwrap().count(), 1);
        fs::remove_file(path).unwrap();
    }
}

#[test]
fn quickstart() {
    let place = Place::new();
    let most = u64::MAX.to_string();
    let start = |flags: &[&str]| place.silurian(&[&["quickstart", "--steps", "1"], flags].concat());
    refuse(&mut place.silurian(&["quickstart", "--steps", "0"]), &["train.steps = 0: must be at least 1"]);
    refuse(&mut place.silurian(&["quickstart", "--steps", &most]), &["train.steps = 18446744073709551615: must be"]);
    refuse(&mut start(&["--seed", &most]), &["train.seed = 18446744073709551615: must be below 2^63"]);
    refuse(&mut start(&["--out", "text.txt"]), &["text.txt: "]);
    refuse(&mut start(&["--out", "text.txt/run"]), &["text.txt", "cannot be created: "]);
    fs::create_dir(place.path("taken")).unwrap();
    refuse(&mut start(&["--out", "taken"]), &["taken: "]);
    for name in ["runs", "almanac-0"] {
        assert!(!place.path(name).exists(), "{name} was left behind");
    }
    // A file where the runs should be.
    place.write("runs", "");
    refuse(&mut start(&[]), &["runs", "cannot be created: "]);
}

/// A name that TOML cannot hold.
#[cfg(target_os = "linux")] // elsewhere file systems refuse such names
#[test]
fn names_that_are_not_utf8() {
    use std::os::unix::ffi::OsStrExt;
    let place = Place::new();
    let name = std::ffi::OsStr::from_bytes(b"caf\xe9.txt");
    fs::copy(place.path("text.txt"), place.path("").join(name)).unwrap();
    refuse(place.silurian(&["train", "--name", "r"]).arg(name), &["data.paths = caf", "not UTF-8"]);
    refuse(
        place.silurian(&["train", "--name", "r", "--set", "train.steps=3"]).arg(name),
        &["data.paths = caf", "not UTF-8"],
    );
    assert!(!place.path("runs").exists(), "a run folder was left behind");
}

/// A process may have few threads, and 4096 is more than a limit on the address space leaves room for.
#[cfg(target_os = "linux")]
#[test]
fn threads_that_the_system_refuses() {
    let place = Place::new();
    let script = format!("ulimit -v 2000000; exec {} inspect -t 4096", env!("CARGO_BIN_EXE_silurian"));
    let mut command = std::process::Command::new("sh");
    refuse(command.args(["-c", &script]), &["--threads 4096: the system refuses them"]);
    let output = place.silurian(&["inspect", "-t", "60000"]).output().unwrap();
    assert!(said(&output).contains("60000 is not in 1..=4096"), "{}", said(&output));
}

#[test]
fn benchmarks() {
    let place = Place::new();
    let bench = |flags: &[&str]| place.silurian(&[&["bench"], flags].concat());
    // clap's own: exit code 2.
    for (flags, words) in [
        (&["gemm", "--shapes", "64x64"][..], "expected MxNxK"),
        (&["gemm", "--shapes", "64x0x64"], "expected MxNxK"),
        (&["gemm", "--levels", "avx1024"], "not a level; this CPU has scalar, portable"),
        (&["sparse", "--zeros", "50,101"], "expected a percentage, 0 to 100"),
        (&["sparse", "--weights", "q5"], "expected f32, bf16, bf16-packed, q8 or q4"),
        (&["sparse", "--activations", "f32"], "expected exact or q8"),
        (&["decode", "--models", "huge"], "expected 1.3b, 8b or a preset: tiny, "),
        (&["decode", "-m", "runs/m", "--zeros", "50"], "cannot be used with"),
        (&["sparse", "--batch-of", "similar"], "--batch <N,...>"),
        (&["sparse", "--batch", "2", "--batch-of", "twins"], "similar, independent"),
        (&["prefill", "-m", "runs/m"], "--text <FILE>"),
        (&["prefill", "-m", "runs/m", "--text", "text.txt", "--zeros", "50"], "cannot be used with"),
        (&["prefill", "--prefill", "fast"], "expected exact, bf16 or q8"),
        (&["prefill", "--models", "huge"], "expected 1.3b, 8b or a preset: tiny, "),
        (&["train", "--models", "XL"], "expected S, M, L, 15m, "),
        (&["train", "--seq-len", "5"], "--preset"),
        (&["-r", "0"], "0 is not in 1..=1000"),
        (&["-o", "xml"], "md, csv, json"),
        (&["gpu"], "unrecognized subcommand"),
    ] {
        let output = bench(flags).output().unwrap();
        let said = said(&output);
        assert!(output.status.code() == Some(2) && said.contains(words), "{flags:?}: {said}");
    }
    refuse(&mut bench(&["sparse", "--d-ff", "0"]), &["--d-ff 0: must be 1 to 1048576"]);
    refuse(&mut bench(&["sparse", "--layers", "0"]), &["--layers 0"]);
    refuse(&mut bench(&["decode", "-m", "nowhere"]), &["nowhere"]);
    refuse(
        &mut bench(&["prefill", "--models", "tiny", "--tokens", "0"]),
        &["--tokens 0: must be 2 to 256, the context of tiny"],
    );
    refuse(
        &mut bench(&["prefill", "--models", "tiny", "--prefill", "q8"]),
        &["--prefill q8: for q8 and q4 weights alone, and --weights has none"],
    );
    let run = place.trained("m");
    let text = |file: &str, flags: &[&str]| {
        bench(&[&["prefill", "-m", run.to_str().unwrap(), "--text", file], flags].concat())
    };
    refuse(&mut text("nowhere.txt", &[]), &["nowhere.txt", "cannot be read as text", "No such file"]);
    refuse(&mut text("text.txt", &["--tokens", "33"]), &["--tokens 33: must be 2 to 32, the context of "]);
    place.write("word.txt", "word");
    refuse(&mut text("word.txt", &["--tokens", "5"]), &["--tokens 5: word.txt has 4"]);
    refuse(&mut bench(&["train", "--preset", "huge"]), &["--preset huge", "tiny"]);
    let taken = place.write("mine.html", "<p>mine</p>");
    refuse(
        &mut bench(&["sparse", "--plot", taken.to_str().unwrap()]),
        &["mine.html: is there already and is not by `silurian bench`"],
    );
    refuse(&mut bench(&["decode", "--plot", "nowhere/page.html"]), &["nowhere is not a folder"]);
    refuse(&mut bench(&["train", "--preset", "tiny", "--seq-len", "257"]), &["--seq-len 257", "256"]);
    refuse(&mut bench(&["train", "--preset", "tiny", "--micro-batch", "0"]), &["--micro-batch 0"]);
    refuse(bench(&["gemm"]).env("KERNELS_SIMD", "avx1024"), &["KERNELS_SIMD=avx1024", "portable"]);
    // What a GPU alone has.
    refuse(&mut bench(&["kernels"]), &["bench kernels, ffn and all are for --device cuda"]);
    refuse(&mut bench(&["--budget", "5"]), &["--budget is for --device cuda"]);
    refuse(&mut bench(&["train", "--preset", "tiny", "--precision", "bf16"]), &["--precision bf16: for --device cuda"]);
    refuse(&mut place.silurian(&["check", "--device", "cpu"]), &["--device cpu: checks compare a GPU with the CPU"]);
    refuse(&mut place.silurian(&["check", "no such kernel"]), &["no check has no such kernel in its name"]);
}

/// Terabytes, which are refused in a sentence before anything is measured.
#[cfg(target_os = "linux")] // which says how much there is
#[test]
fn benchmarks_beyond_the_memory() {
    let place = Place::new();
    let beyond = |flags: &[&str], what: &str| {
        let mut command = place.silurian(&[&["bench"], flags].concat());
        refuse(&mut command, &[what, "takes ", "TiB of memory, and ", " are available here"]);
    };
    beyond(&["gemm", "--shapes", "2x2x2,1000000x1000000x2"], "bench gemm of NN 2 x 2 x 2, NN 1000000 x 1000000 x 2");
    beyond(&["sparse", "--d-model", "1048576", "--d-ff", "1048576"], "bench sparse: 1 FFNs");
    beyond(&["train", "--preset", "3b", "--micro-batch", "100000", "--seq-len", "8192"], "bench train: model 3b");
}

#[test]
fn sampling() {
    let place = Place::new();
    let run = place.trained("m");
    let generate =
        |flags: &[&str]| place.silurian(&[&["generate", "-m", run.to_str().unwrap(), "-p", "In "], flags].concat());
    refuse(&mut generate(&["--temp", "-1"]), &["temperature = -1"]);
    refuse(&mut generate(&["--temp=nan"]), &["temperature = NaN"]);
    refuse(&mut generate(&["--top-p=0"]), &["top_p = 0"]);
    refuse(&mut generate(&["--top-p=1.5"]), &["top_p = 1.5"]);
    refuse(&mut generate(&["--min-p=2"]), &["min_p = 2"]);
    refuse(&mut generate(&["--context", "0"]), &["context = 0"]);
    refuse(&mut generate(&["--ffn", "sparse", "--activation", "silu"]), &["sparse", "RELU", "SILU"]);
    // The context is the 32 positions of training.
    let long = "x".repeat(300);
    let model = run.to_str().unwrap();
    let output = place.silurian(&["generate", "-m", model, "-p", &long, "-n", "2"]).output().unwrap();
    assert!(output.stdout.is_empty(), "a prompt that is refused was printed: {}", said(&output));
    refuse(&mut place.silurian(&["generate", "-m", model, "-p", &long]), &["--prompt: 300 tokens", "context of 32"]);
    let window = ["eval", "-m", model, "text.txt", "--tokens", "31", "--seq-len", "32"];
    refuse(&mut place.silurian(&window), &["--tokens 31: must be at least 32, the tokens of a window"]);
    refuse(&mut place.silurian(&["generate", "-m", model, "-p", ""]), &["prompt is empty"]);
    // The same from standard input.
    let piped = |contents: &[u8]| fs::File::open(place.write("prompt.txt", contents)).unwrap();
    let from_input = || place.silurian(&["generate", "-m", model, "-p", "-"]);
    refuse(from_input().stdin(piped(b"")), &["prompt is empty"]);
    refuse(from_input().stdin(piped(b"caf\xe9")), &["--prompt -: standard input", "UTF-8"]);
    refuse(from_input().stdin(piped(long.as_bytes())), &["300 tokens", "context of 32"]);
    refuse(&mut place.silurian(&["generate", "-m", "nowhere"]), &["nowhere"]);
    refuse(&mut place.silurian(&["generate", "-m", "runs"]), &["runs", "config.json", "; did you mean runs/m?"]);
    refuse(&mut place.silurian(&["generate", "-m", "text.txt"]), &["text.txt: is a file; a model is a folder"]);
    fs::create_dir_all(place.path("young/checkpoints")).unwrap();
    refuse(&mut place.silurian(&["inspect", "young"]), &["young: a run that has no checkpoint yet"]);
    let full = succeed(&mut generate(&["--max-tokens", "1000"]));
    assert!(said(&full).contains("the context is full"), "{}", said(&full));
}

/// A model's folder, changed by `change`, is refused in these words.
fn refuse_model(place: &Place, run: &Path, change: impl FnOnce(&Path), words: &[&str]) {
    let folder = place.path("changed");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir(&folder).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(run.join("checkpoints/step-20").join(file), folder.join(file)).unwrap();
    }
    change(&folder);
    refuse(&mut place.silurian(&["generate", "-m", folder.to_str().unwrap(), "-p", "In "]), words);
}

#[test]
fn models() {
    let place = Place::new();
    let run = place.trained("m");
    let weights = |folder: &Path| folder.join("model.safetensors");
    let edit_config = |from: &'static str, to: &'static str| {
        move |folder: &Path| {
            let text = fs::read_to_string(folder.join("config.json")).unwrap();
            assert!(text.contains(from), "{text}");
            fs::write(folder.join("config.json"), text.replace(from, to)).unwrap();
        }
    };
    refuse_model(&place, &run, |f| truncate(&weights(f), 0.5), &["model.safetensors"]);
    refuse_model(&place, &run, |f| truncate(&weights(f), 0.0), &["model.safetensors"]);
    refuse_model(
        &place,
        &run,
        |f| {
            let mut bytes = fs::read(weights(f)).unwrap();
            bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
            fs::write(weights(f), bytes).unwrap();
        },
        &["model.safetensors", "header"],
    );
    refuse_model(
        &place,
        &run,
        |f| edit_tensors(&weights(f), |t| t.retain(|(name, ..)| name != "model.layers.1.mlp.gate_proj.weight")),
        &["model.safetensors", "missing", "model.layers.1.mlp.gate_proj.weight"],
    );
    refuse_model(
        &place,
        &run,
        |f| edit_tensors(&weights(f), |t| t.push(("model.layers.1.mlp.bias".to_string(), vec![1], vec![0; 4]))),
        &["model.safetensors", "unexpected", "model.layers.1.mlp.bias"],
    );
    refuse_model(
        &place,
        &run,
        |f| {
            edit_tensors(&weights(f), |t| {
                for (name, shape, _) in t {
                    if name == "model.layers.0.mlp.up_proj.weight" {
                        shape.reverse();
                    }
                }
            })
        },
        &["model.layers.0.mlp.up_proj.weight", "[32, 64]", "[64, 32]"],
    );
    refuse_model(
        &place,
        &run,
        edit_config("\"hidden_act\": \"relu\"", "\"hidden_act\": \"gelu_new\""),
        &["config.json", "hidden_act", "gelu_new", "relu", "silu"],
    );
    refuse_model(&place, &run, edit_config("\"hidden_size\": 32", "\"hidden_size\": 33"), &["config.json"]);
    refuse_model(&place, &run, |f| fs::write(f.join("config.json"), "{").unwrap(), &["config.json"]);
    refuse_model(&place, &run, |f| fs::remove_file(weights(f)).unwrap(), &["model.safetensors"]);
}

fn truncate(path: &Path, share: f64) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..(bytes.len() as f64 * share) as usize]).unwrap();
}

/// Rewrites a safetensors file with its tensors (name, shape, bytes of f32) changed.
fn edit_tensors(path: &Path, change: impl FnOnce(&mut Vec<(String, Vec<usize>, Vec<u8>)>)) {
    let bytes = fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<_> =
        file.tensors().into_iter().map(|(name, t)| (name, t.shape().to_vec(), t.data().to_vec())).collect();
    change(&mut tensors);
    let views = tensors.iter().map(|(name, shape, data)| {
        (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), data).unwrap())
    });
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn run_folders() {
    let place = Place::new();
    let run = place.trained("m");
    let before = fs::read(run.join("metrics.jsonl")).unwrap();
    refuse(&mut place.train(&["--name", "m"]), &["runs/m", "exists"]);
    refuse(&mut place.silurian(&["train", "--resume", "runs/none"]), &["runs/none", "config.toml"]);
    for near in ["runs", "runs/m/checkpoints/step-20"] {
        refuse(
            &mut place.silurian(&["train", "--resume", near]),
            &[near, "no run to resume", "; did you mean runs/m?"],
        );
    }
    let resume = |flags: &[&str]| place.silurian(&[&["train", "--resume", "runs/m"], flags].concat());
    // Another error's words once, not twice.
    let output = place.train(&["--name", "n", "--set", "model.from=nowhere"]).output().unwrap();
    assert_eq!(said(&output).matches("nowhere").count(), 1, "{}", said(&output));
    refuse(&mut resume(&["--lr", "0.5"]), &["runs/m", "train.lr", "0.002", "0.5"]);
    refuse(&mut resume(&["--steps", "99", "--set", "train.beta1=0.5"]), &["train.steps", "20", "99", "train.beta1"]);
    let text = fs::read_to_string(place.path("text.txt")).unwrap();
    place.write("text.txt", text.replace("born", "BORN"));
    refuse(&mut resume(&[]), &["runs/m", "data have changed"]);
    place.write("text.txt", text);
    assert_eq!(before, fs::read(run.join("metrics.jsonl")).unwrap(), "metrics.jsonl was touched");
    let output = succeed(&mut resume(&["--set", "train.keep_last=1"]));
    assert!(said(&output).contains("after step 20, the last one: there is nothing left to train"), "{}", said(&output));
    // A run that lies among its data is no text of theirs, and does not change them.
    fs::create_dir(place.path("notes")).unwrap();
    fs::copy(place.path("text.txt"), place.path("notes/text.txt")).unwrap();
    let mut command = place.silurian(&["train", "notes", "--out", "notes/run", "--steps", "3"]);
    succeed(command.args(SMALL));
    succeed(&mut place.silurian(&["train", "--resume", "notes/run"]));
    // More steps than the run has.
    let state = run.join("checkpoints/step-20/state.json");
    let text = fs::read_to_string(&state).unwrap().replace("\"steps_done\": 20", "\"steps_done\": 21");
    fs::write(&state, text).unwrap();
    let output = succeed(&mut resume(&[]));
    assert!(said(&output).contains("steps_done = 21, of 20 steps; skipped"), "{}", said(&output));
}

#[test]
fn reports() {
    let place = Place::new();
    let run = place.trained("m");
    let report = |arguments: &[&str]| place.silurian(&[&["report"], arguments].concat());
    refuse(&mut report(&["runs/none"]), &["runs/none", "there is no such folder"]);
    refuse(&mut report(&["text.txt"]), &["text.txt", "not a run: not a folder"]);
    refuse(&mut report(&["runs"]), &["runs", "not a run", "config.toml", "; did you mean runs/m?"]);
    refuse(&mut report(&["runs/m", "./runs/m"]), &["./runs/m", "named twice"]);
    refuse(&mut report(&["runs/m", "-o", "text.txt"]), &["text.txt", "not by `silurian report`", "choose another"]);
    refuse(&mut report(&["runs/m", "-o", "runs"]), &["runs", "not by `silurian report`"]);
    refuse(&mut report(&["runs/m", "-o", "none/r.html"]), &["error: none/r.html: none is not a folder"]);
    assert!(fs::read_to_string(place.path("text.txt")).unwrap().contains("born"), "text.txt was touched");
    // Begun, but no step is done.
    fs::create_dir_all(place.path("runs/new")).unwrap();
    fs::copy(run.join("config.toml"), place.path("runs/new/config.toml")).unwrap();
    refuse(&mut report(&["runs/new"]), &["runs/new", "no metrics yet"]);
    place.write("runs/new/metrics.jsonl", "{\"step\":0,\"tok");
    refuse(&mut report(&["runs/new"]), &["runs/new", "no metrics yet"]);
    // Broken, each part of it.
    let records = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    place.write("runs/new/metrics.jsonl", records.replacen("\"loss\"", "\"lost\"", 1));
    refuse(&mut report(&["runs/new"]), &["runs/new/metrics.jsonl line 1", "lost"]);
    place.write("runs/new/metrics.jsonl", records);
    for (file, contents, words) in [
        ("samples.jsonl", "{}\n", ["samples.jsonl line 1", "steps_done"]),
        ("sessions.jsonl", "[1]\n", ["sessions.jsonl line 1", "not a record"]),
        ("results.json", "{\"question\": 3}", ["results.json", "`question`"]),
        ("config.toml", "[trane]\n", ["config.toml", "trane"]),
    ] {
        let path = place.write(&format!("runs/new/{file}"), contents);
        refuse(&mut report(&["runs/new"]), &words);
        if file != "config.toml" {
            fs::remove_file(path).unwrap();
        }
    }
    assert!(!place.path("runs/new/report.html").exists(), "a report was left behind");
    let output = report(&[]).output().unwrap();
    assert!(output.status.code() == Some(2) && said(&output).contains("<RUN>"), "{}", said(&output));
}

#[test]
fn questions_and_ranks() {
    let place = Place::new();
    let run = place.trained("m");
    let run = run.to_str().unwrap();
    let good = "{\"prompt\":\"In \",\"answers\":[\"a\"]}\n";
    place.write("q.jsonl", good);
    let ask = |file: &str, flags: &[&str]| place.silurian(&[&["eval", "qa", "-m", run, file], flags].concat());
    succeed(&mut ask("q.jsonl", &[]));
    refuse(&mut ask("missing.jsonl", &[]), &["missing.jsonl", "cannot be read", "No such file"]);
    place.write("empty.jsonl", "\n");
    refuse(&mut ask("empty.jsonl", &[]), &["empty.jsonl", "holds no question", "{\"prompt\": "]);
    place.write("bad.jsonl", format!("{good}{{\"prompt\":\"In \",\"answers\":[]}}\n"));
    refuse(&mut ask("bad.jsonl", &[]), &["bad.jsonl line 2: field \"answers\" is empty"]);
    place.write("long.jsonl", format!("{good}{}", good.replace("In ", &"x".repeat(40))));
    refuse(&mut ask("long.jsonl", &[]), &["question 2", "40 tokens do not fit in a context of 32"]);
    place.write("ives.jsonl", good.replace("\"a\"", "\"St. Ives\""));
    refuse(&mut ask("ives.jsonl", &[]), &["question 1", "\"St. Ives\" can never be given", "until = line"]);
    succeed(&mut ask("ives.jsonl", &["--until", "line"]));
    refuse(&mut ask("q.jsonl", &["-n", "5", "--temp", "0"]), &["-n: --temp 0 and RELU draw nothing"]);
    refuse(&mut ask("q.jsonl", &["-n", "5", "--temp=-1"]), &["temperature = -1"]);
    refuse(&mut ask("q.jsonl", &["--activation", "stochastic:0.5"]), &["--activation StochA(0.5)", "-n 20"]);
    refuse(&mut ask("q.jsonl", &["--rank-under", "stochastic:0.5"]), &["--rank-under StochA(0.5)", "draws nothing"]);
    refuse(&mut ask("q.jsonl", &["--show", "1", "-o", "csv"]), &["--show", "-o json"]);
    refuse(&mut place.silurian(&["eval", "qa", "-m", "nowhere", "q.jsonl"]), &["nowhere"]);
    // A word too late: a file by that name is meant. One that is there is evaluated.
    let late = ["eval", "-m", run, "qa", "q.jsonl"];
    refuse(&mut place.silurian(&late), &["silurian eval qa q.jsonl -m"]);
    place.write("qa", "x".repeat(100));
    succeed(&mut place.silurian(&["eval", "-m", run, "./qa", "--seq-len", "32"]));

    let generate = |flags: &[&str]| place.silurian(&[&["generate", "-m", run, "-p", "In "], flags].concat());
    refuse(
        &mut generate(&["--sparse-prompt", "--activation", "silu"]),
        &["--sparse-prompt: SILU leaves no neuron out"],
    );
    refuse(&mut generate(&["--prefill", "q8"]), &["prefill", "exact or bf16 with f32 weights"]);
    refuse(&mut generate(&["--rank"]), &["--rank: one sample needs no rank", "-n 20"]);
    refuse(&mut generate(&["--rank", "-n", "5", "--temp", "0"]), &["--rank: --temp 0 and RELU draw nothing"]);
    let draws = ["--rank", "-n", "5", "--rank-under", "stochastic:0.5"];
    refuse(&mut generate(&draws), &["--rank-under StochA(0.5): must be an activation that draws nothing"]);
    // clap's own: exit code 2.
    for (mut command, words) in [
        (ask("q.jsonl", &["-n", "0"]), "0 is not in 1..="),
        (ask("q.jsonl", &["--temp", "0.5"]), "--samples <N>"),
        (ask("q.jsonl", &["--activation", "swish"]), "stochastic:P"),
        (ask("q.jsonl", &["-n", "2", "--ttr-budget", "0"]), "a number of words, 1 or more"),
        (ask("q.jsonl", &["--max-tokens", "0"]), "0 is not in 1.."),
        (generate(&["-n", "5", "--rank-under", "relu"]), "--rank"),
        (generate(&["--ttr-budget", "few"]), "a number of words, 1 or more"),
        (place.silurian(&["eval", "-m", run]), "<PATH>..."),
        (place.silurian(&["eval", "-m", run, "q.jsonl", "--prefill", "bf16"]), "--weights <FORMAT>"),
        (generate(&["--prefill", "fast"]), "expected exact, bf16 or q8"),
    ] {
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{command:?}: {}", said(&output));
        assert!(said(&output).contains(words), "{command:?}: does not say {words:?}: {}", said(&output));
    }
    // Another vocabulary than bytes.
    let config = model::Config { vocab_size: 300, ..model::preset("tiny", 300).unwrap() };
    let weights = model::Weights::init(&config, 1);
    let folder = place.path("words");
    fs::create_dir(&folder).unwrap();
    model::hf::save(&folder, &weights, &model::hf::Meta::new(model::Psi::Relu)).unwrap();
    let words = folder.to_str().unwrap();
    refuse(&mut place.silurian(&["eval", "qa", "-m", words, "q.jsonl"]), &["vocab_size = 300", "only byte models"]);
}
