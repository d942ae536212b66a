//! The commands as a user runs them: what they print, and what they leave behind.

mod common;

use common::{Place, final_bits, said, succeed};
use std::fs;

#[test]
fn the_quick_start_trains_switches_answers_and_decodes() {
    let place = Place::new();
    for run in ["my runs/quickstart", "my runs/again"] {
        let text = said(&succeed(&mut place.silurian(&["quickstart", "--steps", "10", "--out", run])));
        for words in [
            "almanac of 152 facts about an invented world: my runs/almanac-0/almanac.txt",
            "schedule  steps 0 to 8: StochA(0.5); step 9: RELU (Swi+FT, alpha = 0.1)",
            "switch    before step 9: from ",
            " under StochA(0.5), ",
            " under RELU; zeros ",
            "by layer",
            "asked in the text too",
            "held out: only stated there",
            " by the most frequent answer of each kind",
            "  | Question: ",
            "The model writes (RELU, sparse FFN, temperature 0.7):\n  | In ",
            "both write the same, bit for bit",
            "\n  dense ",
            "\n  sparse ",
            "\n  ratio ",
            "\n  ceiling ",
            &format!("\nReport    {run}/report.html\n"),
            &format!("silurian generate -m '{run}' "),
        ] {
            assert!(text.contains(words), "the quick start does not say {words:?}:\n{text}");
        }
        for file in ["metrics.jsonl", "results.json", "report.html", "checkpoints/step-10/model.safetensors"] {
            assert!(place.path(run).join(file).exists(), "{run}/{file}");
        }
    }
    // The second one found the text of the first.
    let mut left: Vec<_> = fs::read_dir(place.path("my runs")).unwrap().map(|f| f.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["again", "almanac-0", "quickstart"]);

    // What it did can be done by hand.
    succeed(&mut place.silurian(&["almanac", "--out", "by hand"]));
    for file in ["almanac.txt", "questions.jsonl", "questions-seen.jsonl", "questions-cloze.jsonl"] {
        let [quick, by_hand] = ["my runs/almanac-0", "by hand"].map(|f| fs::read(place.path(f).join(file)).unwrap());
        assert!(!quick.is_empty() && quick == by_hand, "{file}");
    }
    fs::remove_dir_all(place.path("my runs/again")).unwrap();
    succeed(&mut place.silurian(&["train", "--config", "my runs/quickstart/config.toml", "--out", "my runs/again"]));
    assert!(final_bits(&place.path("my runs/again"), 10) == final_bits(&place.path("my runs/quickstart"), 10));

    // A text of another version is left alone.
    fs::write(place.path("my runs/almanac-0/questions.jsonl"), "{}").unwrap();
    let text = said(&succeed(&mut place.silurian(&["quickstart", "--steps", "1", "--out", "my runs/third"])));
    assert!(text.contains("my runs/almanac-0-2/almanac.txt"), "{text}");
    assert_eq!(fs::read(place.path("my runs/almanac-0/questions.jsonl")).unwrap(), b"{}");
}

#[test]
fn the_almanac_is_of_its_seed_and_size() {
    let place = Place::new();
    let text = said(&succeed(&mut place.silurian(&["almanac", "--seed", "3", "--bytes", "5000", "--out", "a/b"])));
    assert!(text.contains("152 facts") && text.contains("a/b/questions.jsonl: 76 questions"), "{text}");
    assert_eq!(fs::read_to_string(place.path("a/b/almanac.txt")).unwrap(), train::almanac::Almanac::new(3).text(5000));
    let questions = train::questions::read(&place.path("a/b/questions.jsonl")).unwrap();
    assert_eq!(questions, train::almanac::Almanac::new(3).questions().held_out);
}

#[test]
fn train_tells_the_schedule_the_switch_and_the_zeros() {
    let place = Place::new();
    let flags = [
        "--name",
        "m",
        "--steps",
        "40",
        "--activation",
        "stochastic:0.3",
        "--alpha",
        "0.5",
        "--set",
        "train.eval_every=10",
    ];
    let text = said(&succeed(&mut place.train(&flags)));
    assert!(text.contains("steps 0 to 19: StochA(0.3); steps 20 to 39: RELU (Swi+FT, alpha = 0.5)"), "{text}");
    assert!(text.contains("switch    before step 20: from ") && text.contains("after 20 steps under RELU"), "{text}");
    let evaluations =
        text.lines().filter(|l| l.starts_with("eval ") && l.contains("zeros") && l.contains("(by layer ")).count();
    assert!(evaluations >= 4, "{text}");
    let records = fs::read_to_string(place.path("runs/m/metrics.jsonl")).unwrap();
    let records: Vec<serde_json::Value> = records.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(records.len(), 40);
    assert!(records[0]["loss"].as_f64() > records[39]["loss"].as_f64(), "the loss did not fall");
    assert_eq!(records[39]["fresh_blocks"], 0, "a step in steady state took memory from the system");
}

