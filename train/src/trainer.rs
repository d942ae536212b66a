//! The loop: steps, evaluations, samples, checkpoints, and how it begins, stops and goes on.

use crate::checkpoint::{self, State};
use crate::config::{ConfigError, TrainConfig};
use crate::data::{Batches, Documents, Tokenizer, Tokens, cache};
use crate::error::Error;
use crate::evaluate::{EvalShape, evaluate};
use crate::events::{Event, Observer, Sample, Started, SwitchReport};
use crate::metrics::{Evaluation, StepMetrics};
use crate::optimizer::Optimizer;
use crate::run_dir::RunDir;
use crate::sample::sample;
use crate::schedule::{LearningRate, Phases};
use crate::step::{StepShape, first_non_finite_weight, train_step, training_draws};
use crate::words::counted;
use kernels::Team;
use model::{Config, Psi, Transformer, Weights, hf};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tensor::failure::{self, Failure};
use tensor::{Device, pool};

/// Steps after the switch at which the loss is looked at again: the spike is over by then in small models.
pub const STEPS_AFTER_SWITCH: usize = 20;

/// Keys that a resumed run may change: they decide what is reported and kept, not what is learnt. `data.paths` may change
/// because moved data are the same data; that they are is checked by their hash. `train.micro_batch` may, because another GPU may have
/// less memory; it changes the rounding, which is noted.
pub const MAY_CHANGE: [&str; 10] = [
    "data.paths",
    "data.cache",
    "train.micro_batch",
    "train.eval_every",
    "train.eval_tokens",
    "train.sample_every",
    "train.sample_prompt",
    "train.sample_tokens",
    "train.checkpoint_every",
    "train.keep_last",
];

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done.
    Finished,
    /// The stop flag was set. A checkpoint of the last step done is saved.
    Interrupted,
}

/// A run, ready to go.
pub struct Trainer {
    config: TrainConfig,
    device: Device,
    run: RunDir,
    tokenizer: Tokenizer,
    batches: Batches,
    model: Transformer,
    optimizer: Optimizer,
    learning_rate: LearningRate,
    phases: Phases,
    shape: StepShape,
    /// Steps done: the number of the next step.
    steps_done: usize,
    /// Steps done of the newest checkpoint.
    saved: Option<usize>,
}

impl Trainer {
    /// A new run in a new folder, on `device`. The initial weights are those of the CPU, bit for bit.
    ///
    /// Errors: anything wrong with configuration, data or checkpoint to start from, and memory that does not suffice for weights
    /// and moments, before the folder is made; [`Error::Exists`].
    pub fn create(
        path: &Path,
        config: TrainConfig,
        device: &Device,
        observer: &mut dyn Observer,
    ) -> Result<Trainer, Error> {
        let start = match &config.model.from {
            Some(from) => Some(starting_weights(&config, from)?),
            None => None,
        };
        let tokenizer = Tokenizer::Bytes;
        let sizes = start.as_ref().map(|w| w.config().clone());
        let (config, sizes) = config.resolve(tokenizer.vocab_size(), sizes)?;
        check_prompt(&config, tokenizer, &sizes)?;
        config.check_device(device)?;
        check_memory(&config, &sizes, device)?;
        let batches = open_data(&config, tokenizer, observer)?.on(device);
        RunDir::expect_free(path)?;
        let weights = start.unwrap_or_else(|| Weights::init(&sizes, config.train.seed));
        let (model, optimizer) = bring(weights, None, &config, device)?;
        let run = RunDir::create(path, &config)?;
        Ok(Trainer::new(config, run, tokenizer, batches, model, optimizer, None))
    }

