//! A run on a GPU: the interpreter of its kernels, by the code that runs on a card.

mod common;

use autograd::{Gradients, Tape};
use common::{bits, checkpoint, losses, resume_on, train, train_on};
use cuda::driver::Properties;
use cuda_testing::{Calls, Interpreter};
use kernels::testing::ROUNDING;
use model::{LayerNames, Precision, Psi, PsiAt, Transformer, Weights, parameter_specs};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use tensor::{DType, Device, Tensor};
use train::data::{Batches, Documents, Tokenizer, Tokens};
use train::metrics::StepMetrics;
use train::optimizer::Optimizer;
use train::run_dir::read_metrics;
use train::step::{StepShape, train_step, training_draws};
use train::{Error, Event, Outcome, TrainConfig, Trainer};

fn gpu() -> Device {
    Device::Cuda(cuda_testing::device())
}

/// As in the other tests, and smaller: two micro-batches of two sequences of 16 tokens, four steps, RELU for the last two.
fn config(dir: &Path) -> TrainConfig {
    let mut config = common::config(dir);
    (config.model.d_ff, config.model.max_seq_len) = (Some(48), Some(32));
    let t = &mut config.train;
    (t.steps, t.seq_len, t.micro_batch, t.batch_tokens, t.warmup_steps) = (4, Some(16), 2, Some(64), 1);
    t.switch = t.switch.map(|switch| model::Switch { alpha: 0.5, ..switch });
    (t.eval_every, t.eval_tokens, t.checkpoint_every) = (4, 48, 2);
    config
}

/// What the sums of a loss or a gradient lose in f32, relative to sums of sizes: a rounding for every term of every dot on the longest way there and
/// back, as in the transformer's own test. Two computations differ by twice that.
fn roundings(config: &model::Config, seq_len: usize) -> f64 {
    let layer = 4 * config.d_model + 2 * config.q_width() + 2 * config.d_ff + 4 * seq_len;
    (2 * (config.n_layers * layer + config.d_model) + config.vocab_size) as f64
}

#[test]
fn the_first_gradients_are_those_of_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    let (_, sizes) = config(dir.path()).resolve(256, None).unwrap();
    let tokens: Vec<u32> = common::text(6).bytes().map(u32::from).collect();
    for psi in [Psi::stochastic(0.5), Psi::Silu] {
        let gradients = |device: &Device, step: u32| {
            let [inputs, targets] =
                [0, 1].map(|first| Tensor::from_slice(&tokens[first..][..32], [2, 16]).to_device(device).unwrap());
            let model = Transformer::new(Weights::init(&sizes, 5).to_device(device).unwrap());
            let (tape, mut grads) = (Tape::new(), Gradients::default());
            let at = PsiAt { psi, seed: 3, first_token: 64, step };
            let (scaled, loss) = model.loss(&model.leaves(&tape), (&inputs, &targets), 1.0 / 32.0, at, None);
            scaled.backward(&mut grads);
            let all: Vec<Vec<f32>> =
                (0..model.weights().tensors().len()).map(|i| grads.at(i).unwrap().to_vec().unwrap()).collect();
            (loss.value(), all)
        };
        let ((loss, cpu), (loss_gpu, gpu)) = (gradients(&Device::Cpu, 9), gradients(&gpu(), 9));
        let relative = 2.0 * roundings(&sizes, 16) * ROUNDING;
        assert!((loss_gpu - loss).abs() <= relative * loss, "{psi}: loss {loss_gpu}, on the CPU {loss}");
        for (i, spec) in parameter_specs(&sizes).enumerate() {
            let norm = |x: &[f32]| x.iter().map(|&x| (x as f64).powi(2)).sum::<f64>().sqrt();
            let difference: Vec<f32> = gpu[i].iter().zip(&cpu[i]).map(|(a, b)| a - b).collect();
            let (off, size) = (norm(&difference), norm(&cpu[i]));
            assert!(size > 1e-6, "{psi}: the gradient of {} is {size:e}", spec.name);
            assert!(off <= relative * size, "{psi}: gradient of {}: off by {off:e} of {size:e}", spec.name);
        }
        // Another step has other draws, which the bounds tell apart: so these were the same.
        let gate = LayerNames::new(0).gate_proj;
        let (_, other) = gradients(&Device::Cpu, 10);
        let off = cpu[gate].iter().zip(&other[gate]).map(|(a, b)| (a - b).abs() as f64).sum::<f64>();
        let size = cpu[gate].iter().map(|g| g.abs() as f64).sum::<f64>();
        assert_eq!(off > relative * size, psi.draws(), "{psi}: other draws change {off:e} of {size:e}");
    }
}

