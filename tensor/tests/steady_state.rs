//! The second of two equal rounds of ops takes no memory from the system. Alone in its process: the pool's counters are
//! those of all threads.

use tensor::{Activation, Beta, MaskSite, Tensor, ops, pool};

/// A layer's worth of ops, forward and backward, with views and broadcasts. Returns a number that depends on all of them.
fn round() -> f32 {
    let fill = |n: usize, f: f32| -> Vec<f32> { (0..n).map(|i| (i as f32 * f).sin()).collect() };
    let (b, t, h, d, c, d_ff) = (2, 8, 2, 8, 16, 48);
    let x = Tensor::from_slice(&fill(b * t * c, 0.3), [b, t, c]);
    let gain = Tensor::full(1.5, [c]);
    let (gate, up) =
        (Tensor::from_slice(&fill(d_ff * c, 0.7), [d_ff, c]), Tensor::from_slice(&fill(d_ff * c, 0.9), [d_ff, c]));
    let (n, inv_rms) = ops::rms_norm(&x, &gain, 1e-5);
    let q = n.reshape([b, t, h, d]);
    let attention = ops::attention(&q, &q, &x.reshape([b, t, h, d]), 0.4);
    let rows = ops::add(&attention.out.reshape([b * t, c]), &gain);
    let (g, u) = (ops::matmul(&rows, &gate.t()), ops::matmul(&rows, &up.t()));
    let site = MaskSite { seed: 1, first_token: 0, layer: 0, stream: 0, step: 1 };
    let gradients = ops::gated_activation_backward(Activation::stochastic(0.5, site), 0.0, &u, &g, &u);
    let mut d_gate = Tensor::zeros([d_ff, c]);
    ops::matmul_into(&gradients.dg.t(), &rows, Beta::One, &mut d_gate);
    let (dq, _, _) = ops::attention_backward(&attention.out, &q, &q, &q, &attention, 0.4);
    let (mut dx, mut d_gain) = (Tensor::zeros([b, t, c]), ops::sum_to(&dq.reshape([b, t, c]), [c]));
    ops::rms_norm_backward(&n, &x, &gain, &inv_rms, Beta::One, &mut dx, &mut d_gain);
    let wide = ops::mul(&x.transpose(0, 2), &Tensor::full(2.0, [t, b]));
    [&d_gate, &dx, &d_gain, &wide].map(|x| ops::sum(x).item()).iter().sum()
}

#[test]
fn a_second_round_takes_no_fresh_memory_and_gives_the_same_bits() {
    let first = round();
    assert!(first.is_finite());
    let before = pool::stats();
    assert!(before.fresh > 0 && before.live_bytes == 0, "all blocks are back: {before:?}");
    assert_eq!(round().to_bits(), first.to_bits());
    assert_eq!(pool::stats(), before, "no block is fresh, none is lost, and no more were in use at once");

    // The same with NaN in every block that is handed out: nothing reads what it has not written.
    pool::set_poison(true);
    assert_eq!(round().to_bits(), first.to_bits());
    assert_eq!(pool::stats(), before);

    // Trimmed, the pool has given its memory back; the peak counts from there.
    pool::trim();
    assert_eq!(pool::stats().peak_bytes, 0);
    assert_eq!(round().to_bits(), first.to_bits());
    assert!(pool::stats().fresh > before.fresh, "blocks come from the system again");
    assert_eq!(pool::stats().peak_bytes, before.peak_bytes);
}