    /// Goes on with the run in `path`, from its newest whole checkpoint, or from the start if it has none yet. `config` is that
    /// of the run if `None`. The result of all steps is that of an uninterrupted run, bit for bit, if the instruction set, or a GPU's,
    /// and the micro-batch are the same; others are noted.
    ///
    /// Errors: [`Error::NotARun`], [`Error::InUse`]; [`Error::Changed`] if a key outside of [`MAY_CHANGE`] differs;
    /// [`Error::DataChanged`]; a checkpoint that cannot be read.
    pub fn resume(
        path: &Path,
        config: Option<TrainConfig>,
        device: &Device,
        observer: &mut dyn Observer,
    ) -> Result<Trainer, Error> {
        let mut run = RunDir::open(path)?;
        let tokenizer = Tokenizer::Bytes;
        let stored = run.config()?;
        let newest = checkpoint::latest(&run.checkpoints(), &mut |text| observer.event(Event::Note(&text)))?;

        let is_given = config.is_some();
        let config = config.unwrap_or_else(|| stored.clone());
        let (loaded, was) = match &newest {
            Some((path, state)) => (Some(checkpoint::load(path, state, &config)?), &state.config),
            None => (None, &stored),
        };
        let (weights, optimizer) = match loaded {
            Some((weights, optimizer)) => (Some(weights), Some(optimizer)),
            None => (config.model.from.as_ref().map(|from| starting_weights(&config, from)).transpose()?, None),
        };
        let from_sizes = weights.as_ref().filter(|_| config.model.from.is_some()).map(|w| w.config().clone());
        let (config, sizes) = config.resolve(tokenizer.vocab_size(), from_sizes)?;
        // Runs from before there were other pairs do not write theirs out.
        let was = TrainConfig { activation: was.activation.complete(), ..was.clone() };
        let mut changes = was.differences(&config);
        changes.retain(|change| !MAY_CHANGE.contains(&change.key.as_str()));
        if !changes.is_empty() {
            return Err(Error::Changed { path: path.to_path_buf(), changes });
        }

        check_prompt(&config, tokenizer, &sizes)?;
        config.check_device(device)?;
        check_memory(&config, &sizes, device)?;
        let batches = open_data(&config, tokenizer, observer)?.on(device);
        if let Some((_, state)) = &newest {
            if state.data_hash != batches.tokens().hash() {
                let (was, now) = (state.data_hash.clone(), batches.tokens().hash());
                return Err(Error::DataChanged { path: path.to_path_buf(), was, now });
            }
            let mut note_change = |what: &str, was: &str, now: &str| {
                if was != now {
                    let path = path.display();
                    let note =
                        format!("{path}: the run was at {what} {was} and goes on at {now}: its last bits will differ");
                    observer.event(Event::Note(&note));
                }
            };
            note_change("level", &state.level, &level(device));
            let [was, now] = [&was, &config].map(|config| config.train.micro_batch.to_string());
            note_change("train.micro_batch", &was, &now);
        } else {
            observer.event(Event::Note(&format!("{}: no checkpoint yet: starts at step 0", path.display())));
        }
        let weights = weights.unwrap_or_else(|| Weights::init(&sizes, config.train.seed));
        let (model, optimizer) = bring(weights, optimizer, &config, device)?;
        if is_given {
            run.write_config(&config)?;
        }
        let steps_done = newest.map(|(_, state)| state.steps_done);
        let records = run.cut_records(steps_done.unwrap_or(0))?;
        if records < steps_done.unwrap_or(0) {
            let (steps, path) = (steps_done.unwrap_or(0), path.display());
            observer.event(Event::Note(&format!("{path}: metrics.jsonl has {records} records of {steps} steps")));
        }
        Ok(Trainer::new(config, run, tokenizer, batches, model, optimizer, steps_done))
    }

    fn new(
        config: TrainConfig,
        run: RunDir,
        tokenizer: Tokenizer,
        batches: Batches,
        model: Transformer,
        optimizer: Optimizer,
        saved: Option<usize>,
    ) -> Trainer {
        let t = &config.train;
        let (seq_len, batch_tokens) = (t.seq_len.expect("resolved"), t.batch_tokens.expect("resolved"));
        let micro_batches = batch_tokens / (t.micro_batch * seq_len);
        let shape = StepShape { micro_batch: t.micro_batch, seq_len, micro_batches };
        Trainer {
            learning_rate: LearningRate::new(&config),
            phases: Phases::new(&config),
            config,
            device: model.weights().device(),
            run,
            tokenizer,
            batches,
            model,
            optimizer,
            shape,
            steps_done: saved.unwrap_or(0),
            saved,
        }
    }

    /// The resolved configuration.
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// The model as it is.
    pub fn model(&self) -> &Transformer {
        &self.model
    }

    /// Steps done.
    pub fn steps_done(&self) -> usize {
        self.steps_done
    }

    /// The newest checkpoint of this run's folder.
    pub fn last_checkpoint(&self) -> Option<PathBuf> {
        self.saved.map(|n| self.run.checkpoints().join(format!("step-{n}")))
    }

