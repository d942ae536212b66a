//! Tells a training run to the terminal: lines for what happens, a bar for what goes on.

use crate::terminal::{bytes, complain, counted, duration, grouped, quoted};
use indicatif::{ProgressBar, ProgressStyle};
use std::fmt::Display;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use train::events::{Event, Observer, Sample, Started, SwitchReport};
use train::metrics::{Evaluation, StepMetrics};

/// Without a terminal there is no bar; a line of numbers comes this often instead.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Listens to a run. Lines go to standard output, the bar to standard error. If standard output closes, the run goes on in
/// silence: what counts is in its folder.
pub struct Narrator {
    folder: PathBuf,
    bar: ProgressBar,
    last_line: Instant,
    peak_bytes: u64,
    /// The last step that took tensor memory from the system.
    last_fresh: Option<usize>,
    closed: bool,
}

impl Narrator {
    /// For the run in `folder`.
    pub fn new(folder: &Path) -> Narrator {
        Narrator {
            folder: folder.to_path_buf(),
            bar: ProgressBar::hidden(),
            last_line: Instant::now(),
            peak_bytes: 0,
            last_fresh: None,
            closed: false,
        }
    }

    /// One line, above the bar.
    pub fn line(&mut self, text: impl Display) {
        if !self.closed {
            self.closed = self.bar.suspend(|| writeln!(std::io::stdout(), "{text}")).is_err();
        }
    }

    fn started(&mut self, s: &Started) {
        self.line(format_args!(
            "model     {} parameters, {} tokens of context in training",
            grouped(s.parameters as u64),
            s.seq_len
        ));
        self.line(format_args!(
            "data      {} tokens to train on, {} to validate",
            grouped(s.train_tokens as u64),
            grouped(s.val_tokens as u64)
        ));
        let place = match s.device.as_str() {
            "cpu" => format!("{} at {}", counted(s.threads as u64, "thread"), s.level),
            gpu => format!("on {gpu}"),
        };
        self.line(format_args!(
            "run       {} of {}: {:.1} times through the data; {place}",
            counted(s.steps as u64, "step"),
            counted(s.batch_tokens as u64, "token"),
            s.epochs,
        ));
        self.line(format_args!("schedule  {}", s.schedule));
        self.line(format!("folder    {}", self.folder.display()));
        if s.steps_done > 0 {
            let rest = if s.steps_done < s.steps { "" } else { ", the last one: there is nothing left to train" };
            self.line(format_args!("resumed   after step {}{rest}", s.steps_done));
        }
        // The bar takes what the numbers leave: 80 columns are one line.
        let style = "{pos}/{len} {percent:>3} %  {msg}  {eta} left {wide_bar}";
        self.bar = ProgressBar::new(s.steps as u64)
            .with_style(ProgressStyle::with_template(style).expect("the template is valid"))
            .with_position(s.steps_done as u64);
        self.bar.reset_eta();
        self.last_line = Instant::now();
    }

    fn step(&mut self, m: &StepMetrics) {
        self.peak_bytes = self.peak_bytes.max(m.peak_bytes);
        if m.fresh_blocks > 0 {
            self.last_fresh = Some(m.step);
        }
        let numbers = format!("loss {:.3}  {:.0} tokens/s  {:.0} GFLOP/s", m.loss, m.tokens_per_second, m.gflops);
        if self.bar.is_hidden() && self.last_line.elapsed() > LINE_EVERY {
            self.last_line = Instant::now();
            self.line(format_args!("step {:>6}  {numbers}", m.step));
        }
        self.bar.set_message(numbers);
        self.bar.set_position(m.step as u64 + 1);
    }

    fn evaluation(&mut self, e: &Evaluation) {
        let under_psi =
            if e.activation == "RELU" { String::new() } else { format!("{:.4} under {}, ", e.loss, e.activation) };
        let zeros: Vec<String> = e.zeros.iter().map(|z| format!("{:.0}", 100.0 * z)).collect();
        let dead: usize = e.dead.iter().sum();
        let dead = if dead > 0 { format!("; {} never active", counted(dead as u64, "neuron")) } else { String::new() };
        self.line(format_args!(
            "eval {:>6}  loss {under_psi}{:.4} under RELU; zeros {:.1} % (by layer {}){dead}",
            e.steps_done,
            e.relu_loss,
            100.0 * e.mean_zeros(),
            zeros.join(" ")
        ));
    }

    fn switch(&mut self, report: &SwitchReport) {
        match report {
            SwitchReport::At { step, to, before, at } => self.line(format_args!(
                "switch    before step {step}: from {before:.4} to {at:.4} by turning to {to} ({:+.4})",
                at - before
            )),
            SwitchReport::After { steps, to, loss } => {
                let steps = counted(*steps as u64, "step");
                self.line(format_args!("switch    {loss:.4} after {steps} under {to}"));
            }
        }
    }

    fn sample(&mut self, s: &Sample) {
        self.line(format_args!("sample    after step {}, {}:", s.steps_done, s.how));
        for line in format!("{}{}", s.prompt, s.text).trim_matches('\n').lines() {
            self.line(format_args!("  | {line}"));
        }
    }
}

impl Observer for Narrator {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Started(s) => self.started(s),
            Event::Note(text) => self.bar.suspend(|| complain(format_args!("note: {text}"))),
            Event::Step(m) => self.step(m),
            Event::Evaluation(e) => self.evaluation(e),
            Event::Switch(report) => self.switch(report),
            Event::Sample(s) => self.sample(s),
            // The last one is named below; the others are in the folder.
            Event::Checkpoint { .. } => {}
            Event::Interrupted { steps_done } => {
                // Left on the screen, it would promise a rest of the way that nobody goes.
                self.bar.finish_and_clear();
                let resume = format!("silurian train --resume {}", quoted(&self.folder));
                self.line(format_args!("stopped   after step {steps_done}, saved; to go on: {resume}"));
            }
            Event::Finished { steps_done, seconds } => {
                self.bar.finish_and_clear();
                self.line(format_args!("done      {} in {}", counted(steps_done as u64, "step"), duration(seconds)));
                if self.peak_bytes > 0 {
                    let since = self.last_fresh.map_or("none new".to_string(), |n| format!("none new after step {n}"));
                    self.line(format!("memory    {} of tensors at most; {since}", bytes(self.peak_bytes)));
                }
            }
        }
    }
}