#[test]
fn generate_is_the_same_for_any_threads_and_ffn_and_another_for_another_seed() {
    let place = Place::new();
    let run = place.trained("m");
    let model = run.to_str().unwrap();
    let write = |flags: &[&str]| {
        let flags = [&["generate", "-m", model, "-p", "In ", "--max-tokens", "60"], flags].concat();
        let output = succeed(&mut place.silurian(&flags));
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (text, report) = write(&["-t", "1"]);
    assert!(text.starts_with("In ") && report.contains("FFN auto: ") && report.contains("% zeros"), "{report}");
    assert_eq!(text, write(&["-t", "2"]).0);
    let (sparse, report) = write(&["--ffn", "sparse"]);
    assert!(text == sparse && report.contains("FFN sparse"), "{report}");
    let (json, _) = write(&["-o", "json", "--temp", "0.8"]);
    assert!(json.contains("\"temperature\": 0.8,"), "{json}");
    let (filtered, report) = write(&["--ffn", "filtered"]);
    assert!(
        filtered == sparse && report.contains("FFN filtered") && report.contains("of the gate's rows read"),
        "{report}"
    );
    let (dense, report) = write(&["--ffn", "dense"]);
    assert!(text == dense && report.contains("FFN dense"), "{report}");
    let (bf16, report) = write(&["--weights", "bf16", "-t", "1"]);
    assert!(report.contains("bf16 weights"), "{report}");
    assert_eq!(bf16, write(&["--weights", "bf16", "-t", "2", "--ffn", "dense"]).0);
    let (q8, report) = write(&["--weights", "q8", "-t", "1"]);
    assert!(report.contains("q8 weights, FFN"), "{report}");
    assert_eq!(q8, write(&["--weights", "q8", "-t", "2", "--ffn", "dense"]).0);
    let rounded = ["--weights", "q8", "--activations", "q8", "--ffn"];
    let (q8, report) = write(&[&rounded[..], &["sparse"]].concat());
    assert!(report.contains("q8 weights, activations q8 ("), "{report}");
    assert_eq!(q8, write(&[&rounded[..], &["dense", "-t", "1"]].concat()).0);
    let prefill = ["--weights", "bf16", "--prefill", "bf16", "-t"];
    let (bf16, report) = write(&[&prefill[..], &["1"]].concat());
    assert!(report.contains("bf16 weights, prefill bf16 ("), "{report}");
    assert_eq!(bf16, write(&[&prefill[..], &["2"]].concat()).0);
    assert_ne!(text, write(&["--seed", "1"]).0);
    let piped = ["generate", "-m", model, "-p", "-", "--max-tokens", "60"];
    let prompt = std::fs::File::open(place.write("prompt.txt", "In ")).unwrap();
    assert_eq!(text.as_bytes(), succeed(place.silurian(&piped).stdin(prompt)).stdout);
    // Samples differ, and each can be had again, under a stochastic activation too.
    let stochastic = ["--activation", "stochastic:0.7", "-n", "3"];
    let (samples, _) = write(&stochastic);
    assert_eq!(samples, write(&stochastic).0);
    let texts: Vec<&str> = samples.split("--- sample").skip(1).map(|s| s.split_once('\n').unwrap().1.trim()).collect();
    assert!(texts.len() == 3 && texts[1] != texts[0] && texts[2] != texts[1], "{samples}");
    // Decoded at once, 16 and 3 of them, each is the one that it is among fewer; the first is the one alone.
    for more in
        [&["--activation", "stochastic:0.7"][..], &["--weights", "q8"], &["--weights", "bf16", "--ffn", "dense"]]
    {
        let of = |n: &str| {
            let (samples, report) = write(&[more, &["-n", n]].concat());
            let texts =
                samples.split("--- sample ").map(|s| s.split_once('\n').map_or(s, |(_, text)| text).trim().to_string());
            (texts.skip(1).collect::<Vec<_>>(), samples, report)
        };
        let (all, _, report) = of("19");
        assert!(report.contains(" tokens/s, 16 at once") && report.contains(" tokens/s, 3 at once"), "{report}");
        assert!(report.contains(" % of the neurons used by any"), "{report}");
        let (few, _, _) = of("2");
        let (_, one, report) = of("1");
        assert!(!report.contains("at once"), "{report}");
        assert_eq!((all.len(), &all[..2], all[0].as_str()), (19, &few[..], one.trim()), "{more:?}");
    }
}

#[test]
fn weights_are_kept_on_disk_for_the_next_start() {
    let place = Place::new();
    let run = place.trained("m");
    let model = run.to_str().unwrap();
    let generate = |cache: &[&str]| {
        let flags = ["generate", "-m", model, "-p", "In ", "--max-tokens", "20", "--weights", "q8"];
        let output = succeed(&mut place.silurian(&[&flags[..], cache].concat()));
        (output.stdout, String::from_utf8(output.stderr).unwrap())
    };
    let resident = run.join("checkpoints/step-20/resident");
    let (text, report) = generate(&[]);
    assert!(!report.contains("resident") && !resident.exists(), "auto, of a small model: {report}");
    let (first, report) = generate(&["--disk-cache", "always"]);
    let note = "note: runs/m/checkpoints/step-20/resident/q8.bin: 2 MiB written in ";
    assert!(first == text && report.contains(&note.replace("runs/m", model)), "{report}");
    let (second, report) = generate(&["--disk-cache", "always"]);
    assert!(second == text && report.contains(", copied from disk, FFN ") && !report.contains("note: "), "{report}");
    let file = resident.join("q8.bin");
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, &bytes).unwrap();
    let (never, report) = generate(&["--disk-cache", "never"]);
    assert!(never == text && !report.contains("note: "), "{report}");
    assert!(fs::read(&file).unwrap() == bytes, "never writes");
    let (again, report) = generate(&["--disk-cache", "always"]);
    assert!(
        again == text && report.contains("q8.bin: damaged in bytes 2097152 to ") && report.contains(" written in ")
    );
    // A disk that is full after the first MiB.
    #[cfg(unix)]
    {
        fs::remove_dir_all(&resident).unwrap();
        let script = format!(
            "trap '' XFSZ; ulimit -f 2048; exec {} generate -m {model} -p 'In ' --max-tokens 20 --weights q8 --disk-cache always",
            env!("CARGO_BIN_EXE_silurian")
        );
        let output = succeed(std::process::Command::new("sh").args(["-c", &script]));
        let report = said(&output);
        assert!(output.stdout == text && report.contains("q8.bin: not written: File too large"), "{report}");
        assert_eq!(fs::read_dir(&resident).unwrap().count(), 0, "a part of a file was left behind");
    }
    let text = said(&succeed(&mut place.silurian(&[
        "eval",
        "-m",
        model,
        "text.txt",
        "--weights",
        "q4",
        "--disk-cache",
        "always",
    ])));
    assert!(text.contains("q4.bin: 2 MiB written in "), "{text}");
}

