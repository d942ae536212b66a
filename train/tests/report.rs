//! The report of runs that are written by hand: what stands in it, that it is well formed, and that no text of theirs is markup.

use model::{HiddenAct, Switch};
use roxmltree::{Document, Node, ParsingOptions};
use std::fs;
use std::path::{Path, PathBuf};
use train::TrainConfig;
use train::events::Sample;
use train::html::PageError;
use train::metrics::{Evaluation, NORM_QUANTILES, StepMetrics};
use train::report::{Decoding, Example, Kind, Questions, ReportError, Results, default_output, write};
use train::run_dir::{read_metrics, read_samples};

/// What a run is made of.
struct Shape {
    steps: usize,
    /// Of `steps`, how many are done.
    done: usize,
    eval_every: usize,
    alpha: Option<f64>,
    layers: usize,
    norms: bool,
}

const SHAPE: Shape = Shape { steps: 300, done: 300, eval_every: 50, alpha: Some(0.1), layers: 3, norms: true };

/// Writes a run's folder. Losses fall from 5.5; zeros rise with layer and time.
fn run(folder: &Path, shape: &Shape) -> PathBuf {
    fs::create_dir_all(folder.join("checkpoints")).unwrap();
    let mut config = TrainConfig::default();
    config.data.paths = vec!["text.txt".into()];
    config.model.n_layers = Some(shape.layers);
    (config.train.steps, config.train.eval_every) = (shape.steps, shape.eval_every);
    config.train.switch = shape.alpha.map(|alpha| Switch { to: HiddenAct::Relu, alpha });
    fs::write(folder.join("config.toml"), config.to_toml()).unwrap();
    let switch = shape.alpha.map_or(usize::MAX, |alpha| ((1.0 - alpha) * shape.steps as f64).round() as usize);
    let mut lines = String::new();
    for step in 0..shape.done {
        let psi = |step: usize| if step < switch { "StochA(0.5)" } else { "RELU" }.to_string();
        let (n, loss) = (step + 1, 1.5 + 4.0 / (1.0 + 0.1 * step as f64) + 0.01 * (step % 7) as f64);
        let eval = n.is_multiple_of(shape.eval_every) || n == switch || n == shape.steps;
        let relu_loss = loss + if n <= switch { 0.25 } else { 0.0 };
        let eval = eval.then(|| Evaluation {
            steps_done: n,
            tokens: 4096,
            activation: psi(step),
            loss: if n <= switch { loss } else { relu_loss },
            relu_loss,
            zeros: (0..shape.layers).map(|l| 0.5 + 0.4 * step as f64 / shape.steps as f64 - 0.02 * l as f64).collect(),
            dead: (0..shape.layers).map(|l| l * n / 100).collect(),
            small_rows: vec![0; shape.layers],
            gate_norms: match shape.norms {
                true => (0..shape.layers).map(|l| NORM_QUANTILES.map(|q| 1.0 + q + 0.1 * l as f64)).collect(),
                false => Vec::new(),
            },
        });
        let record = StepMetrics {
            step,
            tokens: 2048 * n as u64,
            activation: psi(step),
            lr: 2e-3,
            loss,
            l1_penalty: 0.0,
            grad_norm: 10.0 / n as f64,
            seconds: 0.2,
            tokens_per_second: 10240.0,
            gflops: 300.0,
            fresh_blocks: 0,
            peak_bytes: 250 << 20,
            eval,
        };
        lines += &serde_json::to_string(&record).unwrap();
        lines.push('\n');
    }
    if !shape.norms {
        lines = lines.replace(",\"gate_norms\":[]", ""); // a record from before there were any
    }
    fs::write(folder.join("metrics.jsonl"), lines).unwrap();
    folder.to_path_buf()
}

fn report(runs: &[PathBuf]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("report.html");
    write(runs, &output).unwrap_or_else(|e| panic!("report: {e}"));
    fs::read_to_string(output).unwrap()
}

/// Parses the page, so that every tag is closed, every reference known and every character allowed; and looks at what must hold
/// for any page: names for the eyes of none, one id each, nothing from outside.
fn parse(html: &str) -> Document<'_> {
    let options = ParsingOptions { allow_dtd: true, ..ParsingOptions::default() };
    let page = Document::parse_with_options(html, options).unwrap_or_else(|e| panic!("report: {e}\n{html}"));
    let mut ids = std::collections::BTreeSet::new();
    for node in page.descendants().filter(Node::is_element) {
        let name = node.tag_name().name();
        assert!(!["script", "link", "img", "iframe", "object", "foreignObject"].contains(&name), "report: a <{name}>");
        for attribute in node.attributes() {
            let (key, value) = (attribute.name(), attribute.value());
            assert!(!key.starts_with("on") && !["href", "src"].contains(&key), "report: {key}={value} in <{name}>");
            assert!(!value.contains("NaN") && !value.contains("inf"), "report: {key}={value} in <{name}>");
            assert!(key != "id" || ids.insert(value.to_string()), "report: id {value} twice");
        }
        if name == "svg" {
            assert!(
                node.attribute("aria-label").is_some_and(|label| !label.is_empty()),
                "report: a picture without a name"
            );
        }
    }
    for outside in ["http:", "https:", "@import", "url(//"] {
        assert!(!html.contains(outside), "report: {outside} in the page");
    }
    page
}

