//! What kernels move, counted by the interpreter in sectors of 32 bytes: each load and store of a warp touches whole sectors, and nothing is
//! read more often than the documentation says. Without a GPU this is as much as can be said about their speed.

use cuda::ops::adamw::adamw;
use cuda::ops::attention_cached::{AttentionScratch, CachedKv, Heads, attention_cached};
use cuda::ops::elementwise::{add, axpy};
use cuda::ops::embedding::embedding;
use cuda::ops::ffn::{FfnScratch, FfnWeights, TILE, ffn_sparse};
use cuda::ops::gated_activation::{gated_activation, gated_activation_backward};
use cuda::ops::gemm::Mat;
use cuda::ops::gemm_bf16::gemm_bf16_add;
use cuda::ops::gemm_gated_activation::{gemm_gated_activation, gemm_gated_activation_backward};
use cuda::ops::gemv::gemv;
use cuda::ops::rms_norm::rms_norm;
use cuda::ops::rope::rope;
use cuda::ops::softmax_loss::softmax_loss_backward;
use cuda::{Buffer, Error};
use cuda_testing::{Interpreter, Traffic, on, stale};
use half::bf16;
use kernels::adamw::AdamW;
use kernels::rope::{RopeShape, Rotation};
use kernels::testing::{uniform, uniform_bf16};
use kernels::{Activation, Beta, MaskSite};

/// Runs `kernel` and demands that it reads and writes so many bytes, and at most `slack` more: what is small beside them.
#[track_caller]
fn moves(what: &str, traffic: &Traffic, (read, written): (usize, usize), slack: usize, kernel: Result<(), Error>) {
    kernel.unwrap_or_else(|e| panic!("{what}: {e}"));
    let moved = traffic.take();
    let within = |moved: u64, bytes: usize| (bytes..=bytes + slack).contains(&(moved as usize));
    assert!(
        within(moved.0, read) && within(moved.1, written),
        "{what}: moved {moved:?} bytes, expected ({read}, {written}) + {slack}"
    );
}

#[test]
fn kernels_move_the_bytes_that_they_say() {
    let traffic = Traffic::default();
    let device = Interpreter { traffic: Some(traffic.clone()), ..Interpreter::default() }.device();
    let (n, c) = (16, 2048);
    let len = n * c;
    let f32s = |seed| on(&device, &uniform(seed, len));
    let (a, b, mut dst) = (f32s(1), f32s(2), f32s(3));
    let (a, b) = (a.as_slice(), b.as_slice());
    moves("add", &traffic, (8 * len, 4 * len), 0, add(a, b, dst.as_mut()));
    moves("axpy", &traffic, (8 * len, 4 * len), 0, axpy(2.0, a, dst.as_mut()));
    let args = AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step: 1 };
    let [mut p, mut m, mut v] = [4, 5, 6].map(f32s);
    let one = on(&device, &[1.0f32]);
    let step = adamw(&args, one.as_slice(), p.as_mut(), a, m.as_mut(), v.as_mut());
    // Each warp of 32 x 4 elements reads the factor.
    moves("adamw", &traffic, (16 * len, 12 * len), 32 * len.div_ceil(128), step);

    // x twice, the second time from the cache, as is the gain, once for each row.
    let mut inv_rms = stale(&device, n);
    let norm = rms_norm(a, b.part(0..c), 1e-5, dst.as_mut(), inv_rms.as_mut());
    moves("rms_norm", &traffic, (12 * len, 4 * len), 32 * n, norm);
    let mut y = stale::<bf16>(&device, len);
    let norm = rms_norm(a, b.part(0..c), 1e-5, y.as_mut(), inv_rms.as_mut());
    moves("rms_norm bf16", &traffic, (12 * len, 2 * len), 32 * n, norm);

    // Both tables, half as long as a head, for the two heads that a warp turns.
    let shape = RopeShape { n_heads: 16, head_dim: 128, seq_len: n, first_position: 0 };
    let tables = (b.part(0..n * 64), b.part(n * 64..2 * n * 64));
    let turned = rope(a, tables.0, tables.1, shape, Rotation::Forward, dst.as_mut());
    moves("rope", &traffic, (6 * len, 4 * len), 0, turned);

    let tokens = on(&device, &(0..n as u32).rev().collect::<Vec<_>>());
    // A token's number is read by each of eight warps.
    moves("embedding", &traffic, (4 * len, 4 * len), 8 * 32 * n, embedding(a, tokens.as_slice(), c, dst.as_mut()));

    // The logits three times, the second and third from the L2.
    let (mut z, mut losses) = (f32s(7), stale::<f64>(&device, n));
    let loss = softmax_loss_backward(z.as_mut(), c, tokens.as_slice(), 1.0, losses.as_mut());
    moves("softmax_loss_backward", &traffic, (12 * len, 4 * len), 64 * 17 * n, loss);

    let site = MaskSite { seed: 1, first_token: 0, layer: 0, stream: 0, step: 0 };
    let act = Activation::stochastic(0.5, site);
    let bf16s = |seed| -> Buffer<bf16> {
        on(&device, &uniform(seed, len).iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>())
    };
    let (g, u, dh, [mut dg, mut du, mut h]) = (bf16s(1), bf16s(2), bf16s(3), [4, 5, 6].map(bf16s));
    let forward = gated_activation(act, g.as_slice(), u.as_slice(), c, h.as_mut());
    moves("gated_activation bf16", &traffic, (4 * len, 2 * len), 0, forward);
    let outputs = (dg.as_mut(), du.as_mut(), h.as_mut());
    let backward = gated_activation_backward(
        act,
        0.0,
        dh.as_slice(),
        g.as_slice(),
        u.as_slice(),
        c,
        outputs.0,
        outputs.1,
        outputs.2,
    );
    moves("gated_activation_backward bf16", &traffic, (6 * len, 6 * len), 0, backward);
}