#[test]
fn eval_and_inspect() {
    let place = Place::new();
    let run = place.trained("m");
    let model = run.to_str().unwrap();
    let text = said(&succeed(&mut place.silurian(&["eval", "-m", model, "text.txt", "--seq-len", "32"])));
    assert!(
        text.contains("under RELU: loss ") && text.contains("perplexity") && text.contains("zeros under RELU"),
        "{text}"
    );
    let text =
        said(&succeed(&mut place.silurian(&["eval", "-m", model, "text.txt", "--activation", "stochastic:0.5"])));
    assert!(text.contains("under StochA(0.5): loss "), "{text}");
    let text = said(&succeed(&mut place.silurian(&["inspect", model])));
    assert!(text.contains("parameters   ") && text.contains("MFLOP") && text.contains("KV cache f32 "), "{text}");
    let on_disk =
        |text: &str| text.lines().find(|line| line.contains("on disk")).map(|line| line.split_whitespace().count());
    assert_eq!(on_disk(&text), Some("on disk - - - - -".split(' ').count()), "{text}");
    let kept = ["--weights", "bf16", "--disk-cache", "always", "--kv", "bf16"];
    let output = succeed(place.silurian(&["generate", "-m", model, "--max-tokens", "5"]).args(kept));
    assert!(said(&output).contains("bf16 weights, KV cache bf16"), "{}", said(&output));
    let text = said(&succeed(&mut place.silurian(&["inspect", model])));
    assert_eq!(on_disk(&text), Some("on disk - 2.1 MiB - - -".split(' ').count()), "{text}");
    assert_eq!(on_disk(&said(&succeed(&mut place.silurian(&["inspect", "--preset", "5m"])))), None);
    let text = said(&succeed(&mut place.silurian(&["inspect"])));
    assert!(text.contains("tiny") && text.contains("3b"), "{text}");
    // Forced levels run; they are the same program.
    for level in kernels::Level::available() {
        let mut command = place.silurian(&["generate", "-m", model, "--max-tokens", "5"]);
        succeed(command.env("KERNELS_SIMD", level.to_string()));
    }
}