    /// Trains until all steps are done or `stop` is set, which is looked at after each step. Either way a checkpoint is saved.
    ///
    /// Errors: [`Error::NonFinite`]; files that cannot be written; [`Error::Device`]. Checkpoints saved before stay.
    pub fn run(&mut self, stop: &AtomicBool, observer: &mut dyn Observer) -> Result<Outcome, Error> {
        failure::catch(|| self.run_steps(stop, observer)).unwrap_or_else(|failure| Err(self.rescue(failure, observer)))
    }

    fn run_steps(&mut self, stop: &AtomicBool, observer: &mut dyn Observer) -> Result<Outcome, Error> {
        let start = Instant::now();
        let started = self.started();
        self.run.append_session(&started)?;
        observer.event(Event::Started(&started));
        let steps = self.config.train.steps;
        while self.steps_done < steps && !stop.load(Ordering::Relaxed) {
            self.step(observer)?;
            let n = self.steps_done;
            if n.is_multiple_of(self.config.train.checkpoint_every) {
                self.save(observer)?;
            }
        }
        self.save(observer)?;
        let steps_done = self.steps_done;
        if steps_done < steps {
            observer.event(Event::Interrupted { steps_done });
            return Ok(Outcome::Interrupted);
        }
        observer.event(Event::Finished { steps_done, seconds: start.elapsed().as_secs_f64() });
        Ok(Outcome::Finished)
    }

    /// Saves what a failure of the GPU leaves, and says it. Where its memory ended, the GPU works on: then the weights count, unless they were
    /// being updated. After any other failure nothing on it does, and the run goes on from the last checkpoint.
    fn rescue(&mut self, failure: Failure, observer: &mut dyn Observer) -> Error {
        let mut then = String::new();
        let works = matches!(failure.error, cuda::Error::OutOfMemory { .. });
        if works {
            let t = &self.config.train;
            then += &format!(" (train.micro_batch = {}, train.seq_len = {})", t.micro_batch, self.shape.seq_len);
        }
        if works && self.steps_done > 0 && self.optimizer.steps() == self.steps_done {
            let saved = failure::catch(|| self.save(observer)).map_err(|failure| failure.to_string());
            if let Err(e) = saved.and_then(|saved| saved.map_err(|e| e.to_string())) {
                then += &format!("; the weights cannot be saved: {e}");
            }
        }
        // Whatever is in the way of this, what happened first is what is said.
        let _ = self.run.sync_records();
        then += &match self.last_checkpoint() {
            Some(path) => format!("; saved: {}", path.display()),
            None => "; no checkpoint is saved".to_string(),
        };
        let when = format!("after {}", counted(self.steps_done as u64, "step"));
        Error::Device { when, failure: Box::new(failure), then }
    }

    fn started(&self) -> Started {
        let t = &self.config.train;
        let team = Team::current();
        let sequences = t.steps * self.shape.micro_batch * self.shape.micro_batches;
        Started {
            schedule: self.phases.to_string(),
            steps_done: self.steps_done,
            steps: t.steps,
            sizes: self.model.weights().config().clone(),
            parameters: self.model.weights().config().parameters(),
            seq_len: self.shape.seq_len,
            batch_tokens: self.shape.tokens(),
            train_tokens: self.batches.train_tokens(),
            val_tokens: self.batches.val_tokens(),
            epochs: sequences as f64 / self.batches.sequences_per_epoch() as f64,
            level: team.level().to_string(),
            threads: team.threads(),
            device: format!("{:?}", self.device),
        }
    }

