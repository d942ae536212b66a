//! The page: what is said in words and tables, and in which order.

use super::GENERATOR;
use super::charts;
use super::run::Run;
use crate::events::Sample;
use crate::html::plot::distributions;
use crate::html::scale::number;
use crate::html::text::{Text, cut};
use crate::html::{Figures, document, section};
use crate::words::{duration, grouped};
use std::fmt::Write;

/// Samples of a run that are shown: the first, the last, and some between.
const SAMPLES: usize = 6;

/// Characters of a sample that are shown.
const SAMPLE_CHARS: usize = 1500;

/// The whole file.
pub fn page(runs: &[Run]) -> String {
    let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
    let title = match names[..] {
        [name] => name.to_string(),
        _ => names.join(", "),
    };
    let mut figures = Figures::default();
    let mut html = heading(runs);
    html += &super::tables::figures(runs);
    html += &section("Loss", &figures.all(charts::loss(runs)));
    let mut zeros = figures.all(charts::zeros(runs)) + &figures.all(charts::neurons(runs));
    for run in runs {
        zeros += &rows_now(run, runs);
    }
    html += &section("Zeros and neurons", &zeros);
    html += &section("Speed and optimiser", &figures.all(charts::speed(runs)));
    html += &results(runs);
    html += &samples(runs);
    html += &settings(runs);
    let layers = runs.iter().map(Run::layers).max().unwrap_or(0);
    document(GENERATOR, cut(&title, 80), &layer_colors(layers), &html)
}

/// What was trained, on what, and how.
fn heading(runs: &[Run]) -> String {
    let mut html = String::from("<header>\n");
    match runs {
        [run] => {
            let _ = write!(
                html,
                "<p class=\"kicker\">{}</p>\n<h1><bdi>{}</bdi></h1>\n",
                Text(run.path.display()),
                Text(&run.name)
            );
            for line in about(run) {
                let _ = writeln!(html, "<p>{}</p>", Text(line));
            }
            html += &tiles(run);
        }
        _ => {
            let _ = writeln!(html, "<p class=\"kicker\">Comparison</p>\n<h1>{} runs</h1>", runs.len());
            for (i, run) in runs.iter().enumerate() {
                let _ = writeln!(
                    html,
                    "<p><span class=\"swatch\" style=\"background:{}\"></span><strong><bdi>{}</bdi></strong> \
                     <span class=\"quiet\">{}</span><br/>{}</p>",
                    charts::color(i),
                    Text(&run.name),
                    Text(run.path.display()),
                    Text(about(run).join(" "))
                );
            }
        }
    }
    html + "</header>\n"
}

/// Sizes, data, schedule, in sentences.
fn about(run: &Run) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(c) = &run.sizes {
        lines.push(format!(
            "{} parameters: {} layers, d_model {}, {} heads of {} on {} key-value heads, d_ff {}, vocabulary {}.",
            grouped(c.parameters() as u64),
            c.n_layers,
            c.d_model,
            c.n_heads,
            c.head_dim,
            c.n_kv_heads,
            c.d_ff,
            c.vocab_size
        ));
    }
    let t = &run.config.train;
    let paths: Vec<String> = run.config.data.paths.iter().map(|path| path.display().to_string()).collect();
    let mut data = format!("Data: {}", cut(&paths.join(", "), 200));
    if let Some(s) = run.sessions.last() {
        data += &format!(
            "; {} tokens to train on, {} to validate; {:.1} times through",
            grouped(s.train_tokens as u64),
            grouped(s.val_tokens as u64),
            s.epochs
        );
    }
    lines.push(data + ".");
    let mut schedule = format!("Schedule: {}.", run.phases);
    if run.steps_done() < t.steps {
        let (done, all) = (grouped(run.steps_done() as u64), grouped(t.steps as u64));
        schedule += &format!(" {done} of {all} steps are done.");
    }
    lines.push(schedule);
    lines
}

/// The four numbers that a reader looks for first.
fn tiles(run: &Run) -> String {
    let mut tiles = Vec::new();
    if let Some(e) = run.last_evaluation() {
        let bits = e.relu_loss / std::f64::consts::LN_2;
        tiles.push((
            "Validation loss under RELU",
            format!("{:.4}", e.relu_loss),
            format!("{bits:.3} bits a token, after step {}", grouped(e.steps_done as u64)),
        ));
        let percent = |share: f64| format!("{:.0}", 100.0 * share);
        let (low, high) = e.zeros.iter().fold((1.0f64, 0.0f64), |(a, b), &z| (a.min(z), b.max(z)));
        tiles.push((
            "Zeros under RELU",
            format!("{:.1} %", 100.0 * e.mean_zeros()),
            format!("{} to {} % by layer", percent(low), percent(high)),
        ));
    }
    if let Some(e) = run.evaluation_at_switch() {
        tiles.push((
            "Cost of turning to RELU",
            charts::signed(e.relu_loss - e.loss, 4),
            format!("from {:.4} to {:.4}, the same weights", e.loss, e.relu_loss),
        ));
    }
    let rate = super::tables::tokens_per_second(run);
    tiles.push((
        "Speed of training",
        format!("{} tokens/s", number(rate, 0)),
        format!("{} in steps; {}", duration(run.seconds()), super::tables::machine(run)),
    ));
    let mut html = String::from("<div class=\"tiles\">\n");
    for (name, value, note) in tiles {
        let _ = writeln!(
            html,
            "<div class=\"tile\"><span>{}</span><b>{}</b><span>{}</span></div>",
            Text(name),
            Text(value),
            Text(note)
        );
    }
    html + "</div>\n"
}

