//! What is drawn of one run, and of several over each other.

use super::results::Results;
use super::run::Run;
use crate::html::curve::{self, Point, smooth};
use crate::html::plot::{Bar, Curve, INTERVALS, Look, Mark, Plot, bars};
use crate::html::scale::{Scale, number, short};
use crate::metrics::{Evaluation, SMALL_ROW};
use crate::words::counted;

/// Colours of runs in the style sheet. Beyond them, curves are dashed.
const COLORS: usize = 6;

/// Names of runs up to this length stand at the ends of their curves; longer ones are in a legend.
const LABEL: usize = 14;

/// The first share of a run, whose losses fall from far above: they may leave the frame, so that the rest can be seen.
const FALL: f64 = 0.04;

/// Steps after the switch in the enlarged picture, and half as many before it.
const AFTER_SWITCH: usize = 200;

/// Layers whose names fit beside a picture.
const NAMED_LAYERS: usize = 10;

/// The colour of a run.
pub fn color(run: usize) -> String {
    format!("var(--run-{})", run % COLORS)
}

fn layer_color(layer: usize) -> String {
    format!("var(--layer-{layer})")
}

/// Steps on either side of one that are averaged with it.
fn radius(run: &Run) -> usize {
    (run.steps.len() / 120).min(100)
}

/// A curve of a run among others.
fn of_run(runs: &[Run], i: usize, look: Look, points: Vec<Point>) -> Curve {
    let look = match look {
        Look::Line | Look::Dots if i / COLORS % 2 == 1 => Look::Dashed,
        look => look,
    };
    let short = runs.iter().all(|run| run.name.chars().count() <= LABEL);
    let name = runs[i].name.clone();
    Curve { label: (short && runs.len() > 1).then(|| name.clone()), name, listed: true, color: color(i), look, points }
}

fn curve(name: impl Into<String>, color: &str, look: Look, points: Vec<Point>) -> Curve {
    Curve { name: name.into(), label: None, listed: true, color: color.to_string(), look, points }
}

/// From step 0 to the last one that any run has done.
fn steps(runs: &[Run]) -> Scale {
    let last = runs.iter().map(Run::steps_done).max().unwrap_or(1);
    Scale::Linear { low: 0.0, high: last as f64 }
}

/// Where each run turned to RELU.
fn switches(runs: &[Run]) -> Vec<Mark> {
    let label =
        |at: usize| if runs.len() == 1 { format!("RELU from step {}", number(at as f64, 0)) } else { String::new() };
    let color = |i| if runs.len() == 1 { "var(--quiet)".to_string() } else { color(i) };
    let mark =
        |(i, run): (usize, &Run)| run.switch().map(|at| Mark { at: at as f64, label: label(at), color: color(i) });
    runs.iter().enumerate().filter_map(mark).collect()
}

/// A plot over steps with the switches marked.
fn over_steps(runs: &[Run], title: &str, y_name: &str, y: Scale, curves: Vec<Curve>) -> Plot {
    Plot {
        title: title.to_string(),
        note: String::new(),
        x_name: "step",
        y_name: y_name.to_string(),
        x: steps(runs),
        y,
        unit: "",
        right: None,
        curves,
        marks: switches(runs),
        levels: Vec::new(),
    }
}

fn values(curves: &[Curve]) -> impl Iterator<Item = f64> + '_ {
    curves.iter().flat_map(|c| c.points.iter().map(|p| p.1))
}

/// Training and validation loss, and the switch enlarged.
pub fn loss(runs: &[Run]) -> Vec<Plot> {
    let mut plots = match runs {
        [run] => vec![loss_of_one(run)],
        _ => loss_of_several(runs),
    };
    plots.extend(around_the_switch(runs));
    plots
}

fn training_loss(run: &Run, radius: usize) -> Vec<Point> {
    smooth(&run.by_step(|s| s.loss), radius, &run.switch_index())
}

/// Validation losses under the training activation, up to the switch; beyond it they are those under RELU.
fn loss_before_switch(run: &Run) -> Vec<Point> {
    run.by_evaluation(|e| (e.activation != "RELU").then_some(e.loss))
}