    /// One step, and the evaluation and sample that are due after it.
    fn step(&mut self, observer: &mut dyn Observer) -> Result<(), Error> {
        let step = self.steps_done;
        let (psi, lr) = (self.phases.psi(step), self.learning_rate.at(step));
        let draws = training_draws(psi, self.config.train.seed, step);
        let (begin, (fresh, _)) = (Instant::now(), tensor_memory(&self.device));
        let (model, optimizer) = (&mut self.model, &mut self.optimizer);
        let result = train_step(model, optimizer, &mut self.batches, self.shape, draws, self.config.train.l1, lr)?;
        let (seconds, (fresh_after, peak_bytes)) = (begin.elapsed().as_secs_f64(), tensor_memory(&self.device));
        self.steps_done += 1;

        let (eval, failed) = match self.evaluation_is_due().then(|| failure::catch(|| self.evaluate(psi))) {
            None => (None, None),
            Some(Ok(eval)) => (Some(eval?), None),
            Some(Err(failure)) => (None, Some(failure)),
        };
        let tokens_per_second = self.shape.tokens() as f64 / seconds;
        let flops = self.model.weights().config().flops_per_token(self.shape.seq_len);
        let metrics = StepMetrics {
            step,
            tokens: (self.steps_done * self.shape.tokens()) as u64,
            activation: psi.to_string(),
            lr,
            loss: result.loss,
            l1_penalty: result.l1_penalty,
            grad_norm: result.grad_norm,
            seconds,
            tokens_per_second,
            gflops: tokens_per_second * (flops.forward + flops.backward) / 1e9,
            fresh_blocks: fresh_after - fresh,
            peak_bytes,
            eval,
        };
        self.run.append(&metrics)?;
        observer.event(Event::Step(&metrics));
        if let Some(Failure { of, error }) = failed {
            failure::raise(of, error); // with the step on record
        }
        if let Some(eval) = &metrics.eval {
            observer.event(Event::Evaluation(eval));
            if let Some(report) = self.switch_report(eval)? {
                observer.event(Event::Switch(&report));
            }
        }
        let (n, t) = (self.steps_done, &self.config.train);
        if t.sample_every > 0 && (n.is_multiple_of(t.sample_every) || n == t.steps) {
            let text = sample(self.model.weights(), self.tokenizer, psi, &t.sample_prompt, t.sample_tokens, t.seed)?;
            let sample = Sample { steps_done: n, prompt: t.sample_prompt.clone(), text: text.text, how: text.how };
            self.run.append_sample(&sample)?;
            observer.event(Event::Sample(&sample));
        }
        Ok(())
    }

    /// Every `eval_every` steps, after the last step, and around the switch.
    fn evaluation_is_due(&self) -> bool {
        let (n, t) = (self.steps_done, &self.config.train);
        let around = |at| n == at || n == at + STEPS_AFTER_SWITCH;
        n.is_multiple_of(t.eval_every) || n == t.steps || self.phases.switch_step().is_some_and(around)
    }

    fn evaluate(&mut self, psi: Psi) -> Result<Evaluation, Error> {
        let t = &self.config.train;
        let shape = EvalShape::new(&self.batches, t.eval_tokens, t.micro_batch, self.shape.seq_len);
        Ok(evaluate(&self.model, &mut self.batches, shape, psi, t.seed, self.steps_done)?)
    }

    /// What an evaluation says about the switch, if it lies at it.
    fn switch_report(&mut self, eval: &Evaluation) -> Result<Option<SwitchReport>, Error> {
        let (Some(step), n) = (self.phases.switch_step(), eval.steps_done) else { return Ok(None) };
        let psi = self.phases.psi(step);
        let to = psi.to_string();
        if n == step {
            let at = if psi == Psi::Relu { eval.relu_loss } else { self.evaluate(psi)?.loss };
            return Ok(Some(SwitchReport::At { step, to, before: eval.loss, at }));
        }
        let last = (step + STEPS_AFTER_SWITCH).min(self.config.train.steps);
        Ok((n == last).then_some(SwitchReport::After { steps: n - step, to, loss: eval.loss }))
    }

    /// Saves a checkpoint, unless the newest one is of this step.
    fn save(&mut self, observer: &mut dyn Observer) -> Result<(), Error> {
        let n = self.steps_done;
        if self.saved == Some(n) {
            return Ok(());
        }
        // The next step would find it, but by then an older, good checkpoint may be gone.
        if let Some(first) = first_non_finite_weight(self.model.weights()) {
            return Err(Error::NonFinite {
                step: n.saturating_sub(1),
                what: "a weight after its update".to_string(),
                first,
            });
        }
        // Records first: a checkpoint never knows more steps than they do.
        self.run.sync_records()?;
        let psi = self.phases.psi(n.saturating_sub(1));
        let state = State::new(n, psi, level(&self.device), self.batches.tokens().hash(), &self.config);
        let (folder, keep) = (self.run.checkpoints(), self.config.train.keep_last);
        let eos_token_ids = vec![self.tokenizer.separator()];
        let meta = hf::Meta { switch: self.config.train.switch, eos_token_ids, ..hf::Meta::new(psi) };
        let path = checkpoint::save(&folder, state, self.model.weights(), &meta, &self.optimizer, keep)?;
        self.saved = Some(n);
        observer.event(Event::Checkpoint { steps_done: n, path: &path });
        Ok(())
    }
}

