//! Kernels of a decoding step - products with a vector, the FFN of a token, attention over a cache - in the interpreter.

use cuda::ops::Float;
use cuda::ops::attention_cached::{AttentionScratch, CachedKv, Heads, attention_cached};
use cuda::ops::ffn::{FfnScratch, FfnWeights, TILE, ffn_dense, ffn_sparse};
use cuda::ops::gemv::gemv;
use cuda::{Buffer, Device};
use cuda_testing::{bits, device, on, stale};
use half::bf16;
use kernels::attention::AttentionShape;
use kernels::testing::{ROUNDING, assert_within, dot_bound, uniform, uniform_bf16, widened};
use kernels::{Activation, Beta, MaskSite, Mat, reference};

#[test]
fn gemv_matches_reference() {
    let device = device();
    for (m, k) in [(0, 3), (1, 1), (9, 7), (17, 8), (3, 100), (5, 1000), (2, 5000), (3, 2056)] {
        let (w, x) = (uniform_bf16(1, m * k), uniform(2, k));
        let wide = widened(&w);
        let (y_ref, abs) = reference::gemm(Mat::new(&wide, m, k), Mat::new(&x, k, 1));
        let (mut y, mut y_bf16, x) = (stale(&device, m), stale(&device, m), on(&device, &x));
        gemv(on(&device, &wide).as_slice(), x.as_slice(), y.as_mut()).unwrap();
        gemv(on(&device, &w).as_slice(), x.as_slice(), y_bf16.as_mut()).unwrap();
        assert_within(&format!("gemv [{m}, {k}]"), &y.to_vec().unwrap(), &y_ref, |i| dot_bound(k, abs[i]));
        assert_within(&format!("gemv bf16 [{m}, {k}]"), &y_bf16.to_vec().unwrap(), &y_ref, |i| dot_bound(k, abs[i]));
    }
}

/// An FFN and an x for it: a share of about `density` of the neurons is active.
struct Ffn {
    gate: Vec<f32>,
    up: Vec<f32>,
    down_t: Vec<f32>,
    x: Vec<f32>,
}

impl Ffn {
    fn new(f: usize, c: usize, density: f32) -> Ffn {
        let x: Vec<f32> = uniform(4, c).into_iter().map(|x| 0.6 + 0.4 * x).collect();
        // A third of the rows is noise alone, for dots of all sizes near 0; but none where all are to be active, or none.
        let noise = |i: usize| density > 0.0 && density < 1.0 && i % 3 == 1;
        let of_density = uniform(5, f).into_iter().map(|r| if r < 2.0 * density - 1.0 { 1.0 } else { -1.0 });
        let sign: Vec<f32> = of_density.enumerate().map(|(i, sign)| if noise(i) { 0.0 } else { sign }).collect();
        let gate = uniform(1, f * c).into_iter().enumerate().map(|(i, w)| sign[i / c] + 0.1 * w).collect();
        let mut ffn = Ffn { gate, up: uniform(2, f * c), down_t: uniform(3, f * c), x };
        // What bf16 holds, so that both formats have the same numbers.
        [&mut ffn.gate, &mut ffn.up, &mut ffn.down_t]
            .into_iter()
            .flatten()
            .for_each(|w| *w = bf16::from_f32(*w).to_f32());
        ffn
    }

    /// Runs it on a device, sparse if there is no activation, added to `old` if there is one; y and the neurons in use.
    fn run<W: Float>(
        &self,
        device: &Device,
        act: Option<Activation>,
        old: Option<&[f32]>,
        to: fn(f32) -> W,
    ) -> (Vec<f32>, u32) {
        let on_device = |w: &[f32]| on(device, &w.iter().map(|&w| to(w)).collect::<Vec<W>>());
        let [gate, up, down_t] = [&self.gate, &self.up, &self.down_t].map(|w| on_device(w));
        let weights = FfnWeights { gate: gate.as_slice(), up: up.as_slice(), down_t: down_t.as_slice() };
        let (c, x) = (self.x.len(), on(device, &self.x));
        let mut scratch = FfnScratch::new(device, self.gate.len() / c, c).unwrap();
        let (mut y, beta): (Buffer<f32>, Beta) = match old {
            Some(old) => (on(device, old), Beta::One),
            None => (stale(device, c), Beta::Zero),
        };
        match act {
            None => ffn_sparse(weights, x.as_slice(), &mut scratch, beta, y.as_mut()).unwrap(),
            Some(act) => ffn_dense(weights, act, x.as_slice(), &mut scratch, beta, y.as_mut()).unwrap(),
        }
        (y.to_vec().unwrap(), scratch.counts().to_vec().unwrap().iter().sum())
    }
}