fn validation_before_switch(run: &Run) -> Option<Curve> {
    let points = loss_before_switch(run);
    let name = format!("validation under {}", run.phases.psi(0));
    (!points.is_empty()).then(|| curve(name, &color(2), Look::Dots, points))
}

/// A scale for losses: what comes after the first fall fits, and of losses under RELU what is not far above.
fn loss_scale(runs: &[Run], curves: &[&Curve], under_relu: &[&Curve]) -> Scale {
    let longest = runs.iter().map(Run::steps_done).max().unwrap_or(1);
    let settled = |c: &&Curve| {
        let late: Vec<f64> = c.points.iter().filter(|p| p.0 >= FALL * longest as f64).map(|p| p.1).collect();
        // A short run is all fall.
        if late.len() < 3 { c.points.iter().map(|p| p.1).collect() } else { late }
    };
    let mut values: Vec<f64> = curves.iter().flat_map(settled).collect();
    let (low, high) = Scale::tight(values.iter().copied()).ends();
    let room = if values.is_empty() { f64::INFINITY } else { high + 0.6 * (high - low) };
    values.extend(under_relu.iter().flat_map(settled).map(|v| v.min(room)));
    Scale::round(values, INTERVALS)
}

fn loss_of_one(run: &Run) -> Plot {
    let radius = radius(run);
    let mut curves = Vec::new();
    if radius > 0 {
        curves.push(curve("training, each step", &color(0), Look::Faint, run.by_step(|s| s.loss)));
    }
    let name = if radius > 0 { format!("training, mean of {} steps", 2 * radius + 1) } else { "training".to_string() };
    curves.push(curve(name, &color(0), Look::Line, training_loss(run, radius)));
    let relu = curve("validation under RELU", &color(1), Look::Heavy, run.by_evaluation(|e| Some(e.relu_loss)));
    let before = validation_before_switch(run);
    let others: Vec<&Curve> = curves.iter().chain(&before).filter(|c| c.look != Look::Faint).collect();
    let y = loss_scale(std::slice::from_ref(run), &others, &[&relu]);
    // The thinner one above the other: they can be close.
    curves.push(relu);
    curves.extend(before);
    let above = run.steps.iter().take_while(|s| s.loss > y.ends().1).count();
    let first = run.steps[0].loss;
    let note = match above {
        0 => String::new(),
        1 => format!("The first step, with a loss of {}, is above the frame.", short(first)),
        n => format!("The first {n} steps, from a loss of {} on, are above the frame.", short(first)),
    };
    let plot = over_steps(std::slice::from_ref(run), "Training and validation", "nats a token", y, curves);
    Plot { note, ..plot }
}

fn loss_of_several(runs: &[Run]) -> Vec<Plot> {
    let each = |look, points: &dyn Fn(&Run) -> Vec<Point>| -> Vec<Curve> {
        (0..runs.len()).map(|i| of_run(runs, i, look, points(&runs[i]))).collect()
    };
    let plot = |title: &str, note: &str, curves: Vec<Curve>, is_relu: bool| {
        let all: Vec<&Curve> = curves.iter().collect();
        let y = if is_relu { loss_scale(runs, &[], &all) } else { loss_scale(runs, &all, &[]) };
        let curves = curves.into_iter().filter(|c| !c.points.is_empty()).collect::<Vec<_>>();
        let plot = over_steps(runs, title, "nats a token", y, curves);
        Plot { note: note.to_string(), ..plot }
    };
    let mut plots = vec![
        plot(
            "Validation loss under RELU",
            "Dashed verticals: where a run turned to RELU.",
            each(Look::Dots, &|run| run.by_evaluation(|e| Some(e.relu_loss))),
            true,
        ),
        plot("Training loss", "Smoothed.", each(Look::Line, &|run| training_loss(run, radius(run))), false),
    ];
    let before = each(Look::Dots, &loss_before_switch);
    if before.iter().any(|c| !c.points.is_empty()) {
        let note = "Up to the switch to RELU; stochastic draws are the same in every evaluation.";
        plots.push(plot("Validation loss under the training activation", note, before, false));
    }
    plots
}