#[test]
fn train_leaves_a_report_and_report_compares_runs() {
    let place = Place::new();
    let flags = ["--name", "one", "--steps", "20", "--alpha", "0.2", "--set", "train.sample_every=8"];
    let text = said(&succeed(place.train(&flags).args(["--set", "train.sample_tokens=5"])));
    assert!(text.contains("report    runs/one/report.html"), "{text}");
    let page = fs::read_to_string(place.path("runs/one/report.html")).unwrap();
    for words in ["<h1><bdi>one</bdi></h1>", "RELU from step 16", "After step 8 ", "After step 20 ", "<svg ", "</html>"]
    {
        assert!(page.contains(words), "the report does not say {words:?}");
    }
    // The same samples, once, after a resume that does the last steps again.
    let samples = |run: &str| fs::read_to_string(place.path(run).join("samples.jsonl")).unwrap();
    assert_eq!(samples("runs/one").lines().count(), 3);
    let before = samples("runs/one");
    fs::remove_file(place.path("runs/one/checkpoints/step-20/state.json")).unwrap();
    succeed(&mut place.silurian(&["train", "--resume", "runs/one"]));
    assert_eq!(samples("runs/one"), before);

    place.trained("two");
    let text = said(&succeed(&mut place.silurian(&["report", "runs/one", "runs/two"])));
    assert_eq!(text, "report    runs/report.html\n");
    let page = fs::read_to_string(place.path("runs/report.html")).unwrap();
    assert!(page.contains("<h1>2 runs</h1>") && page.contains("train.sample_every"), "{page}");
    let text = said(&succeed(&mut place.silurian(&["report", "runs/two", "-o", "two.html"])));
    assert!(text.contains("two.html") && place.path("two.html").exists(), "{text}");
}