/// The losses of all steps, of the evaluations, what RELU makes 0: as on the CPU but for rounding, with the same records.
#[test]
fn a_run_is_that_of_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    let [on_cpu, on_gpu] = ["cpu", "gpu"].map(|name| dir.path().join(name));
    let with_samples = || {
        let mut config = config(dir.path());
        (config.train.sample_every, config.train.sample_tokens) = (4, 5);
        config
    };
    let (_, cpu, _) = train(&on_cpu, with_samples(), None).unwrap();
    let (outcome, gpu, trainer) = train_on(&gpu(), &on_gpu, with_samples(), None).unwrap();
    assert_eq!((outcome, trainer.steps_done(), gpu.steps.len()), (Outcome::Finished, 4, 4));
    assert_eq!((gpu.checkpoints, gpu.samples.len()), (vec![2, 4], 1));
    let relative = 2.0 * roundings(trainer.model().weights().config(), 16) * ROUNDING;
    let close = |what: &str, a: f64, b: f64, times: f64| {
        assert!((a - b).abs() <= times * relative * b, "{what}: {a}, on the CPU {b}");
    };
    for (a, b) in gpu.steps.iter().zip(&cpu.steps) {
        // Each step adds its own rounding to the weights that the next one begins with.
        let times = (a.step + 1) as f64;
        close("loss", a.loss, b.loss, times);
        close("norm of the gradient", a.grad_norm, b.grad_norm, times);
        assert_eq!((a.lr, &a.activation, a.tokens), (b.lr, &b.activation, b.tokens));
    }
    for (a, b) in gpu.evaluations.iter().zip(&cpu.evaluations) {
        close("loss under psi", a.loss, b.loss, 5.0);
        close("loss under RELU", a.relu_loss, b.relu_loss, 5.0);
        assert_eq!((a.steps_done, a.tokens, &a.dead, &a.small_rows), (b.steps_done, b.tokens, &b.dead, &b.small_rows));
        // A count of 48 tokens and as many neurons; few are near 0.
        assert!(
            a.zeros.iter().zip(&b.zeros).all(|(a, b)| (a - b).abs() < 3.0 / (48.0 * 48.0)),
            "zeros {:?} {:?}",
            a.zeros,
            b.zeros
        );
    }
    let sessions = train::run_dir::read_sessions(&on_gpu).unwrap();
    assert_eq!(sessions[0].device, format!("{:?}", trainer.model().weights().device()));
    let state = train::checkpoint::read_state(&checkpoint(&on_gpu, 4)).unwrap();
    assert_eq!(state.level, "cuda");
}

/// One micro-batch of four sequences, or two of two: the same draws, sums in another order.
#[test]
fn a_step_may_be_cut() {
    let dir = tempfile::tempdir().unwrap();
    let heard = [2, 4].map(|micro_batch| {
        let mut config = config(dir.path());
        (config.train.micro_batch, config.train.steps) = (micro_batch, 2);
        train_on(&gpu(), &dir.path().join(micro_batch.to_string()), config, None).unwrap()
    });
    let [(_, halves, trainer), (_, whole, _)] = heard;
    let relative = 2.0 * 2.0 * roundings(trainer.model().weights().config(), 16) * ROUNDING;
    for (a, b) in halves.steps.iter().zip(&whole.steps) {
        assert!((a.loss - b.loss).abs() <= relative * b.loss, "loss {} in halves, {} as a whole", a.loss, b.loss);
        assert!((a.grad_norm - b.grad_norm).abs() <= relative * b.grad_norm, "norm {} {}", a.grad_norm, b.grad_norm);
    }
}