/// The steps around the switch: of one run at their number, of several counted from it.
fn around_the_switch(runs: &[Run]) -> Option<Plot> {
    let after = |run: &Run| Some((run.steps_done() - run.switch()?).min(AFTER_SWITCH));
    let most = runs.iter().filter_map(after).max()?.max(2);
    let single = runs.len() == 1;
    let (mut curves, mut note, mut middle) = (Vec::new(), String::new(), 0.0);
    for (i, run) in runs.iter().enumerate() {
        let Some(at) = run.switch() else { continue };
        let (at, origin) = (at as f64, if single { 0.0 } else { at as f64 });
        let window = |points: Vec<Point>| -> Vec<Point> {
            let inside = points.into_iter().filter(|p| (-0.5 * most as f64..=most as f64).contains(&(p.0 - at)));
            inside.map(|(x, y)| (x - origin, y)).collect()
        };
        if !single {
            let points = window(training_loss(run, 3));
            let before: Vec<f64> = points.iter().filter(|p| p.0 < 0.0).map(|p| p.1).collect();
            let mean = before.iter().sum::<f64>() / before.len().max(1) as f64;
            let points = points.into_iter().map(|(x, y)| (x, y - mean)).collect();
            curves.push(of_run(runs, i, Look::Line, points));
            continue;
        }
        middle = at;
        curves.push(curve("training, each step", &color(0), Look::Faint, window(run.by_step(|s| s.loss))));
        curves.push(curve("training, mean of 7 steps", &color(0), Look::Line, window(training_loss(run, 3))));
        let relu = window(run.by_evaluation(|e| Some(e.relu_loss)));
        curves.push(curve("validation under RELU", &color(1), Look::Heavy, relu));
        curves.extend(validation_before_switch(run).map(|c| Curve { points: window(c.points.clone()), ..c }));
        note = switch_in_words(run).unwrap_or_default();
    }
    let x = Scale::Linear { low: middle - 0.5 * most as f64, high: middle + most as f64 };
    let x = if single { Scale::Linear { low: x.ends().0.max(0.0), high: x.ends().1 } } else { x };
    let y = Scale::round(values(&curves), INTERVALS);
    let mark = Mark { at: middle, label: "RELU".to_string(), color: "var(--quiet)".to_string() };
    Some(Plot {
        title: "Around the switch".to_string(),
        note: if single {
            note
        } else {
            "Training loss, mean of 7 steps, less its mean before the switch.".to_string()
        },
        x_name: if single { "step" } else { "steps from the switch" },
        x,
        marks: vec![mark],
        ..over_steps(runs, "", "nats a token", y, curves)
    })
}

/// `Turning to RELU took the validation loss from .. to ..`.
pub fn switch_in_words(run: &Run) -> Option<String> {
    let (at, e) = (run.switch()?, run.evaluation_at_switch()?);
    let mut text = format!(
        "Turning to RELU took the validation loss from {:.4} to {:.4} ({})",
        e.loss,
        e.relu_loss,
        signed(e.relu_loss - e.loss, 4)
    );
    let later: Vec<&Evaluation> = run.evaluations().filter(|e| e.steps_done > at).collect();
    if let Some(first) = later.first() {
        text += &format!("; after {} it was {:.4}", counted((first.steps_done - at) as u64, "step"), first.relu_loss);
    }
    if let Some(last) = later.last().filter(|_| later.len() > 1) {
        text += &format!(", after {} {:.4}", last.steps_done - at, last.relu_loss);
    }
    Some(text + ".")
}

/// A difference: `+0.012`, `\u{2212}0.3`.
pub fn signed(value: f64, decimals: usize) -> String {
    let text = number(value, decimals);
    if value > 0.0 { format!("+{text}") } else { text }
}

