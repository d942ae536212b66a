//! The tables of the page.

use super::charts::{self, signed};
use super::results::Results;
use super::run::Run;
use crate::html::scale::{number, short};
use crate::html::text::{Text, cut};
use crate::words::{bytes, counted, duration, grouped};
use std::fmt::{Display, Write};

/// Where the last steps ran, in words.
pub fn machine(run: &Run) -> String {
    if let Some(session) = run.sessions.last().filter(|s| s.device != "cpu") {
        return session.device.clone();
    }
    let threads = run.sessions.last().map(|s| counted(s.threads as u64, "thread"));
    let words: Vec<String> = threads.into_iter().chain(run.level.clone()).collect();
    if words.is_empty() { "not recorded".to_string() } else { words.join(", ") }
}

/// Of all recorded steps.
pub fn tokens_per_second(run: &Run) -> f64 {
    run.steps.iter().map(|s| s.tokens_per_second * s.seconds).sum::<f64>() / run.seconds()
}

/// A number of each run. Differences to the first are shown for those that have both.
struct Number {
    name: &'static str,
    values: Vec<Option<f64>>,
    decimals: usize,
    unit: &'static str,
    /// Whether less is better, where one is.
    less_is_better: Option<bool>,
}

impl Number {
    fn row(&self) -> String {
        let mut html = format!("<tr><th scope=\"row\">{}</th>", Text(self.name));
        for value in &self.values {
            let Some(value) = value else {
                html += "<td class=\"number quiet\">\u{2013}</td>";
                continue;
            };
            let _ = write!(html, "<td class=\"number\">{}{}", number(*value, self.decimals), self.unit);
            let difference = self.values[0].map_or(0.0, |first| value - first);
            if difference != 0.0 {
                let class = match self.less_is_better {
                    Some(less) => {
                        if (difference < 0.0) == less {
                            "good"
                        } else {
                            "bad"
                        }
                    }
                    _ => "quiet",
                };
                let unit = if self.unit == " %" { " points" } else { self.unit };
                let _ = write!(html, "<small class=\"{class}\">{}{unit}</small>", signed(difference, self.decimals));
            }
            html += "</td>";
        }
        html + "</tr>\n"
    }
}

fn words_row(name: &str, words: impl Iterator<Item = String>) -> String {
    let mut html = format!("<tr><th scope=\"row\">{}</th>", Text(name));
    for words in words {
        let _ = write!(html, "<td class=\"number\">{}</td>", Text(words));
    }
    html + "</tr>\n"
}

fn table_of_runs(runs: &[Run], rows: &str) -> String {
    let mut html = String::from("<div class=\"wide\"><table>\n");
    if runs.len() > 1 {
        html += "<thead><tr><th></th>";
        for (i, run) in runs.iter().enumerate() {
            let swatch = format!("<span class=\"swatch\" style=\"background:{}\"></span>", charts::color(i));
            let _ = write!(html, "<th scope=\"col\" class=\"number\">{swatch}<bdi>{}</bdi></th>", Text(&run.name));
        }
        html += "</tr></thead>\n";
    }
    html + "<tbody>\n" + rows + "</tbody></table></div>\n"
}

/// The last figures of each run, beside each other.
pub fn figures(runs: &[Run]) -> String {
    let values = |value: &dyn Fn(&Run) -> Option<f64>| -> Vec<Option<f64>> { runs.iter().map(value).collect() };
    let at_end = |value: &dyn Fn(&crate::metrics::Evaluation) -> f64| values(&|run| run.last_evaluation().map(value));
    let number =
        |name, values, decimals, unit, less_is_better| Number { name, values, decimals, unit, less_is_better }.row();
    let mut rows = String::new();
    rows += &number("Validation loss under RELU", at_end(&|e| e.relu_loss), 4, "", Some(true));
    let before = values(&|run| run.evaluations().rfind(|e| e.activation != "RELU").map(|e| e.loss));
    if before.iter().any(Option::is_some) {
        rows += &number("Validation loss, the last before RELU", before, 4, "", Some(true));
    }
    if runs.iter().any(|run| run.evaluation_at_switch().is_some()) {
        let cost = values(&|run| run.evaluation_at_switch().map(|e| e.relu_loss - e.loss));
        rows += &number("Cost of turning to RELU", cost, 4, "", Some(true));
    }
    rows += &number("Zeros under RELU, mean of layers", at_end(&|e| 100.0 * e.mean_zeros()), 1, " %", Some(false));
    rows += &number("Neurons never active", at_end(&|e| e.dead.iter().sum::<usize>() as f64), 0, "", None);
    rows += &number("Small rows of gate_proj", at_end(&|e| e.small_rows.iter().sum::<usize>() as f64), 0, "", None);
    let last = values(&|run| {
        let tail = &run.steps[run.steps.len() - (run.steps.len() / 50).max(1)..];
        Some(tail.iter().map(|s| s.loss).sum::<f64>() / tail.len() as f64)
    });
    rows += &number("Training loss, last 2 % of the steps", last, 4, "", Some(true));
    rows += &number("Parameters", values(&|run| run.sizes.as_ref().map(|s| s.parameters() as f64)), 0, "", None);
    rows += &number("Steps", values(&|run| Some(run.steps_done() as f64)), 0, "", None);
    rows += &number("Tokens of training", values(&|run| Some(run.last().tokens as f64)), 0, "", None);
    rows += &words_row("Time in steps", runs.iter().map(|run| duration(run.seconds())));
    rows += &number("Tokens/s", values(&|run| Some(tokens_per_second(run))), 0, "", Some(false));
    let operations = |run: &Run| run.steps.iter().map(|s| s.gflops * s.seconds).sum::<f64>();
    rows += &number("GFLOP/s", values(&|run| Some(operations(run) / run.seconds())), 0, "", None);
    let peak = |run: &Run| run.steps.iter().map(|s| s.peak_bytes).max().unwrap_or(0);
    rows += &words_row("Memory of tensors, at most", runs.iter().map(|run| bytes(peak(run))));
    rows += &words_row("Machine", runs.iter().map(machine));
    rows += &words_row("Seed", runs.iter().map(|run| run.config.train.seed.to_string()));
    let note = "<p class=\"quiet\">Differences are to the first run.</p>\n";
    let table = table_of_runs(runs, &rows);
    match runs {
        [run] => format!("<h2>Figures</h2>\n<div class=\"plots\"><div>{table}</div>{}</div>\n", layers(run)),
        _ => format!("<h2>Figures</h2>\n{note}{table}"),
    }
}

