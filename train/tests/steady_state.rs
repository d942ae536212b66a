//! Alone in its process, because the pool of tensor memory is one for all.

mod common;

#[test]
fn a_step_takes_no_fresh_memory_once_the_pool_is_warm() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = common::config(dir.path());
    (config.train.batch_tokens, config.train.sample_every, config.train.sample_tokens) = (Some(256), 15, 8);
    let (_, heard, _) = common::train(&dir.path().join("run"), config, None).unwrap();
    assert!(heard.steps[0].fresh_blocks > 0, "the counter counts");
    let late: Vec<_> =
        heard.steps[3..].iter().filter(|s| s.fresh_blocks > 0).map(|s| (s.step, s.fresh_blocks)).collect();
    assert!(late.is_empty(), "steps that took fresh blocks from the system: {late:?}");
}