#[test]
fn ffn_sparse_matches_reference_and_has_the_bits_of_ffn_dense() {
    let device = device();
    for (f, c) in [(1, 1), (3, 7), (TILE, 8), (TILE + 1, 40), (200, 33), (130, 2056), (1000, 16)] {
        for density in [0.0, 0.1, 0.5, 1.0] {
            let ffn = Ffn::new(f, c, density);
            let what = format!("[{f}, {c}] density {density}");
            let (y, used) = ffn.run(&device, None, None, |w| w);
            let (y_ref, abs) = reference::ffn_relu(&ffn.gate, &ffn.up, &ffn.down_t, &ffn.x);
            let bound = |i: usize| (2 * c + f + 12 + f.div_ceil(TILE)) as f64 * ROUNDING * abs[i];
            assert_within(&format!("ffn_sparse {what}"), &y, &y_ref, bound);
            let active = ffn
                .gate
                .chunks(c)
                .filter(|w| w.iter().zip(&ffn.x).map(|(&w, &x)| w as f64 * x as f64).sum::<f64>() > 0.0)
                .count();
            assert_eq!(used as usize, active, "ffn_sparse {what}: neurons in use");
            let (dense, all) = ffn.run(&device, Some(Activation::Relu), None, |w| w);
            assert_eq!(all as usize, f, "ffn_dense {what}: neurons in use");
            assert_eq!(bits(&y), bits(&dense), "ffn_sparse and ffn_dense {what}: bits differ");

            let (y_bf16, _) = ffn.run(&device, None, None, bf16::from_f32);
            assert_within(&format!("ffn_sparse bf16 {what}"), &y_bf16, &y_ref, bound);
            let (dense, _) = ffn.run(&device, Some(Activation::Relu), None, bf16::from_f32);
            assert_eq!(bits(&y_bf16), bits(&dense), "ffn_sparse and ffn_dense bf16 {what}: bits differ");

            let old = uniform(6, c);
            let (added, _) = ffn.run(&device, None, Some(&old), |w| w);
            let expected: Vec<f32> = y.iter().zip(&old).map(|(y, old)| old + y).collect();
            assert_eq!(bits(&added), bits(&expected), "ffn_sparse {what}: added to a residual");
        }
    }
}

#[test]
fn ffn_dense_draws_as_the_cpu_does() {
    let device = device();
    let site = MaskSite { seed: 99, first_token: 12, layer: 2, stream: 3, step: 4 };
    let (f, c) = (150, 24);
    let ffn = Ffn::new(f, c, 0.3);
    for act in [Activation::Silu, Activation::Gelu, Activation::stochastic(0.5, site)] {
        let (y, _) = ffn.run(&device, Some(act), None, |w| w);
        let dot = |w: &[f32]| w.iter().zip(&ffn.x).map(|(&w, &x)| w as f64 * x as f64).sum::<f64>();
        let dot_abs = |w: &[f32]| w.iter().zip(&ffn.x).map(|(&w, &x)| (w as f64 * x as f64).abs()).sum::<f64>();
        let (mut expected, mut abs) = (vec![0.0; c], vec![0.0; c]);
        for i in 0..f {
            let row = i * c..(i + 1) * c;
            let (value, _) = reference::activation(act, 0, i, dot(&ffn.gate[row.clone()]));
            let u = dot(&ffn.up[row.clone()]);
            for (j, &w) in ffn.down_t[row.clone()].iter().enumerate() {
                expected[j] += value * u * w as f64;
                // psi moves by at most 1.2 times what its argument does.
                abs[j] += 1.2 * dot_abs(&ffn.gate[row.clone()]) * dot_abs(&ffn.up[row.clone()]) * w.abs() as f64;
            }
        }
        assert_within(&format!("ffn_dense {act:?}"), &y, &expected, |i| (2 * c + f + 30) as f64 * ROUNDING * abs[i]);
    }
}

