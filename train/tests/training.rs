//! A run from start to end: it learns, it switches, it gives the same bits in every way it can be run.

mod common;

use common::{bits, checkpoint, config, losses, resume, train};
use kernels::{Level, Team};
use model::{HiddenAct, Positive, Psi, Switch};
use std::sync::Arc;
use train::Outcome;
use train::events::SwitchReport;
use train::run_dir::read_metrics;

#[test]
fn learns_switches_and_reports() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.train.steps = 120;
    (config.train.sample_every, config.train.sample_tokens) = (60, 20);
    let (outcome, heard, trainer) = train(&dir.path().join("run"), config, None).unwrap();
    assert_eq!(outcome, Outcome::Finished);
    assert_eq!(heard.schedule, "steps 0 to 89: StochA(0.5); steps 90 to 119: RELU (Swi+FT, alpha = 0.25)");

    // At the start all bytes are equally likely; letters alone within a word would be 1.4, the text itself has 0.347.
    assert!((heard.steps[0].loss - (256f64).ln()).abs() < 0.1, "loss of step 0: {}", heard.steps[0].loss);
    let last = heard.evaluations.last().unwrap();
    assert!(last.relu_loss < 1.0 && last.relu_loss > 0.347, "validation loss after 120 steps: {}", last.relu_loss);
    assert_eq!((last.steps_done, last.loss), (120, last.relu_loss));
    assert!(last.zeros.len() == 2 && last.zeros.iter().all(|z| (0.2..1.0).contains(z)), "zeros {:?}", last.zeros);
    assert!(last.dead.len() == 2 && last.small_rows.len() == 2);

    let steps_of = |l: &common::Listener| l.evaluations.iter().map(|e| e.steps_done).collect::<Vec<_>>();
    assert_eq!(steps_of(&heard), [20, 40, 60, 80, 90, 100, 110, 120]);
    let [SwitchReport::At { step: 90, before, at, .. }, SwitchReport::After { steps: 20, loss, .. }] =
        heard.switches[..]
    else {
        panic!("switch reports: {:?}", heard.switches)
    };
    let eval = |n| heard.evaluations.iter().find(|e| e.steps_done == n).unwrap();
    assert_eq!((before, at, loss), (eval(90).loss, eval(90).relu_loss, eval(110).relu_loss));
    assert!(before != at, "the loss at the switch is that of RELU");
    assert_eq!(heard.samples.len(), 2);
    assert!(heard.samples[0].contains("StochA(0.5), dense FFN"), "{:?}", heard.samples);
    assert!(heard.samples[1].contains("RELU, sparse FFN"), "{:?}", heard.samples);

    // One record a step, as the observer heard it; a checkpoint every 10 steps, of which two are kept.
    assert_eq!(read_metrics(&dir.path().join("run")).unwrap(), heard.steps);
    assert_eq!(heard.steps.iter().map(|s| s.step).collect::<Vec<_>>(), (0..120).collect::<Vec<_>>());
    assert_eq!(heard.checkpoints, (1..=12).map(|n| 10 * n).collect::<Vec<_>>());
    let kept = train::checkpoint::list(&dir.path().join("run/checkpoints")).unwrap();
    assert_eq!(kept.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [110, 120]);
    assert_eq!(trainer.last_checkpoint(), Some(checkpoint(&dir.path().join("run"), 120)));
}

