//! Runs that must not begin or go on: what is said, and that nothing is lost.

mod common;

use common::{bits, checkpoint, config, losses, resume, train};
use std::fs;
use std::path::Path;
use std::process::Command;
use train::{Error, Outcome};

fn message<T>(result: Result<T, Error>) -> String {
    result.err().expect("an error").to_string()
}

#[test]
fn a_name_that_is_taken_and_a_run_that_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let absent = message(resume(&run, None, None));
    assert_eq!(absent, format!("{}: no run to resume: it has no config.toml", run.display()));
    drop(train(&run, config(dir.path()), Some(2)).unwrap());
    let before = losses(&run);
    let exists = message(train(&run, config(dir.path()), None));
    assert_eq!(
        exists,
        format!("{}: exists already; resume it (train --resume), or choose another --name or --out", run.display())
    );
    assert_eq!(losses(&run), before);
    // Not even an empty folder, or a file, is taken over; and nothing is left beside it.
    let path = dir.path().join("taken");
    fs::create_dir(&path).unwrap();
    assert!(matches!(train(&path, config(dir.path()), None), Err(Error::Exists { .. })));
    fs::remove_dir(&path).unwrap();
    fs::write(&path, "").unwrap();
    assert!(matches!(train(&path, config(dir.path()), None), Err(Error::Exists { .. })));
    let hidden = fs::read_dir(dir.path()).unwrap().filter(|e| {
        let name = e.as_ref().unwrap().file_name();
        name.to_string_lossy().starts_with('.')
    });
    assert_eq!(hidden.count(), 0);
}

#[test]
fn a_run_in_use_is_refused_with_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let (_, _, trainer) = train(&run, config(dir.path()), Some(2)).unwrap();
    let expected = format!("{}: in use by another process (pid {})", run.display(), std::process::id());
    assert_eq!(message(resume(&run, None, None)), expected);
    assert_eq!(message(train(&run, config(dir.path()), None)), expected);
    drop(trainer);
    assert_eq!(resume(&run, None, Some(4)).unwrap().0, Outcome::Interrupted);
}

#[test]
fn a_resume_with_another_configuration_names_every_change() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    drop(train(&run, config(dir.path()), Some(2)).unwrap());
    let mut changed = config(dir.path());
    (changed.train.lr, changed.train.steps, changed.activation.p) = (2e-2, 41, Some(0.25));
    changed.train.switch = None;
    changed.train.eval_every = 7; // this may change
    assert_eq!(
        message(resume(&run, Some(changed), None)),
        format!(
            "{}: cannot resume with a changed configuration: activation.p was 0.5, is 0.25; train.lr was 0.01, is 0.02; \
             train.steps was 40, is 41; train.switch.alpha was 0.25, is (none); train.switch.to was \"relu\", is (none)",
            run.display()
        )
    );
    // An edited config.toml is a changed configuration too.
    let file = run.join("config.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("lr = 0.01", "lr = 0.5")).unwrap();
    assert!(message(resume(&run, None, None)).contains("train.lr was 0.01, is 0.5"));
    fs::write(&file, text).unwrap();

    let mut allowed = config(dir.path());
    (allowed.train.eval_every, allowed.train.keep_last, allowed.train.checkpoint_every) = (7, 5, 4);
    let (_, heard, _) = resume(&run, Some(allowed), Some(20)).unwrap();
    assert_eq!(heard.checkpoints, [4, 8, 12, 16, 20]);
    assert_eq!(heard.evaluations.iter().map(|e| e.steps_done).collect::<Vec<_>>(), [7, 14]);
    // What was allowed is the run's from now on.
    assert!(fs::read_to_string(&file).unwrap().contains("keep_last = 5"));
}

#[test]
fn a_resume_with_other_data_is_refused_and_moved_data_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    drop(train(&run, config(dir.path()), Some(2)).unwrap());
    let text = dir.path().join("text.txt");
    let moved = dir.path().join("moved.txt");
    fs::rename(&text, &moved).unwrap();
    assert!(message(resume(&run, None, None)).starts_with(&format!("data: {}: cannot be read", text.display())));
    fs::write(&text, common::text(4001)).unwrap();
    let refused = message(resume(&run, None, None));
    assert!(
        refused.starts_with(&format!("{}: cannot resume: the data have changed: hash ", run.display())),
        "{refused}"
    );
    let mut config = config(dir.path());
    config.data.paths = vec![moved];
    assert_eq!(resume(&run, Some(config), Some(3)).unwrap().0, Outcome::Interrupted);
}

#[test]
fn a_checkpoint_of_other_sizes_or_draws_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    drop(train(&run, config(dir.path()), Some(2)).unwrap());
    let state = checkpoint(&run, 2).join("state.json");
    let text = fs::read_to_string(&state).unwrap();
    assert!(text.contains("\"philox_rounds\": 7"));
    fs::write(&state, text.replace("\"philox_rounds\": 7", "\"philox_rounds\": 10")).unwrap();
    let refused = message(resume(&run, None, None));
    assert!(refused.contains("drawn with 10 rounds of Philox, expected 7"), "{refused}");
    fs::write(&state, text).unwrap();

    // Two moments change places: sizes of files fit, the tensor does not.
    let moments = checkpoint(&run, 2).join("optimizer.safetensors");
    let bytes = fs::read(&moments).unwrap();
    let text = String::from_utf8_lossy(&bytes[..4096]).into_owned();
    let broken = text.replacen("[256,32]", "[32,256]", 1);
    assert_ne!(text, broken, "the header of the moments");
    let at = text.find("[256,32]").unwrap();
    let mut changed = bytes.clone();
    changed[at..at + 8].copy_from_slice(b"[32,256]");
    fs::write(&moments, changed).unwrap();
    let refused = message(resume(&run, None, None));
    assert!(
        refused.contains("optimizer.safetensors: tensor m.model.embed_tokens.weight has shape [32, 256]"),
        "{refused}"
    );
}