#[test]
fn attention_cached_matches_reference() {
    let device = device();
    let cases = [
        (1, 1, 1, 1, 1),
        (4, 2, 8, 5, 9),
        (6, 2, 7, 127, 140),
        (8, 1, 16, 129, 129),
        (3, 3, 40, 300, 400),
        (16, 1, 128, 200, 256),
    ];
    for (n_heads, n_kv_heads, head_dim, kv_len, capacity) in cases {
        let heads = Heads { n_heads, n_kv_heads, head_dim };
        let (k, v) =
            (uniform_bf16(2, n_kv_heads * capacity * head_dim), uniform_bf16(3, n_kv_heads * capacity * head_dim));
        let (q, scale) = (uniform(1, n_heads * head_dim), 1.0 / (head_dim as f32).sqrt());
        // The reference has [T, K, D].
        let by_position = |x: &[bf16]| -> Vec<f32> {
            let at =
                |i: usize| (i / head_dim % n_kv_heads * capacity + i / head_dim / n_kv_heads) * head_dim + i % head_dim;
            (0..kv_len * n_kv_heads * head_dim).map(|i| x[at(i)].to_f32()).collect()
        };
        let shape = AttentionShape { batch: 1, q_len: 1, kv_len, n_heads, n_kv_heads, head_dim };
        let (k_ref, v_ref) = (by_position(&k), by_position(&v));
        let (out_ref, lse_ref) = reference::attention(shape, scale, &q, &k_ref, &v_ref);
        let abs = reference::attention_abs(shape, scale, &q, &k_ref, &v_ref, &q);
        // As the bound of the CPU kernel, where a row is rescaled once for each part of 128 keys.
        let score = (head_dim + 5) as f64 * ROUNDING * abs.score;
        let parts = kv_len.div_ceil(128) as f64;
        let roundings = 8.0 * abs.score + 2.0 * (kv_len as f64).ln() + 10.0 * parts + kv_len as f64 + 12.0;
        let probability = (2.0 * score + roundings * ROUNDING).exp_m1();
        let out_bound = |i: usize| (probability + (kv_len + 4) as f64 * ROUNDING) * abs.out[i];
        let lse_bound = |i: usize| probability + 2.0 * ROUNDING * lse_ref[i].abs();

        let what = format!("attention_cached {heads:?} {kv_len} of {capacity}");
        let check = |what: &str, (out, lse): (Vec<f32>, Vec<f32>)| {
            assert_within(&format!("{what} out"), &out, &out_ref, out_bound);
            assert_within(&format!("{what} lse"), &lse, &lse_ref, lse_bound);
        };
        check(&what, attend(&device, heads, scale, &q, &widened(&k), &widened(&v), kv_len));
        check(&format!("{what} bf16"), attend(&device, heads, scale, &q, &k, &v, kv_len));
    }
}

/// `(out, lse)` of the first `kv_len` positions of a cache.
fn attend<W: Float>(
    device: &Device,
    heads: Heads,
    scale: f32,
    q: &[f32],
    k: &[W],
    v: &[W],
    kv_len: usize,
) -> (Vec<f32>, Vec<f32>) {
    let capacity = k.len() / heads.n_kv_heads / heads.head_dim;
    let (q, k, v, kv_len) = (on(device, q), on(device, k), on(device, v), on(device, &[kv_len as u32]));
    let mut scratch = AttentionScratch::new(device, heads, capacity).unwrap();
    let (mut out, mut lse) = (stale(device, q.len()), stale(device, heads.n_heads));
    let cache = CachedKv { k: k.as_slice(), v: v.as_slice(), capacity };
    let (to, lse_to) = (out.as_mut(), lse.as_mut());
    attention_cached(heads, scale, q.as_slice(), cache, kv_len.as_slice(), &mut scratch, to, lse_to).unwrap();
    (out.to_vec().unwrap(), lse.to_vec().unwrap())
}

/// One recorded launch serves every position: the length is read on the device.
#[test]
fn a_recorded_attention_follows_the_position() {
    let device = device();
    let heads = Heads { n_heads: 2, n_kv_heads: 1, head_dim: 8 };
    let (k, v, q) =
        (on(&device, &uniform(1, 160 * 8)), on(&device, &uniform(2, 160 * 8)), on(&device, &uniform(3, 16)));
    let mut position = on(&device, &[1u32]);
    let run = |kv_len: &Buffer<u32>, out: &mut Buffer<f32>, scratch: &mut AttentionScratch| {
        let cache = CachedKv { k: k.as_slice(), v: v.as_slice(), capacity: 160 };
        let mut lse = stale(&device, 2);
        attention_cached(heads, 0.3, q.as_slice(), cache, kv_len.as_slice(), scratch, out.as_mut(), lse.as_mut())
    };
    let (mut out, mut scratch) = (stale(&device, 16), AttentionScratch::new(&device, heads, 160).unwrap());
    let graph = device.graph(|| run(&position, &mut out, &mut scratch)).unwrap();
    for kv_len in [3, 128, 129, 160] {
        position.as_mut().copy_from_host(&[kv_len]).unwrap();
        graph.launch().unwrap();
        let (mut alone, mut scratch) = (stale(&device, 16), AttentionScratch::new(&device, heads, 160).unwrap());
        run(&on(&device, &[kv_len]), &mut alone, &mut scratch).unwrap();
        assert_eq!(
            bits(&out.to_vec().unwrap()),
            bits(&alone.to_vec().unwrap()),
            "attention_cached at {kv_len} positions"
        );
    }
}
