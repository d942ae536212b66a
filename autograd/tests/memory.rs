//! What a tape keeps, and when it goes back to the pool. In a process of their own: the pool's counters are of the process.

use autograd::gradcheck::input;
use autograd::{Gradients, Op, Slot, Tape, Var};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tensor::{Activation, MaskSite, Tensor, pool};

/// Tests share the pool: one at a time.
fn alone() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The identity, whose backward notes the bytes in use.
struct Probe {
    live: Rc<RefCell<Vec<u64>>>,
    x_slot: Option<Slot>,
}

impl Op for Probe {
    fn name(&self) -> &'static str {
        "probe"
    }
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Gradients) {
        self.live.borrow_mut().push(pool::stats().live_bytes);
        grads.add(self.x_slot, dy);
    }
}

fn probe<'t>(x: &Var<'t>, live: &Rc<RefCell<Vec<u64>>>) -> Var<'t> {
    x.tape().record("probe", x.value().clone(), &[x], || Probe { live: Rc::clone(live), x_slot: x.slot() })
}

/// Elements of a layer's result, and its bytes: a whole number of lines, so that the pool rounds nothing up.
const ELEMENTS: usize = 1024;
const BYTES: u64 = 4096;
const LAYERS: u64 = 8;

#[test]
fn saved_tensors_return_during_backward() {
    let _alone = alone();
    let live = Rc::new(RefCell::new(Vec::new()));
    let tape = Tape::new();
    let mut grads = Gradients::default();
    let leaf = tape.leaf(input(1, [ELEMENTS]));
    let mut x = leaf.clone();
    let before = pool::stats().live_bytes;
    for _ in 0..LAYERS {
        x = probe(&x, &live).scale(0.5).exp(); // exp keeps its result; scale keeps nothing
    }
    let loss = x.sum();
    drop(x);
    let number = 64; // the loss takes one line
    assert_eq!(pool::stats().live_bytes - before, LAYERS * BYTES + number, "a layer keeps exp's result and no more");
    loss.backward(&mut grads);
    // In the backward of the probe before layer i, the results of the i layers before it are left, one gradient, and the loss.
    let expected: Vec<u64> = (0..LAYERS).rev().map(|i| (i + 1) * BYTES + number).collect();
    let seen: Vec<u64> = live.borrow().iter().map(|live| live - before).collect();
    assert_eq!(seen, expected, "bytes in use during backward");
    assert_eq!(grads.get(&leaf).unwrap().elements(), ELEMENTS);
    grads.clear();
    assert_eq!(pool::stats().live_bytes, before, "after backward and clear, only the leaf is left");
}

#[test]
fn a_tape_without_gradients_keeps_nothing() {
    let _alone = alone();
    let tape = Tape::without_gradients();
    let mut x = tape.leaf(input(1, [ELEMENTS])); // its memory goes when x is another
    let before = pool::stats().live_bytes;
    for _ in 0..LAYERS {
        x = x.scale(0.5).exp();
    }
    assert!(tape.is_empty());
    assert_eq!(pool::stats().live_bytes, before, "only the last result is left, in the place of the first");
}

/// The ops of a transformer's layer between embedding and loss, with the embedding tied to the LM head.
fn step(params: &[Tensor; 7], grads: &mut Gradients, tokens: &Tensor, seed: u64) -> f64 {
    let tape = Tape::new();
    let [table, norm, q, k, gate, up, down] = params.each_ref().map(|p| tape.leaf(p.clone()));
    let [cos, sin] = [1, 2].map(|seed| input(seed, [8, 2]));
    let act = Activation::stochastic(0.5, MaskSite { seed, first_token: 0, layer: 0, stream: 0, step: 0 });
    let x = table.embedding(tokens);
    let n = x.rms_norm(&norm, 1e-5);
    let q = n.linear(&q).reshape([2, 8, 4, 4]).rope(&cos, &sin, 0);
    let k = n.linear(&k).reshape([2, 8, 2, 4]).rope(&cos, &sin, 0);
    let x = &x + q.attention(&k, &k, 0.5).reshape([2, 8, 16]);
    let n = x.rms_norm(&norm, 1e-5);
    let x = &x + n.linear(&gate).gated_down_proj(&n.linear(&up), &down, act);
    let (loss, nats) = x.lm_head_loss(&table, tokens, 1.0 / 16.0);
    drop((x, n, q, k));
    loss.backward(grads);
    nats.value()
}

#[test]
fn steady_state_takes_no_fresh_block() {
    let _alone = alone();
    let shapes = [[32, 16], [1, 16], [16, 16], [8, 16], [40, 16], [40, 16], [16, 40]];
    let mut seed = 0;
    let params = shapes.map(|shape| {
        seed += 1;
        if shape[0] == 1 { input(seed, [16]) } else { input(seed, shape) }
    });
    let tokens = Tensor::from_slice(&(0..16).map(|i| i * 7 % 32).collect::<Vec<u32>>(), [2, 8]);
    let mut grads = Gradients::default();
    let mut taken = Vec::new();
    for seed in 0..6 {
        // Two micro-batches, then a step.
        let nats = step(&params, &mut grads, &tokens, seed) + step(&params, &mut grads, &tokens, seed + 100);
        assert!(nats.is_finite());
        assert!((0..params.len()).all(|i| grads.at(i).is_some_and(|g| g.shape() == params[i].shape())));
        grads.clear();
        taken.push(pool::stats().fresh);
    }
    assert!(taken.iter().skip(1).all(|&fresh| fresh == taken[0]), "blocks taken from the system by step: {taken:?}");
}