/// The weights of `model.from`.
fn starting_weights(config: &TrainConfig, from: &Path) -> Result<Weights, Error> {
    if config.model.names_sizes() {
        return Err(ConfigError::Value {
            place: None,
            key: "model.from".to_string(),
            value: format!("{:?}", from.display().to_string()),
            expected: "takes the sizes of that checkpoint: the other keys of [model] must not be given".to_string(),
        }
        .into());
    }
    Ok(hf::load(from).map_err(checkpoint::CheckpointError::from)?.weights)
}

fn open_data(config: &TrainConfig, tokenizer: Tokenizer, observer: &mut dyn Observer) -> Result<Batches, Error> {
    let (d, t) = (&config.data, &config.train);
    let documents = Documents::open(&d.paths, &d.field)?;
    let dir = d.cache.clone().unwrap_or_else(cache::default_dir);
    let tokens = Tokens::open(&documents, tokenizer, &dir, &mut |text| observer.event(Event::Note(&text)))?;
    Ok(Batches::new(tokens, d.val_fraction, t.seq_len.expect("resolved"), t.seed)?)
}

/// Asks the system for the memory of training in one piece, and gives it back; or asks the GPU how much it has free. What it will
/// never have is found before the run, where later the process would end without a word on what to change.
fn check_memory(config: &TrainConfig, sizes: &Config, device: &Device) -> Result<(), Error> {
    let t = &config.train;
    let bytes = sizes.training_memory(t.micro_batch * t.seq_len.expect("resolved"), t.precision).total();
    if let Device::Cuda(gpu) = device {
        let free = gpu.free_memory().map_err(before_the_run)? as u64;
        return if bytes > free {
            Err(Error::Memory { bytes, of_gpu: Some((gpu.name().into(), free)) })
        } else {
            Ok(())
        };
    }
    let mut piece = Vec::<u8>::new();
    let refused = usize::try_from(bytes).map_or(true, |bytes| piece.try_reserve_exact(bytes).is_err());
    // Without this, the compiler may leave out a piece that nobody uses.
    std::hint::black_box(&mut piece);
    if refused { Err(Error::Memory { bytes, of_gpu: None }) } else { Ok(()) }
}

/// The model and its optimiser on `device`; a new one has moments of zero.
fn bring(
    weights: Weights,
    optimizer: Option<Optimizer>,
    config: &TrainConfig,
    device: &Device,
) -> Result<(Transformer, Optimizer), Error> {
    let weights = weights.to_device(device).map_err(before_the_run)?;
    let made = failure::catch(|| {
        let optimizer = optimizer.map_or_else(|| Ok(Optimizer::new(&weights, config)), |o| o.to_device(device));
        optimizer.map(|optimizer| (Transformer::new(weights).with_precision(config.train.precision), optimizer))
    });
    made.unwrap_or_else(|failure| Err(failure.error)).map_err(before_the_run)
}

fn before_the_run(error: cuda::Error) -> Error {
    let failure = Failure { of: "weights and moments".to_string(), error };
    Error::Device { when: "before the first step".to_string(), failure: Box::new(failure), then: String::new() }
}

/// What the bits of a computation depend on beside its inputs: the CPU's instruction set. All GPUs compute the same ones.
fn level(device: &Device) -> String {
    match device {
        Device::Cpu => Team::current().level().to_string(),
        Device::Cuda(_) => "cuda".to_string(),
    }
}

/// Blocks of tensor memory taken from the system or the driver so far, and the most bytes in use at once.
fn tensor_memory(device: &Device) -> (u64, u64) {
    match device {
        Device::Cpu => {
            let stats = pool::stats();
            (stats.fresh, stats.peak_bytes)
        }
        Device::Cuda(gpu) => {
            let stats = gpu.memory();
            (stats.fresh, stats.peak as u64)
        }
    }
}

/// A prompt beyond the context is found before the run, not at its first sample.
fn check_prompt(config: &TrainConfig, tokenizer: Tokenizer, sizes: &Config) -> Result<(), ConfigError> {
    let (t, context) = (&config.train, sizes.max_seq_len);
    let tokens = tokenizer.encode(&t.sample_prompt).len();
    if t.sample_every > 0 && tokens > context {
        return Err(ConfigError::Value {
            place: None,
            key: "train.sample_prompt".to_string(),
            value: format!("({tokens} tokens)"),
            expected: format!("must fit in model.max_seq_len = {context} tokens"),
        });
    }
    Ok(())
}