#[test]
fn fused_products_move_the_bytes_that_they_say() {
    let traffic = Traffic::default();
    let device = Interpreter { traffic: Some(traffic.clone()), ..Interpreter::default() }.device();
    // Two tiles of rows, two of columns.
    let (n, c, f) = (256, 128, 128);
    let bf16s = |seed, len| on(&device, &uniform_bf16(seed, len));
    let (x, gate, up, down) = (bf16s(1, n * c), bf16s(2, f * c), bf16s(3, f * c), bf16s(4, c * f));
    let (x, gate, up) = (Mat::new(x.as_slice(), n, c), Mat::new(gate.as_slice(), f, c), Mat::new(up.as_slice(), f, c));
    let act = Activation::stochastic(0.5, MaskSite { seed: 1, first_token: 0, layer: 0, stream: 0, step: 0 });
    let [mut g, mut u, mut h, mut dg, mut du] = [(); 5].map(|_| stale::<bf16>(&device, n * f));
    let fused = gemm_gated_activation(act, x, gate, up, g.as_mut(), u.as_mut(), h.as_mut());
    moves("gemm_gated_activation", &traffic, (2 * (2 * n * c + 2 * 2 * f * c), 6 * n * f), 0, fused);
    let (down, outputs) = (Mat::new(down.as_slice(), c, f), (dg.as_mut(), du.as_mut(), h.as_mut()));
    let (g, u) = (g.as_slice(), u.as_slice());
    let fused = gemm_gated_activation_backward(act, 0.0, x, down, g, u, outputs.0, outputs.1, outputs.2);
    moves("gemm_gated_activation_backward", &traffic, (2 * n * c + 2 * 2 * c * f + 4 * n * f, 6 * n * f), 0, fused);
    let (x, mut y) = (on(&device, &uniform(5, n * c)), stale::<f32>(&device, n * c));
    let added = gemm_bf16_add(Mat::new(u, n, f), down.t(), x.as_slice(), y.as_mut());
    moves("gemm_bf16_add", &traffic, (2 * n * f + 2 * 2 * c * f + 4 * n * c, 4 * n * c), 0, added);
}

#[test]
fn kernels_of_decoding_move_the_bytes_that_they_say() {
    let traffic = Traffic::default();
    let device = Interpreter { traffic: Some(traffic.clone()), ..Interpreter::default() }.device();
    let (f, c) = (4 * TILE, 1024);
    let weights = |value: &dyn Fn(usize) -> f32| -> Buffer<bf16> {
        on(&device, &(0..f * c).map(|i| bf16::from_f32(value(i))).collect::<Vec<_>>())
    };
    // Every eighth neuron is active.
    let active = f / 8;
    let gate = weights(&|i| if (i / c).is_multiple_of(8) { 1.0 } else { -1.0 });
    let (up, down_t) = (weights(&|_| 0.5), weights(&|_| 0.25));
    let (x, mut y) = (on(&device, &vec![1.0f32; c]), stale::<f32>(&device, c));

    // For each row of weights in bf16, x in f32 from the L1, its 32 bytes for 16 of weights by two loads, which touch each sector twice.
    let dots = |rows: usize| rows * c * 2 + rows * c * 8;
    let mut g = stale::<f32>(&device, f);
    let product = gemv(gate.as_slice(), x.as_slice(), g.as_mut());
    moves("gemv bf16", &traffic, (dots(f), 32 * f), 0, product);

    let weights = FfnWeights { gate: gate.as_slice(), up: up.as_slice(), down_t: down_t.as_slice() };
    let mut scratch = FfnScratch::new(&device, f, c).unwrap();
    let sparse = ffn_sparse(weights, x.as_slice(), &mut scratch, Beta::Zero, y.as_mut());
    // The gate in full, the active rows of up and down_t, and the tiles' sums, once written and once read. Lists and counts are small: for each
    // active neuron its number and value, read by the warps.
    let lists = active * 32 * 32 + 8192;
    let sums = f / TILE * c * 4;
    moves("ffn_sparse bf16", &traffic, (dots(f + active) + active * c * 2 + sums, 2 * sums), lists + sums, sparse);

    // Keys and values once for the query heads that share them, in passes of four of those; queries and sums from part to part are small.
    let (heads, kv_len) = (Heads { n_heads: 8, n_kv_heads: 2, head_dim: 128 }, 256);
    let cache = on(&device, &uniform(1, 2 * kv_len * 128).iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>());
    let (q, len) = (on(&device, &uniform(2, 8 * 128)), on(&device, &[kv_len as u32]));
    let mut scratch = AttentionScratch::new(&device, heads, kv_len).unwrap();
    let (mut out, mut lse) = (stale::<f32>(&device, 8 * 128), stale::<f32>(&device, 8));
    let kv = CachedKv { k: cache.as_slice(), v: cache.as_slice(), capacity: kv_len };
    let (out, lse) = (out.as_mut(), lse.as_mut());
    let attended = attention_cached(heads, 0.1, q.as_slice(), kv, len.as_slice(), &mut scratch, out, lse);
    let bytes = 2 * 2 * kv_len * 128 * 2;
    moves("attention_cached bf16", &traffic, (bytes, 0), bytes / 4, attended);
}
