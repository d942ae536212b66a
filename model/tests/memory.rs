//! The formula for training memory against what the pool hands out. One test in one process: the pool counts for all.

use autograd::{Gradients, Tape};
use model::{Config, Precision, Psi, PsiAt, Transformer, Weights, preset};
use tensor::{Tensor, pool};

#[test]
fn training_memory_is_what_the_formula_says() {
    // Powers of two, of which the pool rounds none up.
    let config = Config { n_heads: 8, n_kv_heads: 4, head_dim: 32, ..preset("tiny", 512).unwrap() };
    let (batch, time) = (4, 64);
    let model = Transformer::new(Weights::init(&config, 1));
    let tokens = Tensor::from_slice(&vec![7u32; batch * time], [batch, time]);
    let expected = config.training_memory(batch * time, Precision::F32);
    let mut grads = Gradients::default();
    // The second micro-batch adds to the gradients of the first.
    for micro_batch in 0..2 {
        let before = pool::stats().live_bytes;
        let tape = Tape::new();
        let psi = PsiAt::deterministic(Psi::Silu);
        let (loss, _) = model.loss(&model.leaves(&tape), (&tokens, &tokens), 1.0, psi, None);
        // The gradient of the LM head is made with the loss.
        let head = (4 * config.vocab_size * config.d_model) as u64;
        let kept = pool::stats().live_bytes - before - head;
        // The tokens are the caller's.
        let formula = expected.activations - (4 * batch * time) as u64;
        // The loss itself is a cache line.
        assert_eq!(kept, formula + 64, "training_memory: what micro-batch {micro_batch} keeps of activations");
        loss.backward(&mut grads);
        assert!(tape.is_empty());
    }
    let peak = (pool::stats().peak_bytes - expected.parameters) as f64;
    let formula = (expected.gradients + expected.activations + expected.workspace) as f64;
    assert!(
        (0.9..1.1).contains(&(peak / formula)),
        "training_memory: a peak of {peak} bytes, the formula says {formula}"
    );
}
