//! The transformer in f64, and how far f32 may be from it.
//!
//! The bound is that of Monte Carlo arithmetic (Parker, 1997): the forward runs again a few times with the result of every
//! kernel moved, up or down at random, by all that the kernel's stated accuracy allows. The spread of the logits, six times
//! over, is what an f32 forward may differ by. A real kernel errs by far less than it states (`sqrt(K)` roundings in a dot
//! of K terms, not K), so a forward outside of it is wrong. Worst-case propagation has nothing to say here: each layer
//! multiplies its bound by about 20.

use kernels::Activation;
use kernels::reference::{draw16, sigmoid};
use kernels::testing::{ROUNDING, uniform};
use model::{LayerNames, PsiAt, Weights, rope_frequencies};

/// Noisy runs. The spread is that of all logits of a token together, a few hundred values, so a few runs suffice.
const RUNS: u64 = 4;

/// The logits of one token, and the largest distance from them.
pub struct Expected {
    /// `[V]`.
    pub logits: Vec<f64>,
    /// For each of them alike.
    pub bound: f64,
}

/// What is expected after each of `tokens`, from position 0.
pub fn expected(weights: &Weights, tokens: &[u32], psi: PsiAt) -> Vec<Expected> {
    let exact = forward(weights, tokens, psi, &mut Noise::Off);
    let noisy: Vec<_> = (0..RUNS).map(|run| forward(weights, tokens, psi, &mut Noise::on(run))).collect();
    exact
        .into_iter()
        .enumerate()
        .map(|(t, logits)| {
            let squares = noisy.iter().flat_map(|run| run[t].iter().zip(&logits).map(|(a, b)| (a - b).powi(2)));
            let mean = squares.sum::<f64>() / (logits.len() as u64 * RUNS) as f64;
            Expected { bound: 6.0 * mean.sqrt(), logits }
        })
        .collect()
}

/// Signs for the errors.
enum Noise {
    Off,
    On { signs: Vec<f32>, next: usize },
}

impl Noise {
    fn on(seed: u64) -> Noise {
        Noise::On { signs: uniform(seed + 77, 1 << 16), next: 0 }
    }

    /// A kernel's result whose error is at most `error`.
    fn result(&mut self, value: f64, error: f64) -> f64 {
        let Noise::On { signs, next } = self else { return value };
        *next = (*next + 1) % signs.len();
        value + error.copysign(signs[*next] as f64)
    }

    /// `sum a b` in K terms: `(K + 4) 2^-24 sum |a b|`.
    fn dot(&mut self, a: impl Iterator<Item = f64>, b: impl Iterator<Item = f64>) -> f64 {
        let (mut sum, mut abs, mut k) = (0.0, 0.0, 0.0);
        for (a, b) in a.zip(b) {
            (sum, abs, k) = (sum + a * b, abs + (a * b).abs(), k + 1.0);
        }
        self.result(sum, (k + 4.0) * ROUNDING * abs)
    }

    /// `W x` for a row-major W `[out, in]`.
    fn project(&mut self, w: &[f32], x: &[f64]) -> Vec<f64> {
        w.chunks(x.len()).map(|row| self.dot(row.iter().map(|&w| w as f64), x.iter().copied())).collect()
    }

    fn add_to(&mut self, x: &mut [f64], y: &[f64]) {
        x.iter_mut().zip(y).for_each(|(x, y)| *x = self.result(*x + y, ROUNDING * (*x + y).abs()));
    }