#[test]
fn a_loss_that_is_not_finite_ends_the_run_with_step_and_tensor() {
    let dir = tempfile::tempdir().unwrap();
    let mut hot = config(dir.path());
    (hot.train.lr, hot.train.warmup_steps, hot.train.checkpoint_every) = (1e30, 0, 1);
    let run = dir.path().join("hot");
    let error = message(train(&run, hot, None));
    // Weights of 1e30 after step 0: squares overflow in step 1.
    assert!(error.starts_with("step 1: not finite: the "), "{error}");
    assert!(error.contains("; first in the ") && error.contains("shape ["), "{error}");
    assert!(checkpoint(&run, 1).is_dir(), "the checkpoint before is kept");

    let sizes = config(dir.path()).resolve(256, None).unwrap().1;
    let starting_from = |name: &str, change: &dyn Fn(&mut model::Weights)| {
        let mut weights = model::Weights::init(&sizes, 0);
        change(&mut weights);
        let mut config = config(dir.path());
        config.model = Default::default();
        config.model.from = Some(dir.path().join(format!("{name}-weights")));
        let from = config.model.from.as_ref().unwrap();
        fs::create_dir(from).unwrap();
        model::hf::save(from, &weights, &model::hf::Meta::new(model::Psi::Silu)).unwrap();
        message(train(&dir.path().join(name), config, None))
    };
    let layer = model::LayerNames::new(1);
    // A weight that is NaN from the start is named.
    let error = starting_from("nan", &|weights| {
        let mut up: Vec<f32> = weights.tensors()[layer.up_proj].to_vec().unwrap();
        up[5] = f32::NAN;
        weights.tensors_mut()[layer.up_proj] = tensor::Tensor::from_slice(&up, [96, 32]);
    });
    let weight = "the weight model.layers.1.mlp.up_proj.weight (shape [96, 32], element 5)";
    assert_eq!(error, format!("step 0: not finite: the loss is NaN; first in {weight}"));
    // Finite weights, g and u, but not g u: the op is named.
    let error = starting_from("overflow", &|weights| {
        for i in [layer.gate_proj, layer.up_proj] {
            let large = tensor::ops::scale(1e25, &weights.tensors()[i]);
            weights.tensors_mut()[i] = large;
        }
    });
    let op = "the result of layers.1.mlp.down_proj.gated_down_proj (shape [4, 32, 32]";
    assert!(error.starts_with(&format!("step 0: not finite: the loss is NaN; first in {op}")), "{error}");
}

#[test]
fn what_a_run_cannot_start_from() {
    let dir = tempfile::tempdir().unwrap();
    let mut both = config(dir.path());
    both.model.from = Some(dir.path().join("absent"));
    assert!(message(train(&dir.path().join("a"), both, None)).contains("the other keys of [model] must not be given"));
    let mut absent = config(dir.path());
    absent.model = Default::default();
    absent.model.from = Some(dir.path().join("absent"));
    let refused = message(train(&dir.path().join("b"), absent, None));
    assert!(refused.contains("absent") && refused.contains("config.json"), "{refused}");
    let mut long = config(dir.path());
    (long.train.sample_every, long.train.sample_prompt) = (1, "x".repeat(65));
    let refused = message(train(&dir.path().join("c"), long, None));
    assert_eq!(refused, "train.sample_prompt = (65 tokens): must fit in model.max_seq_len = 64 tokens");
    // Nothing of them is left.
    assert!(["a", "b", "c"].iter().all(|name| !dir.path().join(name).exists()));
}

/// A file that cannot grow: what a full disk looks like from inside. The limit is a process's, so this test runs itself again
/// under a shell that sets it.
#[cfg(unix)]
#[test]
fn a_checkpoint_that_cannot_be_written_leaves_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, run) = (dir.path().join("whole"), dir.path().join("run"));
    drop(train(&whole, config(dir.path()), None).unwrap());
    drop(train(&run, config(dir.path()), Some(10)).unwrap());
    // 256 blocks: 131072 bytes, less than the model, or 262144, less than the moments, as shells differ.
    let script = "trap '' XFSZ; ulimit -f 256; exec \"$0\" --exact child_under_a_limit --ignored --nocapture";
    let test = std::env::current_exe().unwrap();
    let child = Command::new("sh").args(["-c", script]).arg(test).env(CHILD, &run).output().unwrap();
    let heard = String::from_utf8_lossy(&child.stderr);
    assert!(heard.contains("RESUME: checkpoint: "), "{heard}");
    assert!(heard.contains(".step-20.new") && heard.contains("cannot be written: File too large"), "{heard}");
    let left: Vec<_> = fs::read_dir(run.join("checkpoints")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["step-10"]);
    assert_eq!(resume(&run, None, None).unwrap().0, Outcome::Finished);
    assert_eq!(losses(&whole), losses(&run));
    assert!(bits(&checkpoint(&whole, 40)) == bits(&checkpoint(&run, 40)));
}

const CHILD: &str = "TRAIN_TEST_RUN";

#[test]
#[ignore = "run by a_checkpoint_that_cannot_be_written_leaves_the_one_before: cargo test --release -p train --test refusals"]
fn child_under_a_limit() {
    let Ok(run) = std::env::var(CHILD) else { return }; // asked for by hand
    eprintln!("RESUME: {}", message(resume(Path::new(&run), None, None)));
}
