//! One causal attention head, written out with the ops of `autograd`; then the same from the fused op of the transformer.
//!
//! `cargo run --release --example attention_head`

use autograd::gradcheck::input;
use autograd::{Gradients, Tape, Var};
use kernels::{attention::AttentionShape, reference, testing::ROUNDING};
use tensor::{Tensor, ops};

const WORDS: [&str; 6] = ["the", "cat", "sat", "on", "the", "mat"];
const T: usize = WORDS.len();
const D: usize = 16;
const SCALE: f32 = 0.25; // 1 / sqrt(D): keeps the variance of a score at that of its factors

/// `softmax(Q K^T / sqrt(D) + mask) V`. Shapes: q, k, v and the result [T, D].
fn by_hand<'t>([q, k, v]: [&Var<'t>; 3]) -> Var<'t> {
    let scores = shown("scores = q k^T / sqrt(D)", q.matmul(&k.transpose(0, 1)).scale(SCALE));
    // A word sees itself and those before it: e^-inf = 0 for the others.
    let mask: Vec<f32> = (0..T * T).map(|i| if i % T <= i / T { 0.0 } else { f32::NEG_INFINITY }).collect();
    let masked = shown("masked = scores + mask", scores + q.tape().constant(Tensor::from_slice(&mask, [T, T])));
    let e = shown("e = exp(masked)", masked.exp());
    let sums = shown("sums of e over each row", e.sum_to([T, 1]));
    let pattern = shown("pattern = e / sums", e / sums);
    for (t, row) in pattern.value().to_vec::<f32>().expect("on the CPU").chunks(T).enumerate() {
        let shades: String = row.iter().map(|&p| [" ", ".", ":", "+", "#"][(p * 4.99) as usize].repeat(4)).collect();
        println!("    {:>4} |{shades}| {}", WORDS[t], row.iter().map(|p| format!(" {p:.2}")).collect::<String>());
    }
    shown("out = pattern v", pattern.matmul(v))
}

/// The same from one op, which never writes the [T, T] matrices. It takes [B, T, H, D]: here one sequence, one head.
fn fused<'t>(qkv: [&Var<'t>; 3]) -> Var<'t> {
    let [q, k, v] = qkv.map(|x| x.reshape([1, T, 1, D]));
    q.attention(&k, &v, SCALE).reshape([T, D])
}

/// Runs both heads; panics if results or gradients differ by more than rounding may.
pub fn main() {
    let [q, k, v, r] = [1, 2, 3, 4].map(|seed| input(seed, [T, D]));
    let qkv = [ops::scale(2.0, &q), k, v]; // larger scores: a pattern with more contrast
    let (by_hand, fused) = (out_and_gradients(&qkv, &r, by_hand), out_and_gradients(&qkv, &r, fused));

    // Both may be off by a number of roundings of 2^-24, times the sum of the absolute values of what they add up. A score
    // is a dot of D terms, which moves a probability by twice its error; exp, the sums and the dots that follow add up to
    // one for each of their terms (autograd/src/ops/attention.rs counts them).
    let shape = AttentionShape { batch: 1, q_len: T, kv_len: T, n_heads: 1, n_kv_heads: 1, head_dim: D };
    let [q, k, v, r] = [&qkv[0], &qkv[1], &qkv[2], &r].map(|x| x.to_vec::<f32>().expect("on the CPU"));
    let abs = reference::attention_abs(shape, SCALE, &q, &k, &v, &r);
    let roundings = (2 * (D + 5) + 8) as f64 * abs.score + (6 * T + D + 42) as f64;
    println!("\nby hand against fused:");
    for (i, (name, size)) in [("out", abs.out), ("dq", abs.dq), ("dk", abs.dk), ("dv", abs.dv)].into_iter().enumerate()
    {
        let off = |e: usize| (by_hand[i][e] - fused[i][e]).abs() as f64;
        let bound = |e: usize| 2.0 * roundings * ROUNDING * size[e];
        let worst = (0..T * D).max_by(|&a, &b| off(a).total_cmp(&off(b))).expect("T and D are positive");
        println!("    {name:3}  largest difference {:.1e}, bound there {:.1e}", off(worst), bound(worst));
        assert!((0..T * D).all(|e| off(e) <= bound(e)), "attention: {name} by hand differs from the fused op's");
    }
}

/// The head's result, and the gradients of `sum(out * r)` for q, k and v.
fn out_and_gradients(qkv: &[Tensor; 3], r: &Tensor, head: for<'t> fn([&Var<'t>; 3]) -> Var<'t>) -> [Vec<f32>; 4] {
    let tape = Tape::new();
    let leaves = qkv.each_ref().map(|x| tape.leaf(x.clone()));
    let out = head(leaves.each_ref());
    let mut grads = Gradients::default();
    (&out * tape.constant(r.clone())).sum().backward(&mut grads);
    let [dq, dk, dv] = leaves.each_ref().map(|x| grads.get(x).expect("out depends on all three"));
    [out.value(), dq, dk, dv].map(|x| x.to_vec().expect("on the CPU"))
}

fn shown<'t>(step: &str, x: Var<'t>) -> Var<'t> {
    println!("{step:25} {}", x.value().shape());
    x
}