/// Weights, moments and the count of steps are those of before, on either device, though the update was put on the stream before anybody
/// looked.
#[test]
fn a_gradient_that_is_not_finite_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (config, sizes) = config(dir.path()).resolve(256, None).unwrap();
    let documents = Documents::open(&config.data.paths, "text").unwrap();
    for device in [Device::Cpu, gpu()] {
        let tokens = Tokens::open(&documents, Tokenizer::Bytes, &dir.path().join("cache"), &mut |_| {}).unwrap();
        let mut batches = Batches::new(tokens, 0.1, 16, 1).unwrap().on(&device);
        let mut model = Transformer::new(Weights::init(&sizes, 5).to_device(&device).unwrap());
        let mut optimizer = Optimizer::new(model.weights(), &config);
        let shape = StepShape { micro_batch: 2, seq_len: 16, micro_batches: 1 };
        let mut step = |model: &mut Transformer, optimizer: &mut Optimizer, number, lr| {
            let draws = training_draws(Psi::stochastic(0.5), 3, number);
            train_step(model, optimizer, &mut batches, shape, draws, 0.1, lr)
        };
        let all = |model: &Transformer, optimizer: &Optimizer| -> Vec<Vec<u32>> {
            let (m, v) = optimizer.moments();
            let tensors = model.weights().tensors().iter().chain(m).chain(v);
            tensors.map(|t| t.to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect()).collect()
        };
        // Weights of 1e30, whose products are infinite.
        let result = step(&mut model, &mut optimizer, 0, 1e30).unwrap();
        assert!(result.loss.is_finite() && result.l1_penalty > 0.0, "{result:?}");
        let before = all(&model, &optimizer);
        let error = step(&mut model, &mut optimizer, 1, 1e-3).unwrap_err();
        assert!(matches!(&error, Error::NonFinite { step: 1, .. }), "{error}");
        assert!(error.to_string().contains("; first in the "), "{error}");
        assert!(all(&model, &optimizer) == before, "weights or moments changed on {device:?}");
        assert_eq!(optimizer.steps(), 1);
    }
}

/// Two numbers are read: the loss and the norm, after the step was put on the stream as a whole. And no memory is taken from the driver.
#[test]
fn a_step_waits_once_and_takes_no_memory_when_it_is_warm() {
    let dir = tempfile::tempdir().unwrap();
    let calls = Calls::default();
    let device = Interpreter { pooled: true, calls: Some(calls.clone()), ..Interpreter::default() }.device();
    let mut config = config(dir.path());
    (config.train.checkpoint_every, config.train.steps, config.train.switch) = (100, 5, None);
    let mut counts = Vec::new();
    let mut observer = |event: Event<'_>| match event {
        Event::Started(_) => drop(calls.take()),
        Event::Step(step) => counts.push((calls.take(), step.fresh_blocks)),
        _ => {}
    };
    let on = Device::Cuda(device);
    let mut trainer = Trainer::create(&dir.path().join("run"), config, &on, &mut observer).unwrap();
    trainer.run(&AtomicBool::new(false), &mut observer).unwrap();
    let [(first, fresh), (second, _), (third, taken), ..] = counts[..] else { panic!("{counts:?}") };
    assert_eq!(
        [first, second, third].map(|calls| calls.downloads),
        [2; 3],
        "copies to the host, in each of three steps"
    );
    assert!(fresh > 0 && taken == 0 && third.allocations == 0, "blocks taken from the driver by step: {counts:?}");
}