/// The distribution of row norms at the last evaluation.
fn rows_now(run: &Run, runs: &[Run]) -> String {
    let Some(e) = run.last_evaluation().filter(|e| !e.gate_norms.is_empty()) else { return String::new() };
    let name = if runs.len() == 1 { String::new() } else { format!(": {}", run.name) };
    let note = format!(
        "Norms after step {}: from the smallest to the largest row; bars over 90 % and 50 % of the rows; the median.",
        grouped(e.steps_done as u64)
    );
    let largest = runs.iter().filter_map(Run::last_evaluation).flat_map(|e| e.gate_norms.iter().map(|q| q[8]));
    distributions(&format!("Rows of gate_proj now{name}"), &note, &e.gate_norms, largest.fold(0.0, f64::max))
}

/// What was measured after training, for each run that has it.
fn results(runs: &[Run]) -> String {
    let mut html = String::new();
    for run in runs {
        let Some(results) = &run.results else { continue };
        let title = if runs.len() == 1 { "Results".to_string() } else { format!("Results: {}", run.name) };
        html += &section(&title, &charts::results(results).concat());
        html += &super::tables::results(results);
    }
    html
}

/// Texts of the model, the last first.
fn samples(runs: &[Run]) -> String {
    let mut html = String::new();
    for run in runs {
        let finished = run.results.iter().flat_map(|r| &r.samples);
        let all: Vec<&Sample> = run.samples.iter().chain(finished).collect();
        if all.is_empty() {
            continue;
        }
        let n = all.len();
        let shown: Vec<usize> =
            if n <= SAMPLES { (0..n).collect() } else { (0..SAMPLES).map(|i| i * (n - 1) / (SAMPLES - 1)).collect() };
        let title = if runs.len() == 1 { "Samples".to_string() } else { format!("Samples: {}", run.name) };
        let _ = writeln!(html, "<h2>{}</h2>", Text(title));
        if n > SAMPLES {
            let _ = writeln!(html, "<p class=\"quiet\">{SAMPLES} of {n}; all are in samples.jsonl.</p>");
        }
        html += "<div class=\"samples\">\n";
        for &i in shown.iter().rev() {
            let s = all[i];
            // The beginning of a text is often a line feed, which a box would swallow or show as a gap.
            let (prompt, text) = (cut(s.prompt.trim_start_matches('\n'), SAMPLE_CHARS), cut(&s.text, SAMPLE_CHARS));
            let text = if prompt.is_empty() { text.trim_start_matches('\n') } else { &text };
            let _ = writeln!(
                html,
                "<article><h3>After step {} <span class=\"quiet\">{}</span></h3><pre><b>{}</b>{}</pre></article>",
                grouped(s.steps_done as u64),
                Text(&s.how),
                Text(prompt),
                Text(text)
            );
        }
        html += "</div>\n";
    }
    html
}

/// The configurations, whole; of several runs first where they differ.
fn settings(runs: &[Run]) -> String {
    let mut html = String::from("<h2>Settings</h2>\n");
    html += &super::tables::differences(runs);
    for run in runs {
        let name = if runs.len() == 1 { String::new() } else { format!("{}: ", run.name) };
        let _ = writeln!(
            html,
            "<details><summary>{}config.toml</summary><pre>{}</pre></details>",
            Text(name),
            Text(run.config.to_toml())
        );
    }
    html
}

/// The colours of layers, from first to last: dark blue to green on white, blue to yellow on black, equally spaced to the eye.
fn layer_colors(layers: usize) -> String {
    // Samples of viridis, without the ends that cannot be seen on the paper.
    const LIGHT: [[u8; 3]; 5] = [[68, 1, 84], [65, 68, 135], [42, 120, 142], [34, 158, 126], [104, 178, 64]];
    const DARK: [[u8; 3]; 5] = [[122, 137, 214], [66, 158, 184], [45, 189, 140], [134, 213, 73], [253, 231, 37]];
    let variables = |stops: &[[u8; 3]; 5]| -> String {
        let color = |layer: usize| {
            let place = if layers < 2 { 0.0 } else { layer as f64 / (layers - 1) as f64 * 4.0 };
            let (i, share) = ((place as usize).min(3), place - (place as usize).min(3) as f64);
            let mix = |c: usize| (stops[i][c] as f64 * (1.0 - share) + stops[i + 1][c] as f64 * share).round() as u8;
            format!(" --layer-{layer}: #{:02x}{:02x}{:02x};", mix(0), mix(1), mix(2))
        };
        (0..layers).map(color).collect()
    };
    format!(
        ":root {{{} }}\n@media screen and (prefers-color-scheme: dark) {{ :root {{{} }} }}\n",
        variables(&LIGHT),
        variables(&DARK)
    )
}