/// Another pair that turns to another activation: what is said, what is saved, and that it goes on to the same bits.
#[test]
fn another_pair_switches_to_another_activation() {
    let dir = tempfile::tempdir().unwrap();
    let pair = Psi::Stochastic { p: 0.3, negative: [HiddenAct::Relu2, HiddenAct::Gelu], positive: Positive::Silu };
    let with_pair = || {
        let mut config = config(dir.path());
        config.activation = pair.into();
        config.train.switch = Some(Switch { to: HiddenAct::Relu2, alpha: 0.5 });
        config
    };
    let whole = dir.path().join("whole");
    let (_, heard, _) = train(&whole, with_pair(), None).unwrap();
    let words = "StochA(0.3; relu2|gelu, positive silu)";
    assert_eq!(heard.schedule, format!("steps 0 to 19: {words}; steps 20 to 39: RELU2 (Swi+FT, alpha = 0.5)"));
    let [before, after] = [0, 1].map(|i| &heard.evaluations[i]);
    assert_eq!([&before.activation, &after.activation], [words, "RELU2"]);
    let [SwitchReport::At { step: 20, to, before: b, at }, SwitchReport::After { steps: 20, to: later, loss }] =
        &heard.switches[..]
    else {
        panic!("switch reports: {:?}", heard.switches)
    };
    assert_eq!([to, later], ["RELU2", "RELU2"]);
    assert_eq!((*b, *loss), (before.loss, after.loss));
    assert!(*at != before.relu_loss && *at != before.loss, "the loss at the switch is that of RELU2: {at}");

    let run = dir.path().join("stopped");
    drop(train(&run, with_pair(), Some(7)).unwrap());
    let (_, meta) = model::hf::load_config(checkpoint(&run, 7)).unwrap();
    assert_eq!((meta.psi, meta.hidden_act()), (pair, HiddenAct::Relu2));
    resume(&run, None, None).unwrap();
    assert_eq!(losses(&whole), losses(&run), "losses of the resumed run");
    assert!(bits(&checkpoint(&whole, 40)) == bits(&checkpoint(&run, 40)), "the resumed run differs");
}

/// A run from before there were other pairs has no `negative` and `positive` in its files.
#[test]
fn an_older_run_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    drop(train(&run, config(dir.path()), Some(3)).unwrap());
    let without = |path: &std::path::Path, lines: &[&str]| {
        let text = std::fs::read_to_string(path).unwrap();
        let kept = text.lines().filter(|line| lines.iter().all(|l| !line.trim_start().starts_with(l)));
        let kept: String = kept.map(|line| format!("{line}\n")).collect();
        assert!(kept.lines().count() < text.lines().count(), "{}", path.display());
        std::fs::write(path, kept).unwrap();
    };
    without(&run.join("config.toml"), &["negative = ", "positive = ", "l1 = "]);
    let state = checkpoint(&run, 3).join("state.json");
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&state).unwrap()).unwrap();
    for (section, key) in [("activation", "negative"), ("activation", "positive"), ("train", "l1")] {
        assert!(json["config"][section].as_object_mut().unwrap().remove(key).is_some(), "{section}.{key}");
    }
    std::fs::write(&state, json.to_string()).unwrap();
    assert_eq!(resume(&run, None, None).unwrap().0, Outcome::Finished);
}

/// The penalty makes zeros, and changes neither the sameness of a resumed run nor that of a step that is cut.
#[test]
fn l1_makes_zeros() {
    let dir = tempfile::tempdir().unwrap();
    let with = |l1: f64| {
        let mut config = config(dir.path());
        (config.activation, config.train.switch) = (Psi::Relu.into(), None);
        (config.train.steps, config.train.l1) = (120, l1);
        config
    };
    let [plain, penalised] = [0.0, 1.0].map(|l1| {
        let (_, heard, _) = train(&dir.path().join(format!("l1-{l1}")), with(l1), None).unwrap();
        heard
    });
    let zeros = |l: &common::Listener| l.evaluations.last().unwrap().mean_zeros();
    assert!(zeros(&penalised) > zeros(&plain) + 0.1, "zeros: {} with l1, {} without", zeros(&penalised), zeros(&plain));
    assert!(penalised.evaluations.last().unwrap().loss < 1.5, "it still learns");
    assert!(plain.steps.iter().all(|s| s.l1_penalty == 0.0));
    // Before the first update the losses are the same: what is reported is without the penalty.
    assert_eq!(penalised.steps[0].loss, plain.steps[0].loss);
    assert!(penalised.steps[0].l1_penalty > 0.0);
    assert!(penalised.steps[0].grad_norm != plain.steps[0].grad_norm);
    let run = dir.path().join("stopped");
    drop(train(&run, with(1.0), Some(50)).unwrap());
    resume(&run, None, None).unwrap();
    let whole = dir.path().join("l1-1");
    assert_eq!(losses(&whole), losses(&run), "losses of the resumed run");
    assert!(bits(&checkpoint(&whole, 120)) == bits(&checkpoint(&run, 120)), "the resumed run differs");
}

