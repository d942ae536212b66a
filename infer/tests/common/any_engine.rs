//! What every engine is held to, whatever it runs on.

use super::{bits, configs, tokens};
use infer::{Engine, Error, FfnMode, LayerDensity};
use kernels::Activation;
use kernels::reference::draw16;
use model::{Config, EMBED_TOKENS, LM_HEAD, Psi, PsiAt, Weights, parameter_specs};
use std::panic::{AssertUnwindSafe, catch_unwind};
use tensor::Tensor;

/// The bits of all logits of a greedy generation of `steps` tokens, and the densities.
pub fn greedy(engine: &mut dyn Engine, prompt: &[u32], steps: usize) -> (Vec<Vec<u32>>, Vec<LayerDensity>) {
    engine.reset(0);
    let mut all = vec![bits(engine.prefill(prompt).unwrap())];
    for _ in 0..steps {
        // Of positive floats, larger bits are larger numbers; negative ones come after. Any fixed choice serves.
        let last = all.last().unwrap();
        let token = (0..last.len() as u32).max_by_key(|&t| last[t as usize] as i32).unwrap();
        all.push(bits(engine.decode(token).unwrap()));
    }
    (all, engine.density().to_vec())
}

/// A model whose logits show the mask: every token is a vector of ones, attention writes nothing, every gate is -1 and every
/// up_proj 1, and down_proj and the LM head are identities. Neuron i adds SILU(-1) = -0.27 to element i, or nothing.
pub fn mask_model() -> Weights {
    let n = 40;
    let config =
        Config { vocab_size: n, d_model: n, d_ff: n, n_layers: 1, tie_embeddings: false, ..configs()[0].clone() };
    let tensors = parameter_specs(&config).map(|spec| {
        let shape = spec.shape;
        let identity = |i: usize| (i % n == i / n) as u32 as f32;
        let value = |i: usize| match spec.name.rsplit('.').nth(1).unwrap() {
            "gate_proj" => -1.0 / n as f32,
            "up_proj" => 1.0 / n as f32,
            "down_proj" => identity(i),
            "q_proj" | "k_proj" | "v_proj" | "o_proj" => 0.0,
            _ if spec.name == LM_HEAD => identity(i),
            _ => {
                assert!(spec.name == EMBED_TOKENS || shape.rank() == 1, "{}", spec.name);
                1.0
            }
        };
        Tensor::from_slice(&(0..shape.elements()).map(value).collect::<Vec<f32>>(), shape)
    });
    Weights::from_tensors(&config, tensors.collect())
}

/// The seed, the sample and psi of [`masks_are_those_of_positions`].
pub const MASK_SEED: u64 = 0x0123_4567_89ab_cdef;
const MASK_SAMPLE: u32 = 9;
pub const MASK_PSI: Psi = Psi::stochastic(0.3);

/// An engine of [`mask_model`] under [`MASK_PSI`] shows, at the end of prompts of so many tokens and after decoded ones, the masks of these positions.
#[track_caller]
pub fn masks_are_those_of_positions(what: &str, engine: &mut dyn Engine, lengths: &[u32]) {
    let shown = |logits: &[f32]| -> Vec<bool> {
        let largest = logits.iter().copied().fold(0.0, f32::max);
        logits.iter().map(|&x| x < 0.9 * largest).collect()
    };
    for &n in lengths {
        let drawn: Vec<bool> = (0..40)
            .map(|neuron| {
                let at = PsiAt { psi: MASK_PSI, seed: MASK_SEED, first_token: n - 1, step: MASK_SAMPLE };
                let Activation::Stochastic { threshold, site, .. } = at.layer(0) else { panic!("{MASK_PSI} draws") };
                draw16(site, 0, neuron) < threshold
            })
            .collect();
        let prompt = vec![7; n as usize];
        engine.reset(MASK_SAMPLE);
        assert_eq!(shown(engine.prefill(&prompt).unwrap()), drawn, "prefill {what}: mask of token {n}");
        engine.truncate(n as usize - 1);
        assert_eq!(shown(engine.decode(7).unwrap()), drawn, "decode {what}: mask of token {n}");
        engine.reset(MASK_SAMPLE + 1);
        assert_ne!(shown(engine.prefill(&prompt).unwrap()), drawn, "prefill {what}: another sample's mask of {n}");
    }
}

/// An engine that truncates and resets is as one that never went there.
#[track_caller]
pub fn forgets_without_a_trace(what: &str, engine: &mut dyn Engine) {
    let config = engine.config().clone();
    let (prompt, others) = (tokens(&config, 1, 12), tokens(&config, 2, 30));
    let (fresh, density) = greedy(engine, &prompt, 5);

    // The same prompt, with a detour after its ninth token.
    engine.reset(0);
    engine.prefill(&prompt[..9]).unwrap();
    let plain = bits(engine.prefill(&prompt[9..]).unwrap());
    engine.truncate(9);
    engine.prefill(&others).unwrap();
    engine.truncate(100);
    assert_eq!(engine.position(), 39, "truncate: beyond the end it forgets nothing");
    engine.truncate(9);
    assert_eq!(engine.position(), 9);
    assert_eq!(bits(engine.prefill(&prompt[9..]).unwrap()), plain, "truncate {what}: a detour left a trace");

    assert_eq!(greedy(engine, &prompt, 5), (fresh, density), "reset {what}: what came before left a trace");
}

/// Tokens that each sequence continues with.
const STEPS: usize = 7;

/// Sequences with prompts of their own lengths, the first 4 with one and the same.
fn prompt(config: &Config, sequence: usize) -> Vec<u32> {
    if sequence < 4 { tokens(config, 1, 9) } else { tokens(config, sequence as u64, 1 + 5 * sequence) }
}