/// The parts of `silurian bench` at sizes that take no time. What they measure is not looked at, but that it is a number.
#[test]
fn bench_writes_markdown_csv_and_json() {
    let place = Place::new();
    let output = |flags: &[&str]| {
        let output = succeed(&mut place.silurian(&[&["bench", "-r", "1", "-t", "1"], flags].concat()));
        String::from_utf8(output.stdout).unwrap()
    };
    let json = |flags: &[&str]| -> serde_json::Value { serde_json::from_str(&output(flags)).unwrap() };
    let rows = |report: &serde_json::Value, name: &str| {
        let table = report["tables"].as_array().unwrap().iter().find(|table| table["name"] == name);
        table.unwrap_or_else(|| panic!("no table {name} in {report}"))["rows"].as_array().unwrap().clone()
    };
    let positive = |row: &serde_json::Value, keys: &[&str]| {
        for key in keys {
            assert!(row[key].as_f64().is_some_and(|x| x > 0.0), "{key} in {row}");
        }
    };

    let report = json(&["gemm", "--shapes", "64x64x64,TN:32x48x16", "--operands", "f32,bf16", "-o", "json"]);
    let products = rows(&report, "gemm");
    assert_eq!(products.len(), 4, "{report}");
    for (product, operands) in [(&products[1], "f32"), (&products[3], "bf16")] {
        assert_eq!((&product["shape"], &product["operands"]), (&"TN 32 x 48 x 16".into(), &operands.into()));
        assert_eq!(product["threads"], 1);
        positive(product, &["gflops", "gflops_min", "gflops_max", "peak_gflops", "peak_percent"]);
    }
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert!(
        report["date"].as_str().unwrap().ends_with('Z') && report["machine"]["cores"].as_u64() > Some(0),
        "{report}"
    );

    let report = json(&["-o", "json"]);
    let limits = rows(&report, "limits");
    for limit in ["f32 multiply-add", "read", "write", "copy"] {
        let row = limits.iter().find(|row| row["limit"] == limit && !row["best"].is_null());
        positive(row.unwrap_or_else(|| panic!("no {limit} in {report}")), &["best", "rate"]);
    }

    let report = json(&["prefill", "--models", "tiny", "--tokens", "40", "--weights", "f32,q8", "-o", "json"]);
    let prompts = rows(&report, "prefill");
    for (row, (weights, prefill)) in
        prompts.iter().zip([("f32", "exact"), ("f32", "bf16"), ("q8", "exact"), ("q8", "bf16")])
    {
        assert!(row["weights"] == weights && row["prefill"] == prefill, "{row}, expected {weights} {prefill}");
        positive(row, &["tokens_per_second", "gflops", "peak_gflops", "peak_percent"]);
    }
    assert_eq!(prompts.len(), 4, "{report}");

    // With zeros of their own, and those of a model on a text: dense, sparse and auto beside each other.
    let run = place.trained("m");
    let model = ["-m", run.to_str().unwrap(), "--text", "text.txt"];
    for (of, zeros) in [(&["--models", "tiny", "--zeros", "80"][..], Some(80.0)), (&model, None)] {
        let flags = ["--tokens", "30", "--weights", "f32,q8", "--prefill", "exact", "-o", "json"];
        let report = json(&[&["prefill"], of, &flags].concat());
        let prompts = rows(&report, "prefill");
        let ffns: Vec<&str> = prompts.iter().map(|row| row["ffn"].as_str().unwrap()).collect();
        assert_eq!(ffns, ["dense", "sparse", "auto"].repeat(2), "{report}");
        for row in &prompts {
            let share = row["zeros_percent"].as_f64().unwrap();
            assert!((0.0..100.0).contains(&share) && zeros.is_none_or(|zeros| (share - zeros).abs() < 5.0), "{row}");
        }
        positive(&prompts[1], &["speed_up", "union_percent"]);
        assert_eq!(prompts[1]["sparse_percent"], 100.0);
    }

    let ffn = ["sparse", "--d-model", "64", "--d-ff", "100", "--layers", "3", "--zeros", "90,0"];
    let csv = output(&[&ffn[..], &["--weights", "bf16", "-o", "csv"]].concat());
    let (sweep, break_even) = csv.split_once("\n\n").unwrap();
    let lines: Vec<Vec<&str>> = sweep.lines().map(|line| line.split(',').collect()).collect();
    let zeros = lines[0].iter().position(|&name| name == "zeros_percent").unwrap();
    assert!(lines[0].contains(&"speed_up_min") && lines.iter().all(|line| line.len() == lines[0].len()), "{csv}");
    assert_eq!(lines[1..].iter().map(|line| line[zeros]).collect::<Vec<_>>(), ["0.0", "90.0"], "{csv}");
    assert!(break_even.starts_with("weights,threads,zeros_percent,remark\n"), "{csv}");

    let sparse = json(&["sparse", "--d-ff", "100", "--layers", "1", "--zeros", "90", "-o", "json"]);
    let decode = json(&["decode", "--models", "tiny", "--zeros", "90", "-o", "json"]);
    for (report, table) in [(&sparse, "ffn"), (&decode, "decode")] {
        let rows = rows(report, table);
        for (row, weights) in rows.iter().zip(["f32", "bf16"]) {
            let near = (row["zeros_percent"].as_f64().unwrap() - 90.0).abs() < 0.5;
            assert!(row["weights"] == weights && near, "{row}, expected {weights} with 90 % zeros");
            positive(row, &["speed_up", "read_gbs"]);
            assert!(row["byte_ceiling"].as_f64() > Some(1.0), "{report}");
        }
        assert_eq!(rows.len(), 2, "{report}");
    }
    let flags = ["--d-model", "64", "--d-ff", "300", "--layers", "1", "--batch", "1,4", "--zeros", "90", "-o", "json"];
    let report = json(&[&["sparse"], &flags[..]].concat());
    let batches = rows(&report, "ffn_batch");
    assert_eq!(batches.len(), 8, "two formats, two kinds of tokens, two batches: {report}");
    for row in &batches {
        positive(row, &["zeros_percent", "union_percent", "speed_up", "byte_ceiling", "over_one_by_one"]);
        assert!(row["auto"] == "sparse" && row["byte_ceiling"].as_f64() < Some(3.0), "{row}");
    }
    let union = |row: usize| batches[row]["union_percent"].as_f64().unwrap();
    assert!((batches[3]["kind"] == "independent") && union(3) > union(1) && union(1) > union(0), "{report}");
    positive(&rows(&decode, "decode")[1], &["dense_tokens_per_second", "sparse_tokens_per_second", "ffn_speed_up"]);
    for (report, table, fields) in [
        (&sparse, "ffn_filtered", ["survivors_percent", "filtered_us", "speed_up"]),
        (&decode, "decode", ["survivors_percent", "filtered_tokens_per_second", "filtered_speed_up"]),
    ] {
        for row in rows(report, table) {
            positive(&row, &fields);
            assert!(row["survivors_percent"].as_f64() < Some(50.0), "{table}: the filter rules little out: {row}");
        }
    }

    let page = |flags: &[&str]| {
        output(&[flags, &["--models", "tiny", "--weights", "f32", "--plot", "page.html"]].concat());
        std::fs::read_to_string(place.path("page.html")).unwrap()
    };
    let curves = page(&["decode", "--zeros", "50,90"]);
    // Sparse, filtered and their ceilings over two shares of zeros; the FFN and its ceiling.
    assert!(curves.matches("<polyline").count() == 6 && curves.contains("<h3>tiny, f32, 1 thread</h3>"), "{curves}");
    // An earlier page is replaced.
    assert_eq!(page(&["decode", "--zeros", "20,50,90"]).matches("<circle").count(), 6 * 3);

    let report = json(&["decode", "-m", run.to_str().unwrap(), "--weights", "f32", "-o", "json"]);
    positive(&rows(&report, "decode")[0], &["zeros_percent", "speed_up"]);

    let text = output(&[
        "train",
        "--preset",
        "tiny",
        "--seq-len",
        "16",
        "--micro-batch",
        "2",
        "--activation",
        "stochastic:0.5",
    ]);
    assert!(
        text.starts_with("## `silurian bench -r 1 -t 1 train --preset tiny") && text.contains("StochA(0.5)"),
        "{text}"
    );
    let table: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
    assert!(table.len() == 3 && table[2].starts_with("| tiny | ") && table[2].contains(" | 2 x 16 | "), "{text}");
}

