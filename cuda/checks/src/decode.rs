//! Kernels of a decoding step: products with a vector, the FFN of a token, attention over a cache.

use crate::Run;
use cuda::ops::Float;
use cuda::ops::attention_cached::{AttentionScratch, CachedKv, Heads, attention_cached};
use cuda::ops::ffn::{FfnScratch, FfnWeights, TILE, ffn_dense, ffn_sparse};
use cuda::ops::gemv::gemv;
use cuda::{Buffer, Error};
use half::bf16;
use kernels::attention::AttentionShape;
use kernels::testing::{ROUNDING, dot_bound, uniform, uniform_bf16, widened};
use kernels::{Activation, Beta, MaskSite, Mat, reference};

pub fn gemv_matches_reference(run: &mut Run) -> Result<(), Error> {
    let small = [(0, 3), (1, 1), (9, 7), (17, 8), (3, 100), (5, 1000), (2, 5000), (3, 2056)];
    for (m, k) in run.sizes(&small, &[(14_336, 2048), (1009, 14_337)]) {
        let (w, x) = (uniform_bf16(1, m * k), uniform(2, k));
        let wide = widened(&w);
        let (y_ref, abs) = reference::gemm(Mat::new(&wide, m, k), Mat::new(&x, k, 1));
        let ([mut y, mut y_bf16], x) = (run.all_stale(m)?, run.on(&x)?);
        gemv(run.on(&wide)?.as_slice(), x.as_slice(), y.as_mut())?;
        gemv(run.on(&w)?.as_slice(), x.as_slice(), y_bf16.as_mut())?;
        run.within(&format!("gemv [{m}, {k}]"), &y.to_vec()?, &y_ref, |i| dot_bound(k, abs[i]));
        run.within(&format!("gemv bf16 [{m}, {k}]"), &y_bf16.to_vec()?, &y_ref, |i| dot_bound(k, abs[i]));
    }
    Ok(())
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
        run: &Run,
        act: Option<Activation>,
        old: Option<&[f32]>,
        to: fn(f32) -> W,
    ) -> Result<(Vec<f32>, u32), Error> {
        let matrices = [&self.gate, &self.up, &self.down_t].map(|w| w.iter().map(|&w| to(w)).collect::<Vec<W>>());
        let [gate, up, down_t] = run.all_on(matrices.each_ref().map(Vec::as_slice))?;
        let weights = FfnWeights { gate: gate.as_slice(), up: up.as_slice(), down_t: down_t.as_slice() };
        let (c, x) = (self.x.len(), run.on(&self.x)?);
        let mut scratch = FfnScratch::new(run.device(), self.gate.len() / c, c)?;
        let (mut y, beta): (Buffer<f32>, Beta) = match old {
            Some(old) => (run.on(old)?, Beta::One),
            None => (run.stale(c)?, Beta::Zero),
        };
        match act {
            None => ffn_sparse(weights, x.as_slice(), &mut scratch, beta, y.as_mut())?,
            Some(act) => ffn_dense(weights, act, x.as_slice(), &mut scratch, beta, y.as_mut())?,
        }
        Ok((y.to_vec()?, scratch.counts().to_vec()?.iter().sum()))
    }
}

pub fn ffn_sparse_matches_reference_and_has_the_bits_of_ffn_dense(run: &mut Run) -> Result<(), Error> {
    let small = [(1, 1), (3, 7), (TILE, 8), (TILE + 1, 40), (200, 33), (130, 2056), (1000, 16)];
    for (f, c) in run.sizes(&small, &[(5633, 1024), (1000, 4096)]) {
        for density in [0.0, 0.1, 0.5, 1.0] {
            let ffn = Ffn::new(f, c, density);
            let what = format!("[{f}, {c}] density {density}");
            let (y, used) = ffn.run(run, None, None, |w| w)?;
            let (y_ref, abs) = reference::ffn_relu(&ffn.gate, &ffn.up, &ffn.down_t, &ffn.x);
            let bound = |i: usize| (2 * c + f + 12 + f.div_ceil(TILE)) as f64 * ROUNDING * abs[i];
            run.within(&format!("ffn_sparse {what}"), &y, &y_ref, bound);
            let active = ffn
                .gate
                .chunks(c)
                .filter(|w| w.iter().zip(&ffn.x).map(|(&w, &x)| w as f64 * x as f64).sum::<f64>() > 0.0)
                .count();
            run.same(&format!("ffn_sparse {what}: neurons in use"), &[used as usize], &[active]);
            let (dense, all) = ffn.run(run, Some(Activation::Relu), None, |w| w)?;
            run.same(&format!("ffn_dense {what}: neurons in use"), &[all as usize], &[f]);
            run.same_bits(&format!("ffn_sparse and ffn_dense {what}: bits differ"), &y, &dense);

            let (y_bf16, _) = ffn.run(run, None, None, bf16::from_f32)?;
            run.within(&format!("ffn_sparse bf16 {what}"), &y_bf16, &y_ref, bound);
            let (dense, _) = ffn.run(run, Some(Activation::Relu), None, bf16::from_f32)?;
            run.same_bits(&format!("ffn_sparse and ffn_dense bf16 {what}: bits differ"), &y_bf16, &dense);

            let old = uniform(6, c);
            let (added, _) = ffn.run(run, None, Some(&old), |w| w)?;
            let expected: Vec<f32> = y.iter().zip(&old).map(|(y, old)| old + y).collect();
            run.same_bits(&format!("ffn_sparse {what}: added to a residual"), &added, &expected);
        }
    }
    Ok(())
}