    /// `x / sqrt(mean x^2 + eps) * w`: one error of `C / 2 + 4` roundings for the row, three for each element.
    fn rms_norm(&mut self, x: &[f64], w: &[f32], eps: f32) -> Vec<f64> {
        let c = x.len() as f64;
        let inv_rms = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / c + eps as f64).sqrt();
        let inv_rms = self.result(inv_rms, (c / 2.0 + 4.0) * ROUNDING * inv_rms);
        let scaled = x.iter().zip(w).map(|(x, &w)| x * inv_rms * w as f64);
        scaled.map(|y| self.result(y, 3.0 * ROUNDING * y.abs())).collect()
    }

    /// One position's heads turned: 3 roundings, and one of the table's entries.
    fn rope(&mut self, x: &[f64], position: usize, frequencies: &[f64]) -> Vec<f64> {
        let (half, mut y) = (frequencies.len(), x.to_vec());
        for (x, y) in x.chunks(2 * half).zip(y.chunks_mut(2 * half)) {
            for (i, frequency) in frequencies.iter().enumerate() {
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                let mut turn = |a: f64, b: f64| self.result(a - b, 4.0 * ROUNDING * (a.abs() + b.abs()));
                y[i] = turn(x[i] * cos, x[half + i] * sin);
                y[half + i] = turn(x[half + i] * cos, -x[i] * sin);
            }
        }
        y
    }

    /// One query head over the keys and values that it sees. Errors as `kernels::attention` states them: `D + 5` roundings of
    /// a score and 4 of the largest one, `Tk + 40` of a probability.
    fn attend(&mut self, q: &[f64], keys: &[&[f64]], values: &[&[f64]]) -> Vec<f64> {
        let (d, n) = (q.len() as f64, keys.len() as f64);
        let scale = 1.0 / d.sqrt();
        let scores = keys.iter().map(|k| {
            let (sum, abs) = q.iter().zip(*k).fold((0.0, 0.0), |(s, a), (q, k)| (s + q * k, a + (q * k).abs()));
            (scale * sum, scale * (d + 5.0) * ROUNDING * abs)
        });
        let scores: Vec<(f64, f64)> = scores.collect();
        let largest = scores.iter().map(|s| s.0.abs()).fold(0.0, f64::max);
        let scores = scores.into_iter().map(|(s, error)| self.result(s, error + 4.0 * ROUNDING * largest));
        let scores: Vec<f64> = scores.collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
        let p = scores.iter().map(|s| (s - max).exp() / sum).map(|p| self.result(p, (n + 40.0) * ROUNDING * p));
        let p: Vec<f64> = p.collect();
        (0..q.len()).map(|i| self.dot(p.iter().copied(), values.iter().map(|v| v[i]))).collect()
    }

    /// psi(g) u: 4 ULP (at most 8 roundings) of SILU and one of the product.
    fn gated(&mut self, act: Activation, row: usize, column: usize, g: f64, u: f64) -> f64 {
        let silu = match act {
            Activation::Relu => false,
            Activation::Silu => true,
            Activation::Stochastic { threshold, site } => g < 0.0 && draw16(site, row, column) < threshold,
        };
        let (psi, roundings) = if silu { (g * sigmoid(g), 9.0) } else { (g.max(0.0), 1.0) };
        self.result(psi * u, roundings * ROUNDING * (psi * u).abs())
    }
}

/// The logits `[T][V]`.
fn forward(weights: &Weights, tokens: &[u32], psi: PsiAt, noise: &mut Noise) -> Vec<Vec<f64>> {
    let config = weights.config();
    let get = |index: usize| weights.tensors()[index].to_vec::<f32>().unwrap();
    let (c, d, eps) = (config.d_model, config.head_dim, config.norm_eps);
    let frequencies = rope_frequencies(config);

    let table = weights.embed_tokens().to_vec::<f32>().unwrap();
    let embed = |&t: &u32| table[t as usize * c..][..c].iter().map(|&x| x as f64).collect();
    let mut x: Vec<Vec<f64>> = tokens.iter().map(embed).collect();
    for layer in 0..config.n_layers {
        let at = LayerNames::new(layer);
        let [norm, q_proj, k_proj, v_proj] = [at.input_layernorm, at.q_proj, at.k_proj, at.v_proj].map(get);
        let (mut q, mut k, mut v) = (Vec::new(), Vec::new(), Vec::new());
        for (t, x) in x.iter().enumerate() {
            let z = noise.rms_norm(x, &norm, eps);
            let (q_t, k_t) = (noise.project(&q_proj, &z), noise.project(&k_proj, &z));
            q.push(noise.rope(&q_t, t, &frequencies));
            k.push(noise.rope(&k_t, t, &frequencies));
            v.push(noise.project(&v_proj, &z));
        }
        let [o_proj, norm] = [at.o_proj, at.post_attention_layernorm].map(get);
        let [gate_proj, up_proj, down_proj] = [at.gate_proj, at.up_proj, at.down_proj].map(get);
        for (t, x) in x.iter_mut().enumerate() {
            let mut mixed = Vec::new();
            for head in 0..config.n_heads {
                let shared = head / (config.n_heads / config.n_kv_heads) * d;
                let keys: Vec<&[f64]> = k[..=t].iter().map(|k| &k[shared..shared + d]).collect();
                let values: Vec<&[f64]> = v[..=t].iter().map(|v| &v[shared..shared + d]).collect();
                mixed.extend(noise.attend(&q[t][head * d..(head + 1) * d], &keys, &values));
            }
            let y = noise.project(&o_proj, &mixed);
            noise.add_to(x, &y);

            let z = noise.rms_norm(x, &norm, eps);
            let (g, u) = (noise.project(&gate_proj, &z), noise.project(&up_proj, &z));
            let act = psi.layer(layer);
            let h: Vec<f64> = (0..g.len()).map(|i| noise.gated(act, t, i, g[i], u[i])).collect();
            let y = noise.project(&down_proj, &h);
            noise.add_to(x, &y);
        }
    }
    let (norm, lm_head) = (weights.norm().to_vec::<f32>().unwrap(), weights.lm_head().to_vec::<f32>().unwrap());
    x.iter()
        .map(|x| {
            let z = noise.rms_norm(x, &norm, eps);
            noise.project(&lm_head, &z)
        })
        .collect()
}
