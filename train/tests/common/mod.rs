//! A small run: a generated text, a model of 30 thousand parameters, and an observer that keeps what it hears.
#![allow(dead_code)] // each test binary uses a part of it

use model::Switch;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use tensor::Device;
use train::config::TrainConfig;
use train::events::SwitchReport;
use train::metrics::{Evaluation, StepMetrics};
use train::{Error, Event, Observer, Outcome, Trainer};

const WORDS: [&str; 8] = ["river", "stone", "cloud", "maple", "heron", "ember", "frost", "tower"];

/// Random words of five letters and a space: `ln 8 / 6` = 0.347 nats a byte, which no model can go below.
pub fn text(words: usize) -> String {
    let mut state = 88172645463325252u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        WORDS[(state >> 32) as usize % 8]
    };
    (0..words).map(|_| format!("{} ", next())).collect()
}

/// Trains on `dir/text.txt`, which is written, with StochA(0.5) and Swi+FT over 40 steps.
pub fn config(dir: &Path) -> TrainConfig {
    let path = dir.join("text.txt");
    std::fs::write(&path, text(4000)).unwrap();
    let mut config = TrainConfig::default();
    let m = &mut config.model;
    (m.d_model, m.n_layers, m.n_heads, m.n_kv_heads) = (Some(32), Some(2), Some(4), Some(2));
    (m.d_ff, m.max_seq_len, m.tie_embeddings) = (Some(96), Some(64), Some(true));
    config.activation = model::Psi::stochastic(0.5).into();
    config.data.paths = vec![path];
    config.data.cache = Some(dir.join("cache"));
    let t = &mut config.train;
    (t.steps, t.seq_len, t.micro_batch, t.warmup_steps) = (40, Some(32), 4, 5);
    (t.lr, t.seed) = (1e-2, 7);
    t.switch = Some(Switch { to: model::HiddenAct::Relu, alpha: 0.25 });
    (t.eval_every, t.eval_tokens, t.sample_every, t.checkpoint_every) = (20, 512, 0, 10);
    config
}

/// Keeps what it hears, and sets the flag after a step, if told to.
#[derive(Default)]
pub struct Listener {
    pub steps: Vec<StepMetrics>,
    pub evaluations: Vec<Evaluation>,
    pub switches: Vec<SwitchReport>,
    pub notes: Vec<String>,
    pub samples: Vec<String>,
    pub schedule: String,
    pub checkpoints: Vec<usize>,
    pub stop_after: Option<usize>,
}

/// The flag is read while the listener is borrowed, so it is shared by reference.
pub struct Ears<'a>(pub &'a mut Listener, pub &'a AtomicBool);

impl Observer for Ears<'_> {
    fn event(&mut self, event: Event<'_>) {
        let l = &mut *self.0;
        match event {
            Event::Started(started) => l.schedule = started.schedule.clone(),
            Event::Note(text) => l.notes.push(text.to_string()),
            Event::Step(step) => {
                l.steps.push(step.clone());
                if l.stop_after == Some(step.step + 1) {
                    self.1.store(true, Ordering::Relaxed);
                }
            }
            Event::Evaluation(eval) => l.evaluations.push(eval.clone()),
            Event::Switch(report) => l.switches.push(report.clone()),
            Event::Sample(sample) => l.samples.push(format!("{} [{}]", sample.text, sample.how)),
            Event::Checkpoint { steps_done, .. } => l.checkpoints.push(steps_done),
            Event::Interrupted { .. } | Event::Finished { .. } => {}
        }
    }
}

/// Trains a new run to its end, or to a stop after `stop_after` steps.
pub fn train(
    run: &Path,
    config: TrainConfig,
    stop_after: Option<usize>,
) -> Result<(Outcome, Listener, Trainer), Error> {
    train_on(&Device::Cpu, run, config, stop_after)
}

/// The same, on a device.
pub fn train_on(
    device: &Device,
    run: &Path,
    config: TrainConfig,
    stop_after: Option<usize>,
) -> Result<(Outcome, Listener, Trainer), Error> {
    let mut listener = Listener { stop_after, ..Listener::default() };
    let stop = AtomicBool::new(false);
    let mut trainer = Trainer::create(run, config, device, &mut Ears(&mut listener, &stop))?;
    let outcome = trainer.run(&stop, &mut Ears(&mut listener, &stop))?;
    Ok((outcome, listener, trainer))
}

/// Goes on with a run.
pub fn resume(
    run: &Path,
    config: Option<TrainConfig>,
    stop_after: Option<usize>,
) -> Result<(Outcome, Listener, Trainer), Error> {
    resume_on(&Device::Cpu, run, config, stop_after)
}

/// The same, on a device.
pub fn resume_on(
    device: &Device,
    run: &Path,
    config: Option<TrainConfig>,
    stop_after: Option<usize>,
) -> Result<(Outcome, Listener, Trainer), Error> {
    let mut listener = Listener { stop_after, ..Listener::default() };
    let stop = AtomicBool::new(false);
    let mut trainer = Trainer::resume(run, config, device, &mut Ears(&mut listener, &stop))?;
    let outcome = trainer.run(&stop, &mut Ears(&mut listener, &stop))?;
    Ok((outcome, listener, trainer))
}

/// The bits of weights and moments, as the files of a checkpoint have them.
pub fn bits(checkpoint: &Path) -> (Vec<u8>, Vec<u8>) {
    let read = |name| std::fs::read(checkpoint.join(name)).unwrap();
    (read("model.safetensors"), read("optimizer.safetensors"))
}

pub fn checkpoint(run: &Path, steps: usize) -> PathBuf {
    run.join("checkpoints").join(format!("step-{steps}"))
}

/// The losses in `metrics.jsonl`, as bits, with their step: what does not depend on the clock.
pub fn losses(run: &Path) -> Vec<(usize, u64, u64)> {
    let records = train::run_dir::read_metrics(run).unwrap();
    records.iter().map(|r| (r.step, r.loss.to_bits(), r.grad_norm.to_bits())).collect()
}