fn continuation(config: &Config, sequence: usize) -> Vec<u32> {
    tokens(config, 100 + sequence as u64, STEPS)
}

/// For each sequence the logits after each of its tokens, decoded alone.
pub fn alone(engine: &mut dyn Engine, sequences: usize) -> Vec<Vec<Vec<u32>>> {
    let config = engine.config().clone();
    let one = |sequence| {
        engine.reset(sequence as u32);
        engine.prefill(&prompt(&config, sequence)).unwrap();
        continuation(&config, sequence).into_iter().map(|token| bits(engine.decode(token).unwrap())).collect()
    };
    (0..sequences).map(one).collect()
}

/// The same in batches, of which each leaves out other sequences and has another order.
#[track_caller]
pub fn in_batches_as_alone(what: &str, engine: &mut dyn Engine, expected: &[Vec<Vec<u32>>]) {
    let config = engine.config().clone();
    let n = expected.len();
    for sequence in 0..n {
        engine.reset(sequence as u32);
        engine.prefill(&prompt(&config, sequence)).unwrap();
        engine.fork(sequence).unwrap();
    }
    engine.reset(0);
    let mut done = vec![0; n];
    let mut steps = 0;
    for step in 0.. {
        let turn = (0..n).map(|i| (i * 7 + step) % n).collect::<Vec<_>>();
        let mut batch: Vec<(usize, u32)> = Vec::new();
        for sequence in turn {
            let named = batch.iter().any(|&(other, _)| other == sequence);
            if done[sequence] < STEPS && !named && (sequence + step) % 4 != 0 {
                batch.push((sequence, continuation(&config, sequence)[done[sequence]]));
            }
        }
        if batch.is_empty() {
            if done.iter().all(|&done| done == STEPS) {
                break;
            }
            continue;
        }
        steps += 1;
        let logits = bits(engine.decode_batch(&batch).unwrap());
        for (&(sequence, _), logits) in batch.iter().zip(logits.chunks(config.vocab_size)) {
            let at = done[sequence];
            assert!(logits == expected[sequence][at], "decode_batch {what}: sequence {sequence} differs at token {at}");
            done[sequence] += 1;
        }
    }
    for layer in engine.density() {
        let d_ff = config.d_ff as u64;
        assert_eq!((layer.tokens, layer.neurons), ((n * STEPS) as u64, (n * STEPS) as u64 * d_ff), "density {what}");
        assert_eq!(layer.steps, steps, "density {what}: steps");
        assert!(layer.union <= layer.active && layer.active <= layer.union * n as u64, "density {what}: {layer:?}");
        assert!(layer.union_share().unwrap() >= layer.share().unwrap() - 1e-12, "density {what}: {layer:?}");
    }
}

/// Branches of an engine live beside its own sequence.
pub fn branches_outlive_a_reset_and_go_their_own_way(engine: &mut dyn Engine) {
    engine.prefill(&[1, 2, 3]).unwrap();
    let expected = bits(engine.decode(4).unwrap());
    engine.truncate(3);
    engine.fork(2).unwrap();
    engine.fork(0).unwrap();
    assert_eq!(bits(engine.decode_batch(&[(0, 7)]).unwrap()), bits(engine.decode(7).unwrap()));
    engine.reset(0);
    assert_eq!(bits(engine.decode_batch(&[(2, 4)]).unwrap()), expected);
    assert_eq!(engine.position(), 0, "decode_batch moves the engine's own sequence");
    // A branch that is forked again is another one.
    engine.prefill(&[1, 2, 3]).unwrap();
    engine.fork(0).unwrap();
    assert_eq!(bits(engine.decode_batch(&[(0, 4)]).unwrap()), expected);
}

/// An engine with a context of 4 and a vocabulary of 61 refuses what does not fit, and is then as it was.
pub fn batches_that_do_not_fit_are_refused(engine: &mut dyn Engine) {
    engine.prefill(&[1, 2, 3]).unwrap();
    engine.fork(0).unwrap();
    engine.prefill(&[4]).unwrap();
    engine.fork(1).unwrap();
    let refused = engine.decode_batch(&[(0, 5), (1, 6)]).unwrap_err();
    assert!(matches!(refused, Error::Context { tokens: 1, position: 4, context: 4 }), "{refused}");
    let refused = engine.decode_batch(&[(0, 61)]).unwrap_err();
    assert!(matches!(refused, Error::Token { token: 61, position: 3, vocab_size: 61 }), "{refused}");
    // Nothing has changed meanwhile.
    engine.reset(0);
    engine.prefill(&[1, 2, 3]).unwrap();
    assert_eq!(bits(engine.decode_batch(&[(0, 5)]).unwrap()), bits(engine.decode(5).unwrap()));
    let panics = |engine: &mut dyn Engine, tokens: &[(usize, u32)], words: &str| {
        let payload = catch_unwind(AssertUnwindSafe(|| engine.decode_batch(tokens).map(|_| ()))).unwrap_err();
        let message = payload.downcast_ref::<String>().map(String::as_str);
        let message = message.or(payload.downcast_ref::<&str>().copied()).unwrap();
        assert!(message.contains(words), "{message}");
    };
    panics(engine, &[], "decode_batch: no tokens");
    panics(engine, &[(7, 1)], "decode_batch: branch 7 was never forked");
    engine.reset(0);
    engine.prefill(&[1]).unwrap();
    engine.fork(0).unwrap();
    panics(engine, &[(0, 1), (0, 2)], "decode_batch: branch 0 is named twice");
    engine.set_activation(Psi::Silu, FfnMode::Dense).unwrap();
    panics(engine, &[(0, 1)], "decode_batch: branch 0 was never forked");
}