/// The text of all elements of a name.
fn texts(page: &Document, name: &str) -> Vec<String> {
    let text = |node: Node| node.descendants().filter_map(|n| n.text().filter(|_| n.is_text())).collect::<String>();
    page.descendants().filter(|n| n.has_tag_name(name)).map(text).collect()
}

#[test]
fn one_run_with_everything() {
    let dir = tempfile::tempdir().unwrap();
    let run = run(&dir.path().join("book"), &SHAPE);
    let results = Results {
        questions: vec![Questions {
            title: "held-out phrasings".to_string(),
            how: "RELU, greedy".to_string(),
            asked: 200,
            correct: 124,
            baseline: 0.11,
            kinds: vec![Kind { name: "birthplace".to_string(), asked: 50, correct: 40, baseline: 0.2 }],
            examples: vec![Example {
                prompt: "Where was Ada born?".to_string(),
                expected: "Wexley".to_string(),
                answer: "Wexley".to_string(),
                correct: true,
            }],
        }],
        decoding: vec![Decoding {
            title: "f32, 2 threads".to_string(),
            how: "medians of 5".to_string(),
            dense: 800.0,
            sparse: 1200.0,
            zeros: 0.9,
            ffn_ratio: Some(2.1),
            ceiling: 2.5,
        }],
        samples: vec![Sample {
            steps_done: 300,
            prompt: "In ".into(),
            text: "spring it rained.".into(),
            how: "RELU".into(),
        }],
    };
    results.write(&run).unwrap();
    assert_eq!(Results::read(&run).unwrap(), Some(results));
    let html = report(&[run]);
    let page = parse(&html);
    assert_eq!(texts(&page, "title")[0], "book");
    assert_eq!(texts(&page, "h1"), ["book"]);
    let sections = texts(&page, "h2");
    assert_eq!(
        sections,
        ["Figures", "Loss", "Zeros and neurons", "Speed and optimiser", "Results", "Samples", "Settings"]
    );
    let figures: Vec<String> = texts(&page, "h3");
    for title in [
        "Training and validation",
        "Around the switch",
        "Zeros by layer",
        "Never active",
        "Smallest row of gate_proj",
        "Norm of the gradient",
    ] {
        assert!(figures.iter().any(|t| t == title), "report: no figure {title:?} in {figures:?}");
    }
    let all = texts(&page, "body").concat();
    for words in [
        "steps 0 to 269: StochA(0.5); steps 270 to 299: RELU (Swi+FT, alpha = 0.1)",
        "RELU from step 270",
        "+0.2500", // what the switch cost
        "87.9 %",  // zeros: 0.5 + 0.4 * 299 / 300 - 0.02 on average
        "10,240 tokens/s",
        "124 of 200",
        "62.0 %",
        "2.10 x",
        "ceiling 2.50 x",
        "Where was Ada born?",
        "spring it rained.",
        "val_fraction = 0.1",
    ] {
        assert!(all.contains(words), "report: {words:?} is not there");
    }
    assert!(html.len() < 200_000, "report: {} bytes", html.len());
}

#[test]
fn no_text_of_a_run_is_markup() {
    let dir = tempfile::tempdir().unwrap();
    let evil = "<script>alert('x')</script> & \"quoted\" ]]> </pre></svg>\u{0}\u{1b}[2J\u{7f}\r\u{85}\u{202e}\u{fffd}\u{1f980}";
    // What a file system takes of it.
    let folder = dir.path().join("<script>alert('x')<!-- & \"quoted\"\u{1b}");
    let run = run(&folder, &SHAPE);
    let mut config = TrainConfig::read(run.join("config.toml")).unwrap();
    config.data.paths = vec![format!("{}.txt", evil.replace('\0', "")).into()];
    config.train.sample_prompt = evil.to_string();
    fs::write(run.join("config.toml"), config.to_toml()).unwrap();
    let sample = Sample { steps_done: 300, prompt: evil.into(), text: evil.repeat(2), how: evil.into() };
    fs::write(run.join("samples.jsonl"), serde_json::to_string(&sample).unwrap() + "\n").unwrap();
    let question = Questions {
        title: evil.into(),
        how: evil.into(),
        asked: 2,
        correct: 1,
        kinds: vec![Kind { name: evil.into(), asked: 2, correct: 1, baseline: 0.5 }],
        examples: vec![Example { prompt: evil.into(), expected: evil.into(), answer: evil.into(), correct: false }],
        ..Questions::default()
    };
    let decoding =
        Decoding { title: evil.into(), how: evil.into(), dense: 1.0, sparse: 2.0, ceiling: 2.5, ..Decoding::default() };
    let results = Results { questions: vec![question], decoding: vec![decoding], samples: vec![sample] };
    results.write(&run).unwrap();
    for runs in [vec![run.clone()], vec![run.clone(), self::run(&dir.path().join("plain"), &SHAPE)]] {
        let html = report(&runs);
        assert!(!html.contains("<script") && !html.contains("<!--"), "report: a script got through");
        let page = parse(&html);
        let samples = texts(&page, "pre").concat();
        assert!(
            samples.contains("<script>alert('x')</script> & \"quoted\" ]]> </pre></svg>\u{2400}\u{241b}[2J"),
            "{samples}"
        );
        assert!(!html.bytes().any(|b| b < 0x20 && b != b'\n' && b != b'\t'), "report: a control byte got through");
        assert!(!html.contains('\u{202e}'), "report: text is turned around");
    }
}