/// The lines `--- rank ..` of a ranked output: sample and score.
fn ranks(stdout: &str) -> Vec<(usize, f64)> {
    let line = |line: &str| {
        let (sample, score) = line.split_once(": sample ")?.1.split_once(", ")?;
        Some((sample.parse().ok()?, score.strip_suffix(" nats a token")?.parse().ok()?))
    };
    stdout.lines().filter(|l| l.starts_with("--- rank ")).map(|l| line(l).unwrap_or_else(|| panic!("{l}"))).collect()
}

#[test]
fn generate_ranks_its_samples() {
    let place = Place::new();
    let run = place.trained("m");
    let write = |flags: &[&str]| {
        let base = ["generate", "-m", run.to_str().unwrap(), "-p", "In ", "--max-tokens", "12", "-n", "6"];
        let output = succeed(&mut place.silurian(&[&base, flags].concat()));
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    for drawn in [&[][..], &["--activation", "stochastic:0.7", "--temp", "0"], &["--activation", "silu"]] {
        let (text, figures) = write(&[drawn, &["--rank", "-t", "1"]].concat());
        let ranks = ranks(&text);
        let mut samples: Vec<usize> = ranks.iter().map(|r| r.0).collect();
        samples.sort_unstable();
        assert_eq!(samples, [1, 2, 3, 4, 5, 6], "{text}");
        assert!(ranks.windows(2).all(|r| r[0].1 >= r[1].1) && ranks[0].1 < 0.0, "{text}");
        for words in ["by the mean ln P of a token under RELU at temperature 1", " of 6; "] {
            assert!(figures.contains(words), "{words:?}: {figures}");
        }
        assert_eq!(write(&[drawn, &["--rank", "-t", "2"]].concat()).0, text, "threads");
        if drawn.is_empty() {
            assert_eq!(write(&["--rank", "--ffn", "dense"]).0, text, "the FFN");
            assert_ne!(ranks[0].1, self::ranks(&write(&["--rank", "--rank-under", "silu"]).0)[0].1);
        }
        // The same samples without ranks, and as JSON.
        let (plain, _) = write(drawn);
        let (json, _) = write(&[drawn, &["--rank", "-o", "json", "--ttr-budget", "3"]].concat());
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        for (record, (sample, score)) in json["samples"].as_array().unwrap().iter().zip(&ranks) {
            assert_eq!(record["sample"], *sample);
            assert!((record["score"].as_f64().unwrap() - score).abs() < 1e-4);
            let text = format!("--- sample {sample} of 6\nIn {}\n", record["text"].as_str().unwrap());
            assert!(plain.contains(&text), "{text:?} is not in\n{plain}");
        }
        assert_eq!((&json["rank_under"], &json["ttr_budget"]), (&"RELU".into(), &3.into()));
        // At temperature 0 this model may write nothing but spaces: no words, and no ratio.
        let (words, ttr) = (json["words"].as_u64().unwrap(), json["ttr"].as_f64());
        assert!(ttr.is_some_and(|ttr| ttr > 0.0 && ttr <= 1.0) == (words >= 3), "{json}");
    }
    assert!(write(&["--ttr-budget", "100000"]).1.contains("fewer than --ttr-budget 100000"));
}

#[test]
fn eval_qa_counts_answers() {
    let place = Place::new();
    let run = place.trained("m");
    let question = |answers: &[&str], kind| serde_json::json!({ "prompt": "In ", "answers": answers, "kind": kind });
    let lines = [question(&["no such answer"], "a"), question(&["nor this", "this"], "a"), question(&["THIS."], "b")];
    place.write("q.jsonl", lines.map(|l| format!("{l}\n")).concat());
    let eval = |flags: &[&str]| {
        let base = ["eval", "qa", "-m", run.to_str().unwrap(), "q.jsonl"];
        succeed(&mut place.silurian(&[&base, flags].concat()))
    };
    let stdout = |flags: &[&str]| String::from_utf8(eval(flags).stdout).unwrap();
    let text = stdout(&["--show", "2"]);
    for words in
        ["3 questions of q.jsonl, answered greedily under RELU", "baseline %", "expected  no such answer", "greedy "]
    {
        assert!(text.contains(words), "{words:?}: {text}");
    }
    assert!(said(&eval(&[])).contains("note: not one answer is right: questions suit a model"), "{text}");
    let csv = stdout(&["-o", "csv"]);
    assert_eq!(csv, "kind,questions,greedy_percent,baseline_percent\na,2,0.0,50.0\nb,1,0.0,100.0\nall,3,0.0,66.6667\n");
    let n4 = ["-n", "4", "--temp", "1.5", "-o", "json"];
    let json = stdout(&[&n4[..], &["-t", "1"]].concat());
    assert_eq!(stdout(&[&n4[..], &["-t", "2"]].concat()), json, "threads");
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    let samples = &report["all"]["samples"];
    assert_eq!(samples["pass_at"].as_array().unwrap().len(), 3);
    assert_eq!(report["answered"][2]["ranked"].as_array().unwrap().len(), 4);
    let first = |seed| stdout(&[&n4[..], &["--limit", "1", "--seed", seed]].concat());
    let first: Vec<serde_json::Value> = ["0", "1"].map(|s| serde_json::from_str(&first(s)).unwrap()).to_vec();
    assert_eq!(first[0]["answered"][0], report["answered"][0], "--limit changed an answer");
    assert_ne!(first[1]["answered"][0], report["answered"][0], "--seed changed nothing");
    // StochA alone draws; what it draws is ranked under RELU.
    let text = stdout(&["-n", "3", "--temp", "0", "--activation", "stochastic:0.7"]);
    assert!(
        text.contains("3 samples a question under StochA(0.7) at temperature 0, seed 0") && text.contains("| pass@k %"),
        "{text}"
    );
    let cut = eval(&["--max-tokens", "1"]);
    assert!(said(&cut).contains("answers had not ended after 1 tokens"), "{}", said(&cut));
}