/// One curve for each layer, of a value that its evaluations have.
fn by_layer(run: &Run, value: impl Fn(&Evaluation, usize) -> Option<f64>) -> Vec<Curve> {
    let layers = run.layers();
    let curve = |layer: usize| {
        let name = format!("layer {layer}");
        Curve {
            label: (layers <= NAMED_LAYERS).then(|| name.clone()),
            name,
            listed: false,
            color: layer_color(layer),
            look: Look::Dots,
            points: run.by_evaluation(|e| value(e, layer)),
        }
    };
    (0..layers).map(curve).filter(|c| !c.points.is_empty()).collect()
}

fn layers_note(run: &Run) -> String {
    let last = run.layers().saturating_sub(1);
    if last < NAMED_LAYERS { String::new() } else { format!(" Colours go from layer 0 to layer {last}.") }
}

/// Zeros of psi(g) under RELU: over time by layer, and for several runs the means and the last values by layer.
pub fn zeros(runs: &[Run]) -> Vec<Plot> {
    let percent = |mut curves: Vec<Curve>| {
        curves.iter_mut().flat_map(|c| &mut c.points).for_each(|p| p.1 *= 100.0);
        curves
    };
    let scale = |curves: &[Curve]| {
        let (low, _) = Scale::round(values(curves).chain([100.0]), INTERVALS).ends();
        Scale::Linear { low: low.max(0.0), high: 100.0 }
    };
    let mut plots = Vec::new();
    if runs.len() > 1 {
        let mean = |i| of_run(runs, i, Look::Dots, runs[i].by_evaluation(|e| Some(e.mean_zeros())));
        let curves = percent((0..runs.len()).map(mean).collect());
        let y = scale(&curves);
        let note = "Share of psi(g) that is 0 under RELU, mean of the layers.".to_string();
        plots.push(Plot { note, unit: " %", ..over_steps(runs, "Zeros", "of psi(g)", y, curves) });
        let last = |i: usize| {
            let zeros = runs[i].last_evaluation().map(|e| e.zeros.clone()).unwrap_or_default();
            of_run(runs, i, Look::Dots, zeros.into_iter().enumerate().map(|(l, z)| (l as f64, z)).collect())
        };
        let curves = percent((0..runs.len()).map(last).collect());
        let layers = runs.iter().map(Run::layers).max().unwrap_or(1);
        plots.push(Plot {
            note: "At the last evaluation of each run.".to_string(),
            x_name: "layer",
            x: Scale::Linear { low: -0.3, high: layers as f64 - 0.7 },
            marks: Vec::new(),
            unit: " %",
            ..over_steps(runs, "Zeros by layer", "of psi(g)", scale(&curves), curves)
        });
    }
    for run in runs {
        let mut curves = percent(by_layer(run, |e, layer| e.zeros.get(layer).copied()));
        let mean = curve("mean", "var(--ink)", Look::Heavy, run.by_evaluation(|e| Some(e.mean_zeros())));
        curves.extend(percent(vec![Curve { label: Some("mean".to_string()), ..mean }]));
        let (title, note) = match runs {
            [_] => ("Zeros by layer".to_string(), "Share of psi(g) that is 0 under RELU.".to_string()),
            _ => (format!("Zeros by layer: {}", run.name), String::new()),
        };
        let note = format!("{note}{}", layers_note(run)).trim().to_string();
        let y = scale(&curves);
        plots.push(Plot { note, unit: " %", ..over_steps(std::slice::from_ref(run), &title, "of psi(g)", y, curves) });
    }
    plots
}