#[test]
fn one_and_two_threads_give_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    for threads in [1, 2] {
        let team = Arc::new(Team::new(Level::best(), threads));
        let run = dir.path().join(threads.to_string());
        team.install(|| train(&run, config(dir.path()), None)).unwrap();
    }
    let [one, two] = [1, 2].map(|n| dir.path().join(n.to_string()));
    assert_eq!(losses(&one), losses(&two), "losses of 1 and 2 threads");
    assert!(bits(&checkpoint(&one, 40)) == bits(&checkpoint(&two, 40)), "weights or moments of 1 and 2 threads differ");
}

#[test]
fn a_resumed_run_equals_an_uninterrupted_one() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    train(&whole, config(dir.path()), None).unwrap();
    // The switch is at step 30. One run is stopped at each of these, one after the other.
    let run = dir.path().join("stopped");
    let (outcome, ..) = train(&run, config(dir.path()), Some(1)).unwrap();
    assert_eq!(outcome, Outcome::Interrupted);
    for stop in [2, 10, 17, 29, 30, 31, 39] {
        let (outcome, heard, _) = resume(&run, None, Some(stop)).unwrap();
        assert_eq!(outcome, Outcome::Interrupted, "stop after {stop}");
        assert_eq!(heard.checkpoints.last(), Some(&stop));
    }
    let (outcome, ..) = resume(&run, Some(config(dir.path())), None).unwrap();
    assert_eq!(outcome, Outcome::Finished);
    assert_eq!(losses(&whole), losses(&run), "losses of the resumed run");
    assert!(
        bits(&checkpoint(&whole, 40)) == bits(&checkpoint(&run, 40)),
        "weights or moments of the resumed run differ"
    );
    // A finished run that is resumed has nothing to do.
    let (outcome, heard, _) = resume(&run, None, None).unwrap();
    assert_eq!((outcome, heard.steps.len(), heard.checkpoints.len()), (Outcome::Finished, 0, 0));
}

/// What a kill leaves: records beyond the last checkpoint, half a line, a checkpoint that was being written, one being removed.
#[test]
fn what_a_kill_leaves_does_not_hinder_the_resumed_run() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    train(&whole, config(dir.path()), None).unwrap();
    let run = dir.path().join("killed");
    let (_, _, trainer) = train(&run, config(dir.path()), Some(20)).unwrap();
    drop(trainer);
    std::fs::create_dir(run.join("checkpoints/.step-30.new")).unwrap();
    std::fs::write(run.join("checkpoints/.step-30.new/model.safetensors"), "half").unwrap();
    std::fs::rename(checkpoint(&run, 10), run.join("checkpoints/.step-10.old")).unwrap();
    let metrics = run.join("metrics.jsonl");
    let text = std::fs::read_to_string(&metrics).unwrap();
    let beyond = text.lines().last().unwrap().replacen("\"step\":19", "\"step\":20", 1);
    std::fs::write(&metrics, format!("{text}{beyond}\n{}", &beyond[..beyond.len() / 2])).unwrap();

    let (_, heard, trainer) = resume(&run, None, None).unwrap();
    assert_eq!(heard.steps[0].step, 20);
    assert_eq!(heard.notes.iter().filter(|n| n.contains("unfinished checkpoint")).count(), 2, "{:?}", heard.notes);
    assert_eq!(losses(&whole), losses(&run));
    assert!(bits(&checkpoint(&whole, 40)) == bits(&checkpoint(&run, 40)));
    drop(trainer);

    // The newest checkpoint loses a file: the one before it serves, and it is said so. The damaged one does not count among
    // those that are kept, until it is written again.
    std::fs::write(checkpoint(&run, 40).join("optimizer.safetensors"), "short").unwrap();
    let mut keep_one = config(dir.path());
    keep_one.train.keep_last = 1;
    let (_, heard, trainer) = resume(&run, Some(keep_one), Some(35)).unwrap();
    assert_eq!(heard.steps[0].step, 30);
    assert!(heard.notes.iter().any(|n| n.contains("step-40") && n.contains("optimizer.safetensors has 5 bytes")));
    assert!(checkpoint(&run, 35).is_dir() && !checkpoint(&run, 30).exists());
    drop(trainer);
    let (_, heard, _) = resume(&run, None, None).unwrap();
    assert_eq!(heard.steps[0].step, 35);
    assert_eq!(losses(&whole), losses(&run));
    assert!(bits(&checkpoint(&whole, 40)) == bits(&checkpoint(&run, 40)));

    // Killed before its first checkpoint.
    let run = dir.path().join("early");
    drop(train(&run, config(dir.path()), Some(3)).unwrap());
    std::fs::remove_dir_all(checkpoint(&run, 3)).unwrap();
    let (_, heard, _) = resume(&run, None, None).unwrap();
    assert!(heard.notes.iter().any(|n| n.contains("starts at step 0")), "{:?}", heard.notes);
    assert_eq!(losses(&whole), losses(&run));
}