/// A table with a heading row; the first column is words, the others are numbers.
fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let class = |i: usize| if i == 0 { "" } else { " class=\"number\"" };
    let mut html = String::from("<div class=\"wide\"><table>\n<thead><tr>");
    for (i, name) in head.iter().enumerate() {
        let _ = write!(html, "<th scope=\"col\"{}>{}</th>", class(i), Text(name));
    }
    html += "</tr></thead>\n<tbody>\n";
    for row in rows {
        html += "<tr>";
        for (i, cell) in row.iter().enumerate() {
            let _ = write!(html, "<td{}>{}</td>", class(i), Text(cell));
        }
        html += "</tr>\n";
    }
    html + "</tbody></table></div>\n"
}

/// The layers of a run at its last evaluation.
fn layers(run: &Run) -> String {
    let Some(e) = run.last_evaluation() else { return String::new() };
    let norms = !e.gate_norms.is_empty();
    let mut head = vec!["Layer", "Zeros", "Never active", "Small rows"];
    if norms {
        head.extend(["Smallest row", "Median row", "Largest row"]);
    }
    let of =
        run.sizes.as_ref().map_or(String::new(), |s| format!(" Each layer has {} neurons.", grouped(s.d_ff as u64)));
    let rows = e.zeros.iter().enumerate().map(|(layer, zeros)| {
        let count = |counts: &[usize]| counts.get(layer).map_or(String::new(), |&n| grouped(n as u64));
        let mut row = vec![layer.to_string(), format!("{:.1} %", 100.0 * zeros), count(&e.dead), count(&e.small_rows)];
        row.extend(e.gate_norms.get(layer).into_iter().flat_map(|q| [q[0], q[4], q[8]].map(short)));
        row
    });
    let missing = if norms { "" } else { " Norms of rows were not recorded when this run was made." };
    format!(
        "<div><h3>By layer, after step {}</h3>\n<p class=\"quiet\">Of {} tokens.{of}{missing}</p>\n{}</div>",
        grouped(e.steps_done as u64),
        grouped(e.tokens),
        table(&head, rows)
    )
}

/// What was measured after training.
pub fn results(results: &Results) -> String {
    let mut html = String::new();
    if !results.decoding.is_empty() {
        let head = ["Decoding", "Dense", "Sparse", "Whole model", "FFN alone", "Ceiling", "Zeros"];
        let times = |x: f64| format!("{x:.2} x");
        let rows = results.decoding.iter().map(|d| {
            vec![
                d.title.clone(),
                format!("{} tokens/s", number(d.dense, 0)),
                format!("{} tokens/s", number(d.sparse, 0)),
                times(d.sparse / d.dense),
                d.ffn_ratio.map_or("not measured".to_string(), times),
                times(d.ceiling),
                format!("{:.1} %", 100.0 * d.zeros),
            ]
        });
        html += &table(&head, rows);
    }
    for q in results.questions.iter().filter(|q| !q.examples.is_empty()) {
        let _ = writeln!(html, "<h3>Some of the questions: {}</h3>", Text(&q.title));
        html += "<div class=\"wide\"><table>\n<thead><tr><th scope=\"col\">Question</th><th scope=\"col\">Answer</th><th scope=\"col\">Expected</th>\
                 <th scope=\"col\"></th></tr></thead>\n<tbody>\n";
        for e in &q.examples {
            let (class, word) = if e.correct { ("good", "right") } else { ("bad", "wrong") };
            let cell = |text: &dyn Display| format!("<td>{}</td>", Text(text));
            let _ = writeln!(
                html,
                "<tr>{}{}{}<td><small class=\"{class}\">{word}</small></td></tr>",
                cell(&e.prompt),
                cell(&e.answer),
                cell(&e.expected)
            );
        }
        html += "</tbody></table></div>\n";
    }
    html
}

/// The keys of the configurations that are not the same in all runs.
pub fn differences(runs: &[Run]) -> String {
    let [first, others @ ..] = runs else { return String::new() };
    if others.is_empty() {
        return String::new();
    }
    let all: Vec<_> = others.iter().map(|run| first.config.differences(&run.config)).collect();
    let mut keys: Vec<&str> = Vec::new();
    for difference in all.iter().flatten() {
        if !keys.contains(&difference.key.as_str()) {
            keys.push(&difference.key);
        }
    }
    if keys.is_empty() {
        return "<p>The configurations are the same.</p>\n".to_string();
    }
    let mut rows = String::new();
    for key in keys {
        let of = |i: usize| all[i].iter().find(|d| d.key == key);
        let was = (0..all.len()).find_map(of).map_or(String::new(), |d| d.was.clone());
        let values = (0..all.len()).map(|i| of(i).map_or(was.clone(), |d| d.now.clone()));
        rows += &words_row(key, std::iter::once(was.clone()).chain(values).map(|value| cut(&value, 60)));
    }
    format!("<p>Where the configurations differ:</p>\n{}", table_of_runs(runs, &rows))
}