pub fn ffn_dense_draws_as_the_cpu_does(run: &mut Run) -> Result<(), Error> {
    let site = MaskSite { seed: 99, first_token: 12, layer: 2, stream: 3, step: 4 };
    let (f, c) = (150, 24);
    let ffn = Ffn::new(f, c, 0.3);
    for act in [Activation::Silu, Activation::Gelu, Activation::stochastic(0.5, site)] {
        let (y, _) = ffn.run(run, Some(act), None, |w| w)?;
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
        run.within(&format!("ffn_dense {act:?}"), &y, &expected, |i| (2 * c + f + 30) as f64 * ROUNDING * abs[i]);
    }
    Ok(())
}

pub fn attention_cached_matches_reference(run: &mut Run) -> Result<(), Error> {
    let small = [
        (1, 1, 1, 1, 1),
        (4, 2, 8, 5, 9),
        (6, 2, 7, 127, 140),
        (8, 1, 16, 129, 129),
        (3, 3, 40, 300, 400),
        (16, 1, 128, 200, 256),
    ];
    let of_a_card = [(32, 8, 128, 3001, 4096), (16, 16, 256, 1025, 1030)];
    for (n_heads, n_kv_heads, head_dim, kv_len, capacity) in run.sizes(&small, &of_a_card) {
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
        let wide = attend(run, heads, scale, &q, [&widened(&k), &widened(&v)], kv_len)?;
        let narrow = attend(run, heads, scale, &q, [&k, &v], kv_len)?;
        let mut check = |what: &str, (out, lse): (Vec<f32>, Vec<f32>)| {
            run.within(&format!("{what} out"), &out, &out_ref, out_bound);
            run.within(&format!("{what} lse"), &lse, &lse_ref, lse_bound);
        };
        check(&what, wide);
        check(&format!("{what} bf16"), narrow);
    }
    Ok(())
}

/// `(out, lse)` of the first `kv_len` positions of a cache.
fn attend<W: Float>(
    run: &Run,
    heads: Heads,
    scale: f32,
    q: &[f32],
    kv: [&[W]; 2],
    kv_len: usize,
) -> Result<(Vec<f32>, Vec<f32>), Error> {
    let capacity = kv[0].len() / heads.n_kv_heads / heads.head_dim;
    let (q, [k, v], kv_len) = (run.on(q)?, run.all_on(kv)?, run.on(&[kv_len as u32])?);
    let mut scratch = AttentionScratch::new(run.device(), heads, capacity)?;
    let (mut out, mut lse) = (run.stale(q.len())?, run.stale(heads.n_heads)?);
    let cache = CachedKv { k: k.as_slice(), v: v.as_slice(), capacity };
    let (to, lse_to) = (out.as_mut(), lse.as_mut());
    attention_cached(heads, scale, q.as_slice(), cache, kv_len.as_slice(), &mut scratch, to, lse_to)?;
    Ok((out.to_vec()?, lse.to_vec()?))
}

/// One recorded launch serves every position: the length is read on the device.
pub fn a_recorded_attention_cached_follows_the_position(run: &mut Run) -> Result<(), Error> {
    let heads = Heads { n_heads: 2, n_kv_heads: 1, head_dim: 8 };
    let device = run.device().clone();
    let (k, v, q) = (run.on(&uniform(1, 160 * 8))?, run.on(&uniform(2, 160 * 8))?, run.on(&uniform(3, 16))?);
    let mut position = run.on(&[1u32])?;
    let attend = |kv_len: &Buffer<u32>, out: &mut Buffer<f32>, scratch: &mut AttentionScratch| {
        let cache = CachedKv { k: k.as_slice(), v: v.as_slice(), capacity: 160 };
        let mut lse = Buffer::stale(&device, 2)?;
        attention_cached(heads, 0.3, q.as_slice(), cache, kv_len.as_slice(), scratch, out.as_mut(), lse.as_mut())
    };
    let (mut out, mut scratch) = (run.stale(16)?, AttentionScratch::new(&device, heads, 160)?);
    let graph = device.graph(|| attend(&position, &mut out, &mut scratch))?;
    for kv_len in [3, 128, 129, 160] {
        position.as_mut().copy_from_host(&[kv_len])?;
        graph.launch()?;
        let (mut alone, mut scratch) = (run.stale(16)?, AttentionScratch::new(&device, heads, 160)?);
        attend(&run.on(&[kv_len])?, &mut alone, &mut scratch)?;
        run.same_bits(&format!("attention_cached at {kv_len} positions"), &out.to_vec()?, &alone.to_vec()?);
    }
    Ok(())
}