/// One micro-batch of 4 sequences and four of 1 see the same tokens with the same draws; sums round in another order.
/// From trained weights, where draws matter: a fresh model's g is near 0, and so is what they change.
#[test]
fn accumulation_does_not_change_the_step() {
    let dir = tempfile::tempdir().unwrap();
    let first = dir.path().join("first");
    let mut silu = config(dir.path());
    (silu.activation, silu.train.switch) = (Psi::Silu.into(), None);
    train(&first, silu, None).unwrap();
    let [whole, cut] = [32, 1].map(|micro_batch| {
        let mut config = config(dir.path());
        config.model = Default::default();
        config.model.from = Some(checkpoint(&first, 40));
        (config.train.micro_batch, config.train.batch_tokens) = (micro_batch, Some(1024));
        train(&dir.path().join(micro_batch.to_string()), config, Some(1)).unwrap().1.steps.remove(0)
    });
    // A logit is a dot of K = 32 terms after two layers with dots of at most K = 96, so relative to values of order 1 its error
    // is some (32 + 2 * 96 + 12) eps; roundings have both signs, and a mean over 1024 tokens divides them by 32.
    let bound = 236.0 * f32::EPSILON as f64 / 32.0 * 5.6;
    assert!((whole.loss - cut.loss).abs() < bound, "losses {} and {}", whole.loss, cut.loss);
    // The norm's square is a sum of squares: twice the relative error of a gradient.
    let relative = (whole.grad_norm / cut.grad_norm - 1.0).abs();
    assert!(relative < 2.0 * bound, "norms {} and {}", whole.grad_norm, cut.grad_norm);
}

#[test]
fn a_run_that_goes_on_at_another_level_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let at = |level| Arc::new(Team::new(level, 1));
    drop(at(Level::PORTABLE).install(|| train(&run, config(dir.path()), Some(2))).unwrap());
    let (_, heard, trainer) = at(Level::PORTABLE).install(|| resume(&run, None, Some(3))).unwrap();
    assert!(heard.notes.is_empty(), "{:?}", heard.notes);
    drop(trainer);
    let (_, heard, _) = at(Level::SCALAR).install(|| resume(&run, None, Some(4))).unwrap();
    let expected =
        format!("{}: the run was at level portable and goes on at scalar: its last bits will differ", run.display());
    assert_eq!(heard.notes, [expected]);
}

#[test]
fn training_goes_on_from_a_checkpoint_of_another_run() {
    let dir = tempfile::tempdir().unwrap();
    let first = dir.path().join("first");
    let (_, heard, _) = train(&first, config(dir.path()), None).unwrap();
    let mut second = config(dir.path());
    second.model = Default::default();
    second.model.from = Some(checkpoint(&first, 40));
    second.train.lr = 1e-3;
    let run = dir.path().join("second");
    let (_, after, _) = train(&run, second, Some(7)).unwrap();
    assert!(after.steps[0].loss < heard.steps[39].loss + 0.5, "the loss goes on from {}", heard.steps[39].loss);
    assert_eq!(resume(&run, None, None).unwrap().0, Outcome::Finished);
}