/// Neurons that are never active, and the norms of gate_proj's rows.
pub fn neurons(runs: &[Run]) -> Vec<Plot> {
    let share = |e: &Evaluation, n: usize, d_ff: usize| 100.0 * n as f64 / (d_ff * e.dead.len().max(1)) as f64;
    // Without the width there are counts alone.
    let known = runs.iter().all(|run| run.sizes.is_some());
    let unit = if known { " %" } else { "" };
    let from_zero =
        |curves: &[Curve]| Scale::round(values(curves).chain([0.0, if known { 1.0 } else { 4.0 }]), INTERVALS);
    let mut plots = Vec::new();
    let width = |run: &Run| run.sizes.as_ref().map_or(0, |s| s.d_ff);
    let curves: Vec<Curve> = match runs {
        [run] => by_layer(run, |e, layer| {
            let n = *e.dead.get(layer)?;
            Some(if known { 100.0 * n as f64 / width(run) as f64 } else { n as f64 })
        }),
        _ => (0..runs.len())
            .map(|i| {
                let all = |e: &Evaluation| e.dead.iter().sum::<usize>();
                let value = |e: &Evaluation| if known { share(e, all(e), width(&runs[i])) } else { all(e) as f64 };
                of_run(runs, i, Look::Dots, runs[i].by_evaluation(|e| Some(value(e))))
            })
            .collect(),
    };
    let y = from_zero(&curves);
    let y_name = if known { "of the neurons" } else { "neurons" };
    let note = "Neurons that RELU lets through on no token of the evaluation.".to_string();
    let note = if let [run] = runs { note + &layers_note(run) } else { note };
    plots.push(Plot { note, unit, ..over_steps(runs, "Never active", y_name, y, curves) });

    let smallest = |norms: &[f64; 9]| 100.0 * norms[0] / norms[4];
    let curves: Vec<Curve> = match runs {
        [run] => by_layer(run, |e, layer| e.gate_norms.get(layer).map(smallest)),
        _ => (0..runs.len())
            .map(|i| {
                let least = |e: &Evaluation| e.gate_norms.iter().map(smallest).reduce(f64::min);
                of_run(runs, i, Look::Dots, runs[i].by_evaluation(least))
            })
            .filter(|c| !c.points.is_empty())
            .collect(),
    };
    if curves.is_empty() {
        return plots;
    }
    let small = 100.0 * SMALL_ROW;
    let level = Mark { at: small, label: format!("{small} %: small"), color: "var(--quiet)".to_string() };
    let y = Scale::round(values(&curves).chain([0.0]), INTERVALS);
    let note = "Norm of the smallest row over that of the median row. Dead neurons have rows near zero.".to_string();
    plots.push(Plot {
        note,
        unit: " %",
        levels: vec![level],
        ..over_steps(runs, "Smallest row of gate_proj", "of the median row", y, curves)
    });
    if let [run] = runs {
        let curves = by_layer(run, |e, layer| e.gate_norms.get(layer).map(|norms| norms[4]));
        let y = Scale::round(values(&curves).chain([0.0]), INTERVALS);
        plots.push(over_steps(runs, "Median row of gate_proj", "norm", y, curves));
    }
    plots
}