#[test]
fn runs_that_differ_in_everything_are_drawn_over_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let runs = [
        run(&at("a/run"), &SHAPE),
        run(&at("b/run"), &Shape { steps: 1000, done: 640, eval_every: 33, layers: 5, ..SHAPE }),
        run(&at("silu"), &Shape { alpha: None, ..SHAPE }),
        run(&at("old"), &Shape { norms: false, ..SHAPE }),
        run(&at("short"), &Shape { steps: 1, done: 1, ..SHAPE }),
        run(&at("begun"), &Shape { done: 3, ..SHAPE }),
        run(&at("relu"), &Shape { alpha: Some(1.0), ..SHAPE }),
        run(&at("deep"), &Shape { layers: 30, ..SHAPE }),
    ];
    let html = report(&runs);
    let page = parse(&html);
    assert_eq!(texts(&page, "h1"), ["8 runs"]);
    let all = texts(&page, "body").concat();
    for words in ["a/run", "b/run", "640 of 1,000 steps are done", "train.steps", "train.switch.alpha", "not recorded"]
    {
        assert!(all.contains(words), "report: {words:?} is not there");
    }
    // Each alone too.
    for run in &runs {
        parse(&report(std::slice::from_ref(run)));
    }
}

#[test]
fn a_line_that_is_half_written_is_left_out_and_one_that_is_broken_named() {
    let dir = tempfile::tempdir().unwrap();
    let run = run(&dir.path().join("book"), &SHAPE);
    let path = run.join("metrics.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    let killed = &text[..text.len() - 40];
    fs::write(&path, killed).unwrap();
    assert_eq!(read_metrics(&run).unwrap().len(), 299);
    parse(&report(std::slice::from_ref(&run)));
    let lines: Vec<&str> = text.lines().collect();
    fs::write(&path, [&lines[..6], &["{\"step\":6,"], &lines[7..]].concat().join("\n")).unwrap();
    let error = write(&[&run], &dir.path().join("r.html")).unwrap_err();
    assert!(error.to_string().contains("metrics.jsonl line 7: not a record"), "{error}");
    assert!(!dir.path().join("r.html").exists());
}

#[test]
fn only_a_report_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let run = run(&dir.path().join("book"), &SHAPE);
    let output = default_output(&[&run]);
    assert_eq!(output, run.join("report.html"));
    write(&[&run], &output).unwrap();
    write(&[&run], &output).unwrap();
    for (name, contents) in [("notes.html", "<!DOCTYPE html><p>mine</p>"), ("empty.html", "")] {
        let other = dir.path().join(name);
        fs::write(&other, contents).unwrap();
        let error = write(&[&run], &other).unwrap_err();
        assert!(
            matches!(error, ReportError::Page(PageError::Taken { .. })) && error.to_string().contains(name),
            "{error}"
        );
        assert_eq!(fs::read_to_string(&other).unwrap(), contents);
    }
    let error = write(&[&run, &dir.path().join("book/../book")], &output).unwrap_err();
    assert!(matches!(error, ReportError::Twice { .. }), "{error}");
}

/// Samples of steps that are done again come once.
#[test]
fn samples_and_sessions_outlive_a_kill_and_come_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = TrainConfig::default();
    config.data.paths = vec!["text.txt".into()];
    let path = dir.path().join("run");
    let mut run = train::run_dir::RunDir::create(&path, &config).unwrap();
    let sample = |steps_done| Sample { steps_done, prompt: "a".into(), text: "b".into(), how: "RELU".into() };
    for steps_done in [10, 20, 30] {
        run.append_sample(&sample(steps_done)).unwrap();
    }
    drop(run);
    // Killed while it wrote the next one; the last checkpoint is of step 20.
    let half = fs::read_to_string(path.join("samples.jsonl")).unwrap() + "{\"steps_do";
    fs::write(path.join("samples.jsonl"), half).unwrap();
    assert_eq!(read_samples(&path).unwrap().len(), 3);
    let mut run = train::run_dir::RunDir::open(&path).unwrap();
    run.cut_records(20).unwrap();
    assert_eq!(read_samples(&path).unwrap(), [sample(10), sample(20)]);
    run.append_sample(&sample(30)).unwrap();
    assert_eq!(read_samples(&path).unwrap(), [sample(10), sample(20), sample(30)]);
}