#[test]
fn resuming_gives_the_bits_of_an_uninterrupted_run() {
    let dir = tempfile::tempdir().unwrap();
    let [whole, stopped] = ["whole", "stopped"].map(|name| dir.path().join(name));
    train_on(&gpu(), &whole, config(dir.path()), None).unwrap();
    let (outcome, ..) = train_on(&gpu(), &stopped, config(dir.path()), Some(3)).unwrap();
    assert_eq!(outcome, Outcome::Interrupted);
    let (outcome, heard, _) = resume_on(&gpu(), &stopped, None, None).unwrap();
    assert_eq!((outcome, heard.notes), (Outcome::Finished, vec![]));
    assert!(bits(&checkpoint(&whole, 4)) == bits(&checkpoint(&stopped, 4)), "weights or moments differ");
    assert_eq!(losses(&whole), losses(&stopped));
}

#[test]
fn a_run_in_bf16_learns_as_in_f32_and_resumes_to_its_bits() {
    let dir = tempfile::tempdir().unwrap();
    let in_bf16 = || {
        let mut config = config(dir.path());
        config.train.precision = Precision::Bf16;
        config
    };
    let [f32, whole, stopped] = ["f32", "whole", "stopped"].map(|name| dir.path().join(name));
    let (_, wide, _) = train_on(&gpu(), &f32, config(dir.path()), None).unwrap();
    let (_, bf16, trainer) = train_on(&gpu(), &whole, in_bf16(), None).unwrap();
    assert_eq!(trainer.model().precision(), Precision::Bf16);
    assert!(trainer.model().weights().tensors().iter().all(|w| w.dtype() == DType::F32), "master weights");
    // The first loss is off by roundings of 2^-8 whose squares add up: see the model's own test.
    let (a, b) = (bf16.steps[0].loss, wide.steps[0].loss);
    assert!(a != b && (a - b).abs() <= (86f64).sqrt() / 256.0 * b, "loss {a}, in f32 {b}");
    let learnt = |heard: &common::Listener| heard.evaluations[0].loss - heard.steps[0].loss;
    assert!(learnt(&wide) < -0.2 && learnt(&bf16) < 0.9 * learnt(&wide), "{}, in f32 {}", learnt(&bf16), learnt(&wide));

    train_on(&gpu(), &stopped, in_bf16(), Some(3)).unwrap();
    let refused =
        |device: &Device, config| resume_on(device, &stopped, config, None).map(|_| ()).unwrap_err().to_string();
    let on_cpu = refused(&Device::Cpu, None);
    assert!(on_cpu.contains("train.precision = \"bf16\": is for a GPU (--device cuda)"), "{on_cpu}");
    let in_f32 = refused(&gpu(), Some(config(dir.path())));
    assert!(in_f32.contains("train.precision was \"bf16\", is \"f32\""), "{in_f32}");
    let (outcome, heard, _) = resume_on(&gpu(), &stopped, None, None).unwrap();
    assert_eq!((outcome, heard.notes), (Outcome::Finished, vec![]));
    assert!(bits(&checkpoint(&whole, 4)) == bits(&checkpoint(&stopped, 4)), "weights or moments differ");
    assert_eq!(losses(&whole), losses(&stopped));
}

/// Begun on one device and ended on the other: as the run of one, but for rounding, and with a note.
#[test]
fn a_checkpoint_goes_on_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    let (_, expected, trainer) = train(&whole, config(dir.path()), None).unwrap();
    let relative = 2.0 * 4.0 * roundings(trainer.model().weights().config(), 16) * ROUNDING;
    let level = kernels::Team::current().level();
    for (name, first, second, from, to) in [
        ("there", Device::Cpu, gpu(), level.to_string(), "cuda".to_string()),
        ("back", gpu(), Device::Cpu, "cuda".to_string(), level.to_string()),
    ] {
        let run = dir.path().join(name);
        train_on(&first, &run, config(dir.path()), Some(2)).unwrap();
        let (outcome, heard, _) = resume_on(&second, &run, None, None).unwrap();
        assert_eq!(outcome, Outcome::Finished);
        let note = format!("the run was at level {from} and goes on at {to}: its last bits will differ");
        assert!(heard.notes.iter().any(|n| n.contains(&note)), "{:?}", heard.notes);
        let all = read_metrics(&run).unwrap();
        assert_eq!(all.len(), 4);
        for (a, b) in all.iter().zip(&expected.steps) {
            assert!((a.loss - b.loss).abs() <= relative * b.loss, "{name}: loss {}, expected {}", a.loss, b.loss);
        }
    }
}