/// Tokens/s, learning rate, norm of the gradient.
pub fn speed(runs: &[Run]) -> Vec<Plot> {
    let each = |look, points: &dyn Fn(&Run) -> Vec<Point>| -> Vec<Curve> {
        (0..runs.len()).map(|i| of_run(runs, i, look, points(&runs[i]))).collect()
    };
    let smoothed = |run: &Run, value: &dyn Fn(&crate::metrics::StepMetrics) -> f64| {
        smooth(&run.by_step(value), radius(run).max(1), &run.switch_index())
    };
    let rate = |run: &Run| smoothed(run, &|s| s.tokens_per_second);
    let mut curves = each(Look::Line, &rate);
    // The first steps fill pools and caches; a pause of the machine is no scale either.
    let top = curve::quantile(values(&curves), 0.995).unwrap_or(1.0);
    let mut right = None;
    if let [run] = runs {
        curves.insert(0, curve("each step", &color(0), Look::Faint, run.by_step(|s| s.tokens_per_second)));
        curves[1].name = format!("mean of {} steps", 2 * radius(run).max(1) + 1);
        right = Some(("GFLOP/s".to_string(), run.last().gflops / run.last().tokens_per_second));
    }
    let resumed =
        |run: &Run| run.sessions.iter().filter(|s| s.steps_done > 0).map(|s| s.steps_done).collect::<Vec<_>>();
    let note = match runs {
        [run] if !resumed(run).is_empty() => {
            let at: Vec<String> = resumed(run).iter().map(|&n| number(n as f64, 0)).collect();
            format!("Resumed after step {}.", at.join(", "))
        }
        _ => String::new(),
    };
    let y = Scale::round([0.0, 1.02 * top], INTERVALS);
    let mut plots = vec![Plot { right, note, ..over_steps(runs, "Speed of training", "tokens/s", y, curves) }];
    if runs.len() > 1 {
        let curves = each(Look::Line, &|run| smoothed(run, &|s| s.gflops));
        let y = Scale::round([0.0, 1.02 * curve::quantile(values(&curves), 0.995).unwrap_or(1.0)], INTERVALS);
        plots.push(over_steps(runs, "Operations", "GFLOP/s", y, curves));
    }
    let curves = each(Look::Line, &|run| run.by_step(|s| s.lr));
    let y = Scale::round(values(&curves).chain([0.0]), INTERVALS);
    plots.push(over_steps(runs, "Learning rate", "", y, curves));

    let mut curves = each(Look::Line, &|run| smoothed(run, &|s| s.grad_norm));
    if let [run] = runs {
        curves.insert(0, curve("each step", &color(0), Look::Faint, run.by_step(|s| s.grad_norm)));
        curves[1].name = format!("mean of {} steps", 2 * radius(run).max(1) + 1);
    }
    let clip = runs[0].config.train.grad_clip;
    let common = clip > 0.0 && runs.iter().all(|run| run.config.train.grad_clip == clip);
    let level = || Mark { at: clip, label: format!("clipped to {clip}"), color: "var(--quiet)".to_string() };
    let y = Scale::log(values(&curves).chain(common.then_some(clip)));
    let levels = if common { vec![level()] } else { Vec::new() };
    plots.push(Plot { levels, ..over_steps(runs, "Norm of the gradient", "", y, curves) });
    plots
}

/// Answers and speeds of one run, as bars.
pub fn results(results: &Results) -> Vec<String> {
    let quiet = || "var(--axis)".to_string();
    let mut figures = Vec::new();
    for q in results.questions.iter().filter(|q| q.asked > 0) {
        let share = |right: usize, of: usize| 100.0 * right as f64 / of.max(1) as f64;
        let bar = |label: &str, correct: usize, asked: usize, baseline: f64, color: String| Bar {
            label: format!("{label}: {correct} of {asked}"),
            value: share(correct, asked),
            text: format!("{:.1} %", share(correct, asked)),
            color,
            reference: Some((100.0 * baseline, format!("most frequent answer {:.1} %", 100.0 * baseline))),
        };
        let mut rows = vec![bar("right answers", q.correct, q.asked, q.baseline, color(0))];
        rows.extend(q.kinds.iter().map(|k| bar(&k.name, k.correct, k.asked, k.baseline, quiet())));
        figures.push(bars(&format!("Questions: {}", q.title), &q.how, &rows, 100.0));
    }
    for d in results.decoding.iter().filter(|d| d.dense > 0.0) {
        let rate = |label: &str, value: f64, color: String| Bar {
            label: label.to_string(),
            value: value / d.dense,
            text: format!("{} tokens/s", number(value, 0)),
            color,
            reference: None,
        };
        let ceiling = || Some((d.ceiling, format!("ceiling {:.2} x", d.ceiling)));
        let mut rows = vec![
            rate("dense, whole model", d.dense, quiet()),
            rate(&format!("sparse, whole model: {:.2} x", d.sparse / d.dense), d.sparse, color(0)),
        ];
        rows.extend(d.ffn_ratio.map(|ratio| Bar {
            label: "sparse, FFN alone".to_string(),
            value: ratio,
            text: format!("{ratio:.2} x"),
            color: color(2),
            reference: ceiling(),
        }));
        let end = rows.iter().map(|row| row.value).fold(d.ceiling, f64::max);
        let note = format!(
            "{} {:.1} % zeros.",
            if d.how.is_empty() { String::new() } else { format!("{}.", d.how) },
            100.0 * d.zeros
        );
        figures.push(bars(&format!("Decoding: {}", d.title), note.trim(), &rows, end));
    }
    figures
}