/// What a device with too little memory for anything is told, and one whose memory ends after two steps because something else takes it.
#[test]
fn memory_that_ends_saves_the_weights_and_says_what_to_lower() {
    let dir = tempfile::tempdir().unwrap();
    let properties = Properties { total_memory: 1 << 20, ..Interpreter::default().properties };
    let small = Device::Cuda(Interpreter { properties, ..Interpreter::default() }.device());
    let run = dir.path().join("run");
    let large = {
        let mut config = config(dir.path());
        (config.train.micro_batch, config.train.batch_tokens) = (1000, None);
        config
    };
    let refused = train_on(&small, &run, large, None).map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains("and the interpreter has 0.0 GiB free: choose a smaller model"), "{refused}");
    assert!(!run.exists(), "a run that never began left a folder");

    let properties = Properties { total_memory: 64 << 20, ..Interpreter::default().properties };
    let device = cuda_testing::Interpreter { properties, ..Interpreter::default() }.device();
    let config = TrainConfig {
        train: train::config::TrainSection { eval_every: 100, checkpoint_every: 100, ..config(dir.path()).train },
        ..config(dir.path())
    };
    let mut taken = None;
    let mut observer = |event: Event<'_>| {
        if let Event::Step(StepMetrics { step: 1, .. }) = event {
            // Some bytes are left: the weights are looked at before they are saved.
            let free = device.free_memory().unwrap();
            taken = Some(cuda::Buffer::<u8>::stale(&device, free - 1024).unwrap());
        }
    };
    let mut trainer = Trainer::create(&run, config.clone(), &Device::Cuda(device.clone()), &mut observer).unwrap();
    let error = trainer.run(&AtomicBool::new(false), &mut observer).unwrap_err().to_string();
    assert!(
        error.starts_with("after 2 steps: ") && error.contains("out of memory on the interpreter: asked for"),
        "{error}"
    );
    assert!(error.contains("(train.micro_batch = 2, train.seq_len = 16)"), "{error}");
    assert!(error.ends_with(&format!("; saved: {}", checkpoint(&run, 2).display())), "{error}");
    drop((trainer, taken));
    // By smaller micro-batches it goes on.
    let smaller =
        TrainConfig { train: train::config::TrainSection { micro_batch: 1, ..config.train.clone() }, ..config };
    let (outcome, heard, _) = resume_on(&Device::Cuda(device), &run, Some(smaller), None).unwrap();
    assert_eq!((outcome, read_metrics(&run).unwrap().len()), (Outcome::Finished, 4));
    let note = "the run was at train.micro_batch 2 and goes on at 1: its last bits will differ";
    assert!(heard.notes.iter().any(|n| n.contains(note)), "{:?}", heard.notes);
}

#[test]
fn a_kernel_that_fails_is_named_and_the_last_checkpoint_stays() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let faulty = |fault_at| Device::Cuda(Interpreter { fault_at: Some(fault_at), ..Interpreter::default() }.device());
    let error = train_on(&faulty(100), &run, config(dir.path()), None).map(|_| ()).unwrap_err().to_string();
    assert!(error.starts_with("after 0 steps: ") && error.contains("a kernel failed on the interpreter"), "{error}");
    assert!(error.contains("(launch 100, grid") && error.ends_with("; no checkpoint is saved"), "{error}");
    assert_eq!(read_metrics(&run).unwrap(), []);
}
